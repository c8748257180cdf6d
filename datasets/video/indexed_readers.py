"""decord and torchcodec: the files that they would get wrong, and readers that give frames by number."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np

from excl.datasets.video.geometry import FrameConverter, kept_region, scale_plainly
from excl.datasets.video.packets import PacketTable
from excl.datasets.video.sampling import Sampling

DECORD_CODECS = frozenset(("h264", "hevc", "mpeg4"))  # in VP8 and VP9 it misses changes of size
TIMES_FROM_PACKETS = frozenset(("decord",))  # decoders that tell times by the packets alone, not those of their frames
DECORD_CONTAINERS = frozenset(("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"))


@dataclass(frozen=True)
class VideoLayout:
    """The properties of a video that tell whether a decoder reads it right; the last four are those of its first frame."""

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
        """Return when frame `index` is shown, on the container's clock."""
        return float(self.presentation[index] * self.time_base)

    def half_gap_s(self, index: int) -> float:
        """Return half the time to the nearest other frame: a frame whose time is nearer than this is the same one."""
        neighbours = self.presentation[max(0, index - 1) : index + 2]
        gaps = [after - before for before, after in itertools.pairwise(neighbours)]
        return float(min(gaps, default=1) * self.time_base / 2)


class Reader(Protocol):
    """A decoder with one file open: ascending frame numbers to pictures uint8 [n, crop, crop, 3] and their seconds [n]."""

    def __call__(self, indices: list[int]) -> tuple[np.ndarray, np.ndarray]: ...


def decord_flaws(layout: VideoLayout) -> dict[str, bool]:
    """Return what makes decord 0.6 give wrong frames or colours, each with whether the video has it."""
    return {
        f"the container {layout.container}": layout.container not in DECORD_CONTAINERS,
        f"the codec {layout.codec}": layout.codec not in DECORD_CODECS,
        f"{layout.num_video_streams} video streams, of which it chooses by itself": layout.num_video_streams > 1,
        "an edit list that hides frames": not all(layout.table.shown),
        "a size or kind of picture that changes": not layout.table.is_steady,
        "no key frame at the beginning": not layout.table.keys[0],
        "frames that are shown before their key frame (open groups of pictures)": _has_leading_frames(layout.table),
        **torchcodec_flaws(layout),
        "a rotation to the side": layout.rotation % 180 != 0,
    }


def torchcodec_flaws(layout: VideoLayout) -> dict[str, bool]:
    """Return what makes torchcodec give wrong pictures, as far as that can be known beforehand."""
    return {
        "a size or kind of picture that changes": not layout.table.is_steady,
        "interlaced pictures": layout.interlaced,
        "key frames that are none": _has_false_keys(layout.table),
        "a name that is not UTF-8": not _is_utf8(layout.path),
    }


def _has_false_keys(table: PacketTable) -> bool:
    """Return whether the container calls frames key frames that are not: seeking to one gives broken pictures.

    Some key frames are no restart (in open groups, and in codecs whose headers are not read here), but never most frames.
    """
    doubtful = sum(is_key and not restarts for is_key, restarts in zip(table.keys, table.restarts, strict=True))
    return 2 * doubtful > len(table.keys)


def _has_leading_frames(table: PacketTable) -> bool:
    latest_key = min((pts for pts, is_key in zip(table.pts, table.keys, strict=True) if is_key), default=0)
    for pts, is_key in zip(table.pts, table.keys, strict=True):
        if is_key:
            latest_key = pts
        elif pts < latest_key:
            return True
    return False


def _is_utf8(path: Path) -> bool:
    with suppress(UnicodeEncodeError):
        return bool(str(path.absolute()).encode())
    return False


class DecordReader:
    """decord, asked for whole pictures in RGB."""

    def __init__(self, layout: VideoLayout, sampling: Sampling) -> None:
        import decord  # noqa: PLC0415  (optional)

        self.convert = FrameConverter(sampling.geometry, pixel_aspect=layout.pixel_aspect)
        self.reader = decord.VideoReader(str(layout.path.absolute()), num_threads=sampling.threads)
        _require_num_frames(len(self.reader), layout)
        starts_s = self.reader.get_frame_timestamp(range(len(self.reader)))[:, 0].astype(np.float64)
        self.starts_s = starts_s - starts_s[0] + layout.seconds(0)  # its clock starts with its first frame

    def __call__(self, indices: list[int]) -> tuple[np.ndarray, np.ndarray]:
        return _crop(self.reader.get_batch(indices).asnumpy(), self.convert), self.starts_s[indices]


def _require_num_frames(num_frames: int, layout: VideoLayout) -> None:
    if num_frames != len(layout.presentation):
        raise ValueError(f"it counts {num_frames} frames, the packets {len(layout.presentation)}")


def _crop(pictures: np.ndarray, convert: FrameConverter) -> np.ndarray:
    """Convert full pictures, uint8 RGB [n, rows, columns, 3], to their cropped squares, uint8 [n, crop, crop, 3]."""
    return np.stack([convert(av.VideoFrame.from_ndarray(picture, "rgb24")) for picture in pictures])


class TorchcodecReader:
    """torchcodec, on the CPU or the GPU's own decoder; on the GPU torchvision scales (bilinear, antialiased)."""

    def __init__(self, layout: VideoLayout, sampling: Sampling, *, device: str = "cpu") -> None:
        from torchcodec.decoders import VideoDecoder  # noqa: PLC0415  (optional)

        upright_aspect = layout.pixel_aspect if layout.rotation % 180 == 0 else 1 / layout.pixel_aspect
        self.device, self.geometry, self.pixel_aspect = device, sampling.geometry, upright_aspect
        self.convert = FrameConverter(sampling.geometry, pixel_aspect=upright_aspect)
        self.decoder = VideoDecoder(
            str(layout.path.absolute()),
            stream_index=layout.stream_index,
            dimension_order="NHWC" if device == "cpu" else "NCHW",
            device=device,
            num_ffmpeg_threads=sampling.threads,
            seek_mode="exact",
        )
        _require_num_frames(len(self.decoder), layout)

    def __call__(self, indices: list[int]) -> tuple[np.ndarray, np.ndarray]:
        batch = self.decoder.get_frames_at(indices)
        pictures = _crop(batch.data.numpy(), self.convert) if self.device == "cpu" else self._crop_on_gpu(batch.data)
        return pictures, batch.pts_seconds.cpu().numpy()

    def _crop_on_gpu(self, pictures: Any) -> np.ndarray:
        """Do what `_crop` does for a tensor [n, 3, rows, columns], on its device."""
        from torchvision.transforms.v2 import functional  # noqa: PLC0415  (slow to import, and only needed here)

        rows, columns = pictures.shape[-2:]
        if not self.geometry.antialias:
            whole = pictures.permute(0, 2, 3, 1).contiguous().cpu().numpy()
            return np.stack([scale_plainly(picture, self.pixel_aspect, self.geometry) for picture in whole])
        width, height, left, top = kept_region(columns, rows, self.pixel_aspect, self.geometry)
        side = self.geometry.crop
        cropped = functional.resized_crop(pictures, top, left, height, width, [side, side], antialias=True)
        return cropped.permute(0, 2, 3, 1).contiguous().cpu().numpy()


FLAWS: dict[str, Callable[[VideoLayout], dict[str, bool]]] = {
    "decord": decord_flaws,
    "torchcodec": torchcodec_flaws,
    "torchcodec-cuda": torchcodec_flaws,
}
READERS: dict[str, Callable[[VideoLayout, Sampling], Reader]] = {
    "decord": DecordReader,
    "torchcodec": TorchcodecReader,
    "torchcodec-cuda": partial(TorchcodecReader, device="cuda"),
}
