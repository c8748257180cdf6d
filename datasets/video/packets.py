"""What a video's packets say before any of them is decoded: when each frame is shown, and which need not be decoded.

Two kinds of packets can be left out without changing any other frame. Frames that no other refers to: in H.264 those with
nal_ref_idc 0 (ITU-T H.264, 7.4.1), in HEVC the sub-layer non-reference pictures where there is one sub-layer (ITU-T H.265,
table 7-1). And whatever follows the last wanted packet before decoding starts anew: at an IDR picture, or in codecs that
have none at a picture that by its own header refers to no other, and after which nothing earlier is shown.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import av
import av.container
import numpy as np

from excl.datasets.video.container import codec_name, demux
from excl.datasets.video.sampling import Clock
from excl.datasets.video.timeline import Places

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
        """Whether size and kind of the pictures stay as they are from the first packet on, as far as packets tell."""
        return list(self.parameter_sets.values()) in ([], [0])

    def order(self) -> np.ndarray:
        """The positions of the packets whose frames are shown, in the order of presentation, int64 [F]."""
        positions = np.flatnonzero(np.frombuffer(self.shown, bool))
        return positions[np.argsort(np.frombuffer(self.pts, np.int64)[positions])]

    def presentation(self) -> list[int]:
        """The pts of the frames that are shown, in order."""
        return np.frombuffer(self.pts, np.int64)[self.order()].tolist()

    def is_ordered(self, depth: int) -> bool:
        """Whether the times tell in which order frames come from a decoder that puts them `depth` places back at most.

        They do not where two are the same, a frame comes late, or the clock starts again.
        """
        places = Places(depth)
        return len(set(self.pts)) == len(self.pts) and all(places.allow(pts) for pts in self.pts)


def read_packets(container: av.container.InputContainer, stream: av.VideoStream, *, max_packets: int) -> PacketTable | None:
    """The table of a stream's packets, from a file that is read to its end.

    None if they do not tell when each frame is shown, or are more than `max_packets`.
    """
    if container.format.name in ONLY_DECODING_TIMES:
        return None
    kinds = _reader_of_kinds(stream)
    table = PacketTable()
    for packet in demux(container, stream):
        if packet.size == 0:  # the end
            continue
        if packet.pts is None or packet.is_corrupt or len(table.pts) >= max_packets:
            return None
        restarts, disposable = kinds(packet, table)
        table.pts.append(packet.pts)
        table.duration.append(packet.duration or 0)
        table.shown.append(not packet.is_discard)
        table.keys.append(packet.is_keyframe)
        table.restarts.append(restarts)
        table.disposable.append(disposable)
    return table if any(table.shown) else None


class PlanError(Exception):
    """The packets said something else than what comes now."""


@dataclass(frozen=True)
class Plan:
    """Which packets are not decoded, and what must come of the rest.

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
        """How many packets are left out."""
        return sum(self.skip)

    def require(self, index: int, *, pts: int, samples: int) -> None:
        """PlanError if the decoded frame number `index` is not at `pts` and stands for so many samples."""
        if index >= len(self.samples) or (self.frames[index], self.samples[index]) != (pts, samples):
            raise PlanError(f"decoded frame {index}, at pts {pts}, stands for {samples} samples")

    def kept(self, packets: Iterable[av.Packet]) -> Iterator[av.Packet]:
        """Of the stream's packets those to decode; PlanError where they are not the ones of the plan."""
        expected = len(self.pts)
        for number, packet in enumerate(packets):
            if packet.size and (number >= expected or packet.pts != self.pts[number]):
                raise PlanError(f"packet {number} has another time than before")
            if packet.size == 0 or not self.skip[number]:
                yield packet


def rewind(container: av.container.InputContainer, stream: av.VideoStream, table: PacketTable) -> bool:
    """Back to the first packet, which is faster than to open the file again; whether that can be done."""
    if container.format.name not in SEEKABLE:
        return False
    try:
        container.seek(min(table.pts), stream=stream)
    except av.FFmpegError:
        return False
    return True


def make_plan(table: PacketTable, clock: Clock) -> Plan:
    """The plan that decodes as little as gives the same samples. The last frame is always decoded: its end is the video's.

    Where parameter sets change on the way everything is decoded: what is left out might carry them.
    """
    order = table.order()
    times = np.frombuffer(table.pts, np.int64)[order]
    first_samples = np.array([clock.first_sample_at(pts) for pts in times.tolist()], np.int64)
    samples = np.diff(np.concatenate([[0], first_samples[1:]]))  # of each frame but the last
    wanted = np.zeros(len(table.pts), bool)
    wanted[order[:-1][samples > 0]] = wanted[order[-1]] = True
    disposable = np.frombuffer(table.disposable, bool)
    skip = np.zeros(len(table.pts), bool)
    for segment in _segments(table) if table.is_steady else ():
        run = slice(segment.start, segment.stop)
        skip[run] = disposable[run] & ~wanted[run]
        last_wanted = np.flatnonzero(wanted[run])[-1:] + segment.start
        skip[(last_wanted[0] + 1 if len(last_wanted) else segment.start) : segment.stop] = True
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
    """Runs of packets that need nothing from before them, in the file's order."""
    starts = [0, *(position for position, restarts in enumerate(table.restarts) if restarts and position)]
    begin = 0
    for start, end in itertools.pairwise([*starts[1:], len(table.pts)]):
        # Frames shown before the key frame that they come after refer to what was before it (an open group of pictures).
        if min(table.pts[start:end]) >= table.pts[start]:
            yield range(begin, start)
            begin = start
    yield range(begin, len(table.pts))


class _Kinds:
    """Tells of a packet whether decoding restarts at it and whether no other needs it; for a stream without NAL units.

    The container's word for a key frame is not enough: some files call every frame one.
    """

    def __init__(self, codec: str) -> None:
        self.codec = codec

    def __call__(self, packet: av.Packet, table: PacketTable) -> tuple[bool, bool]:  # noqa: ARG002
        return packet.is_keyframe and _is_intra(self.codec, bytes(packet)), False


def _is_intra(codec: str, content: bytes) -> bool:
    """Whether the picture refers to no other, by its own header; False for codecs of which this is not known here."""
    if codec in INTRA_ONLY:
        return True
    if codec == "mpeg4":  # vop_start_code, then vop_coding_type: ISO/IEC 14496-2, 6.2.5
        at = content.find(b"\0\0\1\xb6")
        return 0 <= at < len(content) - 4 and content[at + 4] >> 6 == 0
    if codec in {"mpeg1video", "mpeg2video"}:  # picture_start_code, temporal_reference, type 1: ISO/IEC 13818-2, 6.2.3
        at = content.find(b"\0\0\1\0")
        return 0 <= at < len(content) - 5 and content[at + 5] >> 3 & 7 == 1
    if codec == "vp8":  # RFC 6386, 9.1
        return bool(content) and content[0] & 1 == 0
    if codec == "vp9":  # frame_marker 2, two bits of the profile (a third if both are set), show_existing_frame, frame_type
        bits = 0b0000_1100 if content and content[0] & 0b0011_0000 != 0b0011_0000 else 0b0000_0110
        return bool(content) and content[0] & bits == 0
    return False


class _KindsByUnits:
    """The same for H.264 and HEVC, by the headers of the NAL units in the packet."""

    def __init__(self, *, length_size: int, hevc: bool, one_sublayer: bool) -> None:
        self.length_size, self.hevc, self.one_sublayer = length_size, hevc, one_sublayer

    def __call__(self, packet: av.Packet, table: PacketTable) -> tuple[bool, bool]:
        content = bytes(packet)
        restarts = False
        slices = references = 0
        parameters = b""
        for begin, end in _units(content, self.length_size):
            header = content[begin]
            if self.hevc:
                kind = header >> 1 & 0x3F
                is_slice, is_idr = kind <= HEVC_LAST_SLICE, kind in HEVC_IDR
                is_reference = not (self.one_sublayer and kind <= HEVC_LAST_SUBLAYER_NON_REFERENCE and kind % 2 == 0)
                is_parameters = kind in HEVC_PARAMETERS
            else:
                kind = header & 0x1F
                is_slice, is_idr, is_parameters = kind in H264_SLICES, kind == H264_IDR, kind in H264_PARAMETERS
                is_reference = header & 0x60 != 0
            slices += is_slice
            references += is_slice and is_reference
            restarts |= is_idr
            if is_parameters:
                parameters += content[begin:end].rstrip(b"\0")
        if parameters:
            table.parameter_sets.setdefault(parameters, len(table.pts))
        return restarts, slices > 0 and references == 0 and not parameters


def _units(content: bytes, length_size: int) -> Iterator[tuple[int, int]]:
    """Where the NAL units of a packet are: each after its length, or (`length_size` 0) after a start code 00 00 01."""
    if length_size:
        at = 0
        while at + length_size < len(content):
            begin = at + length_size
            at = begin + int.from_bytes(content[at:begin], "big")
            yield begin, at
        return
    begin = content.find(b"\0\0\1") + 3
    while 3 <= begin < len(content):
        following = content.find(b"\0\0\1", begin)
        end = len(content) if following < 0 else following
        yield begin, end
        begin = following + 3


def _reader_of_kinds(stream: av.VideoStream) -> _Kinds | _KindsByUnits:
    codec, head = codec_name(stream), stream.codec_context.extradata or b""
    boxed = len(head) > 22 and head[0] == 1  # avcC or hvcC, ISO/IEC 14496-15; otherwise start codes
    if codec == "h264":
        boxed = len(head) > 6 and head[0] == 1
        return _KindsByUnits(length_size=(head[4] & 3) + 1 if boxed else 0, hevc=False, one_sublayer=True)
    if codec == "hevc":
        length_size, sublayers = ((head[21] & 3) + 1, head[21] >> 3 & 7) if boxed else (0, 0)
        return _KindsByUnits(length_size=length_size, hevc=True, one_sublayer=sublayers == 1)
    return _Kinds(codec)
