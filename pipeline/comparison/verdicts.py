"""From measured figures to words: the rules by which two arrays of features are called the same, alike or different.

The rules are tried in the order of `Verdict`; `docs/comparing.md` explains them to users.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from excl.pipeline.comparison.similarity import (
    RowStatistics,
    Similarity,
    better,
    measure_similarity,
    repeats,
    row_statistics,
)

ROUNDING, REDUCED = 1e-3, 2e-2  # relative L2
FACTOR = 1 - REDUCED**2 / 2  # the cosine of rows that are REDUCED apart once they have the same length
RELATED = 0.9  # mean cosine
FEW_ODD = 0.1  # of all rows


class Verdict(StrEnum):
    """What a comparison comes to, from the same to what cannot be compared."""

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
        """Its place in the order of the rules."""
        return list(Verdict).index(self)


EQUAL = (Verdict.IDENTICAL, Verdict.ROUNDING, Verdict.REDUCED)


@dataclass(frozen=True)
class VideoVerdict:
    """One video: both conditions, the likeness that decided (None if there is none), the verdict, and remarks on it."""

    a: RowStatistics
    b: RowStatistics
    likeness: Similarity | None
    verdict: Verdict
    notes: tuple[str, ...]


def judge(a: np.ndarray, b: np.ndarray, max_offset: int, at: np.ndarray | None = None) -> VideoVerdict:
    """Compare rows A [n, D] with B [m, D]; `at` as `measure_similarity` takes it."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    of_a, of_b = row_statistics(a), row_statistics(b)
    if of_a.width != of_b.width:
        note = f"{of_a.width} values a row in A, {of_b.width} in B"
        return VideoVerdict(of_a, of_b, None, Verdict.INCOMPARABLE, (note,))
    if a.shape == b.shape and np.array_equal(a, b, equal_nan=True):
        found = measure_similarity(a, b, 0)
        return VideoVerdict(of_a, of_b, found, Verdict.IDENTICAL, _remarks(of_a, of_b, found, Verdict.IDENTICAL))
    found = measure_similarity(a, b, max_offset, at)
    verdict = classify(of_a, of_b, found)
    notes: tuple[str, ...] = ()
    if verdict not in (*EQUAL, Verdict.LENGTH, Verdict.SHIFTED) and (of_a.repeated or of_b.repeated):
        without = measure_similarity(a[repeats(a)[1] == 0], b[repeats(b)[1] == 0], max_offset)
        if without.rel <= REDUCED and not without.odd and not without.resampled:
            found, verdict = without, Verdict.REPEATS
        elif better(without.cos_mean, found.cos_mean):
            found, verdict, notes = without, classify(of_a, of_b, without), ("without the repeated rows",)
    return VideoVerdict(of_a, of_b, found, verdict, notes + _remarks(of_a, of_b, found, verdict))


def classify(a: RowStatistics, b: RowStatistics, found: Similarity) -> Verdict:
    """The first rule that holds, but for IDENTICAL and REPEATS, which are not seen from these figures."""
    clear = not found.control > 2 * found.cos_mean - 1  # at most half as far apart as rows of other moments are
    same = found.rel <= REDUCED and not found.odd
    rules = (
        (Verdict.INCOMPARABLE, math.isnan(found.cos_mean)),
        (Verdict.RATE, found.resampled and found.cos_mean >= RELATED and clear),
        (Verdict.UNCLEAR, found.resampled and found.cos_mean >= RELATED),
        (Verdict.DIFFERENT, found.resampled),
        (Verdict.SHIFTED, same and found.offset != 0),
        (Verdict.LENGTH, same and a.rows != b.rows),
        (Verdict.ROUNDING, same and found.rel <= ROUNDING),
        (Verdict.REDUCED, same),
        (Verdict.BORDERS, found.rel_inner <= REDUCED and not found.odd_inside),
        (Verdict.ROWS, found.rel_regular <= REDUCED and len(found.odd) <= FEW_ODD * found.overlap),
        (Verdict.FACTOR, found.cos_min >= FACTOR and a.bad_rows == b.bad_rows == 0),
        (Verdict.RELATED, found.cos_mean >= RELATED and clear),
        (Verdict.UNCLEAR, found.cos_mean >= RELATED),
    )
    return next((verdict for verdict, holds in rules if holds), Verdict.DIFFERENT)


def ratio(rows_a: int, rows_b: int) -> str:
    """Row counts as a ratio: `1:4` where they are that within a twentieth, else the quotient."""
    times = round(max(rows_a, rows_b) / min(rows_a, rows_b))
    if abs(max(rows_a, rows_b) / min(rows_a, rows_b) / times - 1) > 0.05 or times == 1:
        return f"{rows_a / rows_b:.3f}"
    return f"{times}:1" if rows_a > rows_b else f"1:{times}"


def _remarks(a: RowStatistics, b: RowStatistics, found: Similarity, verdict: Verdict) -> tuple[str, ...]:
    notes = []
    if found.resampled:
        notes.append(f"rows A to B {ratio(a.rows, b.rows)}, B resampled")
    if found.offset:
        notes.append(f"A[i] is B[i{found.offset:+d}]" + (" of the resampled rows" if found.resampled else ""))
    if verdict is Verdict.ROWS:
        listed = ", ".join(map(str, found.odd[:5])) + (", …" if len(found.odd) > 5 else "")
        notes.append(f"{len(found.odd)} of {found.overlap} rows differ (A's rows {listed})")
    if verdict is Verdict.FACTOR and a.unit_norm == b.unit_norm:
        notes.append(f"A is about {found.factor:.4g} B")
    if verdict is Verdict.UNCLEAR:
        notes.append(f"rows of other moments match nearly as well (mean cosine {found.control:.3f})")
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
