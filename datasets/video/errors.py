"""The reasons why a video cannot be read, as one closed list, and the error that carries one of them.

An error of excl, of a library or of the machine is another one: no video is to blame for it.
"""

from __future__ import annotations

import errno
from typing import Literal

# The system's errors when it has run out of files, memory or room, for which no single video is to blame.
OF_THE_MACHINE = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT))

Reason = Literal[
    "missing",  # not there, or a link to nowhere
    "unreadable",  # there, but may not be read
    "not_a_file",  # a folder, a pipe, a device
    "empty",  # no bytes
    "not_a_video",  # no container that FFmpeg knows and that is allowed here
    "no_video_stream",  # sound alone, or a cover picture
    "no_frames",  # a video stream of which nothing can be decoded
    "truncated",  # ends long before it should
    "corrupt",  # packets that cannot be decoded, or frames that say they are damaged
    "bad_times",  # no times, times that go back, or a gap that no recording has
    "too_large",  # more pixels, seconds or memory than allowed
    "changed",  # while it was read
    "unsupported",  # by the decoder that was asked for
    "timeout",  # the decoder made no progress
    "crashed",  # the decoder's process died
    "features",  # decoded, but what was made of it cannot be stored
    "internal",  # an error of excl or of a library: the video is tried again by the next run
]


class VideoError(ValueError):
    """The error for a file that is no video, or that does not give all frames: a `reason` from the list, and a sentence."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason


class InternalError(RuntimeError):
    """An error of excl or of a library while it read a video, which says nothing about the video.

    `cause` says what was raised and where; it is the same for two errors that are the same error. `details` is the
    traceback, or what the process said before it ended.
    """

    reason: Reason = "internal"

    def __init__(self, message: str, *, cause: str, details: str) -> None:
        super().__init__(message)
        self.cause, self.details = cause, details
        if details:
            self.add_note(details)


def error_line(error: Exception) -> str:
    """Return the class of an error and the first line of its message, cut short."""
    return f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0][:120]}"
