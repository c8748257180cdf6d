"""A command on a terminal: a pseudo-terminal whose screen is what an emulator makes of all that is written to it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import struct
import sys
import termios
import time
from collections.abc import Callable, Iterator
from typing import Any

import commands
import pyte

PATIENCE_S = 120


class Terminal:
    """A terminal of so many columns and its process."""

    def __init__(self, arguments: list[str], *, columns: int, rows: int = 40, **environment: str | None) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        modes = termios.tcgetattr(theirs)
        modes[3] &= ~termios.ECHO
        termios.tcsetattr(theirs, termios.TCSANOW, modes)
        self.written = b""
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self._screen)
        without = {"COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"}
        settings = {name: value for name, value in os.environ.items() if name not in without}
        settings |= {"TERM": "xterm-256color", **{name: value for name, value in environment.items() if value is not None}}
        self.process = commands.start(
            [sys.executable, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=settings, start_new_session=True
        )
        os.close(theirs)

    @property
    def lines(self) -> list[str]:
        """The lines that a person sees, without the empty ones at the end."""
        return "\n".join(line.rstrip() for line in self._screen.display).rstrip().split("\n")

    @property
    def cursor(self) -> tuple[int, int, bool]:
        """The cursor's line, its column, and whether it is hidden."""
        return self._screen.cursor.y, self._screen.cursor.x, self._screen.cursor.hidden

    def wait_for(self, seen: Callable[[str], object]) -> str:
        """Read until the screen is as wanted; return it."""
        deadline = time.monotonic() + PATIENCE_S
        while not seen("\n".join(self.lines)):
            assert time.monotonic() < deadline, "\n".join(self.lines)
            assert self._read(1.0), f"ended with\n{self.written.decode(errors='replace')}"
        return "\n".join(self.lines)

    def press(self, keys: str = "\n") -> None:
        """Send keys."""
        os.write(self._ours, keys.encode())

    def end(self) -> int:
        """Read to the end; return the exit code."""
        deadline = time.monotonic() + PATIENCE_S
        while self._read(1.0):
            assert time.monotonic() < deadline, "\n".join(self.lines)
        return self.process.wait(PATIENCE_S)

    def _read(self, timeout_s: float) -> bool:
        """Read what there is; False at the end."""
        if select.select([self._ours], [], [], timeout_s)[0]:
            try:
                data = os.read(self._ours, 1 << 16)
            except OSError:  # nobody has the other side open any more
                return False
            self.written += data
            self._stream.feed(data)
            return bool(data)
        return True

    def close(self) -> None:
        """End the process and close the terminal."""
        self.process.kill()
        self.process.wait(PATIENCE_S)
        os.close(self._ours)


@contextlib.contextmanager
def on_terminal(arguments: list[str], *, columns: int = 80, **environment: Any) -> Iterator[Terminal]:
    """Run `python ARGUMENTS` on a terminal for the time of the block."""
    terminal = Terminal(arguments, columns=columns, **environment)
    try:
        yield terminal
    finally:
        terminal.close()
