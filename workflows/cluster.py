"""Dask: gives the stages a map over workers elsewhere. The only file that imports dask.distributed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from dask.distributed import Client, as_completed

from excl.pipeline.items import Map

AHEAD = 2  # tasks a worker thread that wait for it, so that it never waits


def on_cluster(client: Client) -> Map:
    """A map that works on the client's cluster and gives results as they come, some tasks a worker in flight at a time.

    Workers need the stage's folders under the same paths: they write what they make, and only records come back.
    """

    def mapped(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        iterator = iter(items)
        threads = sum(worker["nthreads"] for worker in client.scheduler_info(n_workers=-1)["workers"].values())
        in_flight = as_completed()
        try:
            for item in iterator:
                in_flight.add(client.submit(function, item, pure=False))
                if in_flight.count() >= AHEAD * max(1, threads):
                    yield next(in_flight).result()
            for done in in_flight:
                yield done.result()
        finally:
            client.cancel(list(in_flight.futures))

    return mapped
