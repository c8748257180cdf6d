"""Sampling with decoders that are asked for frames by number: decord and torchcodec.

Neither keeps the rule of `sampling.py` by itself, so which frame is wanted is settled here, by the times that PyAV reads
from the packets, and the decoder only fetches the frames of those numbers. Files for which it is known to return other
frames or other colours, or whose frame times it sees differently, are refused ("unsupported") before any frame is given.
Damage inside frames is something that these decoders do not tell.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NoReturn, Protocol

import av
import numpy as np

from excl.datasets.container import (
    Limits,
    TimedFrames,
    choose_stream,
    claimed_duration_s,
    codec_name,
    frame_gap,
    open_video,
    start_time,
)
from excl.datasets.packets import PacketTable, read_packets
from excl.datasets.picture import Converter, kept_region
from excl.datasets.sampling import Clock, OnePass, Sampling, VideoFacts, require_sound
from excl.datasets.video_errors import VideoError

BATCH_BYTES = 64 * 2**20  # of whole pictures, before they are made small
DECORD_CODECS = frozenset(("h264", "hevc", "mpeg4"))  # in VP8 and VP9 it misses changes of size
DECORD_CONTAINERS = frozenset(("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"))


@dataclass(frozen=True)
class Layout:
    """What a video is, for a decoder to say whether it can read it; the last four by its first frame."""

    path: Path
    container: str
    codec: str
    num_video_streams: int
    stream_index: int
    table: PacketTable
    presentation: list[int]
    time_base: Fraction
    pixel_aspect: Fraction
    width: int
    height: int
    interlaced: bool
    rotation: int

    def seconds(self, index: int) -> float:
        """When frame `index` is shown, on the container's clock."""
        return float(self.presentation[index] * self.time_base)

    def half_gap_s(self, index: int) -> float:
        """Half the time to the nearest other frame: any frame whose time is nearer than this is the same one."""
        around = self.presentation[max(0, index - 1) : index + 2]
        gaps = [after - before for before, after in itertools.pairwise(around)]
        return float(min(gaps, default=1) * self.time_base / 2)


class Reader(Protocol):
    """A decoder with one file open: ascending frame numbers to pictures uint8 [n, crop, crop, 3] and their seconds [n]."""

    def __call__(self, indices: list[int]) -> tuple[np.ndarray, np.ndarray]: ...


class IndexedVideo(OnePass):
    """`SampledVideo`, read by decord or torchcodec; raises VideoError("unsupported") for what they would get wrong."""

    def __init__(self, path: Path, sampling: Sampling, backend: str) -> None:
        super().__init__(path, sampling)
        self.backend = backend

    def __iter__(self) -> Iterator[np.ndarray]:
        with open_video(self.path) as container:
            stream = choose_stream(container, self.path, self.sampling.limits)
            clock = Clock(Fraction(str(self.sampling.fps)), start_time(container), _time_base(stream))
            layout = self._layout(container, stream)
            claimed_s = claimed_duration_s(container, stream)
            last_frame_lasts = self._last_duration(layout, stream)
        end = clock.seconds(layout.presentation[-1] + last_frame_lasts)
        require_sound(self.path, self.sampling, end=end, claimed_s=claimed_s)
        read = self._reader(layout)
        samples = [clock.first_sample_at(pts) for pts in layout.presentation[1:]] + [math.ceil(clock.fps * end)]
        counts = np.diff(samples, prepend=0)
        wanted = np.flatnonzero(counts).tolist()
        batch = max(1, BATCH_BYTES // (3 * layout.width * layout.height))
        for start in range(0, len(wanted), batch):
            indices = wanted[start : start + batch]
            for index, picture in zip(indices, self._read(read, indices, layout), strict=True):
                yield from itertools.repeat(picture, counts[index])
        self._facts = VideoFacts(
            num_frames=samples[-1],
            fps=self.sampling.fps,
            t0_s=float(clock.t0),
            duration_s=float(end),
            claimed_duration_s=claimed_s,
            frames_expected=len(layout.presentation),
            frames_decoded=len(wanted),
            frames_skipped=len(layout.table.pts) - len(wanted),
            width=layout.width,
            height=layout.height,
            codec=layout.codec,
            bad_packets=None,
            corrupt_frames=None,
            largest_gap_s=float(_largest_gap(layout.presentation) * clock.time_base),
            backend=self.backend,
        )

    def _layout(self, container: av.container.InputContainer, stream: av.VideoStream) -> Layout:
        limits = self.sampling.limits
        table = read_packets(container, stream, max_packets=limits.max_frames)
        if table is None:
            self._refuse("its packets do not say when each frame is shown")
        presentation = table.presentation()
        self._check_times(presentation, Clock(Fraction(1), start_time(container), _time_base(stream)), limits)
        with open_video(self.path) as again:
            first = next(iter(TimedFrames(again, choose_stream(again, self.path, limits), self.path, limits)), None)
        if first is None:
            raise VideoError("no_frames", f"{self.path}: not one frame with a time can be decoded")
        frame = first[1]
        return Layout(
            path=self.path,
            container=container.format.name,
            codec=codec_name(stream),
            num_video_streams=len(container.streams.video),
            stream_index=stream.index,
            table=table,
            presentation=presentation,
            time_base=_time_base(stream),
            pixel_aspect=stream.sample_aspect_ratio or Fraction(1),
            width=frame.width,
            height=frame.height,
            interlaced=frame.interlaced_frame,
            rotation=frame.rotation,
        )

    def _check_times(self, presentation: list[int], clock: Clock, limits: Limits) -> None:
        gap_s = float(max(_largest_gap(presentation) * clock.time_base, clock.seconds(presentation[0])))
        if gap_s > limits.max_gap_s:
            raise VideoError("bad_times", f"{self.path}: no frame for {gap_s:g} s")
        if clock.seconds(presentation[-1]) > limits.max_duration_s:
            raise VideoError("too_large", f"{self.path}: longer than {limits.max_duration_s:g} s, which is allowed")

    @staticmethod
    def _last_duration(layout: Layout, stream: av.VideoStream) -> int:
        position = layout.table.pts.index(layout.presentation[-1])
        last_gap = layout.presentation[-1] - layout.presentation[-2] if len(layout.presentation) > 1 else 0
        return layout.table.duration[position] or last_gap or frame_gap(stream)

    def _reader(self, layout: Layout) -> Reader:
        flaw = FLAWS[self.backend](layout)
        if flaw:
            self._refuse(flaw)
        try:
            return READERS[self.backend](layout, self.sampling)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001  (the library raises errors of many classes)
            self._refuse(f"it cannot open the file ({_first_line(error)})")

    def _read(self, read: Reader, indices: list[int], layout: Layout) -> np.ndarray:
        try:
            pictures, starts_s = read(indices)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001
            self._refuse(f"it cannot decode frame {indices[0]} to {indices[-1]} ({_first_line(error)})")
        for index, start_s in zip(indices, starts_s, strict=True):
            if abs(start_s - layout.seconds(index)) >= layout.half_gap_s(index):
                self._refuse(
                    f"its frame {index} is that of {start_s:.3f} s, wanted is the one of {layout.seconds(index):.3f} s"
                )
        return pictures

    def _refuse(self, flaw: str) -> NoReturn:
        raise VideoError(
            "unsupported", f"{self.path}: not to be read with {self.backend}: {flaw}; use the backend pyav, or auto"
        )


def _largest_gap(presentation: list[int]) -> int:
    return max((after - before for before, after in itertools.pairwise(presentation)), default=0)


def _time_base(stream: av.VideoStream) -> Fraction:
    assert stream.time_base is not None  # choose_stream refuses such
    return stream.time_base


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0][:120]}"


def decord_flaw(layout: Layout) -> str | None:
    """Why decord 0.6 would not return the right frames in the right colours; None if it does."""
    keys = [pts for pts, is_key in zip(layout.table.pts, layout.table.keys, strict=True) if is_key]
    flaws = {
        f"the container {layout.container}": layout.container not in DECORD_CONTAINERS,
        f"the codec {layout.codec}": layout.codec not in DECORD_CODECS,
        f"{layout.num_video_streams} video streams, of which it chooses by itself": layout.num_video_streams > 1,
        "an edit list that hides frames": not all(layout.table.shown),
        "a size or kind of picture that changes": not layout.table.is_steady,
        "no key frame at the beginning": not layout.table.keys[0],
        "frames that are shown before their key frame (open groups of pictures)": _has_leading_frames(layout, keys),
        "interlaced pictures": layout.interlaced,
        "key frames that are none": _has_false_keys(layout.table),
        "a rotation to the side": layout.rotation % 180 != 0,
        "a name that is not UTF-8": not _is_utf8(layout.path),
    }
    return next((flaw for flaw, is_there in flaws.items() if is_there), None)


def _has_false_keys(table: PacketTable) -> bool:
    """Whether the container calls frames key frames that are none: seeking to one gives broken pictures.

    Some key frames are no restart (in open groups, and in codecs whose headers are not read here), but never most frames.
    """
    doubtful = sum(is_key and not restarts for is_key, restarts in zip(table.keys, table.restarts, strict=True))
    return 2 * doubtful > len(table.keys)


def _has_leading_frames(layout: Layout, keys: list[int]) -> bool:
    latest_key = min(keys, default=0)
    for pts, is_key in zip(layout.table.pts, layout.table.keys, strict=True):
        if is_key:
            latest_key = pts
        elif pts < latest_key:
            return True
    return False


def _is_utf8(path: Path) -> bool:
    with suppress(UnicodeEncodeError):
        return bool(str(path.absolute()).encode())
    return False


def torchcodec_flaw(layout: Layout) -> str | None:
    """Why torchcodec would not return the right pictures; None if it does, as far as can be known beforehand."""
    flaws = {
        "a size or kind of picture that changes": not layout.table.is_steady,
        "interlaced pictures": layout.interlaced,
        "key frames that are none": _has_false_keys(layout.table),
        "a name that is not UTF-8": not _is_utf8(layout.path),
    }
    return next((flaw for flaw, is_there in flaws.items() if is_there), None)


class DecordReader:
    """decord, asked for whole pictures in RGB."""

    def __init__(self, layout: Layout, sampling: Sampling) -> None:
        import decord  # noqa: PLC0415  (optional)

        self.convert = Converter(sampling.geometry, pixel_aspect=layout.pixel_aspect)
        self.reader = decord.VideoReader(str(layout.path.absolute()), num_threads=sampling.threads)
        _require_as_many(len(self.reader), layout)
        starts_s = self.reader.get_frame_timestamp(range(len(self.reader)))[:, 0].astype(np.float64)
        self.starts_s = starts_s - starts_s[0] + layout.seconds(0)  # its clock starts with its first frame

    def __call__(self, indices: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """The pictures of some frames, and their seconds."""
        return _small(self.reader.get_batch(indices).asnumpy(), self.convert), self.starts_s[indices]


def _require_as_many(count: int, layout: Layout) -> None:
    if count != len(layout.presentation):
        raise ValueError(f"it counts {count} frames, the packets {len(layout.presentation)}")


def _small(pictures: np.ndarray, convert: Converter) -> np.ndarray:
    """Whole pictures, uint8 RGB [n, rows, columns, 3], to what is kept of them, uint8 [n, crop, crop, 3]."""
    return np.stack([convert(av.VideoFrame.from_ndarray(picture, "rgb24")) for picture in pictures])


class TorchcodecReader:
    """torchcodec, on the CPU or the GPU's own decoder; on the GPU torchvision scales (bilinear, antialiased)."""

    def __init__(self, layout: Layout, sampling: Sampling, *, device: str = "cpu") -> None:
        from torchcodec.decoders import VideoDecoder  # noqa: PLC0415  (optional)

        upright_aspect = layout.pixel_aspect if layout.rotation % 180 == 0 else 1 / layout.pixel_aspect
        self.device, self.geometry, self.pixel_aspect = device, sampling.geometry, upright_aspect
        self.convert = Converter(sampling.geometry, pixel_aspect=upright_aspect)
        self.decoder = VideoDecoder(
            str(layout.path.absolute()),
            stream_index=layout.stream_index,
            dimension_order="NHWC" if device == "cpu" else "NCHW",
            device=device,
            num_ffmpeg_threads=sampling.threads,
            seek_mode="exact",
        )
        _require_as_many(len(self.decoder), layout)

    def __call__(self, indices: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """The pictures of some frames, and their seconds."""
        batch = self.decoder.get_frames_at(indices)
        pictures = _small(batch.data.numpy(), self.convert) if self.device == "cpu" else self._small_on_gpu(batch.data)
        return pictures, batch.pts_seconds.cpu().numpy()

    def _small_on_gpu(self, pictures: Any) -> np.ndarray:
        """`_small` for a tensor [n, 3, rows, columns], made small where it is."""
        from torchvision.transforms.v2 import functional  # noqa: PLC0415  (slow to import, and only needed here)

        rows, columns = pictures.shape[-2:]
        width, height, left, top = kept_region(columns, rows, self.pixel_aspect, self.geometry)
        side = self.geometry.crop
        small = functional.resized_crop(pictures, top, left, height, width, [side, side], antialias=True)
        return small.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def torchcodec_cuda(layout: Layout, sampling: Sampling) -> TorchcodecReader:
    """torchcodec with NVDEC."""
    return TorchcodecReader(layout, sampling, device="cuda")


FLAWS: dict[str, Callable[[Layout], str | None]] = {
    "decord": decord_flaw,
    "torchcodec": torchcodec_flaw,
    "torchcodec-cuda": torchcodec_flaw,
}
READERS: dict[str, Callable[[Layout, Sampling], Any]] = {
    "decord": DecordReader,
    "torchcodec": TorchcodecReader,
    "torchcodec-cuda": torchcodec_cuda,
}
