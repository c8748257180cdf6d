"""Layouts that repeat the mistakes of published feature pipelines, for comparison with features made by them.

The mistakes, read from the pipelines' public code: the port's own script (piergiaj/pytorch-i3d, extract_features.py) cuts
videos of more than 1600 frames into chunks, begins with frame 1, ends before the last frame, and keeps the rows of the 48
and 56 frames that neighbouring chunks share, so that every seam has about 13 rows twice. VSLNet's scripts end every loop at
`min(t - 1, start + stride)`: the last frame is never used, and the last window is moved back to be whole. video_features
wants a frame more than it uses of every stack of 64.

Nothing is padded here, as nothing is there; a video that the published code fails on is refused.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from excl.models.i3d.row_layout import MIN_POOLED_FRAMES, Clips, NoRowsError


class _Unpadded(Clips):
    settings: ClassVar[tuple[str, ...]] = ("window",)  # what there is to choose, and so what a recipe holds

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, **{name: getattr(self, name) for name in self.settings}}

    def row_frames(self, num_frames: int) -> np.ndarray:
        """Return what `Clips` does; NoRowsError for a clip that the published code would fail on."""
        clips = self.clips(num_frames)
        shortest = min((end - begin for begin, end in clips), default=0)
        if shortest < MIN_POOLED_FRAMES:
            raise NoRowsError(
                f"a video of {num_frames} frames leaves the published pipeline "
                f"{f'a clip of {shortest}' if clips else 'no clip'}; it fails on such, and --bug-compatible repeats it"
            )
        return super().row_frames(num_frames)


@dataclass(frozen=True)
class PortChunks(_Unpadded):
    """The port's script: the whole video up to 1600 frames, and overlapping chunks of up to 1704 beyond."""

    kind = "port-chunks"
    settings = ()
    lookahead = 1

    def clip(self, index: int) -> tuple[int, int]:
        """Return chunk number `index` of a video of more than 1600 frames."""
        start = 1 + 1600 * index
        return max(1, start - 48), start + 1600 + 56

    def clips(self, num_frames: int) -> list[tuple[int, int]]:
        if num_frames <= 1600:
            return [(0, num_frames)]
        clips = itertools.islice(map(self.clip, itertools.count()), len(range(1, num_frames - 56, 1600)))
        return [(begin, min(num_frames - 1, end)) for begin, end in clips]


@dataclass(frozen=True)
class ShiftedWindows(_Unpadded):
    """VSLNet's windows: one every `window` frames, the last moved back to end before the last frame."""

    kind = "shifted-windows"
    lookahead = 1
    window: int = 16

    @property
    def lookback(self) -> int:
        """The most frames by which the last window is moved back: a window."""
        return self.window

    def clip(self, index: int) -> tuple[int, int]:
        return index * self.window, (index + 1) * self.window

    def clips(self, num_frames: int) -> list[tuple[int, int]]:
        ends = [min(num_frames - 1, start + self.window) for start in range(0, num_frames, self.window)]
        return [(max(0, end - self.window), end) for end in ends]


@dataclass(frozen=True)
class StacksWithOneMore(_Unpadded):
    """video_features' stacks: whole ones only, of which each needs one frame more than it uses; one row of each."""

    kind = "stacks-with-one-more"
    lookahead = 1
    window: int = 64
    mean: bool = True

    def clip(self, index: int) -> tuple[int, int]:
        return index * self.window, (index + 1) * self.window

    def clips(self, num_frames: int) -> list[tuple[int, int]]:
        count = max(0, num_frames - 1) // self.window
        return [self.clip(index) for index in range(count)]
