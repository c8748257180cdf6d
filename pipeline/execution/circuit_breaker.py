"""The circuit breaker: the same error for one video after another ends a run before it is recorded.

A single video may make a library fail, and its failure is then recorded as `internal` or `crashed`. Several in a row, with
no readable one between them, mean a broken library, a missing decoder or a bug in excl. But videos that crash the decoder
may well come one after another, so there a test video made for the purpose decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from excl.datasets.video.errors import InternalError, VideoError
from excl.datasets.video.self_check import decoder_works

T = TypeVar("T")

LIMIT = 5  # failures of one kind in a row
CRASHED = "crashed"  # the cause of a decoder that a signal has ended


class SystemicError(RuntimeError):
    """The error for a failure of excl, a library or the machine, and not of the videos."""


def unless_systemic(
    results: Iterable[T],
    *,
    cause: Callable[[T], str | None],
    is_done: Callable[[T], bool],
    message: Callable[[T], str],
    details: Callable[[T], str] = lambda _: "",
    works: Callable[[], bool] = decoder_works,
) -> Iterator[T]:
    """Yield results of videos; hold back those that may be our own failures until a later video is done, or all are tried.

    `cause` says what kind of failure of our own a result is, or None for any other result. Raises SystemicError if LIMIT
    results of one kind came and no video was done since the first of them; these are not yielded. For crashes, it first
    checks whether the decoder `works`; if it does, the videos are to blame.
    """
    held_back: list[T] = []
    reads = False
    for result in results:
        kind = cause(result)
        if kind is not None and not (reads and kind == CRASHED):
            held_back.append(result)
            if sum(cause(earlier) == kind for earlier in held_back) < LIMIT:
                continue
            if kind != CRASHED or not works():
                raise _systemic(kind, message(result), details(result))
            reads = True
            yield from (earlier for earlier in held_back if cause(earlier) == CRASHED)
            held_back = [earlier for earlier in held_back if cause(earlier) != CRASHED]
            continue
        if is_done(result):
            reads = True
            yield from held_back
            held_back.clear()
        yield result
    yield from held_back


def cause_of(error: VideoError | InternalError) -> str | None:
    """Return the kind of an error that may be our own: a bug in the program or a crashed decoder; None for others."""
    if isinstance(error, InternalError):
        return error.cause
    return CRASHED if error.reason == "crashed" else None


def _systemic(kind: str, message: str, details: str) -> SystemicError:
    error = SystemicError(
        f"{LIMIT} videos in a row failed in the same way ({kind}), so it is not the videos that are at fault; nothing is "
        f"recorded of them. The last one: {message}. When that is put right, the same command does all videos; if it is "
        "these videos after all, take them out of the folder or the list"
    )
    if details:
        error.add_note(details)
    return error
