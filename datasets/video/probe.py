"""A probe of a video: the facts in its header and in its first frame, without decoding the rest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import av

from excl.datasets.video.container import Limits, OpenVideo, open_video
from excl.datasets.video.pyav_versions import exact
from excl.datasets.video.timed_frames import first_frame


@dataclass(frozen=True)
class Probe:
    """The facts of a video that are there before any work is done; None where the file does not say.

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
    """Return what can be known of a video file at once; raises VideoError if it is no video, or gives no first frame."""
    with open_video(path, limits) as video:
        frame = first_frame(video)
        container, stream = video.container, video.stream
        claimed_s = video.claimed_duration_s
        container_s = container.duration / av.time_base if container.duration else None
        rate = exact(stream.average_rate)
        return Probe(
            container=container.format.name,
            codec=video.codec,
            width=stream.codec_context.width,
            height=stream.codec_context.height,
            rate=None if rate is None else float(rate),
            duration_s=container_s if claimed_s is None else claimed_s,
            start_s=float(video.start_s),
            frames=stream.frames or None,
            rotation=frame.rotation,
            notes=tuple(_notes(video, claimed_s or container_s)),
        )


def _notes(video: OpenVideo, duration_s: float | None) -> list[str]:
    notes, num_streams = [], len(video.container.streams.video)
    if duration_s is None:
        notes.append("the header says no duration")
    if num_streams > 1:
        notes.append(f"{num_streams} video streams, the largest is taken")
    if video.pixel_aspect != 1:
        notes.append(f"pixels of {video.pixel_aspect.numerator}:{video.pixel_aspect.denominator}, made square")
    average, base = exact(video.stream.average_rate), exact(video.stream.base_rate)
    if average and base and abs(average - base) > base / 100:
        notes.append("variable rate")
    return notes
