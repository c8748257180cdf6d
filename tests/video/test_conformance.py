"""Every kind of video by every decoder: the frames of the rule, or a refusal that names the file; never other frames.

The table of what came out is printed at the end of the tests and stands in docs/decoding.md.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from kinds import COLOURS, DAMAGED, HEIGHT, KINDS
from shared_fixtures import read_number

from excl.datasets.video.backends import missing_reason, open_sampled, sample_frames
from excl.datasets.video.errors import VideoError
from excl.datasets.video.geometry import Geometry
from excl.datasets.video.sampling import Sampling

BACKENDS = ("pyav", "decord", "torchcodec", "torchcodec-cuda")
WHOLE = Geometry(HEIGHT, HEIGHT)
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "decoding.md"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Each kind of video, made when it is first asked for."""
    videos = {}

    def make(kind):
        if kind not in videos:
            videos[kind] = KINDS[kind](tmp_path_factory.mktemp("kind"))
        return videos[kind]

    return make


def off_colour(frame):
    """How far the colour patches are from what they were made of, at worst."""
    left = (256 - HEIGHT) // 2
    middles = {colour: frame[16:32, at - left + 12 : at - left + 36] for colour, at in COLOURS.items()}
    return max(np.abs(found.mean(axis=(0, 1)) - colour).max() for colour, found in middles.items())


def outcome(video, frames):
    """ "same", "refused", or in what way the frames are others."""
    try:
        found = list(frames)
    except VideoError as error:
        return "refused", error.reason if video.path.name in str(error) else "refused, but no file is named"
    numbers = [read_number(frame) for frame in found]
    if video.numbers is DAMAGED or numbers != video.numbers:
        return f"other frames: {numbers}", None
    worst = max(map(off_colour, found))
    return ("same", None) if worst < 6 else (f"other colours, by {worst:.0f}", None)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_frames_of_the_rule_or_a_refusal(made, conformance_table, kind, backend):
    if missing_reason(backend):
        pytest.skip(f"{backend}: {missing_reason(backend)}")
    video = made(kind)
    chunks = sample_frames(video.path, fps=5, size=HEIGHT, crop=HEIGHT, backend=backend)
    found, reason = outcome(video, (frame for chunk in chunks for frame in chunk.frames))
    conformance_table.setdefault(kind, {})[backend] = found
    if video.numbers is DAMAGED:
        assert found == "refused"
    elif backend == "pyav":
        assert found == "same"
    else:
        assert (found, reason) in {("same", None), ("refused", "unsupported")}


@pytest.mark.skipif(missing_reason("decord") is not None, reason=f"decord: {missing_reason('decord')}")
@pytest.mark.parametrize("kind", KINDS)
def test_what_one_refuses_the_next_one_reads(made, kind):
    """As `auto` does it on a machine with a GPU; here with decord in the GPU's place."""
    video = made(kind)
    opened = open_sampled(video.path, Sampling(5, WHOLE, backends=("decord", "pyav")))
    found, _ = outcome(video, opened)
    assert found == ("refused" if video.numbers is DAMAGED else "same")


def test_times_come_with_the_frames(made):
    chunks = list(sample_frames(made("H.264, B-frames, 30 a second").path, fps=12, size=64, crop=48))
    assert [chunk.frames.shape for chunk in chunks] == [(32, 48, 48, 3), (4, 48, 48, 3)]
    np.testing.assert_array_equal(np.concatenate([chunk.times_s for chunk in chunks]), np.arange(36) / 12)


def test_the_document_says_what_came_out(conformance_table):
    """The rows of docs/decoding.md, for the decoders that are here (torchcodec's depend on the FFmpeg that it finds)."""
    rows = [line.strip("| \n").split("|") for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if "|" in line]
    documented = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}
    assert set(KINDS) <= set(documented)
    for kind, found in conformance_table.items():
        for column, backend in enumerate(("pyav", "decord")):
            assert found.get(backend, documented[kind][column]) == documented[kind][column], (kind, backend)


@pytest.mark.parametrize("backend", ["decord", "torchcodec"])
def test_pixels_differ_little_between_decoders(backend, shared):
    if missing_reason(backend):
        pytest.skip(f"{backend}: {missing_reason(backend)}")
    path = shared / "videos" / "v_ZNVhz7ctTq0.mp4"
    ours, theirs = (
        np.concatenate([chunk.frames for chunk in sample_frames(path, backend=one)]).astype(int) for one in ("pyav", backend)
    )
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).mean() < 1.5


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
def test_rates_that_are_none(fps):
    with pytest.raises(ValueError, match="is no rate"):
        next(sample_frames("a.mp4", fps=fps))


def test_decoders_that_are_not_there_are_refused_before_any_work(tmp_path):
    with pytest.raises(ValueError, match="there are auto, pyav"):
        next(sample_frames(tmp_path / "a.mp4", backend="opencv"))
    if missing_reason("torchcodec-cuda"):
        with pytest.raises(ValueError, match="not available here"):
            next(sample_frames(tmp_path / "a.mp4", backend="torchcodec-cuda"))
