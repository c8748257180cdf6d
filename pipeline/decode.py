"""Stage 1, decode: reads videos, leaves their frames at `fps` a second as pictures in shards (`frame_store.py`).

`extract` takes frames straight from the decoder and does not need this stage; it is for extracting many times from the
same videos. Frame k is the one on screen k / fps seconds after the start (`datasets/video/sampling.py`).
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from excl.datasets.video.backends import Choice, resolve_backends
from excl.datasets.video.discovery import find_videos
from excl.datasets.video.errors import InternalError, VideoError
from excl.datasets.video.geometry import Geometry
from excl.pipeline.artifacts.atomic_files import sha256_file
from excl.pipeline.artifacts.made_with import DECODING, package_versions
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.artifacts.video_records import VideoRecord, require_finished, video_files, video_id_of, video_key
from excl.pipeline.config import STRICT, PositiveFloat, PositiveInt, RunOnly, WithoutPrefix, identity
from excl.pipeline.execution import pending_videos, sharded_stage
from excl.pipeline.execution.executor_settings import ExecutorSettings
from excl.pipeline.execution.shard_work import Executor
from excl.pipeline.execution.sharded_stage import Preview, ShardedStage, part_name
from excl.pipeline.execution.source_files import file_facts, file_stat, require_unchanged
from excl.pipeline.execution.video_reading import ReadingSeveral, TimedReading, num_cores
from excl.pipeline.store import frame_codec, frame_store
from excl.pipeline.store.frame_store import StoredFrames

log = logging.getLogger(__name__)

STAGE, CODE_VERSION = "decode", 3
SAMPLED_VIDEOS, SAMPLED_SECONDS = 16, 2.0  # from which the size is predicted


@dataclass(frozen=True, config=STRICT)
class DecodeConfig:
    """Sample videos at exact times and keep the frames, for extracting many times from the same videos."""

    videos: RunOnly[Path]
    """A folder, searched recursively for videos, one video file, or a list: a .txt file with a path a line, from the
    list's own folder."""
    out: RunOnly[Path]
    """The folder to write: frames and manifest. Run again with the same settings, it resumes where it stopped."""
    fps: PositiveFloat | Literal["native"] = 5.0
    """Frames a second of presentation time, or native, the rate of each video itself."""
    short_side: int | str = 256
    """Pixels to which the shorter side of the picture is scaled; or like 226-upscale-only: smaller ones are made larger,
    larger ones are left as they are; or like 340x256: scaled to this width and height whatever the picture's shape."""
    crop: Annotated[int, Field(ge=32)] = 224
    """Pixels of the centred square that is kept."""
    backend: Choice = "pyav"
    """Decoder: pyav, the reference; decord, torchcodec, torchcodec-cuda (NVDEC), which refuse files that they would get
    wrong; or auto, the GPU's decoder if there is one, with pyav for what it refuses, and otherwise pyav."""
    pictures: str = frame_codec.LOSSLESS
    """Format of the frames: png, without loss, or jpeg:QUALITY (jpeg:95 takes a quarter of png's bytes)."""
    shard_videos: PositiveInt = 16
    """Videos in one shard."""
    retry_failed: RunOnly[bool] = False
    """Try the videos that failed before again."""
    reading: RunOnly[WithoutPrefix[ReadingSeveral]] = field(default_factory=ReadingSeveral)
    """The settings for reading videos."""
    running: RunOnly[WithoutPrefix[ExecutorSettings]] = field(default_factory=ExecutorSettings)
    """The settings for where the work is done."""

    def __post_init__(self) -> None:
        check_sampled(self.short_side, self.crop, self.backend)
        frame_codec.check_pictures(self.pictures)

    def elsewhere(self) -> DecodeConfig:
        """Return the same settings for a process with another working directory."""
        return dataclasses.replace(self, videos=self.videos.absolute(), out=self.out.absolute())


def run(config: DecodeConfig, *, executor: Executor | None = None) -> Path:
    """Decode what is not decoded yet; failures are recorded and do not stop the run. Return the folder."""
    recipe = made_by(config)
    stage = ShardedStage(
        name=STAGE,
        code_version=CODE_VERSION,
        out=config.out,
        identity=recipe,
        shard_videos=config.shard_videos,
        work=partial(decode_video, config, recipe),
        join=partial(frame_store.join_frames, recipe=recipe),
        identify=_identify_file,
        at_once=partial(_videos_at_once, config),
        before=partial(_predict, config),
        about={"made_with": package_versions(DECODING)},
    )
    videos = find_videos(config.videos, warn=True)
    stage.run(videos, retry_failed=config.retry_failed, executor=executor, share=config.running.share)
    return config.out


def preview(config: DecodeConfig) -> Preview:
    """Return the videos that `run` would decode; nothing is written."""
    videos = find_videos(config.videos)
    return sharded_stage.preview(config.out, videos, identify=_identify_file, retry_failed=config.retry_failed)


def _identify_file(item: pending_videos.VideoTask) -> Mapping[str, Any]:
    return file_facts(item.path)


def made_by(config: DecodeConfig) -> dict[str, Any]:
    """Return what determines the frames."""
    return {**identity(config), "backend": list(resolve_backends(config.backend))}


def _videos_at_once(config: DecodeConfig) -> int:
    """Return how many videos to decode at once: one a core."""
    return config.reading.decoders or num_cores()


def check_sampled(short_side: int | str, crop: int, backend: str) -> None:
    """Raise ValueError if the crop does not fit or the decoder is not installed."""
    if isinstance(short_side, int) and short_side < 32:
        raise ValueError(f"short_side: {short_side} pixels are too few, the least is 32")
    Geometry.parse(short_side, crop)
    resolve_backends(backend)


def decode_video(config: DecodeConfig, recipe: dict[str, Any], item: pending_videos.VideoTask) -> VideoRecord:
    """Write the frames of one video as a shard of one; return its record."""
    started = time.monotonic()
    name = part_name(item.number)
    try:
        state = file_stat(item.path)
        source = file_facts(item.path)
        video = config.reading.open(
            item.path,
            fps=None if config.fps == "native" else config.fps,
            geometry=Geometry.parse(config.short_side, config.crop),
            backends=resolve_backends(config.backend),
            threads=item.threads,
        )
        timed = TimedReading(video)
        num_bytes = frame_store.write_part(
            config.out / name,
            video,
            frames=timed,
            video_id=item.video_id,
            spec=config.pictures,
            source=source,
            recipe=recipe,
        )
        require_unchanged(item.path, state)
    except (VideoError, InternalError) as error:
        return pending_videos.failure(item.video_id, error, item.file)
    return {
        "id": video_key(item.video_id),
        "part": name,
        "part_sha256": sha256_file(config.out / name),
        "videos": [item.video_id],
        "source": source,
        "num_frames": video.facts.num_frames,
        "bytes": num_bytes,
        "duration_s": video.facts.duration_s,
        **pending_videos.quality(video.facts.to_json()),
        "stat": state,
        **timed.timing(started),
    }


def _predict(config: DecodeConfig, todo: list[pending_videos.VideoTask]) -> None:
    """Log how much space the frames will take, judged by a few frames of a few videos, and whether there is as much."""
    encode = frame_codec.encoder(config.pictures, side=config.crop)
    geometry = Geometry.parse(config.short_side, config.crop)
    num_frames, sizes = [], []
    chosen = todo[:: max(1, len(todo) // SAMPLED_VIDEOS)][:SAMPLED_VIDEOS]
    for item in chosen:
        try:
            probe = config.reading.probe(item.path)
            rate = (probe.rate or 25.0) if config.fps == "native" else config.fps
            frames = iter(config.reading.open(item.path, fps=1 / SAMPLED_SECONDS, geometry=geometry))
            sizes += [len(encode(frame)) for frame in itertools.islice(frames, 3)]
        except (VideoError, InternalError):
            continue  # it is reported when its turn comes
        num_frames.append((probe.duration_s or 0.0) * rate)
    if not sizes:
        return
    count = sum(num_frames) / len(chosen) * len(todo)
    num_bytes = count * sum(sizes) / len(sizes)
    free_bytes = shutil.disk_usage(config.out).free
    basis = "" if len(chosen) == len(todo) else f", judged by {len(chosen)} of them"
    log.info(
        "decode: %d videos, about %s frames, %s to write%s; %s are free",
        len(todo), f"{count:,.0f}", _size(num_bytes), basis, _size(free_bytes),
    )  # fmt: skip
    if num_bytes > free_bytes:
        log.warning("decode: the disk of %s will probably be full before the end", config.out)


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


def stored_videos(
    folder: Path, *, fps: float | None, short_side: int | str, crop: int, backends: tuple[str, ...]
) -> dict[str, Path]:
    """Return the file that holds each video's frames, by video id, for a folder of `decode`.

    Raises ValueError if the frames were not sampled as asked for, or not all of them are there yet.
    """
    manifest = Manifest.read(folder, stage=STAGE)
    require_finished(manifest)
    expected = {"fps": "native" if fps is None else fps, "short_side": short_side, "crop": crop, "backend": list(backends)}
    recipe, version = manifest.header["identity"], manifest.header["code_version"]
    if version != CODE_VERSION:
        raise ValueError(
            f"{folder}: its frames were made by version {version} of the code, now it is {CODE_VERSION}; decode again into "
            "another folder"
        )
    differences = [
        f"{key} is {recipe.get(key)!r}, asked for is {value!r}"
        for key, value in expected.items()
        if recipe.get(key) != value
    ]
    if differences:
        flags = " ".join(f"--{key.replace('_', '-')} {recipe.get(key)}" for key in expected if key != "backend")
        raise ValueError(
            f"{folder}: its frames were sampled otherwise: {'; '.join(differences)}; what was used there: {flags}"
        )
    if manifest.failed:
        names = ", ".join(video_id_of(key) for key in list(manifest.failed)[:5])
        log.warning("%s: %d videos that could not be decoded are left out: %s", folder, len(manifest.failed), names)
    return {video_id: folder / file for video_id, file in sorted(video_files(manifest).items())}


def source_of(item: pending_videos.VideoTask) -> dict[str, Any]:
    """Return which file the stored frames of a video are from: its name, size and sha256."""
    return StoredFrames(item.path, item.video_id).source
