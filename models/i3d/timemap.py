"""Which seconds a feature row describes: the one map from rows to seconds, used wherever the two meet.

I3D reduces time by 8 and then averages neighbours in pairs, so over frames 0, 1, … row k is centred on frames
[8k + 4, 8k + 12) of its receptive field of 107 frames. Read at `fps` frames a second these are its seconds; the first row
reaches back to the start and the last one on to the end of the video, so that the rows tile it without gap or overlap.
"""

from __future__ import annotations

import math

import numpy as np

FRAMES_PER_ROW = 8
FIRST_OWN_FRAME = 4
MIN_FRAMES = 16  # two time steps before the pairwise average, so that one row is left


def padded_frames(num_frames: int) -> int:
    """The length to which a video of `num_frames` > 0 frames is edge-padded: a multiple of 8, and at least 16.

    One remainder for all videos keeps the map above the same for all of them (TensorFlow's SAME padding, which I3D uses,
    shifts its windows with the length), and the multiple of 8 leaves no frame without a row.
    """
    if num_frames <= 0:
        raise ValueError(f"a video has at least one frame, not {num_frames}")
    return max(MIN_FRAMES, math.ceil(num_frames / FRAMES_PER_ROW) * FRAMES_PER_ROW)


def num_rows(num_frames: int) -> int:
    """How many feature rows a video of `num_frames` > 0 frames has: max(1, ceil(num_frames / 8) - 1)."""
    return padded_frames(num_frames) // FRAMES_PER_ROW - 1


def row_times(num_frames: int, *, fps: float, duration_s: float) -> tuple[np.ndarray, np.ndarray]:
    """Start and end of every row in seconds, two float64 [n]: start[0] = 0, end[k] = start[k + 1], end[-1] = duration_s.

    `duration_s` is the video's end on the same clock, with num_frames = ceil(fps * duration_s).
    """
    rows = num_rows(num_frames)
    edges = (FRAMES_PER_ROW * np.arange(rows + 1) + FIRST_OWN_FRAME) / fps  # float64 [n + 1]
    edges[0], edges[-1] = 0.0, duration_s
    if not (np.diff(edges) > 0).all():
        raise ValueError(f"{num_frames} frames at {fps} a second do not fit a video of {duration_s} s")
    return edges[:-1].copy(), edges[1:].copy()
