"""Runs of a stage that are killed at a chosen moment."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
from unittest import mock

from excl.pipeline import extract
from excl.pipeline.execution.shard_work import inline

LASTING = ("replace", "fsync", "unlink", "truncate")  # calls of `os` that make a change last


def run_and_die_at(call, config, stage=extract):
    """Run in a forked process that kills itself at the given call of what makes a change last; whether it was killed."""
    pid = os.fork()
    if pid == 0:
        calls = itertools.count(1)

        def deadly(function):
            def wrapper(*arguments, **keywords):
                if next(calls) == call:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **keywords)

            return wrapper

        for name in LASTING:
            setattr(os, name, deadly(getattr(os, name)))
        stage.run(config)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def left_by_kills(config, folder, stage=extract):
    """Run in one thread, and copy config.out into `folder` as a kill before each call of what makes a change last leaves it.

    Return the copies, each of other files than the one before: fsync changes none that can be seen.
    """
    folder.mkdir()
    copies, contents = [], []

    def copying(function):
        def wrapper(*arguments, **keywords):
            if (content := _content(config.out)) not in contents[-1:]:
                contents.append(content)
                copies.append(shutil.copytree(config.out, folder / str(len(copies))))
            return function(*arguments, **keywords)

        return wrapper

    with contextlib.ExitStack() as stack:
        for name in LASTING:
            stack.enter_context(mock.patch.object(os, name, copying(getattr(os, name))))
        stage.run(config, executor=inline(map))
    return copies


def _content(folder):
    return {path.relative_to(folder): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
