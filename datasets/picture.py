"""From a decoded frame to the picture that the network sees: upright, square pixels, scaled, cropped."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import av
import av.video.reformatter
import numpy as np


@dataclass(frozen=True)
class Geometry:
    """What of a picture is kept: its short side scaled to `short_side` pixels, then a centred square of `crop` pixels."""

    short_side: int = 256
    crop: int = 224

    def __post_init__(self) -> None:
        if not 0 < self.crop <= self.short_side:
            raise ValueError(f"crop: {self.crop} pixels do not fit into a short side of {self.short_side}")


class Converter:
    """A decoded frame to uint8 RGB [crop, crop, 3].

    Rotation (display matrix) and non-square pixels are applied, the short side is scaled to `short_side` (bilinear), then
    the centre is cut out at round((size - crop) / 2), halves to even as torchvision and the public I3D port do.
    """

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
