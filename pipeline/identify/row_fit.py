"""Fit the numbers of rows to the durations of videos: which rates, windows and hops explain them, and how many exactly.

Every candidate predicts a count for each video. Its score is the logarithm of how probable the counts are under it (a share
of misses, fitted, that are mostly by one row) plus that of how usual it is; the shares of all candidates add up to 1. With
thousands of videos the counts decide, with three mostly the usage. A native rate that is not known is a mixture of the
rates that videos have.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from excl.pipeline.identify.row_rules import FRAMES_IN_WORDS, USUAL_FRAMES, USUAL_RATES, Frames, RowRule, row_rules

NATIVE_RATES = {30.0: 0.35, 29.97: 0.25, 25.0: 0.2, 24.0: 0.06, 23.976: 0.08, 15.0: 0.03, 50.0: 0.01, 60.0: 0.02}
SAMPLE = 40  # videos on which all candidates are tried
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
    tried, num_tried = _tried(sample, len(videos.rows))
    scored = [_scored(candidate, usual, videos, limit) for candidate, usual in tried]
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


def _tried(sample: Counted, num_videos: int) -> tuple[list[tuple[Candidate, float]], int]:
    """Return the candidates that explain a few videos best, with how usual they are, and the number of all."""
    countings = list(USUAL_FRAMES)
    rates, usual_rates = [*USUAL_RATES, None], [*USUAL_RATES.values(), 1.0]
    columns = [*USUAL_RATES, *([None] if _rates_known(sample) else NATIVE_RATES)]
    frames = np.array([[frames_at(fps, counting, sample) for fps in columns] for counting in countings])
    log_usual = np.log(np.outer(list(USUAL_FRAMES.values()), usual_rates))  # [countings, rates]
    rules = list(row_rules())
    scores = np.empty((len(rules), *log_usual.shape))
    for number, (rule, usual_rule) in enumerate(rules):
        errors = np.abs(rule.num_rows(frames) - sample.rows)  # [countings, rates, videos]
        fixed, native = errors[:, : len(USUAL_RATES)], errors[:, len(USUAL_RATES) :]
        of_native = score_of(native) if _rates_known(sample) else _mixture(native)[:, None]
        scores[number] = np.concatenate([score_of(fixed), of_native], axis=1) + math.log(usual_rule) + log_usual
    best = np.argsort(-scores, axis=None)[: KEPT if num_videos <= SAMPLE else KEPT_OF_MANY]
    candidates = []
    for rule_number, i, j in zip(*np.unravel_index(best, scores.shape), strict=True):
        rule, usual_rule = rules[rule_number]
        usual = usual_rule * USUAL_FRAMES[countings[i]] * usual_rates[j]
        candidates.append((Candidate(rates[j], rule, countings[i]), usual))
    return candidates, scores.size


def _rates_known(videos: Counted) -> bool:
    return bool((videos.fps > 0).all())


def score_of(errors: np.ndarray) -> np.ndarray:
    """Return the logarithm of how probable misses by so many rows are, float64 [...], from int64 [..., n]."""
    videos, num_missed = errors.shape[-1], (errors > 0).sum(axis=-1)
    misses = np.clip(num_missed / videos, LEAST_MISSES, 1 - 1e-9)
    beyond = np.clip(errors - 1, 0, 20).sum(axis=-1)
    return num_missed * np.log(misses / 4) - math.log(2) * beyond + (videos - num_missed) * np.log(1 - misses)


def _mixture(errors: np.ndarray) -> np.ndarray:
    """Return the score of errors under each of NATIVE_RATES, int64 [..., rates, n], of which each video has one."""
    weights = (np.array(list(NATIVE_RATES.values()))[:, None] * (errors == 0)).sum(axis=-2)
    return np.log(np.where(weights > 0, weights, 1.0)).sum(axis=-1) + score_of(errors.min(axis=-2))


def _scored(candidate: Candidate, usual: float, videos: Counted, limit: int | None) -> Candidate:
    """Return the candidate with its score on these videos."""
    if candidate.fps is None and not _rates_known(videos):
        of_rates = [_errors(dataclasses.replace(candidate, fps=fps), videos, limit) for fps in NATIVE_RATES]
        errors, score = np.min(of_rates, axis=0), float(_mixture(np.array(of_rates)))
    else:
        errors = _errors(candidate, videos, limit)
        score = float(score_of(errors))
    exact = int((errors == 0).sum())
    return dataclasses.replace(candidate, exact=exact, videos=len(errors), score=score + math.log(usual))


def _errors(candidate: Candidate, videos: Counted, limit: int | None) -> np.ndarray:
    """Return by how many rows each video misses, int64 [n]."""
    expected = candidate.rule.num_rows(frames_at(candidate.fps, candidate.counting, videos))
    return np.abs((np.minimum(expected, limit) if limit else expected) - videos.rows)
