"""One video as the frames on screen at t = 0, 1/fps, 2/fps, … seconds of its presentation.

Frame k is the last frame whose presentation time is at or before k/fps on the player's clock: the clock starts at t0, the
container's start time. Before the first frame's own time the first frame stands. There are T = ceil(fps · (end - t0)) of
them, where end is the last frame's time and duration. All of it is compared in integers of the stream's time base: in
floats 0.6 < 3/5, and every such slip is a wrong frame.

Frames are decoded one after another and only those that are kept are converted, so memory is bounded by the decoder's own
buffers. Files that are not to be trusted are better read in a process of their own, see `isolated.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import av.container
import numpy as np

from excl.datasets.container import (
    Limits,
    TimedFrames,
    choose_stream,
    claimed_duration_s,
    frame_gap,
    open_video,
    start_time,
)
from excl.datasets.picture import Converter, Geometry
from excl.datasets.video_errors import VideoError

MAX_SHARE_MISSING = 0.1  # of the claimed duration; containers round, and some are wrong by a little

OnDamage = Literal["fail", "keep"]


@dataclass(frozen=True)
class Sampling:
    """How a video is read: samples a second, geometry, what is allowed, and what becomes of a damaged video.

    `on_damage` is "fail" (any sign of damage refuses the video) or "keep" (what could be decoded is used).
    """

    fps: float = 5.0
    geometry: Geometry = Geometry()
    limits: Limits = Limits()
    on_damage: OnDamage = "fail"


@dataclass(frozen=True)
class VideoFacts:
    """What is known of a video once all of it was sampled.

    `t0_s` is the container's start time, from which all other times count; `duration_s` the end of the last frame by
    decoding; `claimed_duration_s` what the container says of the pictures (None if nothing); `num_frames` the number of
    samples. The last three are its quality: packets that could not be decoded, frames that say they are damaged, and the
    longest time between two frames.
    """

    num_frames: int
    fps: float
    t0_s: float
    duration_s: float
    claimed_duration_s: float | None
    frames_decoded: int
    frames_claimed: int | None
    width: int
    height: int
    codec: str
    bad_packets: int
    corrupt_frames: int
    largest_gap_s: float


class SampledVideo:
    """One pass over a video: iterating gives uint8 RGB frames [crop, crop, 3]; `facts` is there when the pass is over.

    Raises VideoError for what is no readable file, no video, damaged, or beyond the limits.
    """

    def __init__(self, path: Path, sampling: Sampling) -> None:
        self.path = path
        self.sampling = sampling
        self._facts: VideoFacts | None = None

    @property
    def facts(self) -> VideoFacts:
        """The facts, known once iteration has come to its end."""
        assert self._facts is not None, "the video has not been read to its end"
        return self._facts

    def __iter__(self) -> Iterator[np.ndarray]:
        with open_video(self.path) as container:
            yield from self._sample(container)

    def _sample(self, container: av.container.InputContainer) -> Iterator[np.ndarray]:
        stream = choose_stream(container, self.path, self.sampling.limits)
        frames = TimedFrames(container, stream, self.path, self.sampling.limits)
        clock = _Clock(Fraction(str(self.sampling.fps)), start_time(container), frames.time_base)
        convert = Converter(self.sampling.geometry, pixel_aspect=stream.sample_aspect_ratio or Fraction(1))
        shown: av.VideoFrame | None = None
        shown_pts = last_gap = k = 0
        picture: np.ndarray | None = None  # the shown frame converted, once it is known to be kept
        for pts, frame in frames:
            if shown is not None:
                while clock.last_pts_shown_at(k) < pts:  # at k / fps the next frame is not on screen yet
                    picture = convert(shown) if picture is None else picture
                    yield picture
                    k += 1
                last_gap = pts - shown_pts
            shown, shown_pts, picture = frame, pts, None
        if shown is None:
            raise self._no_frames(stream, frames)
        end = clock.seconds(shown_pts + (shown.duration or last_gap or frame_gap(stream)))
        self._require_sound(end, claimed_duration_s(container, stream), frames)
        picture = convert(shown) if picture is None else picture
        while k < math.ceil(clock.fps * end):
            yield picture
            k += 1
        self._facts = self._gather(container, stream, frames, clock, end=end, num_frames=k)

    def _no_frames(self, stream: av.VideoStream, frames: TimedFrames) -> VideoError:
        claim = f"{stream.frames} frames" if stream.frames else "nothing about frames"
        return VideoError(
            "no_frames",
            f"{self.path}: decoded 0 frames with a time ({frames.bad_packets} packets cannot be decoded), the container "
            f"says {claim}; is it cut short?",
        )

    def _require_sound(self, end: Fraction, claimed_s: float | None, frames: TimedFrames) -> None:
        """VideoError for pictures that end before they begin, end long before they should, or are damaged."""
        if end <= 0:
            raise VideoError("bad_times", f"{self.path}: the pictures end {float(end):.3f} s after the presentation's start")
        if self.sampling.on_damage == "keep":
            return
        if claimed_s is not None and end < (1 - MAX_SHARE_MISSING) * claimed_s:
            raise VideoError(
                "truncated",
                f"{self.path}: decoded {float(end):.1f} s of pictures, the file says {claimed_s:.1f} s; it may be cut "
                "short (on-damage keep uses what there is)",
            )
        if frames.bad_packets or frames.corrupt_frames:
            raise VideoError(
                "corrupt",
                f"{self.path}: {frames.bad_packets} packets cannot be decoded and {frames.corrupt_frames} of "
                f"{frames.num_frames} frames are damaged (on-damage keep uses what there is)",
            )

    def _gather(
        self,
        container: av.container.InputContainer,
        stream: av.VideoStream,
        frames: TimedFrames,
        clock: _Clock,
        *,
        end: Fraction,
        num_frames: int,
    ) -> VideoFacts:
        return VideoFacts(
            num_frames=num_frames,
            fps=float(clock.fps),
            t0_s=float(clock.t0),
            duration_s=float(end),
            claimed_duration_s=claimed_duration_s(container, stream),
            frames_decoded=frames.num_frames,
            frames_claimed=stream.frames or None,
            width=stream.codec_context.width,
            height=stream.codec_context.height,
            codec=stream.codec_context.name,
            bad_packets=frames.bad_packets,
            corrupt_frames=frames.corrupt_frames,
            largest_gap_s=float(frames.largest_gap * frames.time_base),
        )


class _Clock:
    """Presentation times of a stream as exact numbers; the sampling time that is asked for again and again is kept."""

    def __init__(self, fps: Fraction, t0: Fraction, time_base: Fraction) -> None:
        self.fps, self.t0, self.time_base = fps, t0, time_base
        self._last = (-1, 0)

    def last_pts_shown_at(self, k: int) -> int:
        """The greatest pts whose time is at or before k / fps."""
        if self._last[0] != k:
            self._last = (k, math.floor((self.t0 + k / self.fps) / self.time_base))
        return self._last[1]

    def seconds(self, pts: int) -> Fraction:
        """Seconds from the start of the presentation."""
        return pts * self.time_base - self.t0
