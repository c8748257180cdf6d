"""What is wrong with annotations, and what becomes of it: finds flaws, applies a policy to each, says what was done.

Every data set has such rows, and every code base treats them by a rule of its own, mostly unsaid. The defaults here keep
the numbers of queries that others report, and touch nothing that is sound but for rounding.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from pydantic.dataclasses import dataclass

from excl.datasets.annotations.moments import Moment
from excl.datasets.parsing import printable

NAMES_IN_REPORT = 3  # enough to go and look, few enough to read
NOT_FINITE, ENDS_TOO_EARLY = "a time is not a finite number", "it does not start before it ends"
BEYOND, DUPLICATE = "it lies beyond the video", "it is an exact duplicate"

Flaw = Literal["unordered", "beyond_video", "duplicates", "unusable_query"]
FLAWS: dict[Flaw, str] = {
    "unordered": "start not before the end",
    "beyond_video": "beyond the video's duration",
    "duplicates": "exact duplicates of an earlier row",
    "unusable_query": "query without a word, or too long for one",
}


@dataclass(frozen=True, config={"extra": "forbid"})
class CleaningPolicy:
    """What becomes of annotations that are wrong."""

    unordered: Literal["drop", "swap", "fail"] = "drop"
    """Moments that do not start before they end, or whose times are no finite numbers. swap exchanges a start that is
    after its end; the rest is dropped. The default is drop: nothing says that two times were exchanged rather than one
    mistyped (8 rows of the three data sets, which most others drop too)."""
    beyond_video: Literal["clip", "drop", "keep", "fail"] = "clip"
    """Moments that reach beyond the duration that the annotations give, or begin before 0. clip cuts them to the video and
    drops those of which nothing is left. The default is clip: those rows are sound but for rounding (Charades-STA: 1,805 of
    12,408 and 562 of 3,720, by 1.5 s at most), and no model can answer beyond the end."""
    duplicates: Literal["keep", "drop", "fail"] = "keep"
    """Rows that say the same of the same video as an earlier row of their split. The default is keep: TACoS has 2,284, and
    everybody's figures count them."""
    unusable_query: Literal["drop", "fail"] = "drop"
    """Queries without a word, and those of more than 2,000 characters: no sentence, but a whole file by mistake."""


@dataclasses.dataclass(frozen=True)
class Cleaning:
    """What `clean` did: the moments to use, those it changed (as they were, and how), those it dropped, with why."""

    kept: list[Moment]
    changed: list[tuple[Moment, Literal["clipped", "swapped"]]]
    dropped: list[tuple[Moment, str]]


def no_word(moment: Moment) -> str:
    """Why a moment's query cannot be used, as far as its characters tell; empty where it can."""
    return "" if moment.query.strip() else "the query is empty"


def find_flaws(moments: Iterable[Moment], *, why_unusable: Callable[[Moment], str] = no_word) -> dict[Flaw, list[Moment]]:
    """The moments with each flaw, in order, before anything is done about it; one may have several."""
    found: dict[Flaw, list[Moment]] = {flaw: [] for flaw in FLAWS}
    seen: set[tuple[object, ...]] = set()
    for moment in moments:
        if not _finite(moment) or moment.start_s >= moment.end_s:
            found["unordered"].append(moment)
        if _finite(moment) and _leaves_video(moment):
            found["beyond_video"].append(moment)
        if (content := _content(moment)) in seen:
            found["duplicates"].append(moment)
        seen.add(content)
        if why_unusable(moment):
            found["unusable_query"].append(moment)
    return found


def clean(
    moments: Sequence[Moment], hygiene: CleaningPolicy | None = None, *, why_unusable: Callable[[Moment], str] = no_word
) -> Cleaning:
    """The moments that can be used, in order, by the policies. `why_unusable` gives the reason why a query is none.

    ValueError names the first rows with a flaw whose policy is `fail`.
    """
    hygiene = hygiene or CleaningPolicy()
    _fail(find_flaws(moments, why_unusable=why_unusable), hygiene)
    result = Cleaning([], [], [])
    seen: set[tuple[object, ...]] = set()
    for moment in moments:
        repeated = _content(moment) in seen
        seen.add(_content(moment))
        ordered = _ordered(moment, hygiene)
        fits = ordered if ordered is None or hygiene.beyond_video == "keep" else _clipped(ordered)
        reason = why_unusable(moment)
        if ordered is None:
            reason = ENDS_TOO_EARLY if _finite(moment) else NOT_FINITE
        elif fits is None or (fits is not ordered and hygiene.beyond_video == "drop"):
            reason = BEYOND
        elif repeated and hygiene.duplicates == "drop":
            reason = DUPLICATE
        if reason or fits is None:
            result.dropped.append((moment, reason))
            continue
        result.kept.append(fits)
        if fits is not moment:
            result.changed.append((moment, "clipped" if fits is not ordered else "swapped"))
    return result


def _fail(found: Mapping[Flaw, list[Moment]], hygiene: CleaningPolicy) -> None:
    bad = {flaw: rows for flaw, rows in found.items() if rows and getattr(hygiene, flaw) == "fail"}
    if bad:
        lines = [f"{len(rows):,} rows: {FLAWS[flaw]}: {names(rows)}" for flaw, rows in bad.items()]
        settings = ", ".join(f"--hygiene.{flaw.replace('_', '-')}" for flaw in bad)
        raise ValueError("\n".join([*lines, f"correct the annotations, or choose what becomes of such rows by {settings}"]))


def _finite(moment: Moment) -> bool:
    return math.isfinite(moment.start_s) and math.isfinite(moment.end_s)


def _content(moment: Moment) -> tuple[object, ...]:
    return moment.split, moment.video_id, moment.start_s, moment.end_s, moment.raw_query or moment.query


def _ordered(moment: Moment, hygiene: CleaningPolicy) -> Moment | None:
    """The moment with its start before its end, if it is or can be brought to that; the very same where it is."""
    if not _finite(moment) or moment.start_s == moment.end_s:
        return None
    if moment.start_s < moment.end_s:
        return moment
    return replace(moment, start_s=moment.end_s, end_s=moment.start_s) if hygiene.unordered == "swap" else None


def fitted(moment: Moment) -> tuple[float, float]:
    """Start and end within [0, duration]."""
    end_s = moment.end_s if moment.duration_s is None else min(moment.end_s, moment.duration_s)
    return max(moment.start_s, 0.0), end_s


def _leaves_video(moment: Moment) -> bool:
    """Whether either time is outside [0, duration], in whatever order they stand."""
    first, last = sorted((moment.start_s, moment.end_s))
    return first < 0 or (moment.duration_s is not None and last > moment.duration_s)


def _clipped(moment: Moment) -> Moment | None:
    """The moment within [0, duration], None if nothing of it is; the very same where it was within."""
    start_s, end_s = fitted(moment)
    if (start_s, end_s) == (moment.start_s, moment.end_s):
        return moment
    return replace(moment, start_s=start_s, end_s=end_s) if start_s < end_s else None


def names(moments: Sequence[Moment]) -> str:
    """The first moments by source, video and times."""
    shown = [printable(f"{m.source} ({m.video_id} {m.start_s:g}-{m.end_s:g} s)") for m in moments[:NAMES_IN_REPORT]]
    more = len(moments) - len(shown)
    return ", ".join(shown) + (f" and {more:,} more" if more else "")
