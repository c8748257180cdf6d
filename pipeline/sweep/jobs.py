"""The trainings of a sweep: check that earlier results have the same settings, and run the jobs, several at once if asked.

Each job that runs at the same time as others has a process of its own, so if the system kills it, because memory is short or
a driver fails, the others are not affected.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from excl.models.lazy_module import LazyModule
from excl.pipeline import evaluate, train
from excl.pipeline.artifacts.header import RecipeMismatchError, diff
from excl.pipeline.artifacts.locks import BusyError
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.execution.video_reading import num_cores
from excl.pipeline.training.checkpoint_format import exists
from excl.pipeline.training.checkpointer import LAST

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

DIFFERENCES_SHOWN = 5
JOB_COMMAND = [sys.executable, "-c", "from excl.pipeline.sweep.jobs import run_sent_job; run_sent_job()"]


@dataclass(frozen=True)
class Job:
    """One training and its evaluation, in a folder of its own."""

    name: str
    training: train.TrainConfig
    evaluation: evaluate.EvaluateConfig

    @property
    def folder(self) -> Path:
        """The folder of the run, the evaluation and the messages."""
        return self.training.out.parent


def require_same_settings(jobs: Sequence[Job]) -> None:
    """Raise RecipeMismatchError with the differences if a job's folder holds results of settings that are not the job's.

    This is checked before anything is trained: results of two settings shall not meet in one table.
    """
    differences = [line for job in jobs for line in _differences(job)]
    if differences:
        shown = differences[:DIFFERENCES_SHOWN]
        if len(differences) > len(shown):
            shown.append(f"and {len(differences) - len(shown)} more")
        raise RecipeMismatchError(
            "trainings of other settings are there already:\n  " + "\n  ".join(shown) + "\n"
            "Results of two settings are never put into one table: choose another output folder, or remove those folders."
        )


def _differences(job: Job) -> list[str]:
    """Return a line for each setting in which a job's earlier results differ from the job; a job not begun has none."""
    stages: list[tuple[Path, Any, Any]] = []
    if exists(job.training.out, LAST):
        stages.append((job.training.out, train, job.training))
        if Manifest.read(job.training.out).is_complete and (job.evaluation.folder / evaluate.METRICS).exists():
            stages.append((job.evaluation.folder, evaluate, job.evaluation))
    lines = []
    for folder, stage, config in stages:
        header = {"stage": stage.STAGE, "code_version": stage.CODE_VERSION, "identity": stage.made_by(config)}
        for key, (earlier, requested) in diff(Manifest.read(folder).header, header).items():
            lines.append(f"{folder}: {key}: the folder has {earlier!r}, asked for is {requested!r}")
    return lines


def run_job(job: Job) -> str | None:
    """Train and evaluate unless it is done. Return this job's error, if any; raise an error that would hit every job."""
    try:
        train.run(job.training)
        evaluate.run(job.evaluation)
    except (RecipeMismatchError, BusyError):
        raise
    except (ValueError, ArithmeticError, RuntimeError, OSError, MemoryError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def run_jobs(jobs: Sequence[Job], parallel: int) -> Generator[tuple[Job, str | None]]:
    """Run the jobs and yield each with its error, if any, when it ends.

    When the generator is closed or raises, the jobs that are running are ended; the next sweep resumes them.
    """
    if parallel == 1:
        for job in jobs:
            yield job, run_job(job)
        return
    waiting = iter(jobs)
    running: dict[Any, tuple[subprocess.Popen[bytes], Job]] = {}  # by the pipe from which the outcome comes
    try:
        while True:
            for job in itertools.islice(waiting, parallel - len(running)):
                process = _start(job, num_threads=max(1, num_cores() // parallel))
                running[process.stdout] = process, job
            if not running:
                return
            for pipe in wait(list(running)):
                process, job = running.pop(pipe)
                yield job, _outcome(process)
    finally:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.wait()


def _start(job: Job, *, num_threads: int) -> subprocess.Popen[bytes]:
    """Start the process of a job; its messages and progress go to log.txt of the job's folder."""
    job.folder.mkdir(parents=True, exist_ok=True)
    with (job.folder / "log.txt").open("ab") as file:
        process = subprocess.Popen(JOB_COMMAND, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file)
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # the process was killed already
        process.stdin.write(pickle.dumps((job, num_threads)))
    return process


def _outcome(process: subprocess.Popen[bytes]) -> str | None:
    """Return the error of a job whose process has ended or is about to, None for success; raise one that hits every job."""
    assert process.stdout is not None
    with process:
        reply = process.stdout.read()
    if not reply:
        return f"its process ended {_ending(process.returncode)}; log.txt in its folder may say why"
    error = pickle.loads(reply)
    if isinstance(error, Exception):
        raise error
    return error


def _ending(exit_code: int) -> str:
    if exit_code >= 0:
        return f"with exit code {exit_code}"
    with contextlib.suppress(ValueError):
        return f"by the signal {signal.Signals(-exit_code).name}"
    return f"by the signal {-exit_code}"


def run_sent_job() -> None:
    """Run the job that standard input describes, in a process of its own; its outcome goes to standard output."""
    outcome_pipe = os.dup(1)
    os.dup2(2, 1)  # what libraries print goes to the log
    job, num_threads = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(num_threads)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    outcome: str | Exception | None
    try:
        outcome = run_job(job)
    except (RecipeMismatchError, BusyError) as error:
        outcome = error
    os.write(outcome_pipe, pickle.dumps(outcome))


def _end_with_parent() -> None:
    """End this process when standard input does: its job would still hold the folder when a killed sweep is run again."""
    os.read(0, 1)
    os._exit(1)
