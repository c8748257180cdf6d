"""What can be wrong with a video: one closed list of reasons, and the error that carries one of them."""

from __future__ import annotations

from typing import Literal

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
]


class VideoError(ValueError):
    """A file that is no video, or whose frames cannot all be had: `reason` from the list, and a sentence that says more."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason
