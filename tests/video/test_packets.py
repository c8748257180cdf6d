"""Not decoding what no sample needs: less work, the same bits."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import numpy as np
import pytest
from coded_videos import KINDS, X264, moving
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shared_fixtures import write_video

from excl.datasets.video import pyav_backend
from excl.datasets.video.container import Limits, open_video
from excl.datasets.video.geometry import Geometry
from excl.datasets.video.packets import PacketTable, make_plan, read_packets
from excl.datasets.video.pyav_backend import PyAVVideo
from excl.datasets.video.sampling import Clock, Sampling

SMALL = Geometry(48, 48)


def read(path, *, decode_all, fps, threads=1):
    video = PyAVVideo(path, Sampling(fps, SMALL, threads=threads), decode_all=decode_all)
    return np.stack(list(video)), video.facts


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bits_for_less_work(kind, tmp_path):
    name, codec, options = KINDS[kind]
    path = moving(tmp_path / name, codec, options)
    for fps in (0.7, 5, 12):
        wanted, all_facts = read(path, decode_all=True, fps=fps)
        for threads in (1, 3):
            found, facts = read(path, decode_all=False, fps=fps, threads=threads)
            np.testing.assert_array_equal(found, wanted)
            assert facts.frames_decoded + facts.frames_skipped == all_facts.frames_decoded == 90
            same = {"frames_decoded": 0, "frames_skipped": 0, "frames_expected": 90}
            assert dataclasses.replace(facts, **same) == dataclasses.replace(all_facts, **same)
            assert facts.frames_skipped > 0 or fps > 1 or kind == "flv"


def test_real_videos(shared):
    for path in sorted((shared / "videos").iterdir()):
        wanted, _ = read(path, decode_all=True, fps=5)
        found, facts = read(path, decode_all=False, fps=5)
        np.testing.assert_array_equal(found, wanted)
        assert facts.frames_skipped > 0


def test_packets_that_lie_are_found_out(tmp_path, monkeypatch):
    """A table whose times are not the frames' from 2 s on: all is decoded then, and every sample given once."""
    path = moving(tmp_path / "a.mp4", "libx264", X264)
    wanted, facts = read(path, decode_all=True, fps=7)

    def lying(video):
        table = read_packets(video)
        for position, pts in enumerate(table.pts):
            table.pts[position] += pts * video.time_base > 2
        return table

    monkeypatch.setattr(pyav_backend, "read_packets", lying)
    found, found_facts = read(path, decode_all=False, fps=7)
    np.testing.assert_array_equal(found, wanted)
    assert found_facts == dataclasses.replace(facts, frames_expected=90)  # nothing skipped


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), fps=st.sampled_from([Fraction(1, 3), Fraction(1), Fraction(5), Fraction(30000, 1001)]))
def test_plans_by_the_literal_rule(data, fps):
    """Whatever the packets: every frame that a sample shows is decoded, with all that comes before it and is needed."""
    count = data.draw(st.integers(1, 40))
    table = PacketTable()
    for pts in data.draw(st.lists(st.integers(0, 4000), min_size=count, max_size=count, unique=True)):
        table.pts.append(pts)
        table.duration.append(0)
        table.keys.append(0)
        table.shown.append(1)
        table.restarts.append(data.draw(st.booleans()))
        table.disposable.append(data.draw(st.booleans()))
    plan = make_plan(table, Clock(fps, Fraction(0), Fraction(1, 1000)))
    order = sorted(table.pts)
    shown = {order[-1]}
    for k in range(int(fps * 4) + 2):
        at = [pts for pts in order if Fraction(pts, 1000) <= k / fps]
        shown.add(at[-1] if at else order[0])
    needed = [i for i, pts in enumerate(table.pts) if pts in shown]
    assert not any(plan.skip[i] for i in needed)
    for i in needed:  # back to where decoding restarts, all that other frames may refer to is decoded
        j = i
        while j >= 0:
            assert not plan.skip[j] or table.disposable[j]
            restarts = table.restarts[j] and min(table.pts[j : _next_restart(table, j)]) >= table.pts[j]
            j = -1 if restarts else j - 1
    assert list(plan.frames) == [pts for pts in order if not plan.skip[table.pts.index(pts)]]
    assert plan.num_expected == count


def _next_restart(table, position):
    return next((i for i in range(position + 1, len(table.pts)) if table.restarts[i]), len(table.pts))


def test_what_does_not_tell_its_times_has_no_plan(tmp_path):
    path = write_video(tmp_path / "old.avi", list(range(20)), time_base=Fraction(1, 25), rate=25, options={"bf": "2"})
    with open_video(path, Limits()) as video:
        assert read_packets(video) is None
