"""Figures as a table for people: a line for each of those compared on each group of queries."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from excl.models.excl import RECALL_AT, THRESHOLDS
from excl.pipeline.evaluation.metrics import INTERVAL

RECALLS = tuple(f"R{k}@{threshold}" for k in RECALL_AT for threshold in THRESHOLDS)
LABEL, NUMBER, WIDTH = 22, 7, 7  # columns of a line, which is not longer than 80


def table(rows: Iterable[tuple[str, str, dict[str, Any]]], *, strict: bool = False) -> list[str]:
    """A header, and for each of those compared a heading and its lines: on which queries, how many these are, percentages.

    "-" stands where there is no figure. Under those on all queries stands from where to where 95 % of the bootstrap's
    samples are. `strict` shows the recalls that count only what is above a threshold. No line is longer than 80 characters,
    unless a name is.
    """
    names = {f"{name} strict" if strict else name: name.replace("@", ">" if strict else "@") for name in RECALLS}
    names["mIoU"] = "mIoU"
    lines = [_line("", "queries", names.values())]
    last = None
    for who, queries, figures in rows:
        if who != last:
            lines.append(who)
            last = who
        values = [f"{figures[name]:.1f}" if name in figures else "-" for name in names]
        lines.append(_line(f"  {queries}", f"{figures['num_queries']:,}", values))
        if queries == "all":
            intervals = [figures[INTERVAL].get(name) for name in names]
            for word, end in (("95 % from", 0), ("to", 1)):
                ends = ["" if interval is None else f"{interval[end]:.1f}" for interval in intervals]
                lines.append(_line(f"    {word:>9}", "", ends))
    return lines


def _line(label: str, number: str, values: Iterable[str]) -> str:
    figures = "".join(f"{value:>{WIDTH}}" for value in values)
    return f"{label:{LABEL}}{number:>{NUMBER}}{figures}".rstrip()
