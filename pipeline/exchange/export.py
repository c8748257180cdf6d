"""Export: read a store, leave its features, and its annotations if it has any, as another trainer opens them.

The folder appears when all of it is written, with `export.json`, which says what the rows mean and which files there are.
`export_formats.py` has the layout of each format; `docs/exchange.md` is for users.
"""

from __future__ import annotations

import contextlib
import glob
import json
import logging
import os
import shutil
import socket
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from pydantic.dataclasses import dataclass

from excl.datasets.parsing import shortened
from excl.pipeline.artifacts.atomic_files import fsync_folder, write_json
from excl.pipeline.artifacts.header import diff
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.config import STRICT, PositiveFloat, PositiveInt, RunOnly, identity
from excl.pipeline.exchange import naming_rules
from excl.pipeline.exchange.export_formats import FORMATS, Format, FormatSettings
from excl.pipeline.exchange.export_view import TASKS, ExportReport, ExportView, Task
from excl.pipeline.store.feature_store import FeatureStore
from excl.pipeline.store.training_store import TrainingStore

log = logging.getLogger(__name__)

CODE_VERSION = 1
ABOUT = "export.json"
SHARD_VIDEOS = 1000
FormatName = Literal[
    "ms-2d-tan", "2d-tan", "vslnet", "lgi", "tmlga", "moment-detr", "npy", "npz", "safetensors", "webdataset"
]


@dataclass(frozen=True, config=STRICT)
class ExportConfig:
    """Write a store as the files that another trainer opens: features, and from a training store annotations too."""

    store: RunOnly[Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="STORE")]]
    """A feature store, or a training store that `excl pack` wrote, whose annotations are written too."""
    to: FormatName
    """Format of the files: that of a trainer, or arrays for anybody (npy, npz, safetensors, webdataset)."""
    out: RunOnly[Path]
    """The folder to write, which must not be there yet. docs/exchange.md says where each trainer looks for it."""
    task: Annotated[Task | None, tyro.conf.arg(help_behavior_hint="(default: the store's own, or charades)")] = None
    """The data set in whose form names and annotations are."""
    dtype: Annotated[
        Literal["float16", "float32"] | None,
        tyro.conf.arg(help_behavior_hint="(default: float32 for trainers, as stored for the others)"),
    ] = None
    """The type in which values are written."""
    name: Annotated[str | None, tyro.conf.arg(help_behavior_hint="(default: i3d_rgb, new, i3d)")] = None
    """The free part of a name: VIS_INPUT_TYPE of the 2D-TANs, --fv of VSLNet, the folder of features of Moment-DETR."""
    avi: Annotated[
        Literal["with", "without"] | None, tyro.conf.arg(help_behavior_hint="(default: as the trainer asks for them)")
    ] = None
    """Name the features of TACoS by ids with or without .avi at the end."""
    seconds_per_row: PositiveFloat | None = None
    """Make rows of this length, each the mean of the rows in its time, for trainers that know no other: TIME_UNIT of
    MS-2D-TAN (0.64), clip_length of Moment-DETR (1 or 2). Without it rows stay as they are."""
    shard_videos: Annotated[PositiveInt | None, tyro.conf.arg(help_behavior_hint="(default: 1000)")] = None
    """The number of videos in one tar file of webdataset."""

    def __post_init__(self) -> None:
        forms = FORMATS[self.to]
        if self.task is not None and self.task not in forms:
            tasks = ", ".join(task for task in forms if task)
            raise ValueError(f"task: {self.to} {f'knows {tasks}' if tasks else 'has one form for all'}; not {self.task}")
        if self.avi is not None and "tacos" not in forms:
            raise ValueError(f"avi: {self.to} has no names of its own for TACoS; leave it out")
        if self.shard_videos is not None and self.to != "webdataset":
            raise ValueError(f"shard_videos: {self.to} has no shards; leave it out")
        if self.name is not None and (reason := naming_rules.file_name(self.name)):
            raise ValueError(f"name: {self.name!r} {reason}")

    def task_of(self, store: FeatureStore) -> Task | None:
        """The task whose form is written; ValueError if the trainer does not know the store's own data set."""
        forms = FORMATS[self.to]
        if None in forms:
            return None
        store_task = TASKS.get(store.about_queries["dataset"]) if isinstance(store, TrainingStore) else None
        task = self.task or store_task or "charades"
        if task not in forms:
            raise ValueError(f"task: {self.to} has no form for {task}; give --task {' or '.join(map(str, forms))}")
        return task

    def form(self, task: Task | None) -> Format:
        """The format of that task; ValueError for settings that it does not have."""
        form = FORMATS[self.to][task]
        trainer = f"{self.to}{f' for {task}' if task else ''}"
        if self.name is not None and not form.name:
            raise ValueError(f"name: {trainer} has fixed names; leave it out")
        if self.avi is not None and task != "tacos":
            raise ValueError(f"avi: only for TACoS, and this is {task}")
        if self.dtype == "float16" and not form.casts:
            raise ValueError(f"dtype: {trainer} computes in the type that it reads: float32")
        return form


def run(config: ExportConfig) -> Path:
    """Write everything, unless it is done. Returns the folder."""
    store = _open(config.store)
    task = config.task_of(store)
    form = config.form(task)
    made_from = {
        **identity(config),
        "task": task,
        "code_version": CODE_VERSION,
        "store": store.manifest.fingerprint(),
    }
    if config.out.exists() and not (config.out.is_dir() and not any(config.out.iterdir())):
        _require_same(config.out, made_from)
        log.info("export: %s is complete, nothing to do", config.out)
        return config.out
    view = ExportView(
        store,
        task or "charades",
        config.dtype or form.dtype,
        config.seconds_per_row,
        form.avi if config.avi is None else config.avi == "with",
        form.least_rows,
    )
    _check_names(view, form, format_name=config.to)
    with _new_folder(config.out) as folder:
        settings = FormatSettings(config.name or form.name, config.shard_videos or SHARD_VIDEOS)
        report = form.write(folder, view, settings)
        write_json(folder / ABOUT, _about(config, view, report, made_from, folder))
    _log_report(view, report)
    return config.out


def _open(path: Path) -> FeatureStore:
    packed = Manifest.read(path).header["stage"] == "pack"
    store = TrainingStore(path) if packed else FeatureStore(path)
    store.require_finished()
    return store


def _check_names(view: ExportView, form: Format, *, format_name: str) -> None:
    """Raise ValueError before anything is written if an id cannot be the name that the format makes of it."""
    names = {video_id: view.name(video_id) for video_id in view.store}
    naming_rules.require(names.values(), form.rule, format_name=format_name)
    if form.ids_in_lines and view.queries:
        naming_rules.require(names.values(), naming_rules.field_name, format_name=format_name)
    naming_rules.require_apart(names, format_name=format_name)


def _about(
    config: ExportConfig, view: ExportView, report: ExportReport, made_from: dict[str, Any], folder: Path
) -> dict[str, Any]:
    recipe, row_s = view.store.recipe, config.seconds_per_row
    row_times = f"as the store has them, which is by its recipe: {json.dumps(recipe.get('rows', 'not said'))}"
    if row_s is not None:
        row_times = f"row k is from k * {row_s} to (k + 1) * {row_s} s, a mean of stored rows"
    errors = [video["error_if_even_s"] for video in report.videos.values()]
    return {
        "format": config.to,
        "made_from": made_from,
        "recipe": recipe,
        "about_queries": view.store.about_queries if isinstance(view.store, TrainingStore) else None,
        "fps": recipe.get("fps"),
        "row_times": row_times,
        "error_if_rows_are_taken_for_even_s": {"median": statistics.median(errors), "largest": max(errors)},
        "queries": {split: len(queries) for split, queries in view.queries.items()},
        "queries_without_features": view.num_uncovered,
        "remarks": report.remarks,
        "videos": report.videos,
        "files": {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()},
    }


def _log_report(view: ExportView, report: ExportReport) -> None:
    videos = report.videos.values()
    log.info("export: %d videos, %d rows", len(videos), sum(video["rows"] for video in videos))
    worst = max(videos, key=lambda video: video["error_if_even_s"])
    log.info(
        "taken for evenly spread, as most trainers do, rows are up to %.2f s off (%s)", worst["error_if_even_s"], worst["id"]
    )
    for split, count in view.num_uncovered.items():
        if count:
            log.warning("%s: %d queries have no features and are left out: excl counts them as misses", split, count)
    for remark, names in report.remarks.items():
        log.warning("%d %s: %s", len(names), remark, shortened(names, most=5, describe=str))


def _require_same(out: Path, made_from: dict[str, Any]) -> None:
    """Raise ValueError unless the folder is a whole export of the same thing."""
    try:
        description = json.loads((out / ABOUT).read_text(encoding="utf-8"))
        source, files = description["made_from"], description["files"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"{out}: there is something already, and no export of excl; choose a new folder") from None
    if differences := diff(source, made_from):
        lines = [f"  {key}: there {theirs!r}, asked for is {ours!r}" for key, (theirs, ours) in differences.items()]
        raise ValueError("\n".join([f"{out}: an export of something else; choose a new folder", *lines]))
    for name, size in files.items():
        if not (out / name).is_file() or (out / name).stat().st_size != size:
            raise ValueError(f"{out / name}: not there any more, or of another size; remove {out} and export again")


@contextlib.contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """Yield a new folder next to `out`, which gets its name when all in it is on the disk, and is removed if that fails."""
    out = out.absolute()  # so that even `.` has a name
    out.parent.mkdir(parents=True, exist_ok=True)
    host = socket.gethostname()
    for leftover in out.parent.glob(f".{glob.escape(f'{out.name}.{host}')}-*.tmp"):
        if not _is_alive(leftover.name.removesuffix(".tmp").rsplit("-", 1)[1]):
            log.info("removing %s, left by an export that was interrupted", leftover)
            shutil.rmtree(leftover)
    folder = out.with_name(f".{out.name}.{host}-{os.getpid()}.tmp")
    folder.mkdir()
    try:
        yield folder
        for path in [*folder.rglob("*"), folder]:
            if path.is_dir():
                fsync_folder(path)
            else:
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        os.rename(folder, out)  # refuses a folder that is not empty: two exports at once do not mix
        fsync_folder(out.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_alive(process_id: str) -> bool:
    try:
        os.kill(int(process_id), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        pass
    return True
