"""A recipe: the steps for one data set, each with its settings, from one TOML file.

Every table of the file is the configuration of one step and holds its settings under the names that the command's
flags have. Steps without a table are left out. Paths count from the root folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import tomllib
import typing
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from excl.datasets.parsing import read_text
from excl.datasets.video.backends import resolve_backends
from excl.pipeline.config import parse_section
from excl.workflows.runner.recipe_variants import VARIANTS, apply_variant, require_variants, within
from excl.workflows.steps import STEPS


@dataclass(frozen=True)
class Recipe:
    """The content of a recipe file, with the chosen variant and the settings of the command line in place."""

    name: str
    root: Path
    """The folder from which its paths count. It need not be there yet."""
    tables: Mapping[str, Any]
    """The settings of every step."""
    variants: tuple[str, ...]
    """The names of its variants."""
    chosen: str | None
    """The name of the variant that was asked for."""
    settings: tuple[str, ...]
    """The settings of the command line, as they were written."""
    about: str
    """The comment at its head, which says what must exist before a run."""

    @contextlib.contextmanager
    def inside(self) -> Iterator[Path]:
        """Make the root the working directory, or an empty folder if there is no root yet; the root is not made."""
        with contextlib.ExitStack() as stack:
            folder = self.root if self.root.is_dir() else Path(stack.enter_context(tempfile.TemporaryDirectory()))
            root = self.root.absolute()
            stack.enter_context(contextlib.chdir(folder))
            yield root


def bundled() -> list[str]:
    """Return the names of the recipes that come with the package."""
    folder = resources.files("excl.workflows") / "recipes"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_recipe(
    recipe: str, root: Path | None = None, *, variant: str | None = None, settings: tuple[str, ...] = ()
) -> Recipe:
    """Read a recipe from a file, or a bundled one by its name. ValueError if it has no such variant."""
    name, text, default_root = _read(recipe)
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{name}: not valid TOML: {error}") from error
    variants = tables.pop(VARIANTS, {})
    require_variants(name, variants)
    if variant is not None:
        if variant not in variants:
            raise ValueError(f"{name}: variant: has no {variant!r}; it has {', '.join(variants) or 'none'}")
        tables = apply_variant(tables, variants[variant], name=variant, root=root or default_root)
    for setting in settings:
        _set(tables, setting)
    return Recipe(name, root or default_root, tables, tuple(variants), variant, settings, _head(text))


def _read(recipe: str) -> tuple[str, str, Path]:
    """Return name, text, and the root to use if no other is given."""
    if recipe in bundled():
        text = (resources.files("excl.workflows") / "recipes" / f"{recipe}.toml").read_text(encoding="utf-8")
        return recipe, text, Path(recipe)
    path = Path(recipe)
    if path.is_dir():
        raise ValueError(f"{path}: a folder; expected a recipe file, such as {path / 'recipe.toml'}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such recipe; it is neither a file nor one of {', '.join(bundled())}")
    return path.name, read_text(path), path.parent


def _head(text: str) -> str:
    """Return the comment with which a recipe begins, without the # signs."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").removeprefix(" "))
    return "\n".join(lines)


def parse_setting(text: str) -> tuple[list[str], Any]:
    """Return `train.model.dropout=0.3` as (["train", "model", "dropout"], 0.3); a value that is not TOML is a text."""
    key, separator, value = text.partition("=")
    path = key.strip().split(".")
    if not separator or len(path) < 2 or path[0] not in STEPS:
        raise ValueError(f"set: found {text!r}; expected STEP.KEY=VALUE, such as extract.stride=4")
    try:
        return path, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return path, value


def _set(tables: dict[str, Any], setting: str) -> None:
    """Put one setting of the command line in place."""
    keys, value = parse_setting(setting)
    table = tables
    for number, key in enumerate(keys[:-1], start=1):
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise ValueError(f"set: found {setting!r}, but {'.'.join(keys[:number])} has no settings in it")
    is_list = isinstance(table.get(keys[-1]), list) or keys[-1] in _list_keys(keys)
    table[keys[-1]] = [value] if is_list and not isinstance(value, list) else value


def _list_keys(keys: list[str]) -> list[str]:
    """Return the settings of a step that are lists, for which a single value may stand."""
    if len(keys) != 2:
        return []
    hints = typing.get_type_hints(STEPS[keys[0]].config)
    return [name for name, kind in hints.items() if typing.get_origin(kind) is tuple]


def parse(
    name: str, tables: Mapping[str, Any], *, chosen: Collection[str] | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Return the configuration of every step whose table can be read, and a line for everything that is wrong.

    The input of a step has to exist only if the step is one of the `chosen` ones, by default all.
    """
    problems, configs = [], {}
    for table in tables.keys() - STEPS.keys():
        problems.append(f"{name}: [{table}]: unknown; a recipe may have {', '.join(f'[{step}]' for step in STEPS)}")
    for step in STEPS.values():
        if step.name not in tables:
            continue
        try:
            configs[step.name] = parse_section(step.config, tables[step.name], where=f"{name}: [{step.name}]")
        except ValueError as error:
            problems.append(str(error))
        if getattr(configs.get(step.name), "new_version", False):
            problems.append(
                f"{name}: [{step.name}]: new_version: not in a recipe, where later steps read what is in `out`; what other "
                "settings made is kept beside it anyway"
            )
    problems += missing_inputs(name, configs, chosen=chosen) + _other_frames(name, configs)
    if not configs and not problems:
        problems.append(f"{name}: has no steps; a recipe has tables such as [extract] and [train]")
    return configs, problems


def _other_frames(name: str, configs: Mapping[str, Any]) -> list[str]:
    """Return a line for every setting by which extract asks for other frames than decode makes."""
    decoded, extracted = configs.get("decode"), configs.get("extract")
    if decoded is None or extracted is None or extracted.frames != decoded.out:
        return []
    sampling = extracted.feature_recipe().to_json()
    stored = {"fps": decoded.fps, "short_side": decoded.short_side, "crop": decoded.crop}
    stored["backend"] = list(resolve_backends(decoded.backend))
    return [
        f"{name}: [extract]: {key}: {sampling[key]}, but [decode] has {value}; give both the same"
        for key, value in stored.items()
        if sampling[key] != value
    ]


def missing_inputs(name: str, configs: Mapping[str, Any], *, chosen: Collection[str] | None = None) -> list[str]:
    """Return a line for every path of the chosen steps that is neither there nor inside the output of an earlier step."""
    problems: list[str] = []
    outs: list[Path] = []
    for step, config in configs.items():
        for key, path in inputs(config) if chosen is None or step in chosen else ():
            if not path.exists() and not any(within(path, folder) for folder in outs):
                problems.append(f"{name}: [{step}]: {key}: {path}: not there, and no earlier step makes it")
        if config.out is not None:
            outs.append(config.out)
    return problems


def inputs(config: Any) -> list[tuple[str, Path]]:
    """Return the paths that a step reads, each with its key: those that the configuration names, or all but `out`."""
    if hasattr(config, "inputs"):
        return [("reads", path) for path in config.inputs()]
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name != "out"}
    return [
        (name, path)
        for name, value in values.items()
        for path in (value if isinstance(value, tuple) else [value])
        if isinstance(path, Path)
    ]


def reads_from(config: Any, folder: Path) -> bool:
    """Return whether a step reads something in a folder."""
    return any(within(path, folder) for _, path in inputs(config))
