"""Workers that are other processes: of this machine, of a scheduler that runs already, jobs; signals, ports, preflight.

Where something has to be in hand at a moment, decoders wait at a gate: a file that the test makes when it is ready.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import commands
import dask
import psutil
import pytest
import torch
from dask.distributed import Client, Security, get_task_stream
from stages_without_videos import FLAGS, Workers, over, same, stage

from excl.pipeline.artifacts.header import HEADER
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.execution.executor_settings import ExecutorSettings
from excl.pipeline.execution.pending_videos import VideoTask
from excl.pipeline.execution.shard_work import ShardTask, ShardWork
from excl.pipeline.execution.video_reading import num_cores
from excl.pipeline.store.feature_store import FeatureStore
from excl.workflows.cli import main
from excl.workflows.cluster import batch_jobs, dask_cluster, dask_nanny, dask_workers, dispatch

LOOPBACK = {"127.0.0.1", "::1"}
SHARDS = ["--shard-videos", "2", *FLAGS]
GUARD_S = 180

GATE = """
import os, sys, time
gate = os.environ.get("TEST_GATE")
if gate and "excl.datasets.video.decoder_process" in sys.orig_argv:
    import av
    opened = av.open
    def gated(file, *arguments, **keywords):
        name = os.path.basename(str(getattr(file, "name", file)))
        open(os.path.join(gate, "at-" + name), "w").close()
        while not os.path.exists(os.path.join(gate, "open")):
            time.sleep(0.01)
        return opened(file, *arguments, **keywords)
    av.open = gated
"""


def until(condition, *, of=None):
    """Wait for a condition, while a process runs; the time-out only guards against waiting for ever."""
    deadline = time.monotonic() + GUARD_S
    while not condition():
        assert time.monotonic() < deadline
        assert of is None or of.poll() is None, of.communicate()
        time.sleep(0.02)


@pytest.fixture(scope="module")
def whole(five_videos, tmp_path_factory):
    """What a run in this process makes of the videos."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert main(["extract", "--videos", str(five_videos), "--out", str(out), *SHARDS]) == 0
    return out


@pytest.fixture
def gate(tmp_path, monkeypatch):
    """A folder: decoders that are started from now on say in it what they are to read, and wait for `open` in it."""
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(GATE)
    (tmp_path / "gate").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "hook"))
    monkeypatch.setenv("TEST_GATE", str(tmp_path / "gate"))
    return tmp_path / "gate"


def waiting(gate):
    return {path.name for path in gate.glob("at-*")}


@contextlib.contextmanager
def running(command, **how):
    """A process in a session of its own, all of which is gone at the end."""
    process = commands.start(command, start_new_session=True, **how)
    try:
        yield process
    finally:
        for member in session(process.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        process.wait()


def session(number):
    """The processes of a session."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getsid(process.pid) == number and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def listening(process):
    """The addresses at which a process and all of its session listen."""
    found = set()
    for member in session(process.pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            found |= {(c.laddr.ip, c.laddr.port) for c in member.net_connections() if c.status == psutil.CONN_LISTEN}
    return found


def extracting(videos, out, *arguments, env=None):
    """`excl extract` as a process, as a terminal starts it."""
    command = [sys.executable, "-m", "excl.workflows.cli", "extract", "--videos", str(videos), "--out", str(out), *SHARDS]
    return running([*command, *arguments], stderr=subprocess.PIPE, text=True, env={**os.environ, **(env or {})})


@contextlib.contextmanager
def scheduler(folder, *tls):
    """`dask scheduler` on loopback: the process and its address."""
    file, log = folder / "scheduler.json", folder / "scheduler.log"
    where = ["--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0", "--scheduler-file", str(file)]
    with log.open("w") as told, running([*DASK, "scheduler", *where, *tls], stdout=told, stderr=told) as process:
        until(lambda: file.exists() and file.read_text().endswith("}"), of=process)
        yield process, json.loads(file.read_text())["address"]


DASK = [sys.executable, "-m", "dask"]


@contextlib.contextmanager
def worker(folder, address, name, *more, env=None):
    """`dask worker` on loopback."""
    command = [
        *DASK,
        "worker",
        address,
        "--nthreads",
        "1",
        "--host",
        "127.0.0.1",
        "--name",
        name,
        "--dashboard-address",
        "127.0.0.1:0",
    ]
    log = folder / f"worker-{name}.log"
    environment = {**os.environ, **(env or {})}
    with log.open("w") as told, running([*command, *more], stdout=told, stderr=told, env=environment) as process:
        until(lambda: "Starting established connection" in log.read_text(), of=process)
        yield process


@pytest.fixture(scope="module")
def existing(tmp_path_factory):
    """A scheduler with two workers, one of which has a GPU, as it says: its address, and all three processes."""
    folder = tmp_path_factory.mktemp("dask")
    with (
        scheduler(folder) as (process, address),
        worker(folder, address, "plain", "--no-nanny") as plain,
        worker(folder, address, "gpu", "--resources", "GPU=1", env=commands.FORKING) as gpu,
    ):
        yield SimpleNamespace(address=address, processes=[process, plain, gpu], folder=folder)


def by_workers(address, videos, out):
    return ["extract", "--videos", str(videos), "--out", str(out), *SHARDS, "--executor", address]


def who_works(client, *arguments):
    """The exit code of a command, and the names of the workers that did tasks."""
    with get_task_stream(client) as stream:
        code = main(list(arguments))
    names = {address: about["name"] for address, about in client.scheduler_info(n_workers=-1)["workers"].items()}
    return code, {names[task["worker"]] for task in stream.data if "/shard-" in str(task["key"])}


def test_a_scheduler_that_runs_already(existing, five_videos, whole, tmp_path):
    """Frames and features by its workers, all on loopback."""
    out, frames, there = tmp_path / "out", tmp_path / "frames", ["--executor", existing.address]
    with Client(existing.address) as client:
        code, who = who_works(client, "extract", "--videos", str(five_videos), "--out", str(out), *SHARDS, *there)
    assert code == 0
    assert who
    assert who <= {"plain", "gpu"}
    same(out, whole)
    assert (
        main(["decode", "--videos", str(five_videos), "--out", str(frames), "--short-side", "32", "--crop", "32", *there])
        == 0
    )
    of_frames = ["extract", "--frames", str(frames), *SHARDS]
    assert main([*of_frames, "--out", str(tmp_path / "by-workers"), *there]) == 0
    assert main([*of_frames, "--out", str(tmp_path / "here")]) == 0
    same(tmp_path / "by-workers", tmp_path / "here")
    addresses = set.union(*map(listening, existing.processes))
    assert len(addresses) >= 4  # the scheduler, its dashboard, the workers
    assert {ip for ip, _ in addresses} <= LOOPBACK


def test_only_workers_with_the_resources_get_work(existing, five_videos, whole, tmp_path):
    arguments = by_workers(existing.address, five_videos, tmp_path / "out")
    with Client(existing.address) as client:
        assert who_works(client, *arguments, "--resources", "GPU=1") == (0, {"gpu"})
    same(tmp_path / "out", whole)


def nothing_is_done(out):
    return all(name.startswith("plan/") for name in Manifest.read(out).records) and os.listdir(out / "parts") == []


def test_where_there_is_nothing_to_do_nobody_looks_for_workers(five_videos, whole, caplog, monkeypatch):
    """Neither where all is done nor where the settings are refused."""
    arguments = ["extract", "--videos", str(five_videos), "--out", str(whole), *SHARDS]
    assert main([*arguments, "--executor", "tcp://127.0.0.1:1"]) == 0
    monkeypatch.setattr(dask_cluster, "connect", None)
    for executor in (["--executor", "local"], JOB):
        caplog.clear()
        assert main([*arguments, *executor]) == 0
        assert main([*arguments, *executor, "--stride", "4"]) == 2
        assert "was made from another recipe" in caplog.text


def test_no_worker_with_the_resources(existing, five_videos, tmp_path, caplog):
    arguments = by_workers(existing.address, five_videos, tmp_path / "out")
    assert main([*arguments, "--resources", "GPU=2"]) == 2
    assert "none of its 2 workers has the resources GPU=2 (they have: none; {'GPU': 1.0})" in caplog.text
    assert "--resources GPU=2`" in caplog.text
    assert nothing_is_done(tmp_path / "out")


OTHER_VERSION = """
import importlib.metadata
version = importlib.metadata.version
importlib.metadata.version = lambda name: "0.0.9" if name == "excl" else version(name)
"""
NO_EXCL = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name == "excl":
            raise ModuleNotFoundError("No module named 'excl'")
sys.meta_path.insert(0, Refuse())
"""


@pytest.mark.parametrize(
    ("hook", "message"),
    [(OTHER_VERSION, "has excl 0.0.9, this process"), (NO_EXCL, "cannot do this work (ModuleNotFoundError")],
    ids=["other version", "no excl"],
)
def test_a_worker_that_is_no_place_for_the_work(existing, five_videos, tmp_path, caplog, hook, message):  # noqa: PLR0917
    (tmp_path / "sitecustomize.py").write_text(hook)
    arguments = by_workers(existing.address, five_videos, tmp_path / "out")
    with worker(tmp_path, existing.address, "other", "--resources", "OTHER=1", env={"PYTHONPATH": str(tmp_path)}):
        assert main([*arguments, "--resources", "OTHER=1"]) == 2
    assert message in caplog.text
    assert nothing_is_done(tmp_path / "out")


def test_folders_that_a_worker_does_not_see(tmp_path):
    work = ShardWork("extract", tmp_path / "out", dict, lambda *_: {}, lambda: 1)
    task = ShardTask(0, ("v",), (VideoTask("v", tmp_path / "v.mp4", 0),), (), "run")
    with pytest.raises(ValueError, match=r"out/manifest\.json: not there on .*same paths"):
        dask_workers.do_task(work, task, None)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / HEADER).write_text("{}")
    with pytest.raises(ValueError, match=r"v\.mp4: not there on"):
        dask_workers.do_task(work, task, tmp_path / "v.mp4")


def test_a_scheduler_without_workers_and_an_address_without_scheduler(five_videos, tmp_path, caplog):
    arguments = ["extract", "--videos", str(five_videos), "--out", str(tmp_path / "out"), *SHARDS, "--executor"]
    with scheduler(tmp_path) as (_, address):
        assert main([*arguments, address]) == 2
        assert f"the scheduler has no workers; start some with `dask worker {address}" in caplog.text
    assert main([*arguments, address]) == 1
    assert f"{address}: no Dask scheduler answers there" in caplog.text
    assert nothing_is_done(tmp_path / "out")


def test_a_scheduler_that_dies(five_videos, whole, gate, tmp_path):
    """The run ends and says so, and another goes on."""
    out = tmp_path / "out"
    with (
        scheduler(tmp_path) as (process, address),
        worker(tmp_path, address, "only", "--no-nanny"),
        extracting(five_videos, out, "--executor", address) as driver,
    ):
        until(lambda: len(waiting(gate)) == 2, of=driver)
        assert listening(driver) == set()
        process.kill()
        errors = driver.communicate(timeout=GUARD_S)[1]
        assert driver.returncode == 1, errors
        assert "error: the Dask scheduler is gone" in errors.splitlines()[-1]
        assert "Traceback" not in errors
    (gate / "open").touch()
    assert main(["extract", "--videos", str(five_videos), "--out", str(out), *SHARDS]) == 0
    same(out, whole)


def test_work_that_nobody_waits_for_ends_before_the_next_video(existing, tmp_path):
    (tmp_path / HEADER).write_text("{}")
    (tmp_path / "journals" / "run").mkdir(parents=True)

    def work(item):
        item.path.with_suffix(".begun").touch()
        while not item.path.with_suffix(".gate").exists():
            time.sleep(0.01)
        return {"id": f"video/{item.video_id}", "error": "corrupt", "message": ""}

    items = tuple(VideoTask(name, tmp_path / name, number) for number, name in enumerate(("a", "b", "c")))
    task = ShardTask(0, ("a", "b", "c"), items, (), "run")
    with Client(existing.address) as client:
        pool = dask_workers.DaskPool(client, {"GPU": 1})
        pool.submit(ShardWork("extract", tmp_path, work, lambda *_: {}, lambda: 1), task)
        until((tmp_path / "a.begun").exists)
        pool.close()
        [address] = [address for address, about in pool.workers().items() if about["name"] == "gpu"]

        def states(dask_worker):
            return {name: task.state for name, task in dask_worker.state.tasks.items()}

        until(lambda: client.run(states, workers=[address])[address].get(task.journal) == "cancelled")
        for item in items:
            item.path.with_suffix(".gate").touch()
        assert client.submit(sum, [1, 2], workers=[address]).result() == 3  # when its one thread is free again
    assert [path.name for path in tmp_path.glob("*.begun")] == ["a.begun"]


def test_what_has_ended_is_not_done_again_when_its_worker_dies(existing, tmp_path):
    """The scheduler forgets it: it would have it done again, to have its result for whoever might ask."""
    (tmp_path / HEADER).write_text("{}")
    (tmp_path / "journals" / "run").mkdir(parents=True)

    def work(item):
        while not item.path.with_suffix(".gate").exists():
            time.sleep(0.01)
        return {"id": f"video/{item.video_id}", "error": "corrupt", "message": ""}

    def tasks_of(dask_scheduler):
        return {name for name in dask_scheduler.tasks if name.startswith("run/")}

    shard_work = ShardWork("extract", tmp_path, work, lambda *_: {}, lambda: 1)
    tasks = [
        ShardTask(number, (v,), (VideoTask(v, tmp_path / v, number),), (), "run") for number, v in enumerate(("a", "b"))
    ]
    with Client(existing.address) as client:
        pool = dask_workers.DaskPool(client, {})
        for task in tasks:
            pool.submit(shard_work, task)
        assert pool.wait(0.1) == []
        (tmp_path / "a.gate").touch()
        ended = []
        until(lambda: ended.extend(pool.wait(0.1)) or ended)
        assert [task for task, _ in ended] == tasks[:1]
        until(lambda: client.run_on_scheduler(tasks_of) == {tasks[1].journal})
        (tmp_path / "b.gate").touch()
        until(lambda: ended.extend(pool.wait(0.1)) or len(ended) == 2)


class Late(Workers):
    """A pool without workers until it has been waited for three times."""

    def __init__(self, meanwhile=lambda: None):
        super().__init__(1)
        self.waited, self.meanwhile = 0, meanwhile

    def capacity(self):
        return self.number if self.waited >= 3 else 0

    def wait(self, timeout_s):
        self.waited += 1
        if self.given:
            return super().wait(timeout_s)
        self.meanwhile()
        return []


def test_a_run_without_workers_says_so_and_waits_for_some(tmp_path, caplog, monkeypatch):
    (tmp_path / "v").write_text("v")
    for name in ("TELL_AFTER_S", "TELL_EVERY_S"):
        monkeypatch.setattr(dispatch, name, -1.0)
    stage(tmp_path / "out").run({"v": tmp_path / "v"}, retry_failed=False, executor=over(Late()))
    assert caplog.text.count("there are no workers; waiting for some") == 2
    assert list(FeatureStore(tmp_path / "out")) == ["v"]


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_ctrl_c_ends_a_run_without_workers(tmp_path):
    (tmp_path / "v").write_text("v")
    pool = Late(lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        stage(tmp_path / "out").run({"v": tmp_path / "v"}, retry_failed=False, executor=over(pool))
    assert pool.waited == 1


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_what_a_worker_that_died_had_in_hand_is_left_to_the_next_run_when_a_stop_is_asked_for(tmp_path):
    class Dying(Workers):
        def wait(self, timeout_s):  # noqa: ARG002
            os.kill(os.getpid(), signal.SIGINT)
            return [(self.given.pop()[1], dispatch.WorkerDiedError("a worker died"))]

    (tmp_path / "v").write_text("v")
    with pytest.raises(KeyboardInterrupt):
        stage(tmp_path / "out").run({"v": tmp_path / "v"}, retry_failed=False, executor=over(Dying(1)))
    assert Manifest.read(tmp_path / "out").failed == {}


def test_workers_that_are_lost_are_asked_for_again(existing, monkeypatch):
    monkeypatch.setattr(dask_workers, "MEND_EVERY_S", -1.0)
    found = []
    with Client(existing.address) as client:
        assert dask_workers.DaskPool(client, {}, mend=found.append).capacity() == 2
    assert found == [2]


def test_a_death_counts_once_though_the_scheduler_tries_again_by_itself(tmp_path):
    """A shard of two is tried twice, and the video of it that kills its worker three times."""
    out, deaths = tmp_path / "out", tmp_path / "deaths"

    def work(item):
        if item.video_id == "deadly":
            with deaths.open("a") as file:
                file.write(f"{os.getpid()}\n")
            os._exit(7)
        return {"id": f"video/{item.video_id}", "error": "corrupt", "message": ""}

    made = dataclasses.replace(stage(out, shard_videos=2), work=work, at_once=lambda: 1)
    videos = {name: tmp_path / name for name in ("deadly", "other")}
    for path in videos.values():
        path.write_text("v")
    with (
        scheduler(tmp_path) as (_, address),
        worker(tmp_path, address, "a", env=commands.FORKING),
        worker(tmp_path, address, "b", env=commands.FORKING),
        Client(address) as client,
    ):
        made.run(videos, retry_failed=False, executor=dask_cluster.client_executor(client))
    failed = Manifest.read(out).failed
    assert {name: record["error"] for name, record in failed.items()} == {
        "video/deadly": "crashed",
        "video/other": "corrupt",
    }
    died = deaths.read_text().split()
    assert len(set(died)) == len(died) == dispatch.TRIES + dispatch.TRIES_ALONE


def test_tls(five_videos, whole, tmp_path, caplog):
    pytest.importorskip("cryptography", reason="makes the certificates")
    made = Security.temporary()
    files = {"ca-file": made.tls_ca_file, "cert": made.tls_scheduler_cert, "key": made.tls_scheduler_key}
    dasks, ours = [], []
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        dasks += [f"--tls-{name}", str(tmp_path / name)]
        ours += [f"--tls-{name.removesuffix('-file')}", str(tmp_path / name)]
    arguments = ["extract", "--videos", str(five_videos), "--out", str(tmp_path / "out"), *SHARDS, "--executor"]
    with (
        scheduler(tmp_path, "--protocol", "tls", *dasks) as (_, address),
        worker(tmp_path, address, "only", *dasks, env=commands.FORKING),
    ):
        assert address.startswith("tls://127.0.0.1")
        assert main([*arguments, address, *ours[:-1], str(tmp_path / "no-key")]) == 2
        assert "no-key: there is no such file" in caplog.text
        assert main([*arguments, address, *ours]) == 0
    same(tmp_path / "out", whole)


def at_the_gate(gate, driver, executor):
    """Wait until all are in hand that can be: two shards."""
    wanted = {"at-v0.mp4", "at-v1.mp4"} | ({"at-v2.mp4", "at-v3.mp4"} if executor == "local" else set())
    until(lambda: waiting(gate) == wanted, of=driver)


def ask_to_stop(driver):
    """Ctrl-C, as a terminal sends it; returns when it has been heard."""
    os.killpg(driver.pid, signal.SIGINT)
    for line in driver.stderr:
        if "stopping after the shard in hand" in line:
            return
    raise AssertionError(driver.wait())


EXECUTORS = {"inline": [], "local": ["--executor", "local", "--workers", "2"]}


@pytest.mark.usefixtures("heeds_ctrl_c")
@pytest.mark.parametrize("executor", EXECUTORS)
def test_ctrl_c_once(five_videos, whole, gate, tmp_path, executor):
    """The shards in hand are finished, and no more; meanwhile all that listens does so on loopback."""
    out = tmp_path / "out"
    with extracting(five_videos, out, *EXECUTORS[executor]) as driver:
        at_the_gate(gate, driver, executor)
        addresses = listening(driver)
        assert {ip for ip, _ in addresses} <= LOOPBACK
        assert len(addresses) >= 3 or executor == "inline"
        ask_to_stop(driver)
        (gate / "open").touch()
        errors = driver.communicate(timeout=GUARD_S)[1]
        assert driver.returncode == 130, errors
        assert "interrupted; what was recorded is kept, and the same command continues from there" in errors
        assert "Traceback" not in errors
        until(lambda: session(driver.pid) == [])
    assert {name for name in Manifest.read(out).records if not name.startswith("plan/")} == {
        *("shard/00000", "shard/00001"), *(f"video/v{number}" for number in range(4)),
    }  # fmt: skip
    assert main(["extract", "--videos", str(five_videos), "--out", str(out), *SHARDS]) == 0
    same(out, whole)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_ctrl_c_is_not_for_a_run_in_the_background_of_a_script(five_videos, whole, gate, tmp_path, executor):
    """There it is ignored from the beginning, by the run and by all that it starts: the run goes on to its end."""
    out = tmp_path / "out"
    earlier = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with extracting(five_videos, out, *EXECUTORS[executor], env=commands.FORKING) as driver:
            at_the_gate(gate, driver, executor)
            for _ in range(2):
                os.killpg(driver.pid, signal.SIGINT)
            (gate / "open").touch()
            errors = driver.communicate(timeout=GUARD_S)[1]
            assert driver.returncode == 0, errors
    finally:
        signal.signal(signal.SIGINT, earlier)
    assert "stopping" not in errors
    same(out, whole)


@pytest.mark.usefixtures("heeds_ctrl_c")
@pytest.mark.parametrize("executor", EXECUTORS)
def test_ctrl_c_twice(five_videos, whole, gate, tmp_path, executor):
    """All ends though the decoders are in the middle of something, and another run goes on."""
    out = tmp_path / "out"
    with extracting(five_videos, out, *EXECUTORS[executor], env=commands.FORKING) as driver:
        at_the_gate(gate, driver, executor)
        ask_to_stop(driver)
        os.killpg(driver.pid, signal.SIGINT)
        errors = driver.communicate(timeout=GUARD_S)[1]
        assert driver.returncode == 130, errors
        assert "Traceback" not in errors
        until(lambda: session(driver.pid) == [])
    (gate / "open").touch()
    assert main(["extract", "--videos", str(five_videos), "--out", str(out), *SHARDS]) == 0
    same(out, whole)


def test_a_driver_that_is_killed_leaves_no_process(five_videos, whole, gate, tmp_path):
    out = tmp_path / "out"
    with extracting(five_videos, out, *EXECUTORS["local"], env=commands.FORKING) as driver:
        at_the_gate(gate, driver, "local")
        driver.kill()
        driver.wait()
        until(lambda: session(driver.pid) == [])
    (gate / "open").touch()
    assert main(["extract", "--videos", str(five_videos), "--out", str(out), *SHARDS]) == 0
    same(out, whole)


SBATCH = """#!/bin/sh
id=0
while ! mkdir "$TEST_JOBS/$id" 2> /dev/null; do id=$((id + 1)); done
cp "$1" "$TEST_JOBS/$id.sh"
SLURM_JOB_ID=$id setsid bash "$TEST_JOBS/$id.sh" > "$TEST_JOBS/$id.out" 2>&1 < /dev/null &
echo $! > "$TEST_JOBS/$id.pid"
echo "Submitted batch job $id"
"""
SCANCEL = """#!/bin/sh
kill -- -$(cat "$TEST_JOBS/$1.pid")
"""


@pytest.fixture
def batch_system(tmp_path, monkeypatch):
    """Programs by the names of SLURM's which run jobs at once, on this machine; the folder of what they run."""
    (tmp_path / "bin").mkdir()
    for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    commands.write_forking_python(tmp_path / "bin" / "forking-python")
    for name, value in commands.FORKING.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "jobs").mkdir()
    monkeypatch.setenv("TEST_JOBS", str(tmp_path / "jobs"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "jobs"
    for path in (tmp_path / "jobs").glob("*.pid"):
        for member in session(int(path.read_text())):
            member.kill()


def at_work_in(folder):
    """The processes whose working directory is the folder, as a job's is. This one and multiprocessing's do not count."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # one that has just ended
            ours = process.pid == os.getpid() or "multiprocessing" in " ".join(process.cmdline())
            found += [process] if process.cwd() == str(folder) and not ours else []
    return found


def num_jobs(batch_system):
    return len(list(batch_system.glob("*.pid")))


JOB = ["--executor", "slurm", "--job", "cores=2", "memory=2GB", "walltime=00:10:00", "host=127.0.0.1"]
FORKED_JOB = [*JOB, "python=bin/forking-python"]


def test_jobs(five_videos, whole, gate, batch_system, tmp_path, monkeypatch):  # noqa: PLR0917
    """Two jobs, one of which is killed with its shard: another is submitted. At the end there are none."""
    pytest.importorskip("dask_jobqueue")
    out = tmp_path / "out"
    monkeypatch.setattr(dask_workers, "MEND_EVERY_S", 0.5)

    def preempt():
        until(lambda: len(waiting(gate)) == 4)
        for member in session(int((batch_system / "0.pid").read_text())):
            member.kill()
        until(lambda: num_jobs(batch_system) == 3)
        (gate / "open").touch()

    thread = threading.Thread(target=preempt)
    thread.start()
    arguments = ["extract", "--videos", str(five_videos), "--out", str(out), *SHARDS, *FORKED_JOB, "--workers", "2"]
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "100ms"}):
        assert main([*arguments, "--resources", "GPU=1"]) == 0
    thread.join()
    same(out, whole)
    assert num_jobs(batch_system) == 3
    script = (batch_system / "2.sh").read_text()
    assert "#SBATCH --cpus-per-task=2" in script
    assert "#SBATCH -t 00:10:00" in script
    assert "tls://127.0.0.1" in script
    assert "--tls-key" in script
    assert script.split("--nthreads")[-1].split()[0] == "1"
    assert "--resources GPU=1" in script
    until(lambda: not at_work_in(tmp_path))
    assert [path.name for path in tmp_path.iterdir() if "tls" in path.name] == []  # no keys are left


def settings_of(dask_scheduler):
    return dask_scheduler.allowed_failures, dask_scheduler.WORKER_SATURATION


@pytest.mark.parametrize("executor", ["local", "slurm"])
def test_a_scheduler_that_is_started_here_leaves_trying_again_to_us(batch_system, executor):
    job = () if executor == "local" else tuple(FORKED_JOB[3:])
    if job:
        pytest.importorskip("dask_jobqueue")
    with dask_cluster.connect(ExecutorSettings(executor=executor, workers=1, job=job), gpus=[]):
        assert Client.current().run_on_scheduler(settings_of) == (0, 1.0)


def test_jobs_that_end_before_their_worker_comes(five_videos, batch_system, tmp_path, caplog, monkeypatch):
    """They are tried three times, and the run says where to look."""
    pytest.importorskip("dask_jobqueue")
    monkeypatch.setattr(dask_workers, "MEND_EVERY_S", 0.0)
    monkeypatch.setattr(dask_workers, "ASK_EVERY_S", 0.0)
    monkeypatch.setattr(batch_jobs, "ENDED_FOR_S", 0.0)
    arguments = ["extract", "--videos", str(five_videos), "--out", str(tmp_path / "out"), *SHARDS, *JOB]
    assert main([*arguments, "python=/no/such/python", f"log_directory={tmp_path / 'logs'}"]) == 1
    assert "3 jobs ended before their worker came, the last of them 2; " in caplog.text
    assert f"what they print is in {tmp_path / 'logs'}" in caplog.text
    assert num_jobs(batch_system) == 3
    assert "/no/such/python" in (batch_system / "2.out").read_text()
    assert nothing_is_done(tmp_path / "out")


def test_a_job_that_waits_is_waited_for(five_videos, whole, batch_system, tmp_path, caplog, monkeypatch):  # noqa: PLR0917
    """However long; the run says once how to see that it does. (And again if its workers go, as they may at the end.)"""
    pytest.importorskip("dask_jobqueue")
    queued = SBATCH.replace(
        'cp "$1" "$TEST_JOBS/$id.sh"',
        '(echo "while [ ! -e $TEST_JOBS/go ]; do sleep 0.02; done"; cat "$1") > "$TEST_JOBS/$id.sh"',
    )
    (tmp_path / "bin" / "sbatch").write_text(queued)
    for name, value in (("MEND_EVERY_S", 0.0), ("ASK_EVERY_S", 0.0)):
        monkeypatch.setattr(dask_workers, name, value)
    monkeypatch.setattr(batch_jobs, "ENDED_FOR_S", 0.0)
    monkeypatch.setattr(batch_jobs, "TELL_AFTER_S", -1.0)

    told = []

    def begin():
        until(lambda: "no worker has come" in caplog.text)
        told.append(caplog.text)
        (batch_system / "go").touch()

    thread = threading.Thread(target=begin)
    thread.start()
    arguments = ["extract", "--videos", str(five_videos), "--out", str(tmp_path / "out"), *SHARDS, *FORKED_JOB]
    assert main(arguments) == 0
    thread.join()
    assert told[0].count("no worker has come of the jobs yet; `squeue --jobs 0` says whether they wait") == 1
    assert f"in most cases in {tmp_path} (--job log_directory=DIR" in caplog.text
    assert num_jobs(batch_system) == 1
    same(tmp_path / "out", whole)


@pytest.mark.parametrize(
    ("job", "is_marked"), [((), True), (("shebang=#!/bin/csh",), False), (("env_extra=x",), False)], ids=["sh", "csh", "old"]
)
def test_jobs_that_are_no_scripts_of_a_shell_are_not_marked(job, is_marked):
    pytest.importorskip("dask_jobqueue")
    running = ExecutorSettings(executor="slurm", job=("cores=1", "memory=1GB", "job_script_prologue=module load cuda", *job))
    lines = batch_jobs.add_exit_markers(running, batch_jobs.jobqueue_options(running), "/a folder")["job_script_prologue"]
    assert lines[-1] == "module load cuda"
    assert [line.split()[0] for line in lines[:-1]] == (["trap"] if is_marked else [])


@pytest.mark.parametrize(
    ("address", "code", "message"),
    [
        ("nonsense", 2, "expected HOST:PORT"),
        ("h:70000", 2, "expected HOST:PORT"),
        ("192.0.2.1:0", 1, "nothing can listen there"),
    ],
)
@pytest.mark.parametrize("executor", ["local", "slurm"])
def test_a_dashboard_nowhere(five_videos, tmp_path, caplog, address, code, message, executor):  # noqa: PLR0917
    arguments = ["extract", "--videos", str(five_videos), "--out", str(tmp_path / "out"), *SHARDS, "--executor", executor]
    assert main([*arguments, "--dashboard", address]) == code
    assert f"dashboard: '{address}'" in caplog.text
    assert message in caplog.text
    assert not (tmp_path / "out").exists()


def test_jobs_that_are_asked_for_wrongly(five_videos, batch_system, tmp_path, caplog, monkeypatch):
    pytest.importorskip("dask_jobqueue")
    arguments = ["extract", "--videos", str(five_videos), "--out", str(tmp_path / "out"), *SHARDS]
    assert main([*arguments, "--executor", "slurm", "--job", "cores=2"]) == 2
    assert "--job needs at least cores=… and memory=…" in caplog.text
    caplog.clear()
    assert main([*arguments, *JOB, "colour=blue"]) == 2
    assert "colour" in caplog.text
    assert main([*arguments, *JOB[:-1], "host=no.such.host.invalid"]) == 2
    assert "SLURMCluster cannot begin with what --job says" in caplog.text
    assert "at least" not in caplog.text
    assert main([*arguments, *JOB, "processes=4"]) == 2
    assert "a job is one worker here" in caplog.text
    assert main([*arguments, "--executor", "pbs", "--job", "cores=2", "memory=2GB"]) == 2
    assert "there is no program qsub here" in caplog.text
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition' >&2\nexit 1\n")
    assert main([*arguments, *JOB]) == 1
    assert "a job was not accepted" in caplog.text
    assert "invalid partition" in caplog.text
    assert num_jobs(batch_system) == 0


def test_settings_of_jobs_are_passed_on(monkeypatch):
    given = {
        "worker-extra-args": ["--preload", "a.py"],
        "job-extra-directives": ["--nice"],
        "scheduler-options": {"port": 1},
    }
    job = (
        "cores=8",
        "memory=32GB",
        "job_extra_directives=--gres=gpu:1",
        "job_extra_directives=--exclusive",
        "host=h",
        "port=7",
    )
    with dask.config.set({"jobqueue.slurm": given}):
        told = batch_jobs.jobqueue_options(
            ExecutorSettings(executor="slurm", job=job, resources=("GPU=1",), dashboard="127.0.0.1:1")
        )
    assert (told["cores"], told["memory"], told["processes"]) == (8, "32GB", 1)
    assert told["job_extra_directives"] == ["--nice", "--gres=gpu:1", "--exclusive"]
    web = ["--dashboard-address", "127.0.0.1:0"]
    ours = [
        "--nthreads",
        "1",
        "--no-dashboard",
        "--preload-nanny",
        "excl.workflows.cluster.dask_nanny",
        "--resources",
        "GPU=1",
    ]
    assert told["worker_extra_args"] == [*web, "--preload", "a.py", *ours]
    assert told["scheduler_options"] == {"host": "h", "port": 7, "dashboard_address": "127.0.0.1:1"}


def gpus_of(monkeypatch, *, device, visible, number, executor="local"):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: number)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    return dask_cluster.gpus(SimpleNamespace(device=device, running=ExecutorSettings(executor=executor)))


@pytest.mark.parametrize(
    ("device", "visible", "number", "found"),
    [
        ("auto", None, 2, ["0", "1"]),
        ("cuda", "3, 5", 2, ["3", "5"]),
        ("auto", "GPU-8c1f,GPU-22aa", 2, ["GPU-8c1f", "GPU-22aa"]),
        ("auto", "", 0, []),
        ("auto", None, 0, []),
        ("cpu", None, 2, []),
    ],
)
def test_gpus_of_this_machine(monkeypatch, device, visible, number, found):
    assert gpus_of(monkeypatch, device=device, visible=visible, number=number) == found


def test_one_gpu_by_name_is_no_device_for_several_workers(monkeypatch):
    with pytest.raises(ValueError, match=r"cuda:1.*one device"):
        gpus_of(monkeypatch, device="cuda:1", visible=None, number=2)
    assert gpus_of(monkeypatch, device="cuda:1", visible=None, number=2, executor="tcp://h:1") == []


def threads_of(out, executor):
    """How many threads the work has when a worker does it."""
    (out.parent / "v").write_text("v")

    def work(item):
        import torch

        return {"id": f"video/{item.video_id}", "error": "corrupt", "message": str(torch.get_num_threads())}

    made = dataclasses.replace(stage(out), work=work, at_once=lambda: 1)
    made.run({"v": out.parent / "v"}, retry_failed=False, executor=executor)
    return int(Manifest.read(out).failed["video/v"]["message"])


@pytest.mark.parametrize("given", ["1", "3", None])
def test_omp_num_threads_is_heeded_by_workers_of_this_machine(tmp_path, monkeypatch, given):
    monkeypatch.setenv("OMP_NUM_THREADS", given or "")
    if given is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    wanted = int(given or num_cores())
    if given != "1":  # which shows no more than 3 does, for four seconds
        of_this_machine = dask_cluster.dask_executor(ExecutorSettings(executor="local", workers=1), gpus=[])
        assert threads_of(tmp_path / "out", of_this_machine) == wanted
    assert {spec["options"]["env"]["OMP_NUM_THREADS"] for spec in dask_cluster.local_workers(1, []).values()} == {
        str(wanted)
    }
    assert os.environ.get("OMP_NUM_THREADS") == given  # and nothing else starts with what Dask said for its own


@pytest.mark.parametrize(
    ("given", "how", "wanted"),
    [("3", ["--nanny"], 3), ("1", ["--no-nanny"], 1), ("", ["--nanny"], None)],
    ids=["nanny", "no nanny", "not given"],
)
def test_omp_num_threads_is_heeded_by_workers_elsewhere(existing, tmp_path, monkeypatch, given, how, wanted):  # noqa: PLR0917
    """Where it is not given, a worker with a nanny finds Dask's 1 there."""
    monkeypatch.delenv("OMP_NUM_THREADS")
    env = {"OMP_NUM_THREADS": given} if given else {}
    with (
        worker(tmp_path, existing.address, "other", "--resources", "OTHER=1", *how, env=env),
        Client(existing.address) as client,
    ):
        assert threads_of(tmp_path / "out", dask_cluster.client_executor(client, needed={"OTHER": 1})) == (
            wanted or num_cores()
        )


def test_each_worker_sees_one_gpu(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(dask_cluster, "num_cores", lambda: 8)
    made = dask_cluster.local_workers(4, ["3", "5"])
    assert [spec["options"]["env"]["CUDA_VISIBLE_DEVICES"] for spec in made.values()] == ["3", "5", "3", "5"]
    assert {spec["options"]["env"]["OMP_NUM_THREADS"] for spec in made.values()} == {"2"}
    assert {(spec["options"]["host"], spec["options"]["nthreads"]) for spec in made.values()} == {("127.0.0.1", 1)}
    assert "CUDA_VISIBLE_DEVICES" not in dask_cluster.local_workers(1, [])[0]["options"]["env"]


@pytest.mark.parametrize(("cores", "of"), [(8, 2), (7, 2), (7, 3), (2, 3), (1, 4), (16, 16)])
def test_workers_share_all_cores(cores, of):
    shares = [dask_cluster.share_of_cores(list(range(cores)), number, of) for number in range(of)]
    assert sorted(set().union(*shares)) == list(range(cores))
    assert {len(share) for share in shares} <= {max(1, cores // of), -(-cores // of)}
    if of <= cores:
        assert sum(map(len, shares)) == cores


def test_a_jobs_cores_are_the_threads_of_its_worker():
    asked = ExecutorSettings(executor="slurm", job=("cores=3", "memory=1GB"))
    assert batch_jobs.num_cores_of_job(asked) == 3
    with dask.config.set({"jobqueue.slurm.cores": 5, "jobqueue.mine.cores": 7}):
        assert batch_jobs.num_cores_of_job(ExecutorSettings(executor="slurm", job=("memory=1GB",))) == 5
        assert batch_jobs.num_cores_of_job(ExecutorSettings(executor="slurm", job=("config_name=mine",))) == 7
        assert batch_jobs.num_cores_of_job(asked) == 3
    assert batch_jobs.num_cores_of_job(ExecutorSettings(executor="slurm", job=("config_name=elsewhere",))) is None


def test_the_nanny_of_a_job_that_is_cancelled_says_nothing_of_its_listener(caplog):
    assert "--preload-nanny excl.workflows.cluster.dask_nanny" in " ".join(
        batch_jobs.jobqueue_options(ExecutorSettings(executor="slurm", job=("cores=1", "memory=1GB")))["worker_extra_args"]
    )
    logger = logging.getLogger("tornado.application")
    before = list(logger.filters)
    dask_nanny.dask_setup(None)
    try:
        for message in ("invalid operation on non-started TCPListener", "another error"):
            try:
                raise ValueError(message)
            except ValueError:
                logger.exception("Exception in callback")
    finally:
        logger.filters[:] = before
    assert caplog.text.count("Exception in callback") == 1
    assert "another error" in caplog.text
