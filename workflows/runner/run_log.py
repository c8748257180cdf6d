"""The log of a run: a file in `logs/` of the root with the messages of the terminal, each with its time."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

LOGS = "logs"
PATIENCE = 1_000_000  # lines that wait for the decision whether the run is worth a file


@contextlib.contextmanager
def buffered_run_log(root: Path) -> Iterator[Callable[[], Path]]:
    """Buffer the log messages. Calling the yielded function opens the log file, and writes these and all later ones to it.

    The function returns the file's path. A run that finds nothing to do does not call it, and leaves no file. An error that
    ends the run is in the file with its traceback.
    """
    stamp = time.strftime("%Y-%m-%dT%H-%M-%S")
    path = root.absolute() / LOGS / f"{stamp}-{os.getpid()}.log"
    memory = logging.handlers.MemoryHandler(PATIENCE, flushLevel=logging.CRITICAL + 1)
    everything, ours = logging.getLogger(), logging.getLogger("excl")
    level = ours.level
    ours.setLevel(min(ours.getEffectiveLevel(), logging.INFO))
    everything.addHandler(memory)

    def begin() -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        memory.setTarget(file)
        memory.flush()
        memory.capacity = 1  # from now on at once
        return path

    try:
        yield begin
    except BaseException as error:
        memory.handle(logging.makeLogRecord(_error_record(error)))
        raise
    finally:
        everything.removeHandler(memory)
        ours.setLevel(level)
        target = memory.target
        memory.close()
        if target is not None:
            target.close()


def _error_record(error: BaseException) -> dict[str, object]:
    """Return the record, for the file, of the error that ends the run; the terminal gets its message from the command."""
    message = "interrupted" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}"
    return {
        "name": "excl",
        "levelno": logging.ERROR,
        "levelname": "error: ",
        "msg": message,
        "exc_info": (type(error), error, error.__traceback__),
    }
