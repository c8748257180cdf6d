"""When it is not the videos that fail: the same error for one video after the other ends a run before it is recorded.

One video may have what makes a library fail, and its failure is then recorded as `internal` or `crashed`. Several in a row,
with none between them that could be read, are a library that is broken, a decoder that is missing, or a fault of excl.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from excl.datasets.video_errors import InternalError, VideoError

T = TypeVar("T")

LIMIT = 5  # failures of one kind in a row


class SystemicError(RuntimeError):
    """What fails is excl, a library or the machine, and not the videos."""


def unless_systemic(
    results: Iterable[T],
    *,
    cause: Callable[[T], str | None],
    is_done: Callable[[T], bool],
    message: Callable[[T], str],
    details: Callable[[T], str] = lambda _: "",
) -> Iterator[T]:
    """Pass results of videos on; those that may be our own failures only when a later video is done, or all are tried.

    `cause` says what kind of failure of our own a result is, or None for any other result. Raises SystemicError where LIMIT
    results of one kind came and no video was done since the first of them; these are not passed on.
    """
    held: list[T] = []
    for result in results:
        kind = cause(result)
        if kind is not None:
            held.append(result)
            if sum(cause(earlier) == kind for earlier in held) >= LIMIT:
                raise _systemic(kind, message(result), details(result))
            continue
        if is_done(result):
            yield from held
            held.clear()
        yield result
    yield from held


def cause_of(error: VideoError | InternalError) -> str | None:
    """What kind of failure an error is, if it may be our own: an error in the program, or a decoder that crashed."""
    if isinstance(error, InternalError):
        return error.cause
    return error.reason if error.reason == "crashed" else None


def _systemic(kind: str, message: str, details: str) -> SystemicError:
    error = SystemicError(
        f"{LIMIT} videos in a row failed in the same way ({kind}), so it is not the videos that are at fault; nothing is "
        f"recorded of them. The last one: {message}. When that is put right, the same command does all videos; if it is "
        "these videos after all, take them out of the folder or the list"
    )
    if details:
        error.add_note(details)
    return error
