"""The decoders of videos under one contract, `sample_frames`.

`pyav` is the reference and the default. `decord` and `torchcodec` (and `torchcodec-cuda`, which decodes on an NVIDIA GPU)
give the same frames with slightly other pixels, or refuse the file; `auto` is the GPU's decoder if there is one, with PyAV
for the files that it refuses, and otherwise PyAV.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from excl.datasets.video.errors import VideoError, error_line
from excl.datasets.video.geometry import Geometry
from excl.datasets.video.indexed_backend import IndexedVideo
from excl.datasets.video.pyav_backend import PyAVVideo
from excl.datasets.video.sampling import OnDamage, Sampling, Video

Backend = Literal["pyav", "decord", "torchcodec", "torchcodec-cuda"]
Choice = Literal["auto", "pyav", "decord", "torchcodec", "torchcodec-cuda"]
INSTALL = {
    "decord": "pip install decord",
    "torchcodec": "pip install torchcodec, the version that belongs to the installed torch, and FFmpeg's libraries",
    "torchcodec-cuda": "a GPU, torchcodec built for CUDA, and FFmpeg's libraries",
}
CHUNK_FRAMES = 32


@dataclass(frozen=True)
class SampledFrames:
    """A chunk of frames in a row: uint8 RGB [n, crop, crop, 3], and the seconds at which they are sampled, float64 [n]."""

    frames: np.ndarray
    times_s: np.ndarray


def sample_frames(
    path: Path | str,
    *,
    fps: float = 5.0,
    size: int | str = 256,
    crop: int = 224,
    backend: Choice = "pyav",
    on_damage: OnDamage = "fail",
) -> Iterator[SampledFrames]:
    """Yield the frames on screen at 0, 1/fps, 2/fps, … seconds of a video's presentation, in chunks, with these seconds.

    `size` is the short side's pixels (or like "226-upscale-only"), of which the centred square of `crop` pixels is kept.
    `on_damage` "keep" uses what can be decoded of a damaged file. The file is read in this process: for files that nobody
    vouches for see `decoder_process.DecoderProcess`. Raises VideoError (a ValueError with a `reason`) for a file that cannot
    be read, or not by this backend, ValueError for a backend that is not installed and for a rate that is not above 0.
    """
    if not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"fps: {fps} is no rate; give a number above 0")
    sampling = Sampling(fps, Geometry.parse(size, crop), on_damage=on_damage, backends=resolve_backends(backend))
    num_frames = 0
    frames = iter(open_sampled(Path(path), sampling))
    while chunk := list(itertools.islice(frames, CHUNK_FRAMES)):
        yield SampledFrames(np.stack(chunk), np.arange(num_frames, num_frames + len(chunk)) / fps)
        num_frames += len(chunk)


def resolve_backends(choice: str) -> tuple[Backend, ...]:
    """Return the backends to try in turn; raises ValueError for one that is not available on this machine."""
    if choice == "auto":
        return ("pyav",) if missing_reason("torchcodec-cuda") else ("torchcodec-cuda", "pyav")
    if choice not in get_args(Backend):
        raise ValueError(f"backend {choice!r}: there are {', '.join(get_args(Choice))}")
    if reason := missing_reason(choice):
        raise ValueError(f"backend {choice}: not available here ({reason}); it needs: {INSTALL[choice]}")
    return (choice,)  # type: ignore[return-value]


def missing_reason(backend: str) -> str | None:
    """Import a backend; returns why it cannot be used on this machine, or None if it can."""
    try:
        if backend == "decord":
            import decord  # noqa: F401, PLC0415
        if backend.startswith("torchcodec"):
            import torch  # noqa: PLC0415
            from torchcodec.decoders import VideoDecoder  # noqa: PLC0415

            with contextlib.suppress(ValueError):
                _require_libraries(VideoDecoder)
            if backend == "torchcodec-cuda" and not torch.cuda.is_available():
                return "no GPU"
    except (ImportError, OSError, RuntimeError) as error:  # RuntimeError: torchcodec without FFmpeg's libraries
        return error_line(error)
    return None


def _require_libraries(decoder: Callable[[bytes], object]) -> None:
    """Raise RuntimeError if torchcodec, which looks for FFmpeg's libraries when it is first used, finds none."""
    try:
        decoder(b"")  # no video, which is another RuntimeError
    except RuntimeError as error:
        if "libtorchcodec" in str(error):
            raise


def open_sampled(path: Path, sampling: Sampling) -> Video:
    """Return one pass over a video with the first of the sampling's backends that does not refuse it."""
    videos: list[Video] = [
        PyAVVideo(path, sampling) if backend == "pyav" else IndexedVideo(path, sampling, backend)
        for backend in sampling.backends
    ]
    return videos[0] if len(videos) == 1 else FallbackVideo(path, videos)


class FallbackVideo(Video):
    """A video read by the first decoder that does not refuse it; if that one refuses it on the way, the next continues."""

    def __init__(self, path: Path, videos: list[Video]) -> None:
        self.path, self.videos = path, videos

    def __iter__(self) -> Iterator[np.ndarray]:
        num_frames = 0
        for video in self.videos:
            try:
                for frame in itertools.islice(video, num_frames, None):
                    yield frame
                    num_frames += 1
            except VideoError as error:
                if error.reason != "unsupported" or video is self.videos[-1]:
                    raise
                continue
            self.facts = video.facts
            return
