"""What videos and weights show: features made by a pipeline that shares nothing with the search, named by it.

Thirty recipes are in `bench/identify.py`; these are few, small and short.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import shutil
from fractions import Fraction

import av
import commands
import numpy as np
import pytest
from published_features import HAS_FFMPEG, Published, publish
from shared_fixtures import SHARED, decoding_here

from excl.models.i3d.weights import load_weights
from excl.pipeline.identify.identify import IdentifyConfig, run
from excl.pipeline.store.feature_store import FeatureStore
from excl.workflows.cli import main

CROP = 32
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.skipif(not HAS_FFMPEG, reason="there is no ffmpeg here")]


def write_moving_texture(path, *, seconds, rate, width, height, seed):
    """A texture that drifts and grows lighter: every frame and every part of the picture is another one."""
    rng = np.random.default_rng(seed)
    texture = np.kron(rng.integers(0, 256, (40, 50, 3)), np.ones((6, 6, 1))).astype(np.float64)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "12", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(round(seconds * rate)):
            at = number / rate
            x, y = int(60 + 50 * np.sin(1.3 * at + seed)), int(60 + 50 * np.cos(0.9 * at))
            picture = texture[y : y + height, x : x + width] * (0.6 + 0.4 * np.sin(2 * at) ** 2)
            frame = av.VideoFrame.from_ndarray(picture.astype(np.uint8), "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    write_moving_texture(folder / "a.mp4", seconds=5.3, rate=30, width=128, height=96, seed=1)
    write_moving_texture(folder / "b.mp4", seconds=6.7, rate=25, width=144, height=96, seed=2)
    return folder


@pytest.fixture(scope="module")
def state():
    return load_weights("random:0").state_dict


def identify(videos, state, folder, recipe):
    """Publish features of the videos; return their file, what was found, and what was printed."""
    features = publish(sorted(videos.iterdir()), recipe, state, folder, crop=CROP)
    report = features.with_suffix(".json")
    flags = ["--videos", str(videos), "--weights", "random:0", "--crop", str(CROP), "--json", str(report)]
    with decoding_here(), contextlib.redirect_stdout(io.StringIO()) as shown:
        assert main(["identify", str(features), *flags, "--candidates", "5"]) == 0
    return features, json.loads(report.read_text())["search"], shown.getvalue()


@pytest.fixture(scope="module")
def identified(videos, state, tmp_path_factory):
    """`identified(recipe)` does that once for all tests that need it."""
    folder = tmp_path_factory.mktemp("made")
    return functools.cache(lambda recipe: identify(videos, state, folder, recipe))


@pytest.mark.parametrize(
    ("recipe", "named"),
    [
        (Published(5, 37), (5, 0, 8, "37", "RGB from -1 to 1", True)),
        (Published(10, "32x32", 16, 8), (10, 16, 8, "32x32", "RGB from -1 to 1", True)),
        (Published(24, "up", 24, 24, mean=False), (24, 24, 24, "34-upscale-only", "RGB from -1 to 1", True)),
        (Published(None, 37, 16, 16, "pad", normalised=True), (None, 16, 16, "37", "RGB from -1 to 1", True)),
        (Published(8, 32, 16, 16, "pad", colours="bgr"), (8, 16, 16, "32", "BGR from -1 to 1", True)),
    ],
    ids=lambda value: str(value) if isinstance(value, tuple) else "made",
)
def test_recipes_of_other_code_are_named(identified, recipe, named):
    _, search, _ = identified(recipe)
    best = search["trials"][0]
    assert tuple(best[name] for name in ("fps", "window", "hop", "picture", "values", "nearest")) == named
    assert search["verdict"] in {"rounding", "reduced", "factor"}
    assert not best["antialias"]
    assert len({trial["text"] for trial in search["trials"]}) == len(search["trials"])


def test_the_command_that_it_ends_with_makes_the_features(videos, identified, tmp_path):
    features, search, shown = identified(Published(10, "32x32", 16, 8))
    assert "Make them: excl extract" in shown
    out = tmp_path / "store"
    with decoding_here():
        assert main(["extract", "--videos", str(videos), "--out", str(out), "--device", "cpu", *search["extract"]]) == 0
    store, published = FeatureStore(out), np.load(features)
    assert set(store) == set(published)
    for name in published:
        a, b = store[name].features.astype(float), published[name].astype(float)
        assert a.shape == b.shape
        assert np.linalg.norm(a - b) < 0.02 * np.linalg.norm(b)


def test_one_readable_video_and_one_half_of_the_values_are_enough(videos, state, tmp_path, capsys, caplog):
    """The features of the other video differ more from row to row, so it would be taken; its file is no video."""
    rng = np.random.default_rng(0)
    published = np.load(publish([videos / "a.mp4"], Published(5, 37), state, tmp_path / "made", crop=CROP))
    both = np.concatenate([published["a"], rng.random(published["a"].shape, np.float32)], axis=1)
    np.savez(tmp_path / "two.npz", a=both, b=10 * rng.random((6, 2048), np.float32))
    (tmp_path / "videos").mkdir()
    shutil.copy(videos / "a.mp4", tmp_path / "videos")
    (tmp_path / "videos" / "b.mp4").write_bytes(b"no video")
    flags = ["--videos", str(tmp_path / "videos"), "--weights", "random:0", "--crop", str(CROP)]
    with commands.forked_decoders():
        assert main(["identify", str(tmp_path / "two.npz"), *flags]) == 3
    shown = capsys.readouterr().out
    assert "These are: 5 frames a second, frames as FFmpeg's fps filter, picture 37" in shown
    assert "the other half was not examined" in shown
    assert "another video is taken" in caplog.text


def test_features_of_other_weights_are_none_of_the_tried(tmp_path):
    """All recipes are tried, of one short video."""
    videos = tmp_path / "videos"
    videos.mkdir()
    write_moving_texture(videos / "a.mp4", seconds=2.1, rate=20, width=64, height=48, seed=1)
    _, search, shown = identify(videos, load_weights("random:1").state_dict, tmp_path, Published(10, 37, 16, 16))
    assert search["verdict"] not in {"identical", "rounding", "reduced", "factor"}
    assert "No recipe fits; the nearest is" in shown
    assert "What would decide: other weights" in shown


TRUTHS = {"v01": (5, 0, 8), "v02": (25, 16, 16), "v03": (24, 0, 8), "v04": (None, 64, 64), "v06": (10, 16, 8)}


@pytest.mark.parametrize("name", TRUTHS)
def test_counts_alone_have_the_recipes_of_real_videos_among_the_first(name):
    """Features that another session made of three videos; three counts say little, and the most usual recipe comes first."""
    if not (SHARED / "identify").is_dir():
        pytest.skip("the real test data is not at hand")
    with decoding_here():
        fit = run(IdentifyConfig(SHARED / "identify" / f"{name}.npz", videos=SHARED / "videos")).fit
    assert TRUTHS[name] in [(c.fps, c.rule.window, c.rule.hop) for c in fit.candidates[:3]]
