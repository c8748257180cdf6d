"""The module that the nanny of a job's worker loads first (`dask worker --preload-nanny`), to keep quiet at a cancellation.

A batch system ends all processes of a job at once. A worker that dies while it connects to its nanny, which does not listen
any more, makes Dask log a traceback (seen with distributed 2026.8): the last lines of every job's output would be an error.
"""

from __future__ import annotations

import logging
from typing import Any


def is_of_ended_listener(record: logging.LogRecord) -> bool:
    """Return whether a message is of a connection that came to a listener which has ended."""
    error = record.exc_info[1] if record.exc_info else None
    return isinstance(error, ValueError) and "non-started TCPListener" in str(error)


def dask_setup(_nanny: Any) -> None:
    """Keep such messages out of the nanny's log; Dask calls this when the nanny begins."""
    logging.getLogger("tornado.application").addFilter(lambda record: not is_of_ended_listener(record))
