"""Frames as pictures: PNG keeps every bit; JPEG at quality 95 takes about a quarter of the room."""

from __future__ import annotations

import functools
import importlib
import re
import warnings
from collections.abc import Callable
from fractions import Fraction
from types import ModuleType
from typing import TYPE_CHECKING

import av
import numpy as np

from excl.models.lazy_module import LazyModule

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

PNG_LEVEL = 1  # zlib's; level 6 takes six times as long for a few percent less
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
LOSSLESS = "png"


def check_pictures(spec: str) -> None:
    """Raise ValueError unless `spec` is "png" or "jpeg:QUALITY" with a quality of 1 to 100."""
    quality = re.fullmatch(r"jpeg:(\d{1,3})", spec)
    if spec != LOSSLESS and not (quality and 1 <= int(quality[1]) <= 100):
        raise ValueError(f"pictures: {spec!r} is neither 'png' nor 'jpeg:QUALITY' with a quality of 1 to 100")


def encoder(spec: str, *, side: int) -> Callable[[np.ndarray], bytes]:
    """Return a function from a frame, uint8 RGB [side, side, 3], to the bytes of a picture."""
    return functools.partial(_encode_jpeg, quality=int(spec.removeprefix("jpeg:"))) if spec != LOSSLESS else _Png(side)


class _Png:
    """FFmpeg's encoder, twice as fast as libpng at the same size."""

    def __init__(self, side: int) -> None:
        self.context = av.CodecContext.create("png", "w")
        self.context.width = self.context.height = side
        self.context.pix_fmt = "rgb24"
        self.context.time_base = Fraction(1)
        self.context.thread_count = 1
        self.context.options = {"pred": "paeth", "compression_level": str(PNG_LEVEL)}
        self.count = 0

    def __call__(self, frame: np.ndarray) -> bytes:
        """Return the bytes of a PNG file."""
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24")
        picture.pts = self.count
        self.count += 1
        return b"".join(bytes(packet) for packet in self.context.encode(picture))


@functools.lru_cache(maxsize=1)
def _jpeg() -> ModuleType:
    """Return torchvision.io, slow to import; since 0.29 every call warns in favour of torchcodec, an option here."""
    warnings.filterwarnings("ignore", message="The image decoding and encoding capabilities of TorchVision")
    return importlib.import_module("torchvision.io")


def _encode_jpeg(frame: np.ndarray, *, quality: int) -> bytes:
    return _jpeg().encode_jpeg(torch.from_numpy(np.array(frame)).permute(2, 0, 1), quality).numpy().tobytes()


def decode_picture(encoded: np.ndarray) -> np.ndarray:
    """Return the frame, uint8 RGB [side, side, 3], in a PNG or JPEG file's bytes, uint8 [n]; ValueError for other bytes."""
    content = encoded.tobytes()
    try:
        if content.startswith(PNG_SIGNATURE):
            [picture] = av.CodecContext.create("png", "r").decode(av.Packet(content))  # a used one mixes pictures
            assert isinstance(picture, av.VideoFrame)
            return picture.to_ndarray(format="rgb24")
        picture = _jpeg().decode_jpeg(torch.from_numpy(encoded), _jpeg().ImageReadMode.RGB)
        return picture.permute(1, 2, 0).contiguous().numpy()
    except (av.FFmpegError, RuntimeError, ValueError) as error:
        raise ValueError(f"no picture: {error}") from error
