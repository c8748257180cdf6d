"""The choice of the folder that each step works in. Folders of different settings stand side by side, and none is ever
moved.

The first settings have the plain name, `features`. Other settings have a folder next to it whose name ends with a digest of
all that determines its results, `features-1a2b3c4d`, so the same settings find the same folder again. The steps that follow
read from there. Nothing here computes features or trains.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from excl.models.i3d.weight_catalogue import PUBLISHED
from excl.pipeline import decode, evaluate, extract, localize, pack, tokenise, train
from excl.pipeline.artifacts import header as headers
from excl.pipeline.artifacts.header import HEADER
from excl.pipeline.artifacts.locks import BusyError, exclusive_folder
from excl.pipeline.artifacts.manifest import has_no_results
from excl.pipeline.config import parse_section
from excl.pipeline.queries.published_glove import PUBLISHED as PUBLISHED_GLOVE
from excl.pipeline.sweep import reproduce
from excl.workflows import demo
from excl.workflows.runner.recipe import reads_from
from excl.workflows.runner.recipe_variants import rename_paths
from excl.workflows.steps import STEPS

READ_VIDEOS = (decode.STAGE, extract.STAGE)
STAGES: Mapping[str, ModuleType] = {
    stage.STAGE: stage for stage in (demo, decode, extract, tokenise, pack, train, localize, evaluate, reproduce)
}
DIFFERENCES_SHOWN = 3
SHA256_DIGITS = 64
NAME_DIGITS = 8


class OtherSettingsError(ValueError):
    """A step would read the results of other settings than the recipe's."""


class StepFolders:
    """The folders of a recipe's steps, chosen one after the other in the order of the steps.

    `tables` are the recipe's, whose relative paths count from the working directory, which is the root.
    """

    def __init__(self, tables: Mapping[str, Any]) -> None:
        self._tables = tables
        self._beside: dict[str, tuple[Path, Path]] = {}  # of a step: the folder that the recipe names, and the chosen one
        self._origins: dict[Path, str] = {}  # of a chosen folder: the folder of the demo whose videos are in it
        self._foreign: dict[Path, str] = {}  # folders of steps that are not run, with results of other settings: the step

    def config(self, step: str) -> Any:
        """Return the configuration of a step, which reads from the folders that were chosen for the steps before."""
        table = rename_paths(step, self._tables[step], dict(self._beside.values()), Path.cwd())
        return parse_section(STEPS[step].config, table, where=f"[{step}]")

    def choose(self, step: str) -> Any:
        """Choose the folder of a step, and return its configuration with this folder as `out`.

        ValueError or OSError if the folder cannot be chosen yet, because the step's input does not exist.
        """
        self._beside.pop(step, None)
        config = self.config(step)
        self._require_own_inputs(step, config)
        if config.out is None:
            return config
        origin = self._origin(step, config)
        if is_new(config.out) and not origin and not _is_busy(config.out):
            return config  # whatever the settings are
        header = wanted_header(step, config)
        folder = _next_to(config.out, f"-{_digest([header, origin])}")
        if not origin and (_holds(step, config, header) or (_is_open(config.out, header) and is_free(folder))):
            return config
        self._beside[step] = (config.out, folder)
        if step == demo.STAGE or origin:
            self._origins[folder] = origin or folder.name
        return dataclasses.replace(config, out=folder)

    def choose_existing(self, step: str) -> Any:
        """Choose the folder of a step that is not run: the one of its settings if it is there, otherwise the plain one.

        If the plain folder has results of other settings, or nobody can say of which, no step that is run may read it.
        """
        config = self.config(step)
        if config.out is None:
            return config
        try:
            chosen = None if missing_download(config) else self.choose(step)
            is_foreign = bool(_others(config.out)) if chosen is None else is_free(chosen.out)
        except OtherSettingsError:
            chosen, is_foreign = None, True
        except (ValueError, OSError):
            chosen, is_foreign = None, bool(_others(config.out))
        if chosen is not None and not is_foreign:
            return chosen
        self._beside.pop(step, None)
        if is_foreign and not is_free(config.out):
            self._foreign[config.out] = step
        return config

    def _require_own_inputs(self, step: str, config: Any) -> None:
        """Raise OtherSettingsError if a step would read the results of other settings."""
        for folder, earlier in self._foreign.items():
            if reads_from(config, folder):
                raise OtherSettingsError(
                    f"[{step}] reads {folder}, which has results of other settings of the step {earlier}, and none of these "
                    f"settings are there; run {earlier} with these settings first"
                )

    def _origin(self, step: str, config: Any) -> str:
        """Return the folder of the demo from whose videos decode and extract work, if it is not the plain one.

        The content of the videos is no part of the identity of these two stages.
        """
        if step not in READ_VIDEOS:
            return ""
        return next((origin for folder, origin in self._origins.items() if reads_from(config, folder)), "")

    def is_beside(self, folder: Path | None) -> bool:
        """Return whether a folder was chosen in place of the one that the recipe names."""
        return any(folder == chosen for _, chosen in self._beside.values())


def wanted_header(step: str, config: Any) -> dict[str, Any]:
    """Return the header that the folder of a configuration would have. ValueError or OSError if an input is not finished."""
    stage = STAGES[step]
    return headers.plain(stage=step, identity=stage.made_by(config), code_version=stage.CODE_VERSION)


def missing_download(config: Any) -> str:
    """Return which weights or word vectors a step would download first, in words; empty if none."""
    if isinstance(config, extract.ExtractConfig):
        spec = config.weights_spec
        if spec in PUBLISHED and not PUBLISHED[spec].cached_path.is_file():
            return f"the weights {spec} are not in the cache and are downloaded first"
    glove = config.glove if isinstance(config, tokenise.TokeniseConfig) else None
    if glove in PUBLISHED_GLOVE and not PUBLISHED_GLOVE[glove].cached_path.is_file():
        return f"the word vectors {glove} are not in the cache and are downloaded first"
    return ""


def is_new(folder: Path) -> bool:
    """Return whether nothing was made in a folder yet, nor in one next to it for other settings."""
    return is_free(folder) and not _others(folder)


def _next_to(folder: Path, ending: str) -> Path:
    """Return the folder next to another; for a link, next to its target, which may be on a larger disk."""
    folder = folder.resolve() if folder.is_symlink() else folder
    return folder.with_name(folder.name + ending)


def _others(folder: Path) -> list[Path]:
    """Return the folders of other settings next to a folder."""
    plain = _next_to(folder, "")
    pattern = f"{glob.escape(plain.name)}-{'[0-9a-f]' * NAME_DIGITS}"
    return [path for path in plain.parent.glob(pattern) if path.is_dir()]


def is_free(folder: Path) -> bool:
    """Return whether any settings may have the folder, since it has no results."""
    return all(has_no_results(header.parent) for header in folder.rglob(HEADER))


def _is_busy(folder: Path) -> bool:
    """Return whether a process works in a folder now."""
    if not (folder / HEADER).is_file():
        return False
    try:
        with exclusive_folder(folder):
            return False
    except BusyError:
        return True


def _is_open(folder: Path, header: Mapping[str, Any]) -> bool:
    """Return whether these settings may have a folder: it has no results, and no other run is at it."""
    if not is_free(folder):
        return False
    return not _is_busy(folder) or not headers.diff(headers.comparable_header(folder), header)


def _holds(step: str, config: Any, header: Mapping[str, Any]) -> bool:
    """Return whether the folder of a configuration has results, and they are of its settings."""
    if step == reproduce.STAGE:
        return reproduce.has_same_settings(config)
    return not is_free(config.out) and not headers.diff(headers.comparable_header(config.out), header)


def _digest(value: object) -> str:
    return hashlib.sha256(headers.canonical(value).encode()).hexdigest()[:NAME_DIGITS]


def reasons(step: str, config: Any, plain: Path) -> str:
    """Return why a step has a folder of its own: how its settings differ from those of the folder `plain`."""
    if step == reproduce.STAGE or is_free(plain):
        return ""
    lines = []
    for key, values in headers.diff(headers.comparable_header(plain), wanted_header(step, config)).items():
        is_content = all(isinstance(value, str) and len(value) == SHA256_DIGITS for value in values)
        change = "is not the same content" if is_content else f"was {values[0]} and is {values[1]}"
        lines.append(f"{step}.{key.removeprefix('identity.')} {change}")
    if len(lines) > DIFFERENCES_SHOWN:
        lines[DIFFERENCES_SHOWN:] = [f"and {len(lines) - DIFFERENCES_SHOWN} more"]
    return ", ".join(lines) or "its videos have changed"


def free_bytes(root: Path) -> int:
    """Return the free space on the disk of a folder, which need not exist yet."""
    return shutil.disk_usage(next(path for path in (root, *root.parents) if path.exists())).free
