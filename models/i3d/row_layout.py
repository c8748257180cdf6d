"""The map from rows to seconds: which rows a video has and which seconds each describes, used wherever the two meet.

A layout says what the network sees of a video at once and what rows result. There are two kinds. `Continuous` lets the
network see the whole video (in chunks that change nothing, `chunks.py`): a row every `stride` frames, and the rows tile the
video. `Windows` cuts out clips of equal length, each seen by itself, as many published features were made;
`published_layouts.py` has those layouts that repeat a published pipeline's mistakes.

Frame f is on screen from f / fps to (f + 1) / fps seconds. In the network's own count, step k of Mixed_5c is centred on
frames [8k, 8k + 8) of its receptive field of 99 frames (to within 1.5 frames, which SAME padding takes from one side), and
the pairwise average of steps k and k + 1 on frames [8k + 4, 8k + 12). All layouts follow this, and the first and the last
row of what the network sees at once reach to its borders.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np

FRAMES_PER_STEP = 8
MIN_POOLED_FRAMES = 9  # of which the network leaves two steps, and so one pair

Pool = Literal["2x7x7", "1x7x7"]


class RowLayout(Protocol):
    """The rule for which rows a video of so many frames has, and for their seconds."""

    @property
    def pool(self) -> Pool:
        """The last pool: 2x7x7 if a row is an average of two steps, as in the published network, 1x7x7 if it is one step."""

    def num_rows(self, num_frames: int) -> int:
        """Return how many rows a video has; NoRowsError if it has none in the layout."""

    def row_times(self, num_frames: int, *, fps: float, duration_s: float) -> tuple[np.ndarray, np.ndarray]:
        """Return start and end of every row in seconds, two float64 [n]; no row reaches beyond `duration_s`.

        `duration_s` is the video's end on the same clock, with num_frames = ceil(fps * duration_s).
        """

    def repeated(self, num_frames: int) -> int:
        """Return how many copies of a video's first or last frame the network sees in addition to its frames."""

    def to_json(self) -> dict[str, Any]:
        """Return the layout as JSON values, for recipes."""


class NoRowsError(ValueError):
    """The error for a video that has no rows in a layout."""


def require_frames(num_frames: int) -> None:
    """Raise ValueError for a video without frames."""
    if num_frames <= 0:
        raise ValueError(f"a video has at least one frame, not {num_frames}")


@dataclass(frozen=True)
class Continuous:
    """A row every `stride` frames (8, 4, 2 or 1) of the whole video, the rows tiling it.

    With the pool 2x7x7 row j is centred on frame stride * (j + 1), and a video of T frames has max(1, ceil(T / stride) - 1)
    rows; with 1x7x7 row j covers frames [stride * j, stride * (j + 1)), and there are ceil(T / stride).

    To get these rows, the video is padded with copies of its first and its last frame to `padded(T)` frames: for a stride of
    8 none in front, and behind to a multiple of 8. One remainder for all videos keeps the map the same for all of them (SAME
    padding shifts the network's windows with the length), and no frame is left without a row.
    """

    kind: ClassVar = "continuous"
    stride: int = 8
    pool: Pool = "2x7x7"

    def __post_init__(self) -> None:
        if self.stride not in (8, 4, 2, 1):
            raise ValueError(f"stride: {self.stride} frames; it must be 8, 4, 2 or 1")

    @property
    def offsets(self) -> int:
        """The number of rows for every 8 frames."""
        return FRAMES_PER_STEP // self.stride

    @property
    def lead(self) -> int:
        """The number of copies of the first frame in front of a video."""
        return FRAMES_PER_STEP - self.stride if self.pool == "2x7x7" else 4 - self.stride // 2

    def num_rows(self, num_frames: int) -> int:
        """Return how many rows a video of `num_frames` > 0 frames has."""
        require_frames(num_frames)
        rows = math.ceil(num_frames / self.stride)
        return max(1, rows - 1) if self.pool == "2x7x7" else rows

    def padded(self, num_frames: int) -> int:
        """Return the length to which a video is padded: 8m + 8 - stride, with m steps at each offset."""
        rows_end = self.num_rows(num_frames) * self.stride
        steps = math.ceil(rows_end / FRAMES_PER_STEP) + (1 if self.pool == "2x7x7" else 0)
        return FRAMES_PER_STEP * steps + FRAMES_PER_STEP - self.stride

    def repeated(self, num_frames: int) -> int:
        """Return how many copies of a video's first or last frame the network sees in addition to its frames."""
        return self.padded(num_frames) - num_frames

    def row_times(self, num_frames: int, *, fps: float, duration_s: float) -> tuple[np.ndarray, np.ndarray]:
        """Return start and end of every row in seconds: start[0] = 0, end[k] = start[k + 1], end[-1] = duration_s."""
        offset = self.stride / 2 if self.pool == "2x7x7" else 0
        edges = (self.stride * np.arange(self.num_rows(num_frames) + 1) + offset) / fps  # float64 [n + 1]
        edges[0], edges[-1] = 0.0, duration_s
        if not (np.diff(edges) > 0).all():
            raise ValueError(f"{num_frames} frames at {fps} a second do not fit a video of {duration_s} s")
        return edges[:-1].copy(), edges[1:].copy()

    def to_json(self) -> dict[str, Any]:
        """Return the layout as JSON values, for recipes."""
        return {"kind": self.kind, **dataclasses.asdict(self)}


@dataclass(frozen=True)
class Clips(abc.ABC):
    """Layouts of clips that the network sees one by one, without the frames before and after.

    A clip is a pair (begin, end) of frame numbers; beyond the end of the video its last frame is repeated. With `mean` the
    rows of a clip are averaged into one.
    """

    kind: ClassVar[str]
    pool: Pool = "2x7x7"
    mean: bool = False

    lookahead = 0  # frames behind a clip that must exist for the clip to be as `clip` says

    @property
    def lookback(self) -> int:
        """The most frames before its regular place at which the last clip may begin."""
        return 0

    @abc.abstractmethod
    def clip(self, index: int) -> tuple[int, int]:
        """Return clip number `index` of a video that is long enough."""

    @abc.abstractmethod
    def clips(self, num_frames: int) -> list[tuple[int, int]]:
        """Return all clips of a video of `num_frames` frames; those that lie `lookahead` before its end as in `clip`."""

    def rows_of(self, length: int) -> int:
        """Return how many rows the network makes of a clip of so many frames."""
        steps = math.ceil(length / FRAMES_PER_STEP)
        return 1 if self.mean else steps - 1 if self.pool == "2x7x7" else steps

    def row_frames(self, num_frames: int) -> np.ndarray:
        """Return the frames that each row of all clips describes, [begin, end), float64 [n, 2], in the clips' order."""
        return np.concatenate([self._row_frames(begin, end) for begin, end in self.clips(num_frames)])

    def real_rows(self, num_frames: int) -> np.ndarray:
        """Return which of those rows the video has, bool [n]: all but those that describe nothing but repeated frames."""
        return self.row_frames(num_frames)[:, 0] < num_frames

    def num_rows(self, num_frames: int) -> int:
        """Return how many rows a video of `num_frames` > 0 frames has."""
        require_frames(num_frames)
        return int(self.real_rows(num_frames).sum())

    def repeated(self, num_frames: int) -> int:
        """Return how many copies of a video's last frame the network sees in addition to its frames."""
        return sum(max(0, end - max(begin, num_frames)) for begin, end in self.clips(num_frames))

    def row_times(self, num_frames: int, *, fps: float, duration_s: float) -> tuple[np.ndarray, np.ndarray]:
        """Return start and end of every row in seconds: a clip's rows tile it, and clips may overlap or leave gaps."""
        require_frames(num_frames)
        if not (num_frames - 1) / fps < duration_s:
            raise ValueError(f"{num_frames} frames at {fps} a second do not fit a video of {duration_s} s")
        frames = self.row_frames(num_frames)[self.real_rows(num_frames)]
        return frames[:, 0] / fps, np.minimum(frames[:, 1] / fps, duration_s)

    def _row_frames(self, begin: int, end: int) -> np.ndarray:
        rows = self.rows_of(end - begin)
        offset = FRAMES_PER_STEP / 2 if self.pool == "2x7x7" else 0
        edges = begin + FRAMES_PER_STEP * np.arange(rows + 1) + offset  # float64 [n + 1]
        edges[0], edges[-1] = begin, end
        return np.stack([edges[:-1], edges[1:]], axis=1)

    def to_json(self) -> dict[str, Any]:
        """Return the layout as JSON values, for recipes."""
        return {"kind": self.kind, **dataclasses.asdict(self)}


@dataclass(frozen=True)
class Windows(Clips):
    """Windows of `window` frames, one every `hop` frames, from the first frame on.

    `last` says what becomes of the end of the video: "pad" has as many windows as cover it, the last one filled up with
    copies of the last frame; "drop" has only whole windows (but always one). W windows of r rows have W * r rows, less those
    that describe nothing but copies: with hop = window and "pad", ceil(T / window) windows.
    """

    kind = "windows"
    window: int = 16
    hop: int = 16
    last: Literal["pad", "drop"] = "pad"

    def __post_init__(self) -> None:
        least = MIN_POOLED_FRAMES if self.pool == "2x7x7" else 1
        if self.window < least:
            raise ValueError(f"window: {self.window} frames; with the pool {self.pool} at least {least} are needed")
        if self.hop < 1:
            raise ValueError(f"hop: {self.hop} frames; it must be at least 1")

    def clip(self, index: int) -> tuple[int, int]:
        return index * self.hop, index * self.hop + self.window

    def clips(self, num_frames: int) -> list[tuple[int, int]]:
        if self.last == "drop":
            count = max(0, num_frames - self.window) // self.hop + 1
        else:
            covering = math.ceil(max(0, num_frames - self.window) / self.hop) + 1
            count = min(covering, math.ceil(num_frames / self.hop))
        return [self.clip(index) for index in range(count)]
