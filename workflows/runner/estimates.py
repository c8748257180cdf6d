"""What videos will take: frames, rows and bytes by their headers, and rough hours by a short measurement."""

from __future__ import annotations

import contextlib
import logging
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from excl.datasets.video.errors import InternalError, VideoError
from excl.datasets.video.geometry import Geometry
from excl.models.i3d.extractor import choose_devices
from excl.models.i3d.row_layout import NoRowsError
from excl.models.i3d.runner import flops_of_clip, keep_freed_memory
from excl.models.i3d.weights import load_weights
from excl.pipeline import decode, extract
from excl.pipeline.execution.executor_settings import INLINE, LOCAL, ExecutorSettings
from excl.pipeline.execution.progress import format_duration
from excl.pipeline.execution.video_reading import num_cores, stop_decoders

SECONDS_TO_DECODE, VIDEOS_TO_DECODE = 8.0, 3  # of presentation, to see how fast it goes
MEASURE_S = 1.0  # of each
CLIPS, CLIP_FRAMES = 4, 64
ASSUMED_GPU_TFLOPS = 50.0  # no GPU is touched: a cautious figure, nowhere measured
NUMBERS_IN_ROW, BYTES_OF_TIMES = 1024, 16
FEW_FRAMES = 3000  # of which to measure how long they take would take as long as to do them


@dataclass(frozen=True)
class Lengths:
    """How long videos are: (seconds, frames a second) of those that were looked at, for `count` videos in all."""

    seen: Sequence[tuple[float, float]]
    count: int

    @property
    def share(self) -> float:
        """By what to multiply what was seen."""
        return self.count / len(self.seen) if self.seen else 0.0

    @property
    def hours(self) -> float:
        """Of video, all of them together."""
        return sum(duration_s for duration_s, _ in self.seen) * self.share / 3600

    def frames(self, fps: float | None) -> list[int]:
        """Sampled frames of each that was seen; `fps` None: at its own rate."""
        return [math.ceil(duration_s * (fps or rate)) for duration_s, rate in self.seen]


@dataclass(frozen=True)
class Cost:
    """What features of videos will take; `too_short` counts the videos without a row."""

    frames: int
    rows: int
    shards: int
    num_bytes: int
    too_short: int

    def __str__(self) -> str:
        return f"about {self.frames:,} frames, {self.rows:,} rows, {self.shards:,} shards, {self.num_bytes / 1e6:,.1f} MB"


def cost_of(config: extract.ExtractConfig, lengths: Lengths) -> Cost:
    """Frames, rows and bytes, by the headers alone."""
    made = config.making()
    frames, rows, too_short = 0, 0, 0
    for count in lengths.frames(made.fps):
        try:
            rows += made.layout.num_rows(count)
            frames += count
        except NoRowsError:
            too_short += 1
    frames, rows, too_short = (round(lengths.share * number) for number in (frames, rows, too_short))
    bytes_of_row = NUMBERS_IN_ROW * np.dtype(made.dtype).itemsize + BYTES_OF_TIMES
    return Cost(frames, rows, -(-lengths.count // config.shard_videos), rows * bytes_of_row, too_short)


def hours(config: extract.ExtractConfig | decode.DecodeConfig, paths: Sequence[Path], num_frames: int) -> str:
    """How long it takes, in words: measured on a little of it, assumed where there is a GPU.

    `paths` are the videos, none where stored frames are read. Of other machines nothing is known here.
    """
    if config.running.executor not in (INLINE, LOCAL):
        return f"will take as long as the workers of {config.running.executor} need, which was not measured here"
    parts, decoding_s, network_s, together = [], 0.0, 0.0, True
    if paths:
        rates = [rate for path in paths[:VIDEOS_TO_DECODE] if (rate := _decoding_rate(config, path))]
        if not rates:
            return "how long it takes cannot be said: none of the first videos could be decoded"
        decoding_s = num_frames / (statistics.median(rates) * num_cores())
        parts.append(f"{format_duration(decoding_s)} of decoding on {num_cores()} cores")
    if isinstance(config, extract.ExtractConfig):
        device = choose_devices(config.device)[0]
        together = device.type == "cpu"  # they share the cores
        if together:
            network_s = num_frames / _network_rate(config)
            parts.append(f"{format_duration(network_s)} of I3D on the CPU, by a short measurement")
        else:
            flops = flops_of_clip(CLIP_FRAMES, config.making().crop) / CLIP_FRAMES * num_frames
            network_s = flops / (ASSUMED_GPU_TFLOPS * 1e12)
            how = f"if that does {ASSUMED_GPU_TFLOPS:g} TFLOP/s, which was not measured"
            parts.append(f"{format_duration(network_s)} of I3D on {device}, {how}")
    if not parts:
        return "how long it takes cannot be said before the videos are there"
    total_s = decoding_s + network_s if together else max(decoding_s, network_s)
    return f"will take roughly {format_duration(total_s)}: {', '.join(parts)}{_for_whom(config.running)}"


def _for_whom(running: ExecutorSettings) -> str:
    """For which part of the work, and which workers, the figure is, where that is not plain."""
    if running.share is not None:
        return f"; all shards by this machine alone, of which the share {running.shard_range} is one in {running.share.of}"
    if running.executor == LOCAL:
        return "; all of this machine's cores, which the workers share, and one GPU if it has any"
    return ""


def _decoding_rate(config: extract.ExtractConfig | decode.DecodeConfig, path: Path) -> float | None:
    """Sampled frames a second that one core decodes from the video's beginning; None if it cannot."""
    if isinstance(config, extract.ExtractConfig):
        made = config.making()
        fps, geometry = made.fps, made.geometry
    else:
        fps = None if config.fps == "native" else config.fps
        geometry = Geometry.of(config.short_side, config.crop)
    video = config.reading.open(path, fps=fps, geometry=geometry)
    try:
        frames = islice(video, 1 + round(SECONDS_TO_DECODE * (fps or 25.0)))
        next(frames)  # the decoder's process has started
        began, count = time.perf_counter(), 0
        for _ in frames:
            count += 1
            if time.perf_counter() > began + MEASURE_S:
                break
        return count / (time.perf_counter() - began) if count else None
    except (VideoError, InternalError, StopIteration):
        return None
    finally:
        stop_decoders()


@contextlib.contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """Meanwhile its warnings are not shown."""
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _network_rate(config: extract.ExtractConfig) -> float:
    """Frames a second of I3D on the CPU, by the better of two clips."""
    keep_freed_memory()
    made = config.making()
    with _quiet(logging.getLogger("excl.models.i3d.weights")):  # which warns of random ones
        weights = load_weights("random:0")
    extractor = made.extractor(weights, torch.device("cpu"))
    clip = np.zeros((CLIP_FRAMES, made.crop, made.crop, 3), np.uint8)
    rates: list[float] = []
    while len(rates) < 2 or (len(rates) < CLIPS and sum(CLIP_FRAMES / rate for rate in rates) < CLIPS * MEASURE_S):
        began = time.perf_counter()
        extractor(clip)
        rates.append(CLIP_FRAMES / (time.perf_counter() - began))
    return max(rates)  # the first is slower: everything is made for its shape
