"""What features will take: frames, rows and bytes by the videos' headers, and rough hours by a short measurement."""

from __future__ import annotations

import math
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from excl.datasets.probe import Probe
from excl.datasets.video_errors import VideoError
from excl.models.i3d.extractor import choose_devices
from excl.models.i3d.runner import flops_of_clip, keep_freed_memory
from excl.models.i3d.timemap import NoRowsError
from excl.models.i3d.weights import load_weights
from excl.pipeline.extract import Config
from excl.pipeline.reading import num_cores, stop_decoders

SECONDS_TO_DECODE, VIDEOS_TO_DECODE = 8.0, 3  # of presentation, to see how fast it goes
CLIP_FRAMES = 64
ASSUMED_GPU_TFLOPS = 50.0  # no GPU is touched: a cautious figure, nowhere measured
NUMBERS_IN_ROW, BYTES_OF_TIMES = 1024, 16


@dataclass(frozen=True)
class Cost:
    """What features of videos will take; `too_short` counts the videos without a row."""

    frames: int
    rows: int
    shards: int
    num_bytes: int
    free_bytes: int
    too_short: int

    def line(self) -> str:
        """For people."""
        return (
            f"features: about {self.frames:,} frames, {self.rows:,} rows, {self.shards:,} shards, "
            f"{self.num_bytes / 1e6:,.1f} MB ({self.free_bytes / 1e9:,.1f} GB free)"
        )


def cost_of(config: Config, videos: Sequence[tuple[Path, Probe]]) -> Cost:
    """Frames, rows and bytes, by the headers alone."""
    made = config.making()
    frames, rows, too_short = 0, 0, 0
    for _, probe in videos:
        count = math.ceil((probe.duration_s or 0.0) * (made.fps or probe.rate or 0.0))
        try:
            rows += made.layout.num_rows(count)
            frames += count
        except NoRowsError:
            too_short += 1
    bytes_of_row = NUMBERS_IN_ROW * np.dtype(made.dtype).itemsize + BYTES_OF_TIMES
    existing = next(path for path in (config.out.absolute(), *config.out.absolute().parents) if path.exists())
    shards = -(-len(videos) // config.shard_videos)
    return Cost(frames, rows, shards, rows * bytes_of_row, shutil.disk_usage(existing).free, too_short)


def hours(config: Config, paths: Sequence[Path], num_frames: int) -> str:
    """How long decoding and I3D take, in words: measured on a little of it, assumed where there is a GPU."""
    rates = [rate for path in paths[:VIDEOS_TO_DECODE] if (rate := _decoding_rate(config, path))]
    if not rates:
        return "how long it takes cannot be said: none of the first videos could be decoded"
    decoding_s = num_frames / (statistics.median(rates) * num_cores())
    device = choose_devices(config.device)[0]
    if device.type == "cpu":
        network_s = num_frames / _network_rate(config)
        total_s = decoding_s + network_s  # they share the cores
        how = f"{_time(network_s)} of I3D on the CPU, by a short measurement"
    else:
        flops = flops_of_clip(CLIP_FRAMES, config.making().crop) / CLIP_FRAMES * num_frames
        network_s = flops / (ASSUMED_GPU_TFLOPS * 1e12)
        total_s = max(decoding_s, network_s)
        how = f"{_time(network_s)} of I3D on {device}, if that does {ASSUMED_GPU_TFLOPS:g} TFLOP/s, which was not measured"
    return f"extract will take roughly {_time(total_s)}: {_time(decoding_s)} of decoding on {num_cores()} cores, {how}"


def _time(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} minutes"
        if seconds < 7200
        else f"{seconds / 3600:.1f} hours"
    )


def _decoding_rate(config: Config, path: Path) -> float | None:
    """Sampled frames a second that one core decodes from the video's beginning; None if it cannot."""
    made = config.making()
    video = config.reading.open(path, fps=made.fps, geometry=made.geometry, backends=made.backends)
    wanted = round(SECONDS_TO_DECODE * (made.fps or 25.0))
    try:
        frames = iter(video)
        next(frames)  # the decoder's process has started
        began = time.perf_counter()
        count = sum(1 for _ in islice(frames, wanted))
        return count / (time.perf_counter() - began) if count else None
    except (VideoError, StopIteration):
        return None
    finally:
        stop_decoders()


def _network_rate(config: Config) -> float:
    """Frames a second of I3D on the CPU, by the better of two clips."""
    keep_freed_memory()
    made = config.making()
    extractor = made.extractor(load_weights("random:0"), torch.device("cpu"))
    clip = np.zeros((CLIP_FRAMES, made.crop, made.crop, 3), np.uint8)
    rates = []
    for _ in range(2):
        began = time.perf_counter()
        extractor(clip)
        rates.append(CLIP_FRAMES / (time.perf_counter() - began))
    return max(rates)
