"""Opening video files that nobody vouches for, and what a container says of its pictures.

Only regular files, only containers from a list, no other protocol than `file`: a script named .mp4 must not make the
decoder open another file or a socket.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import av.container

from excl.datasets.video import remedies
from excl.datasets.video.errors import OF_THE_MACHINE, VideoError
from excl.datasets.video.pyav_versions import exact, open_input

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
    """The limits beyond which a video is refused as too large, or as one whose times cannot be true."""

    max_pixels: int = 8192 * 8192
    max_duration_s: float = 12 * 3600.0
    max_gap_s: float = 600.0
    max_frames: int = 5_000_000

    def require_size(self, path: Path, width: int, height: int) -> None:
        """Raise VideoError for pictures of more pixels than allowed."""
        if width * height > self.max_pixels:
            size = f"pictures of {width} x {height}, allowed are {self.max_pixels:,} pixels (--max-pixels)"
            raise VideoError("too_large", f"{path}: {size}")

    def require_times(self, path: Path, *, gap_s: Fraction, since_start_s: Fraction) -> None:
        """Raise VideoError for a frame that comes too long after the one before it, or after the video's start."""
        if gap_s > self.max_gap_s:
            gap = f"no frame for {float(gap_s):g} s, allowed are {self.max_gap_s:g} (--max-gap-s)"
            raise VideoError("bad_times", f"{path}: {gap}")
        if since_start_s > self.max_duration_s:
            length = f"is longer than the {self.max_duration_s:g} s that are allowed (--max-hours)"
            raise VideoError("too_large", f"{path}: {length}")


@dataclass(frozen=True)
class OpenVideo:
    """A video file that is open: its container, the one stream of it that is read, and the limits that it is held to."""

    path: Path
    limits: Limits
    container: av.container.InputContainer
    stream: av.VideoStream

    def demux(self) -> Iterator[av.Packet]:
        """Yield the packets of the stream, as far as they can be told apart."""
        try:
            yield from self.container.demux(self.stream)
        except IndexError as error:  # a stream that begins after the file was opened, which PyAV does not expect
            raise VideoError("corrupt", f"{self.path}: a stream begins in the middle of the file") from error

    @property
    def codec(self) -> str:
        """The codec's name, whichever decoder is used for it."""
        return self.stream.codec_context.codec.canonical_name

    @property
    def time_base(self) -> Fraction:
        """The unit of the stream's times, in seconds."""
        unit = exact(self.stream.time_base)
        assert unit is not None, "choose_stream takes no stream without one"
        return unit

    @property
    def pixel_aspect(self) -> Fraction:
        """The width of a pixel by its height; 1 where the file does not say."""
        return exact(self.stream.sample_aspect_ratio) or Fraction(1)

    @property
    def start_s(self) -> Fraction:
        """The container's start time in seconds, exact.

        FFmpeg rounds it to microseconds; the stream that it was taken from has it in its own time base, and the difference
        would move every frame that lies exactly on a sampling time.
        """
        if self.container.start_time is None:
            return Fraction(0)
        rounded = Fraction(self.container.start_time, av.time_base)
        starts_s = [
            stream.start_time * unit
            for stream in (*self.container.streams.video, *self.container.streams.audio)
            if stream.start_time is not None and (unit := exact(stream.time_base)) is not None
        ]
        return next((start_s for start_s in starts_s if abs(start_s - rounded) <= Fraction(1, av.time_base)), rounded)

    @property
    def claimed_duration_s(self) -> float | None:
        """The stream's seconds by the container; None if it does not say (the container's end may be the sound's)."""
        if self.stream.duration:
            return float(self.stream.duration * self.time_base)
        tag = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", self.stream.metadata.get("DURATION", ""))  # Matroska
        late_s = max(0.0, float(self.start_s)) if "matroska" in self.container.format.name else 0.0  # it tells the end
        if tag:
            return int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3]) - late_s
        if self.container.duration and not self.container.streams.audio:
            return self.container.duration / av.time_base - late_s
        return None

    @property
    def native_fps(self) -> Fraction:
        """The frames a second that the stream says it has; raises VideoError if it says nothing.

        That is its average rate; or the rounder rate that FFmpeg guesses by its times, if over the whole stream that is less
        than half a frame away.
        """
        average, base = exact(self.stream.average_rate), exact(self.stream.base_rate)
        if not average:
            raise VideoError("bad_times", f"{self.path}: does not say how many frames a second it has; give a rate as fps")
        duration_s = self.stream.duration * self.time_base if self.stream.duration else None
        return base if base and duration_s and abs(base - average) * duration_s < Fraction(1, 2) else average

    @property
    def default_frame_duration(self) -> int:
        """The ticks that a lone frame without a duration lasts: one period of the average rate, or a 25th of a second."""
        return max(1, round(1 / ((exact(self.stream.average_rate) or Fraction(25)) * self.time_base)))


@contextmanager
def open_video(path: Path, limits: Limits) -> Iterator[OpenVideo]:
    """Open a regular file that holds a video; raises VideoError for anything else, and for all that FFmpeg finds wrong."""
    require_regular_file(path)
    opened = False
    try:
        with open_input(f"file:{path.absolute()}", options=OPEN_OPTIONS) as container:
            opened = True
            yield OpenVideo(path, limits, container, _choose_stream(container, path, limits))
    except MemoryError as error:
        raise out_of_memory(path) from error
    except OSError as error:
        if error.errno in OF_THE_MACHINE:
            raise
        raise _cannot_open(path, error) from error
    except av.FFmpegError as error:
        if not opened and (message := _other_container(path)):
            raise VideoError("not_a_video", message) from error
        message = f"{path}: cannot be decoded ({error.strerror or error}); is it a whole video file?"
        raise VideoError("corrupt" if opened else "not_a_video", message) from error


def out_of_memory(path: Path) -> VideoError:
    """Return the error for a video that needs more memory than its decoder may have."""
    return VideoError("too_large", f"{path}: decoding it needs more memory than is allowed")


def _other_container(path: Path) -> str:
    """Say what a file is whose container is not read, and how to convert it; empty if FFmpeg does not know it either."""
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
    command, remark = remedies.conversion(path, name)
    return (
        f"{path}: is {NOT_READ[name]}, which is not read here: files of {READ_IN_WORDS} are; `{command}` converts it{remark}"
    )


def _is_animated_webp(path: Path) -> bool:
    """Return whether a WebP file has the flag of an animation in its VP8X chunk (RFC 9649, 2.7.1)."""
    with path.open("rb") as file:
        head = file.read(21)
    return head[12:16] == b"VP8X" and bool(head[20] & 2)


def require_regular_file(path: Path | str) -> os.stat_result:
    """Return the state of a file; raises VideoError unless it is regular and not empty: a pipe would be read for ever."""
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


def _choose_stream(container: av.container.InputContainer, path: Path, limits: Limits) -> av.VideoStream:
    """Return the largest video stream that is no cover picture; raises VideoError without one, or if it is too large."""
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        raise VideoError("no_video_stream", f"{path}: has no video stream")
    streams = [stream for stream in streams if stream.codec_context is not None]
    if not streams:
        raise VideoError("no_video_stream", f"{path}: its video is of a codec that FFmpeg does not know")
    stream = max(streams, key=lambda s: s.codec_context.width * s.codec_context.height)
    limits.require_size(path, stream.codec_context.width, stream.codec_context.height)
    if exact(stream.time_base) is None:
        raise VideoError("bad_times", f"{path}: the video stream has no time base, so its frames have no times")
    return stream
