"""The rules that lead from measured figures to words: when two arrays of features are the same, alike or different.

The rules are tried in the order of `Verdict`; `docs/comparing.md` explains them to users.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from excl.datasets.parsing import shortened
from excl.pipeline.comparison.similarity import (
    RowStatistics,
    Similarity,
    is_nearer,
    measure_similarity,
    repeats,
    row_statistics,
)

ROUNDING, REDUCED = 1e-3, 2e-2  # relative L2
FACTOR = 1 - REDUCED**2 / 2  # the cosine of rows that are REDUCED apart once they have the same length
RELATED = 0.9  # mean cosine
FEW_ODD = 0.1  # of all rows


class Verdict(StrEnum):
    """The verdict of a comparison, from the same to features that cannot be compared."""

    IDENTICAL = "identical"
    ROUNDING = "equal to float16 rounding"
    REDUCED = "equal to reduced precision"
    LENGTH = "same rows, one side has more"
    SHIFTED = "shifted"
    BORDERS = "same but for the borders"
    ROWS = "same but for some rows"
    REPEATS = "same but for repeated rows"
    FACTOR = "same up to a factor"
    RATE = "another rate"
    RELATED = "related"
    UNCLEAR = "unclear"
    DIFFERENT = "different"
    INCOMPARABLE = "incomparable"

    @property
    def severity(self) -> int:
        """The place of the verdict in the order of the rules."""
        return list(Verdict).index(self)


EQUAL: tuple[Verdict, ...] = (Verdict.IDENTICAL, Verdict.ROUNDING, Verdict.REDUCED)


@dataclass(frozen=True)
class VideoVerdict:
    """One video: the rows of both sides, the similarity that decided (None if there is none), the verdict, and remarks."""

    a: RowStatistics
    b: RowStatistics
    likeness: Similarity | None
    verdict: Verdict
    notes: tuple[str, ...]


def judge(a: np.ndarray, b: np.ndarray, max_offset: int, rows_of_b: np.ndarray | None = None) -> VideoVerdict:
    """Compare rows A [n, D] with B [m, D]; `rows_of_b` as in `measure_similarity`."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    rows_a, rows_b = row_statistics(a), row_statistics(b)
    if rows_a.width != rows_b.width:
        note = f"{rows_a.width} values a row in A, {rows_b.width} in B"
        return VideoVerdict(rows_a, rows_b, None, Verdict.INCOMPARABLE, (note,))
    notes: tuple[str, ...] = ()
    if a.shape == b.shape and np.array_equal(a, b, equal_nan=True):
        similarity, verdict = measure_similarity(a, b, 0), Verdict.IDENTICAL
    else:
        similarity = measure_similarity(a, b, max_offset, rows_of_b)
        verdict = classify(rows_a, rows_b, similarity)
    if verdict.severity > Verdict.SHIFTED.severity and (rows_a.repeated or rows_b.repeated):
        distinct = measure_similarity(a[repeats(a)[1] == 0], b[repeats(b)[1] == 0], max_offset)
        if distinct.rel <= REDUCED and not distinct.odd and not distinct.resampled:
            similarity, verdict = distinct, Verdict.REPEATS
        elif is_nearer(distinct.cos_mean, similarity.cos_mean):
            notes = ("without the repeated rows",)
            similarity, verdict = distinct, classify(rows_a, rows_b, distinct)
    return VideoVerdict(rows_a, rows_b, similarity, verdict, notes + _remarks(rows_a, rows_b, similarity, verdict))


def classify(a: RowStatistics, b: RowStatistics, similarity: Similarity) -> Verdict:
    """The first rule that holds, except IDENTICAL and REPEATS, which these figures do not show."""
    clear = not similarity.control > 2 * similarity.cos_mean - 1  # at most half as far apart as other moments
    same = similarity.rel <= REDUCED and not similarity.odd
    rules = (
        (Verdict.INCOMPARABLE, math.isnan(similarity.cos_mean)),
        (Verdict.RATE, similarity.resampled and similarity.cos_mean >= RELATED and clear),
        (Verdict.UNCLEAR, similarity.resampled and similarity.cos_mean >= RELATED),
        (Verdict.DIFFERENT, similarity.resampled),
        (Verdict.SHIFTED, same and similarity.offset != 0),
        (Verdict.LENGTH, same and a.rows != b.rows),
        (Verdict.ROUNDING, same and similarity.rel <= ROUNDING),
        (Verdict.REDUCED, same),
        (Verdict.BORDERS, similarity.rel_inner <= REDUCED and not similarity.odd_inside),
        (Verdict.ROWS, similarity.rel_regular <= REDUCED and len(similarity.odd) <= FEW_ODD * similarity.overlap),
        (Verdict.FACTOR, similarity.cos_min >= FACTOR and a.bad_rows == b.bad_rows == 0),
        (Verdict.RELATED, similarity.cos_mean >= RELATED and clear),
        (Verdict.UNCLEAR, similarity.cos_mean >= RELATED),
    )
    return next((verdict for verdict, holds in rules if holds), Verdict.DIFFERENT)


def ratio(rows_a: int, rows_b: int) -> str:
    """Return row counts as a ratio: `1:4` where they are that within a twentieth, else the quotient."""
    times = round(max(rows_a, rows_b) / min(rows_a, rows_b))
    if abs(max(rows_a, rows_b) / min(rows_a, rows_b) / times - 1) > 0.05 or times == 1:
        return f"{rows_a / rows_b:.3f}"
    return f"{times}:1" if rows_a > rows_b else f"1:{times}"


def _remarks(a: RowStatistics, b: RowStatistics, similarity: Similarity, verdict: Verdict) -> tuple[str, ...]:
    notes = []
    if similarity.resampled:
        notes.append(f"rows A to B {ratio(a.rows, b.rows)}, B resampled")
    if similarity.offset:
        notes.append(f"A[i] is B[i{similarity.offset:+d}]" + (" of the resampled rows" if similarity.resampled else ""))
    if verdict is Verdict.ROWS:
        odd_rows = shortened(similarity.odd, most=5, describe=str)
        notes.append(f"{len(similarity.odd)} of {similarity.overlap} rows differ (A's rows {odd_rows})")
    if verdict is Verdict.FACTOR and a.unit_norm == b.unit_norm:
        notes.append(f"A is about {similarity.factor:.4g} B")
    if verdict is Verdict.UNCLEAR:
        notes.append(f"rows of other moments match nearly as well (mean cosine {similarity.control:.3f})")
    if verdict is Verdict.INCOMPARABLE:
        notes.append("no two rows that are neither zero nor broken meet")
    if a.unit_norm != b.unit_norm:
        notes.append(f"only {'A' if a.unit_norm else 'B'} has rows of norm 1")
    for name, side in (("A", a), ("B", b)):
        if side.bad_values:
            notes.append(f"{name}: {side.bad_values} values in {side.bad_rows} rows are not finite")
        if side.zero_rows:
            notes.append(f"{name}: {side.zero_rows} rows of zeros")
        if side.same_as_previous:
            notes.append(f"{name}: {side.same_as_previous} rows equal the one before")
        if side.repeated:
            notes.append(f"{name}: {side.repeated} rows repeat an earlier one, mostly {side.repeat_distance} before")
    return tuple(notes)
