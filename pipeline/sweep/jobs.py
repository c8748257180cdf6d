"""The trainings of a sweep: whether what is there was made with their settings, and doing them, maybe side by side.

Each has a process of its own, so one that the system kills, because memory is short or a driver fails, costs itself alone.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import torch

from excl.pipeline import evaluate, train
from excl.pipeline.artifacts.header import RecipeMismatchError, diff
from excl.pipeline.artifacts.locks import BusyError
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.execution.video_reading import num_cores
from excl.pipeline.training.checkpoint_files import exists
from excl.pipeline.training.checkpointer import LAST

DIFFERENCES_SHOWN = 5


@dataclass(frozen=True)
class Job:
    """One training and its evaluation, in a folder of its own."""

    name: str
    training: train.TrainConfig
    evaluation: evaluate.EvaluateConfig

    @property
    def folder(self) -> Path:
        """Where run, evaluation and messages are."""
        return self.training.out.parent


def require_same_settings(jobs: Sequence[Job]) -> None:
    """RecipeMismatchError, which says what differs, if a job's folder holds the results of other settings than the job's.

    Before anything is trained: results of two settings shall not meet in one table.
    """
    found = [line for job in jobs for line in _differences(job)]
    if found:
        shown = found[:DIFFERENCES_SHOWN]
        if len(found) > len(shown):
            shown.append(f"and {len(found) - len(shown)} more")
        raise RecipeMismatchError(
            "trainings of other settings are there already:\n  " + "\n  ".join(shown) + "\n"
            "Results of two settings are never put into one table: choose another output folder, or remove those folders."
        )


def _differences(job: Job) -> list[str]:
    """In what the results in a job's folder are of other settings, a line each; what was not begun takes any settings."""
    folders = []
    if exists(job.training.out, LAST):
        folders.append((job.training.out, train.STAGE, train.CODE_VERSION, train.made_by(job.training)))
        made, run_is_done = job.evaluation.folder, Manifest.read(job.training.out).is_complete
        if run_is_done and (made / evaluate.METRICS).exists():
            folders.append((made, evaluate.STAGE, evaluate.CODE_VERSION, evaluate.made_by(job.evaluation)))
    lines = []
    for folder, stage, version, made_by in folders:
        wanted = {"stage": stage, "code_version": version, "identity": made_by}
        for key, (old, new) in diff(Manifest.read(folder).header, wanted).items():
            lines.append(f"{folder}: {key}: the folder has {old!r}, asked for is {new!r}")
    return lines


def do(job: Job) -> str | None:
    """Train and evaluate unless it is done. Returns what went wrong with this one; raises what would with every one."""
    try:
        train.run(job.training)
        evaluate.run(job.evaluation)
    except (RecipeMismatchError, BusyError):
        raise
    except (ValueError, ArithmeticError, RuntimeError, OSError, MemoryError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def done(jobs: Sequence[Job], parallel: int) -> Generator[tuple[Job, str | None]]:
    """The jobs as they are done, each with its error, if any. Closed early, or by an error, those that are running end."""
    if parallel == 1:
        for job in jobs:
            yield job, do(job)
        return
    # A process with CUDA cannot be forked. A job's is forked from a server that has none, and has imported all once for all.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([train.__name__, evaluate.__name__, "torch._dynamo"])  # this for optimizers
    threads = max(1, num_cores() // parallel)
    waiting = list(reversed(jobs))
    running: dict[Connection, tuple[ForkServerProcess, Job]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < parallel:
                job = waiting.pop()
                receiver, process = _started(context, job, threads)
                running[receiver] = process, job
            ready = wait(list(running))
            for receiver in [one for one in running if one in ready]:
                process, job = running[receiver]
                error = _result(receiver, process)
                del running[receiver]
                yield job, error
    finally:
        for process, _ in running.values():  # what they have kept is taken up by the next sweep
            process.terminate()
        for process, _ in running.values():
            process.join()


def _started(context: ForkServerContext, job: Job, threads: int) -> tuple[Connection, ForkServerProcess]:
    """A process that does a job, and where its result comes from."""
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_do_in_process, args=(job, threads, sender), name=job.name)
    process.start()
    sender.close()  # so that only the process has it, and its end is seen
    return receiver, process


def _result(receiver: Connection, process: ForkServerProcess) -> str | None:
    """What went wrong in a process that has ended or is about to, None if nothing; raises what would with every job."""
    try:
        result: Any = receiver.recv()
    except EOFError:
        result = None
        process.join()
        if process.exitcode:
            result = f"its process ended {_how(process.exitcode)}; log.txt in its folder may say why"
    finally:
        receiver.close()
    process.join()
    if isinstance(result, Exception):
        raise result
    return result


def _how(exit_code: int) -> str:
    if exit_code > 0:
        return f"with exit code {exit_code}"
    with contextlib.suppress(ValueError):
        return f"by the signal {signal.Signals(-exit_code).name}"
    return f"by the signal {-exit_code}"


def _do_in_process(job: Job, threads: int, sender: Connection) -> None:
    """Send `do`'s result, or what it raised for all jobs; messages and progress are in log.txt of the job's folder."""
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    job.folder.mkdir(parents=True, exist_ok=True)
    with (job.folder / "log.txt").open("a", encoding="utf-8") as file, contextlib.redirect_stderr(file):
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=file, force=True)
        try:
            sender.send(do(job))
        except (RecipeMismatchError, BusyError) as error:
            sender.send(error)
        except Exception:  # the boundary of the process: its log says what it was, and it ends
            logging.getLogger(__name__).exception("%s", job.name)
            raise


def _end_with_parent() -> None:
    """A training whose sweep was killed would hold its folder, and the next sweep would find it busy."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
