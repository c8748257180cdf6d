"""The estimates of what videos will take: frames, rows and bytes, from the headers of the videos."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from excl.datasets.video.probe import Probe
from excl.models.i3d.row_layout import NoRowsError
from excl.pipeline import decode, extract
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.artifacts.video_records import video_key
from excl.pipeline.execution.pending_videos import VideoTask
from excl.pipeline.execution.video_reading import probe_all

NUMBERS_IN_ROW, BYTES_OF_TIMES = 1024, 16
HEADERS_READ = 200  # of more videos so many are looked at, evenly spread
USUAL_RATE = 25.0  # frames a second, where a header does not say it


@dataclass(frozen=True)
class VideoLengths:
    """The lengths of videos: (seconds, frames a second) of a sample of them, and the number of all."""

    sample: Sequence[tuple[float, float]]
    count: int

    @property
    def scale(self) -> float:
        """The factor from the sample to all videos."""
        return self.count / len(self.sample) if self.sample else 0.0

    @property
    def hours(self) -> float:
        """The hours of all videos together."""
        return sum(duration_s for duration_s, _ in self.sample) * self.scale / 3600

    def frames(self, fps: float | None) -> list[int]:
        """Return the number of sampled frames of each video of the sample; `fps` None: at its own rate."""
        return [math.ceil(duration_s * (fps or rate)) for duration_s, rate in self.sample]

    def __str__(self) -> str:
        sampled = "" if len(self.sample) == self.count else f" by the headers of {len(self.sample)} of them"
        return f"{self.count:,} videos, {self.hours:,.2f} hours of video{sampled}"


@dataclass(frozen=True)
class FeatureSize:
    """The size of the features of videos; `too_short` counts the videos without a row."""

    frames: int
    rows: int
    shards: int
    num_bytes: int
    too_short: int

    def __str__(self) -> str:
        return f"about {self.frames:,} frames, {self.rows:,} rows, {self.shards:,} shards, {self.num_bytes / 1e6:,.1f} MB"


def feature_size(config: extract.ExtractConfig, lengths: VideoLengths) -> FeatureSize:
    """Return the frames, rows and bytes of the features of videos."""
    recipe = config.feature_recipe()
    frames, rows, too_short = 0, 0, 0
    for count in lengths.frames(recipe.fps):
        try:
            rows += recipe.layout.num_rows(count)
            frames += count
        except NoRowsError:
            too_short += 1
    frames, rows, too_short = (round(lengths.scale * number) for number in (frames, rows, too_short))
    bytes_of_row = NUMBERS_IN_ROW * np.dtype(recipe.dtype).itemsize + BYTES_OF_TIMES
    return FeatureSize(frames, rows, -(-lengths.count // config.shard_videos), rows * bytes_of_row, too_short)


def size_in_words(config: extract.ExtractConfig | decode.DecodeConfig, videos: Sequence[VideoTask]) -> str:
    """Return how many videos these are, how long they are, and what a stage will make of them."""
    lengths = _lengths(config, videos)
    if not lengths.sample:
        return f"{lengths.count:,} videos"
    if isinstance(config, extract.ExtractConfig):
        return f"{lengths}, {feature_size(config, lengths)}"
    frames = sum(lengths.frames(None if config.fps == "native" else config.fps))
    return f"{lengths}, about {round(frames * lengths.scale):,} frames"


def _lengths(config: extract.ExtractConfig | decode.DecodeConfig, videos: Sequence[VideoTask]) -> VideoLengths:
    """Return how long videos are, from the headers of some of them, evenly spread, or from the records of stored frames."""
    if isinstance(config, extract.ExtractConfig) and config.frames is not None:
        records = Manifest.read(config.frames).records
        return VideoLengths([(records[video_key(v.video_id)]["duration_s"], USUAL_RATE) for v in videos], len(videos))
    chosen = [video.path for video in videos[:: max(1, -(-len(videos) // HEADERS_READ))]]
    probes = [probe for _, probe in probe_all(config.reading, chosen) if isinstance(probe, Probe)]
    count = round(len(videos) * len(probes) / len(chosen)) if chosen else 0
    return VideoLengths([(probe.duration_s or 0.0, probe.rate or USUAL_RATE) for probe in probes], count)
