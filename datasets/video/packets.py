"""The packets of a video, which tell before decoding when each frame is shown, and which frames need not be decoded.

Two kinds of packets can be left out without changing any other frame. Frames that no other refers to: in H.264 those with
nal_ref_idc 0 (ITU-T H.264, 7.4.1), in HEVC the sub-layer non-reference pictures where there is one sub-layer (ITU-T H.265,
table 7-1). And whatever follows the last wanted packet before decoding starts anew: at an IDR picture, or in codecs that
have none at a picture that by its own header refers to no other, and after which nothing earlier is shown.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import av
import numpy as np

from excl.datasets.video.backward_times import Places
from excl.datasets.video.container import OpenVideo
from excl.datasets.video.sampling import Clock

INTRA_ONLY = frozenset(("mjpeg", "prores"))
SEEKABLE = frozenset(("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"))  # reliably to the first packet
ONLY_DECODING_TIMES = frozenset(("avi",))  # containers that keep times of decoding only
H264_SLICES, H264_IDR, H264_PARAMETERS = frozenset((1, 2, 3, 4, 5)), 5, frozenset((7, 8, 13, 15))
HEVC_LAST_SLICE, HEVC_LAST_SUBLAYER_NON_REFERENCE, HEVC_IDR = 31, 14, frozenset((19, 20))
HEVC_PARAMETERS = frozenset((32, 33, 34))


@dataclass(frozen=True)
class PacketTable:
    """A stream's packets in the file's order, one a frame, as columns: pts, duration (0 if unknown), and what they are.

    `shown` is 0 where an edit list has the frame decoded but not shown; `restarts` 1 where decoding can start anew,
    `disposable` 1 where no other frame needs this one, `keys` 1 where the container says it is a key frame.
    `parameter_sets` are the different ones that packets carry (H.264 and HEVC) and the position of the first such packet.
    """

    pts: array[int] = field(default_factory=lambda: array("q"))
    duration: array[int] = field(default_factory=lambda: array("q"))
    shown: bytearray = field(default_factory=bytearray)
    keys: bytearray = field(default_factory=bytearray)
    restarts: bytearray = field(default_factory=bytearray)
    disposable: bytearray = field(default_factory=bytearray)
    parameter_sets: dict[bytes, int] = field(default_factory=dict)

    @property
    def is_steady(self) -> bool:
        """Return whether size and kind of the pictures stay the same from the first packet on, as far as packets tell."""
        return list(self.parameter_sets.values()) in ([], [0])

    def order(self) -> np.ndarray:
        """Return the positions of the packets whose frames are shown, in the order of presentation, int64 [F]."""
        positions = np.flatnonzero(np.frombuffer(self.shown, bool))
        return positions[np.argsort(np.frombuffer(self.pts, np.int64)[positions])]

    def presentation(self) -> list[int]:
        """Return the pts of the frames that are shown, in order."""
        return np.frombuffer(self.pts, np.int64)[self.order()].tolist()

    def is_ordered(self, depth: int) -> bool:
        """Return whether the times tell the order of frames from a decoder that moves them `depth` places at most.

        They do not where two are the same, a frame comes late, or the clock starts again.
        """
        places = Places(depth)
        return len(set(self.pts)) == len(self.pts) and all(places.allow(pts) for pts in self.pts)


def read_packets(video: OpenVideo) -> PacketTable | None:
    """Read the file to its end and return the table of its packets.

    None if they do not tell when each frame is shown, or are more than the frames that are allowed.
    """
    if video.container.format.name in ONLY_DECODING_TIMES:
        return None
    inspect = _inspector(video)
    table = PacketTable()
    for packet in video.demux():
        if packet.size == 0:  # the end
            continue
        if packet.pts is None or packet.is_corrupt or len(table.pts) >= video.limits.max_frames:
            return None
        restarts, disposable, parameters = inspect(packet)
        if parameters:
            table.parameter_sets.setdefault(parameters, len(table.pts))
        table.pts.append(packet.pts)
        table.duration.append(packet.duration or 0)
        table.shown.append(not packet.is_discard)
        table.keys.append(packet.is_keyframe)
        table.restarts.append(restarts)
        table.disposable.append(disposable)
    return table if any(table.shown) else None


class PlanError(Exception):
    """An error for frames or packets that differ from what the packets said before."""


@dataclass(frozen=True)
class Plan:
    """The packets that are not decoded, and what must come of the others.

    `pts` and `skip` are of all packets; `frames` are the pts of the frames that must come, in order, and `samples` how many
    samples each but the last stands for. `num_expected` counts all frames that are shown, decoded or not; `last_gap` and
    `largest_gap` are between two of them.
    """

    pts: array[int]
    skip: bytearray
    frames: array[int]
    samples: array[int]
    num_expected: int
    last_gap: int
    largest_gap: int

    @property
    def num_skipped(self) -> int:
        """The number of packets that are left out."""
        return sum(self.skip)

    def require_frame(self, index: int, *, pts: int, samples: int) -> None:
        """Raise PlanError unless the decoded frame number `index` is planned at `pts` and for so many samples."""
        if index >= len(self.samples) or (self.frames[index], self.samples[index]) != (pts, samples):
            raise PlanError(f"decoded frame {index}, at pts {pts}, stands for {samples} samples")

    def select(self, packets: Iterable[av.Packet]) -> Iterator[av.Packet]:
        """Yield those of the stream's packets that are decoded; raises PlanError where they are not the plan's."""
        for number, packet in enumerate(packets):
            if packet.size and (number >= len(self.pts) or packet.pts != self.pts[number]):
                raise PlanError(f"packet {number} has another time than before")
            if packet.size == 0 or not self.skip[number]:
                yield packet


def rewind(video: OpenVideo, table: PacketTable) -> bool:
    """Go back to the first packet, which is faster than to open the file again; returns whether that can be done."""
    if video.container.format.name not in SEEKABLE:
        return False
    try:
        video.container.seek(min(table.pts), stream=video.stream)
    except av.FFmpegError:
        return False
    return True


def make_plan(table: PacketTable, clock: Clock) -> Plan:
    """Return the plan that decodes as little as gives the same samples.

    The last frame is always decoded: its end is the video's.

    Where parameter sets change on the way everything is decoded: what is left out might carry them.
    """
    order = table.order()
    times = np.frombuffer(table.pts, np.int64)[order]
    first_samples = np.array([clock.first_sample_at(pts) for pts in times.tolist()], np.int64)
    samples = np.diff(np.concatenate([[0], first_samples[1:]]))  # of each frame but the last
    is_needed = np.zeros(len(table.pts), bool)
    is_needed[order[:-1][samples > 0]] = is_needed[order[-1]] = True
    disposable = np.frombuffer(table.disposable, bool)
    skip = np.zeros(len(table.pts), bool)
    for segment in _segments(table) if table.is_steady else ():
        run = slice(segment.start, segment.stop)
        skip[run] = disposable[run] & ~is_needed[run]
        last_needed = np.flatnonzero(is_needed[run])[-1:] + segment.start
        skip[(last_needed[0] + 1 if len(last_needed) else segment.start) : segment.stop] = True
    decoded = ~skip[order]
    gaps = np.diff(times)
    return Plan(
        pts=table.pts,
        skip=bytearray(skip.tobytes()),
        frames=array("q", times[decoded].tobytes()),
        samples=array("q", samples[decoded[:-1]].tobytes()),
        num_expected=len(order),
        last_gap=int(gaps[-1]) if len(gaps) else 0,
        largest_gap=int(gaps.max(initial=0)),
    )


def _segments(table: PacketTable) -> Iterator[range]:
    """Yield the runs of packets that need nothing from before them, in the file's order."""
    starts = [0, *(position for position, restarts in enumerate(table.restarts) if restarts and position)]
    begin = 0
    for start, end in itertools.pairwise([*starts[1:], len(table.pts)]):
        # Frames shown before the key frame that they come after refer to what was before it (an open group of pictures).
        if min(table.pts[start:end]) >= table.pts[start]:
            yield range(begin, start)
            begin = start
    yield range(begin, len(table.pts))


def _is_intra(codec: str, content: bytes) -> bool:
    """Return whether a picture refers to no other, by its own header; False for codecs whose headers are not read here."""
    if codec in INTRA_ONLY:
        return True
    if codec == "mpeg4":  # vop_start_code, then vop_coding_type: ISO/IEC 14496-2, 6.2.5
        begin = content.find(b"\0\0\1\xb6")
        return 0 <= begin < len(content) - 4 and content[begin + 4] >> 6 == 0
    if codec in {"mpeg1video", "mpeg2video"}:  # picture_start_code, temporal_reference, type 1: ISO/IEC 13818-2, 6.2.3
        begin = content.find(b"\0\0\1\0")
        return 0 <= begin < len(content) - 5 and content[begin + 5] >> 3 & 7 == 1
    if codec == "vp8":  # RFC 6386, 9.1
        return bool(content) and content[0] & 1 == 0
    if codec == "vp9":  # frame_marker 2, two bits of the profile (a third if both are set), show_existing_frame, frame_type
        bits = 0b0000_1100 if content and content[0] & 0b0011_0000 != 0b0011_0000 else 0b0000_0110
        return bool(content) and content[0] & bits == 0
    return False


class _Unit(NamedTuple):
    """A NAL unit by its header."""

    is_slice: bool
    is_idr: bool
    is_reference: bool
    is_parameters: bool


def _h264_unit(header: int) -> _Unit:
    kind = header & 0x1F
    return _Unit(kind in H264_SLICES, kind == H264_IDR, header & 0x60 != 0, kind in H264_PARAMETERS)


def _hevc_unit(header: int, *, one_sublayer: bool) -> _Unit:
    kind = header >> 1 & 0x3F
    is_reference = not (one_sublayer and kind <= HEVC_LAST_SUBLAYER_NON_REFERENCE and kind % 2 == 0)
    return _Unit(kind <= HEVC_LAST_SLICE, kind in HEVC_IDR, is_reference, kind in HEVC_PARAMETERS)


def _inspect_units(packet: av.Packet, *, length_size: int, read_header: Callable[[int], _Unit]) -> tuple[bool, bool, bytes]:
    content, parameters = bytes(packet), b""
    restarts = has_slice = has_reference = False
    for begin, end in _units(content, length_size):
        unit = read_header(content[begin])
        has_slice |= unit.is_slice
        has_reference |= unit.is_slice and unit.is_reference
        restarts |= unit.is_idr
        if unit.is_parameters:
            parameters += content[begin:end].rstrip(b"\0")
    return restarts, has_slice and not has_reference and not parameters, parameters


def _units(content: bytes, length_size: int) -> Iterator[tuple[int, int]]:
    """Yield the places of a packet's NAL units: each after its length, or (`length_size` 0) after a start code 00 00 01."""
    if length_size:
        end = 0
        while end + length_size < len(content):
            begin = end + length_size
            end = begin + int.from_bytes(content[end:begin], "big")
            yield begin, end
        return
    begin = content.find(b"\0\0\1") + 3
    while 3 <= begin < len(content):
        following = content.find(b"\0\0\1", begin)
        end = len(content) if following < 0 else following
        yield begin, end
        begin = following + 3


def _inspect_picture(packet: av.Packet, *, codec: str) -> tuple[bool, bool, bytes]:
    # The container's word for a key frame is not enough: some files call every frame one.
    return packet.is_keyframe and _is_intra(codec, bytes(packet)), False, b""


def _inspector(video: OpenVideo) -> Callable[[av.Packet], tuple[bool, bool, bytes]]:
    """Return a function that tells whether decoding restarts at a packet, whether no other needs it, and its parameters."""
    codec, head = video.codec, video.stream.codec_context.extradata or b""
    if codec == "h264":
        boxed = len(head) > 6 and head[0] == 1  # avcC, ISO/IEC 14496-15; otherwise start codes
        return partial(_inspect_units, length_size=(head[4] & 3) + 1 if boxed else 0, read_header=_h264_unit)
    if codec == "hevc":
        boxed = len(head) > 22 and head[0] == 1  # hvcC
        length_size, sublayers = ((head[21] & 3) + 1, head[21] >> 3 & 7) if boxed else (0, 0)
        read_header = partial(_hevc_unit, one_sublayer=sublayers == 1)
        return partial(_inspect_units, length_size=length_size, read_header=read_header)
    return partial(_inspect_picture, codec=codec)
