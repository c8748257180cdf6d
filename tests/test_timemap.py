"""The one map from feature rows to seconds."""

from __future__ import annotations

from math import ceil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from excl.models.i3d.timemap import num_rows, padded_frames, row_times


@given(duration_s=st.floats(0.01, 20_000, allow_nan=False), fps=st.sampled_from([1.0, 2.5, 5.0, 12.5, 24.0, 25.0, 29.97]))
def test_rows_tile_the_video(duration_s, fps):
    frames = max(1, ceil(fps * duration_s))
    start_s, end_s = row_times(frames, fps=fps, duration_s=duration_s)
    assert len(start_s) == len(end_s) == num_rows(frames) == max(1, ceil(frames / 8) - 1)
    assert start_s[0] == 0
    assert end_s[-1] == duration_s
    assert (start_s[1:] == end_s[:-1]).all()
    assert (end_s > start_s).all()
    for k in range(1, len(start_s)):  # row k covers frames [8k + 4, 8k + 12)
        assert start_s[k] == (8 * k + 4) / fps


def test_by_hand():
    start_s, end_s = row_times(91, fps=5.0, duration_s=18.1)
    np.testing.assert_allclose(start_s, [0, 2.4, 4.0, 5.6, 7.2, 8.8, 10.4, 12.0, 13.6, 15.2, 16.8], atol=1e-12)
    np.testing.assert_allclose(end_s, [2.4, 4.0, 5.6, 7.2, 8.8, 10.4, 12.0, 13.6, 15.2, 16.8, 18.1], atol=1e-12)


@given(st.integers(1, 100_000))
def test_padding(frames):
    padded = padded_frames(frames)
    assert padded % 8 == 0
    assert padded >= max(frames, 16)
    assert padded - frames < 8 or padded == 16


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="at least one frame"):
        num_rows(0)
    with pytest.raises(ValueError, match="do not fit"):
        row_times(100, fps=5.0, duration_s=3.0)
