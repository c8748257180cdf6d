"""Ctrl-C: pressed once, it lets the work in progress finish; pressed twice, it stops everything at once."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from types import FrameType

log = logging.getLogger(__name__)


class Interrupt:
    """A flag that says whether a stop was requested."""

    def __init__(self) -> None:
        self.requested = False


@contextlib.contextmanager
def graceful_interrupt(in_hand: str) -> Iterator[Interrupt]:
    """Let the first Ctrl-C only request a stop, and log what is finished before; the second is a KeyboardInterrupt.

    Raises KeyboardInterrupt at the end if a stop was requested. In a thread other than the main one, and where Ctrl-C is
    ignored, as in the background of a script, nothing is changed.
    """
    interrupt = Interrupt()
    earlier = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or earlier in (None, signal.SIG_IGN):
        yield interrupt
        return

    def ask(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, earlier)
        interrupt.requested = True
        log.warning("stopping after %s; Ctrl-C once more stops at once, and what is finished is kept either way", in_hand)

    signal.signal(signal.SIGINT, ask)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, earlier)
    if interrupt.requested:
        raise KeyboardInterrupt
