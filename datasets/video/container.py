"""Opening a video file that nobody vouches for, and getting its frames with their times out of it.

Only regular files, only containers from a list, no other protocol than `file`: a script named .mp4 must not make the
decoder open another file or a socket. Packets that cannot be decoded are counted and passed over; what that means for the
video is judged at its end. Times come from the container, and what it says of them is not believed where frames disagree.
"""

from __future__ import annotations

import errno
import heapq
import os
import re
import stat
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import av.container

from excl.datasets.video import remedies
from excl.datasets.video.errors import OF_THE_MACHINE, Reason, VideoError
from excl.datasets.video.pyav import exact, open_input, time_base
from excl.datasets.video.timeline import MAX_REORDERED, Order, Timeline

READ = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,gif"
# Containers of FFmpeg's that open no other file. They are opened to say what a file is that is not read.
NOT_READ = {
    "apng": "an animated PNG",
    "bmp_pipe": "a picture (BMP)",
    "dv": "a DV stream",
    "h264": "a raw H.264 stream",
    "hevc": "a raw HEVC stream",
    "ivf": "an IVF file",
    "jpeg_pipe": "a picture (JPEG)",
    "m4v": "a raw MPEG-4 stream",
    "mpegvideo": "a raw MPEG video stream",
    "mxf": "an MXF file",
    "nut": "a NUT file",
    "obu": "a raw AV1 stream",
    "png_pipe": "a picture (PNG)",
    "rm": "a RealMedia file",
    "webp_anim": "an animated WebP",  # FFmpeg up to 8 has webp_pipe for all of WebP
    "webp_pipe": "a picture (WebP)",
    "yuv4mpegpipe": "a YUV4MPEG stream",
}
READ_IN_WORDS = "MP4/MOV, Matroska/WebM, AVI, MPEG-TS, MPEG-PS, FLV, ASF/WMV, Ogg and GIF"
PROTOCOLS = {"protocol_whitelist": "file"}
OPEN_OPTIONS = {"format_whitelist": READ, **PROTOCOLS}


@dataclass(frozen=True)
class Limits:
    """What a video may ask for before it is refused as too large, or as one whose times cannot be true."""

    max_pixels: int = 8192 * 8192
    max_duration_s: float = 12 * 3600.0
    max_gap_s: float = 600.0
    max_frames: int = 5_000_000


@contextmanager
def open_video(path: Path) -> Iterator[av.container.InputContainer]:
    """The container of a regular file; VideoError for anything else, and for all that FFmpeg finds wrong meanwhile."""
    require_regular_file(path)
    opened = False
    try:
        with open_input(f"file:{path.absolute()}", options=OPEN_OPTIONS) as container:
            opened = True
            yield container
    except MemoryError as error:
        raise VideoError("too_large", f"{path}: decoding it needs more memory than is allowed") from error
    except OSError as error:
        if error.errno in OF_THE_MACHINE:
            raise
        raise _cannot_open(path, error) from error
    except av.FFmpegError as error:
        if not opened and (other := _other_container(path)):
            raise VideoError("not_a_video", other) from error
        reason: Reason = "corrupt" if opened else "not_a_video"
        raise VideoError(
            reason, f"{path}: cannot be decoded ({error.strerror or error}); is it a whole video file?"
        ) from error


def _other_container(path: Path) -> str:
    """Say what a whole file is whose container is not read, and how it is converted; empty if no such container is known."""
    options = {"format_whitelist": ",".join(NOT_READ), **PROTOCOLS}
    try:
        with open_input(f"file:{path.absolute()}", options=options) as container:
            name = container.format.name
    except (av.FFmpegError, MemoryError):
        return ""
    if name == "webp_pipe" and _is_animated_webp(path):
        name = "webp_anim"
    if name.endswith("_pipe"):
        return f"{path}: is {NOT_READ[name]} and no video"
    command, given = remedies.converts(path, name)
    return (
        f"{path}: is {NOT_READ[name]}, which is not read here: files of {READ_IN_WORDS} are; `{command}` converts it{given}"
    )


def _is_animated_webp(path: Path) -> bool:
    """Whether a WebP file has the flag of an animation in its VP8X chunk (RFC 9649, 2.7.1)."""
    with path.open("rb") as file:
        head = file.read(21)
    return head[12:16] == b"VP8X" and bool(head[20] & 2)


def require_regular_file(path: Path | str) -> os.stat_result:
    """The state of `path`; VideoError unless it is a file with something in it: a pipe, for one, would be read for ever."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise _cannot_open(path, error) from error
    if not stat.S_ISREG(status.st_mode):
        raise VideoError("not_a_file", f"{path}: not a regular file")
    if status.st_size == 0:
        raise VideoError("empty", f"{path}: an empty file")
    return status


def _cannot_open(path: Path | str, error: OSError) -> VideoError:
    missing = error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}
    return VideoError("missing" if missing else "unreadable", f"{path}: cannot be opened ({error.strerror or error})")


def choose_stream(container: av.container.InputContainer, path: Path, limits: Limits) -> av.VideoStream:
    """The largest video stream that is no cover picture; VideoError if there is none, or its pictures are too large."""
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        raise VideoError("no_video_stream", f"{path}: has no video stream")
    streams = [stream for stream in streams if stream.codec_context is not None]
    if not streams:
        raise VideoError("no_video_stream", f"{path}: its video is of a codec that FFmpeg does not know")
    stream = max(streams, key=lambda s: s.codec_context.width * s.codec_context.height)
    require_size(stream.codec_context.width, stream.codec_context.height, path, limits)
    if exact(stream.time_base) is None:
        raise VideoError("bad_times", f"{path}: the video stream has no time base, so its frames have no times")
    return stream


def require_size(width: int, height: int, path: Path, limits: Limits) -> None:
    """VideoError for pictures of more pixels than allowed."""
    if width * height > limits.max_pixels:
        raise VideoError(
            "too_large", f"{path}: pictures of {width} x {height}, allowed are {limits.max_pixels:,} pixels (--max-pixels)"
        )


def demux(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.Packet]:
    """The packets of a stream, as far as they can be told apart."""
    try:
        yield from container.demux(stream)
    except IndexError as error:  # a stream that begins after the file was opened, which PyAV does not expect
        raise VideoError("corrupt", f"{container.name}: a stream begins in the middle of the file") from error


class TimedFrames:
    """The frames of a stream that have a time, each later than the one before, with their pts; counts what is damaged.

    `packets` are those to decode, if not all of the stream's. Iterating raises VideoError where times gape, or run beyond
    what is allowed, and where they go back unless these are to be mended (`mend_times`): then frames that are a little late
    are put in order, and a clock that starts again is continued. Both are counted: `reordered_frames`, `clock_restarts`; and
    `first_restart_s` is when the clock first did.
    """

    def __init__(
        self,
        container: av.container.InputContainer,
        stream: av.VideoStream,
        path: Path,
        limits: Limits,
        *,
        packets: Iterable[av.Packet] | None = None,
        threads: int = 1,
        mend_times: bool = False,
    ) -> None:
        self.container, self.stream, self.path, self.limits = container, stream, path, limits
        self.packets, self.threads, self.mend_times = packets, threads, mend_times
        self.time_base = time_base(stream)
        self.num_frames = self.bad_packets = self.corrupt_frames = self.largest_gap = 0
        self.reordered_frames = self.clock_restarts = 0
        self.first_restart_s: float | None = None

    def __iter__(self) -> Iterator[tuple[int, av.VideoFrame]]:
        frames: Iterable[tuple[int, av.VideoFrame]] = self._decode()
        if self.container.format.name == "avi":
            frames = _retimed(frames)
        start = round(start_time(self.container) / self.time_base)
        last = start
        for pts, frame in self._placed(frames, start):
            self._check_time(pts, last, start)
            require_size(frame.width, frame.height, self.path, self.limits)
            last = pts
            self.num_frames += 1
            self.corrupt_frames += frame.is_corrupt
            yield pts, frame

    def _decode(self) -> Iterator[tuple[int, av.VideoFrame]]:
        """Frames in the order of presentation. With more threads than one FFmpeg loses errors, and even frames."""
        self.stream.thread_type, self.stream.thread_count = "SLICE" if self.threads == 1 else "AUTO", self.threads
        last: int | None = None
        step = default_frame_duration(self.stream)
        for packet in demux(self.container, self.stream) if self.packets is None else self.packets:
            try:
                for frame in packet.decode():
                    pts = frame.pts
                    if pts is None and last is not None:
                        pts = last + step  # as long after its predecessor as that came after its own, or lasts
                    if pts is not None:  # a frame before the first that has a time cannot be shown at one
                        step = frame.duration or (step if last is None else pts - last)
                        last = pts
                        yield pts, frame
            except av.InvalidDataError:
                self.bad_packets += 1

    def _placed(self, frames: Iterable[tuple[int, av.VideoFrame]], start: int) -> Iterator[tuple[int, av.VideoFrame]]:
        """The frames in the order of their times; of those with one time the last. A clock that starts again goes on.

        Where times are not to be mended, VideoError for the first that is not after the one before.
        """
        timeline = Timeline(
            self.time_base, default_frame_duration(self.stream), self.container.format.name, max_gap_s=self.limits.max_gap_s
        )
        waiting: list[tuple[int, int, av.VideoFrame]] = []  # a heap, with the number of the frame between equal times
        first_kind, late_s = None, Fraction(0)
        for number, (own_pts, frame) in enumerate(frames):
            latest = timeline.latest
            pts, order = timeline.place(own_pts, frame.duration)
            if first_kind is None:
                first_kind, late_s = _kind(frame), (pts - start) * self.time_base
            if order != "next" and not self.mend_times:
                at_s, leap_s = ((ticks * self.time_base) for ticks in (latest - start, timeline.leap))
                command = self._command(order, frame, late_s, leap_s) if _kind(frame) == first_kind else None
                raise self._goes_back(order, float(at_s), float(leap_s), command)
            if order == "late":
                self.reordered_frames += 1
            elif order == "restart":
                yield from _in_order(waiting, 0)
                self.clock_restarts += 1
                if self.first_restart_s is None:
                    self.first_restart_s = float((pts - start) * self.time_base)
            heapq.heappush(waiting, (pts, number, frame))
            yield from _in_order(waiting, MAX_REORDERED if self.mend_times else 0)
        yield from _in_order(waiting, 0)

    def _command(self, order: Order, frame: av.VideoFrame, late_s: Fraction, leap_s: Fraction) -> str:
        if order == "late":
            return remedies.leaves_out_late(self.path, self.stream.index, late_s=late_s, interlaced=frame.interlaced_frame)
        return remedies.continues_clock(
            self.path,
            self.stream.index,
            rate=exact(self.stream.average_rate) or Fraction(25),
            late_s=late_s,
            back_s=-leap_s,
            max_gap_s=self.limits.max_gap_s,
            interlaced=frame.interlaced_frame,
        )

    def _goes_back(self, order: Order, at_s: float, leap_s: float, command: str | None) -> VideoError:
        """The error for a frame that comes late, or whose clock starts again, with what mends it."""
        if order == "late":
            what = f"a frame comes late: time steps back by {-leap_s:.3f} s after {at_s:.3f} s"
            does, keeps = "makes a file without the frames that come late", "puts all frames in order"
        else:
            side = "earlier" if leap_s <= 0 else "later"
            what = f"the clock starts again after {at_s:.3f} s, {abs(leap_s):.3f} s {side}: two recordings in one file"
            does, keeps = "mends it", "goes on with the clock where the first one ends"
        if command:
            mends = f"`{command}` {does} (the pictures are coded anew, and the sound is left out)"
        else:
            mends = "the pictures differ in size or kind, so no command of ffmpeg mends it"
        mends += f", and --on-damage keep {keeps}"
        return VideoError("bad_times", f"{self.path}: {what}; {mends}")

    def _check_time(self, pts: int, last: int, start: int) -> None:
        if self.num_frames:
            self.largest_gap = max(self.largest_gap, pts - last)
        if (pts - last) * self.time_base > self.limits.max_gap_s:
            gap_s = float((pts - last) * self.time_base)
            raise VideoError(
                "bad_times", f"{self.path}: no frame for {gap_s:g} s, allowed are {self.limits.max_gap_s:g} (--max-gap-s)"
            )
        if self.num_frames >= self.limits.max_frames:
            raise VideoError(
                "too_large",
                f"{self.path}: has more than the {self.limits.max_frames:,} frames that are allowed (--max-frames)",
            )
        if (pts - start) * self.time_base > self.limits.max_duration_s:
            raise VideoError(
                "too_large",
                f"{self.path}: is longer than the {self.limits.max_duration_s:g} s that are allowed (--max-hours)",
            )


def _retimed(frames: Iterable[tuple[int, av.VideoFrame]]) -> Iterator[tuple[int, av.VideoFrame]]:
    """The frames in the order in which they come, which is that of presentation, with their times sorted.

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


def _in_order(waiting: list[tuple[int, int, av.VideoFrame]], most: int) -> Iterator[tuple[int, av.VideoFrame]]:
    """Take frames from a heap, by time, until only so many are left in it; of frames with one time the last alone."""
    while len(waiting) > most:
        pts, _, frame = heapq.heappop(waiting)
        if not waiting or waiting[0][0] != pts:
            yield pts, frame


def start_time(container: av.container.InputContainer) -> Fraction:
    """The container's start time in seconds, exact.

    FFmpeg rounds it to microseconds; the stream that it was taken from has it in its own time base, and the difference
    would move every frame that lies exactly on a sampling time.
    """
    if container.start_time is None:
        return Fraction(0)
    rounded = Fraction(container.start_time, av.time_base)
    starts_s = [
        s.start_time * unit
        for s in (*container.streams.video, *container.streams.audio)
        if s.start_time is not None and (unit := exact(s.time_base)) is not None
    ]
    return next((time for time in starts_s if abs(time - rounded) <= Fraction(1, av.time_base)), rounded)


def claimed_duration_s(container: av.container.InputContainer, stream: av.VideoStream) -> float | None:
    """How long the video stream is by the container; None if it does not say (the container's end may be the sound's)."""
    if stream.duration:
        return float(stream.duration * time_base(stream))
    tag = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))  # Matroska
    late_s = max(0.0, float(start_time(container))) if "matroska" in container.format.name else 0.0  # it tells the end
    if tag:
        return int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3]) - late_s
    if container.duration and not container.streams.audio:
        return container.duration / av.time_base - late_s
    return None


def codec_name(stream: av.VideoStream) -> str:
    """The codec's name, whichever decoder is used for it."""
    return stream.codec_context.codec.canonical_name


def native_fps(stream: av.VideoStream, path: Path) -> Fraction:
    """How many frames a second a stream has by what it says of itself; VideoError if it says nothing.

    That is its average rate; or the rounder rate that FFmpeg guesses by its times, if over the whole stream that is less
    than half a frame away.
    """
    average, base = exact(stream.average_rate), exact(stream.base_rate)
    lasts_s = stream.duration * time_base(stream) if stream.duration else None
    if not average:
        raise VideoError("bad_times", f"{path}: does not say how many frames a second it has; give a rate as fps")
    return base if base and lasts_s and abs(base - average) * lasts_s < Fraction(1, 2) else average


def default_frame_duration(stream: av.VideoStream) -> int:
    """A lone frame without a duration lasts one period of the average rate, or a 25th of a second."""
    return max(1, round(1 / ((exact(stream.average_rate) or Fraction(25)) * time_base(stream))))
