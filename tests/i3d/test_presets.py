"""Presets and the settings of rows: what `excl extract` makes of them, down to the rows and their seconds."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

import numpy as np
import pytest
from shared_fixtures import write_video

from excl.datasets.video.geometry import Geometry
from excl.datasets.video.pyav_backend import PyAVVideo
from excl.datasets.video.sampling import Sampling
from excl.models.i3d.presets import PRESETS
from excl.models.i3d.published_layouts import PortChunks
from excl.models.i3d.row_layout import Continuous, Windows
from excl.pipeline import extract
from excl.pipeline.store.feature_recipe import FeatureRecipe, RowOptions
from excl.pipeline.store.feature_store import FeatureStore
from excl.workflows.cli import main

pytestmark = pytest.mark.usefixtures("one_thread", "forked_decoders")
SMALL = ["--weights", "random:0", "--short-side", "32", "--crop", "32", "--device", "cpu"]

# Of the two ActivityNet videos: seconds as decoded, and frames a second as their streams say.
REAL = {"v_GGSY1Qvo990": (18.09378, 19.62), "v_ZNVhz7ctTq0": (14.0, 30)}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "five.mp4", [i * 40 for i in range(125)], rate=25, width=64, height=48)  # 5 s at 25 a second
    write_video(folder / "short.mp4", [i * 100 for i in range(7)], rate=10, width=64, height=48)
    return folder


def extracted(videos, out, *flags):
    assert main(["extract", "--videos", str(videos), "--out", str(out), *SMALL, *flags]) == 0
    return FeatureStore(out)


@pytest.mark.parametrize(
    ("flags", "counts", "edges_s"),
    [
        ([], (25, 3), (2.4, 4.0)),
        (["--stride", "4"], (25, 6), (1.2, 4.4)),
        (["--preset", "excl-dense"], (25, 24), (0.3, 4.7)),
        (["--pool", "1x7x7"], (25, 4), (1.6, 4.8)),
        (["--preset", "excl-dense", "--stride", "2", "--pool", "1x7x7"], (25, 13), (0.4, 4.8)),
        (["--preset", "vslnet-charades"], (120, 10), (0.5, 4.5)),
        (["--preset", "vslnet-tacos"], (125, 8), (0.64, 4.48)),
        (["--preset", "piergiaj"], (120, 14), (0.5, 108 / 24)),
        (["--preset", "video-features"], (125, 1), (2.56, 0)),
        (["--preset", "video-features", "--last-window", "pad"], (125, 2), (2.56, 2.56)),
        (["--preset", "finspire"], (125, 7), (0.64, 3.84)),
        (["--preset", "finspire", "--hop", "4"], (125, 28), (0.64, 27 * 4 / 25)),
        (["--window", "16"], (25, 2), (3.2, 3.2)),
        (["--window", "16", "--hop", "8", "--window-mean", "True"], (25, 3), (3.2, 3.2)),
        (["--fps", "native"], (125, 15), (0.48, 116 / 25)),
        (["--preset", "vslnet-charades", "--bug-compatible"], (120, 10), (0.5, (119 - 12) / 24)),
        (["--preset", "video-features", "--fps", "13", "--bug-compatible"], (65, 1), (64 / 13, 0)),
    ],
)
def test_rows_of_five_seconds(videos, tmp_path, flags, counts, edges_s):
    """The numbers of frames and rows, the end of the first one, the start of the last one."""
    store = extracted(videos / "five.mp4", tmp_path / "out", *flags)
    video = store["five"]
    assert (video.facts["num_frames"], *video.features.shape) == (*counts, 1024)
    assert video.start_s[0] == 0
    np.testing.assert_allclose(video.end_s[0], edges_s[0], atol=1e-9)
    np.testing.assert_allclose(video.start_s[-1], edges_s[1], atol=1e-9)
    assert video.end_s[-1] <= video.duration_s == 5.0
    again = FeatureRecipe.from_recipe(store.recipe)
    assert again.to_json().items() <= store.recipe.items()


def test_short_videos_are_padded_and_say_so(videos, tmp_path, caplog):
    caplog.set_level("INFO")
    store = extracted(videos, tmp_path / "out", "--fps", "10")
    assert store["short"].features.shape == (1, 1024)
    assert store["short"].facts["frames_repeated"] == 9  # 7 frames become 16
    assert store["five"].facts["frames_repeated"] == 6  # 50 become 56
    assert "short: 7 frames are fewer than the 9 that I3D needs" in caplog.text
    assert "five: 50 frames" not in caplog.text
    windows = extracted(videos, tmp_path / "windows", "--fps", "10", "--window", "16", "--hop", "12")
    assert windows["five"].facts["frames_repeated"] == 2  # [36, 52)


def test_a_recipe_says_what_was_resolved_and_not_by_which_name(videos, tmp_path):
    """A preset and its settings one by one are the same recipe, so one goes on where the other stopped."""
    extracted(videos, tmp_path / "out", "--preset", "finspire")
    before = (tmp_path / "out" / "records.jsonl").read_bytes()
    extracted(videos, tmp_path / "out", "--window", "16", "--last-window", "drop", "--fps", "25")
    assert (tmp_path / "out" / "records.jsonl").read_bytes() == before


def test_a_video_that_a_published_pipeline_fails_on_is_one_failure(videos, tmp_path):
    arguments = ["--videos", str(videos), "--out", str(tmp_path / "out"), *SMALL, "--preset", "vslnet-tacos"]
    assert main(["extract", *arguments, "--bug-compatible"]) == 3
    store = FeatureStore(tmp_path / "out")
    assert list(store) == ["five"]
    failed = store.manifest.failed["video/short"]
    assert failed["error"] == "features"
    assert "7 frames leaves the published pipeline a clip of 6" in failed["message"]


def test_native_rate_takes_every_frame_once(tmp_path):
    """Also of times that were rounded to milliseconds, as Matroska does, and of a rate that no decimal number is."""
    write_video(tmp_path / "a.mkv", [round(i * 1001 / 30) for i in range(90)], rate=30, width=64, height=48)
    store = extracted(tmp_path / "a.mkv", tmp_path / "out", "--fps", "native", "--window", "9", "--hop", "1")
    video = store["a"]
    assert video.facts["num_frames"] == 90
    assert video.facts["fps"] == pytest.approx(30 / 1.001, rel=2e-3)
    assert video.facts["frames_decoded"] == 90


@pytest.mark.parametrize(
    ("period_ms", "frames"), [(1000 / 24.96, 1248), (1000 / 29.9, 1495), (1000 / 17.3, 865), (1001 / 24, 1250)]
)
def test_native_rates_that_are_no_usual_ones(tmp_path, period_ms, frames):
    """24.96, 29.9, 17.3 and 23.976 a second: a rounder rate nearby would repeat a frame now and then."""
    pts = [round(i * period_ms * 90) for i in range(frames)]
    path = write_video(
        tmp_path / "a.mp4", pts, time_base=Fraction(1, 90000), rate=25, width=64, height=48, options={"preset": "ultrafast"}
    )
    video = PyAVVideo(path, Sampling(None, Geometry(32, 32)))
    count = sum(1 for _ in video)
    assert count == video.facts.num_frames == frames


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--chunk-frames", "80000"], "4096"),
        (["--window", "5000"], "4096"),
        (["--stride", "4", "--window", "16"], "windows have window"),
        (["--hop", "4"], "hop: there are no windows without a window's length"),
        (["--window", "8"], "window: 8 frames; with the pool 2x7x7 at least 9 are needed"),
        (["--preset", "excl", "--bug-compatible"], "the preset excl has no bugs to repeat"),
        (["--preset", "piergiaj", "--bug-compatible", "--stride", "4"], "with stride it is no longer what piergiaj does"),
        (["--preset", "i3d"], "i3d"),
        (["--stride", "3"], "3"),
        (["--precision", "tf32"], "tf32 exists on NVIDIA's GPUs only, not on cpu"),
        (["--crop", "2000", "--short-side", "2000"], "1024"),
        (["--chunk-frames", "100"], "8"),
        (["--device", "cpu,cpu"], "names one device twice"),
        (["--fps", "-1"], "fps"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(flags, message, videos, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        raise SystemExit(main(["extract", "--videos", str(videos), "--out", str(tmp_path / "out"), *SMALL, *flags]))
    assert stopped.value.code == 2
    assert message in " ".join("".join(capsys.readouterr()).replace("│", " ").split())


def test_the_same_rows_are_the_same_recipe():
    def made(**settings):
        return extract.ExtractConfig(videos="x", out="y", weights="random:0", **settings).feature_recipe().to_json()

    assert made(short_side=256) == made(short_side="256") == made()
    assert made(window=16) == made(window=16, window_mean=True)
    assert made(window=24) != made(window=24, window_mean=True)
    assert made(short_side="226-upscale-only", crop=200) != made(short_side=226, crop=200)


def test_rows_that_go_back_in_time_are_no_store_to_train_on(videos, tmp_path):
    store = extracted(videos / "five.mp4", tmp_path / "out", "--fps", "24", "--window", "24", "--hop", "8")
    with pytest.raises(ValueError, match=r"five: its rows go back in time.*--window-mean True"):
        store["five"].require_in_order()
    for flags in (["--window", "24", "--hop", "24"], ["--window", "24", "--hop", "8", "--window-mean", "True"]):
        extracted(videos / "five.mp4", tmp_path / flags[-1], "--fps", "24", *flags)["five"].require_in_order()


def test_what_is_given_beside_a_preset_wins():
    assert RowOptions().layout() == Continuous()
    assert RowOptions(preset="finspire", hop=4).layout() == Windows(window=16, hop=4, last="drop")
    assert RowOptions(preset="finspire", window=32).layout() == Windows(window=32, hop=32, last="drop")
    assert RowOptions(preset="finspire", stride=2).layout() == Continuous(stride=2)
    assert RowOptions(preset="excl-dense", pool="1x7x7").layout() == Continuous(stride=1, pool="1x7x7")
    assert RowOptions(window=24, window_mean=True).layout() == Windows(window=24, hop=24, mean=True)
    assert RowOptions(preset="piergiaj", bug_compatible=True).layout() == PortChunks()
    config = extract.ExtractConfig(videos="x", out="y", preset="vslnet-charades", weights="random:0")
    assert (config.feature_recipe().fps, config.feature_recipe().short_side) == (24.0, "226-upscale-only")
    assert PRESETS["vslnet-charades"].weights == "charades"


@pytest.mark.parametrize("preset", PRESETS)
def test_real_videos_have_the_documented_rows(shared, tmp_path, preset):
    """Every preset on the two real ActivityNet videos: counts and seconds by the documentation, written out here."""
    listed = tmp_path / "two.txt"
    listed.write_text("".join(f"{shared / 'videos' / name}.mp4\n" for name in REAL))
    arguments = ["extract", "--videos", str(listed), "--out", str(tmp_path / "out"), "--preset", preset]
    assert main([*arguments, "--weights", "random:0", "--crop", "32", "--device", "cpu"]) == 0
    store = FeatureStore(tmp_path / "out")
    assert list(store) == list(REAL)
    for name in REAL:
        video = store[name]
        fps, duration_s, frames = (video.facts[key] for key in ("fps", "duration_s", "num_frames"))
        wanted_fps = {"excl": 5, "excl-dense": 5, "vslnet-charades": 24, "piergiaj": 24, "finspire": 25, "rgb600": 16}.get(
            preset
        )
        assert fps == (wanted_fps or REAL[name][1])
        assert frames == (ceil(fps * duration_s) if wanted_fps else round(fps * duration_s))
        assert duration_s == pytest.approx(REAL[name][0], abs=1e-4)
        if preset in {"excl", "piergiaj"}:
            edges = [0, *range(12, 8 * (ceil(frames / 8) - 1), 8), frames]
        elif preset == "excl-dense":
            edges = [0, *(k + 0.5 for k in range(1, frames - 1)), frames]
        elif preset == "rgb600":
            edges = [64 * q + edge for q in range(ceil(frames / 64)) for edge in (0, *range(12, 60, 8))]
            edges = [*(edge for edge in edges if edge < frames), frames]
        else:
            window, rows = {"vslnet-charades": (24, 2), "vslnet-tacos": (16, 1), "video-features": (64, 1)}.get(
                preset, (16, 1)
            )
            edges = [window // rows * k for k in range(ceil(frames * rows / window) + 1)]
            if preset in {"video-features", "finspire"}:  # which leave out what fills no window
                edges = [edge for edge in edges if edge <= frames]
        edges_s = np.minimum(np.array(edges) / fps, duration_s)
        np.testing.assert_allclose(video.start_s, edges_s[:-1], atol=1e-9)
        np.testing.assert_allclose(video.end_s, edges_s[1:], atol=1e-9)
        assert len(video.features) == len(edges) - 1
