"""Measures of how alike two arrays of feature rows are: pure functions over [n, D] arrays, in float64, one video at a time.

Rows with a value that is not finite are left out of every measure, rows of zeros out of every cosine; both are counted.
A row of zeros on both sides is equal, and on one side only is an odd row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

BORDER = 7  # rows at either end that a network of I3D's reach computes partly from padding
REPEAT_REACH = 64  # rows back in which an equal row counts as a repetition
ODD_ROW = 0.1  # a row whose relative error is above this is not the same row
UNIT_NORM = 2e-3
TIE = 1e-6  # an offset has to be better than a smaller one by this much, in mean cosine
NEAR_COUNTS = 1.25  # row counts further apart than this are expected to be another rate


@dataclass(frozen=True)
class RowStatistics:
    """The statistics of one side's rows.

    `same_as_previous` counts rows equal to the one before, `repeated` others equal to one at most 64 rows before, whose
    most frequent distance is `repeat_distance`; rows of zeros are in neither.
    """

    rows: int
    width: int
    bad_values: int
    bad_rows: int
    zero_rows: int
    same_as_previous: int
    repeated: int
    repeat_distance: int
    unit_norm: bool


@dataclass(frozen=True)
class Similarity:
    """A[i] against B[i + offset], or, where `resampled`, against the row of B at the same time shifted by `offset`.

    `odd` lists the rows of A that are other rows, `control` is the mean cosine with rows half a video away. A figure that
    is not defined (no rows to take it from) is NaN.
    """

    offset: int
    resampled: bool
    overlap: int
    undefined: int
    cos_mean: float
    cos_min: float
    cos_inner: float
    cos_border: float
    control: float
    max_abs: float
    rel: float
    rel_inner: float
    rel_regular: float
    factor: float
    odd: tuple[int, ...]
    odd_inside: int


def repeats(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return two arrays [n] of distances: 1 where a row equals the one before, 2 to 64 where it repeats another; 0
    elsewhere.

    Rows of zeros have 0 in both, and a row that equals the one before has 0 in the second.
    """
    seen: dict[bytes, int] = {}
    codes = np.array([seen.setdefault(row.tobytes(), i) for i, row in enumerate(rows + 0.0)])  # + 0.0: -0.0 is 0.0
    counts = np.asarray(rows.any(axis=1))
    previous, earlier = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
    for distance in range(min(REPEAT_REACH, len(rows) - 1), 0, -1):  # so that the nearest is what stays
        equal = (codes[distance:] == codes[:-distance]) & counts[distance:]
        (previous if distance == 1 else earlier)[distance:][equal] = distance
    earlier[previous > 0] = 0
    return previous, earlier


def row_statistics(rows: np.ndarray) -> RowStatistics:
    """The statistics of rows [n, D]."""
    finite = np.isfinite(rows)
    good = finite.all(axis=1)
    previous, earlier = repeats(rows)
    norms = np.linalg.norm(rows[good], axis=1)
    unit = norms[norms > 0]
    distances = np.bincount(earlier[earlier > 0])
    return RowStatistics(
        rows=len(rows),
        width=rows.shape[1],
        bad_values=int((~finite).sum()),
        bad_rows=int((~good).sum()),
        zero_rows=int((norms == 0).sum()),
        same_as_previous=int((previous > 0).sum()),
        repeated=int((earlier > 0).sum()),
        repeat_distance=int(distances.argmax()) if len(distances) else 0,
        unit_norm=bool(len(unit) and np.abs(unit - 1).max() <= UNIT_NORM),
    )


def overlap_of(rows_a: int, rows_b: int, offset: int) -> tuple[int, int]:
    """Return first and last + 1 of the rows i of A for which B has a row i + offset."""
    return max(0, -offset), min(rows_a, rows_b - offset)


def best_offset(a: np.ndarray, b: np.ndarray, max_offset: int) -> tuple[int, float]:
    """The offset k with the greatest mean cosine between A[i] and B[i + k], and that mean.

    |k| is at most `max_offset`, and the rows in common are at least half of the shorter side. Of offsets within 1e-6 the
    one nearest to 0 is taken. The mean is NaN if no row has a direction on both sides.
    """
    a, b = _directions(a), _directions(b)
    best, best_mean = 0, np.nan
    for size in range(max_offset + 1):
        for offset in sorted({size, -size}, reverse=True):
            begin, end = overlap_of(len(a), len(b), offset)
            if 2 * (end - begin) < min(len(a), len(b)):
                continue
            mean = _mean(_cosines(a[begin:end], b[begin + offset : end + offset]))
            if not math.isnan(mean) and not mean <= best_mean + TIE:
                best, best_mean = offset, mean
        if best_mean >= 1 - TIE:  # nothing can be better
            break
    return best, best_mean


def measure_similarity(a: np.ndarray, b: np.ndarray, max_offset: int, rows_of_b: np.ndarray | None = None) -> Similarity:
    """Compare A with B at the best offset; if row counts differ also with B resampled to A's rows, if that fits better.

    If the counts are more than a quarter apart, B is resampled unless rows are half as far apart (1 - cosine) without that.

    `rows_of_b` [n of A] are the rows of B at the times of the rows of A; by default i * nB / nA, rounded down.
    """
    offset, mean = best_offset(a, b, max_offset)
    if len(a) != len(b):
        rows_of_b = np.arange(len(a)) * len(b) // len(a) if rows_of_b is None else rows_of_b
        resampled_offset, resampled_mean = best_offset(a, b[rows_of_b], max_offset)
        far = max(len(a), len(b)) > NEAR_COUNTS * min(len(a), len(b)) and mean < 1 - 1e-3
        if math.isnan(mean) or (1 - mean > (1 - resampled_mean) / 2 if far else is_nearer(resampled_mean, mean)):
            return _measure(a, b[rows_of_b], resampled_offset, resampled=True)
    return _measure(a, b, offset, resampled=False)


def is_nearer(mean: float, reference: float) -> bool:
    """Return whether rows with this mean cosine are clearly nearer than the reference: three quarters as far, at most."""
    return 1 - mean < 0.75 * (1 - reference)


def _measure(a: np.ndarray, b: np.ndarray, offset: int, *, resampled: bool) -> Similarity:
    begin, end = overlap_of(len(a), len(b), offset)
    i = np.arange(begin, end)
    a_end, b_end = (len(a) - BORDER, len(b) - BORDER)
    inner = (i >= BORDER) & (i < a_end) & (i + offset >= BORDER) & (i + offset < b_end)
    a, b = a[begin:end], b[begin + offset : end + offset]
    finite = np.isfinite(a).all(axis=1) & np.isfinite(b).all(axis=1)
    a, b, i_finite, inner_finite = a[finite], b[finite], i[finite], inner[finite]
    difference = a - b
    size_b, size_d = np.linalg.norm(b, axis=1), np.linalg.norm(difference, axis=1)
    floor = np.sqrt(np.mean(size_b**2)) / 10 if len(b) else 0.0
    odd = size_d > ODD_ROW * np.maximum(size_b, floor)
    cosines = _cosines(_directions(a), _directions(b))
    defined = ~np.isnan(cosines)
    odd_rows = np.sort(np.concatenate([i_finite[odd], i[~finite]]))
    return Similarity(
        offset=offset,
        resampled=resampled,
        overlap=len(i),
        undefined=int(len(i) - defined.sum()),
        cos_mean=_mean(cosines),
        cos_min=float(cosines[defined].min()) if defined.any() else np.nan,
        cos_inner=_mean(cosines[inner_finite]),
        cos_border=_mean(cosines[~inner_finite]),
        control=_control(a[defined], b[defined]),
        max_abs=float(np.abs(difference).max()) if difference.size else np.nan,
        rel=_relative(size_d, size_b),
        rel_inner=_relative(size_d[inner_finite], size_b[inner_finite]),
        rel_regular=_relative(size_d[~odd], size_b[~odd]),
        factor=float((a * b).sum() / (b * b).sum()) if b.any() else np.nan,
        odd=tuple(odd_rows.tolist()),
        odd_inside=int(np.isin(i[inner], odd_rows).sum()),
    )


def _directions(rows: np.ndarray) -> np.ndarray:
    """Return the rows scaled to norm 1; NaN where a row is zero or not finite."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    norms[~((norms > 0) & np.isfinite(norms))] = np.nan
    return rows / norms


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("nd,nd->n", a, b)


def _mean(values: np.ndarray) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else np.nan


def _relative(size_d: np.ndarray, size_b: np.ndarray) -> float:
    difference, base = float(np.linalg.norm(size_d)), float(np.linalg.norm(size_b))
    if not len(size_d):
        return np.nan
    return difference / base if base else (np.inf if difference else 0.0)


def _control(a: np.ndarray, b: np.ndarray) -> float:
    """The mean cosine of A's rows with rows of B half the rows away; NaN for fewer than four rows."""
    return _mean(_cosines(_directions(a), _directions(np.roll(b, len(b) // 2, axis=0)))) if len(a) >= 4 else np.nan
