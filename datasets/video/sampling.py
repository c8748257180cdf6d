"""The rule for sampling a video in time, and the facts that are known of the video afterwards; the same for every decoder.

Frame k is the last frame whose presentation time is at or before k/fps on the player's clock: the clock starts at t0, the
container's start time. Before the first frame's own time the first frame stands. There are T = ceil(fps · (end - t0)) of
them, where end is the last frame's time and duration. All of it is compared in integers of the stream's time base: in
floats 0.6 < 3/5, and every such slip is a wrong frame.

Where the frame `nearest` is asked for, frame k is the last whose time times fps, rounded with halves up, is at most k, as
FFmpeg's filter fps has it: half a period later.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from excl.datasets.video.container import Limits, OpenVideo
from excl.datasets.video.errors import VideoError
from excl.datasets.video.geometry import Geometry

MAX_SHARE_MISSING = 0.1  # of the claimed duration; containers round, and some are wrong by a little

MENDED = ("reordered_frames", "clock_restarts", "first_restart_s")  # facts that most videos do not have

NEAREST = Fraction(10**9 // 2 - 1, 10**9)  # of a period: a frame that lies at just half of one belongs to the next sample

USE_DAMAGED = "--on-damage keep uses what there is; of a video that failed before, with --retry-failed"

OnDamage = Literal["fail", "keep"]


@dataclass(frozen=True)
class Sampling:
    """The way to read a video: samples a second, geometry, what is allowed, and what becomes of a damaged video.

    Without `fps` it is the video's own rate, and sample k is the frame on screen in the middle of period k: of a video of
    constant rate every frame is then one sample, however its times were rounded. With `nearest` sample k of another rate is
    the frame that FFmpeg's filter fps gives.
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
    nearest: bool = False


@dataclass(frozen=True)
class VideoFacts:
    """The facts that are known of a video once all of it was sampled.

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
        """Return the facts by name, without those which say that nothing was mended."""
        return {name: value for name, value in vars(self).items() if value or name not in MENDED}


class Video(Protocol):
    """One pass over a video: iterating gives uint8 RGB frames [crop, crop, 3]; `facts` is there when the pass is over.

    Iterating raises VideoError for a file that is no readable video, is damaged, or goes beyond the limits.
    """

    path: Path
    facts: VideoFacts

    def __iter__(self) -> Iterator[np.ndarray]: ...


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
        """Return the least sample k >= 0 at or after the time of `pts`: the first for which such a frame can stand."""
        return max(0, -((self._offset - self._per_pts * pts) // self._denominator))

    def num_samples(self, end: Fraction) -> int:
        """Return how many samples are taken before `end`, in seconds from the start; at least one."""
        return max(1, math.ceil(self.fps * end - self.phase))

    def seconds(self, pts: int) -> Fraction:
        """Return the seconds from the start of the presentation."""
        return pts * self.time_base - self.t0


def make_clock(video: OpenVideo, sampling: Sampling) -> Clock:
    """Return the clock by which a video is sampled; raises VideoError if it has no rate and its own is asked for."""
    if sampling.fps is None:
        return Clock(video.native_fps, video.start_s, video.time_base, phase=Fraction(1, 2))
    phase = NEAREST if sampling.nearest else Fraction(0)
    return Clock(Fraction(str(sampling.fps)), video.start_s, video.time_base, phase=phase)


def require_sound(path: Path, sampling: Sampling, *, end: Fraction, claimed_s: float | None) -> None:
    """Raise VideoError for pictures that end before they begin, or (unless damage is kept) long before they should."""
    if end <= 0:
        raise VideoError("bad_times", f"{path}: the pictures end {float(end):.3f} s after the presentation's start")
    if sampling.on_damage == "fail" and claimed_s is not None and end < (1 - MAX_SHARE_MISSING) * claimed_s:
        lengths = f"decoded {float(end):.1f} s of pictures, the file says {claimed_s:.1f} s"
        raise VideoError("truncated", f"{path}: {lengths}; it may be cut short ({USE_DAMAGED})")
