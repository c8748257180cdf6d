"""When it is not the videos that fail: the same error for one video after the other ends a run before it is recorded.

One video may have what makes a library fail, and its failure is then recorded as `internal` or `crashed`. Several in a row,
with none between that could be read, are a library that is broken, a decoder that is missing, or a fault of excl. Videos
that crash the decoder may well come one after another: there a video that is made for the purpose tells.
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
    """What fails is excl, a library or the machine, and not the videos."""


def unless_systemic(
    results: Iterable[T],
    *,
    cause: Callable[[T], str | None],
    is_done: Callable[[T], bool],
    message: Callable[[T], str],
    details: Callable[[T], str] = lambda _: "",
    works: Callable[[], bool] = decoder_works,
) -> Iterator[T]:
    """Pass results of videos on; those that may be our own failures only when a later video is done, or all are tried.

    `cause` says what kind of failure of our own a result is, or None for any other result. Raises SystemicError where LIMIT
    results of one kind came and no video was done since the first of them; these are not passed on. Of crashes it is asked
    first whether the decoder `works`; if it does, crashes are the videos'.
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
    """What kind of failure an error is, if it may be our own: an error in the program, or a decoder that crashed."""
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
