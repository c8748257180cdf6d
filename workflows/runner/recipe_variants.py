"""Variants of a recipe, and the folders that follow from a setting: a step that reads a renamed folder is renamed, too.

`[variants.NAME]` holds the settings that differ in a variant, step by step: `[variants.charades]` with `extract = {weights =
"charades"}`. Every step that a variant changes, and every step that reads what such a step makes, has a folder of its own,
`features-charades` and so on, next to those of the other variants; the other folders are shared.
"""

from __future__ import annotations

import copy
import os
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from excl.workflows.steps import STEPS

VARIANTS = "variants"
NO_PATHS = {"query"}  # settings whose texts are sentences, one of which may well be the name of a folder


def require_variants(recipe_name: str, variants: Any) -> None:
    """Raise ValueError if the table `variants` of a recipe is not made of settings of steps."""
    tables = variants if isinstance(variants, dict) else {"": variants}
    for variant, table in tables.items():
        steps = table if isinstance(table, dict) else {"": table}
        for step, settings in steps.items():
            if step not in STEPS or not isinstance(settings, dict):
                raise ValueError(
                    f"{recipe_name}: [{VARIANTS}.{variant}]: {step or table!r}: expected settings of steps, "
                    'such as extract = {weights = "charades"}'
                )
        if set(variant) & set("/\\ ") or variant in ("", ".", ".."):
            raise ValueError(f"{recipe_name}: [{VARIANTS}.{variant}]: no name for a folder")


def apply_variant(tables: Mapping[str, Any], variant: Mapping[str, Any], *, name: str, root: Path) -> dict[str, Any]:
    """Return the tables of a variant: its settings in place, and its own folders for what they change and what follows."""
    changed_tables: dict[str, Any] = {}
    folders: dict[Path, Path] = {}
    for step in STEPS:
        if step not in tables and step not in variant:
            continue
        plain = tables.get(step, {})
        table = _merged(plain, variant.get(step, {}))
        renamed = rename_paths(step, table, folders, root)
        out = table.get("out")
        if renamed != plain and isinstance(out, str) and out == plain.get("out"):
            renamed["out"] = f"{out}-{name}"
            folders[Path(out)] = Path(renamed["out"])
        changed_tables[step] = renamed
    unknown = {table: tables[table] for table in tables.keys() - changed_tables.keys()}
    return changed_tables | unknown


def _merged(table: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a table with the settings of another in it, at any depth."""
    merged: dict[str, Any] = copy.deepcopy(dict(table))
    for key, value in changes.items():
        inner = merged.get(key)
        merged[key] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


def rename_paths(step: str, table: Mapping[str, Any], folders: Mapping[Path, Path], root: Path) -> dict[str, Any]:
    """Return the table of a step with every path that is, or lies in, one of the `folders` moved to its new folder.

    Paths count from `root`, so a path is recognised whether it is relative or absolute. A text that is no path, such as a
    split, may be the name of a folder by chance; one that lies in the folder is a file.
    """

    def rename(value: Any, *, is_path: bool) -> Any:
        if isinstance(value, dict):
            return {key: rename(inner, is_path=False) for key, inner in value.items()}
        if isinstance(value, list):
            return [rename(inner, is_path=is_path) for inner in value]
        for folder, target in folders.items() if isinstance(value, str) else ():
            inner = inner_path(root / value, root / folder)
            if inner is not None and (is_path or not within(root / folder, root / value)):
                moved = target / inner
                return str(normal(root / moved) if PurePath(value).is_absolute() else moved)
        return value

    hints = typing.get_type_hints(STEPS[step].config, include_extras=True)
    paths = {name for name, kind in hints.items() if Path in _parts(kind)}
    return {key: value if key in NO_PATHS else rename(value, is_path=key in paths) for key, value in table.items()}


def _parts(kind: Any) -> Iterator[Any]:
    """Yield a type and those that it is made of."""
    yield kind
    for part in typing.get_args(kind):
        yield from _parts(part)


def normal(path: Path) -> Path:
    """Return the absolute path without dots in it."""
    return Path(os.path.abspath(path))


def within(path: Path, folder: Path) -> bool:
    """Return whether a path is a folder, or lies in it, however both are given, through links too."""
    return inner_path(path, folder) is not None


def inner_path(path: Path, folder: Path) -> Path | None:
    """Return a path as it counts from a folder that it is, or lies in; None if it lies elsewhere."""
    for absolute in (os.path.abspath, os.path.realpath):
        inner, outer = Path(absolute(path)), Path(absolute(folder))
        if inner.is_relative_to(outer):
            return inner.relative_to(outer)
    return None
