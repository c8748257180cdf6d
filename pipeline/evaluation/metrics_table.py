"""Metrics as a table for people: a line for each approach on each group of queries."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from operator import itemgetter
from typing import Any

from tabulate import simple_separated_format, tabulate

from excl.models.excl import RECALL_AT, THRESHOLDS
from excl.pipeline.evaluation.split_metrics import INTERVAL

RECALLS = tuple(f"R{k}@{threshold}" for k in RECALL_AT for threshold in THRESHOLDS)


def table(rows: Iterable[tuple[str, str, dict[str, Any]]], *, strict: bool = False) -> list[str]:
    """Return a header, then for each approach its name and lines: the group of queries, their number, percentages.

    `rows` are (approach, group of queries, metrics). A missing metric is "-". Two lines below those of all queries give the
    95 % intervals of the bootstrap. `strict` shows the recalls that count IoU > threshold. No line is longer than 80
    characters, unless a name is.
    """
    titles = {f"{name} strict" if strict else name: name.replace("@", ">" if strict else "@") for name in RECALLS}
    titles["mIoU"] = "mIoU"
    cells = [["", "queries", *titles.values()]]  # no headers to tabulate, which makes columns wider for them
    approaches: dict[int, str] = {}  # by the number of their first line
    for approach, group in groupby(rows, key=itemgetter(0)):
        approaches[len(cells)] = approach
        for _, queries, metrics in group:
            values = [f"{metrics[name]:.1f}" if name in metrics else "-" for name in titles]
            cells.append([queries, f"{metrics['num_queries']:,}", *values])
            if queries == "all":
                intervals = [metrics[INTERVAL].get(name) for name in titles]
                for label, end in (("95 % from", 0), ("to", 1)):
                    cells.append(
                        [label, "", *("" if interval is None else f"{interval[end]:.1f}" for interval in intervals)]
                    )
    text = tabulate(
        cells,
        tablefmt=simple_separated_format(" "),
        colalign=("left", *["right"] * (len(titles) + 1)),
        disable_numparse=True,
    )
    lines = [f"  {line}".rstrip() for line in text.splitlines()]
    for number, approach in reversed(approaches.items()):
        lines.insert(number, approach)
    return lines
