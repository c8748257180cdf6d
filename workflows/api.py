"""The stages in Python: functions that take a command's settings by keyword and return what it made as an object.

The one declaration of the settings is the command's configuration: signatures and help are made from it, and values are
read as a recipe's are, so a string does for a path. `excl` exports the functions.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from excl.pipeline.execution.progress import for_terminal
from excl.workflows.steps import COMMANDS

if TYPE_CHECKING:
    from excl.pipeline.comparison.compare import Comparison
    from excl.pipeline.localize import Answer
    from excl.pipeline.store.feature_store import FeatureStore
    from excl.pipeline.store.frame_store import FrameStore
    from excl.pipeline.store.shard import VideoFeatures
    from excl.pipeline.store.training_store import TrainingStore
    from excl.pipeline.training.trained_run import TrainedRun
    from excl.workflows.pages.page import Page

R = TypeVar("R")
PRINTING = ("json", "show", "strict")  # settings of what a command prints
OF_STORES = ("out", "videos", "frames", "shard_videos", "compile", "new_version", "retry_failed", "decoders", "running")


def _command(name: str, *, without: tuple[str, ...] = PRINTING) -> Callable[[Callable[[Any, Any], R]], Callable[..., R]]:
    """Make a function of settings from one that turns a command's configuration and its result into an object."""

    def decorate(convert: Callable[[Any, Any], R]) -> Callable[..., R]:
        @functools.wraps(convert)
        def call(*values: Any, **settings: Any) -> R:
            config = _configuration(call, values, settings)
            with messages_shown():
                return convert(config, COMMANDS[name].run(config))

        call.__dict__.update(command=name, without=without)
        return call

    return decorate


def _configuration(
    function: Any, values: tuple[Any, ...], settings: dict[str, Any], fixed: Mapping[str, Any] = MappingProxyType({})
) -> Any:
    """The configuration of a function's command, with `fixed` settings; ValueError says what is wrong with the others."""
    from excl.workflows.keywords import configuration, settings_of  # noqa: PLC0415  (here and below: when it is needed)

    config, name = COMMANDS[function.command].config, function.__name__
    known = settings_of(config, without=function.without)
    names = [setting.name for setting in known if setting.positional]
    if len(values) > len(names):
        raise ValueError(f"{name}: give settings by name, as in {name}({known[0].name}=…)")
    chosen = {**dict(zip(names, values, strict=False)), **settings}
    return configuration(config, known, chosen, fixed, where=name)


def documented(name: str) -> Any:
    """Return a function of this module, with the signature and the help that its command's configuration gives it."""
    from excl.workflows.keywords import describe_settings, settings_of, signature  # noqa: PLC0415

    function = globals()[name]
    if "command" in vars(function) and "__signature__" not in vars(function):
        config = COMMANDS[function.command].config
        settings = settings_of(config, without=function.without)
        parameters = [] if hasattr(function, "__wrapped__") else inspect.signature(function).parameters.values()
        own = [parameter for parameter in parameters if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
        function.__signature__ = signature(own, settings, function.__annotations__["return"])
        function.__doc__ = (
            f"{inspect.cleandoc(config.__doc__ or '')}\n\n{inspect.cleandoc(function.__doc__)} Paths may be strings.\n\n"
            f"{describe_settings(settings)}"
        )
    return function


@_command("decode")
def decode(_config: Any, folder: Path) -> FrameStore:
    """Return the FrameStore, a mapping from video ids to their frames."""
    from excl.pipeline.store.frame_store import FrameStore  # noqa: PLC0415

    return FrameStore(folder)


@_command("extract")
def extract(_config: Any, folder: Path) -> FeatureStore:
    """Return the FeatureStore, a mapping from video ids to `features`, `start_s` and `end_s`."""
    from excl.pipeline.store.feature_store import FeatureStore  # noqa: PLC0415

    return FeatureStore(folder)


@_command("tokenise")
def tokenise(_config: Any, folder: Path | list[str]) -> Path | list[str]:
    """Return the folder, or with `report` its lines."""
    return folder


@_command("pack")
def pack(_config: Any, folder: Path) -> TrainingStore:
    """Return the TrainingStore, a FeatureStore with queries, vocabulary and word vectors."""
    from excl.pipeline.store.training_store import TrainingStore  # noqa: PLC0415

    return TrainingStore(folder)


@_command("train")
def train(config: Any, folder: Path) -> TrainedRun:
    """Return the TrainedRun: the model of the best epoch with its vocabulary and recipe."""
    from excl.pipeline.training.trained_run import load_run  # noqa: PLC0415

    return load_run(folder, device=config.device.split(",")[0].strip())


@_command("evaluate")
def evaluate(config: Any, _result: Any) -> dict[str, Any]:
    """Return all that metrics.json has: the figures of the model and of the baselines, with their intervals."""
    return json.loads((config.folder / "metrics.json").read_text(encoding="utf-8"))


@_command("localize")
def localize(_config: Any, result: Any) -> list[Answer]:
    """Return the answers: `query`, `start_s`, `end_s`, `score`, `rank`, those to one query together and the best first."""
    return result.answers


@_command("score")
def score(_config: Any, result: Any) -> dict[str, Any]:
    """Return the figures of the predictions and of the baselines, as `excl score --json` prints them."""
    return result.metrics


@_command("compare")
def compare(_config: Any, result: Comparison) -> Comparison:
    """Return the Comparison, whose `videos` are the verdicts by video id."""
    return result


def open_store(path: Path | str) -> FeatureStore | FrameStore:
    """Open the store in a folder: a FrameStore, FeatureStore or TrainingStore, by the stage that wrote the folder."""
    from excl.pipeline.artifacts.manifest import Manifest  # noqa: PLC0415
    from excl.pipeline.store.feature_store import FeatureStore  # noqa: PLC0415
    from excl.pipeline.store.frame_store import FrameStore  # noqa: PLC0415
    from excl.pipeline.store.training_store import TrainingStore  # noqa: PLC0415

    stage = Manifest.read(Path(path)).header["stage"]
    return FrameStore(path) if stage == "decode" else TrainingStore(path) if stage == "pack" else FeatureStore(path)


def video_features(video: Path | str, **settings: Any) -> VideoFeatures:
    """Return the features of one video, float16 [n, 1024], with `start_s` and `end_s` of every row, and write no folder.

    For many videos `extract` is faster, and it keeps what it made. A video that cannot be read raises VideoError.
    """
    from excl.models.i3d.weights import load_weights  # noqa: PLC0415
    from excl.pipeline.localize import compute_video  # noqa: PLC0415

    config = _configuration(video_features, (), settings, {"videos": video, "out": "."})
    with messages_shown():
        return compute_video(
            config.videos,
            config.feature_recipe(),
            load_weights(config.weights_spec),
            reading=config.reading,
            device=config.device,
            chunk_frames=config.chunk_frames,
        )


video_features.__dict__.update(command="extract", without=OF_STORES)


def report(folder: TrainedRun | FeatureStore | Path | str, **settings: Any) -> Page:
    """Return the page about a run, a store or a sweep: a notebook shows it, and its `save` writes it to a file."""
    from excl.pipeline.execution.video_reading import decoders_stopped  # noqa: PLC0415
    from excl.workflows.pages.report import make  # noqa: PLC0415

    config = _configuration(report, (), settings, {"folder": _path(folder)})
    with messages_shown(), decoders_stopped():
        return make(config)


report.__dict__.update(command="report", without=("folder", "out"))


def show(
    source: TrainedRun | FeatureStore | Path | str, video: Path | str, query: str | Sequence[str] = (), **settings: Any
) -> Page:
    """Return a page of one video with its timeline, and what the run `source` answers or what is annotated in a store.

    `video` is a file, or the id of a video of the store. A notebook shows the page, with the video in it, and its `save`
    writes it to a file.
    """
    from excl.pipeline.artifacts.manifest import Manifest  # noqa: PLC0415
    from excl.pipeline.execution.video_reading import decoders_stopped  # noqa: PLC0415
    from excl.workflows.pages.show import make  # noqa: PLC0415

    kind = "run" if Manifest.read(_path(source)).header["stage"] == "train" else "store"
    queries = [query] if isinstance(query, str) else list(query)
    config = _configuration(show, (), settings, {kind: _path(source), "video": str(video), "query": queries})
    with messages_shown(), decoders_stopped():
        return make(config, None)


show.__dict__.update(command="show", without=("run", "video", "query", "out"))


def _path(source: TrainedRun | FeatureStore | Path | str) -> Path:
    """Return the folder of a run or a store."""
    return Path(source) if isinstance(source, str | Path) else source.path


@contextlib.contextmanager
def messages_shown() -> Iterator[None]:
    """Show messages on standard error as the command does, unless the caller's program has configured logging."""
    root, own = logging.getLogger(), logging.getLogger("excl")
    if root.handlers or own.handlers:
        yield
        return
    handler, level = logging.StreamHandler(sys.stderr), own.level
    handler.addFilter(for_terminal)
    handler.setFormatter(_Formatter())
    root.addHandler(handler)
    own.setLevel(level or logging.INFO)
    try:
        yield
    finally:
        own.setLevel(level)
        root.removeHandler(handler)


class _Formatter(logging.Formatter):
    """The message, and before it that it is a warning or an error if it is one."""

    def format(self, record: logging.LogRecord) -> str:
        word = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        return word + super().format(record)
