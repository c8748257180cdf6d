"""The tutorial is run from its own Markdown: every command, in order, prints what the page shows."""

from pathlib import Path

import pytest
from console_blocks import console_commands, masked, matches, run

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("page", ["docs/tutorial.md"])
def test_every_command_prints_what_the_page_shows(page, tmp_path, monkeypatch):
    commands = console_commands((ROOT / page).read_text(encoding="utf-8"))
    assert len(commands) > 5
    for command in commands:
        code, printed = run(command, tmp_path, path="/usr/bin:/bin")
        place = f"{page}:{command.line_number}: {command.text}"
        assert code == 0, f"{place}\n" + "\n".join(printed)
        assert matches(command.shown, printed), f"{place} printed\n" + "\n".join(printed)


def test_a_page_that_shows_something_else_is_noticed():
    assert matches(["3 videos, 12 rows", "…", "done"], ["4 videos,  13 rows", "more", "done"])
    assert not matches(["3 videos"], ["3 films"])
    assert not matches(["3 videos"], ["3 videos", "and more"])
    assert masked("─── 1,024 rows in 0:03") == "0 rows in 0"


def test_commands_are_found_in_console_blocks_alone():
    text = "```console\n$ a \\\n  b\nout\n$ c\n```\n```\n$ d\n```\n"
    assert [(c.text, c.shown) for c in console_commands(text)] == [("a \\\n  b", ["out"]), ("c", [])]
