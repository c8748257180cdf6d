"""Reading videos in another process, which may hang, crash or run out of memory and costs one video when it does.

`DecoderProcess` starts `python -m excl.datasets.video.decoder_process` and keeps it for many videos. The parent writes a
JSON line a video to its standard input; the child answers on its standard output with messages, a letter and a length
(big-endian, 4 bytes) before each: F, the bytes of a frame; D, at the end, the facts or the probe as JSON; E, the reason and
the message of a VideoError as JSON; I, what an InternalError says as JSON. The memory that the child may take beyond its
own program is limited. A parent that waits longer than allowed for the next message kills the child, even if that stops in
the middle of a message, where a `multiprocessing.connection` would wait for ever. What the child writes to its standard
error goes to a file without a name, whose end is reported if the child dies: a library's complaints do not reach the
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
from excl.datasets.video.container import Limits, out_of_memory
from excl.datasets.video.errors import InternalError, VideoError
from excl.datasets.video.geometry import Geometry
from excl.datasets.video.probe import Probe, probe_video
from excl.datasets.video.sampling import Sampling, Video, VideoFacts

HEADER = struct.Struct(">cI")
MAX_STDERR_BYTES = 4000  # of what a process wrote before it died
ERRORS: dict[bytes, type[VideoError] | type[InternalError]] = {b"E": VideoError, b"I": InternalError}
PIPE_BYTES = 1 << 20  # as much as Linux lets anybody have; some frames, where the usual 64 KiB are half of one


class DecoderProcess:
    """A process that reads videos, one after another; started when first needed and again after it died.

    `timeout_s` bounds the wait for the next frame, `memory_bytes` what videos may take of the child's address space.
    Only one thread may use it, but any may `stop` it.
    """

    def __init__(self, *, timeout_s: float, memory_bytes: int) -> None:
        self.timeout_s = timeout_s
        self.command = [sys.executable, "-m", "excl.datasets.video.decoder_process", str(memory_bytes)]
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr: BinaryIO | None = None
        self._owner = os.getpid()
        self.busy = False  # from an order until its answer has come to the end

    def read(self, path: Path, sampling: Sampling) -> IsolatedVideo:
        """Return one pass over a video, read by the process."""
        return IsolatedVideo(self, path, sampling)

    def probe(self, path: Path, limits: Limits) -> Probe:
        """Do what `probe_video` does, in the process."""
        ((_, content),) = self.answers(path, limits=dataclasses.asdict(limits))
        value = json.loads(content)
        return Probe(**{**value, "notes": tuple(value["notes"])})

    def answers(self, path: Path, **order: Any) -> Iterator[tuple[bytes, bytearray]]:
        """Send an order and yield the messages that answer it, of which D is the last; raises the error if that comes."""
        self.ask({"path": os.fspath(path.absolute()), **order})
        letter = b""
        try:
            while letter != b"D":
                letter, content = self.receive(path)
                if letter in ERRORS:
                    raise ERRORS[letter](**json.loads(content))
                if letter == b"D":
                    self.busy = False
                yield letter, content
        finally:
            # A process that met a bad video may be short of memory or worse, and one that was left in the middle of a
            # video still has frames to send: neither is trusted with the next.
            if letter != b"D":
                self.kill()

    def ask(self, order: dict[str, Any]) -> None:
        """Send an order: the path of a video and how to sample it, or the limits to probe it with."""
        if self._owner != os.getpid():  # a fork: the process belongs to the parent
            self._process, self._stderr, self._owner = None, None, os.getpid()
        if self._process is None or self._process.poll() is not None or self.busy:
            self.kill()
            self._stderr = tempfile.TemporaryFile("ab+", buffering=0)  # noqa: SIM115  (appended to, so that it can be emptied)
            self._process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, bufsize=0, process_group=0
            )  # in a group of its own, where Ctrl-C on the terminal does not reach it
            if sys.platform == "linux":
                assert self._process.stdout is not None
                with contextlib.suppress(PermissionError):  # the user's pipes have as much as they may have together
                    fcntl.fcntl(self._process.stdout, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self.busy = True
        assert self._stderr is not None
        self._stderr.truncate(0)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died at once: `receive` finds out
            self._process.stdin.write(json.dumps(order).encode() + b"\n")

    def receive(self, path: Path) -> tuple[bytes, bytearray]:
        """Return the letter and content of the next message; raises VideoError if none comes in time, or none will."""
        letter, length = HEADER.unpack(self._take(HEADER.size, path))
        return letter, self._take(length, path)

    def _take(self, count: int, path: Path) -> bytearray:
        assert self._process is not None
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        deadline = time.monotonic() + self.timeout_s
        content = bytearray(count)
        remaining = memoryview(content)
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while remaining:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                self.kill()
                raise VideoError("timeout", f"{path}: the decoder gave nothing for {self.timeout_s:.0f} s and was stopped")
            num_received = os.readv(descriptor, [remaining])
            if not num_received:
                raise self._death(path)
            remaining = remaining[num_received:]
        return content

    def _death(self, path: Path) -> VideoError | InternalError:
        """Return the error for a process that is gone: a signal may be the video's fault, an exit is not."""
        assert self._process is not None
        assert self._stderr is not None
        code = self._process.wait()
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - MAX_STDERR_BYTES))
        details = self._stderr.read().decode(errors="replace").strip()
        self.kill()
        if code < 0:
            return VideoError("crashed", f"{path}: the decoder's process died of it ({signal.Signals(-code).name})")
        cause = f"exit code {code}" + (f", {details.splitlines()[-1]}" if details else "")
        return InternalError(f"{path}: the decoder's process ended by itself ({cause})", cause=cause, details=details)

    def stop(self) -> None:
        """Tell the process to end, from any thread; a thread that waits for it gets a VideoError("crashed")."""
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
            assert self._stderr is not None
            self._stderr.close()
        self._process = self._stderr = None
        self.busy = False


class IsolatedVideo(Video):
    """A `Video` read by another process."""

    def __init__(self, decoder: DecoderProcess, path: Path, sampling: Sampling) -> None:
        self.decoder, self.path, self.sampling = decoder, path, sampling

    def __iter__(self) -> Iterator[np.ndarray]:
        crop = self.sampling.geometry.crop
        for letter, content in self.decoder.answers(self.path, sampling=dataclasses.asdict(self.sampling)):
            if letter == b"F":
                yield np.frombuffer(content, dtype=np.uint8).reshape(crop, crop, 3)
            else:
                self.facts = VideoFacts(**json.loads(content))


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
        except (VideoError, MemoryError) as error:
            refusal = error if isinstance(error, VideoError) else out_of_memory(path)
            send(b"E", json.dumps({"reason": refusal.reason, "message": str(refusal)}).encode())
        except BrokenPipeError:  # the parent does not listen any more
            raise
        except Exception as error:  # noqa: BLE001  (the boundary of the process: the parent reports it)
            raised = traceback.extract_tb(error.__traceback__)[-1]
            cause = f"{type(error).__name__} in {raised.name}, {os.path.basename(raised.filename)} line {raised.lineno}"
            message = f"{path}: an error in the program that decodes ({type(error).__name__}: {error})"
            details = "".join(traceback.format_exception(error))
            send(b"I", json.dumps({"message": message, "cause": cause, "details": details}).encode())
        answers.flush()


def _sampling(value: dict[str, Any]) -> Sampling:
    nested = {"geometry": Geometry(**value["geometry"]), "limits": Limits(**value["limits"])}
    return Sampling(**{**value, **nested, "backends": tuple(value["backends"])})


def _load(backends: tuple[str, ...], memory_bytes: int) -> None:
    """Import the decoders, then limit what may be taken beyond that (a GPU's driver maps more than there is: no limit)."""
    _, allowed = resource.getrlimit(resource.RLIMIT_AS)  # a cluster's scheduler may have set it: it stays
    resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))
    for backend in backends:
        missing_reason(backend)
    if "torchcodec-cuda" not in backends:
        limit = memory_bytes + _address_space()
        if allowed == resource.RLIM_INFINITY or limit < allowed:
            resource.setrlimit(resource.RLIMIT_AS, (limit, allowed))


def _address_space() -> int:
    """Return how many bytes this process has mapped; 0 where the system does not say."""
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
