"""Import: read features that others made, leave a store like `extract`'s, with the seconds that are stated for their rows.

The rows do not show what they are made of. The recipe of the store says so, and its facts name the source of each video.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from pydantic.dataclasses import dataclass

from excl.datasets.annotations.durations import read_durations
from excl.datasets.video.discovery import find_videos
from excl.datasets.video.errors import VideoError
from excl.pipeline.artifacts.atomic_files import sha256_file
from excl.pipeline.artifacts.video_records import VideoRecord, video_key
from excl.pipeline.comparison.array_sources import ArraySource, StoreSource, majority, open_source, sample_shapes
from excl.pipeline.comparison.id_matching import strip_suffix
from excl.pipeline.config import STRICT, NonNegativeFloat, PositiveFloat, PositiveInt, WithoutPrefix
from excl.pipeline.exchange import resampling
from excl.pipeline.exchange.stated_times import Duration, EvenSplit, FixedRate
from excl.pipeline.execution import pending_videos
from excl.pipeline.execution.shard_work import inline
from excl.pipeline.execution.sharded_stage import ShardedStage, part_name
from excl.pipeline.execution.source_files import file_stat, require_unchanged
from excl.pipeline.execution.video_reading import VideoLimits, decoders_stopped
from excl.pipeline.extract import join_features
from excl.pipeline.store.feature_recipe import IMPORTED
from excl.pipeline.store.shard import VideoFeatures, write_shard
from excl.pipeline.store.virtual_index import write_index

log = logging.getLogger(__name__)

STAGE, CODE_VERSION = "import", 1
USUAL = 128  # the length of most features is a multiple of it, the number of rows only by chance


@dataclass(frozen=True, config=STRICT)
class ImportConfig:
    """Make a store of features that you have: say how many seconds a row is, or that rows are spread over the video."""

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SOURCE")]
    """Features: a folder of .npy, .npz or .pt files, one a video; an HDF5 file with a dataset or a group a video; one .npz
    or .pt file with an array a video."""
    out: Path
    """The feature store to write. The same command resumes an import that was stopped."""
    fps: PositiveFloat | None = None
    """Frames a second that the features were made of; with --stride."""
    stride: PositiveFloat | None = None
    """Frames from one row to the next; with --fps."""
    seconds_per_row: PositiveFloat | None = None
    """Seconds from one row to the next, in place of --fps and --stride."""
    offset_s: NonNegativeFloat = 0.0
    """Start of the first row, in seconds."""
    spread: bool = False
    """The rows of a video are equal parts of it, in place of a rate; needs --durations or --videos."""
    durations: Path | None = None
    """Durations in seconds by video id: JSON, or a table with a line of column names. Rows that do not fit them are
    refused."""
    videos: Path | None = None
    """The videos, to take durations from their headers, in place of --durations."""
    name: str = ""
    """A name for the kind of features, in your words. A run can be evaluated on features of its own name only, so give two
    imports of the same kind of features the same name. Without a name the files' content takes its place."""
    suffix: str = ""
    """Take only the arrays whose name ends with this, such as _rgb or .avi, and remove it from the ids."""
    dim: Annotated[PositiveInt | None, tyro.conf.arg(help_behavior_hint="(default: the side all arrays have in common)")] = (
        None
    )
    """Values of a row."""
    dtype: Literal["float16", "float32"] = "float32"
    """The type in which features are stored."""
    shard_videos: PositiveInt = 64
    """The number of videos in one shard."""
    retry_failed: bool = False
    """Try the videos that failed before again."""
    reading: WithoutPrefix[VideoLimits] = field(default_factory=VideoLimits)
    """The settings for reading videos."""

    def __post_init__(self) -> None:
        if (self.fps is None) != (self.stride is None):
            raise ValueError("fps and stride: give both, or --seconds-per-row")
        stated = {"fps": self.fps is not None, "seconds-per-row": self.seconds_per_row is not None, "spread": self.spread}
        if sum(stated.values()) != 1:
            raise ValueError(
                "give --fps and --stride, or --seconds-per-row, or --spread: one of the three says when rows are"
            )
        if self.durations is not None and self.videos is not None:
            raise ValueError("durations and videos: give one of the two")
        if self.spread and (self.offset_s or (self.durations is None and self.videos is None)):
            raise ValueError("spread: needs --durations or --videos, and has no --offset-s")

    def row_times(self) -> FixedRate | EvenSplit:
        """The rule by which rows have times."""
        if self.seconds_per_row is not None:
            return FixedRate(self.seconds_per_row, self.offset_s)
        if self.fps is not None and self.stride is not None:
            return FixedRate(self.stride / self.fps, self.offset_s)
        return EvenSplit()


def run(config: ImportConfig) -> Path:
    """Import what is not imported yet; failures are recorded and do not stop the run. Return the store's folder."""
    source = open_source(config.source)
    if isinstance(source, StoreSource):
        raise ValueError(f"{config.source}: a store of excl already; give it to `excl pack` as it is")
    names = strip_suffix(source, config.suffix, place=str(config.source))
    sha256_of = functools.cache(sha256_file)
    dim = config.dim or _common_dim(source, list(names.values()))
    recipe = _recipe(config, dim, _content(config, source, names, sha256_of))
    importer = _Import(config, source, names, recipe, dim, _durations(config), sha256_of)
    durations = config.durations and {"file": config.durations.name, "sha256": sha256_of(config.durations)}
    log.info("import: %s, %d videos, rows of %d values", source.kind, len(names), dim)
    stage = ShardedStage(
        name=STAGE,
        code_version=CODE_VERSION,
        out=config.out,
        identity={"recipe": recipe, "durations": durations},
        shard_videos=config.shard_videos,
        work=importer.import_video,
        join=functools.partial(join_features, recipe=recipe),
        identify=lambda item: {"sha256": sha256_of(item.path)},
        about={"source": str(config.source)},
        after=write_index,
    )
    with decoders_stopped():
        files = {name: source.file_of(key) for name, key in names.items()}
        stage.run(files, executor=inline(map), retry_failed=config.retry_failed)
    return config.out


def _recipe(config: ImportConfig, dim: int, content: str) -> dict[str, Any]:
    """The recipe, as far as it was stated. `content` is the sha256 of all files if the features have no name."""
    return {
        "weights": {"source": IMPORTED, "sha256": content, "random": False, "name": config.name},
        "fps": config.fps,
        "rows": config.row_times().to_json(),
        "dim": dim,
        "dtype": config.dtype,
        "shard_videos": config.shard_videos,
        "code_versions": {STAGE: CODE_VERSION},
    }


def _content(config: ImportConfig, source: ArraySource, names: Mapping[str, str], sha256_of: Callable[[Path], str]) -> str:
    """Return one sha256 of all files by their videos' ids; empty if a name says what the features are."""
    if config.name:
        return ""
    lines = [f"{name}\0{sha256_of(source.file_of(key))}\n" for name, key in sorted(names.items())]
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _durations(config: ImportConfig) -> Duration:
    """The function from a video's id to its duration, None if it is not known."""
    if config.videos is None:
        return (read_durations([config.durations]) if config.durations else {}).get
    paths = find_videos(config.videos)
    return lambda video_id: config.reading.probe(paths[video_id]).duration_s if video_id in paths else None


def _common_dim(source: ArraySource, names: list[str]) -> int:
    """The length of the rows of most videos in a sample: the last axis, or the first if only that is alike."""
    shapes = sample_shapes(source, names)
    if len(set(shapes)) == 1 and shapes[0][1] % USUAL and not shapes[0][0] % USUAL:
        raise ValueError(
            f"{source.path}: arrays of the shape {shapes[0]} look like [D, n]; --dim {shapes[0][0]} says that they are, "
            f"--dim {shapes[0][1]} that they are not"
        )
    for axis in (1, 0):
        if length := majority(shape[axis] for shape in shapes):
            return length
    raise ValueError(
        f"{source.path}: rows are not of one length, as far as the first videos tell ({shapes[:3] or 'none can be read'}); "
        "--dim says how long they are"
    )


@dataclasses.dataclass(frozen=True)
class _Import:
    """The import of one video after another."""

    config: ImportConfig
    source: ArraySource
    names: Mapping[str, str]
    recipe: dict[str, Any]
    dim: int
    duration_of: Duration
    sha256_of: Callable[[Path], str]

    def import_video(self, item: pending_videos.VideoTask) -> VideoRecord:
        """Write one video's features as a shard of its own; return its record."""
        key, name = self.names[item.video_id], part_name(item.number)
        try:
            state = file_stat(item.path)
            source = {"file": item.path.name, "array": key, "sha256": self.sha256_of(item.path)}
            features = self._features(item.video_id, key, source)
            require_unchanged(item.path, state)
        except VideoError as error:
            return pending_videos.failure(item.video_id, VideoError(error.reason, f"{item.video_id}: {error}"))
        except (ValueError, OSError) as error:
            return pending_videos.failure(item.video_id, VideoError("features", str(error)))
        write_shard(self.config.out / name, [features], recipe=self.recipe)
        return {
            "id": video_key(item.video_id),
            "part": name,
            "part_sha256": sha256_file(self.config.out / name),
            "videos": [item.video_id],
            "source": source,
            "num_rows": len(features.features),
            "duration_s": features.duration_s,
            "transposed": features.facts["transposed"],
            "stat": state,
        }

    def _features(self, video_id: str, key: str, source: Mapping[str, Any]) -> VideoFeatures:
        rows = self.source[key]  # [n, D]
        transposed = rows.shape[1] != self.dim and rows.shape[0] == self.dim
        rows = rows.T if transposed else rows
        if rows.shape[1] != self.dim:
            raise VideoError("features", f"an array of the shape {rows.shape}; expected rows of {self.dim} values")
        duration_s = self.duration_of(video_id)
        start_s, end_s = self.config.row_times().times(len(rows), duration_s)
        facts = {} if duration_s is None else {"duration_s": duration_s}
        video = VideoFeatures(video_id, rows, start_s, end_s, {**facts, "transposed": transposed, "source": source})
        video = resampling.cast(video, self.config.dtype)
        video.require_finite()
        return video
