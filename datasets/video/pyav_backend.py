"""Sampling a video with PyAV: the decoder that all others are measured by (the rule is in `sampling.py`).

Frames are decoded one after another and only those that are kept are converted, so memory is bounded by the decoder's own
buffers. Where the packets tell beforehand which frames no sample needs, those are not even decoded (`packets.py`): if then
anything is not as the packets said, the video is read again with everything decoded, and what was given already is left
out. Files that nobody trusts are better read in a process of their own, see `decoder_process.py`.
"""

from __future__ import annotations

import itertools
import logging
import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from excl.datasets.video.container import OpenVideo, open_video
from excl.datasets.video.errors import VideoError
from excl.datasets.video.geometry import FrameConverter
from excl.datasets.video.packets import Plan, PlanError, make_plan, read_packets, rewind
from excl.datasets.video.pyav_versions import reorder_depth
from excl.datasets.video.sampling import USE_DAMAGED, Clock, Sampling, Video, VideoFacts, make_clock, require_sound
from excl.datasets.video.timed_frames import TimedFrames

log = logging.getLogger(__name__)


class PyAVVideo(Video):
    """A `Video` read by PyAV. `decode_all` decodes also the frames that no sample needs, as is done where damage is kept."""

    def __init__(self, path: Path, sampling: Sampling, *, decode_all: bool = False) -> None:
        self.path, self.sampling, self.decode_all = path, sampling, decode_all
        self._frames_expected: int | None = None

    def __iter__(self) -> Iterator[np.ndarray]:
        checksums: list[int] = []
        # Of a damaged video that is kept, what is put in the place of damage may be taken from any frame before it.
        if not self.decode_all and self.sampling.on_damage == "fail":
            try:
                for frame in self._sample_by_plan():
                    checksums.append(zlib.crc32(frame.data))
                    yield frame
                return
            except PlanError as error:
                log.debug("%s: decoding all of it, since %s", self.path, error)
        with open_video(self.path, self.sampling.limits) as video:
            for k, frame in enumerate(self._sample(video, None)):
                if k >= len(checksums):
                    yield frame
                elif zlib.crc32(frame.data) != checksums[k]:
                    raise VideoError("corrupt", f"{self.path}: sample {k} is another frame when everything is decoded")

    def _sample_by_plan(self) -> Iterator[np.ndarray]:
        """Yield the samples, decoding what they need; raises PlanError if the packets do not tell or do not keep to it."""
        with open_video(self.path, self.sampling.limits) as video:
            table = read_packets(video)
            if table is None or not table.is_ordered(reorder_depth(video.stream)):
                raise PlanError("the packets do not tell when each frame is shown")
            clock = make_clock(video, self.sampling)
            if clock.seconds(table.presentation()[-1]) > self.sampling.limits.max_duration_s:
                raise PlanError("the packets are of a longer time than is allowed")
            plan = make_plan(table, clock)
            self._frames_expected = plan.num_expected
            if rewind(video, table):
                yield from self._sample(video, plan)
                return
        with open_video(self.path, self.sampling.limits) as video:
            yield from self._sample(video, plan)

    def _sample(self, video: OpenVideo, plan: Plan | None) -> Iterator[np.ndarray]:
        packets = None if plan is None else plan.select(video.demux())
        threads = 1 if plan is None else self.sampling.threads  # they lose errors: only where it is known what must come
        frames = TimedFrames(video, packets=packets, threads=threads, mend_times=self.sampling.on_damage == "keep")
        clock = make_clock(video, self.sampling)
        convert = FrameConverter(self.sampling.geometry, pixel_aspect=video.pixel_aspect)
        shown: av.VideoFrame | None = None
        shown_pts = gap = k = 0
        for pts, frame in frames:
            if shown is not None:
                until = clock.first_sample_at(pts)
                if plan is not None:
                    self._require_no_damage(frames)  # where it is kept there is no plan
                    plan.require_frame(frames.num_frames - 2, pts=shown_pts, samples=until - k)
                if until > k:
                    yield from itertools.repeat(convert(shown), until - k)
                    k = until
                gap = pts - shown_pts
            shown, shown_pts = frame, pts
        if shown is None:
            raise self._no_frames(frames)
        if plan is not None:
            if frames.num_frames != len(plan.frames):
                raise PlanError(f"{frames.num_frames} frames came of {len(plan.frames)} packets")
            gap = plan.last_gap
        end = clock.seconds(shown_pts + (shown.duration or gap or video.default_frame_duration))
        require_sound(self.path, self.sampling, end=end, claimed_s=video.claimed_duration_s)
        self._require_no_damage(frames)
        until = clock.num_samples(end)
        if until > k:
            yield from itertools.repeat(convert(shown), until - k)
            k = until
        self.facts = self._gather_facts(frames, plan, clock, end=end, num_frames=k)

    def _no_frames(self, frames: TimedFrames) -> VideoError:
        num_claimed = frames.video.stream.frames
        claim = f"{num_claimed} frames" if num_claimed else "nothing about frames"
        return VideoError(
            "no_frames",
            f"{self.path}: decoded 0 frames with a time ({frames.bad_packets} packets cannot be decoded), the container "
            f"says {claim}; is it cut short?",
        )

    def _require_no_damage(self, frames: TimedFrames) -> None:
        if self.sampling.on_damage == "fail" and (frames.bad_packets or frames.corrupt_frames):
            raise VideoError(
                "corrupt",
                f"{self.path}: {frames.bad_packets} packets cannot be decoded and {frames.corrupt_frames} of "
                f"{frames.num_frames} frames are damaged ({USE_DAMAGED})",
            )

    def _gather_facts(
        self, frames: TimedFrames, plan: Plan | None, clock: Clock, *, end: Fraction, num_frames: int
    ) -> VideoFacts:
        video, stream = frames.video, frames.video.stream
        largest_gap = frames.largest_gap if plan is None else plan.largest_gap
        return VideoFacts(
            num_frames=num_frames,
            fps=float(clock.fps),
            t0_s=float(clock.t0),
            duration_s=float(end),
            claimed_duration_s=video.claimed_duration_s,
            frames_expected=self._frames_expected or stream.frames or None,
            frames_decoded=frames.num_frames,
            frames_skipped=0 if plan is None else plan.num_skipped,
            width=stream.codec_context.width,
            height=stream.codec_context.height,
            codec=video.codec,
            bad_packets=frames.bad_packets,
            corrupt_frames=frames.corrupt_frames,
            reordered_frames=frames.reordered_frames,
            clock_restarts=frames.clock_restarts,
            first_restart_s=frames.first_restart_s,
            largest_gap_s=float(largest_gap * frames.time_base),
            backend="pyav",
        )
