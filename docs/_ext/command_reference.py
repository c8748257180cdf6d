"""A Sphinx extension that writes `reference/commands.md`: every command with its settings, from the configurations themselves.

A configuration is a dataclass with a docstring under each field, so that the page cannot say anything else than `--help`.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

from excl.workflows.steps import GROUPS, Step

INTRODUCTION = """\
# Commands and settings

This page is generated from the configurations of the commands. `excl COMMAND --help` prints the same. In a recipe a key has the
name of the flag with underscores: `--short-side 256` is `short_side = 256` in the table of its step.
"""


def field_docstrings(config: type[Any]) -> dict[str, str]:
    """Return the docstring that stands under each field of a dataclass, with those of its base classes."""
    documented: dict[str, str] = {}
    for base in reversed(config.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body  # type: ignore[attr-defined]
        for field, following in zip(body, body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(following, ast.Expr):
                documented[ast.unparse(field.target)] = " ".join(ast.literal_eval(following.value).split())
    return documented


def settings(config: type[Any], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield flag, default and docstring of every setting; the fields of a nested configuration come under their own flags."""
    documented = field_docstrings(config)
    hints = typing.get_type_hints(config, include_extras=True)
    for field in dataclasses.fields(config):
        annotation, bare = hints[field.name], _without_annotation(hints[field.name])
        if dataclasses.is_dataclass(bare):
            nested = "" if "name=''" in repr(annotation) else f"{prefix}{field.name}."
            yield from settings(bare, nested)  # type: ignore[arg-type]
        else:
            yield f"--{prefix}{field.name}".replace("_", "-"), _default(field), documented.get(field.name, "")


def _without_annotation(annotation: Any) -> Any:
    return typing.get_args(annotation)[0] if typing.get_origin(annotation) is typing.Annotated else annotation


def _default(field: dataclasses.Field[Any]) -> str:
    """Return the default as it is typed on a command line, "required" if there is none."""
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    elif field.default is dataclasses.MISSING:
        return "required"
    else:
        value = field.default
    if value is None or value == ():
        return "none"
    return f"`{' '.join(map(str, value)) if isinstance(value, tuple) else value}`"


def command_section(step: Step) -> str:
    """Return the section of one command in Markdown."""
    config = step.config
    lines = [f"### excl {step.name}", "", " ".join((config.__doc__ or "").split()), ""]
    rows = list(settings(config))
    if rows:
        lines += ["| setting | default | |", "|---|---|---|"]
        lines += [f"| `{flag}` | {default} | {_cell(text)} |" for flag, default, text in rows]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def write_reference(app: Sphinx) -> None:
    """Write the page before Sphinx looks for its sources."""
    parts = [INTRODUCTION]
    for group, steps in GROUPS.items():
        parts += [f"## {group[0].upper()}{group[1:]}\n", *map(command_section, steps)]
    page = Path(app.srcdir) / "reference" / "commands.md"
    page.parent.mkdir(exist_ok=True)
    page.write_text("\n".join(parts), encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.connect("builder-inited", write_reference)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
