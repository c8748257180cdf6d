"""A page: sections of texts, tables, charts and videos with timelines, as one HTML file that needs nothing else.

jinja2 fills page.html and escapes every text. The page's policy names the one script and the one style that it has by their
hashes and allows no connection at all, so that no text in it can run, or fetch anything.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from excl.datasets.parsing import printable
from excl.pipeline.artifacts.atomic_files import write_bytes
from excl.workflows.pages.charts import Chart, to_csv
from excl.workflows.pages.timeline import VideoTimeline, asset, timeline_element, timeline_script, timeline_style

COMMON_NAMES = ("run", "store", "features")


@dataclass(frozen=True)
class Table:
    """Rows of cells, the first of which names the row."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    notes: Sequence[str] = ()
    """Lines below the table."""

    @property
    def csv(self) -> str:
        """The cells as CSV with a line of column names."""
        return to_csv(self.columns, self.rows)


@dataclass(frozen=True)
class VideoExample:
    """A video with its timeline, and what it is an example of."""

    title: str
    timeline: VideoTimeline

    @property
    def element(self) -> Markup:
        """The markup."""
        return Markup(timeline_element(self.timeline))


@dataclass(frozen=True)
class Section:
    """A part of a page."""

    title: str
    texts: Sequence[str] = ()
    warnings: Sequence[str] = ()
    tables: Sequence[Table] = ()
    charts: Sequence[Chart] = ()
    examples: Sequence[VideoExample] = ()


@dataclass(frozen=True)
class Page:
    """A page as HTML; a notebook shows it in a frame of its own."""

    html: str = field(repr=False)
    height_px: int = 720
    """The height that a notebook gives it."""

    def save(self, path: Path | str) -> Path:
        """Write the page, whole or not at all."""
        path = Path(path)
        write_bytes(path, self.html.encode("utf-8", "replace"))
        return path

    def _repr_html_(self) -> str:
        return f'<iframe srcdoc="{escape(self.html)}" style="width:100%;height:{self.height_px}px;border:0"></iframe>'


def folder_title(path: Path) -> str:
    """Return the name of a folder for people, with the folder above if the name is one that many have: "demo/run"."""
    path = path.absolute()
    above = f"{path.parent.name}/" if path.name in COMMON_NAMES and path.parent.name else ""
    return printable(above + path.name)


def render(title: str, sections: Sequence[Section], *, lines: Sequence[str] = (), height_px: int = 720) -> Page:
    """Return a page; sections without any content are left out."""
    script = f"{timeline_script()}\n{asset('page.js')}"
    style = f"{timeline_style()}\n{asset('page.css')}"
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        "media-src 'self' data: file:; base-uri 'none'; form-action 'none'"
    )
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    html = environment.from_string(asset("page.html")).render(
        title=title,
        lines=lines,
        sections=[s for s in sections if s.texts or s.warnings or s.tables or s.charts or s.examples],
        script=Markup(script),
        style=Markup(style),
        policy=policy,
    )
    return Page(html, height_px)


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
