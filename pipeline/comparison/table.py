"""What `excl compare` found, as lines of text: videos, counts and medians, and one sentence."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from excl.datasets.parsing import printable
from excl.pipeline.comparison.verdicts import EQUAL, Verdict, VideoVerdict

MEASURES = (  # title, name, whether more is worse
    ("mean cosine", "cos_mean", False),
    ("least cosine", "cos_min", False),
    ("mean cosine of inner rows", "cos_inner", False),
    ("mean cosine of the first and last rows", "cos_border", False),
    ("relative L2", "rel", True),
    ("largest difference", "max_abs", True),
)
ANSWERS = {
    Verdict.IDENTICAL: "Yes, these are the same features, value by value",
    Verdict.ROUNDING: "Yes, these are the same features, up to the rounding of float16",
    Verdict.REDUCED: "Yes, these are the same features, computed with reduced precision",
    Verdict.LENGTH: "Nearly: the same features, but one side has more rows",
    Verdict.SHIFTED: "Nearly: the same features, but shifted",
    Verdict.BORDERS: "Nearly: the same features, but for the first and last rows",
    Verdict.ROWS: "Nearly: the same features, but for some rows",
    Verdict.REPEATS: "Nearly: the same features, but one side repeats rows",
    Verdict.FACTOR: "Nearly: the same features, but multiplied or normalised",
    Verdict.RATE: "No: features of another rate; at the same times they are alike",
    Verdict.RELATED: "No: related features, as one network gives from frames that were prepared in another way",
    Verdict.UNCLEAR: "Nothing shows that they are the same: rows of other moments are nearly as alike",
    Verdict.DIFFERENT: "No, these are different features",
    Verdict.INCOMPARABLE: "They cannot be compared",
}


def counts(videos: Mapping[str, VideoVerdict]) -> dict[Verdict, int]:
    """How many videos each verdict has, in the order of the verdicts."""
    found = Counter(judged.verdict for judged in videos.values())
    return {verdict: found[verdict] for verdict in Verdict if found[verdict]}


def worst_first(videos: Mapping[str, VideoVerdict]) -> list[str]:
    """The ids of the videos, the most different first."""

    def badness(name: str) -> tuple[float, float, str]:
        found = videos[name].likeness
        return -videos[name].verdict.severity, found.cos_mean if found and not math.isnan(found.cos_mean) else -2, name

    return sorted(videos, key=badness)


def table(videos: Mapping[str, VideoVerdict], most: int) -> list[str]:
    """One line a video, at most `most` of them, with a line that says how many are not shown."""
    if not videos:
        return []
    chosen = worst_first(videos)[:most]
    lines = []
    if chosen:
        width = max(2, *(len(printable(name)) for name in chosen))
        lines.append(
            f"{'id':{width}}{'rows A':>8}{'rows B':>8}{'offset':>8}{'cosine':>9}{'least':>9}{'rel. L2':>10}"
            f"{'max diff':>10}{'factor':>10}  verdict"
        )
        lines += [_line(name, videos[name], width) for name in chosen]
    hidden = len(videos) - len(chosen)
    return [*lines, *([f"{hidden:,} more videos, less different, are not shown (--show)"] if hidden else [])]


def _line(name: str, judged: VideoVerdict, width: int) -> str:
    found = judged.likeness
    figures = f"{'-':>8}{'-':>9}{'-':>9}{'-':>10}{'-':>10}{'-':>10}"
    if found is not None:
        figures = (
            f"{found.offset:>8}{found.cos_mean:>9.5f}{found.cos_min:>9.5f}{found.rel:>10.2g}"
            f"{found.max_abs:>10.2g}{found.factor:>10.4g}"
        )
    remarks = "; ".join([judged.verdict, *judged.notes])
    return f"{printable(name):{width}}{judged.a.rows:>8}{judged.b.rows:>8}{figures}  {remarks}"


def summary(videos: Mapping[str, VideoVerdict]) -> list[str]:
    """Counts by verdict; of each measure the median and the worst, with its video."""
    lines = [f"{count:>7,}  {verdict}" for verdict, count in counts(videos).items()]
    for title, name, more_is_worse in MEASURES:
        values = {
            video: float(getattr(judged.likeness, name)) for video, judged in videos.items() if judged.likeness is not None
        }
        values = {video: value for video, value in values.items() if not math.isnan(value)}
        if values:
            worst = (max if more_is_worse else min)(values, key=lambda video: values[video])
            median = float(np.median(list(values.values())))
            lines.append(f"{title}: median {median:.6g}, worst {values[worst]:.6g} ({printable(worst)})")
    lines += _conditions(list(videos.values()))
    return lines


def _conditions(videos: Sequence[VideoVerdict]) -> list[str]:
    """A line for everything that is odd about the rows of one side."""
    words = {
        "bad_values": "values that are not finite",
        "zero_rows": "rows of zeros",
        "same_as_previous": "rows equal to the one before",
        "repeated": "rows that repeat an earlier one",
    }
    lines = []
    for name, text in words.items():
        for side in ("a", "b"):
            numbers = [getattr(getattr(judged, side), name) for judged in videos]
            if any(numbers):
                lines.append(f"{side.upper()} has {sum(numbers):,} {text}, in {sum(map(bool, numbers)):,} videos")
    return lines


def conclusion(videos: Mapping[str, VideoVerdict], failed: int) -> str:
    """One sentence that answers the question, for all videos together, and how many it does not hold for."""
    lost = f"; {failed:,} cannot be read" if failed else ""
    if not videos:
        return f"No video could be compared{lost}."
    found = counts(videos)
    equal = sum(found.get(verdict, 0) for verdict in EQUAL)
    if equal == len(videos):
        return f"{ANSWERS[max(found, key=lambda v: v.severity)]}: all {equal:,} videos{lost}."
    if len(found) == 1:
        return f"{ANSWERS[next(iter(found))]}: all {len(videos):,} videos{lost}."
    if 2 * equal > len(videos):
        return f"For the most part: {equal:,} of {len(videos):,} videos have the same features{_rest(found, EQUAL)}{lost}."
    common = max(found, key=lambda verdict: found[verdict])
    if 2 * found[common] <= len(videos):
        return f"No one answer for {len(videos):,} videos{_rest(found, ())}{lost}."
    return f"{ANSWERS[common]}: {found[common]:,} of {len(videos):,} videos{_rest(found, (common,))}{lost}."


def _rest(found: Mapping[Verdict, int], but: Sequence[Verdict]) -> str:
    return "; " + ", ".join(f"{count:,} {verdict}" for verdict, count in found.items() if verdict not in but)
