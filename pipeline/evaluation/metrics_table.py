"""Metrics as a table for people: a line for each approach on each group of queries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from tabulate import simple_separated_format, tabulate

from excl.models.excl import RECALL_AT, THRESHOLDS
from excl.pipeline.evaluation.moment_detr_metrics import LENGTHS_S, LEVELS
from excl.pipeline.evaluation.split_metrics import INTERVAL, NO_INTERVAL

SHORT_NAMES = {
    "model": "model",
    "best_fixed_span": "fixed",
    "time_prior": "time",
    "verb_prior": "verb",
    "query_only": "query",
    "video_only": "video",
    "query_blind": "blind",
}
"""Titles of columns for the approaches of `split_metrics`."""
ABOUT_BASELINES = (
    "No baseline sees a video together with its query. docs/baselines.md says what\n"
    "each knows, and what it means if one beats the model."
)
RECALLS = tuple(f"R{k}@{threshold}" for k in RECALL_AT for threshold in THRESHOLDS)


def table(rows: Iterable[tuple[str, str, dict[str, Any]]], *, strict: bool = False) -> list[str]:
    """Return a header, then for each approach its name and lines: the group of queries, their number, percentages.

    `rows` are (approach, group of queries, metrics). A missing metric is "-". Two lines below those of all queries give the
    95 % intervals of the bootstrap, or a last line says that there are none. `strict` shows the recalls that count IoU >
    threshold. No line is longer than 80 characters, unless a name is.
    """
    titles = {f"{name} strict" if strict else name: name.replace("@", ">" if strict else "@") for name in RECALLS}
    titles["mIoU"] = "mIoU"
    cells = [["", "queries", *titles.values()]]  # no headers to tabulate, which makes columns wider for them
    approaches: dict[int, str] = {}  # by the number of their first line
    last = []
    for approach, group in groupby(rows, key=itemgetter(0)):
        approaches[len(cells)] = approach
        for _, queries, metrics in group:
            values = [f"{metrics[name]:.1f}" if name in metrics else "-" for name in titles]
            cells.append([queries, f"{metrics['num_queries']:,}", *values])
            if queries == "all" and not metrics[INTERVAL]:
                last = [f"  {NO_INTERVAL}"]
            elif queries == "all":
                intervals = [metrics[INTERVAL].get(name) for name in titles]
                for label, end in (("95 % from", 0), ("to", 1)):
                    cells.append(
                        [label, "", *("" if interval is None else f"{interval[end]:.1f}" for interval in intervals)]
                    )
    lines = _aligned(cells)
    for number, approach in reversed(approaches.items()):
        lines.insert(number, approach)
    return [*lines, *last]


def kinds_table(kinds: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]]) -> list[str]:
    """Return R@1 at IoU 0.5 by kind of query for people: a line for each kind, a column for each approach."""
    approaches = list(next(iter(next(iter(kinds.values())).values())))
    cells = [["", "queries", *(SHORT_NAMES[approach] for approach in approaches)]]
    titles: dict[int, str] = {}
    for name, by_kind in kinds.items():
        titles[len(cells)] = name
        for kind, metrics in by_kind.items():
            figures = [f"{metrics[approach]['R1@0.5']:.1f}" for approach in approaches]
            cells.append([f"  {kind}", f"{metrics['model']['num_queries']:,}", *figures])
    lines = _aligned(cells)
    for number, title in reversed(titles.items()):
        lines.insert(number, f"  {title}")
    return ["R1@0.5 by kind of query", *lines]


def moment_detr_table(metrics: Mapping[str, Any]) -> list[str]:
    """Return the metrics of `moment_detr_metrics` for people: moments by length, then saliency if there is any."""
    cells = [["", "queries", "R1@0.5", "R1@0.7", "mAP@0.5", "mAP@0.75", "mAP"]]
    for group, title in zip(("full", *list(LENGTHS_S)[:3]), ("all", "up to 10 s", "10 to 30 s", "over 30 s"), strict=True):
        recall, precision = metrics[group]["MR-R1"] or {}, metrics[group]["MR-mAP"] or {}
        figures = [recall.get("0.5"), recall.get("0.7"), *(precision.get(key) for key in ("0.5", "0.75", "average"))]
        cells.append([title, f"{metrics[group]['num_queries']:,}", *("-" if f is None else f"{f:.2f}" for f in figures)])
    lines = ["by length of the moments, as Moment-DETR's evaluator measures", *_aligned(cells)]
    if all(level in metrics for level in LEVELS):
        saliency = [[level.rpartition("-")[2], *(f"{value:.2f}" for value in metrics[level].values())] for level in LEVELS]
        lines += ["saliency, by the least that counts as a highlight", *_aligned([["", "mAP", "HIT@1"], *saliency])]
    return lines


def _aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """Return a line for each row of a table, the first column on the left, the others on the right."""
    alignment = ("left", *["right"] * (len(cells[0]) - 1))
    text = tabulate(cells, tablefmt=simple_separated_format(" "), colalign=alignment, disable_numparse=True)
    return [f"  {line}".rstrip() for line in text.splitlines()]
