"""Stage 2, extract: reads videos (or the frames that `decode` left), leaves a store of I3D features.

Each video is committed by itself, as a shard of one in `parts/`; when all videos of a shard are there they are joined in
`shards/`. Which videos make up a shard is settled before any work, so the shards' bytes do not depend on interruptions or
on the order in which videos are done.
"""

from __future__ import annotations

import builtins
import dataclasses
import functools
import math
import time
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from excl.datasets.files import find_videos
from excl.datasets.isolated import IsolatedVideo
from excl.datasets.picture import Geometry
from excl.datasets.video_errors import VideoError
from excl.models.i3d.extractor import Extractor, choose_device
from excl.models.i3d.timemap import FRAMES_PER_ROW, row_times
from excl.models.i3d.weights import Weights, check_spec, load_weights
from excl.pipeline import decode, items
from excl.pipeline.config import STRICT, PositiveFloat, PositiveInt, WithoutPrefix, identity
from excl.pipeline.decode import StoredFrames, stored_videos
from excl.pipeline.manifest import Manifest, move, sha256_file
from excl.pipeline.reading import Reading
from excl.pipeline.store import Shard, VideoFeatures, write_shard

STAGE, CODE_VERSION = "extract", 1
CODE_VERSIONS = {decode.STAGE: decode.CODE_VERSION, STAGE: CODE_VERSION}  # of all code that makes a feature


@dataclass(frozen=True, config=STRICT)
class Config:
    """Make I3D RGB features of videos: a row of 1024 numbers every 8 frames, with the seconds it describes."""

    out: Path
    """The feature store to write. Run again with the same settings, it goes on where it stopped."""
    videos: Path | None = None
    """A folder, searched recursively for videos, or one video file."""
    frames: Path | None = None
    """A folder that `excl decode` wrote, in place of --videos."""
    weights: str = "kinetics"
    """kinetics or charades (downloaded on first use), a file in the format of the public PyTorch port, or random:SEED,
    weights by formula that are good for trying things out and for nothing else."""
    fps: PositiveFloat = 5.0
    """Frames a second of presentation time; the paper uses 5."""
    short_side: Annotated[int, Field(ge=32)] = 256
    """Pixels to which the shorter side of the picture is scaled."""
    crop: Annotated[int, Field(ge=32)] = 224
    """Pixels of the centred square that is kept; the published weights were trained on 224."""
    dtype: Literal["float16", "float32"] = "float16"
    """How features are stored. They are computed in float32."""
    shard_videos: PositiveInt = 64
    """How many videos make up one shard."""
    device: str = "auto"
    """Where I3D runs: auto (a GPU if there is one), cpu, cuda, cuda:1, mps."""
    retry_failed: bool = False
    """Try those videos again that failed before."""
    reading: WithoutPrefix[Reading] = field(default_factory=Reading)
    """How videos are read."""

    def __post_init__(self) -> None:
        Geometry(self.short_side, self.crop)
        check_spec(self.weights)
        choose_device(self.device)
        if (self.videos is None) == (self.frames is None):
            raise ValueError("wanted is either videos or frames, and not both")


RUN_ONLY = ("videos", "frames", "out", "device", "retry_failed", "reading")


def run(config: Config, *, map: items.Map = builtins.map) -> Path:
    """Extract what is not extracted yet; failures are recorded and do not stop the run. Returns the store's folder."""
    geometry = Geometry(config.short_side, config.crop)
    if config.frames is not None:
        videos = stored_videos(config.frames, fps=config.fps, geometry=geometry)
    else:
        assert config.videos is not None
        videos = find_videos(config.videos)
    with Manifest.open(config.out, stage=STAGE, identity=recipe(config), code_version=CODE_VERSION) as manifest:
        for name in ("parts", "shards"):
            (config.out / name).mkdir(exist_ok=True)
        _remove_superseded(config.out, manifest)
        identify = items.file_facts if config.frames is None else _source_of_frames
        held = {v for r in manifest.records.values() if _is_there(config.out, r) for v in r["videos"]}.__contains__
        planned = items.plan(manifest, videos, present=held)
        todo = items.pending(manifest, planned, identify=identify, present=held, retry_failed=config.retry_failed)
        work = functools.partial(extract_video, config)
        ids = items.planned(manifest)
        numbers = {item.video_id: item.number for item in todo}
        for video_id in items.work_off(manifest, todo, work, map=map, what=STAGE):
            join_parts(config, manifest, ids, shard=numbers[video_id] // config.shard_videos)
        for shard in range(math.ceil(len(ids) / config.shard_videos)):
            join_parts(config, manifest, ids, shard=shard)  # what an interrupted run left to do
        items.report(manifest, what=STAGE)
    return config.out


def recipe(config: Config) -> dict[str, Any]:
    """What determines the features, for the manifest and every shard: the settings, and what the weights are."""
    weights = _weights(config.weights)
    settings = identity(config, run_only=RUN_ONLY)
    settings["weights"] = {
        "source": weights.source,
        "sha256": weights.sha256,
        "classes": weights.num_classes,
        "random": weights.is_random,
    }
    return {
        **settings,
        "network": "i3d-rgb",
        "frames_per_row": FRAMES_PER_ROW,
        "pool": "2x7x7",
        "code_versions": CODE_VERSIONS,
    }


@functools.lru_cache(maxsize=1)
def _weights(spec: str) -> Weights:
    return load_weights(spec)


@functools.lru_cache(maxsize=1)
def _extractor(spec: str, device: str) -> Extractor:
    """One network a process, made when the process gets its first video."""
    return Extractor(_weights(spec), device=choose_device(device))


def extract_video(config: Config, item: items.Item) -> dict[str, Any]:
    """Write the features of one video as a shard of one; returns its record."""
    started = time.monotonic()
    name = _part_name(item.number)
    try:
        video = _open_video(config, item.path)
        source = video.source if isinstance(video, StoredFrames) else items.file_facts(item.path)
        extractor = _extractor(config.weights, config.device)
        features = video_features(video, extractor, video_id=item.video_id, dtype=config.dtype, source=source)
    except VideoError as error:
        return items.failure(item.video_id, error)
    write_shard(config.out / name, [features], recipe=recipe(config))
    return {
        "id": items.key(item.video_id),
        "part": name,
        "videos": [item.video_id],
        "source": source,
        "num_frames": features.facts["num_frames"],
        "num_rows": len(features.features),
        "duration_s": features.duration_s,
        "device": str(choose_device(config.device)),
        "stat": items.read_state(item.path),
        "wall_s": round(time.monotonic() - started, 3),
    }


def _source_of_frames(path: Path) -> dict[str, Any]:
    return StoredFrames(path).source


def _open_video(config: Config, path: Path) -> IsolatedVideo | StoredFrames:
    if config.frames is not None:
        return StoredFrames(path)
    return config.reading.open(path, fps=config.fps, geometry=Geometry(config.short_side, config.crop))


def video_features(
    video: IsolatedVideo | StoredFrames, extractor: Extractor, *, video_id: str, dtype: str, source: dict[str, Any]
) -> VideoFeatures:
    """The feature rows of one video with their seconds; VideoError if it cannot be read."""
    rows = extractor(video)
    facts = video.facts
    start_s, end_s = row_times(facts.num_frames, fps=facts.fps, duration_s=facts.duration_s)
    described = {**dataclasses.asdict(facts), "source": source}
    with np.errstate(over="ignore"):  # said below
        stored = rows.astype(np.dtype(dtype))
    if not np.isfinite(stored).all():
        raise VideoError(
            "features", f"{video.path}: features up to {np.abs(rows).max():.3g} do not fit {dtype}; use dtype float32"
        )
    return VideoFeatures(video_id, stored, start_s, end_s, described)


def join_parts(config: Config, manifest: Manifest, ids: list[str], *, shard: int) -> None:
    """Write a shard of the planned `ids` if all its videos are recorded and it lacks one; then remove its parts."""
    numbers = range(shard * config.shard_videos, (shard + 1) * config.shard_videos)
    members = ids[numbers.start : numbers.stop]
    records = [manifest.records.get(items.key(v)) for v in members]
    done = [v for v, record in zip(members, records, strict=True) if record and "error" not in record]
    if None in records or not done:
        return
    committed = manifest.records.get(_shard_key(shard), {})
    if committed.get("videos") != done or not _is_there(config.out, committed):
        _join(config, manifest, shard, done)
        if committed and committed["file"] != manifest.records[_shard_key(shard)]["file"]:
            (config.out / committed["file"]).unlink(missing_ok=True)
    for number, video_id in zip(numbers, members, strict=False):
        if video_id in done:
            (config.out / _part_name(number)).unlink(missing_ok=True)


def _join(config: Config, manifest: Manifest, shard: int, video_ids: list[str]) -> None:
    """Join the parts of `video_ids`, and what an earlier version of the shard holds of them, into a new shard.

    A shard's name has its content in it, so a version with more videos never takes the place of one that is recorded.
    """
    records = [manifest.records.get(_shard_key(shard), {})] + [manifest.records[items.key(v)] for v in video_ids]
    found: dict[str, VideoFeatures] = {}
    for name in (record.get("file", record.get("part")) for record in records):
        if name is not None and (config.out / name).exists():
            with Shard(config.out / name) as opened:
                videos = [opened.video(position) for position in range(len(opened.videos))]
            found.update({video.video_id: video for video in videos})
    joined = config.out / "parts" / f"joined-{shard:05d}.h5"
    write_shard(joined, [found[v] for v in video_ids], recipe=recipe(config))
    sha256 = sha256_file(joined)
    name = f"shards/{shard:05d}-{sha256[:12]}.h5"
    move(joined, config.out / name)
    rows = sum(len(found[v].features) for v in video_ids)
    manifest.add({"id": _shard_key(shard), "file": name, "videos": video_ids, "num_rows": rows, "sha256": sha256})


def _is_there(out: Path, record: dict[str, Any]) -> bool:
    """Whether a record names a shard or a part, and the file is there."""
    name = record.get("file", record.get("part"))
    return name is not None and (out / name).is_file()


def _shard_key(shard: int) -> str:
    return f"shard/{shard:05d}"


def _part_name(number: int) -> str:
    return f"parts/{number:06d}.h5"


def _remove_superseded(out: Path, manifest: Manifest) -> None:
    """Remove shards that no record names: versions from before or after the recorded one, left by a kill in between."""
    recorded = {record.get("file") for record in manifest.records.values()}
    for path in (out / "shards").iterdir():
        if f"shards/{path.name}" not in recorded:
            path.unlink()
