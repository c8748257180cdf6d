"""Fit the numbers of rows to the durations of videos: which rates, windows and hops explain them, and how many exactly.

Every candidate predicts a count for each video. Its score is the logarithm of how probable the counts are under it (a share
of misses, fitted, that are mostly by one row) plus that of how usual it is; the shares of all candidates add up to 1. With
thousands of videos the counts decide, with three mostly the usage. A native rate that is not known is a mixture of the
rates that videos have.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from excl.pipeline.identify.row_rules import FRAMES_IN_WORDS, USUAL_FRAMES, USUAL_RATES, Frames, RowRule, RowRules, row_rules

NATIVE_RATES = {30.0: 0.35, 29.97: 0.25, 25.0: 0.2, 24.0: 0.06, 23.976: 0.08, 15.0: 0.03, 50.0: 0.01, 60.0: 0.02}
SAMPLE = 40  # videos on which candidates are tried first
AT_ONCE = 2**18  # counts that are computed together
KEPT, KEPT_OF_MANY = 1200, 300  # candidates that are then tried on all videos; where these are many, the counts decide
LEAST_MISSES = 0.002  # durations are rounded, so a few counts may miss under the true rule
FAR = 60  # frames of which a row at the window's start depends on the last almost not
FIXED, CAPPED = 0.9, 0.02  # shares of videos with the largest number of rows, for a fixed length, and for a limit


@dataclass(frozen=True)
class Counted:
    """The rows of videos with their seconds; `fps` and `frames` are the videos' own, NaN and -1 where not known."""

    ids: tuple[str, ...]
    rows: np.ndarray
    duration_s: np.ndarray
    fps: np.ndarray
    frames: np.ndarray

    def subset(self, chosen: np.ndarray) -> Counted:
        """Return the videos of these indices."""
        ids = tuple(self.ids[int(i)] for i in chosen)
        return Counted(ids, self.rows[chosen], self.duration_s[chosen], self.fps[chosen], self.frames[chosen])


@dataclass(frozen=True)
class Candidate:
    """A rule at a rate (None: each video's own), and how its frames are counted; `exact` of `videos` counts are its own."""

    fps: float | None
    rule: RowRule
    counting: Frames
    exact: int = 0
    videos: int = 0
    score: float = -math.inf
    share: float = 0.0

    @property
    def key(self) -> tuple[object, ...]:
        """The settings that tell candidates apart: rate, window, hop, rows of a window, chunks."""
        rule = self.rule
        return self.fps, rule.window, rule.hop, rule.rows, rule.pool, rule.overlapping_chunks

    @property
    def first_row_key(self) -> tuple[object, ...]:
        """The settings that decide a video's first row: not hop, end, or the length of a window of several rows."""
        rule = self.rule
        if rule.rows > 1 and rule.window >= FAR:
            return dataclasses.replace(self, rule=RowRule(0, 8, pool=rule.pool)).first_row_key
        whole = (rule.hop, rule.overlapping_chunks, rule.end == "drop") if not rule.window else ()
        return self.fps, rule.window, rule.rows == 1, rule.pool, whole

    @property
    def rate(self) -> str:
        """The rate in words."""
        return "the video's own rate" if self.fps is None else f"{self.fps:g} frames a second"

    def __str__(self) -> str:
        return f"{self.rate}, {self.rule}; frames = duration x rate {FRAMES_IN_WORDS[self.counting]}"


@dataclass(frozen=True)
class RowFit:
    """The result: candidates, the best first and one for each rate, window and hop; what was found before any was tried.

    `kind` is "fixed" if all videos have `limit` rows, "capped" if none has more and many have as many. `seconds_a_row` is
    the slope of a robust line through durations and rows, with the seconds that the line misses at its start.
    """

    kind: Literal["free", "capped", "fixed"]
    limit: int | None
    seconds_a_row: float
    candidates: tuple[Candidate, ...]
    tried: int
    variants: Mapping[tuple[object, ...], tuple[Candidate, ...]] = dataclasses.field(default_factory=dict)


def fit_rows(videos: Counted) -> RowFit:
    """Fit all candidates; ValueError if there is no video."""
    if not len(videos.rows):
        raise ValueError("no video has both features and a duration")
    limit = limit_of(videos)
    at_limit = videos.rows == (limit or -1)
    if limit is not None and at_limit.mean() >= FIXED:
        return RowFit("fixed", limit, float(np.median(videos.duration_s) / limit), (), 0)
    free = np.flatnonzero(~at_limit)
    order = free[np.argsort(videos.duration_s[free])]
    sample = videos.subset(order[np.unique(np.linspace(0, len(order) - 1, SAMPLE).astype(int))])
    tried, usual, num_tried = _tried(sample, len(videos.rows))
    scores, exact = _Grid(videos, limit).scores_of(*tried)
    scored = [
        dataclasses.replace(_candidate(*place), exact=int(number), videos=len(videos.rows), score=float(score))
        for place, number, score in zip(np.transpose(tried), exact, scores + usual, strict=True)
    ]
    scored.sort(key=lambda candidate: -candidate.score)
    weights = np.exp(np.array([candidate.score for candidate in scored]) - max([c.score for c in scored], default=0.0))
    groups: dict[tuple[object, ...], list[Candidate]] = {}
    for candidate, weight in zip(scored, weights / weights.sum() if len(weights) else weights, strict=True):
        groups.setdefault(candidate.key, []).append(dataclasses.replace(candidate, share=float(weight)))
    best = [dataclasses.replace(group[0], share=sum(c.share for c in group)) for group in groups.values()]
    best.sort(key=lambda candidate: -candidate.share)
    variants = {key: tuple(group) for key, group in groups.items()}
    return RowFit("capped" if limit else "free", limit, seconds_a_row(sample), tuple(best), num_tried, variants)


def limit_of(videos: Counted) -> int | None:
    """Return the number of rows that is a limit: the largest, of several videos with durations far apart; else None."""
    largest = int(videos.rows.max())
    at_limit = videos.rows == largest
    durations = videos.duration_s[at_limit]
    several = at_limit.sum() >= max(3, CAPPED * len(videos.rows))
    return largest if several and durations.max() > 1.2 * durations.min() + 1 else None


def seconds_a_row(videos: Counted) -> float:
    """Return the median slope of lines through pairs of videos (Theil and Sen); of a single duration its seconds a row."""
    d, n = videos.duration_s, videos.rows
    i, j = np.triu_indices(len(d), 1)
    apart = np.abs(d[i] - d[j]) > 0.2 * np.median(d)
    slopes = (n[i] - n[j])[apart] / (d[i] - d[j])[apart]
    slope = float(np.median(slopes)) if len(slopes) else 0.0
    return 1 / slope if slope > 0 else float(np.median(d / n))


def frames_at(fps: float | None, counting: Frames, videos: Counted) -> np.ndarray:
    """Return the videos' numbers of frames at a rate, int64 [n]; at the videos' own rate those that they have."""
    exact = videos.duration_s * (videos.fps if fps is None else fps)
    if fps is None:
        exact = np.where(videos.frames > 0, videos.frames, exact)
    rounded = {"ceil": np.ceil(exact - 1e-6), "floor": np.floor(exact + 1e-6), "round": np.floor(exact + 0.5)}
    counted = rounded.get(counting, np.floor(exact + 0.5) - 1)
    return np.maximum(1, counted).astype(np.int64)


@functools.cache
def _rules() -> tuple[RowRules, np.ndarray]:
    """Return all rules, and the logarithm of how usual each is with each counting at each rate, float64 [r, c, rates]."""
    rules, usual = zip(*row_rules(), strict=True)
    others = np.outer(list(USUAL_FRAMES.values()), [*USUAL_RATES.values(), 1.0])
    return RowRules(rules), np.log(np.array(usual)[:, None, None] * others)


def _candidate(number: int, i: int, j: int) -> Candidate:
    """Return the candidate at a place of what `_rules` gives."""
    return Candidate([*USUAL_RATES, None][j], _rules()[0].all[number], [*USUAL_FRAMES][i])


def _tried(sample: Counted, num_videos: int) -> tuple[tuple[np.ndarray, ...], np.ndarray, int]:
    """Return where the candidates are that explain a few videos best, how usual they are, and the number of all.

    No score is computed where `bounds` says that it is not among the best.
    """
    grid, (_, log_usual) = _Grid(sample), _rules()
    bounds = grid.bounds()[:, None] + log_usual
    scores = np.full(bounds.shape, -np.inf)
    kept = min(KEPT if num_videos <= SAMPLE else KEPT_OF_MANY, scores.size)
    likely = bounds >= np.partition(bounds, -kept, axis=None)[-kept]
    scores[likely] = grid.scores_of(*np.nonzero(likely))[0] + log_usual[likely]
    others = (bounds >= np.partition(scores, -kept, axis=None)[-kept]) & ~likely
    scores[others] = grid.scores_of(*np.nonzero(others))[0] + log_usual[others]
    best = np.unravel_index(np.argsort(-scores, axis=None, kind="stable")[:kept], scores.shape)
    return best, log_usual[best], scores.size


class _Grid:
    """The scores of candidates, by their rule, counting and rate, on some videos."""

    def __init__(self, videos: Counted, limit: int | None = None) -> None:
        self._rules, self._rows, self._limit = _rules()[0], videos.rows, limit
        self._native_known = bool((videos.fps > 0).all())
        columns = [*USUAL_RATES, *([None] if self._native_known else NATIVE_RATES)]
        # [countings, columns, videos]
        self._frames = np.array([[frames_at(fps, counting, videos) for fps in columns] for counting in USUAL_FRAMES])

    def scores_of(self, numbers: np.ndarray, i: np.ndarray, j: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the scores of the candidates at these places, float64 [m], and how many counts are exact, int64 [m]."""
        scores, exact = np.empty(len(numbers)), np.empty(len(numbers), np.int64)
        mixed = (j == len(USUAL_RATES)) & (not self._native_known)
        for chosen, columns_each in ((np.flatnonzero(~mixed), 1), (np.flatnonzero(mixed), len(NATIVE_RATES))):
            at_once = max(1, AT_ONCE // (columns_each * len(self._rows)))
            for first in range(0, len(chosen), at_once):
                part = chosen[first : first + at_once]
                columns = j[part] if columns_each == 1 else slice(len(USUAL_RATES), None)
                expected = self._rules.num_rows(numbers[part], self._frames[i[part], columns])
                errors = np.abs((np.minimum(expected, self._limit) if self._limit else expected) - self._rows)
                scores[part] = score_of(errors) if columns_each == 1 else _mixture(errors)
                exact[part] = (errors.reshape(len(part), columns_each, -1) == 0).any(axis=1).sum(axis=1)
        return scores, exact

    def bounds(self) -> np.ndarray:
        """Return what the scores of rules at rates do not exceed, float64 [rules, rates].

        They come from the rows that a rule has a frame, give or take some.
        """
        fewest, most = self._frames.min(axis=0), self._frames.max(axis=0)
        of_rules = [(rule.rows_a_frame, rule.slack) for rule in self._rules.all]
        kinds, kind_of = np.unique(of_rules, axis=0, return_inverse=True)
        a_frame, slack = kinds[:, :1, None], kinds[:, 1:, None]
        off = np.maximum(fewest * a_frame - self._rows, self._rows - most * a_frame) - slack  # [kinds, columns, videos]
        errors = np.maximum(0, np.ceil(off - 1e-6)).astype(np.int64)
        fixed, native = errors[:, : len(USUAL_RATES)], errors[:, len(USUAL_RATES) :]
        of_native = _bound_of(native[:, 0]) if self._native_known else _mixture(native, _bound_of)
        return np.concatenate([_bound_of(fixed), of_native[:, None]], axis=1)[kind_of.ravel()] + 1e-6


def _bound_of(errors: np.ndarray) -> np.ndarray:
    """Return what `score_of` does not exceed for misses by so many rows or more, int64 [..., n]."""
    num_videos = errors.shape[-1]
    of_misses = _log_of_misses(np.arange(num_videos + 1), num_videos)
    so_many_or_more = np.maximum.accumulate(of_misses[::-1])[::-1]
    return so_many_or_more[(errors > 0).sum(axis=-1)] - math.log(2) * _rows_beyond(errors)


def score_of(errors: np.ndarray) -> np.ndarray:
    """Return the logarithm of how probable misses by so many rows are, float64 [...], from int64 [..., n]."""
    return _log_of_misses((errors > 0).sum(axis=-1), errors.shape[-1]) - math.log(2) * _rows_beyond(errors)


def _log_of_misses(num_missed: np.ndarray, num_videos: int) -> np.ndarray:
    misses = np.clip(num_missed / num_videos, LEAST_MISSES, 1 - 1e-9)
    return num_missed * np.log(misses / 4) + (num_videos - num_missed) * np.log(1 - misses)


def _rows_beyond(errors: np.ndarray) -> np.ndarray:
    """Return by how many rows more than one videos miss, int64 [...], from int64 [..., n]; no video by more than 20."""
    return np.clip(errors - 1, 0, 20).sum(axis=-1)


def _mixture(errors: np.ndarray, score: Callable[[np.ndarray], np.ndarray] = score_of) -> np.ndarray:
    """Return the score of errors under each of NATIVE_RATES, int64 [..., rates, n], of which each video has one."""
    weights = (np.array(list(NATIVE_RATES.values()))[:, None] * (errors == 0)).sum(axis=-2)
    return np.log(np.where(weights > 0, weights, 1.0)).sum(axis=-1) + score(errors.min(axis=-2))
