"""The reading of videos in decode, extract and localize: the settings they share, and the processes that do it."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Container, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from excl.datasets.video.container import Limits
from excl.datasets.video.decoder_process import DecoderProcess, IsolatedVideo
from excl.datasets.video.errors import InternalError, VideoError
from excl.datasets.video.geometry import Geometry
from excl.datasets.video.probe import Probe
from excl.datasets.video.sampling import OnDamage, Sampling
from excl.pipeline.artifacts.video_records import Timing
from excl.pipeline.config import STRICT, NonNegativeInt, PositiveFloat, PositiveInt
from excl.pipeline.execution.circuit_breaker import cause_of, unless_systemic


class DecoderPool:
    """A decoder process for each thread, kept for all its videos."""

    def __init__(self) -> None:
        self._of_thread = threading.local()
        self._threads: weakref.WeakKeyDictionary[DecoderProcess, threading.Thread] = weakref.WeakKeyDictionary()

    def decoder(self, timeout_s: float, memory_bytes: int) -> DecoderProcess:
        """Return this thread's decoder with these limits."""
        if getattr(self._of_thread, "limits", None) != (timeout_s, memory_bytes):
            self._of_thread.decoder = DecoderProcess(timeout_s=timeout_s, memory_bytes=memory_bytes)
            self._of_thread.limits = (timeout_s, memory_bytes)
            self._threads[self._of_thread.decoder] = threading.current_thread()
        return self._of_thread.decoder

    def stop(self, threads: Container[threading.Thread] | None = None) -> None:
        """End the decoders of these threads, or all; whatever they are reading fails. A needed decoder starts again."""
        for decoder, thread in list(self._threads.items()):
            if threads is None or thread in threads:
                decoder.stop()

    @contextlib.contextmanager
    def stopped_at_end(self) -> Iterator[None]:
        """End all decoders at the end, also after an error."""
        try:
            yield
        finally:
            self.stop()


_DECODERS = DecoderPool()  # the threads of this process
stop_decoders, decoders_stopped = _DECODERS.stop, _DECODERS.stopped_at_end


@dataclass(frozen=True, config=STRICT)
class VideoLimits:
    """The limits on a video. Beyond one of them that video fails, and no other."""

    timeout_s: PositiveFloat = 60.0
    """Seconds without a new frame after which the decoder is stopped."""
    memory_gb: Annotated[float, Field(ge=1)] = 4.0
    """Memory that a decoder's process may use (no limit with torchcodec-cuda)."""
    max_pixels: PositiveInt = 8192 * 8192
    """Largest number of pixels in a picture."""
    max_hours: PositiveFloat = 12.0
    """Longest duration of a video, in hours."""
    max_frames: PositiveInt = 5_000_000
    """Largest number of frames in a video: of all its frames, not only those that are kept."""
    max_gap_s: PositiveFloat = 600.0
    """Longest time between two frames, in seconds: damaged times make gaps of hours, and a gap is filled with one frame."""

    def limits(self) -> Limits:
        """Return the limits on a video."""
        return Limits(self.max_pixels, self.max_hours * 3600, self.max_gap_s, self.max_frames)

    def probe(self, path: Path) -> Probe:
        """Return the facts of a video that are known without decoding it; VideoError if there are none."""
        return self.decoder().probe(path, self.limits())

    def decoder(self) -> DecoderProcess:
        """Return the decoder of this thread."""
        return _DECODERS.decoder(self.timeout_s, round(self.memory_gb * 2**30))


@dataclass(frozen=True, config=STRICT)
class VideoReading(VideoLimits):
    """The limits on a video, and the treatment of a damaged one."""

    on_damage: OnDamage = "fail"
    """Treatment of damage: fail refuses a video with any sign of damage or of being cut short; keep uses what can be
    decoded. Either way the record says what was found."""

    def open(
        self,
        path: Path,
        *,
        fps: float | None,
        geometry: Geometry,
        backends: tuple[str, ...] = ("pyav",),
        threads: int = 1,
        nearest: bool = False,
    ) -> IsolatedVideo:
        """Return one pass over a video, read by this thread's decoder."""
        sampling = Sampling(fps, geometry, self.limits(), self.on_damage, backends, threads, nearest)
        return self.decoder().read(path, sampling)


@dataclass(frozen=True, config=STRICT)
class ParallelReading:
    """The number of videos that are read at once."""

    decoders: NonNegativeInt = 0
    """Videos read at once, each by a process of its own with one thread (or more, if there are fewer videos than cores). 0:
    one a core; two where I3D runs on the CPU, one of which is ahead."""


@dataclass(frozen=True, config=STRICT)
class ReadingSeveral(VideoReading, ParallelReading):
    """The settings for reading the videos of a stage."""


@dataclass(frozen=True, config=STRICT)
class ProbingSeveral(VideoLimits, ParallelReading):
    """The settings for probing videos."""


class TimedReading:
    """Frames on their way, and how long their user had to wait for them."""

    def __init__(self, frames: Iterable[np.ndarray]) -> None:
        self.frames, self.waited_s = frames, 0.0

    def __iter__(self) -> Iterator[np.ndarray]:
        iterator = iter(self.frames)
        while True:
            began = time.monotonic()
            frame = next(iterator, None)
            self.waited_s += time.monotonic() - began
            if frame is None:
                return
            yield frame

    def timing(self, began: float, *, writing_since: float | None = None) -> Timing:
        """Return the seconds since `began`, and how many of them went to waiting for frames, to I3D, and to writing."""
        end = time.monotonic()
        written_s = 0.0 if writing_since is None else end - writing_since
        work = "writing" if writing_since is None else "I3D"
        spent = {"decoding": self.waited_s, work: end - began - self.waited_s - written_s}
        if writing_since is not None:
            spent["writing"] = written_s
        return {"wall_s": round(end - began, 3), "timing": {name: round(seconds, 3) for name, seconds in spent.items()}}


def probe_all(
    reading: VideoLimits, paths: Iterable[Path], *, at_once: int = 0
) -> Iterator[tuple[Path, Probe | VideoError | InternalError]]:
    """Probe so many videos at a time (0: one a core); yield each path with the video's probe, or the error.

    Raises SystemicError if one video after another fails through no fault of its own.
    """

    def probe(path: Path) -> tuple[Path, Probe | VideoError | InternalError]:
        try:
            return path, reading.probe(path)
        except (VideoError, InternalError) as error:
            return path, error

    with ThreadPoolExecutor(at_once or num_cores()) as pool:
        try:
            yield from unless_systemic(
                pool.map(probe, paths),
                cause=lambda result: None if isinstance(result[1], Probe) else cause_of(result[1]),
                is_done=lambda result: isinstance(result[1], Probe),
                message=lambda result: str(result[1]),
                details=lambda result: getattr(result[1], "details", ""),
            )
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            stop_decoders()


def num_cores() -> int:
    """Return how many cores this process may use: those that the system allows it, or as many as `use_cores` says."""
    if _cores_in_job:
        return _cores_in_job[-1]
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_cores_in_job: list[int] = []


def use_cores(number: int) -> None:
    """Make `num_cores` return this number, in a job that has so many of its node's cores and is not bound to them."""
    _cores_in_job[:] = [number]
