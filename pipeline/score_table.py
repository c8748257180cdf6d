"""Figures as a table for people: a line for each of those compared on each group of queries."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from excl.models.excl import RECALL_AT, THRESHOLDS
from excl.pipeline.scoring import INTERVAL

RECALLS = tuple(f"R{k}@{threshold}" for k in RECALL_AT for threshold in THRESHOLDS)
WIDTH = 12


def table(rows: Iterable[tuple[str, str, dict[str, Any]]], *, strict: bool = False) -> list[str]:
    """A header and the lines: whose figures, on which queries, how many these are, percentages, "-" where there is none.

    Under those on all queries stands what 95 % of the bootstrap's samples have. `strict` shows the recalls that count
    only what is above a threshold.
    """
    names = {f"{name} strict" if strict else name: name.replace("@", ">" if strict else "@") for name in RECALLS}
    names["mIoU"] = "mIoU"
    lines = [f"{'':31}{'queries':21}{'number':>7}" + "".join(f"{shown:>{WIDTH}}" for shown in names.values())]
    for who, queries, figures in rows:
        values = [f"{figures[name]:.1f}" if name in figures else "-" for name in names]
        lines.append(f"{who:31}{queries:21}{figures['num_queries']:7,}" + "".join(f"{one:>{WIDTH}}" for one in values))
        if queries == "all":
            ranges = [_range(figures[INTERVAL].get(name)) for name in names]
            lines.append(f"{'':31}{'  95 % interval':28}" + "".join(f"{one:>{WIDTH}}" for one in ranges))
    return lines


def _range(interval: list[float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.1f}-{interval[1]:.1f}"
