"""The geometry of pictures: a decoded frame becomes what the network sees, cropped, scaled, upright, in RGB.

Of each frame a centred square is kept, `crop / short_side` of the picture's short side, scaled to crop x crop pixels.
Cropping before scaling is what scaling the short side to `short_side` and cropping then would give, but for the border: the
square's edges lie on even pixels of the source (its colours have half the resolution), at most one pixel from the exact
place.

Scaling is swscale's bilinear filter, which averages when it makes smaller; colours are converted by what the stream says of
its matrix and range (BT.601 and limited range where it says nothing). The result is asked for as planes: straight to packed
RGB swscale halves the resolution of the colours once more and is darker by 1.5 of 255.

Without antialiasing a picture is converted to packed RGB and scaled as a whole by plain bilinear interpolation, of the
four nearest pixels also where it becomes smaller, and cropped then: OpenCV's way, as most published features were made.

Of an interlaced frame, which shows two moments, the field of the first moment is taken: it is what is on screen at the
frame's time. Only frames that are kept come here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction

import av
import av.filter
import numpy as np

from excl.datasets.video.pyav_versions import exact

UPSCALE_ONLY = "-upscale-only"


@dataclass(frozen=True)
class Geometry:
    """The part of a picture that is kept: its short side scaled to `short_side`, then a centred square of `crop` pixels.

    With `upscale_only` pictures are made larger where they are too small and never smaller, so of large ones the square is
    the middle `crop` x `crop` pixels as they are. With a `width` all pictures are scaled to this width and the height
    `short_side`, whatever their shape. Without `antialias` they are scaled as OpenCV does it.
    """

    short_side: int = 256
    crop: int = 224
    upscale_only: bool = False
    width: int | None = None
    antialias: bool = True

    def __post_init__(self) -> None:
        short_side = min(self.short_side, self.width or self.short_side)
        if not 0 < self.crop <= short_side:
            raise ValueError(f"crop: {self.crop} pixels do not fit into a short side of {short_side}")

    @classmethod
    def parse(cls, short_side: int | str, crop: int, *, antialias: bool = True) -> Geometry:
        """Parse a number of pixels, "226-upscale-only" or "340x256" and the like; raises ValueError for anything else."""
        if size := re.fullmatch(r"(\d+)x(\d+)", str(short_side)):
            return cls(int(size[2]), crop, width=int(size[1]), antialias=antialias)
        number = str(short_side).removesuffix(UPSCALE_ONLY)
        if not number.isdecimal():
            raise ValueError(
                f"short_side: {short_side!r} is neither a number of pixels nor like '226{UPSCALE_ONLY}' or '340x256'"
            )
        return cls(int(number), crop, upscale_only=number != str(short_side), antialias=antialias)

    def __str__(self) -> str:
        if self.width is not None:
            return f"{self.width}x{self.short_side}"
        return f"{self.short_side}{UPSCALE_ONLY if self.upscale_only else ''}"


class FrameConverter:
    """A converter of frames to uint8 RGB [crop, crop, 3], with square pixels, turned as the display matrix says."""

    def __init__(self, geometry: Geometry, *, pixel_aspect: Fraction) -> None:
        self.geometry, self.pixel_aspect = geometry, pixel_aspect
        self._graph_kind: tuple[int, int, str] | None = None  # None also after an interlaced frame: its graph is used once
        self._graph = av.filter.Graph()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        kind = (frame.width, frame.height, frame.format.name)
        if kind != self._graph_kind or frame.interlaced_frame:  # the first frame, or a change in mid-stream
            self._graph = self._make_graph(frame)
            self._graph_kind = None if frame.interlaced_frame else kind
        self._graph.push(frame)
        picture = self._graph.pull()
        assert isinstance(picture, av.VideoFrame)
        upright = np.rot90(picture.to_ndarray(), k=round(frame.rotation / 90))
        if self.geometry.antialias:
            return np.ascontiguousarray(upright)
        sideways = frame.rotation % 180 != 0
        return scale_plainly(
            upright, 1 / self._pixel_aspect_of(frame) if sideways else self._pixel_aspect_of(frame), self.geometry
        )

    def _pixel_aspect_of(self, frame: av.VideoFrame) -> Fraction:
        return self.pixel_aspect / (2 if frame.interlaced_frame else 1)

    def _make_graph(self, frame: av.VideoFrame) -> av.filter.Graph:
        lines = 2 if frame.interlaced_frame else 1  # of the frame, that make one of the picture
        geometry = self.geometry
        if geometry.width is not None and frame.rotation % 180:  # the width of the upright picture is the frame's height
            geometry = replace(geometry, short_side=geometry.width, width=geometry.short_side)
        width, height, left, top = kept_region(
            frame.width, frame.height // lines, self.pixel_aspect / lines, geometry, line_height=lines
        )
        side = self.geometry.crop
        graph = av.filter.Graph()
        source = graph.add_buffer(
            width=frame.width,
            height=frame.height,
            format=frame.format,
            time_base=exact(frame.time_base) or Fraction(1, 1000),
        )
        crop = {"crop": f"{width}:{height}:{left}:{top}", "scale": f"{side}:{side}:flags=bilinear"}
        nodes = [
            source,
            *([graph.add("separatefields")] if frame.interlaced_frame else []),  # the first that comes is the earlier one
            *(graph.add(name, setting) for name, setting in crop.items() if geometry.antialias),
            graph.add("format", "gbrp" if geometry.antialias else "rgb24"),
            graph.add("buffersink"),
        ]
        graph.link_nodes(*nodes).configure()
        return graph


def kept_region(
    width: int, height: int, pixel_aspect: Fraction, geometry: Geometry, *, line_height: int = 1
) -> tuple[int, int, int, int]:
    """Return the source pixels that are kept: width, height, left and top, all even (unless a side has one pixel).

    `line_height` is how many of the video's lines one line of the picture is high.
    """
    short_side = min(width * pixel_aspect, Fraction(height))  # in pixels as high as the source's, which are then square
    scaled_side = Fraction(geometry.short_side)
    if geometry.upscale_only:
        scaled_side = max(scaled_side, short_side * line_height)
    side = short_side * geometry.crop / scaled_side
    kept_width, kept_height = _even(side / pixel_aspect, width), _even(side, height)
    if geometry.width is not None:
        kept_width = _even(Fraction(width * geometry.crop, geometry.width), width)
        kept_height = _even(Fraction(height * geometry.crop, geometry.short_side), height)
    left = min(2 * round(Fraction(width - kept_width, 4)), width - kept_width)
    top = min(2 * round(Fraction(height - kept_height, 4)), height - kept_height)
    return kept_width, kept_height, left, top


def scale_plainly(picture: np.ndarray, pixel_aspect: Fraction, geometry: Geometry) -> np.ndarray:
    """Return the kept square, uint8 [crop, crop, 3], of an upright picture, uint8 RGB [rows, columns, 3], without averaging.

    Pixel x of the scaled picture is at (x + 1/2) / scale - 1/2 of the source, between its four neighbours.
    """
    rows, columns = picture.shape[:2]
    short_side = min(columns * pixel_aspect, Fraction(rows))
    scale = Fraction(geometry.short_side) / short_side
    scale = max(Fraction(1), scale) if geometry.upscale_only else scale
    size = (rows * scale, columns * pixel_aspect * scale)
    if geometry.width is not None:
        size = (Fraction(geometry.short_side), Fraction(geometry.width))
    scaled = picture.astype(np.float32)
    for axis, (source, target) in enumerate(zip((rows, columns), map(round, size), strict=True)):
        first = round(Fraction(target - geometry.crop, 2))
        places = (np.arange(first, first + geometry.crop) + 0.5) * (source / target) - 0.5
        places = np.clip(places, 0, source - 1).astype(np.float32)
        low = np.minimum(places.astype(np.int64), max(source - 2, 0))
        part = (places - low)[(...,) + (None,) * (2 - axis)]  # [crop, 1, 1] for rows, [crop, 1] for columns
        near, far = scaled.take(low, axis), scaled.take(np.minimum(low + 1, source - 1), axis)
        scaled = near + (far - near) * part
    return np.floor(scaled + 0.5).astype(np.uint8)


def _even(length: Fraction, available: int) -> int:
    """Return the even number nearest to `length` that is above 0 and no more than `available`."""
    return max(min(2, available), min(2 * round(length / 2), available // 2 * 2))
