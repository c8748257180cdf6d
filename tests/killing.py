"""Runs of a stage that are killed at a chosen moment."""

from __future__ import annotations

import itertools
import os
import signal

from excl.pipeline import extract


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

        for name in ("replace", "fsync", "unlink", "truncate"):
            setattr(os, name, deadly(getattr(os, name)))
        stage.run(config)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)
