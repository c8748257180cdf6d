"""Sampling a video with PyAV: the decoder that all others are measured by (what is sampled: `sampling.py`).

Frames are decoded one after another and only those that are kept are converted, so memory is bounded by the decoder's own
buffers. Where the packets tell beforehand which frames no sample needs, those are not even decoded (`packets.py`): if then
anything is not as the packets said, the video is read again with everything decoded, and what was given already is left
out. Files that are not to be trusted are better read in a process of their own, see `decoder_process.py`.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import av.container
import numpy as np

from excl.datasets.video.container import (
    TimedFrames,
    choose_stream,
    claimed_duration_s,
    codec_name,
    default_frame_duration,
    open_video,
)
from excl.datasets.video.errors import VideoError
from excl.datasets.video.geometry import FrameConverter
from excl.datasets.video.packets import Plan, PlanError, make_plan, read_packets, rewind
from excl.datasets.video.pyav import exact, reorder_depth
from excl.datasets.video.sampling import Clock, Sampling, SinglePassVideo, VideoFacts, clock_of, require_sound

log = logging.getLogger(__name__)


class PyAVVideo(SinglePassVideo):
    """One pass over a video: iterating gives uint8 RGB frames [crop, crop, 3]; `facts` is there when the pass is over.

    `whole` decodes every frame, also those that no sample needs, as is done where damage is kept. Raises VideoError for what
    is no readable file, no video, damaged, or beyond the limits.
    """

    def __init__(self, path: Path, sampling: Sampling, *, whole: bool = False) -> None:
        super().__init__(path, sampling)
        self.whole = whole
        self._frames_expected: int | None = None

    def __iter__(self) -> Iterator[np.ndarray]:
        given: list[int] = []  # checksums of the frames
        # Of a damaged video that is kept, what is put in the place of damage may be taken from any frame before it.
        if not self.whole and self.sampling.on_damage == "fail":
            try:
                for frame in self._by_plan():
                    given.append(zlib.crc32(frame.data))
                    yield frame
                return
            except PlanError as error:
                log.debug("%s: decoding all of it, since %s", self.path, error)
        with self._opened() as (container, stream):
            for k, frame in enumerate(self._sample(container, stream, None)):
                if k >= len(given):
                    yield frame
                elif zlib.crc32(frame.data) != given[k]:
                    raise VideoError("corrupt", f"{self.path}: sample {k} is another frame when everything is decoded")

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
        with open_video(self.path) as container:
            yield container, choose_stream(container, self.path, self.sampling.limits)

    def _by_plan(self) -> Iterator[np.ndarray]:
        """The samples, with what no sample needs left out; PlanError if the packets do not tell or do not keep to it."""
        with self._opened() as (container, stream):
            table = read_packets(container, stream, max_packets=self.sampling.limits.max_frames)
            if table is None or not table.is_ordered(reorder_depth(stream)):
                raise PlanError("the packets do not tell when each frame is shown")
            clock = self._clock(container, stream)
            if clock.seconds(table.presentation()[-1]) > self.sampling.limits.max_duration_s:
                raise PlanError("the packets are of a longer time than is allowed")
            plan = make_plan(table, clock)
            self._frames_expected = plan.num_expected
            if rewind(container, stream, table):
                yield from self._sample(container, stream, plan)
                return
        with self._opened() as (container, stream):
            yield from self._sample(container, stream, plan)

    def _clock(self, container: av.container.InputContainer, stream: av.VideoStream) -> Clock:
        return clock_of(container, stream, self.path, self.sampling.fps)

    def _sample(
        self, container: av.container.InputContainer, stream: av.VideoStream, plan: Plan | None
    ) -> Iterator[np.ndarray]:
        packets = None if plan is None else plan.kept(container.demux(stream))
        threads = 1 if plan is None else self.sampling.threads  # they lose errors: only where it is known what must come
        frames = TimedFrames(
            container,
            stream,
            self.path,
            self.sampling.limits,
            packets=packets,
            threads=threads,
            mend_times=self.sampling.on_damage == "keep",
        )
        clock = self._clock(container, stream)
        convert = FrameConverter(self.sampling.geometry, pixel_aspect=exact(stream.sample_aspect_ratio) or Fraction(1))
        shown: av.VideoFrame | None = None
        shown_pts = last_gap = k = 0
        for pts, frame in frames:
            if shown is not None:
                until = clock.first_sample_at(pts)
                if plan is not None:
                    self._require_no_damage(frames)  # where it is kept there is no plan
                    plan.require(frames.num_frames - 2, pts=shown_pts, samples=until - k)
                if until > k:
                    yield from itertools.repeat(convert(shown), until - k)
                    k = until
                last_gap = pts - shown_pts
            shown, shown_pts = frame, pts
        if shown is None:
            raise self._no_frames(stream, frames)
        if plan is not None:
            self._require_as_planned(plan, frames)
            last_gap = plan.last_gap
        end = clock.seconds(shown_pts + (shown.duration or last_gap or default_frame_duration(stream)))
        self._require_sound(end, claimed_duration_s(container, stream), frames)
        until = clock.num_samples(end)
        if until > k:
            yield from itertools.repeat(convert(shown), until - k)
            k = until
        self._facts = self._gather(container, stream, frames, plan, clock, end=end, num_frames=k)

    @staticmethod
    def _require_as_planned(plan: Plan, frames: TimedFrames) -> None:
        if frames.num_frames != len(plan.frames):
            raise PlanError(f"{frames.num_frames} frames came of {len(plan.frames)} packets")

    def _no_frames(self, stream: av.VideoStream, frames: TimedFrames) -> VideoError:
        claim = f"{stream.frames} frames" if stream.frames else "nothing about frames"
        return VideoError(
            "no_frames",
            f"{self.path}: decoded 0 frames with a time ({frames.bad_packets} packets cannot be decoded), the container "
            f"says {claim}; is it cut short?",
        )

    def _require_sound(self, end: Fraction, claimed_s: float | None, frames: TimedFrames) -> None:
        require_sound(self.path, self.sampling, end=end, claimed_s=claimed_s)
        self._require_no_damage(frames)

    def _require_no_damage(self, frames: TimedFrames) -> None:
        if self.sampling.on_damage == "fail" and (frames.bad_packets or frames.corrupt_frames):
            raise VideoError(
                "corrupt",
                f"{self.path}: {frames.bad_packets} packets cannot be decoded and {frames.corrupt_frames} of "
                f"{frames.num_frames} frames are damaged (--on-damage keep uses what there is; of a video that failed "
                "before, with --retry-failed)",
            )

    def _gather(
        self,
        container: av.container.InputContainer,
        stream: av.VideoStream,
        frames: TimedFrames,
        plan: Plan | None,
        clock: Clock,
        *,
        end: Fraction,
        num_frames: int,
    ) -> VideoFacts:
        largest_gap = frames.largest_gap if plan is None else plan.largest_gap
        return VideoFacts(
            num_frames=num_frames,
            fps=float(clock.fps),
            t0_s=float(clock.t0),
            duration_s=float(end),
            claimed_duration_s=claimed_duration_s(container, stream),
            frames_expected=self._frames_expected or stream.frames or None,
            frames_decoded=frames.num_frames,
            frames_skipped=0 if plan is None else plan.num_skipped,
            width=stream.codec_context.width,
            height=stream.codec_context.height,
            codec=codec_name(stream),
            bad_packets=frames.bad_packets,
            corrupt_frames=frames.corrupt_frames,
            reordered_frames=frames.reordered_frames,
            clock_restarts=frames.clock_restarts,
            first_restart_s=frames.first_restart_s,
            largest_gap_s=float(largest_gap * frames.time_base),
            backend="pyav",
        )
