"""Rows that lie evenly over a video, which is what other trainers take all rows for."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np

from excl.pipeline.store.shard import VideoFeatures


def evenly_spread(num_rows: int, duration_s: float) -> np.ndarray:
    """The borders of so many equal parts of a video, float64 [n + 1] seconds."""
    return np.linspace(0.0, duration_s, num_rows + 1)


def error_if_even_s(video: VideoFeatures, duration_s: float) -> float:
    """How far a row's start or end is, at most, from where it would be if the rows were spread evenly, in seconds."""
    edges = evenly_spread(len(video.features), duration_s)
    return float(max(np.abs(video.start_s - edges[:-1]).max(), np.abs(video.end_s - edges[1:]).max()))


def resampled(video: VideoFeatures, seconds_per_row: float) -> VideoFeatures:
    """The same video with a row for every `seconds_per_row`: the mean of its rows, each by the time it shares with the new.

    A new row that shares none (rows may leave gaps) is the old one nearest to it. ceil(duration / seconds_per_row) rows; the
    last one reaches beyond the video's end.
    """
    count = max(1, math.ceil(video.duration_s / seconds_per_row - 1e-9))
    edges = seconds_per_row * np.arange(count + 1)
    rows = [_mean(video, start_s, end_s) for start_s, end_s in itertools.pairwise(edges)]
    return dataclasses.replace(video, features=np.stack(rows), start_s=edges[:-1], end_s=edges[1:])


def _mean(video: VideoFeatures, start_s: float, end_s: float) -> np.ndarray:
    shared_s = np.minimum(video.end_s, end_s) - np.maximum(video.start_s, start_s)  # negative: how far apart
    touched = np.flatnonzero(shared_s > 0)
    if len(touched) == 0:
        return video.features[int(shared_s.argmax())].astype(np.float32)
    weights = shared_s[touched] / shared_s[touched].sum()
    return (weights @ video.features[touched].astype(np.float64)).astype(np.float32)
