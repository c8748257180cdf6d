"""The messages that docs/troubleshooting.md explains are messages of the program."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def texts():
    """Every text in the program but its docstrings."""
    for folder in ("pipeline", "models", "datasets", "workflows"):
        for path in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            docstrings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            yield from (
                node.value
                for node in ast.walk(tree)
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings
            )


def test_every_message_that_is_explained_exists():
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    words = [" ".join(words.split()) for words in re.findall(r"\*\*(.+?)\*\*", page, re.DOTALL)]
    assert len(words) > 15
    program = "\n".join(texts())
    assert [message for message in words if message not in program] == []
