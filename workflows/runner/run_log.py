"""The log of a run: a file in `logs/` of the root with what is said on the terminal, each line with its time."""

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
    """Meanwhile messages are kept; from when what is yielded is called, and also those before it, in a file of their own.

    It returns the file's path. So a run that finds nothing to do leaves no file. Of an error that ends the run the file has
    where it was raised, too.
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
        memory.handle(logging.makeLogRecord(_of_error(error)))
        raise
    finally:
        everything.removeHandler(memory)
        ours.setLevel(level)
        target = memory.target
        memory.close()
        if target is not None:
            target.close()


def _of_error(error: BaseException) -> dict[str, object]:
    """What the file says of the error that ends the run; the terminal gets its message from the command."""
    what = "interrupted" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}"
    return {
        "name": "excl",
        "levelno": logging.ERROR,
        "levelname": "error: ",
        "msg": what,
        "exc_info": (type(error), error, error.__traceback__),
    }
