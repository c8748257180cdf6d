"""A recipe: the stages for one data set, in order, from one TOML file.

Every table of the file is the configuration of one step and holds its settings under the names that the command's
flags have. Steps without a table are left out. Paths count from the root folder. All tables are checked before any work
starts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import tomllib
import typing
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import tyro
from pydantic.dataclasses import dataclass as checked_dataclass

from excl.datasets.backends import choose
from excl.datasets.parsing import read_text
from excl.pipeline.config import STRICT, parse_section
from excl.pipeline.manifest import RecipeMismatchError
from excl.workflows.steps import STEPS, Step

log = logging.getLogger(__name__)


@checked_dataclass(frozen=True, config=STRICT)
class Config:
    """Run all steps of a recipe: what is done already is not done again, what was made from other settings is."""

    recipe: tyro.conf.Positional[str]
    """A recipe file (TOML), or the name of one that comes with excl: charades_sta, tacos, activitynet_captions, demo."""
    root: Path | None = None
    """The folder from which the recipe's paths count. Default: the recipe file's own folder; for a recipe that comes
    with excl, a folder of its name."""
    set: tuple[str, ...] = ()
    """Settings in place of those of the recipe, such as extract.stride=4 or train.model.variant=reg-1-b."""
    only: str | None = None
    """Run this step alone."""
    until: str | None = None
    """Run the steps up to this one, and not those after it."""

    def __post_init__(self) -> None:
        for name in ("only", "until"):
            if getattr(self, name) is not None and getattr(self, name) not in STEPS:
                raise ValueError(f"{name}: {getattr(self, name)!r} is no step; steps are {', '.join(STEPS)}")
        if self.only and self.until:
            raise ValueError("only: with until; give one of the two")
        for setting in self.set:
            parse_setting(setting)


def parse_setting(text: str) -> tuple[list[str], Any]:
    """`train.model.dropout=0.3` as (["train", "model", "dropout"], 0.3); a value that is no TOML is a text."""
    key, separator, value = text.partition("=")
    path = key.strip().split(".")
    if not separator or len(path) < 2 or path[0] not in STEPS:
        raise ValueError(f"set: found {text!r}; wanted STEP.KEY=VALUE, such as extract.stride=4")
    try:
        return path, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return path, value


def bundled() -> list[str]:
    """The names of the recipes that come with the package."""
    folder = resources.files("excl.workflows") / "recipes"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_recipe(config: Config) -> tuple[str, Path, Mapping[str, Any]]:
    """Name, root and tables of the recipe; ValueError if there is none or it is no TOML."""
    if config.recipe in bundled():
        text = (resources.files("excl.workflows") / "recipes" / f"{config.recipe}.toml").read_text(encoding="utf-8")
        name, root = config.recipe, config.root or Path(config.recipe)
    else:
        path = Path(config.recipe)
        if path.is_dir():
            raise ValueError(f"{path}: a folder; wanted is a recipe file, such as {path / 'recipe.toml'}")
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such recipe; it is neither a file nor one of {', '.join(bundled())}")
        text, name, root = read_text(path), path.name, config.root or path.parent
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{name}: not valid TOML: {error}") from error
    for setting in config.set:
        keys, value = parse_setting(setting)
        table = tables
        for key in keys[:-1]:
            table = table.setdefault(key, {})
        is_list = isinstance(table.get(keys[-1]), list) or keys[-1] in _list_keys(keys)
        table[keys[-1]] = [value] if is_list and not isinstance(value, list) else value
    return name, root, tables


def _list_keys(keys: list[str]) -> list[str]:
    """The settings of a step that are lists, for which one value may stand."""
    if len(keys) != 2:
        return []
    hints = typing.get_type_hints(STEPS[keys[0]].config)
    return [name for name, kind in hints.items() if typing.get_origin(kind) is tuple]


def check(name: str, tables: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of every step in the recipe; ValueError names every table, key and path that is wrong."""
    configs, problems = parse(name, tables)
    if problems:
        raise ValueError("\n".join(problems))
    return configs


def parse(name: str, tables: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The configuration of every step whose table can be read, and a line for everything that is wrong."""
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
    problems += _missing_inputs(name, configs) + _other_frames(name, configs)
    if not configs and not problems:
        problems.append(f"{name}: has no steps; a recipe has tables such as [extract] and [train]")
    return configs, problems


def _other_frames(name: str, configs: Mapping[str, Any]) -> list[str]:
    """A line for every setting by which extract asks for other frames than decode makes."""
    decoded, extracted = configs.get("decode"), configs.get("extract")
    if decoded is None or extracted is None or extracted.frames != decoded.out:
        return []
    asked = extracted.making().to_json()
    made = {"fps": decoded.fps, "short_side": decoded.short_side, "crop": decoded.crop}
    made["backend"] = list(choose(decoded.backend))
    return [
        f"{name}: [extract]: {key}: {asked[key]}, but [decode] has {value}; give both the same"
        for key, value in made.items()
        if asked[key] != value
    ]


def _missing_inputs(name: str, configs: Mapping[str, Any]) -> list[str]:
    """A line for every path that is neither there nor inside the output of an earlier step."""
    problems: list[str] = []
    made: list[Path] = []
    for step, config in configs.items():
        for key, path in _inputs(config):
            if not path.exists() and not any(path.is_relative_to(folder) for folder in made):
                problems.append(f"{name}: [{step}]: {key}: {path}: not there, and no earlier step makes it")
        if config.out is not None:
            made.append(config.out)
    return problems


def _inputs(config: Any) -> list[tuple[str, Path]]:
    """The paths that a step reads, each with its key: those that the configuration tells, or all but `out`."""
    if hasattr(config, "inputs"):
        return [("reads", path) for path in config.inputs()]
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name != "out"}
    return [
        (name, path)
        for name, value in values.items()
        for path in (value if isinstance(value, tuple) else [value])
        if isinstance(path, Path)
    ]


def run(config: Config) -> int:
    """Run the recipe's steps in order; returns how many videos failed on the way."""
    name, root, tables = load_recipe(config)
    root.mkdir(parents=True, exist_ok=True)
    failed = 0
    with contextlib.chdir(root):
        configs = check(name, tables)
        chosen = _chosen(name, configs, config)
        log.info("%s: %s, in %s", name, ", ".join(chosen), Path.cwd())
        for number, (step_name, step_config) in enumerate(chosen.items(), start=1):
            log.info("[%d/%d] %s", number, len(chosen), step_name)
            try:
                failed += run_step(STEPS[step_name], step_config)
            except RecipeMismatchError as error:
                log.warning("%s", str(error).rpartition("\n")[0] or error)
                _move_aside(step_config.out)
                failed += run_step(STEPS[step_name], step_config)
    return failed


def _chosen(name: str, configs: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """The steps to run."""
    last = config.only or config.until
    if last is not None and last not in configs:
        raise ValueError(f"{name}: has no step [{last}]; it has {', '.join(configs)}")
    if config.only:
        return {config.only: configs[config.only]}
    steps = list(configs)
    return {step: configs[step] for step in steps[: steps.index(last) + 1 if last else None]}


def _move_aside(out: Path) -> None:
    """Keep what was made from other settings under another name, since it may have taken days."""
    kept = next(path for n in itertools.count(1) if not (path := out.with_name(f"{out.name}.old-{n}")).exists())
    out.rename(kept)
    log.warning("%s is kept as %s (remove it if it is not needed), and %s is made again", out, kept, out)


def run_step(step: Step, config: Any) -> int:
    """Run one step and show what it found; returns how many videos failed."""
    result = step.run(config)
    if step.show is not None:
        print(step.show(result), flush=True)
    return step.failed(result)
