"""Who does the work makes no difference: shares side by side, workers that die, videos that kill them; Ctrl-C."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import commands
import numpy as np
import psutil
import pytest
from shared_fixtures import write_video
from stages_without_videos import FLAGS, RECIPE, SMALL, Workers, make, over, same, shard_bytes, stage

from excl.pipeline import decode, extract
from excl.pipeline.artifacts.atomic_files import sha256_file
from excl.pipeline.artifacts.journals import Journal, Tail
from excl.pipeline.artifacts.locks import BusyError
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.artifacts.record_log import encode
from excl.pipeline.artifacts.shard_range import ShardRange
from excl.pipeline.artifacts.video_records import video_key
from excl.pipeline.execution import sharded_stage, thread_map
from excl.pipeline.execution.executor_settings import ExecutorSettings
from excl.pipeline.execution.shard_work import run_shard
from excl.pipeline.execution.sharded_stage import part_name
from excl.pipeline.extract import join_features
from excl.pipeline.store.feature_store import FeatureStore
from excl.pipeline.store.shard import VideoFeatures, write_shard
from excl.workflows.cli import main
from excl.workflows.cluster import dispatch
from excl.workflows.cluster.dask_cluster import run_on_workers
from excl.workflows.cluster.dispatch import WorkerDiedError, dispatch_executor


@pytest.fixture
def files(tmp_path):
    """Twenty-two files that stand for videos, two of them bad ones, by id."""
    (tmp_path / "files").mkdir()
    ids = [*(f"v{number:02d}" for number in range(20)), "bad0", "bad1"]
    for video_id in ids:
        (tmp_path / "files" / video_id).write_text(video_id)
    return {video_id: tmp_path / "files" / video_id for video_id in sorted(ids)}


@pytest.fixture
def whole(files, tmp_path):
    stage(tmp_path / "whole").run(files, retry_failed=False)
    assert len(FeatureStore(tmp_path / "whole")) == 20
    return tmp_path / "whole"


def test_nobody_waits_for_workers_where_there_is_nothing_to_do(files, whole):
    workers = Workers(0)
    stage(whole).run(files, retry_failed=False, executor=over(workers))
    assert workers.given == workers.tasks_done == []


def test_an_executor_is_closed_at_once_when_its_records_are_no_longer_wanted(files, tmp_path, monkeypatch):
    held = []

    @contextlib.contextmanager
    def pool():
        held.append("held")
        try:
            yield Workers(1)
        finally:
            held.append("let go")

    made = []

    def kept(*arguments):
        made.append(dispatch_executor(pool)(*arguments))  # so that nothing but a call of close ends it
        return made[0]

    def fails(_):
        raise OSError("nobody can be told")

    monkeypatch.setattr(sharded_stage, "log_problem", fails)
    with pytest.raises(OSError, match="nobody can be told"):
        stage(tmp_path / "out").run(files, retry_failed=False, executor=kept)
    assert held == ["held", "let go"]


@pytest.mark.parametrize("number", [1, 3])
def test_workers_elsewhere_make_the_same(files, whole, tmp_path, number):
    workers = Workers(number)
    stage(tmp_path / "out").run(files, retry_failed=False, executor=over(workers))
    same(tmp_path / "out", whole)
    assert workers.most == number  # never more in hand than there are workers


@pytest.mark.parametrize("deadly", [["v07"], ["v00", "v01", "v02", "v03"], ["v05", "v19"], [f"v{n:02d}" for n in range(20)]])
def test_a_video_that_kills_its_worker_is_found_and_no_other_is_lost(files, tmp_path, deadly):
    out, workers = tmp_path / "out", Workers(3, deadly)
    stage(out).run(files, retry_failed=False, executor=over(workers))
    manifest = Manifest.read(out)
    assert sorted(manifest.failed) == sorted(f"video/{v}" for v in [*deadly, "bad0", "bad1"])
    for video_id in deadly:
        record = manifest.failed[f"video/{video_id}"]
        assert record["error"] == "crashed"
        assert str(files[video_id]) in record["message"]
        assert workers.tasks_done.count([video_id]) >= 3  # blamed for what happened while it was alone
    innocent = set(files) - set(deadly) - {"bad0", "bad1"}
    assert set(manifest.records) >= {f"video/{v}" for v in innocent}
    if innocent:
        assert set(FeatureStore(out)) == innocent
    lines = [line for line in (out / "records.jsonl").read_text().splitlines() if '"error"' in line]
    assert len(lines) == len(deadly) + 2  # a record each
    stage(out).run(files, retry_failed=True)  # and mended, the store is as if nothing had been
    assert set(FeatureStore(out)) == set(files) - {"bad0", "bad1"}


def test_what_a_dead_worker_had_finished_is_not_done_again(files, tmp_path):
    workers = Workers(1, ["v03"])
    stage(tmp_path / "out", shard_videos=22).run(files, retry_failed=False, executor=over(workers))
    first, second, *_ = workers.tasks_done
    assert len(first) == 22
    assert second[0] == "v03"  # bad0, bad1, v00, v01 and v02 were kept
    assert len(second) == 17


def test_what_threads_have_done_is_not_lost_by_what_fails_beside_it(monkeypatch):
    """Where several are done when somebody looks, as on a busy machine, the failure comes last."""
    wait = thread_map.wait
    monkeypatch.setattr(thread_map, "wait", lambda pending, return_when: wait(pending))  # noqa: ARG005
    for _ in range(5):
        found = []
        with pytest.raises(ZeroDivisionError):
            found.extend(thread_map.threaded_map(7)(lambda number: 1 // number, [1, 1, 1, 0, 1, 1, 1, 1]))
        assert found == [1] * 7


def test_what_workers_have_finished_of_a_shard_is_seen_while_they_are_at_it(files, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(dispatch, "FOLLOW_EVERY_S", -1.0)
    seen, at_half = [], []

    class Halving(Workers):
        """Does half of a task before anybody is told, and the rest when it is waited for again."""

        def wait(self, timeout_s):
            work, task = self.given[0]
            half = task.todo[: len(task.todo) // 2]
            if task.token not in at_half[-1:]:
                at_half.append(task.token)
                run_shard(work, dataclasses.replace(task, todo=half))
                return []
            assert {video_key(item.video_id) for item in half} <= set(seen)
            assert video_key(task.todo[-1].video_id) not in seen
            return super().wait(timeout_s)

    stage(tmp_path / "out").run(files, retry_failed=False, executor=watched(over(Halving(1)), seen))
    same(tmp_path / "out", whole)
    assert len(at_half) == 6
    assert sorted(seen) == sorted(Manifest.read(whole).ids("video/") + Manifest.read(whole).ids("shard/"))  # each once


def test_a_tail_gives_each_line_once_when_it_is_whole(tmp_path):
    (tmp_path / "journals" / "run").mkdir(parents=True)
    tail, path = Tail(tmp_path, "run"), tmp_path / "journals" / "run" / "shard-0-a.jsonl"
    assert list(tail.new()) == []
    lines = [encode({"id": f"video/{number}"}) for number in range(4)]
    content = b"".join(lines)
    found = []
    for end in range(0, len(content) + 1, 7):
        path.write_bytes(content[:end])
        found += [record["id"] for record in tail.new()]
        assert len(found) == content[:end].count(b"\n")
    path.write_bytes(content)
    found += [record["id"] for record in tail.new()]
    assert found == [f"video/{number}" for number in range(4)]
    path.unlink()
    assert list(tail.new()) == []


def test_a_file_system_that_fails_once_is_tried_again_and_twice_stops_the_run(files, whole, tmp_path):
    class Flaky(Workers):
        def __init__(self, failures):
            super().__init__(1)
            self.failures = failures

        def wait(self, timeout_s):
            if self.failures:
                self.failures -= 1
                return [(self.given.pop()[1], OSError(5, "the file system is gone"))]
            return super().wait(timeout_s)

    stage(tmp_path / "once").run(files, retry_failed=False, executor=over(Flaky(1)))
    same(tmp_path / "once", whole)
    with pytest.raises(OSError, match="the file system is gone"):
        stage(tmp_path / "twice").run(files, retry_failed=False, executor=over(Flaky(2)))
    stage(tmp_path / "twice").run(files, retry_failed=False)
    same(tmp_path / "twice", whole)


def watched(executor, seen):
    """The executor, and the ids of what it yields."""

    def execute(*arguments):
        for record in executor(*arguments):
            seen.append(record["id"])
            yield record

    return execute


def test_a_part_that_is_not_as_recorded_is_made_again_in_the_same_run(files, whole, tmp_path):
    out, workers, seen = tmp_path / "out", Workers(1), []
    once = dataclasses.replace(stage(out), work=partial(make_and_replace, out=out, once=tmp_path / "once"))
    once.run(files, retry_failed=False, executor=watched(over(workers), seen))
    assert shard_bytes(out) == shard_bytes(whole)
    assert workers.tasks_done.count(["v09"]) == 1
    assert sorted(seen) == sorted(Manifest.read(whole).ids("video/") + Manifest.read(whole).ids("shard/"))


def test_what_was_seen_of_a_worker_and_is_gone_with_it_is_recorded_once(files, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(dispatch, "FOLLOW_EVERY_S", -1.0)
    seen = []

    class Losing(Workers):
        """Finishes two videos of the first shard, and loses the part of the second when it dies."""

        begun, lost = False, False

        def wait(self, timeout_s):
            if self.lost:
                return super().wait(timeout_s)
            work, task = self.given[0]
            if not self.begun:
                self.begun = True
                run_shard(work, dataclasses.replace(task, todo=task.todo[2:]))
                return []
            self.lost = True
            assert sorted(seen) == ["video/v00", "video/v01"]
            (work.out / part_name(task.todo[3].number)).unlink()
            return [(self.given.pop(0)[1], WorkerDiedError("a worker died"))]

    workers = Losing(1)
    stage(tmp_path / "out").run(files, retry_failed=False, executor=watched(over(workers), seen))
    assert workers.tasks_done[0] == ["bad0", "bad1", "v01"]
    assert sorted(seen) == sorted(Manifest.read(whole).ids("video/") + Manifest.read(whole).ids("shard/"))
    same(tmp_path / "out", whole)


@pytest.mark.parametrize(
    ("error", "times", "message"),
    [
        (OSError(5, "no room"), 1, None),
        (OSError(5, "no room"), 2, "no room"),
        (SystemExit(), 2, None),
        (SystemExit(), 3, "shard 1: 3 workers died that had to write it"),
    ],
)
def test_a_shard_is_written_again_by_workers(files, whole, tmp_path, error, times, message):  # noqa: PLR0917
    """A file system or a worker fails when its videos are all done; no video is done again."""
    out, workers, failed = tmp_path / "out", Workers(1), []

    def join(target, sources):
        if "v02" in dict(sources) and len(failed) < times:
            failed.append(target)
            raise error
        return join_features(target, sources, recipe=RECIPE)

    made = dataclasses.replace(stage(out), join=join)
    with pytest.raises(OSError, match=message) if message else contextlib.nullcontext():
        made.run(files, retry_failed=False, executor=over(workers))
    assert workers.tasks_done.count(["v02", "v03", "v04", "v05"]) == 1
    assert workers.tasks_done.count([]) == (times - 1 if message else times)
    assert len(failed) == times
    made.run(files, retry_failed=False)
    same(out, whole)


def test_journals_of_a_run_that_was_killed_are_taken_up(files, whole, tmp_path):
    """The driver dies when a worker has finished a shard, and when it is in the middle of another."""
    out = tmp_path / "out"
    made = stage(out)

    class GoneError(Exception):
        pass

    class Dying(Workers):
        def wait(self, timeout_s):  # noqa: ARG002  (as pools have it)
            work, task = self.given.pop(0)
            run_shard(work, task)  # finished, and nobody is told
            work, task = self.given.pop(0)
            half = dataclasses.replace(task, todo=task.todo[:2])
            run_shard(work, half)
            raise GoneError

    with pytest.raises(GoneError):
        made.run(files, retry_failed=False, executor=over(Dying(2)))
    assert len(list((out / "journals").glob("*/shard-*.jsonl"))) == 2
    assert sum(name.startswith("video/") for name in Manifest.read(out).records) == 6  # readers see it already
    workers = Workers(1)
    made.run(files, retry_failed=False, executor=over(workers))
    assert sum(map(len, workers.tasks_done)) == len(files) - 6
    same(out, whole)


SHARE = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from stages_without_videos import stage
from excl.pipeline.artifacts.shard_range import ShardRange
files = {{path.name: path for path in sorted(Path({files!r}).iterdir())}}
out = Path({out!r})
stage(out, slow_s=0.05).run(files, retry_failed=False, share=ShardRange.parse(sys.argv[1]))
"""


def share_of(tmp_path, out, text):
    script = SHARE.format(tests=str(Path(__file__).parents[1]), files=str(tmp_path / "files"), out=str(out))
    return commands.start([sys.executable, "-c", script, text], stderr=subprocess.PIPE, text=True)


def num_recorded(out):
    return sum(name.startswith("video/") for name in Manifest.read(out).records) if (out / "manifest.json").exists() else 0


def test_shares_side_by_side_give_the_same_store(files, whole, tmp_path):
    out = tmp_path / "out"
    shares = [share_of(tmp_path, out, f"{number}/2") for number in range(2)]
    for process in shares:
        assert process.wait(60) == 0, process.stderr.read()
    same(out, whole)


def test_a_share_that_is_killed_goes_on(files, whole, tmp_path):
    """Killed again and again, beside another share or alone, and with a whole run at the end."""
    out = tmp_path / "out"
    done = 0
    for more in (1, 3, 2):
        shares = [share_of(tmp_path, out, f"{number}/3") for number in (0, 1)]
        while num_recorded(out) < done + more:
            assert None in [process.poll() for process in shares], shares[0].stderr.read()
            time.sleep(0.01)
        for process in shares:
            process.kill()
            process.wait()
        done = num_recorded(out)
    last = share_of(tmp_path, out, "2/3")
    assert last.wait(60) == 0, last.stderr.read()
    stage(out).run(files, retry_failed=False)
    same(out, whole)


def test_who_cannot_work_beside_whom(files, tmp_path):
    out, holds = tmp_path / "out", {"stage": "extract", "identity": RECIPE, "code_version": 1}
    with Manifest.open(out, **holds, share=ShardRange(0, 2)):
        with pytest.raises(BusyError, match="share 0/2"), Manifest.open(out, **holds):
            pass
        with pytest.raises(BusyError, match="share 0/2"), Manifest.open(out, **holds, share=ShardRange(0, 2)):
            pass
        with pytest.raises(BusyError, match="share 0/2"), Manifest.open(out, **holds, share=ShardRange(1, 3)):
            pass
        with Manifest.open(out, **holds, share=ShardRange(1, 2)) as other:
            other.add({"id": "video/b"})
        assert "video/b" in Manifest.read(out).records
    with Manifest.open(out, **holds) as alone:
        assert "video/b" in alone.records
        assert '"video/b"' in (out / "records.jsonl").read_text()
        assert os.listdir(out / "journals") == []


def test_a_line_cut_short_is_never_appended_to(files, whole, tmp_path):
    """A share dies in its journal, or in the records while it plans, and others go on beside it."""
    out, holds = tmp_path / "out", {"stage": "extract", "identity": RECIPE, "code_version": 1}
    stage(out).run(files, retry_failed=False, share=ShardRange(0, 2))
    with Manifest.open(out, **holds, share=ShardRange(1, 2)) as other:
        with Manifest.open(out, **holds, share=ShardRange(0, 2)) as share:
            share.add({"id": "one"})
        for path in (out / "journals" / "share-0-of-2.jsonl", out / "records.jsonl"):
            with path.open("ab") as file:
                file.write(b'{"id": "plan/1", "planned": [')
        with Manifest.open(out, **holds, share=ShardRange(0, 2)) as share:
            share.add({"id": "two"})
        other.add({"id": "three"})
        with other.finishing() as is_last:
            assert is_last
    assert {"one", "two", "three"} <= set(Manifest.read(out).records)


def test_a_share_leaves_alone_what_another_has_lost(files, whole, tmp_path):
    out = tmp_path / "out"
    stage(out).run(files, retry_failed=False)
    for number in (0, 1):
        os.remove(next((out / "shards").glob(f"0000{number}-*")))
    stage(out).run(files, retry_failed=False, share=ShardRange(0, 2))
    assert next((out / "shards").glob("00000-*"))
    assert not list((out / "shards").glob("00001-*"))
    stage(out).run(files, retry_failed=False, share=ShardRange(1, 2))
    same(out, whole)


def test_what_fails_when_a_share_does_it_again_has_failed(files, tmp_path):
    out = tmp_path / "out"
    stage(out).run(files, retry_failed=False)
    os.remove(next((out / "shards").glob("00001-*")))

    def fails(item):
        if item.video_id == "v05":
            return {"id": video_key(item.video_id), "error": "corrupt", "message": "now it is"}
        return make(item, out=out)

    dataclasses.replace(stage(out), work=fails).run(files, retry_failed=False, share=ShardRange(1, 2))
    assert set(Manifest.read(out).failed) == {"video/bad0", "video/bad1", "video/v05"}
    assert set(FeatureStore(out)) == set(files) - {"bad0", "bad1", "v05"}


def test_a_part_of_another_run_joins_no_shard(files, whole, tmp_path):
    """A worker that was given up writes its part when another run has recorded its own."""
    out = tmp_path / "out"
    with pytest.raises(OSError, match="not what was recorded"):
        dataclasses.replace(stage(out), work=partial(make_and_replace, out=out)).run(files, retry_failed=False)
    stage(out).run(files, retry_failed=False)
    assert shard_bytes(out) == shard_bytes(whole)


def test_frames_of_another_run_join_no_shard(five_videos, tmp_path):
    """As above, of `decode`; whoever decodes a video, and when, its part has the same bytes."""
    settings = {"videos": five_videos, "short_side": 32, "crop": 32}
    decode.run(decode.DecodeConfig(out=tmp_path / "whole", **settings))
    replaced, refused = [], []

    class Replacing(Workers):
        def wait(self, timeout_s):  # noqa: ARG002  (as pools have it)
            work, task = self.given.pop()

            def replace(item):
                record = work.work(item)
                if item.video_id == "v1" and not replaced:
                    replaced.append(item)
                    (work.out / record["part"]).write_bytes(b"of another run")
                return record

            try:
                return [(task, run_shard(dataclasses.replace(work, work=replace), task))]
            except OSError as error:
                refused.append(str(error))
                return [(task, error)]

    decode.run(decode.DecodeConfig(out=tmp_path / "out", **settings), executor=over(Replacing(1)))
    assert len(refused) == 1
    assert "parts/000001.h5: not what was recorded" in refused[0]
    same(tmp_path / "out", tmp_path / "whole")
    ids = Manifest.read(tmp_path / "out").ids("video/")
    parts = [[Manifest.read(tmp_path / out).records[name]["part_sha256"] for name in ids] for out in ("out", "whole")]
    assert parts[0] == parts[1]
    assert len(set(parts[0])) == 5


def make_and_replace(item, *, out, once=None, **how):
    """As `make`, with the checksum of the part, which for one video is replaced at once, unless the file `once` is there."""
    record = make(item, out=out, **how)
    if "part" in record:
        record["part_sha256"] = sha256_file(out / record["part"])
    if item.video_id == "v09" and not (once and once.exists()):
        if once:
            once.touch()
        edges = np.arange(2.0)
        other = VideoFeatures("v09", np.zeros((2, 8), np.float16), edges, edges + 1, {})
        write_shard(out / record["part"], [other], recipe={"made": "elsewhere"})
    return record


def test_verify_knows_the_journals_of_shares(files, tmp_path, capsys):
    out, holds = tmp_path / "out", {"stage": "extract", "identity": RECIPE, "code_version": 1}
    stage(out).run(files, retry_failed=False)
    with Manifest.open(out, **holds, share=ShardRange(0, 2)) as share:
        share.add({"id": "video/bad0", "error": "corrupt", "message": "again"})
    main(["verify", str(out)])
    assert "no record names it" not in capsys.readouterr().out
    journal = out / "journals" / "share-0-of-2.jsonl"
    journal.write_bytes(journal.read_bytes().replace(b"again", b"agaim"))
    assert main(["verify", str(out)]) != 0
    assert "journals/share-0-of-2.jsonl" in capsys.readouterr().out
    assert main(["repair", str(out)]) == 0
    assert main(["verify", str(out)]) == 0


def test_a_record_of_success_outlives_one_of_failure_in_a_workers_journal(tmp_path):
    """Read, repaired or folded."""
    holds = {"stage": "extract", "identity": RECIPE, "code_version": 1}
    with Manifest.open(tmp_path, **holds) as manifest:
        manifest.add({"id": "video/a", "part": "parts/000000.h5"})
        manifest.add({"id": "video/b", "error": "timeout", "message": "b"})
    (tmp_path / "journals" / "run").mkdir(parents=True)
    for number, lines in enumerate([["a failed", "b done"], ["a failed", "b failed"]]):
        journal = Journal(tmp_path, f"run/shard-00000-{number}", ())
        for line in lines:
            video_id, _, what = line.partition(" ")
            done, failed = {"part": "parts/000001.h5"}, {"error": "timeout", "message": video_id}
            journal.add({"id": f"video/{video_id}", **(done if what == "done" else failed)})
        journal.close()
    read = Manifest.read(tmp_path)
    with Manifest.repair(tmp_path) as (repaired, _):
        assert repaired.failed == {}
    with Manifest.open(tmp_path, **holds) as folded:
        for manifest in (read, folded):
            assert manifest.failed == {}
            assert set(manifest.records) == {"video/a", "video/b"}


@pytest.mark.parametrize("text", ["2/2", "x", "-1/2", "1", "1/0", "0/2/3", ""])
def test_a_share_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="expected i/n"):
        ShardRange.parse(text)
    with pytest.raises(ValueError, match="shard_range"):
        ExecutorSettings(shard_range=text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"executor": "cloud"}, "expected inline, local, tcp"),
        ({"executor": "tcp://127.0.0.1"}, "expected tcp://HOST:PORT"),
        ({"executor": "tcp://127.0.0.1:port"}, "expected tcp://HOST:PORT"),
        ({"workers": 2}, "workers: only with executor local"),
        ({"executor": "local", "shard_range": "0/2"}, "job arrays"),
        ({"resources": ("GPU=1",)}, "resources: only with executor tcp"),
        ({"executor": "tcp://h:1", "resources": ("GPU=no",)}, "resources: 'GPU=no'"),
        ({"executor": "tls://h:1"}, "tls:// needs"),
        ({"executor": "slurm", "job": ("cores",)}, "expected NAME=VALUE"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ExecutorSettings(**settings)


def test_two_halves_by_the_command_give_the_same_store(five_videos, tmp_path):
    arguments = ["--videos", str(five_videos), "--shard-videos", "2", *FLAGS]
    assert main(["extract", "--out", str(tmp_path / "whole"), *arguments]) == 0
    command = [sys.executable, "-m", "excl.workflows.cli", "extract", "--out", str(tmp_path / "out"), *arguments]
    halves = [commands.start([*command, "--shard-range", f"{n}/2"], stderr=subprocess.PIPE, text=True) for n in range(2)]
    for half in halves:
        assert half.wait(120) == 0, half.stderr.read()
    same(tmp_path / "out", tmp_path / "whole")


CRASH = """
import os, sys
if "excl.datasets.video.decoder_process" in sys.orig_argv:
    import av
    open(os.path.join(os.environ["TEST_DECODERS"], f"{os.getppid()}-{os.getpid()}"), "w").close()
    opened = av.open
    def deadly(file, *arguments, **keywords):
        if "guilty" in str(getattr(file, "name", file)):
            os.abort()
        return opened(file, *arguments, **keywords)
    av.open = deadly
"""


@pytest.mark.usefixtures("heeds_ctrl_c")
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_finishes_the_shard_in_hand_and_twice_stops_at_once(files, whole, tmp_path, times):
    out = tmp_path / "out"
    process = share_of(tmp_path, out, "0/1")
    while num_recorded(out) < 2:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    if times == 2:
        while "once more stops at once" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
    assert process.wait(60) != 0
    assert process.stderr.read().rstrip().endswith("KeyboardInterrupt")
    done = [name for name in Manifest.read(out).records if name.startswith(("video/", "shard/"))]
    assert len(done) < len(files)
    if times == 1:
        sharded_stage = [name for name in done if name.startswith("shard/")]
        assert sharded_stage
        assert len(done) == 5 * len(sharded_stage)  # whole shards of four videos, and nothing else
    stage(out).run(files, retry_failed=False)
    same(out, whole)


def test_24_videos_killed_workers_and_crashing_decoders(tmp_path, monkeypatch):
    """A worker is killed three times, one video in twelve crashes the decoder: the rest is stored, as inline stores it."""
    (tmp_path / "videos").mkdir()
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(CRASH)
    (tmp_path / "decoders").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "hook"))
    monkeypatch.setenv("TEST_DECODERS", str(tmp_path / "decoders"))
    write_video(tmp_path / "one.mp4", [i * 40 for i in range(30)], rate=25, width=64, height=48)
    for number in range(24):
        name = f"guilty{number:03d}" if number % 12 == 7 else f"v{number:03d}"
        os.link(tmp_path / "one.mp4", tmp_path / "videos" / f"{name}.mp4")
    settings = {**SMALL, "videos": tmp_path / "videos", "shard_videos": 4}
    inline_config = extract.ExtractConfig(out=tmp_path / "inline", **settings)
    extract.run(inline_config)
    config = extract.ExtractConfig(out=tmp_path / "out", running=ExecutorSettings(executor="local", workers=2), **settings)
    killed = []
    stop = threading.Event()

    def at_work():
        """The workers whose decoder is running."""
        found = [tuple(map(int, name.split("-"))) for name in os.listdir(tmp_path / "decoders")]
        return [worker for worker, decoder in found if worker not in (os.getpid(), *killed) and psutil.pid_exists(decoder)]

    def kill():
        """Kill one worker after every second shard, so that no shard is the one for which several have died."""
        generator = random.Random(0)
        while len(killed) < 3 and not stop.wait(0.1):
            if len([*(tmp_path / "out").glob("shards/*.h5")]) >= 2 * len(killed) and (workers := at_work()):
                victim = psutil.Process(generator.choice(workers))
                victim.kill()
                victim.wait()
                killed.append(victim.pid)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with commands.forked_workers():
            run_on_workers(extract.run, config)
    finally:
        stop.set()
        killer.join()
    assert len(killed) == 3
    failed = Manifest.read(tmp_path / "out").failed
    assert sorted(failed) == [f"video/guilty{number:03d}" for number in range(24) if number % 12 == 7]
    assert {record["error"] for record in failed.values()} == {"crashed"}
    lines = (tmp_path / "out" / "records.jsonl").read_text().splitlines()
    assert sum('"error"' in line for line in lines) == 2
    assert len(FeatureStore(tmp_path / "out")) == 22
    assert shard_bytes(tmp_path / "out") == shard_bytes(tmp_path / "inline")
