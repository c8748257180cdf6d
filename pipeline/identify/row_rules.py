"""The rules by which features have rows, as candidates: the public pipelines' and their neighbours, with how usual they are.

T is the number of a video's frames at a rate. The whole video at once has a row every 8 frames (or 4, 2, 1); windows of w
frames, one every h, have one row each, or all that the network makes of one. How usual a rule is decides only between rules
that explain the counts equally well; the weights are a judgement from public code, not a measurement.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from excl.models.i3d.published_layouts import PortChunks
from excl.models.i3d.row_layout import Continuous, Pool, RowLayout, Windows
from excl.pipeline.store.feature_recipe import RowOptions

End = Literal["pad", "drop", "next", "every"]
Frames = Literal["ceil", "round", "floor", "one less"]
Ints = int | np.ndarray

USUAL_RATES = {
    24.0: 1.0, 25.0: 1.0, 5.0: 1.0, 30.0: 1.0, 29.97: 0.4, 16.0: 0.5, 15.0: 0.5, 10.0: 0.6, 8.0: 0.4, 12.0: 0.3, 20.0: 0.3,
    23.976: 0.2, 12.5: 0.2, 6.0: 0.2, 3.0: 0.2, 4.0: 0.2, 2.0: 0.2, 1.0: 0.2, 32.0: 0.1, 50.0: 0.1, 60.0: 0.1, 29.4: 0.05,
    7.5: 0.05, 9.0: 0.03, 14.0: 0.03, 18.0: 0.05, 28.0: 0.02, 40.0: 0.02, 48.0: 0.02,
}  # fmt: skip
USUAL_WINDOWS = {16: 1.0, 64: 0.8, 24: 0.6, 32: 0.6, 48: 0.2} | dict.fromkeys(
    (10, 12, 15, 20, 21, 25, 30, 36, 40, 50, 60, 72, 75, 80, 96, 100, 128), 0.08
)
HOPS = (1, 2, 4, 5, 6, 8, 10, 12, 15, 16, 18, 20, 24, 25, 30, 32, 36, 40, 48, 50, 60, 64, 72, 75, 80, 96, 100, 128)
USUAL_FRAMES: dict[Frames, float] = {"round": 0.4, "ceil": 0.35, "floor": 0.2, "one less": 0.05}
END_IN_WORDS = {
    "pad": "the last one padded",
    "drop": "an unfinished last one dropped",
    "next": "one more padded for what is left",
    "every": "one from every start, padded",
}
FRAMES_IN_WORDS = {"ceil": "rounded up", "round": "rounded", "floor": "rounded down", "one less": "rounded, less one"}


@dataclass(frozen=True)
class RowRule:
    """A rule for rows: of windows, `window` frames every `hop`, with `rows` rows each; of the whole video `window` is 0.

    Of the whole video the `end` says whether frames that fill no step of the network are padded or dropped; of windows "pad"
    has as many as cover the video, "drop" whole ones only, "next" one more than these unless it would begin at the end,
    "every" one from each multiple of the hop. `pool` as in a layout.
    """

    window: int
    hop: int
    rows: int = 1
    end: End = "pad"
    pool: Pool = "2x7x7"
    overlapping_chunks: bool = False

    def num_rows(self, frames: np.ndarray) -> np.ndarray:
        """Return the rows, int64 [...], of videos of so many frames, int64 [...]."""
        return self.num_rows_of(frames, self.window, self.hop, self.rows)

    def num_rows_of(  # noqa: PLR0911  (a formula for each kind)
        self, frames: np.ndarray, window: Ints, hop: Ints, rows: Ints
    ) -> np.ndarray:
        """Return the same for other numbers than this rule's, which may be arrays; those are 0 or 1 where its own are."""
        frames = np.maximum(frames, 1)
        if self.overlapping_chunks:
            lengths, number_of = np.unique(frames, return_inverse=True)
            counts = np.array([_rows_in_chunks(int(t)) for t in lengths], np.int64)
            return counts[number_of].reshape(frames.shape)
        if not self.window:
            steps = frames // hop if self.end == "drop" else -(-frames // hop)
            return np.maximum(1, steps - (self.pool == "2x7x7"))
        if self.end == "every":
            return -(-frames // hop) * rows
        beyond = np.maximum(0, frames - window)
        if self.end == "drop":
            return (beyond // hop + 1) * rows
        starts = -(-frames // hop)
        if self.end == "next":
            return np.minimum(beyond // hop + 1 + (frames >= window), starts) * rows
        windows = np.minimum(-(-beyond // hop) + 1, starts)
        if self.rows == 1:
            return windows
        # Of the last window's rows, which begin every 8 frames, the first half a step early, those of copies do not count.
        left = frames - (windows - 1) * hop - (4 if self.pool == "2x7x7" else 0)
        return (windows - 1) * rows + np.clip(-(-left // 8), 1, rows)

    @property
    def rows_a_frame(self) -> float:
        """The rows that a long video has for every frame."""
        if self.overlapping_chunks:
            return 212 / 1600  # each chunk brings 212 rows
        return self.rows / self.hop

    @property
    def slack(self) -> float:
        """The rows by which a video's count is at most away from its frames times `rows_a_frame`."""
        return 14.0 if self.overlapping_chunks else self.rows * (self.window / self.hop + 2)

    @property
    def options(self) -> RowOptions | None:
        """The settings of `extract` that have these rows; None if it has no such."""
        if self.overlapping_chunks:
            return RowOptions("piergiaj", bug_compatible=True)
        if not self.window:
            stride: Any = self.hop
            return RowOptions(stride=stride, pool=self.pool) if self.end == "pad" else None
        if self.end in ("next", "every") and not (self.hop >= self.window and self.rows == 1):
            return None
        last: Literal["pad", "drop"] = "drop" if self.end == "drop" else "pad"
        several = self.window > (16 if self.pool == "2x7x7" else 8)
        return RowOptions(
            window=self.window, hop=self.hop, window_mean=several and self.rows == 1, last_window=last, pool=self.pool
        )

    def layout(self) -> RowLayout:
        """Return the layout that gives these rows, or the nearest that `extract` has: all but the last rows are the same."""
        if self.options is not None:
            return self.options.layout()
        if not self.window:
            return Continuous(8, self.pool)
        return Windows(self.pool, mean=self.rows == 1 and self.window > 16, window=self.window, hop=self.hop, last="pad")

    def __str__(self) -> str:
        pool = "" if self.pool == "2x7x7" else ", one step of the network each (pool 1x7x7)"
        if self.overlapping_chunks:
            return "the whole video, a row every 8 frames, in chunks that overlap (piergiaj --bug-compatible)"
        if not self.window:
            end = "" if self.end == "pad" else ", frames that fill no 8 dropped"
            return f"the whole video, a row every {self.hop} frame{'s' * (self.hop > 1)}{end}{pool}"
        several = self.window > (16 if self.pool == "2x7x7" else 8)
        rows = "" if not several else ", averaged" if self.rows == 1 else f", {self.rows} rows each"
        return f"windows of {self.window} every {self.hop}{rows}, {END_IN_WORDS[self.end]}{pool}"


@functools.cache
def _rows_in_chunks(frames: int) -> int:
    return PortChunks().num_rows(frames) if frames > 8 else 1


class RowRules:
    """Many rules, whose rows are counted together."""

    def __init__(self, rules: Sequence[RowRule]) -> None:
        self.all = tuple(rules)
        self._numbers = np.array([(rule.window, rule.hop, rule.rows) for rule in rules], np.int64)
        kinds: dict[RowRule, int] = {}  # rules whose formula is the same
        alike = [dataclasses.replace(r, window=min(r.window, 1), hop=1, rows=min(r.rows, 2)) for r in rules]
        self._kind_of = np.array([kinds.setdefault(rule, len(kinds)) for rule in alike])
        self._kinds = list(kinds)

    def num_rows(self, numbers: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """Return the rows by the rules of these numbers, int64 [m], of videos of so many frames, int64 [m, ..., n]."""
        counts = np.empty_like(frames)
        of_rules = self._numbers[numbers].T.reshape(3, -1, *[1] * (frames.ndim - 1))  # each [m, 1, ...]
        for kind, rule in enumerate(self._kinds):
            chosen = np.flatnonzero(self._kind_of[numbers] == kind)
            if len(chosen):
                counts[chosen] = rule.num_rows_of(frames[chosen], *of_rules[:, chosen])
        return counts


def row_rules() -> Iterator[tuple[RowRule, float]]:
    """Yield all rules to try with how usual they are."""
    whole = RowRule(0, 8)
    yield whole, 1.0
    yield dataclasses.replace(whole, end="drop"), 0.1
    yield dataclasses.replace(whole, pool="1x7x7"), 0.15
    yield dataclasses.replace(whole, pool="1x7x7", end="drop"), 0.15
    yield dataclasses.replace(whole, overlapping_chunks=True), 0.2
    for stride in (4, 2, 1):
        yield dataclasses.replace(whole, hop=stride), 0.05
    ends: dict[End, float] = {"pad": 0.35, "drop": 0.4, "next": 0.1, "every": 0.15}
    for (window, usual), hop in itertools.product(USUAL_WINDOWS.items(), HOPS):
        if hop > window:
            continue
        overlap = {1.0: 1.0, 2.0: 0.5, 4.0: 0.25}.get(window / hop, 0.3 if hop == 8 else 0.15 if hop == 4 else 0.03)
        for end, share in ends.items():
            yield RowRule(window, hop, 1, end), usual * overlap * share
            if window > 16:
                yield (
                    RowRule(window, hop, -(-window // 8) - 1, end),
                    usual * overlap * share * (0.4 if hop == window else 0.05),
                )
            if window in (16, 24, 32, 64):
                yield RowRule(window, hop, window // 8, end, "1x7x7"), usual * overlap * share * 0.05
    for end, share in ends.items():  # clips of one step, of which the published pool makes nothing
        yield RowRule(8, 8, 1, end, "1x7x7"), 0.1 * share
