"""What sampling a video in time means, and what is known of the video afterwards; the same for every decoder.

Frame k is the last frame whose presentation time is at or before k/fps on the player's clock: the clock starts at t0, the
container's start time. Before the first frame's own time the first frame stands. There are T = ceil(fps · (end - t0)) of
them, where end is the last frame's time and duration. All of it is compared in integers of the stream's time base: in
floats 0.6 < 3/5, and every such slip is a wrong frame.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, Protocol

import av
import numpy as np

from excl.datasets.video.container import Limits, native_fps, start_time
from excl.datasets.video.errors import VideoError
from excl.datasets.video.geometry import Geometry
from excl.datasets.video.pyav import time_base

MAX_SHARE_MISSING = 0.1  # of the claimed duration; containers round, and some are wrong by a little

MENDED = ("reordered_frames", "clock_restarts", "first_restart_s")  # facts that most videos do not have

OnDamage = Literal["fail", "keep"]


@dataclass(frozen=True)
class Sampling:
    """How a video is read: samples a second, geometry, what is allowed, and what becomes of a damaged video.

    Without `fps` it is the video's own rate, and sample k is the frame on screen in the middle of period k: of a video of
    constant rate every frame is then one sample, however its times were rounded.
    `on_damage` is "fail" (any sign of damage refuses the video) or "keep" (what could be decoded is used). `backends` are
    the decoders, each tried if those before it refuse the file (`backends.py`). With more `threads` than one, one video is
    decoded faster and comes out the same.
    """

    fps: float | None = 5.0
    geometry: Geometry = Geometry()
    limits: Limits = Limits()
    on_damage: OnDamage = "fail"
    backends: tuple[str, ...] = ("pyav",)
    threads: int = 1


@dataclass(frozen=True)
class VideoFacts:
    """What is known of a video once all of it was sampled.

    `t0_s` is the container's start time, from which all other times count; `duration_s` the end of the last frame;
    `claimed_duration_s` what the container says of the pictures (None if nothing); `num_frames` the number of samples;
    `backend` the decoder that read it. The rest is its quality: frames expected by the packets or else the container (None
    if neither tells), decoded, and left undecoded because no sample needs them; packets that could not be decoded and
    frames that say they are damaged (None where the decoder does not tell); the longest time between two frames; and, where
    damage is kept, how many frames came late and were put in order, how often the clock started again and when it first
    did.
    """

    num_frames: int
    fps: float
    t0_s: float
    duration_s: float
    claimed_duration_s: float | None
    frames_expected: int | None
    frames_decoded: int
    frames_skipped: int
    width: int
    height: int
    codec: str
    bad_packets: int | None
    corrupt_frames: int | None
    largest_gap_s: float
    backend: str
    reordered_frames: int = 0
    clock_restarts: int = 0
    first_restart_s: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The facts by name; what says that nothing was mended is left out."""
        return {name: value for name, value in vars(self).items() if value or name not in MENDED}


class Video(Protocol):
    """One pass over a video: iterating gives uint8 RGB frames [crop, crop, 3]; `facts` is there when the pass is over.

    Iterating raises VideoError for what is no readable file, no video, damaged, or beyond the limits.
    """

    path: Path

    @property
    def facts(self) -> VideoFacts:
        """The facts, known once iteration has come to its end."""

    def __iter__(self) -> Iterator[np.ndarray]: ...


class SinglePassVideo:
    """What every `Video` has: the path, the sampling, and the facts once iteration has come to its end."""

    def __init__(self, path: Path, sampling: Sampling) -> None:
        self.path, self.sampling = path, sampling
        self._facts: VideoFacts | None = None

    @property
    def facts(self) -> VideoFacts:
        """The facts, known once iteration has come to its end."""
        assert self._facts is not None, "the video has not been read to its end"
        return self._facts


class Clock:
    """The player's clock over a stream's presentation times, exact. Sample k is taken at (k + phase) / fps seconds."""

    def __init__(self, fps: Fraction, t0: Fraction, time_base: Fraction, *, phase: Fraction = Fraction(0)) -> None:
        self.fps, self.t0, self.time_base, self.phase = fps, t0, time_base, phase
        factor = fps * time_base  # sample number = factor * pts - offset, as one fraction with integers kept ready
        offset = fps * t0 + phase
        self._denominator = factor.denominator * offset.denominator
        self._per_pts = factor.numerator * offset.denominator
        self._offset = offset.numerator * factor.denominator

    def first_sample_at(self, pts: int) -> int:
        """The least sample k >= 0 at or after the time of `pts`: the first for which such a frame can stand."""
        return max(0, -((self._offset - self._per_pts * pts) // self._denominator))

    def num_samples(self, end: Fraction) -> int:
        """How many samples are taken before `end`, in seconds from the start; at least one."""
        return max(1, math.ceil(self.fps * end - self.phase))

    def seconds(self, pts: int) -> Fraction:
        """Seconds from the start of the presentation."""
        return pts * self.time_base - self.t0


def clock_of(container: av.container.InputContainer, stream: av.VideoStream, path: Path, fps: float | None) -> Clock:
    """The clock by which a stream is sampled; VideoError if it has no rate of its own and `fps` is None."""
    t0 = start_time(container)
    if fps is None:
        return Clock(native_fps(stream, path), t0, time_base(stream), phase=Fraction(1, 2))
    return Clock(Fraction(str(fps)), t0, time_base(stream))


def require_sound(path: Path, sampling: Sampling, *, end: Fraction, claimed_s: float | None) -> None:
    """VideoError for pictures that end before they begin, or (unless damage is kept) long before they should."""
    if end <= 0:
        raise VideoError("bad_times", f"{path}: the pictures end {float(end):.3f} s after the presentation's start")
    if sampling.on_damage == "fail" and claimed_s is not None and end < (1 - MAX_SHARE_MISSING) * claimed_s:
        raise VideoError(
            "truncated",
            f"{path}: decoded {float(end):.1f} s of pictures, the file says {claimed_s:.1f} s; it may be cut "
            "short (--on-damage keep uses what there is; of a video that failed before, with --retry-failed)",
        )
