"""Decode and extract as stages: failures cost one video, kills cost nothing, recipes never mix."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import os
import resource
import shutil
import signal
import sys
import time
from types import SimpleNamespace

import commands
import numpy as np
import pytest
from dask.distributed import Client, LocalCluster
from killing import left_by_kills, run_and_die_at
from shared_fixtures import write_video

from excl.datasets.video.errors import VideoError
from excl.datasets.video.geometry import Geometry
from excl.datasets.video.pyav_backend import PyAVVideo
from excl.datasets.video.sampling import Sampling
from excl.models.i3d.row_layout import Continuous
from excl.pipeline import decode, extract
from excl.pipeline.artifacts.header import RecipeMismatchError
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.artifacts.video_records import require_finished
from excl.pipeline.execution import pending_videos
from excl.pipeline.execution.shard_work import inline
from excl.pipeline.execution.source_files import file_facts
from excl.pipeline.execution.thread_map import threaded_map
from excl.pipeline.store.feature_store import FeatureStore
from excl.pipeline.store.frame_store import StoredFrames
from excl.pipeline.store.shard import VideoFeatures, write_shard
from excl.workflows.cli import main
from excl.workflows.cluster.dask_cluster import client_executor

pytestmark = pytest.mark.usefixtures("one_thread", "decoded_here")
SMALL = {"weights": "random:0", "short_side": 32, "crop": 32, "device": "cpu"}
FLAGS = ["--weights", "random:0", "--short-side", "32", "--crop", "32", "--device", "cpu"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for number, frames in enumerate([40, 100, 31, 70, 55]):
        write_video(folder / f"v{number}.mp4", [i * 40 for i in range(frames)], rate=25, width=64, height=48)
    return folder


def run_small(videos, out, **settings):
    return FeatureStore(extract.run(extract.ExtractConfig(videos=videos, out=out, **{**SMALL, **settings})))


def shard_bytes(out):
    return {path.name: path.read_bytes() for path in sorted((out / "shards").iterdir())}


def test_every_video_has_its_rows_and_their_seconds(videos, tmp_path):
    store = run_small(videos, tmp_path / "out")
    assert list(store) == [f"v{i}" for i in range(5)]
    for number, frames in enumerate([40, 100, 31, 70, 55]):
        video = store[f"v{number}"]
        sampled = -(-frames * 5 // 25)
        assert video.facts["num_frames"] == sampled
        assert video.features.shape == (Continuous().num_rows(sampled), 1024)
        assert video.features.dtype == np.float16
        start_s, end_s = Continuous().row_times(sampled, fps=5.0, duration_s=frames / 25)
        np.testing.assert_array_equal(video.start_s, start_s)
        np.testing.assert_array_equal(video.end_s, end_s)
        assert video.facts["source"]["file"] == f"v{number}.mp4"
    assert store.recipe["weights"]["source"] == "random:0"
    assert os.listdir(tmp_path / "out" / "parts") == []


def test_features_from_stored_frames_are_the_same(videos, tmp_path):
    decode.run(decode.DecodeConfig(videos=videos, out=tmp_path / "frames", short_side=32, crop=32))
    straight = run_small(videos, tmp_path / "straight")
    stored = run_small(None, tmp_path / "stored", frames=tmp_path / "frames")
    for video_id in straight:
        np.testing.assert_array_equal(straight[video_id].features, stored[video_id].features)
        np.testing.assert_array_equal(straight[video_id].end_s, stored[video_id].end_s)
    assert shard_bytes(tmp_path / "straight") == shard_bytes(tmp_path / "stored")
    with pytest.raises(ValueError, match=r"sampled otherwise: fps is 5\.0, asked for is 4\.0; .*--short-side 32"):
        run_small(None, tmp_path / "other", frames=tmp_path / "frames", fps=4.0)


def test_stored_frames_are_the_decoded_ones(videos, tmp_path):
    decode.run(decode.DecodeConfig(videos=videos, out=tmp_path / "frames", short_side=48, crop=40, shard_videos=2))
    [_, shard, _] = sorted((tmp_path / "frames" / "shards").iterdir())
    assert StoredFrames(shard, "v2").source["file"] == "v2.mp4"
    [shard, _, _] = sorted((tmp_path / "frames" / "shards").iterdir())
    stored = StoredFrames(shard, "v1")
    video = PyAVVideo(videos / "v1.mp4", Sampling(5, Geometry(48, 40)))
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


def test_another_recipe_can_be_a_new_version_beside_the_old(videos, tmp_path):
    out = tmp_path / "out"
    old = run_small(videos, out)
    before = shard_bytes(out)
    other = run_small(videos, out, stride=4, new_version=True)
    assert (old.path, other.path) == (out, tmp_path / "out-2")
    assert run_small(videos, out, stride=4, new_version=True).path == other.path  # it goes on there
    assert run_small(videos, out, new_version=True).path == out
    assert run_small(videos, out, stride=2, new_version=True).path == tmp_path / "out-3"
    assert shard_bytes(out) == before


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
    reasons = {"dangling": "missing", "empty": "empty", "text": "not_a_video"}
    assert {name: record["error"] for name, record in manifest.failed.items()} == {
        f"video/{n}": r for n, r in reasons.items()
    }
    assert "empty.mp4: an empty file" in manifest.failed["video/empty"]["message"]
    assert list(FeatureStore(tmp_path / "out")) == ["v0", "v1"]
    assert all(f"1 failed as {reason}: {name}" in caplog.text for name, reason in reasons.items())
    done = manifest.records["video/v0"]

    (mixed / "text.mp4").write_bytes((videos / "v2.mp4").read_bytes())  # the user mends one
    assert main(arguments) == 3
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


class FewNumbers:
    """In the place of I3D where only the order of writing is tested: features made of the frames' mean colours."""

    layout = Continuous()
    runner = SimpleNamespace(device="cpu")

    def __call__(self, frames):
        means = np.array([frame.mean() for frame in frames])
        return np.resize(means, (Continuous().num_rows(len(means)), 1024)).astype(np.float32)


class AlreadyRead:
    """What a video gave, in the place of the video."""

    def __init__(self, video):
        self.frames, self.facts = list(video), video.facts

    def __iter__(self):
        return iter(self.frames)


@pytest.fixture
def few_numbers(monkeypatch):
    """Extraction without the network, and each file decoded once, in this process: what is left is the order of writing."""
    read = {}

    def open_video(config, item):
        state = item.path.stat()
        key = item.path, state.st_size, state.st_mtime_ns
        if key not in read:
            read[key] = AlreadyRead(PyAVVideo(item.path, Sampling(5, Geometry(config.short_side, config.crop))))
        return read[key]

    monkeypatch.setattr(extract.EXTRACTORS, "extractor", lambda *_: FewNumbers())
    monkeypatch.setattr(extract, "_open_video", open_video)


@pytest.fixture
def three_videos(videos, tmp_path):
    """A folder of the test's own, of as few videos as a full shard and one more have."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for number, name in enumerate(["v0", "v2", "v4"]):
        shutil.copy(videos / f"{name}.mp4", folder / f"v{number}.mp4")
    return folder


def assert_believable(out, wanted):
    """Whatever the store says it has, it has, and it is the right thing."""
    if (out / "records.jsonl").exists() and any("videos" in r for r in Manifest.read(out).records.values()):
        store = FeatureStore(out)
        for video_id in store:
            np.testing.assert_array_equal(store[video_id].features, wanted[video_id].features)


def test_kill_9_at_every_write_loses_nothing_and_changes_nothing(three_videos, tmp_path, few_numbers):
    """Killed before any replace, fsync or unlink, also while a mended video joins its shard: the same bytes in the end."""
    wanted = run_small(three_videos, tmp_path / "whole", shard_videos=2)
    good = (three_videos / "v1.mp4").read_bytes()
    (three_videos / "v1.mp4").write_text("broken")
    kills = 0
    for name, content in (("without one", b"broken"), ("mended", good)):
        (three_videos / "v1.mp4").write_bytes(content)
        config = extract.ExtractConfig(
            out=tmp_path / "out", videos=three_videos, shard_videos=2, retry_failed=name == "mended", **SMALL
        )
        killed = left_by_kills(config, tmp_path / name)
        for out in killed:
            assert_believable(out, wanted)
            extract.run(dataclasses.replace(config, out=out))
            assert shard_bytes(out) == shard_bytes(config.out)
            assert os.listdir(out / "parts") == []
            FeatureStore(out).require_finished()
        kills += len(killed)
    assert shard_bytes(config.out) == shard_bytes(tmp_path / "whole")
    assert kills > 30


def test_kill_9_again_and_again(videos, tmp_path, few_numbers):
    """One store that never gets to finish a run in peace, until it does."""
    wanted = run_small(videos, tmp_path / "whole", shard_videos=2)
    config = extract.ExtractConfig(videos=videos, out=tmp_path / "out", shard_videos=2, **SMALL)
    done = 0
    for call in itertools.count(6):
        killed = run_and_die_at(call, config)
        assert_believable(tmp_path / "out", wanted)
        now = sum(name.startswith("video/") for name in Manifest.read(tmp_path / "out").records)
        assert now >= done
        done = now
        if not killed:
            break
    assert call > 8
    assert shard_bytes(tmp_path / "out") == shard_bytes(tmp_path / "whole")


@pytest.mark.parametrize("workers", [1, 2])
def test_kill_9_at_random_instants(three_videos, tmp_path, few_numbers, workers):
    """20 kills over several stores, each resumed until it is done: the same bytes as without."""
    spread = map if workers == 1 else threaded_map(workers)
    run_small(three_videos, tmp_path / "whole", shard_videos=2)
    began = time.monotonic()
    run_small(three_videos, tmp_path / "again", shard_videos=2)
    lasts_s = min(0.5, time.monotonic() - began)
    generator = np.random.default_rng(workers)
    kills, stores = 0, 0
    while kills < 20:
        stores += 1
        out = tmp_path / f"out{stores}"
        config = extract.ExtractConfig(videos=three_videos, out=out, shard_videos=2, **SMALL)
        for _ in range(6):
            pid = os.fork()
            if pid == 0:
                extract.run(config, executor=inline(spread))
                os._exit(0)
            time.sleep(generator.uniform(0, lasts_s))
            os.kill(pid, signal.SIGKILL)
            kills += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        extract.run(config, executor=inline(spread))
        assert shard_bytes(out) == shard_bytes(tmp_path / "whole")
        assert os.listdir(out / "parts") == []
        assert Manifest.read(out).fingerprint() == Manifest.read(tmp_path / "whole").fingerprint()


def test_work_on_a_dask_cluster_gives_the_same_bytes(videos, tmp_path):
    """Two worker processes; a second run after the first was cut off goes on, and ends in what inline work gives."""
    run_small(videos, tmp_path / "inline", shard_videos=2)
    config = extract.ExtractConfig(videos=videos, out=tmp_path / "out", shard_videos=2, **SMALL)
    with (
        commands.forked_workers(),
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", host="127.0.0.1") as cluster,
        Client(cluster) as client,
    ):
        spread = client_executor(client)

        def cut_off(*arguments):
            yield from itertools.islice(spread(*arguments), 2)
            raise OSError(errno.EIO, "the network is gone")

        with pytest.raises(OSError, match="the network is gone"):
            extract.run(config, executor=cut_off)
        assert len(FeatureStore(tmp_path / "out")) >= 2
        extract.run(config, executor=spread)
    assert shard_bytes(tmp_path / "out") == shard_bytes(tmp_path / "inline")
    assert Manifest.read(tmp_path / "out").fingerprint() == Manifest.read(tmp_path / "inline").fingerprint()


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EIO])
def test_an_error_at_any_rename_or_fsync_commits_nothing_bad(three_videos, tmp_path, few_numbers, monkeypatch, reason):
    wanted = run_small(three_videos, tmp_path / "whole", shard_videos=2)
    for call in itertools.count(1):
        out, calls = tmp_path / f"out{call}", itertools.count(1)

        def failing(function, calls=calls, call=call):
            def wrapper(*arguments, **keywords):
                if next(calls) == call:
                    raise OSError(reason, os.strerror(reason))
                return function(*arguments, **keywords)

            return wrapper

        config = extract.ExtractConfig(videos=three_videos, out=out, shard_videos=2, **SMALL)
        with monkeypatch.context() as patch:
            for name in ("replace", "fsync", "truncate"):
                patch.setattr(os, name, failing(getattr(os, name)))
            try:
                extract.run(config)
                failed = False
            except OSError as error:
                failed = error.errno == reason
        assert_believable(out, wanted)
        extract.run(config)
        assert shard_bytes(out) == shard_bytes(tmp_path / "whole")
        if not failed:
            break
    assert call > 30


def test_a_full_disk_at_any_byte_of_a_shard_commits_nothing_bad(tmp_path):
    """The system refuses to let a file grow beyond so many bytes: HDF5 fails wherever it is just then."""
    edges = np.arange(9) * 1.6
    video = VideoFeatures("v", np.ones((8, 1024), np.float16), edges[:-1], edges[1:], {"fps": 5.0})
    write_shard(tmp_path / "whole.h5", [video], recipe={})
    size = (tmp_path / "whole.h5").stat().st_size
    for limit in range(0, size, 997):
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            try:
                write_shard(tmp_path / "full.h5", [video], recipe={})
            except OSError:
                os._exit(7)
            os._exit(0)
        assert os.WEXITSTATUS(os.waitpid(pid, 0)[1]) == 7, limit
        assert [path.name for path in tmp_path.iterdir()] == ["whole.h5"]


def test_shards_do_not_depend_on_the_order_of_work(videos, tmp_path):
    run_small(videos, tmp_path / "forwards", shard_videos=2)

    def backwards(function, todo):
        return map(function, reversed(list(todo)))

    config = extract.ExtractConfig(videos=videos, out=tmp_path / "backwards", shard_videos=2, **SMALL)
    extract.run(config, executor=inline(backwards))
    assert shard_bytes(tmp_path / "backwards") == shard_bytes(tmp_path / "forwards")


def test_work_that_comes_back_in_any_order_and_all_at_once(videos, tmp_path, few_numbers):
    """As from a pool of workers: everything is computed before the first record, and two failed videos are retried."""

    def pool(function, todo):
        return iter(list(map(function, todo))[::-1])

    mixed = tmp_path / "videos"
    shutil.copytree(videos, mixed)
    run_small(mixed, tmp_path / "whole")
    for name in ("v1", "v2"):
        (mixed / f"{name}.mp4").write_text("broken")
    extract.run(extract.ExtractConfig(videos=mixed, out=tmp_path / "out", **SMALL), executor=inline(pool))
    for name in ("v1", "v2"):
        shutil.copy(videos / f"{name}.mp4", mixed)
    extract.run(extract.ExtractConfig(videos=mixed, out=tmp_path / "out", retry_failed=True, **SMALL), executor=inline(pool))
    assert shard_bytes(tmp_path / "out") == shard_bytes(tmp_path / "whole")


def test_a_planned_video_that_vanished_is_a_failure_and_no_dead_end(videos, tmp_path):
    some = tmp_path / "videos"
    shutil.copytree(videos, some)

    def none_yet(function, todo):
        return map(function, list(todo)[:1])

    extract.run(extract.ExtractConfig(videos=some, out=tmp_path / "out", **SMALL), executor=inline(none_yet))
    (some / "v3.mp4").unlink()
    store = run_small(some, tmp_path / "out")
    assert list(store) == ["v0", "v1", "v2", "v4"]
    assert "not among the videos now" in store.manifest.failed["video/v3"]["message"]
    store.require_finished()


def test_a_run_that_made_nothing_leaves_the_folder_to_another(videos, tmp_path):
    def nothing(function, todo):
        return iter(())

    extract.run(extract.ExtractConfig(videos=videos, out=tmp_path / "out", **SMALL), executor=inline(nothing))
    store = run_small(videos, tmp_path / "out", fps=4.0)
    assert store.recipe["fps"] == 4.0


def test_from_frames_and_from_videos_is_one_store(videos, tmp_path):
    """The two ways give the same features, so one may go on with what the other began."""
    decode.run(decode.DecodeConfig(videos=videos, out=tmp_path / "frames", short_side=32, crop=32))
    run_small(None, tmp_path / "out", frames=tmp_path / "frames")
    before = (tmp_path / "out" / "records.jsonl").read_bytes()
    run_small(videos, tmp_path / "out")
    assert (tmp_path / "out" / "records.jsonl").read_bytes() == before


@pytest.mark.parametrize("which", ["shard", "part of an unfinished store"])
def test_what_was_lost_is_made_again(videos, tmp_path, which):
    run_small(videos, tmp_path / "whole", shard_videos=2)

    def some(function, todo):
        return map(function, list(todo)[: 3 if which != "shard" else None])

    extract.run(extract.ExtractConfig(videos=videos, out=tmp_path / "out", shard_videos=2, **SMALL), executor=inline(some))
    lost = sorted((tmp_path / "out" / ("shards" if which == "shard" else "parts")).iterdir())[0]
    lost.unlink()
    run_small(videos, tmp_path / "out", shard_videos=2)
    assert shard_bytes(tmp_path / "out") == shard_bytes(tmp_path / "whole")


def test_videos_of_a_mount_that_was_lost_are_done_when_it_is_back(videos, tmp_path, caplog):
    caplog.set_level("INFO")
    mount, away = shutil.copytree(videos, tmp_path / "mount"), tmp_path / "away"
    (tmp_path / "list.txt").write_text("".join(f"mount/v{i}.mp4\n" for i in range(5)))
    (mount / "v4.mp4").write_bytes(b"no video")
    flags = [
        "extract",
        "--videos",
        str(tmp_path / "list.txt"),
        "--out",
        str(tmp_path / "out"),
        "--shard-videos",
        "2",
        *FLAGS,
    ]
    away.mkdir()
    for name in ("v0", "v1", "v2", "v3"):
        (mount / f"{name}.mp4").rename(away / f"{name}.mp4")
    for _ in range(2):
        assert main(flags) == 3
        reasons = {name: record["error"] for name, record in Manifest.read(tmp_path / "out").failed.items()}
        assert reasons == {"video/v4": "not_a_video", **{f"video/v{i}": "missing" for i in range(4)}}
    for path in away.iterdir():
        path.rename(mount / path.name)
    caplog.clear()  # v4 is still what failed for another reason
    assert list(run_small(tmp_path / "list.txt", tmp_path / "out", shard_videos=2)) == ["v0", "v1", "v2", "v3"]
    assert caplog.text.count("4 videos that failed before are tried again") == 1
    assert list(Manifest.read(tmp_path / "out").failed) == ["video/v4"]
    before = (tmp_path / "out" / "records.jsonl").read_text().count('"video/v4"')
    run_small(tmp_path / "list.txt", tmp_path / "out", shard_videos=2)
    assert (tmp_path / "out" / "records.jsonl").read_text().count('"video/v4"') == before  # nor tried again
    shutil.copy(videos / "v4.mp4", mount / "v4.mp4")
    assert list(run_small(tmp_path / "list.txt", tmp_path / "out", shard_videos=2))[4] == "v4"
    assert shard_bytes(tmp_path / "out") == shard_bytes(run_small(videos, tmp_path / "whole", shard_videos=2).path)


def test_a_video_that_was_taken_from_the_list_and_is_back_is_done(videos, tmp_path):
    some = shutil.copytree(videos, tmp_path / "videos")

    def none_yet(function, todo):
        return map(function, list(todo)[:1])

    extract.run(extract.ExtractConfig(videos=some, out=tmp_path / "out", **SMALL), executor=inline(none_yet))
    (some / "v3.mp4").rename(tmp_path / "v3.mp4")
    assert "v3" not in run_small(some, tmp_path / "out")
    (tmp_path / "v3.mp4").rename(some / "v3.mp4")
    assert list(run_small(some, tmp_path / "out")) == [f"v{i}" for i in range(5)]


@pytest.mark.parametrize(
    ("reason", "content", "returned"),
    [("missing", b"x", True), ("unreadable", b"x", True), ("unreadable", b"", False), ("missing", None, False),
     ("corrupt", b"x", False)],
)  # fmt: skip
def test_which_failed_videos_count_as_returned(tmp_path, reason, content, returned):
    if content is not None:
        (tmp_path / "v.mp4").write_bytes(content)
    item = pending_videos.VideoTask("v", tmp_path / "v.mp4", 0)
    with Manifest.open(tmp_path / "out", stage="extract", identity={}, code_version=1) as manifest:
        manifest.add(pending_videos.failure("v", VideoError(reason, 'it says "error": "missing"')))
        left, done = pending_videos.pending(manifest, [item], present=lambda _: False, retry_failed=False)
        assert (left, done) == ([item] if returned else [], [])


def test_what_was_lost_with_its_video_is_a_failure_and_the_rest_stays(videos, tmp_path):
    some = tmp_path / "videos"
    shutil.copytree(videos, some)
    run_small(some, tmp_path / "out", shard_videos=2)
    sorted((tmp_path / "out" / "shards").iterdir())[0].unlink()  # v0 and v1
    (some / "v1.mp4").unlink()
    store = run_small(some, tmp_path / "out", shard_videos=2)
    assert list(store) == ["v0", "v2", "v3", "v4"]
    assert store.manifest.failed["video/v1"]["error"] == "missing"
    np.testing.assert_array_equal(store["v0"].features, run_small(videos, tmp_path / "whole")["v0"].features)
    store.require_finished()


def test_a_shard_that_is_lost_with_all_its_videos(videos, tmp_path):
    some = tmp_path / "videos"
    shutil.copytree(videos, some)
    run_small(some, tmp_path / "out", shard_videos=2)
    sorted((tmp_path / "out" / "shards").iterdir())[0].unlink()  # v0 and v1
    for name in ("v0", "v1"):
        (some / f"{name}.mp4").write_bytes(b"")
    store = run_small(some, tmp_path / "out", shard_videos=2)
    assert list(store) == ["v2", "v3", "v4"]
    store.require_finished()


def test_a_video_that_can_no_longer_be_read_stops_nothing(videos, tmp_path, caplog):
    some = tmp_path / "videos"
    shutil.copytree(videos, some)
    (some / "v4.mp4").rename(tmp_path / "later.mp4")
    run_small(some, tmp_path / "out")
    (some / "v0.mp4").write_bytes(b"")
    (tmp_path / "later.mp4").rename(some / "v4.mp4")
    store = run_small(some, tmp_path / "out")
    assert list(store) == [f"v{i}" for i in range(5)]
    assert "v0: cannot be read any more, what was made of it stays" in caplog.text


def test_a_video_that_changes_while_it_is_read_is_a_failure(videos, tmp_path, monkeypatch):
    some = tmp_path / "videos"
    shutil.copytree(videos, some)
    honest = file_facts

    def replaced_meanwhile(path):
        facts = honest(path)
        if path.name == "v1.mp4":
            path.write_bytes((videos / "v2.mp4").read_bytes())
        return facts

    monkeypatch.setattr(extract, "file_facts", replaced_meanwhile)
    store = run_small(some, tmp_path / "out")
    assert list(store) == ["v0", "v2", "v3", "v4"]
    assert store.manifest.failed["video/v1"]["error"] == "changed"
    assert "--retry-failed (in a recipe, retry_failed = true) reads it again" in store.manifest.failed["video/v1"]["message"]


def test_frames_that_were_lost_are_decoded_again(videos, tmp_path):
    config = decode.DecodeConfig(videos=videos, out=tmp_path / "frames", short_side=32, crop=32)
    decode.run(config)
    [lost] = (tmp_path / "frames" / "shards").iterdir()
    before = lost.read_bytes()
    lost.unlink()
    decode.run(config)
    assert lost.read_bytes() == before


def test_names_that_are_no_unicode(videos, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in (b"caf\xe9.mp4", b"-dash.mp4", b"new\nline.mp4", "日本.mp4".encode()):
        shutil.copy(videos / "v2.mp4", os.fsdecode(os.fsencode(folder) + b"/" + name))
    store = run_small(folder, tmp_path / "out")
    assert len(store) == 4
    assert store[os.fsdecode(b"caf\xe9")].features.shape == (1, 1024)


def test_features_that_do_not_fit_float16_cost_one_video(videos, tmp_path, monkeypatch):
    class TooLarge(FewNumbers):
        def __call__(self, frames):
            return super().__call__(frames) * np.float32(1e6)

    monkeypatch.setattr(extract.EXTRACTORS, "extractor", lambda *_: TooLarge())
    extract.run(extract.ExtractConfig(videos=videos / "v0.mp4", out=tmp_path / "out", **SMALL))
    assert "do not fit float16" in Manifest.read(tmp_path / "out").failed["video/v0"]["message"]


def test_an_unfinished_store_is_readable_and_said_to_be_unfinished(videos, tmp_path):
    def some(function, todo):
        return map(function, list(todo)[:3])

    config = extract.ExtractConfig(videos=videos, out=tmp_path / "out", **SMALL)
    store = FeatureStore(extract.run(config, executor=inline(some)))
    assert list(store) == ["v0", "v1", "v2"]
    with pytest.raises(ValueError, match="2 of its videos are still to be done"):
        require_finished(store.manifest)


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
        (["--out", "y", "--weights", "random:0"], "either --videos or --frames"),
        (["--videos", "x", "--out", "y", "--timeout-s", "-1"], "timeout_s"),
        (["--videos", "x", "--out", "y", "--decoders", "-1"], "decoders"),
        (["--videos", "x", "--out", "y", "--backend", "opencv"], "opencv"),
    ],
)
def test_impossible_settings_are_refused_by_name(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        sys.exit(main(["extract", *arguments]))
    assert stopped.value.code == 2
    assert message in "".join(capsys.readouterr())
    assert list(tmp_path.iterdir()) == []


def test_missing_input_is_named(tmp_path, caplog):
    assert main(["extract", "--videos", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out"), *FLAGS]) == 1
    assert "nowhere: there is no such file or folder of videos" in caplog.text
    assert not (tmp_path / "out").exists()


def test_real_videos_give_the_rows_of_the_map(shared, tmp_path):
    """The shape of the result for real videos; their seconds by the rule, written out."""
    out = tmp_path / "out"
    extract_ = [sys.executable, "-m", "excl.workflows.cli", "extract", "--videos", str(shared / "videos"), "--out", str(out)]
    commands.run([*extract_, *FLAGS], check=True)
    code = (
        "from excl.pipeline.store.feature_store import FeatureStore; s = FeatureStore('out'); t = s['v_GGSY1Qvo990'];"
        "print(t.features.shape, t.start_s[:3], t.end_s[-1])"
    )
    shown = commands.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert shown.startswith("(11, 1024) [0.  2.4 4. ] 18.09378")
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    assert sorted(r["num_rows"] for r in records if r["id"].startswith("video/")) == [6, 8, 11]


def test_rows_at_full_size(videos, tmp_path):
    arguments = ["--videos", str(videos / "v2.mp4"), "--out", str(tmp_path / "out"), "--weights", "random:0"]
    assert main(["extract", *arguments]) == 0
    store = FeatureStore(tmp_path / "out")
    assert store["v2"].features.shape == (1, 1024)
    assert (store.recipe["short_side"], store.recipe["crop"]) == (256, 224)
