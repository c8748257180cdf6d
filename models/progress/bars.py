"""Bars of progress: all that are open are in one live view (live_view.py); where nobody looks, a line a minute
is logged.

The view is on standard error, if that is a terminal which can move its cursor, or in a notebook. It is there from the first
block that opens a bar to the end of that block. rich, which draws it, is imported then.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from excl.models.progress.live_view import LiveView

log = logging.getLogger(__name__)

T = TypeVar("T")
LINE_EVERY_S = 60.0
DUMB = ("", "dumb", "unknown")  # values of TERM that cannot move the cursor


class Bar:
    """How much of something is done. `note` is a text that the view shows below the bar."""

    def __init__(self, title: str, total: float | None, unit: str, done: float) -> None:
        """Take the `total`, None if nobody knows it, and what was `done` already, in the `unit`, such as video or MB."""
        self.title, self.total, self.unit, self.done, self.note = title, total, unit, done, ""
        self.view: LiveView | None = None
        self._done_before = done
        self._began = self._logged_at = time.monotonic()

    @property
    def is_live(self) -> bool:
        """Whether people see the bar."""
        return self.view is not None

    def advance(self, by: float = 1, note: str | None = None) -> None:
        """Count so much more as done, and replace the note if one is given."""
        self.done += by
        self.note = self.note if note is None else note
        if self.view is not None:
            self.view.changed()
        elif time.monotonic() - self._logged_at > LINE_EVERY_S:
            self._logged_at = time.monotonic()
            log.info("%s: %s", self.title, self.describe())

    def describe(self) -> str:
        """Return what is done, the rate and the time left as text; both are those since the bar was opened."""
        parts = [_count(self.done, self.total, self.unit)]
        new, spent_s = self.done - self._done_before, time.monotonic() - self._began
        if new > 0 and spent_s > 0:
            rate = new / spent_s
            parts.append(f"{rate:,.1f} {_plural(self.unit)}/s" if rate >= 0.1 else f"{1 / rate:,.0f} s for a {self.unit}")
            if self.total is not None:
                parts.append(f"{format_duration(max(0.0, self.total - self.done) / rate)} left")
        return ", ".join([*parts, self.note] if self.note else parts)


@contextlib.contextmanager
def progress_bar(
    title: str, total: float | None, *, unit: str, done: float = 0, shown: bool = True, logged: bool = True
) -> Iterator[Bar]:
    """Open a bar for the time of the block. One that is not `shown` counts, and nothing else.

    Where nobody looks, a line a minute is `logged`, unless who opens the bar does so.
    """
    bar = Bar(title, total, unit, done)
    if not (shown and logged):
        bar._logged_at = float("inf")
    if not shown:
        yield bar
        return
    with _live_view() as view:
        bar.view = view
        if view is not None:
            view.add(bar)
        try:
            yield bar
        finally:
            if view is not None:
                view.remove(bar)


def tracked(items: Iterable[T], title: str, *, total: int, unit: str) -> Iterator[T]:
    """Yield the items, and show how many of them were worked on."""
    with progress_bar(title, total, unit=unit) as bar:
        for item in items:
            yield item
            bar.advance()


@contextlib.contextmanager
def step_list(names: Sequence[str]) -> Iterator[Callable[[str], None]]:
    """Show the steps of a run above the bars for the time of the block; yield the function that says which has begun."""
    with _live_view() as view:
        if view is None:
            yield lambda _: None
            return
        view.steps = list(names)
        try:
            yield view.begin_step
        finally:
            view.steps = []


@contextlib.contextmanager
def no_live_view() -> Iterator[None]:
    """Take the view away for the time of the block, in which another process writes to the terminal."""
    if _views.shown is None:
        yield
        return
    _views.shown.stop()
    try:
        yield
    finally:
        _views.shown.start()


class _Views:
    """The view of this process, and how many blocks use it."""

    def __init__(self) -> None:
        self.lock, self.users = threading.Lock(), 0
        self.shown: LiveView | None = None

    def forget(self) -> None:
        """Leave the view to the process from which this one was forked, with its lock, its thread and the terminal."""
        if self.shown is not None:
            self.shown.leave_streams()
        self.lock, self.users, self.shown = threading.Lock(), 0, None


_views = _Views()
os.register_at_fork(after_in_child=_views.forget)


@contextlib.contextmanager
def _live_view() -> Iterator[LiveView | None]:
    """Yield the view, which is begun unless it is there already; None where nobody looks."""
    with _views.lock:
        if _views.users == 0:
            _views.shown = _begun()
        _views.users += 1
        view = _views.shown
    try:
        yield view
    finally:
        with _views.lock:
            _views.users -= 1
            if _views.users == 0 and view is not None:
                _views.shown = None
                view.stop()


def _begun() -> LiveView | None:
    ipython = sys.modules.get("IPython")
    notebook = ipython is not None and "IPKernelApp" in getattr(ipython.get_ipython(), "config", ())
    terminal = sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM", "").lower() not in DUMB
    if not notebook and not terminal:
        return None
    from excl.models.progress.live_view import LiveView  # noqa: PLC0415  (rich, which only people need)

    view = LiveView(notebook=notebook)
    if not view.can_be_drawn:
        return None
    view.start()
    return view


def format_duration(seconds: float) -> str:
    """Return seconds as text for people."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def _count(done: float, total: float | None, unit: str) -> str:
    """Return "12 of 30 videos"; parts of a unit are shown where there are any."""
    number = ",.1f" if isinstance(done, float) else ",d"
    if total is None:
        return f"{done:{number}} {_plural(unit)}"
    return f"{done:{number}} of {total:{number}} {_plural(unit)}"


def _plural(unit: str) -> str:
    return unit if unit.isupper() else f"{unit}s"
