"""Charts for pages: SVG that this module writes, with the data of each as CSV.

Four forms are all that the report needs: values with intervals, lines, a histogram, a map of counts. Each is some kB, takes
its colours from the page, light or dark, and works from disk. Of chart libraries, plotly and Bokeh bring megabytes of
JavaScript into every page, vega-lite's static SVG has fixed colours and needs a binary of 40 MB to make it, and uPlot draws
on a canvas, which screen readers do not see.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

WIDTH = 420  # units of the drawings, about a CSS pixel each: pages put charts side by side
TOP, BOTTOM, LEFT, RIGHT = 8, 34, 46, 18
HEIGHT = 220
LABELS = 172  # the width of the labels of rows, for 24 letters
ROW = 24


@dataclass(frozen=True)
class Chart:
    """A drawing with what it shows: a caption for people, and the numbers as a table."""

    title: str
    caption: str
    svg: Markup
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]

    @property
    def csv(self) -> str:
        """The numbers as CSV with a line of column names."""
        return to_csv(self.columns, self.rows)


def to_csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return rows as CSV with a line of column names."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    return text.getvalue()


@dataclass(frozen=True)
class IntervalRow:
    """A value with its interval, the number of queries that it is of, and the value that others report."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    number: int | None = None
    reported: float | None = None


def percent_top(values: Iterable[float]) -> float:
    """Return the end of an axis of percent: 100, or 10 or 20 if no value is above and some are."""
    most = max(values, default=0.0)
    return 100.0 if most <= 0 else next((top for top in (10.0, 20.0) if most <= top), 100.0)


def intervals(title: str, rows: Sequence[IntervalRow], *, caption: str) -> Chart:
    """Return a chart of percentages: a dot and a line for each and its interval, a diamond for what others report."""
    values = [value for row in rows for value in (row.value, row.high, row.reported) if value is not None]
    top, step = _nice_top(percent_top(values))
    height = TOP + ROW * len(rows) + BOTTOM
    across = _Scale(0.0, top, LABELS, WIDTH - RIGHT)
    bottom = height - BOTTOM
    parts = [_grid_across(across, step, bottom, "%")]
    for index, row in enumerate(rows):
        y = TOP + ROW * (index + 0.5)
        number = "" if row.number is None else f" ({row.number:,})"
        parts.append(_label(row.label, number, y))
        if row.low is not None and row.high is not None:
            parts.append(_line("interval", across(row.low), y, across(row.high), y))
        parts.append(Markup('<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="4.5"/>').format(across(row.value), y))
        if row.reported is not None:
            x = across(row.reported)
            diamond = f"M{x:.1f} {y - 7:.1f}l6 7l-6 7l-6 -7z"
            parts.append(Markup('<path class="reported" d="{}"/>').format(diamond))
    described = [
        (r.label, r.number, *(None if v is None else round(v, 4) for v in (r.value, r.low, r.high, r.reported)))
        for r in rows
    ]
    columns = ("name", "queries", "value", "from", "to", "reported")
    return Chart(title, caption, _svg(title, height, parts), columns, described)


def lines(
    title: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x_name: str,
    caption: str,
    diagonal: bool = False,
    mark_x: float | None = None,
    top: float | None = None,
) -> Chart:
    """Return a chart of lines through points (x, y), each named at its end; `mark_x` is where a vertical line stands."""
    points = [point for values in series.values() for point in values if math.isfinite(point[1])]
    high, step = _nice_top(max((y for _, y in points), default=1.0) if top is None else top)
    whole = all(float(x).is_integer() for x, _ in points)
    x_high, x_step = _nice_top(max((x for x, _ in points), default=1.0), whole=whole)
    x_high = max((x for x, _ in points), default=1.0) if not diagonal else max(x_high, 1e-9)
    names_px = 62 if len(series) > 1 else 0
    across = _Scale(
        min((x for x, _ in points), default=0.0) if not diagonal else 0.0, x_high, LEFT, WIDTH - RIGHT - names_px
    )
    up = _Scale(0.0, high, HEIGHT - BOTTOM, TOP)
    parts = [_grid_up(up, step, across), _ticks_below(across, x_step, x_name)]
    if mark_x is not None:
        parts.append(_line("marked", across(mark_x), TOP, across(mark_x), HEIGHT - BOTTOM))
    if diagonal:
        end = min(x_high, high)
        parts.append(_line("marked", across(0), up(0), across(end), up(end)))
    ends: list[float] = []
    for index, (name, values) in enumerate(series.items()):
        finite = [(across(x), up(y)) for x, y in values if math.isfinite(y)]
        if not finite:
            continue
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in finite)
        parts.append(Markup('<path class="line line{}" d="{}"/>').format(index % 4, path))
        if len(finite) <= 30:
            parts += [
                Markup('<circle class="point{}" cx="{:.1f}" cy="{:.1f}" r="2.5"/>').format(index % 4, x, y)
                for x, y in finite
            ]
        if len(series) > 1:
            y = finite[-1][1]
            while any(abs(y - other) < 12 for other in ends):
                y -= 4
            ends.append(y)
            parts.append(_text(name, finite[-1][0] + 6, y + 4, css=f"name{index % 4}"))
    rows = [(name, x, y) for name, values in series.items() for x, y in values]
    return Chart(title, caption, _svg(title, HEIGHT, parts), ("line", x_name, "value"), rows)


def histogram(title: str, values: np.ndarray, *, x_name: str, caption: str, integers: bool = False) -> Chart:
    """Return a chart of how many values fall between round borders; the last bar holds the largest hundredth too."""
    high, step = _nice_top(float(np.quantile(values, 0.99)) if len(values) else 1.0)
    step = max(1.0, round(step / 5)) if integers else step / 5
    edges = np.arange(0.0, high + step / 2, step)
    if integers:
        edges = np.arange(0.0, max(high, 5) + 1.5, step) - 0.5
    counts, edges = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    top, up_step = _nice_top(float(counts.max(initial=1)), whole=True)
    across, up = _Scale(edges[0], edges[-1], LEFT, WIDTH - RIGHT), _Scale(0.0, top, HEIGHT - BOTTOM, TOP)
    parts = [_grid_up(up, up_step, across)]
    parts += [
        Markup('<rect class="bar" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
            across(low), up(count), max(across(end) - across(low) - 1, 0.5), up(0) - up(count)
        )
        for low, end, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
    parts.append(_ticks_below(across, _nice_top(float(edges[-1]), whole=integers)[1], x_name))
    rows = [(round(float(a), 6), round(float(b), 6), int(n)) for a, b, n in zip(edges[:-1], edges[1:], counts, strict=True)]
    return Chart(title, caption, _svg(title, HEIGHT, parts), (f"{x_name}, from", "to", "number"), rows)


def density(title: str, spans: np.ndarray, *, caption: str, bins: int = 20) -> Chart:
    """Return a map of how many spans [N, 2] (start and end as parts of a video) fall into each of bins x bins cells."""
    x_name, y_name = "start, as a part of the video", "end, as a part of the video"
    starts, ends = np.clip(spans, 0, 1).T
    counts, _, _ = np.histogram2d(starts, ends, bins=bins, range=((0, 1), (0, 1)))
    height = WIDTH - LEFT - RIGHT - 100 + TOP + BOTTOM
    across = _Scale(0.0, 1.0, LEFT, WIDTH - RIGHT - 100)
    up = _Scale(0.0, 1.0, height - BOTTOM, TOP)
    side = across(1 / bins) - across(0)
    parts = [Markup('<rect class="field" x="{}" y="{}" width="{:.1f}" height="{:.1f}"/>').format(
        LEFT, TOP, across(1) - across(0), up(0) - up(1))]  # fmt: skip
    most = max(counts.max(), 1)
    for column, row in zip(*np.nonzero(counts), strict=True):
        share = counts[column, row] / most
        parts.append(
            Markup('<rect class="cell" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill-opacity="{:.2f}"/>').format(
                across(column / bins), up((row + 1) / bins), side, side, 0.1 + 0.9 * math.sqrt(share)
            )
        )
    parts += [_line("axis", across(0), up(0), across(1), up(1)), _ticks_below(across, 0.25, x_name, y=height - BOTTOM)]
    parts += [_text(f"{v:g}", LEFT - 6, up(v) + 4, anchor="end") for v in (0, 0.25, 0.5, 0.75, 1)]
    parts.append(_text(y_name, 12, up(0.5), anchor="middle", css="quiet", upwards=True))
    rows = [(int(c) / bins, int(r) / bins, int(counts[c, r])) for c, r in zip(*np.nonzero(counts), strict=True)]
    return Chart(title, caption, _svg(title, height, parts), (f"{x_name}, from", f"{y_name}, from", "number"), rows)


@dataclass(frozen=True)
class _Scale:
    """The place of a value on an axis."""

    low: float
    high: float
    begin: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.0
        return self.begin + share * (self.end - self.begin)


def _nice_top(value: float, *, whole: bool = False) -> tuple[float, float]:
    """Return a round number that is at least `value`, and the step of four or five ticks up to it."""
    if not value > 0:
        return 1.0, 0.25 if not whole else 1.0
    power = 10.0 ** math.floor(math.log10(value))
    step = next(s for s in (0.2, 0.25, 0.5, 1.0, 2.0, 2.5) if value <= 5 * s * power * (1 + 1e-9)) * power
    if whole:
        step = max(1.0, math.ceil(step))
    return step * math.ceil(value / step - 1e-9), step


def _svg(title: str, height: float, parts: Sequence[Markup]) -> Markup:
    head = Markup('<svg class="chart" viewBox="0 0 {} {:.0f}" role="img" aria-label="{}">').format(WIDTH, height, title)
    return head + Markup("").join(parts) + Markup("</svg>")


def _text(text: str, x: float, y: float, *, anchor: str = "start", css: str = "", upwards: bool = False) -> Markup:
    turned = Markup(' transform="rotate(-90 {:.1f} {:.1f})"').format(x, y) if upwards else ""
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}" class="{}"{}>{}</text>').format(
        x, y, anchor, css, turned, text
    )


def _line(css: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(css, x1, y1, x2, y2)


def _label(label: str, number: str, y: float) -> Markup:
    most = 24 - len(number)
    short = label if len(label) <= most else label[: most - 1] + "…"
    return Markup(
        '<text class="label" x="{}" y="{:.1f}" text-anchor="end">{}<tspan class="quiet">{}</tspan>{}</text>'
    ).format(LABELS - 8, y + 4, short, number, Markup("<title>{}</title>").format(label) if short != label else "")


def _ticks(scale: _Scale, step: float) -> list[float]:
    first = math.ceil(scale.low / step - 1e-9)
    return [number * step for number in range(first, math.floor(scale.high / step + 1e-9) + 1)]


def _grid_across(across: _Scale, step: float, bottom: float, unit: str) -> Markup:
    parts = []
    for value in _ticks(across, step):
        parts.append(_line("grid", across(value), TOP, across(value), bottom))
        parts.append(_text(f"{value:g}", across(value), bottom + 16, anchor="middle"))
    parts.append(_text(unit, across(across.high), bottom + 30, anchor="end"))
    return Markup("").join(parts)


def _grid_up(up: _Scale, step: float, across: _Scale) -> Markup:
    parts = []
    for value in _ticks(up, step):
        parts.append(_line("grid", across.begin, up(value), across.end, up(value)))
        parts.append(_text(f"{value:,g}", LEFT - 6, up(value) + 4, anchor="end"))
    return Markup("").join(parts)


def _ticks_below(across: _Scale, step: float, name: str, *, y: float = HEIGHT - BOTTOM) -> Markup:
    parts = [_line("axis", across.begin, y, across.end, y)]
    parts += [_text(f"{value:g}", across(value), y + 15, anchor="middle") for value in _ticks(across, step)]
    parts.append(_text(name, (across.begin + across.end) / 2, y + 29, anchor="middle", css="quiet"))
    return Markup("").join(parts)
