"""The cleaning of annotations: finds flaws, applies a policy to each, reports what was done.

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
from excl.datasets.parsing import printable, shortened

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
    """The policies for annotations that are wrong."""

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
    """The result of `clean`: the moments to use, those changed (as they were, and how), those dropped, and the reason."""

    usable: list[Moment]
    changed: list[tuple[Moment, Literal["clipped", "swapped"]]]
    dropped: list[tuple[Moment, str]]


def find_missing_words(moment: Moment) -> str:
    """Return why a moment's query cannot be used, as far as its characters tell; empty if it can."""
    return "" if moment.query.strip() else "the query is empty"


def find_flaws(
    moments: Iterable[Moment], *, why_unusable: Callable[[Moment], str] = find_missing_words
) -> dict[Flaw, list[Moment]]:
    """Return the moments with each flaw, in order, before anything is done about it; one may have several."""
    flawed: dict[Flaw, list[Moment]] = {flaw: [] for flaw in FLAWS}
    seen: set[tuple[object, ...]] = set()
    for moment in moments:
        if not _finite(moment) or moment.start_s >= moment.end_s:
            flawed["unordered"].append(moment)
        if _finite(moment) and _leaves_video(moment):
            flawed["beyond_video"].append(moment)
        if (content := _content(moment)) in seen:
            flawed["duplicates"].append(moment)
        seen.add(content)
        if why_unusable(moment):
            flawed["unusable_query"].append(moment)
    return flawed


def clean(
    moments: Sequence[Moment],
    policy: CleaningPolicy | None = None,
    *,
    why_unusable: Callable[[Moment], str] = find_missing_words,
) -> Cleaning:
    """Return the moments that can be used, in order, by the policy. `why_unusable` returns why a query cannot be used.

    Raises ValueError, naming the first rows, for a flaw whose policy is `fail`.
    """
    policy = policy or CleaningPolicy()
    _require_allowed(find_flaws(moments, why_unusable=why_unusable), policy)
    result = Cleaning([], [], [])
    seen: set[tuple[object, ...]] = set()
    for moment in moments:
        repeated = _content(moment) in seen
        seen.add(_content(moment))
        ordered = _ordered(moment, policy)
        fits = ordered if ordered is None or policy.beyond_video == "keep" else _clipped(ordered)
        reason = why_unusable(moment)
        if ordered is None:
            reason = ENDS_TOO_EARLY if _finite(moment) else NOT_FINITE
        elif fits is None or (fits is not ordered and policy.beyond_video == "drop"):
            reason = BEYOND
        elif repeated and policy.duplicates == "drop":
            reason = DUPLICATE
        if reason or fits is None:
            result.dropped.append((moment, reason))
            continue
        result.usable.append(fits)
        if fits is not moment:
            result.changed.append((moment, "clipped" if fits is not ordered else "swapped"))
    return result


def _require_allowed(flawed: Mapping[Flaw, list[Moment]], policy: CleaningPolicy) -> None:
    bad = {flaw: rows for flaw, rows in flawed.items() if rows and getattr(policy, flaw) == "fail"}
    if bad:
        lines = [f"{len(rows):,} rows: {FLAWS[flaw]}: {list_moments(rows)}" for flaw, rows in bad.items()]
        settings = ", ".join(f"--hygiene.{flaw.replace('_', '-')}" for flaw in bad)
        raise ValueError("\n".join([*lines, f"correct the annotations, or choose what becomes of such rows by {settings}"]))


def _finite(moment: Moment) -> bool:
    return math.isfinite(moment.start_s) and math.isfinite(moment.end_s)


def _content(moment: Moment) -> tuple[object, ...]:
    return moment.split, moment.video_id, moment.start_s, moment.end_s, moment.raw_query or moment.query


def _ordered(moment: Moment, policy: CleaningPolicy) -> Moment | None:
    """Return the moment itself if its start is before its end, else one brought to that, or None."""
    if not _finite(moment) or moment.start_s == moment.end_s:
        return None
    if moment.start_s < moment.end_s:
        return moment
    return replace(moment, start_s=moment.end_s, end_s=moment.start_s) if policy.unordered == "swap" else None


def fitted(moment: Moment) -> tuple[float, float]:
    """Return start and end within [0, duration]."""
    end_s = moment.end_s if moment.duration_s is None else min(moment.end_s, moment.duration_s)
    return max(moment.start_s, 0.0), end_s


def _leaves_video(moment: Moment) -> bool:
    """Return whether either time is outside [0, duration], in whatever order they stand."""
    earlier_s, later_s = sorted((moment.start_s, moment.end_s))
    return earlier_s < 0 or (moment.duration_s is not None and later_s > moment.duration_s)


def _clipped(moment: Moment) -> Moment | None:
    """Return the moment itself if it is within [0, duration], else the part of it that is, or None."""
    start_s, end_s = fitted(moment)
    if (start_s, end_s) == (moment.start_s, moment.end_s):
        return moment
    return replace(moment, start_s=start_s, end_s=end_s) if start_s < end_s else None


def list_moments(moments: Sequence[Moment]) -> str:
    """Return the first moments by source, video and times."""
    return shortened(
        moments,
        most=NAMES_IN_REPORT,
        describe=lambda m: printable(f"{m.source} ({m.video_id} {m.start_s:g}-{m.end_s:g} s)"),
    )
