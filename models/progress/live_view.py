"""The live view: the steps of a run and the bars that are open, drawn by rich on a terminal or in a notebook."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.jupyter import JupyterMixin
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from excl.models.progress import bars

if TYPE_CHECKING:
    from excl.models.progress.bars import Bar

REFRESHED_PER_S = 4


class LiveView(JupyterMixin):
    """A view of steps and bars. On a terminal a thread draws it, and it vanishes at the end; a notebook keeps it.

    Text that goes to standard error, and to standard output if that is a terminal too, appears above the view, also from
    logging handlers with these streams.
    """

    def __init__(self, *, notebook: bool) -> None:
        self.steps: list[str] = []
        self._bars: list[Bar] = []
        self._step, self._step_began = -1, 0.0
        self._handlers: list[tuple[logging.StreamHandler[Any], TextIO]] = []
        self._display: Any = None  # what a notebook shows
        self._drawn_at = 0.0
        self._live: Live | None = None
        if not notebook:
            self._live = Live(
                console=_Console(file=sys.stderr, soft_wrap=True),  # a long message is broken by the terminal alone
                get_renderable=lambda: self,
                refresh_per_second=REFRESHED_PER_S,
                transient=True,
                redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
            )

    @property
    def can_be_drawn(self) -> bool:
        """Whether the terminal can move its cursor, and the user has not told rich otherwise (TTY_INTERACTIVE=0)."""
        return self._live is None or self._live.console.is_interactive

    def start(self) -> None:
        """Begin to draw."""
        if self._live is None:
            return
        before = sys.stdout, sys.stderr
        self._live.start()
        for handler in [*logging.getLogger().handlers, *logging.getLogger("excl").handlers]:
            for old, new in zip(before, (sys.stdout, sys.stderr), strict=True):
                if isinstance(handler, logging.StreamHandler) and handler.stream is old and new is not old:
                    self._handlers.append((handler, old))
                    handler.setStream(new)

    def stop(self) -> None:
        """Take the view from the terminal."""
        if self._live is not None:
            self._live.stop()
            self.leave_streams()

    def leave_streams(self) -> None:
        """Restore the streams that were redirected."""
        for handler, stream in self._handlers:
            handler.setStream(stream)
        self._handlers.clear()
        if self._live is not None:
            self._live._disable_redirect_io()

    def add(self, bar: Bar) -> None:
        """Draw one more bar."""
        self._bars.append(bar)
        self.changed()

    def remove(self, bar: Bar) -> None:
        """Draw the bar no longer."""
        if self._live is None:
            self._draw_in_notebook()
        self._bars.remove(bar)

    def begin_step(self, name: str) -> None:
        """Mark the step as the one that runs, and those before it as done."""
        self._step, self._step_began = self.steps.index(name), time.monotonic()

    def changed(self) -> None:
        """Redraw the view in a notebook, where no thread does."""
        if self._live is None and time.monotonic() - self._drawn_at > 1 / REFRESHED_PER_S:
            self._draw_in_notebook()

    def _draw_in_notebook(self) -> None:
        from IPython.display import display  # noqa: PLC0415  (there in notebooks alone)

        self._drawn_at = time.monotonic()
        if self._display is None:
            self._display = display(self, display_id=True)
        else:
            self._display.update(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the steps and the bars in the width that there is."""
        lines = [*self._step_lines(unicode=not options.ascii_only)]
        for bar in list(self._bars):
            lines += _lines(bar)
        yield from console.render(Group(*lines), options.update(no_wrap=False, overflow="fold"))

    def _step_lines(self, *, unicode: bool) -> Iterator[RenderableType]:
        if not self.steps:
            return
        done, running = ("✓ ", "▸ ") if unicode else ("+ ", "> ")
        states = {-1: (done, "green"), 0: (running, "bold"), 1: ("", "dim")}
        line = Text()
        for number, name in enumerate(self.steps):
            sign, style = states[(number > self._step) - (number < self._step)]
            line.append(f"{sign}{name}".replace(" ", "\N{NO-BREAK SPACE}"), style).append("  ")
        if self._step >= 0:
            line.append(bars.format_duration(time.monotonic() - self._step_began), "dim")
        yield line


class _Console(Console):
    """A console that never hides the cursor, so that the terminal has it after a kill."""

    def show_cursor(self, show: bool = True) -> bool:  # noqa: ARG002
        return False


def _lines(bar: Bar) -> Iterator[RenderableType]:
    """Yield the title with the bar, and below it what is done."""
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(max_width=24, no_wrap=True, overflow="ellipsis")
    grid.add_column(ratio=1)
    grid.add_column(no_wrap=True)
    percent = f"{100 * bar.done / bar.total:.0f} %" if bar.total else ""
    grid.add_row(Text(bar.title, "bold"), ProgressBar(bar.total, bar.done, pulse=bar.total is None), percent)
    yield grid
    yield Text(f"  {bar.describe()}")
