"""The seconds that the rows of other people's features describe, by what is stated about them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from excl.datasets.video.errors import VideoError

Duration = Callable[[str], float | None]


@dataclass(frozen=True)
class FixedRate:
    """Row k is from offset_s + k * seconds_per_row to offset_s + (k + 1) * seconds_per_row."""

    seconds_per_row: float
    offset_s: float

    def times(self, num_rows: int, duration_s: float | None) -> tuple[np.ndarray, np.ndarray]:
        """Return start and end of the rows, two float64 [n]; a last row that reaches beyond the video ends with it.

        VideoError if the rows are not those of a video of that duration: then the stated rate is not theirs.
        """
        edges = self.offset_s + self.seconds_per_row * np.arange(num_rows + 1)
        if duration_s is not None:
            early_s, late_s = duration_s - edges[-1], edges[-2] - duration_s
            if early_s > self._slack_s(duration_s) or late_s > self._slack_s(duration_s):
                raise VideoError(
                    "features",
                    f"{num_rows} rows of {self.seconds_per_row:.4g} s end at {edges[-1]:.2f} s, and the video is "
                    f"{duration_s:.2f} s long: {(duration_s - self.offset_s) / num_rows:.4g} s a row would fit",
                )
            if late_s < 0:
                edges[-1] = min(edges[-1], duration_s)
        return edges[:-1].copy(), edges[1:].copy()

    def _slack_s(self, duration_s: float) -> float:
        """The seconds by which rows and video may end apart: unfilled windows, dropped frames, durations by other clocks."""
        return max(4 * self.seconds_per_row, 2.0, 0.05 * duration_s)

    def to_json(self) -> dict[str, Any]:
        """The rule as recipes have it."""
        return {"kind": "even", "seconds_per_row": self.seconds_per_row, "offset_s": self.offset_s}


@dataclass(frozen=True)
class EvenSplit:
    """The rows of a video are equal parts of its duration."""

    def times(self, num_rows: int, duration_s: float | None) -> tuple[np.ndarray, np.ndarray]:
        """Return start and end of the rows, two float64 [n]; VideoError if the duration is not known."""
        if duration_s is None:
            raise VideoError("missing", "nothing says how long the video is, over which its rows are spread")
        edges = np.linspace(0.0, duration_s, num_rows + 1)
        return edges[:-1], edges[1:]

    def to_json(self) -> dict[str, Any]:
        """The rule as recipes have it."""
        return {"kind": "spread"}
