"""The map of a function over many items: in threads, each with a decoder of its own."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, Protocol

from excl.pipeline.execution.video_reading import stop_decoders


class Map(Protocol):
    """A function that is called like the builtin `map`, and may work on several items at once."""

    def __call__(self, function: Callable[[Any], Any], items: Iterable[Any], /) -> Iterable[Any]: ...


def threaded_map(workers: int) -> Map:
    """Return a map that works on so many items at once and yields results as they come, a failure after the rest."""

    def mapped(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        iterator = iter(items)
        pending: set[Future[Any]] = set()
        threads: list[threading.Thread] = []
        pool = ThreadPoolExecutor(
            workers, thread_name_prefix="excl", initializer=lambda: threads.append(threading.current_thread())
        )
        interrupted = False
        try:
            while True:
                pending |= {pool.submit(function, item) for item in itertools.islice(iterator, workers + 1 - len(pending))}
                if not pending:
                    return
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in sorted(done, key=lambda future: future.exception() is not None):
                    yield future.result()  # what has been done is not lost by what has failed since
        except KeyboardInterrupt:
            interrupted = True  # by somebody who does not want to wait
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            stop_decoders(threads)
            pool.shutdown(wait=not interrupted)

    return mapped
