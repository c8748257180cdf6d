"""A real SLURM on this machine, where it is installed: jobs, a job array and a cancelled job make the bytes of one process.

The pictures are of a size at which the last bit of some features depends on the number of threads, so that jobs which take
more cores than they have are noticed.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from shared_fixtures import write_video

from excl.workflows.cli import main

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "sinfo")
FLAGS = ["--weights", "random:0", "--short-side", "64", "--crop", "64", "--device", "cpu", "--shard-videos", "2"]
PATIENCE_S = 180
CONFIGURATION = """
ClusterName=excl
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=16000 State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def wait_for(condition, what):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE_S} s for {what}"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A SLURM of this module's own, of one node; the environment in which its programs find it."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        pytest.skip(f"no SLURM is installed here: {', '.join(missing)} are missing")
    if os.geteuid() != 0:
        pytest.skip("only root can start a SLURM")
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    host = socket.gethostname().split(".")[0]
    text = CONFIGURATION.format(host=host, ports=free_ports(2), folder=folder)
    (folder / "slurm.conf").write_text(text)
    env = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    env.pop("OMP_NUM_THREADS", None)
    munge = ["key-file=munge.key", "socket=munge.socket", "pid-file=munge.pid", "log-file=munge.log", "seed-file=munge.seed"]
    started = []

    def start(*command):
        with (folder / f"{command[0]}.out").open("wb") as output:
            started.append(subprocess.Popen(command, env=env, cwd=folder, stdout=output, stderr=output))

    def is_up():
        dead = [process.args[0] for process in started if process.poll() is not None]
        if dead:
            said = (folder / f"{dead[0]}.out").read_text(errors="replace")[-300:]
            pytest.skip(f"{dead[0]} does not run here: {said}")
        state = subprocess.run(["sinfo", "-h", "-o", "%T"], env=env, capture_output=True, text=True, check=False)
        return "idle" in state.stdout

    try:
        start("munged", "--foreground", "--force", *(f"--{x.replace('=', f'={folder}/')}" for x in munge))
        wait_for((folder / "munge.socket").exists, "munged")
        start("slurmctld", "-D")
        start("slurmd", "-D", "-N", host)
        wait_for(is_up, "the node")
        yield env
    finally:
        for process in reversed(started):
            process.terminate()
        for process in reversed(started):
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for number in range(8):
        times = [i * 40 for i in range(60 + 15 * number)]
        write_video(folder / f"v{number}.mp4", times, rate=25, width=128, height=96)
    return folder


def arguments(videos, out, *more):
    return ["extract", "--videos", str(videos), "--out", str(out), *FLAGS, *more]


def shards(out):
    return {path.name: path.read_bytes() for path in (out / "shards").iterdir()}


@pytest.fixture(scope="module")
def inline(videos, tmp_path_factory, one_thread):
    """The shards that one process with one thread makes."""
    out = tmp_path_factory.mktemp("inline") / "out"
    assert main(arguments(videos, out)) == 0
    return shards(out)


@pytest.fixture
def submitting(slurm, tmp_path, monkeypatch):
    """This process submits jobs, which take its environment, to SLURM."""
    monkeypatch.setenv("SLURM_CONF", slurm["SLURM_CONF"])
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.chdir(tmp_path)


def job_ids(env, states="running"):
    found = subprocess.run(["squeue", "-h", "-t", states, "-o", "%i"], env=env, capture_output=True, text=True, check=True)
    return found.stdout.split()


JOBS = ["--executor", "slurm", "--workers", "2", "--job", "cores=1", "memory=2GB"]


def test_jobs_with_one_core_each_make_the_bytes_of_one_thread_though_one_is_cancelled(
    slurm, submitting, videos, inline, tmp_path
):
    out = tmp_path / "out"
    cancelled = []

    def cancel():
        wait_for(lambda: list(out.glob("journals/*/*.jsonl")) and len(job_ids(slurm)) == 2, "two jobs at work")
        cancelled.append(job_ids(slurm)[0])
        subprocess.run(["scancel", *cancelled], env=slurm, check=True)

    thread = threading.Thread(target=cancel)
    thread.start()
    assert main(arguments(videos, out, *JOBS)) == 0
    thread.join()
    assert cancelled
    assert shards(out) == inline
    wait_for(lambda: not job_ids(slurm), "the end of the jobs")
    told = {path.stem.removeprefix("slurm-"): path.read_text() for path in Path(tmp_path).glob("slurm-*.out")}
    assert {*cancelled} < {*told}
    assert len(told) in {2, 3}  # another job comes in its place, if there is anything left to do
    assert not any("TCPListener" in text for job, text in told.items() if job not in cancelled), "\n".join(told.values())


def test_a_job_array_makes_the_same_bytes(slurm, videos, inline, tmp_path):
    command = [sys.executable, "-m", "excl.workflows.cli", *arguments(videos, tmp_path / "out")]
    share = [*command, "--shard-range", "$SLURM_ARRAY_TASK_ID/2"]
    script = "\n".join([
        "#!/bin/sh",
        "#SBATCH --array=0-1",
        "#SBATCH --cpus-per-task=1",
        "export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK",
        " ".join(share),
    ])  # fmt: skip
    (tmp_path / "array.sh").write_text(script + "\n")
    subprocess.run(["sbatch", "array.sh"], env=slurm, cwd=tmp_path, check=True)
    wait_for(lambda: not job_ids(slurm, "pending,running,completing"), "the end of the array")
    assert shards(tmp_path / "out") == inline
