"""The result of `excl compare` as lines of text: videos, counts and medians, and one sentence."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

import numpy as np
from tabulate import tabulate

from excl.datasets.parsing import printable
from excl.pipeline.comparison.verdicts import EQUAL, Verdict, VideoVerdict

MEASURES = {  # title: name, whether the least or the greatest is the worst
    "mean cosine": ("cos_mean", min),
    "least cosine": ("cos_min", min),
    "mean cosine of inner rows": ("cos_inner", min),
    "mean cosine of the first and last rows": ("cos_border", min),
    "relative L2": ("rel", max),
    "largest difference": ("max_abs", max),
}
FIGURES = {  # title of a column: name
    "offset": "offset",
    "cosine": "cos_mean",
    "least": "cos_min",
    "rel. L2": "rel",
    "max diff": "max_abs",
    "factor": "factor",
}
ODDITIES = {
    "bad_values": "values that are not finite",
    "zero_rows": "rows of zeros",
    "same_as_previous": "rows equal to the one before",
    "repeated": "rows that repeat an earlier one",
}
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
    """The number of videos of each verdict, in the order of the verdicts."""
    numbers = Counter(judged.verdict for judged in videos.values())
    return {verdict: numbers[verdict] for verdict in Verdict if numbers[verdict]}


def table(videos: Mapping[str, VideoVerdict], max_videos: int) -> list[str]:
    """Return one line a video, at most `max_videos`, the most different first, and a line that counts those not shown."""

    def likeness(video_id: str) -> tuple[float, float, str]:
        cosine = getattr(videos[video_id].likeness, "cos_mean", math.nan)
        return -videos[video_id].verdict.severity, -2 if math.isnan(cosine) else cosine, video_id

    cells = []
    for video_id in sorted(videos, key=likeness)[:max_videos]:
        judged = videos[video_id]
        figures = [getattr(judged.likeness, name, None) for name in FIGURES.values()]
        remarks = "; ".join([judged.verdict, *judged.notes])
        cells.append([printable(video_id), judged.a.rows, judged.b.rows, *figures, remarks])
    titles = ["id", "rows A", "rows B", *FIGURES, "verdict"]
    lines = tabulate(
        cells,
        titles,
        tablefmt="plain",
        numalign="right",
        missingval="-",
        floatfmt=("", "", "", "", ".5f", ".5f", ".2g", ".2g", ".4g", ""),
        disable_numparse=[0, len(titles) - 1],
    ).splitlines()
    hidden = len(videos) - len(cells)
    return [
        *(lines if cells else []),
        *([f"{hidden:,} more videos, less different, are not shown (--show)"] if hidden else []),
    ]


def summary(videos: Mapping[str, VideoVerdict]) -> list[str]:
    """Return counts by verdict; for each measure the median and the worst, with its video; what is odd about the rows."""
    lines = [f"{count:>7,}  {verdict}" for verdict, count in counts(videos).items()]
    for title, (name, worst_of) in MEASURES.items():
        values = {video_id: getattr(judged.likeness, name, math.nan) for video_id, judged in videos.items()}
        values = {video_id: value for video_id, value in values.items() if not math.isnan(value)}
        if values:
            worst = worst_of(values, key=lambda video_id: values[video_id])
            median = float(np.median(list(values.values())))
            lines.append(f"{title}: median {median:.6g}, worst {values[worst]:.6g} ({printable(worst)})")
    for name, text in ODDITIES.items():
        for side in ("a", "b"):
            numbers = [getattr(getattr(judged, side), name) for judged in videos.values()]
            if any(numbers):
                lines.append(f"{side.upper()} has {sum(numbers):,} {text}, in {sum(map(bool, numbers)):,} videos")
    return lines


def conclusion(videos: Mapping[str, VideoVerdict], num_failed: int) -> str:
    """Return one sentence that answers the question for all videos together, and how many it does not hold for."""
    unread = f"; {num_failed:,} cannot be read" if num_failed else ""
    if not videos:
        return f"No video could be compared{unread}."
    numbers = counts(videos)
    equal = sum(numbers.get(verdict, 0) for verdict in EQUAL)
    common = max(numbers, key=lambda verdict: numbers[verdict])
    if equal == len(videos):
        return f"{ANSWERS[max(numbers, key=lambda verdict: verdict.severity)]}: all {equal:,} videos{unread}."
    if len(numbers) == 1:
        return f"{ANSWERS[common]}: all {len(videos):,} videos{unread}."
    if 2 * equal > len(videos):
        answer, excluded = f"For the most part: {equal:,} of {len(videos):,} videos have the same features", EQUAL
    elif 2 * numbers[common] > len(videos):
        answer, excluded = f"{ANSWERS[common]}: {numbers[common]:,} of {len(videos):,} videos", (common,)
    else:
        answer, excluded = f"No one answer for {len(videos):,} videos", ()
    verdict_counts = ", ".join(f"{count:,} {verdict}" for verdict, count in numbers.items() if verdict not in excluded)
    return f"{answer}; {verdict_counts}{unread}."
