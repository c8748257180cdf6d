"""The frames of a video with their times, as far as they can be decoded.

Packets that cannot be decoded are counted and passed over; what that means for the video is judged at its end. Times come
from the container, and what it says of them is not believed where frames disagree.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator
from fractions import Fraction

import av

from excl.datasets.video import remedies
from excl.datasets.video.backward_times import MAX_REORDERED, Order, Timeline
from excl.datasets.video.container import OpenVideo
from excl.datasets.video.errors import VideoError
from excl.datasets.video.pyav_versions import exact


class TimedFrames:
    """The frames of a video that have a time, each later than the one before, with their pts; counts what is damaged.

    `packets` are those to decode, if not all of the stream's. Iterating raises VideoError where times gape, or run beyond
    what is allowed, and where they go back unless these are to be mended (`mend_times`): then frames that are a little late
    are put in order, and a clock that starts again is continued. Both are counted: `reordered_frames`, `clock_restarts`; and
    `first_restart_s` is when the clock first did.
    """

    def __init__(
        self, video: OpenVideo, *, packets: Iterable[av.Packet] | None = None, threads: int = 1, mend_times: bool = False
    ) -> None:
        self.video, self.packets, self.threads, self.mend_times = video, packets, threads, mend_times
        self.time_base = video.time_base
        self.num_frames = self.bad_packets = self.corrupt_frames = self.largest_gap = 0
        self.reordered_frames = self.clock_restarts = 0
        self.first_restart_s: float | None = None

    def __iter__(self) -> Iterator[tuple[int, av.VideoFrame]]:
        video, limits = self.video, self.video.limits
        frames: Iterable[tuple[int, av.VideoFrame]] = self._decode()
        if video.container.format.name == "avi":
            frames = _retime(frames)
        start = round(video.start_s / self.time_base)
        latest = start
        for pts, frame in self._order(frames, start):
            gap, latest = pts - latest, pts
            if self.num_frames:
                self.largest_gap = max(self.largest_gap, gap)
            if self.num_frames >= limits.max_frames:
                message = f"{video.path}: has more than the {limits.max_frames:,} frames that are allowed (--max-frames)"
                raise VideoError("too_large", message)
            limits.require_times(video.path, gap_s=gap * self.time_base, since_start_s=(pts - start) * self.time_base)
            limits.require_size(video.path, frame.width, frame.height)
            self.num_frames += 1
            self.corrupt_frames += frame.is_corrupt
            yield pts, frame

    def _decode(self) -> Iterator[tuple[int, av.VideoFrame]]:
        """Yield the frames in the order of presentation. With more threads than one FFmpeg loses errors, and even frames."""
        stream = self.video.stream
        stream.thread_type, stream.thread_count = "SLICE" if self.threads == 1 else "AUTO", self.threads
        previous_pts: int | None = None
        step = self.video.default_frame_duration
        for packet in self.video.demux() if self.packets is None else self.packets:
            try:
                for frame in packet.decode():
                    pts = frame.pts
                    if pts is None and previous_pts is not None:
                        pts = previous_pts + step  # as long after its predecessor as that came after its own, or lasts
                    if pts is not None:  # a frame before the first that has a time cannot be shown at one
                        step = frame.duration or (step if previous_pts is None else pts - previous_pts)
                        previous_pts = pts
                        yield pts, frame
            except av.InvalidDataError:
                self.bad_packets += 1

    def _order(self, frames: Iterable[tuple[int, av.VideoFrame]], start: int) -> Iterator[tuple[int, av.VideoFrame]]:
        """Yield the frames in the order of their times; of those with one time the last. A clock that starts again is
        continued.

        Without permission to mend times, raises VideoError for the first that is not after the one before.
        """
        timeline = Timeline(
            self.time_base,
            self.video.default_frame_duration,
            self.video.container.format.name,
            max_gap_s=self.video.limits.max_gap_s,
        )
        waiting: list[tuple[int, int, av.VideoFrame]] = []  # a heap, with the number of the frame between equal times
        first_kind, late_s = None, Fraction(0)
        for number, (file_pts, frame) in enumerate(frames):
            latest = timeline.latest
            pts, order = timeline.place(file_pts, frame.duration)
            if first_kind is None:
                first_kind, late_s = _kind(frame), (pts - start) * self.time_base
            if order != "next" and not self.mend_times:
                at_s, leap_s = (latest - start) * self.time_base, timeline.leap * self.time_base
                command = self._mending(order, frame, late_s, leap_s) if _kind(frame) == first_kind else None
                raise VideoError("bad_times", f"{self.video.path}: {_disorder(order, float(at_s), float(leap_s), command)}")
            if order == "late":
                self.reordered_frames += 1
            elif order == "restart":
                yield from _take_in_order(waiting, 0)
                self.clock_restarts += 1
                if self.first_restart_s is None:
                    self.first_restart_s = float((pts - start) * self.time_base)
            heapq.heappush(waiting, (pts, number, frame))
            yield from _take_in_order(waiting, MAX_REORDERED if self.mend_times else 0)
        yield from _take_in_order(waiting, 0)

    def _mending(self, order: Order, frame: av.VideoFrame, late_s: Fraction, leap_s: Fraction) -> str:
        """Return the command that mends a file in which this frame is the first that is not after the one before."""
        path, stream, interlaced = self.video.path, self.video.stream, frame.interlaced_frame
        if order == "late":
            return remedies.without_late_frames(path, stream.index, late_s=late_s, interlaced=interlaced)
        return remedies.with_continued_clock(
            path,
            stream.index,
            rate=exact(stream.average_rate) or Fraction(25),
            late_s=late_s,
            back_s=-leap_s,
            max_gap_s=self.video.limits.max_gap_s,
            interlaced=interlaced,
        )


def first_frame(video: OpenVideo) -> av.VideoFrame:
    """Return the first frame that has a time; raises VideoError if none can be decoded."""
    for _, frame in TimedFrames(video):
        return frame
    raise VideoError("no_frames", f"{video.path}: not one frame with a time can be decoded")


def _disorder(order: Order, at_s: float, leap_s: float, command: str | None) -> str:
    """Say that a frame comes late, or that the clock starts again, and what mends it."""
    if order == "late":
        problem = f"a frame comes late: time steps back by {-leap_s:.3f} s after {at_s:.3f} s"
        effect, mending = "makes a file without the frames that come late", "puts all frames in order"
    else:
        side = "earlier" if leap_s <= 0 else "later"
        problem = f"the clock starts again after {at_s:.3f} s, {abs(leap_s):.3f} s {side}: two recordings in one file"
        effect, mending = "mends it", "continues the clock where the first one ends"
    if command:
        remedy = f"`{command}` {effect} (the pictures are coded anew, and the sound is left out)"
    else:
        remedy = "the pictures differ in size or kind, so no command of ffmpeg mends it"
    return f"{problem}; {remedy}, and --on-damage keep {mending}"


def _retime(frames: Iterable[tuple[int, av.VideoFrame]]) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield the frames in the order in which they come, which is that of presentation, with their times sorted.

    AVI keeps times of decoding only, so with B-frames they come out of order.
    """
    times: list[int] = []
    waiting: deque[av.VideoFrame] = deque()
    for pts, frame in frames:
        heapq.heappush(times, pts)
        waiting.append(frame)
        if len(waiting) > MAX_REORDERED:
            yield heapq.heappop(times), waiting.popleft()
    while waiting:
        yield heapq.heappop(times), waiting.popleft()


def _kind(frame: av.VideoFrame) -> tuple[int, int, str]:
    return frame.width, frame.height, frame.format.name


def _take_in_order(waiting: list[tuple[int, int, av.VideoFrame]], most: int) -> Iterator[tuple[int, av.VideoFrame]]:
    """Take frames from a heap, by time, until only so many are left in it; of frames with one time the last alone."""
    while len(waiting) > most:
        pts, _, frame = heapq.heappop(waiting)
        if not waiting or waiting[0][0] != pts:
            yield pts, frame
