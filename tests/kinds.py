"""Kinds of videos there are, made here: every frame carries its number and three colours, and is shown at a known time."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from PIL import Image
from shared_fixtures import numbered_picture

WIDTH, HEIGHT = 256, 192
COLOURS = {(200, 60, 60): 40, (60, 200, 60): 104, (60, 60, 200): 168}  # to the left edge of its patch, 48 x 32 pixels
X264 = {"preset": "veryfast", "crf": "10"}
DAMAGED = None  # in place of the frames that are to come back: nothing is, the video is to be refused
FRAME = Fraction(1, 30)


@dataclass(frozen=True)
class Made:
    """A video: the number of the frame for every sample at 5 a second, or DAMAGED."""

    path: Path
    numbers: list[int] | None


def by_the_rule(times: list[Fraction], end: Fraction, t0: Fraction, numbers: list[int], fps: int = 5) -> list[int]:
    """Literally and slowly: for k / fps the last frame at or before it on the clock that starts at t0, or the first."""
    found = []
    for k in range(ceil(fps * (end - t0))):
        shown = [i for i, time in enumerate(times) if time - t0 <= Fraction(k, fps)]
        found.append(numbers[shown[-1] if shown else 0])
    return found


def picture(number: int) -> np.ndarray:
    """The upright picture, uint8 [192, 256, 3]."""
    content = numbered_picture(number, width=WIDTH, height=HEIGHT)
    for colour, left in COLOURS.items():
        content[8:40, left : left + 48] = colour
    return content


def write(
    path: Path,
    times: list[Fraction],
    *,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    base: Fraction = Fraction(1, 90000),
    rate: Fraction | int = 30,
    pixels: str = "yuv420p",
    size: tuple[int, int] = (WIDTH, HEIGHT),
    content: Callable[[int], np.ndarray] = picture,
    container_options: dict[str, str] | None = None,
    matrix: int | None = None,
    full: bool = False,
    aspect: Fraction | None = None,
    fields: str = "",
    edit: Callable[[list[Any]], Iterable[av.Packet]] = lambda packets: packets,
    with_sound: bool = False,
    title: str = "",
) -> Path:
    """Frame i with the picture of `content(i)`, shown at times[i]; `edit` changes the packets before they are written."""
    with av.open(str(path), "w", options=container_options or {}) as container:
        container.metadata["title"] = title
        sound: Any = container.add_stream("aac", rate=8000, layout="mono") if with_sound else None
        stream: Any = container.add_stream(codec, rate=rate, options=options if options is not None else X264)
        stream.width, stream.height = size
        stream.pix_fmt = pixels
        stream.time_base = stream.codec_context.time_base = base
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if matrix:
            stream.codec_context.colorspace = matrix
        if full:
            stream.codec_context.color_range = 2
        packets: list[av.Packet] = []
        reformatter = VideoReformatter()  # one for all frames: it takes longer to set up than to convert a frame
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(content(number), "rgb24")
            to: dict[str, Any] = {"dst_colorspace": {1: "ITU709", 5: "ITU601"}[matrix]} if matrix else {}
            to |= {"dst_color_range": 2} if full else {}
            frame = reformatter.reformat(frame, *size, format=pixels, **to)
            frame.pts, frame.time_base = round(time / base), base
            if matrix:
                frame.colorspace = matrix
            packets += stream.encode(in_fields(frame, fields) if fields else frame)
        packets += stream.encode()
        if sound is not None:
            for start in range(0, 8000 * ceil(times[-1]), 1024):
                quiet = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
                quiet.sample_rate, quiet.pts = 8000, start
                container.mux(sound.encode(quiet))
            container.mux(sound.encode())
        for packet in edit(packets):
            container.mux(packet)
    return path


def in_fields(frame: av.VideoFrame, first: str) -> av.VideoFrame:
    """The frame, said to be interlaced: "tff" or "bff"."""
    graph = av.filter.Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)
    graph.link_nodes(source, graph.add("setfield", first), graph.add("buffersink")).configure()
    graph.push(frame)
    interlaced_frame = graph.pull()
    assert isinstance(interlaced_frame, av.VideoFrame)
    return interlaced_frame


def even(count: int, rate: Fraction | int = 30, start: Fraction | int = 0) -> list[Fraction]:
    """Times at a constant rate."""
    return [Fraction(start) + number / Fraction(rate) for number in range(count)]


def uneven(count: int, start: Fraction | int = 0) -> list[Fraction]:
    """Times as of a phone that saves light: from 10 to 150 ms apart, on whole milliseconds."""
    gaps = np.random.default_rng(0).integers(10, 150, count - 1)
    return [Fraction(start) + Fraction(int(t), 1000) for t in [0, *np.cumsum(gaps)]]


def plain(
    folder: Path, name: str, times: list[Fraction], *, last: Fraction = FRAME, t0: Fraction | int = 0, **settings
) -> Made:
    """A video of whole frames in order, the last of which lasts `last` seconds."""
    path = write(folder / name, times, **settings)
    return Made(path, by_the_rule(times, times[-1] + last, Fraction(t0), list(range(len(times)))))


def av1(folder: Path) -> Made:
    """SVT-AV1 makes the thread that calls it a real-time one where it may (as root) and leaves it so: every thread that
    is started later inherits that, and OpenMP's waiting ones then keep all others from the processors for good."""
    policy, priority = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        return plain(
            folder, "a.mp4", even(60), codec="libsvtav1", options={"preset": "8", "crf": "5", "svtav1-params": "enable-tf=0"}
        )
    finally:
        os.sched_setscheduler(0, policy, priority)


def variable(folder: Path, name: str, *, start: Fraction | int = 0) -> Made:
    """The last frame of a variable rate lasts as long as the container says, which depends on the container."""
    times = uneven(60, start)
    path = write(folder / name, times, base=Fraction(1, 1000))
    with av.open(str(path)) as container:
        packets: list[Any] = [p for p in container.demux(video=0) if p.size]
    last = max(packets, key=lambda p: p.pts)
    ends = times[-1] + (last.duration * last.time_base or times[-1] - times[-2])
    return Made(path, by_the_rule(times, ends, Fraction(start), list(range(60))))


def transport_stream(folder: Path, *, b_frames: int, drop_times: bool = False) -> Made:
    times = even(90, start=Fraction(126001, 90000))
    made = plain(folder, "a.ts", times, t0=times[0], options={**X264, "bf": str(b_frames)})
    if drop_times:
        made.path.write_bytes(without_some_pts(made.path.read_bytes()))
    return made


def without_some_pts(content: bytes) -> bytes:
    """Every third packetised stream's time as stuffing (ISO/IEC 13818-1, 2.4.3.7), but for those with a time of decoding."""
    changed, at, count = bytearray(content), 0, 0
    while (at := changed.find(b"\0\0\1\xe0", at + 1)) >= 0:
        count += 1
        if changed[at + 7] >> 6 == 2 and count % 3 == 0:
            changed[at + 7] &= 0x3F
            changed[at + 9 : at + 14] = b"\xff" * 5
    return bytes(changed)


def edit_list(folder: Path) -> Made:
    """Cut without encoding, as with `-ss -c copy`: 17 frames come before the edit's beginning and are hidden."""

    def earlier(packets):
        for packet in packets:
            packet.pts -= 17 * 3000
            packet.dts -= 17 * 3000
            yield packet

    path = write(folder / "a.mp4", even(90), edit=earlier, options={**X264, "bf": "2"})
    return Made(path, by_the_rule(even(73), even(74)[-1], Fraction(0), list(range(17, 90))))


def negative(folder: Path) -> Made:
    """A first time below zero where no edit list can hide it: time 0 is the container's start, so the first frame's."""

    def earlier(packets):
        for packet in packets:
            packet.pts -= 45000
            packet.dts -= 45000
            yield packet

    path = write(folder / "a.mkv", even(90), edit=earlier, options={**X264, "bf": "0"}, base=Fraction(1, 90000),
                 container_options={"avoid_negative_ts": "disabled"})  # fmt: skip
    with av.open(str(path)) as container:  # whole milliseconds, and what the container makes of them
        frames: list[Any] = [frame for frame in container.decode(video=0) if frame.pts is not None]
        start = Fraction(container.start_time or 0, 10**6)
    times = [frame.pts * frame.time_base for frame in frames]
    numbers = list(range(90 - len(times), 90))
    return Made(path, by_the_rule(times, times[-1] + FRAME, start, numbers))


def late_video(folder: Path) -> Made:
    """Sound from 0, pictures from 0.75 s: the first stands until then."""
    times = even(90, start=Fraction(3, 4))
    return plain(folder, "a.mp4", times, t0=0, with_sound=True)


def streams(folder: Path, *, cover: bool) -> Made:
    """A larger picture that is a cover, or a smaller video, before the video that is meant."""
    path = folder / ("cover.mp4" if cover else "two.mkv")
    with av.open(str(path), "w") as container:
        other = container.add_stream("mjpeg" if cover else "libx264", rate=30)
        other.width, other.height = (512, 512) if cover else (64, 48)
        other.pix_fmt = "yuvj420p" if cover else "yuv420p"
        stream = container.add_stream("libx264", rate=30, options=X264)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        if cover:
            other.disposition = Disposition.attached_pic
        for number in range(60):
            for target in (other, stream):
                if target is other and cover and number:
                    continue
                frame = av.VideoFrame.from_ndarray(picture(number if target is stream else 4095), "rgb24")
                frame.pts, frame.time_base = number, FRAME
                container.mux(target.encode(frame))
        for target in (other, stream):
            container.mux(target.encode())
    return Made(path, by_the_rule(even(60), Fraction(2), Fraction(0), list(range(60))))


def turned(folder: Path, degrees: int) -> Made:
    """Held as a phone is, with the turn back in the display matrix."""
    size = (HEIGHT, WIDTH) if degrees % 180 else (WIDTH, HEIGHT)

    def content(number):
        return np.ascontiguousarray(np.rot90(picture(number), degrees // 90))

    made = plain(folder, "a.mp4", even(60), size=size, content=content)
    turn_by_display_matrix(made.path, degrees)
    return made


def turn_by_display_matrix(path: Path, degrees: int) -> None:
    """Turn a picture clockwise as phones do it, in the track's header, which the encoder knows nothing of."""
    one = 1 << 16
    matrix = {90: (0, one, 0, -one, 0, 0, 0, 0, 1 << 30), 180: (-one, 0, 0, 0, -one, 0, 0, 0, 1 << 30),
              270: (0, -one, 0, one, 0, 0, 0, 0, 1 << 30)}[degrees]  # fmt: skip
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 4 + 20 + 16  # version and flags, five times and ids (version 0), layer to reserved
    content[at : at + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(content)


def interlaced(folder: Path, first: str) -> Made:
    """Each frame is two moments: the field shown first carries 2i, the other 2i + 1."""

    def content(number):
        frame, later = picture(2 * number), picture(2 * number + 1)
        lines = slice(1, None, 2) if first == "top" else slice(0, None, 2)
        frame[lines] = later[lines]
        return frame

    options = {**X264, "bf": "0", "flags": "+ildct+ilme"}
    fields = "tff" if first == "top" else "bff"
    path = write(folder / "a.mkv", even(50, 25), rate=25, options=options, content=content, base=Fraction(1, 1000),
                 fields=fields)  # fmt: skip
    return Made(path, by_the_rule(even(50, 25), Fraction(2), Fraction(0), list(range(0, 100, 2))))


def size_change(folder: Path) -> Made:
    path = folder / "change.ts"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={**X264, "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for part, scale in enumerate((1, 2)):
            encoder = av.CodecContext.create("libx264", "w")
            encoder.width, encoder.height, encoder.pix_fmt = scale * WIDTH, scale * HEIGHT, "yuv420p"
            encoder.time_base, encoder.framerate = Fraction(1, 25), Fraction(25)
            encoder.options = {**X264, "bf": "0", "tune": "zerolatency"}
            for number in range(25 * part, 25 * part + 25):
                frame = av.VideoFrame.from_ndarray(picture(number), "rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 25)
                for packet in encoder.encode(frame):
                    packet.stream = stream
                    container.mux(packet)
    return Made(path, by_the_rule(even(50, 25), Fraction(2), Fraction(0), list(range(50))))


def headless(folder: Path) -> Made:
    """Cut out of a stream in the middle of a group of pictures: the first 20 frames refer to nothing, the 21st stands."""
    options = {**X264, "g": "30", "bf": "0", "x264-params": "scenecut=0"}
    path = write(folder / "a.mp4", even(90), options=options, edit=lambda packets: packets[10:])
    return Made(path, by_the_rule(even(60, start=1), Fraction(3), Fraction(1, 3), list(range(30, 90))))


def claims(folder: Path, factor: Fraction) -> Made:
    """Every duration in an mp4's headers times `factor`: movie, track and media (version 0 of each)."""
    made = plain(folder, "a.mp4", even(90), with_sound=False)
    content = bytearray(made.path.read_bytes())
    for box, offset in ((b"mvhd", 20), (b"tkhd", 24), (b"mdhd", 20)):
        at = content.index(box) + offset
        [duration] = struct.unpack(">I", content[at : at + 4])
        content[at : at + 4] = struct.pack(">I", round(duration * factor))
    made.path.write_bytes(content)
    return made


def all_called_keys(folder: Path) -> Made:
    """An mp4 without the list of its key frames, which by the format makes every frame one."""
    made = plain(folder, "a.mp4", even(90), codec="mpeg4", base=FRAME, options={"b": "2M", "bf": "0", "g": "30"})
    made.path.write_bytes(made.path.read_bytes().replace(b"stss", b"free"))
    return made


def with_odd_title(folder: Path) -> Made:
    """A title in Latin-1, where Matroska wants UTF-8."""
    made = plain(folder, "a.mkv", even(60), title="cafe of old")
    made.path.write_bytes(made.path.read_bytes().replace(b"cafe of old", b"caf\xe9 of old"))
    return made


def lying_avi(folder: Path) -> Made:
    """The header of an AVI with five times the number of frames (in both places): as if it were cut short."""
    made = plain(folder, "a.avi", even(90, 30), base=FRAME, codec="mpeg4", options={"b": "2M", "bf": "0"})
    content = bytearray(made.path.read_bytes())
    for box, offset in ((b"avih", 24), (b"strh", 40)):
        at = content.index(box) + offset
        content[at : at + 4] = struct.pack("<I", 450)
    made.path.write_bytes(content)
    return Made(made.path, DAMAGED)


def cut(folder: Path, name: str) -> Made:
    path = write(folder / name, even(90), container_options={"movflags": "faststart"} if name.endswith("mp4") else {})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return Made(path, DAMAGED)


def noisy(folder: Path) -> Made:
    path = write(folder / "a.mp4", even(90), container_options={"movflags": "faststart"}, options={**X264, "g": "10"})
    content = bytearray(path.read_bytes())
    at = len(content) // 2
    content[at : at + len(content) // 6] = np.random.default_rng(0).bytes(len(content) // 6)
    path.write_bytes(content)
    return Made(path, DAMAGED)


def late_frame(folder: Path) -> Made:
    """From frame 40 on every frame is shown 70 ms earlier than by its place, so that the first of them comes late."""

    def earlier(packets):
        for number, packet in enumerate(packets):
            packet.pts -= 70 * (number >= 40)
            packet.dts = 0
            yield packet

    return Made(
        write(folder / "a.mkv", even(90), base=Fraction(1, 1000), options={**X264, "bf": "0"}, edit=earlier), DAMAGED
    )


def two_recordings(folder: Path, start: int) -> Made:
    """Transport streams one after the other in one file, the second of which starts at 0."""
    path = folder / "a.ts"
    parts = [write(path, even(60, start=first), options={**X264, "bf": "0"}).read_bytes() for first in (start, 0)]
    path.write_bytes(b"".join(parts))
    return Made(path, DAMAGED)


def first_frame_of_avi(folder: Path) -> Made:
    """AVI has no times of presentation. FFmpeg takes those of decoding, in which B-frames come a frame later."""
    path = write(folder / "a.avi", even(90), base=FRAME, options={**X264, "bf": "2"})
    with av.open(str(path)) as container:
        frames: list[Any] = list(container.decode(video=0))
        start = Fraction(container.start_time or 0, 10**6)
    times = sorted(frame.pts * frame.time_base for frame in frames)
    return Made(path, by_the_rule(times, times[-1] + FRAME, start, list(range(90))))


def gif(folder: Path, *, hole: bool = False) -> Made:
    """Frames of 30 to 150 ms, in hundredths of a second; with a hole, which has no colour, in each picture's corner."""
    lasts_s = [Fraction(int(gap), 100) for gap in np.random.default_rng(0).integers(3, 15, 40)]
    times = [sum(lasts_s[:number], Fraction(0)) for number in range(40)]
    pictures = [Image.fromarray(picture(number)).quantize(16, dither=Image.Dither.NONE) for number in range(40)]
    if hole:
        for one in pictures:
            one.paste(15, (0, HEIGHT - 20, 20, HEIGHT))
    settings: dict[str, Any] = {"transparency": 15} if hole else {}
    durations = [round(1000 * seconds) for seconds in lasts_s]
    path = folder / "a.gif"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations, loop=0, **settings)
    return Made(path, by_the_rule(times, times[-1] + lasts_s[-1], Fraction(0), list(range(40))))


OPEN = "open-gop=1:keyint=12:min-keyint=12"
REALTIME = {"deadline": "realtime", "cpu-used": "8", "b": "2M"}
KINDS: dict[str, Callable[[Path], Made]] = {
    "H.264, B-frames, 30 a second": lambda f: plain(f, "a.mp4", even(90), options={**X264, "bf": "3"}),
    "H.264, 25 a second, Matroska": lambda f: plain(f, "a.mkv", even(75, 25), rate=25, base=Fraction(1, 1000),
                                                    last=Fraction(1, 25)),
    "23.976 a second": lambda f: plain(f, "a.mp4", even(90, Fraction(24000, 1001)), rate=Fraction(24000, 1001),
                                       base=Fraction(1, 24000), last=Fraction(1001, 24000)),
    "29.97 a second": lambda f: plain(f, "a.mp4", even(90, Fraction(30000, 1001)), rate=Fraction(30000, 1001),
                                      base=Fraction(1, 30000), last=Fraction(1001, 30000)),
    "60 a second": lambda f: plain(f, "a.mp4", even(120, 60), rate=60, last=Fraction(1, 60)),
    "3 a second, slower than sampled": lambda f: plain(f, "a.mp4", even(12, 3), rate=3, last=Fraction(1, 3)),
    "one frame": lambda f: plain(f, "a.mp4", even(1)),
    "variable rate, mp4": lambda f: variable(f, "a.mp4"),
    "variable rate, Matroska": lambda f: variable(f, "a.mkv"),
    "Matroska that starts at 0.1 s": lambda f: variable(f, "a.mkv", start=Fraction(1, 10)),
    "five seconds without a frame": lambda f: plain(f, "a.mp4", [*even(30), *even(30, start=6)]),
    "transport stream, starts at 1.4 s": lambda f: transport_stream(f, b_frames=0),
    "transport stream, B-frames": lambda f: transport_stream(f, b_frames=3),
    "transport stream, times missing": lambda f: transport_stream(f, b_frames=0, drop_times=True),
    "edit list that hides frames": edit_list,
    "first time negative": negative,
    "video starts after the sound": late_video,
    "fragmented mp4": lambda f: plain(f, "a.mp4", even(90), options={**X264, "g": "15"},
                                      container_options={"movflags": "frag_keyframe+empty_moov+default_base_moof"}),
    "AVI, MPEG-4": lambda f: plain(f, "a.avi", even(90), base=FRAME, codec="mpeg4", options={"b": "2M", "bf": "0"}),
    "AVI, H.264 with B-frames": first_frame_of_avi,
    "open groups of pictures": lambda f: plain(f, "a.mp4", even(90), options={**X264, "bf": "3", "x264-params": OPEN}),
    "intra refresh, one key frame": lambda f: plain(f, "a.mp4", even(90),
                                                    options={**X264, "x264-params": "intra-refresh=1"}),
    "HEVC": lambda f: plain(f, "a.mp4", even(90), codec="libx265",
                            options={"preset": "ultrafast", "crf": "10", "x265-params": "log-level=error"}),
    "HEVC, 10 bit": lambda f: plain(f, "a.mp4", even(90), codec="libx265", pixels="yuv420p10le",
                                    options={"preset": "ultrafast", "crf": "10", "x265-params": "log-level=error"}),
    "VP8": lambda f: plain(f, "a.webm", even(75, 25), codec="libvpx", options=REALTIME, rate=25, base=Fraction(1, 1000),
                           last=Fraction(1, 25)),
    "VP9": lambda f: plain(f, "a.webm", even(75, 25), codec="libvpx-vp9", options=REALTIME, rate=25, base=Fraction(1, 1000),
                           last=Fraction(1, 25)),
    "VP9, 4:4:4, odd size": lambda f: plain(f, "a.webm", even(75, 25), codec="libvpx-vp9", pixels="yuv444p", rate=25,
                                            options={**REALTIME, "b": "8M"}, base=Fraction(1, 1000), size=(257, 193),
                                            last=Fraction(1, 25)),
    "AV1": av1,
    "MPEG-4 with B-frames": lambda f: plain(f, "a.mp4", even(90), codec="mpeg4", base=FRAME,
                                            options={"b": "2M", "bf": "2"}),
    "MPEG-2, programme stream": lambda f: plain(f, "a.mpg", even(75, 25), codec="mpeg2video", rate=25, last=Fraction(1, 25),
                                                options={"b": "4M", "bf": "2"}, base=Fraction(1, 25)),
    "WMV": lambda f: plain(f, "a.wmv", even(75, 25), codec="wmv2", options={"b": "2M"}, rate=25, base=Fraction(1, 25),
                           last=Fraction(1, 25)),
    "FLV": lambda f: plain(f, "a.flv", even(75, 25), rate=25, base=Fraction(1, 1000), options={**X264, "bf": "2"},
                           last=Fraction(1, 25)),
    "GIF, variable delays": gif,
    "GIF with transparent parts": lambda f: gif(f, hole=True),
    "two video streams, the larger second": lambda f: streams(f, cover=False),
    "cover picture": lambda f: streams(f, cover=True),
    "turned by 90 degrees": lambda f: turned(f, 90),
    "turned by 180 degrees": lambda f: turned(f, 180),
    "pixels of 2:1": lambda f: plain(f, "a.mp4", even(60), size=(WIDTH // 2, HEIGHT), aspect=Fraction(2)),
    "interlaced, top field first": lambda f: interlaced(f, "top"),
    "interlaced, bottom field first": lambda f: interlaced(f, "bottom"),
    "full range": lambda f: plain(f, "a.mp4", even(60), pixels="yuvj420p", matrix=5, full=True),
    "BT.709": lambda f: plain(f, "a.mp4", even(60), matrix=1),
    "BT.709, full range": lambda f: plain(f, "a.mp4", even(60), matrix=1, full=True, pixels="yuvj420p"),
    "a size that changes": size_change,
    "claims a third of its duration": lambda f: claims(f, Fraction(1, 3)),
    "claims three times its duration": lambda f: claims(f, Fraction(3)),
    "AVI that claims five times its frames": lying_avi,
    "every frame called a key frame": all_called_keys,
    "a title that is not UTF-8": with_odd_title,
    "begins without a key frame": headless,
    "cut short, mp4": lambda f: cut(f, "a.mp4"),
    "cut short, Matroska": lambda f: cut(f, "a.mkv"),
    "noise in the middle": noisy,
    "a frame that comes late": late_frame,
    "a clock that starts again": lambda f: two_recordings(f, 0),
    "a clock that starts again 100 s earlier": lambda f: two_recordings(f, 100),
}  # fmt: skip
