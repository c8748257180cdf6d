"""Opens one video and gives the frames on screen at t = 0, 1/fps, 2/fps, … seconds of its presentation.

Frame k is the last frame whose presentation time is at or before k/fps on the player's clock: the clock starts at t0, the
container's start time. Before the first frame's own time the first frame stands. There are T = ceil(fps · (end - t0)) of
them, where end is the last frame's time and duration. All of it is compared in integers of the stream's time base:
in floats 0.6 < 3/5, and every such slip is a wrong frame.

Frames are decoded one after another on one thread and only those that are kept are converted, so memory is bounded by the
decoder's own buffers. Rotation (display matrix) and non-square pixels are applied. The short side is scaled to `short_side`
(bilinear), then the centre `crop` x `crop` is cut out at round((size - crop) / 2), halves to even as torchvision and the
public I3D port do.
"""

from __future__ import annotations

import heapq
import math
import os
import re
import stat
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import av.container
import av.video.reformatter
import numpy as np

VIDEO_SUFFIXES = frozenset((
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".flv", ".wmv", ".asf",
    ".3gp", ".3g2", ".ogv", ".ogg",
))  # fmt: skip
# A script named .mp4 must not make the decoder open another file or a socket.
OPEN_OPTIONS = {
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg",
    "protocol_whitelist": "file",
}
MAX_REORDERED = 16  # frames; the most that H.264 and HEVC allow
MAX_SHARE_MISSING = 0.1  # of the claimed duration; containers round, and some are wrong by a little


class VideoError(ValueError):
    """A file that is no video, or whose frames cannot all be had; says which and why."""


@dataclass(frozen=True)
class Geometry:
    """What of a picture is kept: its short side scaled to `short_side` pixels, then a centred square of `crop` pixels."""

    short_side: int = 256
    crop: int = 224

    def __post_init__(self) -> None:
        if not 0 < self.crop <= self.short_side:
            raise ValueError(f"crop: {self.crop} pixels do not fit into a short side of {self.short_side}")


@dataclass(frozen=True)
class VideoFacts:
    """What is known of a video once all of it was sampled.

    `t0_s` is the container's start time, from which all other times count; `duration_s` the end of the last frame by
    decoding; `container_duration_s` what the container claims (None if nothing); `num_frames` the number of samples.
    """

    num_frames: int
    fps: float
    t0_s: float
    duration_s: float
    container_duration_s: float | None
    frames_decoded: int
    width: int
    height: int
    codec: str


class SampledVideo:
    """One pass over a video: iterating gives uint8 RGB frames [crop, crop, 3]; `facts` is there when the pass is over.

    Raises VideoError for what is no readable file, no video, or damaged.
    """

    def __init__(self, path: Path, *, fps: float, geometry: Geometry) -> None:
        self.path = path
        self.fps = Fraction(str(fps))
        self.geometry = geometry
        self._facts: VideoFacts | None = None

    @property
    def facts(self) -> VideoFacts:
        """The facts, known once iteration has come to its end."""
        assert self._facts is not None, "the video has not been read to its end"
        return self._facts

    def __iter__(self) -> Iterator[np.ndarray]:
        try:
            require_regular_file(self.path)
            with av.open(f"file:{self.path.absolute()}", options=OPEN_OPTIONS) as container:
                yield from self._sample(container)
        except (av.FFmpegError, OSError) as error:
            reason = error.strerror or type(error).__name__
            raise VideoError(f"{self.path}: cannot be decoded ({reason}); is it a whole video file?") from error

    def _sample(self, container: av.container.InputContainer) -> Iterator[np.ndarray]:
        stream, t0 = _choose_stream(container, self.path), _start_time(container)
        clock = _Clock(self.fps, t0, _time_base(stream, self.path))
        converter = _Converter(self.geometry, pixel_aspect=stream.sample_aspect_ratio or Fraction(1))
        shown: av.VideoFrame | None = None
        shown_pts = 0
        picture: np.ndarray | None = None  # the shown frame converted, once it is known to be kept
        k = decoded = last_gap = 0
        for pts, frame in _timed_frames(container, stream, self.path):
            decoded += 1
            if shown is not None:
                while clock.last_pts_shown_at(k) < pts:  # at k / fps the next frame is not on screen yet
                    picture = converter(shown) if picture is None else picture
                    yield picture
                    k += 1
                last_gap = pts - shown_pts
            shown, shown_pts, picture = frame, pts, None
        if shown is None:
            claim = f"{stream.frames} frames" if stream.frames else "nothing about frames"
            raise VideoError(f"{self.path}: decoded 0 frames with a time, the container says {claim}; is it cut short?")
        end = clock.seconds(shown_pts + (shown.duration or last_gap or _frame_gap(stream)))
        if end <= 0:
            raise VideoError(f"{self.path}: the pictures end {float(end):.3f} s after the presentation's start")
        _require_whole(container, stream, float(end), self.path)
        picture = converter(shown) if picture is None else picture
        while k < math.ceil(self.fps * end):
            yield picture
            k += 1
        self._facts = VideoFacts(
            num_frames=k,
            fps=float(self.fps),
            t0_s=float(t0),
            duration_s=float(end),
            container_duration_s=container.duration / av.time_base if container.duration else None,
            frames_decoded=decoded,
            width=stream.codec_context.width,
            height=stream.codec_context.height,
            codec=stream.codec_context.name,
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


def find_videos(source: Path) -> dict[str, Path]:
    """Video id (the file's stem) to path, sorted by id, for a folder (searched recursively) or one file.

    Raises ValueError for a folder without videos and for two files that would share an id.
    """
    if source.is_file():
        return {source.stem: source}
    if not source.is_dir():
        raise FileNotFoundError(f"{source}: there is no such file or folder of videos")
    found: dict[str, Path] = {}
    for path in sorted(p for p in source.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES):
        if path.stem in found:
            raise ValueError(f"{found[path.stem]} and {path} share the id {path.stem!r}; rename one of them")
        found[path.stem] = path
    if not found:
        raise ValueError(f"{source}: no videos there (looked for {' '.join(sorted(VIDEO_SUFFIXES))})")
    return dict(sorted(found.items()))


def require_regular_file(path: Path) -> None:
    """VideoError unless `path` is a file with something in it; a pipe, for one, would be read for ever."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise VideoError(f"{path}: cannot be opened ({error.strerror})") from error
    if not stat.S_ISREG(status.st_mode):
        raise VideoError(f"{path}: not a regular file")
    if status.st_size == 0:
        raise VideoError(f"{path}: an empty file")


def _choose_stream(container: av.container.InputContainer, path: Path) -> av.VideoStream:
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        raise VideoError(f"{path}: has no video stream")
    return max(streams, key=lambda s: s.codec_context.width * s.codec_context.height)


def _time_base(stream: av.VideoStream, path: Path) -> Fraction:
    if stream.time_base is None:
        raise VideoError(f"{path}: the video stream has no time base, so its frames have no times")
    return stream.time_base


def _timed_frames(
    container: av.container.InputContainer, stream: av.VideoStream, path: Path
) -> Iterator[tuple[int, av.VideoFrame]]:
    """The stream's frames that have a time, with it, each later than the one before; VideoError where time goes back."""
    stream.thread_type, stream.thread_count = "SLICE", 1
    frames = ((frame.pts, frame) for frame in container.decode(stream) if frame.pts is not None)
    last: int | None = None
    for pts, frame in _retimed(frames) if container.format.name == "avi" else frames:
        if last is not None and pts <= last:
            raise VideoError(f"{path}: time goes back, from pts {last} to {pts}; remux the file with correct times")
        last = pts
        yield pts, frame


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


def _start_time(container: av.container.InputContainer) -> Fraction:
    """The container's start time in seconds, exact.

    FFmpeg rounds it to microseconds; the stream that it was taken from has it in its own time base, and the difference
    would move every frame that lies exactly on a sampling time.
    """
    if container.start_time is None:
        return Fraction(0)
    rounded = Fraction(container.start_time, av.time_base)
    exact = [
        s.start_time * s.time_base
        for s in (*container.streams.video, *container.streams.audio)
        if s.start_time is not None and s.time_base is not None
    ]
    return next((time for time in exact if abs(time - rounded) <= Fraction(1, av.time_base)), rounded)


def _require_whole(container: av.container.InputContainer, stream: av.VideoStream, duration_s: float, path: Path) -> None:
    """VideoError if the pictures end long before they should by what the file says of the video stream."""
    claimed = _claimed_duration_s(container, stream)
    if claimed is not None and duration_s < (1 - MAX_SHARE_MISSING) * claimed:
        raise VideoError(
            f"{path}: decoded {duration_s:.1f} s of pictures, the file says {claimed:.1f} s; it may be cut short"
        )


def _claimed_duration_s(container: av.container.InputContainer, stream: av.VideoStream) -> float | None:
    """How long the video stream is by the container; None if it does not say (the container's end may be the sound's)."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    tag = re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", ""))  # Matroska
    if tag:
        return int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3])
    if container.duration and not container.streams.audio:
        return container.duration / av.time_base
    return None


def _frame_gap(stream: av.VideoStream) -> int:
    """A lone frame without a duration lasts one period of the average rate, or a 25th of a second."""
    assert stream.time_base is not None
    return max(1, round(1 / ((stream.average_rate or Fraction(25)) * stream.time_base)))


class _Converter:
    """A decoded frame to uint8 RGB [crop, crop, 3]: upright, square pixels, scaled, cropped."""

    def __init__(self, geometry: Geometry, *, pixel_aspect: Fraction) -> None:
        self.geometry = geometry
        self.pixel_aspect = pixel_aspect
        self.reformatter = av.video.reformatter.VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        width, height = _scaled_size(frame.width * self.pixel_aspect, frame.height, self.geometry.short_side)
        scaled = self.reformatter.reformat(frame, width, height, "rgb24", interpolation="BILINEAR").to_ndarray()
        upright = np.rot90(scaled, k=round(frame.rotation / 90)) if frame.rotation else scaled  # [H, W, 3]
        crop = self.geometry.crop
        top, left = (round((size - crop) / 2) for size in upright.shape[:2])
        return np.ascontiguousarray(upright[top : top + crop, left : left + crop])


def _scaled_size(width: float | Fraction, height: float, short_side: int) -> tuple[int, int]:
    scale = Fraction(short_side) / Fraction(min(width, height))
    return max(short_side, round(width * scale)), max(short_side, round(height * scale))
