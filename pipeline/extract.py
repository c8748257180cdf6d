"""Stage 2, extract: reads videos (or the frames that `decode` left), leaves a store of I3D features.

Several videos are decoded at once, each ahead of the network by what it takes at a time; the network takes them in turn.
How videos become parts and parts become shards: `shards.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
import time
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from excl.datasets.backends import Choice, choose
from excl.datasets.files import find_videos
from excl.datasets.picture import Geometry
from excl.datasets.sampling import Video
from excl.datasets.video_errors import VideoError
from excl.models.i3d.extractor import Extractor, choose_device
from excl.models.i3d.timemap import FRAMES_PER_ROW, row_times
from excl.models.i3d.weights import Weights, check_spec, load_weights
from excl.pipeline import decode, items
from excl.pipeline.config import STRICT, PositiveFloat, PositiveInt, WithoutPrefix, identity
from excl.pipeline.decode import check_sampled, source_of, stored_videos
from excl.pipeline.frames import LOSSLESS, StoredFrames
from excl.pipeline.reading import ReadingSeveral, num_cores
from excl.pipeline.shards import ShardedStage, part_name
from excl.pipeline.store import Shard, VideoFeatures, write_shard

STAGE, CODE_VERSION = "extract", 1
CODE_VERSIONS = {decode.STAGE: decode.CODE_VERSION, STAGE: CODE_VERSION}  # of all code that makes a feature


@dataclass(frozen=True, config=STRICT)
class Config:
    """Make I3D RGB features of videos: a row of 1024 numbers every 8 frames, with the seconds it describes."""

    out: Path
    """The feature store to write. Run again with the same settings, it goes on where it stopped."""
    videos: Path | None = None
    """A folder, searched recursively for videos, one video file, or a list: a .txt file with a path a line, from the
    list's own folder."""
    frames: Path | None = None
    """A folder that `excl decode` wrote, in place of --videos."""
    weights: str = "kinetics"
    """kinetics or charades (downloaded on first use), a file in the format of the public PyTorch port, or random:SEED,
    weights by formula that are good for trying things out and for nothing else."""
    fps: PositiveFloat = 5.0
    """Frames a second of presentation time; the paper uses 5."""
    short_side: int | str = 256
    """Pixels to which the shorter side of the picture is scaled, or like 226-upscale-only: smaller ones are made larger,
    larger ones are left as they are."""
    crop: Annotated[int, Field(ge=32)] = 224
    """Pixels of the centred square that is kept; the published weights were trained on 224."""
    backend: Choice = "pyav"
    """What decodes: pyav, the reference; decord, torchcodec, torchcodec-cuda (NVDEC), which refuse files that they would
    get wrong; or auto, the GPU's decoder where there is one, with pyav for what it refuses, and otherwise pyav."""
    dtype: Literal["float16", "float32"] = "float16"
    """How features are stored. They are computed in float32."""
    shard_videos: PositiveInt = 64
    """How many videos make up one shard."""
    device: str = "auto"
    """Where I3D runs: auto (a GPU if there is one), cpu, cuda, cuda:1, mps."""
    retry_failed: bool = False
    """Try those videos again that failed before."""
    reading: WithoutPrefix[ReadingSeveral] = field(default_factory=ReadingSeveral)
    """How videos are read."""

    def __post_init__(self) -> None:
        check_sampled(self.short_side, self.crop, self.backend)
        check_spec(self.weights)
        choose_device(self.device)
        if (self.videos is None) == (self.frames is None):
            raise ValueError("give either --videos or --frames")


RUN_ONLY = ("videos", "frames", "out", "device", "retry_failed", "reading")


def run(config: Config, *, map: items.Map | None = None) -> Path:
    """Extract what is not extracted yet; failures are recorded and do not stop the run. Returns the store's folder."""
    pictures, identify = LOSSLESS, _identify_file
    if config.frames is not None:
        videos, pictures = stored_videos(
            config.frames,
            fps=config.fps,
            short_side=config.short_side,
            crop=config.crop,
            backends=choose(config.backend),
        )
        identify = source_of
    else:
        assert config.videos is not None
        videos = find_videos(config.videos)
    made_by = recipe(config, pictures)
    stage = ShardedStage(
        name=STAGE,
        code_version=CODE_VERSION,
        out=config.out,
        identity=made_by,
        shard_videos=config.shard_videos,
        work=functools.partial(extract_video, config, made_by),
        join=functools.partial(_join, recipe=made_by),
        identify=identify,
    )
    stage.run(videos, map=map or items.in_threads(_workers(config)), retry_failed=config.retry_failed)
    return config.out


def _workers(config: Config) -> int:
    """How many videos at once: on a CPU I3D takes longest and all cores, so that one video ahead is enough."""
    enough = 2 if choose_device(config.device).type == "cpu" else num_cores()
    return config.reading.decoders or enough


def _identify_file(item: items.Item) -> dict[str, Any]:
    return items.file_facts(item.path)


def recipe(config: Config, pictures: str) -> dict[str, Any]:
    """What determines the features, for the manifest and every shard: the settings, and what the weights are.

    `pictures` is how frames were kept on the way: "png" is without loss, and so the same as not at all.
    """
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
        "backend": list(choose(config.backend)),
        "pictures": pictures,
        "network": "i3d-rgb",
        "frames_per_row": FRAMES_PER_ROW,
        "pool": "2x7x7",
        "code_versions": CODE_VERSIONS,
    }


@functools.lru_cache(maxsize=1)
def _weights(spec: str) -> Weights:
    return load_weights(spec)


_one_at_a_time = threading.Lock()


def _extractor(spec: str, device: str) -> Extractor:
    """One network a process, made when the process gets its first video."""
    with _one_at_a_time:
        return _make_extractor(spec, device)


@functools.lru_cache(maxsize=1)
def _make_extractor(spec: str, device: str) -> Extractor:
    return Extractor(_weights(spec), device=choose_device(device))


def extract_video(config: Config, made_by: dict[str, Any], item: items.Item) -> dict[str, Any]:
    """Write the features of one video as a shard of one; returns its record."""
    started = time.monotonic()
    name = part_name(item.number)
    try:
        state = items.read_state(item.path)
        video = _open_video(config, item)
        source = video.source if isinstance(video, StoredFrames) else items.file_facts(item.path)
        extractor = _extractor(config.weights, config.device)
        features = video_features(video, extractor, video_id=item.video_id, dtype=config.dtype, source=source)
        items.require_unchanged(item.path, state)
    except VideoError as error:
        return items.failure(item.video_id, error)
    write_shard(config.out / name, [features], recipe=made_by)
    return {
        "id": items.key(item.video_id),
        "part": name,
        "videos": [item.video_id],
        "source": source,
        "num_frames": features.facts["num_frames"],
        "num_rows": len(features.features),
        "duration_s": features.duration_s,
        "quality": items.quality(features.facts),
        "device": str(choose_device(config.device)),
        "stat": state,
        "wall_s": round(time.monotonic() - started, 3),
    }


def _open_video(config: Config, item: items.Item) -> Video:
    if config.frames is not None:
        return StoredFrames(item.path, item.video_id)
    return config.reading.open(
        item.path,
        fps=config.fps,
        geometry=Geometry.of(config.short_side, config.crop),
        backends=choose(config.backend),
        threads=item.threads,
    )


def video_features(
    video: Video, extractor: Extractor, *, video_id: str, dtype: str, source: dict[str, Any]
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


def _join(target: Path, sources: list[tuple[str, Path]], *, recipe: dict[str, Any]) -> dict[str, Any]:
    """Write a shard of the videos in `sources`, each with the file that holds it; what its record is to say of it."""
    found: dict[str, VideoFeatures] = {}
    for path in {path: None for _, path in sources}:
        with Shard(path) as opened:
            videos = [opened.video(position) for position in range(len(opened.videos))]
        found.update({video.video_id: video for video in videos})
    joined = [found[video_id] for video_id, _ in sources]
    write_shard(target, joined, recipe=recipe)
    return {"num_rows": sum(len(video.features) for video in joined)}
