"""The differences between PyAV's versions, so that nothing else has to know which one is installed.

Versions 17.1 to 19 were run (older ones crash on some files). Up to 18, rates and time bases are `Fraction`s, and `av.open`
raises UnicodeDecodeError for metadata that are not UTF-8 unless it is told to replace them. From 19 on, rates and time bases
are of a class of PyAV, which lacks `abs`, `round` and more, and `av.open` always replaces such metadata.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import av
import av.container

MAJOR_VERSION = int(av.__version__.split(".")[0])
MOST_REORDERED = 16  # places, in H.264 and HEVC: for versions that do not tell the depth
_METADATA: dict[str, Any] = {"metadata_errors": "replace"} if MAJOR_VERSION < 19 else {}


def open_input(url: str, *, options: dict[str, str]) -> av.container.InputContainer:
    """Open a container, whatever the bytes of its metadata are; raises OSError and av.FFmpegError as `av.open` does."""
    return av.open(url, options=options, **_METADATA)


def exact(value: Any) -> Fraction | None:
    """Return a rate, a time base or an aspect ratio that PyAV gave as a `Fraction`; None where the file says none."""
    if value is None or not value.numerator or not value.denominator:
        return None
    return Fraction(value.numerator, value.denominator)


def reorder_depth(stream: av.VideoStream) -> int:
    """Return how many places the decoder moves a frame at most, as far as the file's beginning tells."""
    context = stream.codec_context
    return int(getattr(context, "reorder_depth", MOST_REORDERED if context.has_b_frames else 0))
