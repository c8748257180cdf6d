"""The component `<excl-timeline>` in Python: the records that it draws, and its files.

A video with a strip for each thing that is known over time: probabilities of start and end, predicted and annotated
moments, feature rows, small pictures. timeline.js draws it and says at its top what it does, which events it sends and
which keys it knows; these records are its data. All times are seconds on the player's clock.

It is a plain `<video>` with SVG, 500 lines without a library: a chart library would draw the strips, but none has a player,
seeking by key and row, or a description for screen readers.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import TypedDict


class AnnotatedMoment(TypedDict):
    """A moment that somebody annotated."""

    start_s: float
    end_s: float


class PredictedMoment(TypedDict):
    """A moment that a model answers with; `score` is its probability, None where it has none."""

    start_s: float
    end_s: float
    score: float | None


class TimelineRows(TypedDict):
    """The seconds that the feature rows of a video cover, in order; empty where there are no features."""

    start_s: list[float]
    end_s: list[float]


class TimelineQuery(TypedDict):
    """A sentence about the video with what is known of it."""

    text: str
    start_probability: list[float]
    """For every row the probability that the moment starts there; empty if it is not known."""
    end_probability: list[float]
    """For every row the probability that the moment ends there; empty if it is not known."""
    predictions: list[PredictedMoment]
    """The best first."""
    moments: list[AnnotatedMoment]
    note: str
    """A line to show below the sentence; may be empty."""
    unseen_words: list[str]
    """The words of the sentence that the training split did not have; shown whichever query is chosen."""
    unknown_words: list[str]
    """Those of them that have no vector: they all count as one and the same unknown word."""


class VideoTimeline(TypedDict):
    """All that the component shows of one video."""

    title: str
    video: str | None
    """The URL for the player, relative to the page, or a data URL; None shows the timeline without a player."""
    duration_s: float
    fps: float | None
    rows: TimelineRows
    queries: list[TimelineQuery]
    thumbnails: list[str]
    """Data URLs of n pictures, number i of the middle of the i-th n-th of the video; may be empty."""


def script_json(value: object) -> str:
    """Return JSON that may stand inside a `<script>` element, whatever texts are in it; ValueError for NaN."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def timeline_element(timeline: VideoTimeline, *, marking: bool = False) -> str:
    """Return the component's markup with its data; the page needs the script and the style of this module once."""
    attribute = " marking" if marking else ""
    data = script_json(timeline)
    return f'<excl-timeline{attribute}><script type="application/json">{data}</script></excl-timeline>'


def timeline_script() -> str:
    """Return the JavaScript that defines the component."""
    return asset("timeline.js")


def timeline_style() -> str:
    """Return the component's CSS, which defines the colours of all pages too."""
    return asset("timeline.css")


def asset(name: str) -> str:
    """Return the text of one of the files of this room."""
    return (files("excl.workflows.pages") / name).read_text(encoding="utf-8")
