"""A page of `excl serve` or `excl annotate` that runs in a process of its own, and requests to it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import commands
import requests

# The folder for temporary files is set here: a process that was forked has already looked for it.
START = "import sys, tempfile; tempfile.tempdir = sys.argv.pop(1); from excl.workflows.cli import entry; entry()"


class Served:
    """A running page: `session` has the token's cookie, `process` is the command's."""

    def __init__(self, process: Any, address: str, folder: Any) -> None:
        self.process, self.address, self.temporary = process, address, folder
        self.root = address.partition("?")[0]
        self.session = requests.Session()
        assert self.session.get(address, timeout=60).status_code == 200

    def __call__(self, method: str, path: str, **settings: Any) -> requests.Response:
        return self.session.request(method, self.root + path, timeout=120, **settings)

    def stop(self, number: int = signal.SIGINT) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(number)
        return int(self.process.wait(timeout=120))


@contextlib.contextmanager
def served(temporary: Any, *arguments: str, own_decoders: bool = False) -> Iterator[Served]:
    """Start a command whose temporary files go into a folder, and stop it at the end.

    With `own_decoders` the command's children read its videos, as they do for users; without, forks of the warm process do.
    """
    command = [sys.executable, "-c", START, str(temporary), *arguments]
    environment = {**os.environ, **({} if own_decoders else commands.FORKED_DECODERS)}
    process = commands.start(command, stderr=subprocess.PIPE, text=True, env=environment)
    told = []
    try:
        for line in process.stderr:
            told.append(line)
            if match := re.search(r"http://127\.0\.0\.1:\d+/\?token=\S+", line):
                break
        else:
            raise AssertionError("".join(told))
        yield Served(process, match[0], temporary)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(timeout=60)
        process.stderr.close()
