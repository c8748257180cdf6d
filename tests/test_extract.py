"""Decode and extract as stages: failures cost one video, kills cost nothing, recipes never mix."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import write_video

from excl.models.i3d.timemap import num_rows, row_times
from excl.pipeline import decode, extract, items
from excl.pipeline.decode import StoredFrames
from excl.pipeline.manifest import Manifest, RecipeMismatchError
from excl.pipeline.store import FeatureStore
from excl.workflows.cli import main

SMALL = {"weights": "random:0", "short_side": 32, "crop": 32, "device": "cpu"}
FLAGS = ["--weights", "random:0", "--short-side", "32", "--crop", "32", "--device", "cpu"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for number, frames in enumerate([40, 100, 31, 70, 55]):
        write_video(folder / f"v{number}.mp4", [i * 40 for i in range(frames)], rate=25, width=64, height=48)
    return folder


def run_small(videos, out, **settings):
    return FeatureStore(extract.run(extract.Config(videos=videos, out=out, **{**SMALL, **settings})))


def shard_bytes(out):
    return {path.name: path.read_bytes() for path in sorted((out / "shards").iterdir())}


def test_every_video_has_its_rows_and_their_seconds(videos, tmp_path):
    store = run_small(videos, tmp_path / "out")
    assert list(store) == [f"v{i}" for i in range(5)]
    for number, frames in enumerate([40, 100, 31, 70, 55]):
        video = store[f"v{number}"]
        sampled = -(-frames * 5 // 25)
        assert video.facts["num_frames"] == sampled
        assert video.features.shape == (num_rows(sampled), 1024)
        assert video.features.dtype == np.float16
        start_s, end_s = row_times(sampled, fps=5.0, duration_s=frames / 25)
        np.testing.assert_array_equal(video.start_s, start_s)
        np.testing.assert_array_equal(video.end_s, end_s)
        assert video.facts["source"]["file"] == f"v{number}.mp4"
    assert store.recipe["weights"]["source"] == "random:0"
    assert os.listdir(tmp_path / "out" / "parts") == []


def test_features_from_stored_frames_are_the_same(videos, tmp_path):
    decode.run(decode.Config(videos=videos, out=tmp_path / "frames", short_side=32, crop=32))
    straight = run_small(videos, tmp_path / "straight")
    stored = run_small(None, tmp_path / "stored", frames=tmp_path / "frames")
    for video_id in straight:
        np.testing.assert_array_equal(straight[video_id].features, stored[video_id].features)
        np.testing.assert_array_equal(straight[video_id].end_s, stored[video_id].end_s)
    assert shard_bytes(tmp_path / "straight") == shard_bytes(tmp_path / "stored")
    with pytest.raises(ValueError, match="frames were sampled with"):
        run_small(None, tmp_path / "other", frames=tmp_path / "frames", fps=4.0)


def test_stored_frames_are_the_decoded_ones(videos, tmp_path):
    from excl.datasets.video import Geometry, SampledVideo

    decode.run(decode.Config(videos=videos / "v1.mp4", out=tmp_path / "frames", short_side=48, crop=40))
    stored = StoredFrames(tmp_path / "frames" / "frames" / "000000.h5")
    video = SampledVideo(videos / "v1.mp4", fps=5, geometry=Geometry(48, 40))
    np.testing.assert_array_equal(np.stack(list(stored)), np.stack(list(video)))
    assert stored.facts == video.facts


def test_a_second_run_does_nothing(videos, tmp_path, monkeypatch):
    run_small(videos, tmp_path / "out")
    before = (tmp_path / "out" / "records.jsonl").read_bytes()
    monkeypatch.setattr(extract, "extract_video", lambda *_: pytest.fail("a finished video was extracted again"))
    run_small(videos, tmp_path / "out")
    assert (tmp_path / "out" / "records.jsonl").read_bytes() == before


def test_another_recipe_or_another_file_is_refused(videos, tmp_path):
    copies = tmp_path / "videos"
    copies.mkdir()
    for path in videos.iterdir():
        (copies / path.name).write_bytes(path.read_bytes())
    run_small(copies, tmp_path / "out")
    for other in ({"fps": 4.0}, {"weights": "random:1"}, {"crop": 24 + 8, "short_side": 40}, {"dtype": "float32"}):
        with pytest.raises(RecipeMismatchError, match="identity." + next(iter(other)).replace("crop", "short_side")):
            run_small(copies, tmp_path / "out", **other)
    os.utime(copies / "v0.mp4")  # touched, not changed
    run_small(copies, tmp_path / "out")
    (copies / "v0.mp4").write_bytes((videos / "v1.mp4").read_bytes())
    with pytest.raises(ValueError, match=r"v0\.mp4 has changed since"):
        run_small(copies, tmp_path / "out")


def test_bad_videos_are_recorded_and_the_rest_is_done(videos, tmp_path, caplog):
    mixed = tmp_path / "videos"
    mixed.mkdir()
    for name in ("v0", "v1"):
        (mixed / f"{name}.mp4").write_bytes((videos / f"{name}.mp4").read_bytes())
    (mixed / "empty.mp4").write_bytes(b"")
    (mixed / "text.mp4").write_text("not a video")
    (mixed / "dangling.mp4").symlink_to(tmp_path / "nowhere")
    arguments = ["extract", "--videos", str(mixed), "--out", str(tmp_path / "out"), *FLAGS]
    assert main(arguments) == 3
    manifest = Manifest.read(tmp_path / "out")
    assert sorted(manifest.failed) == ["video/dangling", "video/empty", "video/text"]
    assert "empty.mp4: an empty file" in manifest.failed["video/empty"]["message"]
    assert list(FeatureStore(tmp_path / "out")) == ["v0", "v1"]
    assert "3 failed with VideoError: dangling, empty, text" in caplog.text
    done = manifest.records["video/v0"]

    (mixed / "text.mp4").write_bytes((videos / "v2.mp4").read_bytes())  # the user mends one
    assert main(arguments) == 3
    assert "text" not in FeatureStore(tmp_path / "out")
    assert main([*arguments, "--retry-failed"]) == 3
    store = FeatureStore(tmp_path / "out")
    assert list(store) == ["text", "v0", "v1"]
    assert store["text"].facts["num_frames"] == 7
    assert Manifest.read(tmp_path / "out").records["video/v0"] == done


def test_videos_added_later_extend_the_store(videos, tmp_path):
    growing = tmp_path / "videos"
    growing.mkdir()
    for name in ("v3", "v1"):
        (growing / f"{name}.mp4").write_bytes((videos / f"{name}.mp4").read_bytes())
    assert list(run_small(growing, tmp_path / "out")) == ["v1", "v3"]
    (growing / "v0.mp4").write_bytes((videos / "v0.mp4").read_bytes())
    store = run_small(growing, tmp_path / "out")
    assert list(store) == ["v0", "v1", "v3"]
    whole = run_small(videos, tmp_path / "whole")
    for video_id in store:
        np.testing.assert_array_equal(store[video_id].features, whole[video_id].features)


KILLED_RUN = """
import sys
from excl.pipeline import extract
from excl.workflows.cli import main
original = extract.extract_video
def slowly(config, item):
    print("next", flush=True)
    return original(config, item)
extract.extract_video = slowly
sys.exit(main(sys.argv[1:]))
"""


def test_kill_9_loses_nothing_and_changes_nothing(videos, tmp_path):
    """Killed again and again, at another instant each time, the store ends with the bytes of one that never was."""
    run_small(videos, tmp_path / "whole", shard_videos=2)
    out = tmp_path / "killed"
    command = [sys.executable, "-c", KILLED_RUN, "extract", "--videos", str(videos), "--out", str(out), *FLAGS]
    command += ["--shard-videos", "2"]
    generator = np.random.default_rng(0)
    committed = 0
    for _ in range(4):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert process.stdout is not None
        if process.stdout.readline() == "":
            break
        time.sleep(generator.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
        records = Manifest.read(out).records
        done = [name for name in records if name.startswith("video/")]
        assert len(done) >= committed
        committed = len(done)
    assert main([*command[3:]]) == 0
    assert shard_bytes(out) == shard_bytes(tmp_path / "whole")
    assert Manifest.read(out).fingerprint() == Manifest.read(tmp_path / "whole").fingerprint()
    assert os.listdir(out / "parts") == []


def test_shards_do_not_depend_on_the_order_of_work(videos, tmp_path):
    run_small(videos, tmp_path / "forwards", shard_videos=2)

    def backwards(function, todo):
        return map(function, reversed(list(todo)))

    config = extract.Config(videos=videos, out=tmp_path / "backwards", shard_videos=2, **SMALL)
    extract.run(config, map=backwards)
    assert shard_bytes(tmp_path / "backwards") == shard_bytes(tmp_path / "forwards")


def test_an_unfinished_store_is_readable_and_said_to_be_unfinished(videos, tmp_path):
    def some(function, todo):
        return map(function, list(todo)[:3])

    config = extract.Config(videos=videos, out=tmp_path / "out", **SMALL)
    store = FeatureStore(extract.run(config, map=some))
    assert list(store) == ["v0", "v1", "v2"]
    with pytest.raises(ValueError, match="2 of its videos are still to be done"):
        items.require_finished(store.manifest)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--videos", "x"], "out"),
        (["--videos", "x", "--out", "y", "--fps", "0"], "fps"),
        (["--videos", "x", "--out", "y", "--fps", "fast"], "fps"),
        (["--videos", "x", "--out", "y", "--frame-rate", "5"], "frame-rate"),
        (["--videos", "x", "--out", "y", "--crop", "300"], "crop"),
        (["--videos", "x", "--out", "y", "--weights", "kinetcs"], "kinetcs"),
        (["--videos", "x", "--out", "y", "--dtype", "float64"], "dtype"),
        (["--out", "y", "--weights", "random:0"], "videos or frames"),
    ],
)
def test_impossible_settings_are_refused_by_name(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["extract", *arguments])
    assert stopped.value.code == 2
    assert message in "".join(capsys.readouterr())
    assert list(tmp_path.iterdir()) == []


def test_missing_input_is_named(tmp_path, caplog):
    assert main(["extract", "--videos", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out"), *FLAGS]) == 1
    assert "nowhere: there is no such file or folder of videos" in caplog.text
    assert not (tmp_path / "out").exists()


def test_real_videos_give_the_rows_of_the_map(shared, tmp_path):
    """The shape of the result for the real videos at full size; their seconds by the rule, written out."""
    out = tmp_path / "out"
    arguments = ["--videos", str(shared / "videos"), "--out", str(out), "--weights", "random:0"]
    assert main(["extract", *arguments]) == 0
    code = (
        "from excl.pipeline.store import FeatureStore; s = FeatureStore('out'); t = s['v_GGSY1Qvo990'];"
        "print(t.features.shape, t.start_s[:3], t.end_s[-1])"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert shown.startswith("(11, 1024) [0.  2.4 4. ] 18.09378")
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    assert [r["num_rows"] for r in records if r["id"].startswith("video/")] == [6, 11, 8]
