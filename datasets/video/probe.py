"""What the header of a video says, and what its first frame adds to that, without decoding the rest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import av
import av.container

from excl.datasets.video.container import (
    Limits,
    TimedFrames,
    choose_stream,
    claimed_duration_s,
    codec_name,
    open_video,
    start_time,
)
from excl.datasets.video.errors import VideoError
from excl.datasets.video.pyav import exact


@dataclass(frozen=True)
class Probe:
    """The facts that are there before any work is done; None where the file does not say.

    `rate` is the average of frames a second, `frames` their number by the container, `start_s` the container's start time,
    `rotation` degrees counter-clockwise by the display matrix. `notes` are what is odd about the file, in words.
    """

    container: str
    codec: str
    width: int
    height: int
    rate: float | None
    duration_s: float | None
    start_s: float
    frames: int | None
    rotation: int
    notes: tuple[str, ...]


def probe_video(path: Path, limits: Limits) -> Probe:
    """What can be known of a video file at once; VideoError for what is no video, or gives no first frame."""
    with open_video(path) as container:
        stream = choose_stream(container, path, limits)
        first = next(iter(TimedFrames(container, stream, path, limits)), None)
        if first is None:
            raise VideoError("no_frames", f"{path}: not one frame with a time can be decoded")
        claimed_s = claimed_duration_s(container, stream)
        rate = exact(stream.average_rate)
        whole_s = container.duration / av.time_base if container.duration else None
        return Probe(
            container=container.format.name,
            codec=codec_name(stream),
            width=stream.codec_context.width,
            height=stream.codec_context.height,
            rate=None if rate is None else float(rate),
            duration_s=whole_s if claimed_s is None else claimed_s,
            start_s=float(start_time(container)),
            frames=stream.frames or None,
            rotation=first[1].rotation,
            notes=tuple(_notes(container, stream, claimed_s or whole_s)),
        )


def _notes(container: av.container.InputContainer, stream: av.VideoStream, duration_s: float | None) -> list[str]:
    notes = []
    if duration_s is None:
        notes.append("the header says no duration")
    if len(container.streams.video) > 1:
        notes.append(f"{len(container.streams.video)} video streams, the largest is taken")
    aspect = exact(stream.sample_aspect_ratio)
    if aspect and aspect != 1:
        notes.append(f"pixels of {aspect.numerator}:{aspect.denominator}, made square")
    average, base = exact(stream.average_rate), exact(stream.base_rate)
    if average and base and abs(average - base) > base / 100:
        notes.append("variable rate")
    return notes
