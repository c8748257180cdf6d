"""Rows spread evenly over a video, as other trainers take all rows to be, and features of another type."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np

from excl.pipeline.store.shard import VideoFeatures


def error_if_even_s(video: VideoFeatures, duration_s: float) -> float:
    """The largest distance, in seconds, of a row's start or end from its place if the rows were spread evenly."""
    edges = np.linspace(0.0, duration_s, len(video.features) + 1)
    return float(max(np.abs(video.start_s - edges[:-1]).max(), np.abs(video.end_s - edges[1:]).max()))


def num_rows(duration_s: float, seconds_per_row: float) -> int:
    """The number of rows of this length that cover a video."""
    return max(1, math.ceil(duration_s / seconds_per_row - 1e-9))


def resample(video: VideoFeatures, seconds_per_row: float) -> VideoFeatures:
    """The same video with a row for every `seconds_per_row`: the mean of the stored rows, weighted by the time they share.

    A row that shares no time with any stored row (there may be gaps) is the stored one nearest to it. The
    last row reaches beyond the video's end.
    """
    edges = seconds_per_row * np.arange(num_rows(video.duration_s, seconds_per_row) + 1)
    rows = [_mean(video, start_s, end_s) for start_s, end_s in itertools.pairwise(edges)]
    return dataclasses.replace(video, features=np.stack(rows), start_s=edges[:-1], end_s=edges[1:])


def _mean(video: VideoFeatures, start_s: float, end_s: float) -> np.ndarray:
    shared_s = np.minimum(video.end_s, end_s) - np.maximum(video.start_s, start_s)  # negative: how far apart
    touched = np.flatnonzero(shared_s > 0)
    if len(touched) == 0:
        return video.features[int(shared_s.argmax())].astype(np.float32)
    weights = shared_s[touched] / shared_s[touched].sum()
    return (weights @ video.features[touched].astype(np.float64)).astype(np.float32)


def cast(video: VideoFeatures, dtype: str | None) -> VideoFeatures:
    """The same video with contiguous features of this type (None: their own); ValueError if a value does not fit."""
    with np.errstate(over="ignore"):  # reported below
        features = np.ascontiguousarray(video.features, dtype=dtype)
    if not np.isfinite(features).all() and np.isfinite(video.features).all():
        raise ValueError(f"{video.video_id}: features up to {np.abs(video.features).max():.3g} do not fit {dtype}")
    return dataclasses.replace(video, features=features)
