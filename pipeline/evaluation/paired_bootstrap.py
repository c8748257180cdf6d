"""The differences of methods on the same queries: a paired bootstrap by video, with seeds as a second level.

Letters in shapes: S seeds (trainings of one method), Q queries, V videos, F figures, R resamples.

A method's figure is its mean over queries and seeds. The difference of two methods would be another with other videos and
with other seeds. So each resample draws videos, the same for both methods and for all seeds, and adds to each method a draw
of its mean over seeds. Of the variance between seeds only that part is drawn which the draw of videos does not hold already:
chance in single videos makes the figures of seeds differ, too. It is drawn from Student's t with S - 1 degrees of freedom,
since two to five seeds, drawn with replacement, would scatter too little. With one seed there is no second level: the
interval is then about two trainings, and not about two methods.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from excl.models.excl import query_figures, query_ious
from excl.pipeline.evaluation.split_metrics import GroundTruth

FIGURES = ("R1@0.3", "R1@0.5", "R1@0.7", "mIoU")
RESAMPLES = 2000
STANDARD_ERRORS_SEEN = 1.96 + 0.84
"""The standard errors at which a true difference stands at 95 % in four of five tries."""


@dataclass(frozen=True)
class Difference:
    """How much better one method is than another in one figure, in points of percent, with its 95 % interval.

    It `stands` if the interval leaves out 0. The last two say how many seeds of both methods, with these videos, or how many
    videos, with these seeds, would let a true difference of 1 point stand in four of five tries; None where no number would,
    or where one seed does not say.
    """

    method: str
    other: str
    figure: str
    difference: float
    low: float
    high: float
    stands: bool
    seeds_for_1_point: int | None
    videos_for_1_point: int | None


@dataclass(frozen=True)
class _Samples:
    """One method: its seeds' figures [S, F], resampled means over seeds [R, F], and what its variance consists of [F].

    `per_seed` is the variance of one seed's figure by chance in single videos, `of_seed` that between seeds beyond it.
    """

    seeds: np.ndarray
    resampled: np.ndarray
    per_seed: np.ndarray
    of_seed: np.ndarray

    @property
    def level(self) -> np.ndarray:
        """The variance of the mean over seeds between draws of seeds, [F]."""
        return self.of_seed / len(self.seeds)


def query_values(windows: np.ndarray, truth: GroundTruth) -> np.ndarray:
    """Return what every query adds to FIGURES in percent, float64 [Q, F], for windows [N, k, 2 or 3], best first."""
    figures = query_figures(query_ious(windows[:, :1, :2], truth.moments, truth.query_ids))
    return np.stack([figures[name] for name in FIGURES], axis=1)


def query_videos(truth: GroundTruth) -> np.ndarray:
    """Return the video id of every query, [Q], in the order of `query_values`."""
    return truth.video_ids[np.sort(np.unique(truth.query_ids, return_index=True)[1])]


def differences(methods: Mapping[str, np.ndarray], video_ids: np.ndarray, *, seed: int = 0) -> list[Difference]:
    """Return the differences of every two methods in every figure.

    `methods` has each one's values of queries, [S, Q, F]; `video_ids` [Q] says which query is of which video.
    Raises ValueError for fewer than two videos.
    """
    _, video, num_queries = np.unique(video_ids, return_inverse=True, return_counts=True)
    num_videos = len(num_queries)
    if num_videos < 2:
        raise ValueError("all queries are about one video; how much differences vary between videos needs two or more")
    order, first = np.argsort(video, kind="stable"), np.cumsum(num_queries) - num_queries
    random = np.random.default_rng(seed)
    # How often each video is drawn, [R, V]: one draw less than there are videos, so that the variance has no bias.
    times = random.multinomial(num_videos - 1, np.full(num_videos, 1 / num_videos), RESAMPLES).astype(np.float64)
    samples = {}
    for name, values in methods.items():
        totals = np.add.reduceat(values[:, order], first, axis=1)  # [S, V, F]
        samples[name] = _sample(totals, num_queries, times)
    noise = {name: random.standard_t(max(len(method.seeds) - 1, 1), RESAMPLES) for name, method in samples.items()}
    return [
        difference
        for a, b in itertools.combinations(samples, 2)
        for difference in _compare((a, samples[a], noise[a]), (b, samples[b], noise[b]), num_videos)
    ]


def _sample(totals: np.ndarray, num_queries: np.ndarray, times: np.ndarray) -> _Samples:
    num_seeds, num_videos, num_figures = totals.shape
    seeds = totals.sum(1) / num_queries.sum()
    resampled = (times @ totals.mean(0)) / (times @ num_queries)[:, None]
    if num_seeds == 1:
        return _Samples(seeds, resampled, np.zeros(num_figures), np.zeros(num_figures))
    shares = (totals - num_queries[:, None] * seeds[:, None]) / num_queries.sum()  # [S, V, F]
    per_seed = shares.var(axis=0, ddof=1).sum(0) * num_videos / (num_videos - 1)
    return _Samples(seeds, resampled, per_seed, np.maximum(seeds.var(axis=0, ddof=1) - per_seed, 0.0))


def _compare(
    method: tuple[str, _Samples, np.ndarray], other: tuple[str, _Samples, np.ndarray], num_videos: int
) -> list[Difference]:
    (name, a, noise_a), (other_name, b, noise_b) = method, other
    of_videos = a.resampled - b.resampled  # [R, F]
    draws = of_videos + noise_a[:, None] * np.sqrt(a.level) - noise_b[:, None] * np.sqrt(b.level)
    means = a.seeds.mean(0) - b.seeds.mean(0)
    lows, highs = np.quantile(draws, [0.025, 0.975], axis=0)
    single = a.per_seed / len(a.seeds) + b.per_seed / len(b.seeds)
    beyond = np.maximum(of_videos.var(axis=0, ddof=1) - single, 0.0)  # between videos, whatever the seeds
    results = []
    for index, figure in enumerate(FIGURES):
        low, high = float(lows[index]), float(highs[index])
        seeds: int | None = None
        videos: int | None = None
        allowed = STANDARD_ERRORS_SEEN**-2  # the variance with which 1 point is seen
        if min(len(a.seeds), len(b.seeds)) > 1:
            every_seed = a.of_seed + b.of_seed + a.per_seed + b.per_seed
            seeds = _needed(every_seed[index], allowed - beyond[index])
            videos = _needed(num_videos * (beyond + single)[index], allowed - (a.level + b.level)[index])
        difference = float(means[index])
        results.append(Difference(name, other_name, figure, difference, low, high, not low <= 0 <= high, seeds, videos))
    return results


def _needed(variance_of_one: float, allowed: float) -> int | None:
    """Return how many of something bring the variance of their mean down to what is allowed; None if nothing is."""
    return max(math.ceil(variance_of_one / allowed), 1) if allowed > 0 else None
