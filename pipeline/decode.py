"""Stage 1, decode: reads videos, leaves their frames at `fps` a second, one HDF5 file a video.

`extract` takes frames straight from the decoder and does not need this stage; it is for extracting many times from the
same videos. A file holds `frames` uint8 RGB [T, crop, crop, 3], compressed without loss, and as JSON in its attributes the
`facts` of the sampling and the `source`, the video's file. Frame k is the one on screen k / fps seconds after the start
(`datasets/video.py`).
"""

from __future__ import annotations

import builtins
import dataclasses
import itertools
import json
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import h5py
import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from excl.datasets.files import find_videos
from excl.datasets.isolated import IsolatedVideo
from excl.datasets.picture import Geometry
from excl.datasets.sampling import VideoFacts
from excl.datasets.video_errors import VideoError
from excl.pipeline import items
from excl.pipeline.config import STRICT, PositiveFloat, WithoutPrefix, identity
from excl.pipeline.manifest import Manifest, atomic
from excl.pipeline.reading import Reading

log = logging.getLogger(__name__)

STAGE, CODE_VERSION = "decode", 2
FRAMES_PER_CHUNK = 8


@dataclass(frozen=True, config=STRICT)
class Config:
    """Sample videos at exact times and keep the frames, for extracting many times from the same videos."""

    videos: Path
    """A folder, searched recursively for videos, or one video file."""
    out: Path
    """The folder to write: frames and manifest. Run again with the same settings, it goes on where it stopped."""
    fps: PositiveFloat = 5.0
    """Frames a second of presentation time."""
    short_side: Annotated[int, Field(ge=32)] = 256
    """Pixels to which the shorter side of the picture is scaled."""
    crop: Annotated[int, Field(ge=32)] = 224
    """Pixels of the centred square that is kept."""
    retry_failed: bool = False
    """Try those videos again that failed before."""
    reading: WithoutPrefix[Reading] = field(default_factory=Reading)
    """How videos are read."""

    def __post_init__(self) -> None:
        Geometry(self.short_side, self.crop)


RUN_ONLY = ("videos", "out", "retry_failed", "reading")


def run(config: Config, *, map: items.Map = builtins.map) -> Path:
    """Decode what is not decoded yet; failures are recorded and do not stop the run. Returns the folder."""
    videos = find_videos(config.videos)
    made_by = identity(config, run_only=RUN_ONLY)
    with Manifest.open(config.out, stage=STAGE, identity=made_by, code_version=CODE_VERSION) as manifest:
        (config.out / "frames").mkdir(exist_ok=True)

        def present(video_id: str) -> bool:
            return (config.out / manifest.records[items.key(video_id)]["file"]).exists()

        planned = items.plan(manifest, videos, present=present)
        todo = items.pending(manifest, planned, identify=items.file_facts, present=present, retry_failed=config.retry_failed)
        for _ in items.work_off(manifest, todo, partial(decode_video, config), map=map, what=STAGE):
            pass
        items.report(manifest, what=STAGE)
    return config.out


def decode_video(config: Config, item: items.Item) -> dict[str, Any]:
    """Write the frames of one video; returns its record."""
    started = time.monotonic()
    name = f"frames/{item.number:06d}.h5"
    try:
        source = items.file_facts(item.path)
        video = config.reading.open(item.path, fps=config.fps, geometry=Geometry(config.short_side, config.crop))
        with atomic(config.out / name) as temporary:
            _write_frames(temporary, video, crop=config.crop, source=source)
    except VideoError as error:
        return items.failure(item.video_id, error)
    return {
        "id": items.key(item.video_id),
        "file": name,
        "source": source,
        "num_frames": video.facts.num_frames,
        "duration_s": video.facts.duration_s,
        "stat": items.read_state(item.path),
        "wall_s": round(time.monotonic() - started, 3),
    }


def _write_frames(path: Path, video: IsolatedVideo, *, crop: int, source: dict[str, Any]) -> None:
    with h5py.File(path, "w") as file:
        frames = file.create_dataset(
            "frames",
            shape=(0, crop, crop, 3),
            maxshape=(None, crop, crop, 3),
            chunks=(FRAMES_PER_CHUNK, crop, crop, 3),
            dtype=np.uint8,
            compression="gzip",
            compression_opts=1,
        )
        for batch in _batches(video):
            frames.resize(len(frames) + len(batch), axis=0)
            frames[-len(batch) :] = batch
        file.attrs["facts"] = json.dumps(dataclasses.asdict(video.facts))
        file.attrs["source"] = json.dumps(source)


def _batches(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    iterator = iter(frames)
    while batch := list(itertools.islice(iterator, FRAMES_PER_CHUNK)):
        yield np.stack(batch)


class StoredFrames:
    """The frames of one video as `decode` left them; iterate as with `IsolatedVideo`. `source` is the video's own file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with h5py.File(path, "r", locking=False) as file:
                self.facts = VideoFacts(**json.loads(file.attrs["facts"]))
                self.source: dict[str, Any] = json.loads(file.attrs["source"])
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise VideoError("corrupt", f"{path}: not a file of frames that `excl decode` wrote ({error})") from error

    def __iter__(self) -> Iterator[np.ndarray]:
        try:
            with h5py.File(self.path, "r", locking=False) as file:
                frames = file["frames"]
                for start in range(0, len(frames), FRAMES_PER_CHUNK):
                    yield from frames[start : start + FRAMES_PER_CHUNK]
        except OSError as error:
            raise VideoError("corrupt", f"{self.path}: damaged ({error}); decode the video again") from error


def stored_videos(folder: Path, *, fps: float, geometry: Geometry) -> dict[str, Path]:
    """Video id to the file of its frames, for a folder of `decode`.

    Raises ValueError if the frames were not sampled as asked for, or not all of them are there yet.
    """
    manifest = Manifest.read(folder, stage=STAGE)
    items.require_finished(manifest)
    wanted = {"fps": fps, **dataclasses.asdict(geometry)}
    found = manifest.header["identity"]
    if found != wanted or manifest.header["code_version"] != CODE_VERSION:
        version = manifest.header["code_version"]
        raise ValueError(
            f"{folder}: its frames were sampled with {found} (version {version}), asked for is {wanted} "
            f"(version {CODE_VERSION}); decode again into another folder, or ask for the same"
        )
    if manifest.failed:
        log.warning("%s: %d videos that could not be decoded are left out", folder, len(manifest.failed))
    return {
        name.removeprefix("video/"): folder / record["file"]
        for name, record in manifest.records.items()
        if name.startswith("video/") and "error" not in record
    }
