"""Reading videos in a process of their own, which may hang, crash or run out of memory and costs one video when it does.

`DecoderProcess` starts `python -m excl.datasets.video.decoder_process` and keeps it for many videos. The parent writes a
JSON line a video to its standard input; the child answers on its standard output with messages, a letter and a length
(big-endian, 4 bytes) before each: F, the bytes of a frame; D, at the end, the facts or the probe as JSON; E, the reason and
the message of a VideoError as JSON; I, what an InternalError says as JSON. The memory that the child may take beyond its
own program is limited; a parent that waits longer than allowed for the next byte kills it. What the child says on its
standard error goes to a file without a name, whose end is told if the child dies: a library's complaints do not reach the
terminal.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import fcntl
import json
import os
import resource
import select
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from excl.datasets.video.backends import missing_reason, open_sampled
from excl.datasets.video.container import Limits
from excl.datasets.video.errors import InternalError, VideoError
from excl.datasets.video.geometry import Geometry
from excl.datasets.video.probe import Probe, probe_video
from excl.datasets.video.sampling import Sampling, SinglePassVideo, VideoFacts

HEADER = struct.Struct(">cI")
MAX_SAID = 4000  # bytes of what a process said before it died
PIPE_BYTES = 1 << 20  # as much as Linux lets anybody have; some frames, where the usual 64 KiB are half of one


class DecoderProcess:
    """A process that reads videos, one after another; started when first needed and again after it died.

    `timeout_s` bounds the wait for the next frame, `memory_bytes` what videos may take of the child's address space.
    Not for use by two threads but for `stop`.
    """

    def __init__(self, *, timeout_s: float, memory_bytes: int) -> None:
        self.timeout_s = timeout_s
        self.command = [sys.executable, "-m", "excl.datasets.video.decoder_process", str(memory_bytes)]
        self._process: subprocess.Popen[bytes] | None = None
        self._said: BinaryIO | None = None  # the process's standard error
        self._owner = os.getpid()
        self.busy = False  # from an order until its answer has come to the end

    def read(self, path: Path, sampling: Sampling) -> IsolatedVideo:
        """One pass over a video, with the interface of `PyAVVideo`."""
        return IsolatedVideo(self, path, sampling)

    def probe(self, path: Path, limits: Limits) -> Probe:
        """`probe_video`, by the process."""
        self.ask({"path": os.fspath(path.absolute()), "limits": dataclasses.asdict(limits)})
        try:
            letter, content = self.receive(path)
        except VideoError:
            self.kill()
            raise
        if letter != b"D":
            self.kill()
            raise _error(letter, content)
        self.busy = False
        value = json.loads(content)
        return Probe(**{**value, "notes": tuple(value["notes"])})

    def ask(self, order: dict[str, Any]) -> None:
        """Send an order: the path of a video and how to sample it, or the limits to probe it with."""
        if self._owner != os.getpid():  # a fork: the process belongs to the parent
            self._process, self._said, self._owner = None, None, os.getpid()
        if self._process is None or self._process.poll() is not None or self.busy:
            self.kill()
            self._said = tempfile.TemporaryFile("ab+", buffering=0)  # noqa: SIM115  (appended to, so that it can be emptied)
            self._process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, bufsize=0, process_group=0
            )  # in a group of its own, where Ctrl-C on the terminal does not reach it
            if sys.platform == "linux":
                assert self._process.stdout is not None
                with contextlib.suppress(PermissionError):  # the user's pipes have as much as they may have together
                    fcntl.fcntl(self._process.stdout, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self.busy = True
        assert self._said is not None
        self._said.truncate(0)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died at once: `receive` tells
            self._process.stdin.write(json.dumps(order).encode() + b"\n")

    def receive(self, path: Path) -> tuple[bytes, bytearray]:
        """The next message: its letter and content. VideoError if none comes in time, or none will."""
        letter, length = HEADER.unpack(self._take(HEADER.size, path))
        return letter, self._take(length, path)

    def _take(self, count: int, path: Path) -> bytearray:
        assert self._process is not None
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        deadline = time.monotonic() + self.timeout_s
        taken = bytearray(count)
        left = memoryview(taken)
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while left:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                self.kill()
                raise VideoError("timeout", f"{path}: the decoder gave nothing for {self.timeout_s:.0f} s and was stopped")
            received = os.readv(descriptor, [left])
            if not received:
                raise self._died(path)
            left = left[received:]
        return taken

    def _died(self, path: Path) -> VideoError | InternalError:
        """What a process that is gone died of: of a signal, for which a video may be the reason, or of an error."""
        assert self._process is not None
        assert self._said is not None
        code = self._process.wait()
        size = self._said.seek(0, os.SEEK_END)
        self._said.seek(max(0, size - MAX_SAID))
        said = self._said.read().decode(errors="replace").strip()
        self.kill()
        if code < 0:
            return VideoError("crashed", f"{path}: the decoder's process died of it ({signal.Signals(-code).name})")
        cause = f"exit code {code}" + (f", {said.splitlines()[-1]}" if said else "")
        return InternalError(f"{path}: the decoder's process ended by itself ({cause})", cause=cause, details=said)

    def stop(self) -> None:
        """Tell the process to end, from any thread; whoever waits for it gets a VideoError("crashed")."""
        process = self._process
        if process is not None and self._owner == os.getpid():
            self.busy = True  # so that the next order starts another, even if this one is still dying
            process.kill()

    def kill(self) -> None:
        """End the process, if there is one; the next video starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
            assert self._said is not None
            self._said.close()
        self._process = self._said = None
        self.busy = False


class IsolatedVideo(SinglePassVideo):
    """`PyAVVideo`, read by another process: iterate for uint8 RGB frames [crop, crop, 3], then `facts` is there."""

    def __init__(self, decoder: DecoderProcess, path: Path, sampling: Sampling) -> None:
        super().__init__(path, sampling)
        self.decoder = decoder

    def __iter__(self) -> Iterator[np.ndarray]:
        crop = self.sampling.geometry.crop
        self.decoder.ask({"path": os.fspath(self.path.absolute()), "sampling": dataclasses.asdict(self.sampling)})
        finished = False
        try:
            while True:
                letter, content = self.decoder.receive(self.path)
                if letter == b"F":
                    yield np.frombuffer(content, dtype=np.uint8).reshape(crop, crop, 3)
                    continue
                if letter != b"D":
                    raise _error(letter, content)
                self._facts = VideoFacts(**json.loads(content))
                finished = True
                self.decoder.busy = False
                return
        finally:
            # A process that met a bad video may be short of memory or worse, and one that was left in the middle of a
            # video still has frames to send: neither is trusted with the next.
            if not finished:
                self.decoder.kill()


def _error(letter: bytes, content: bytearray) -> VideoError | InternalError:
    """The error that a process sent."""
    return VideoError(**json.loads(content)) if letter == b"E" else InternalError(**json.loads(content))


def _serve(orders: BinaryIO, answers: BinaryIO, memory_bytes: int) -> None:
    def send(letter: bytes, content: bytes | memoryview) -> None:
        answers.write(HEADER.pack(letter, len(content)))
        answers.write(content)

    loaded: tuple[str, ...] = ()
    for line in orders:
        order: dict[str, Any] = json.loads(line)
        path = Path(order["path"])
        try:
            if "limits" in order:
                facts: VideoFacts | Probe = probe_video(path, Limits(**order["limits"]))
            else:
                sampling = _sampling(order["sampling"])
                if sampling.backends != loaded:
                    loaded = sampling.backends
                    _load(loaded, memory_bytes)
                video = open_sampled(path, sampling)
                for frame in video:
                    send(b"F", frame.data.cast("B"))
                facts = video.facts
            send(b"D", json.dumps(dataclasses.asdict(facts)).encode())
        except VideoError as error:
            send(b"E", json.dumps({"reason": error.reason, "message": str(error)}).encode())
        except MemoryError:
            message = f"{path}: decoding it needs more memory than is allowed"
            send(b"E", json.dumps({"reason": "too_large", "message": message}).encode())
        except BrokenPipeError:  # whoever asked does not listen any more
            raise
        except Exception as error:  # noqa: BLE001  (the boundary of the process: whoever asked is told of it)
            where = traceback.extract_tb(error.__traceback__)[-1]
            cause = f"{type(error).__name__} in {where.name}, {os.path.basename(where.filename)} line {where.lineno}"
            message = f"{path}: an error in the program that decodes ({type(error).__name__}: {error})"
            details = "".join(traceback.format_exception(error))
            send(b"I", json.dumps({"message": message, "cause": cause, "details": details}).encode())
        answers.flush()


def _sampling(value: dict[str, Any]) -> Sampling:
    nested = {"geometry": Geometry(**value["geometry"]), "limits": Limits(**value["limits"])}
    return Sampling(**{**value, **nested, "backends": tuple(value["backends"])})


def _load(backends: tuple[str, ...], memory_bytes: int) -> None:
    """Import the decoders, then limit what may be taken beyond that (a GPU's driver maps more than there is: no limit)."""
    _, allowed = resource.getrlimit(resource.RLIMIT_AS)  # by whoever started all this: it stays
    resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))
    for backend in backends:
        missing_reason(backend)
    if "torchcodec-cuda" not in backends:
        limit = memory_bytes + _address_space()
        if allowed == resource.RLIM_INFINITY or limit < allowed:
            resource.setrlimit(resource.RLIMIT_AS, (limit, allowed))


def _address_space() -> int:
    """Bytes that this process has mapped; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except FileNotFoundError:
        return 0


def _end_with_parent() -> None:
    """End this process when its orders can no longer come, even if a decoder hangs at that moment."""
    poll = select.poll()
    poll.register(0, select.POLLHUP)
    poll.poll()
    os._exit(0)


if __name__ == "__main__":
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process when it goes
    threading.Thread(target=_end_with_parent, daemon=True).start()
    answering = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get among the answers
    _load((), int(sys.argv[1]))
    with contextlib.suppress(BrokenPipeError):
        _serve(sys.stdin.buffer, answering, int(sys.argv[1]))
    os._exit(0)  # nothing is left to flush, and to whom
