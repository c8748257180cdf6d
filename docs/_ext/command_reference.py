"""A Sphinx extension that writes `reference/commands.md`: every command and its settings, from the configurations.

The page is made of what `--help` is made of, so that the two cannot differ.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

from excl.workflows.keywords import settings_of
from excl.workflows.steps import GROUPS, Step

INTRODUCTION = """\
# Commands and settings

This page is generated from the configurations of the commands; `excl COMMAND --help` prints the same. The names are those of
recipes and of the Python functions. On the command line `short_side` is the flag `--short-side`.
"""


def setting_rows(config: type[Any], prefix: str = "") -> Iterator[str]:
    """Yield a row of the table for every setting, those of a nested configuration under their dotted names."""
    for setting in settings_of(config):
        if dataclasses.is_dataclass(setting.default):
            yield from setting_rows(type(setting.default), f"{prefix}{setting.name}.")
            continue
        default = setting.hint.removeprefix("(default: ").removesuffix(")") or _default_in_words(setting.default)
        text = setting.text.replace("|", "\\|").replace("<", "&lt;")
        yield f"| `{prefix}{setting.name}` | {default} | {text} |"


def _default_in_words(value: object) -> str:
    """Return a default as a reader would type it."""
    if value is inspect.Parameter.empty:
        return "required"
    if value is None or value == ():
        return "none"
    return f"`{' '.join(map(str, value)) if isinstance(value, tuple) else value}`"


def command_section(step: Step) -> str:
    """Return the section of one command in Markdown."""
    lines = [f"### excl {step.name}", "", " ".join((step.config.__doc__ or "").split()), ""]
    if rows := list(setting_rows(step.config)):
        lines += ["| setting | default | |", "|---|---|---|", *rows]
    else:
        lines += [f"This command has commands of its own: see `excl {step.name} --help`."]
    return "\n".join(lines) + "\n"


def write_reference(app: Sphinx) -> None:
    """Write the page before Sphinx looks for its sources."""
    parts = [INTRODUCTION]
    for group, steps in GROUPS.items():
        parts += [f"## {group[0].upper()}{group[1:]}\n", *map(command_section, steps)]
    page = Path(app.srcdir) / "reference" / "commands.md"
    page.parent.mkdir(exist_ok=True)
    page.write_text("\n".join(parts), encoding="utf-8")


def cut_settings(_app: Sphinx, _kind: str, _name: str, _object: object, _options: object, lines: list[str]) -> None:
    """Leave out the settings from the docstring of a function that has those of a command, and say where they are."""
    ends = [number for number, line in enumerate(lines, 1) if line.endswith("Paths may be strings.")]
    if ends:
        lines[ends[0] :] = ["", "The settings are those of the command: :doc:`commands`.", ""]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.connect("builder-inited", write_reference)
    app.connect("autodoc-process-docstring", cut_settings)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
