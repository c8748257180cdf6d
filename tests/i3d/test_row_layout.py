"""Which rows a video has, and which seconds each describes."""

from __future__ import annotations

from math import ceil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from excl.models.i3d.presets import PRESETS, layout_from_json
from excl.models.i3d.published_layouts import PortChunks, ShiftedWindows, StacksWithOneMore
from excl.models.i3d.row_layout import Continuous, NoRowsError, Windows

RATES = st.sampled_from([1.0, 2.5, 5.0, 12.5, 24.0, 25.0, 29.97])
STRIDES, POOLS = st.sampled_from([8, 4, 2, 1]), st.sampled_from(["2x7x7", "1x7x7"])
LAYOUTS = [preset.layout for preset in PRESETS.values()] + [p.bugs for p in PRESETS.values() if p.bugs]


@given(duration_s=st.floats(0.01, 20_000, allow_nan=False), fps=RATES, stride=STRIDES, pool=POOLS)
def test_rows_of_the_whole_video_tile_it(duration_s, fps, stride, pool):
    frames, layout = max(1, ceil(fps * duration_s)), Continuous(stride, pool)
    start_s, end_s = layout.row_times(frames, fps=fps, duration_s=duration_s)
    wanted = ceil(frames / stride)
    assert len(start_s) == len(end_s) == layout.num_rows(frames) == (max(1, wanted - 1) if pool == "2x7x7" else wanted)
    assert start_s[0] == 0
    assert end_s[-1] == duration_s
    assert (start_s[1:] == end_s[:-1]).all()
    assert (end_s > start_s).all()
    for k in range(1, min(50, len(start_s))):  # 2x7x7: row k is centred on frame stride * (k + 1)
        assert start_s[k] == (stride * k + (stride / 2 if pool == "2x7x7" else 0)) / fps


def test_by_hand():
    start_s, end_s = Continuous().row_times(91, fps=5.0, duration_s=18.1)
    np.testing.assert_allclose(start_s, [0, 2.4, 4.0, 5.6, 7.2, 8.8, 10.4, 12.0, 13.6, 15.2, 16.8], atol=1e-12)
    np.testing.assert_allclose(end_s, [2.4, 4.0, 5.6, 7.2, 8.8, 10.4, 12.0, 13.6, 15.2, 16.8, 18.1], atol=1e-12)
    start_s, end_s = Continuous(stride=2).row_times(9, fps=5.0, duration_s=1.7)  # centred on frames 2, 4, 6, 8
    np.testing.assert_allclose(start_s, [0, 0.6, 1.0, 1.4], atol=1e-12)
    np.testing.assert_allclose(end_s, [0.6, 1.0, 1.4, 1.7], atol=1e-12)


def test_windows_by_hand():
    """VSLNet's 24 frames a second: two rows a second; the last window is filled up, and rows of filling alone are not."""
    layout = PRESETS["vslnet-charades"].layout
    start_s, end_s = layout.row_times(60, fps=24.0, duration_s=2.49)
    np.testing.assert_allclose(start_s, [0, 0.5, 1, 1.5, 2], atol=1e-12)
    np.testing.assert_allclose(end_s, [0.5, 1, 1.5, 2, 2.49], atol=1e-12)
    start_s, end_s = Windows(window=16, hop=4, last="drop").row_times(25, fps=10.0, duration_s=2.5)
    np.testing.assert_allclose(start_s, [0, 0.4, 0.8], atol=1e-12)
    np.testing.assert_allclose(end_s, [1.6, 2.0, 2.4], atol=1e-12)
    start_s, end_s = Windows(window=24, hop=24, pool="1x7x7").row_times(30, fps=1.0, duration_s=30)
    np.testing.assert_allclose(start_s, [0, 8, 16, 24], atol=1e-12)
    np.testing.assert_allclose(end_s, [8, 16, 24, 30], atol=1e-12)
    start_s, end_s = PRESETS["video-features"].layout.row_times(200, fps=10.0, duration_s=20)
    np.testing.assert_allclose(end_s, [6.4, 12.8, 19.2], atol=1e-12)


CLOSED_FORMS = {
    "excl": lambda t: max(1, ceil(t / 8) - 1),
    "excl-dense": lambda t: max(1, t - 1),
    "vslnet-charades": lambda t: ceil(t / 12),
    "vslnet-tacos": lambda t: ceil(t / 16),
    "piergiaj": lambda t: max(1, ceil(t / 8) - 1),
    "video-features": lambda t: max(1, t // 64),
    "finspire": lambda t: max(1, (t - 16) // 16 + 1),
    "rgb600": lambda t: 7 * (t // 64) + (t % 64 > 0) * (1 + max(0, min(6, ceil((t % 64 - 12) / 8)))),
}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_as_many_rows_as_its_closed_form_says(name):
    for frames in range(1, 2000):
        assert PRESETS[name].layout.num_rows(frames) == CLOSED_FORMS[name](frames)


def literal_port(t):
    """The loop of the port's script, as published."""
    if t <= 1600:
        return [(0, t)]
    return [(max(1, start - 48), min(t - 1, start + 1600 + 56)) for start in range(1, t - 56, 1600)]


def literal_vslnet(t, stride):
    clips = []
    for first in range(0, t, stride):
        start, end = first, min(t - 1, first + stride)
        if end - start < stride:
            start = max(0, end - stride)
        clips.append((start, end))
    return clips


@pytest.mark.parametrize("frames", [*range(1, 200), 1599, 1600, 1601, 1656, 1657, 1658, 1659, 3256, 3257, 3258, 5000])
def test_repeated_bugs_are_those_of_the_published_loops(frames):
    cases = [
        (PortChunks(), literal_port(frames), lambda n: ceil(n / 8) - 1),
        (ShiftedWindows(window=24), literal_vslnet(frames, 24), lambda n: ceil(n / 8) - 1),
        (ShiftedWindows(window=16), literal_vslnet(frames, 16), lambda n: ceil(n / 8) - 1),
        (StacksWithOneMore(), [(s, s + 64) for s in range(0, frames - 64, 64)], lambda _: 1),
    ]
    for layout, clips, rows_of in cases:
        if not clips or min(end - start for start, end in clips) < 9:
            with pytest.raises(NoRowsError, match=f"{frames} frames leaves the published pipeline"):
                layout.num_rows(frames)
            continue
        assert layout.clips(frames) == clips
        assert layout.num_rows(frames) == sum(rows_of(end - start) for start, end in clips)
        start_s, end_s = layout.row_times(frames, fps=1.0, duration_s=frames)
        assert len(start_s) == len(end_s) == layout.num_rows(frames)
        assert (end_s > start_s).all()


@given(
    frames=st.integers(1, 400),
    window=st.integers(9, 70),
    hop=st.integers(1, 90),
    pool=POOLS,
    mean=st.booleans(),
    last=st.sampled_from(["pad", "drop"]),
)
def test_rows_of_windows_say_what_their_windows_show(frames, window, hop, **settings):
    layout = Windows(window=window, hop=hop, **settings)
    clips = layout.clips(frames)
    assert clips == [(i * hop, i * hop + window) for i in range(len(clips))]
    whole = [clip for clip in clips if clip[1] <= frames]
    if settings["last"] == "drop":
        assert clips == whole or (len(clips) == 1 and frames < window)
        assert len(clips) * hop + window > frames  # no other would fit
    else:
        assert len(clips) - len(whole) <= ceil(window / hop)
        assert clips[-1][1] >= frames or clips[-1][0] + hop >= frames
        assert clips[-1][0] < frames
    start_s, end_s = layout.row_times(frames, fps=1.0, duration_s=frames)
    assert len(start_s) == layout.num_rows(frames) > 0
    assert (start_s < end_s).all()
    assert end_s.max() <= frames
    assert (np.diff(start_s) >= 0).all() or hop < window
    shown = {f for begin, end in clips for f in range(begin, min(end, frames))}
    described = {f for s, e in zip(start_s, end_s, strict=True) for f in range(int(s), ceil(e))}
    assert described == shown


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_layouts_come_back_from_recipes(layout):
    assert layout_from_json(layout.to_json()) == layout


@given(st.integers(1, 10_000), STRIDES, POOLS)
def test_padding(frames, stride, pool):
    layout = Continuous(stride, pool)
    padded = layout.padded(frames)
    assert padded % 8 == (8 - stride) % 8
    assert padded >= max(layout.lead + frames, 16 if pool == "2x7x7" else 8)
    assert padded < layout.lead + frames + 24
    if stride == 8:
        assert layout.lead == 0
        assert padded - frames < 8 or padded == 16


def test_what_does_not_fit_is_refused():
    for layout in (Continuous(), Windows()):
        with pytest.raises(ValueError, match="at least one frame"):
            layout.num_rows(0)
        with pytest.raises(ValueError, match="do not fit"):
            layout.row_times(100, fps=5.0, duration_s=3.0)
    with pytest.raises(ValueError, match="stride: 3"):
        Continuous(stride=3)
    with pytest.raises(ValueError, match="at least 9"):
        Windows(window=8)
    with pytest.raises(ValueError, match="hop: 0"):
        Windows(hop=0)
