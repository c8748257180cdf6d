"""Start programs that import PyTorch, without the seconds that each import costs: they are forked from a warm process.

`start` and `run` take a command as `subprocess.Popen` and `subprocess.run` do: `[sys.executable, "-m", MODULE, …]` or
`[sys.executable, "-c", CODE, …]`. The command is a process of its own, with its own environment, streams, signals and
session, and a signal ends it for real. The warm process is a fresh interpreter that has imported what commands import; it
has computed nothing but the weights random:0 and has no other thread. There is one for all test processes of a run of
pytest. A command whose environment changes what an interpreter reads while it starts is started by `subprocess`, and so are
all where a process cannot be forked safely (macOS). Tests of the start itself use `subprocess`. `FORKING` in a command's
environment does the same for the workers that it has Dask start and for the trainings that it starts side by side,
`FORKED_DECODERS` for the processes in which it reads videos; `forked_workers` and `forked_decoders` do it for workers and
such processes that the tests' own process starts.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import io
import json
import logging
import multiprocessing
import os
import runpy
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import types
import warnings
from collections.abc import Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any
from unittest import mock

import dask
import distributed

# Not the commands' own module, which each command runs anew as `__main__`.
IMPORTED = ("torch", "torch._dynamo", "torchvision", "av", "h5py", "nltk", "tyro", "pydantic", "rich.live", "requests",
            "distributed", "excl.workflows.steps", "excl.pipeline.extract", "excl.pipeline.decode", "excl.pipeline.train",
            "excl.pipeline.evaluate", "excl.pipeline.exchange.export", "excl.models.i3d.extractor",
            "excl.models.i3d.weights", "excl.workflows.cluster.dask_cluster")  # fmt: skip
# What Dask's workers import: the forkserver has no more.
BY_WORKERS = ("torch", "distributed", "excl.pipeline.extract", "excl.models.i3d.extractor", "excl.models.i3d.weights",
              "excl.workflows.cluster.dask_cluster")  # fmt: skip
READ_AT_THE_START = ("PYTHON", "OMP_", "MKL_", "KMP_", "GOMP_", "OPENBLAS_", "LD_", "TORCH", "CUDA_", "MALLOC_")
# In a command's environment: the workers that it has Dask start are forked, and the trainings that it starts side by side.
FORKING = {"DASK_DISTRIBUTED__WORKER__MULTIPROCESSING_METHOD": "forkserver"}
# With this, the processes in which a command reads videos are forked, too.
FORKED_DECODERS = {"TEST_FORKED_DECODERS": "1"}
ENVIRONMENT = dict(os.environ)  # before the first test
# The process with which the warm one ends: pytest, and not the one of its test processes that happens to start it.
OWNER = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()


class Popen:
    """A command that runs: what tests need of `subprocess.Popen`."""

    def __init__(
        self,
        command: list[str],
        *,
        stdin: Any = None,
        stdout: Any = None,
        stderr: Any = None,
        cwd: Any = None,
        env: dict[str, str] | None = None,
        text: bool = False,
        bufsize: int = -1,
        start_new_session: bool = False,
        process_group: int | None = None,
    ) -> None:
        self.args = command
        self.returncode: int | None = None
        streams: list[int] = []
        descriptors_of_the_command: list[int] = []
        files: list[Any] = []
        for number, stream in enumerate((stdin, stdout, stderr)):
            file, descriptor = None, number
            if stream == subprocess.PIPE:
                ours, descriptor = os.pipe() if number else os.pipe()[::-1]
                descriptors_of_the_command.append(descriptor)
                mode = ("w" if number == 0 else "r") + ("" if text else "b")
                file = open(ours, mode, buffering=bufsize)  # noqa: SIM115
            elif stream == subprocess.DEVNULL:
                descriptor = os.open(os.devnull, os.O_RDWR)
                descriptors_of_the_command.append(descriptor)
            elif stream == subprocess.STDOUT:
                descriptor = streams[1]
            elif stream is not None:
                descriptor = stream if isinstance(stream, int) else stream.fileno()
            files.append(file)
            streams.append(descriptor)
        self.stdin, self.stdout, self.stderr = files
        ignored = [number for number in signal.valid_signals() if signal.getsignal(number) == signal.SIG_IGN]
        request = {
            "arguments": command[1:],
            "environment": dict(os.environ if env is None else env),
            "folder": os.fspath(cwd or os.getcwd()),
            "session": start_new_session,
            "group": process_group,
            "ignored": [number for number in ignored if number not in {signal.SIGPIPE, getattr(signal, "SIGXFSZ", None)}],
        }
        self._status = _connect()
        content = json.dumps(request).encode()
        socket.send_fds(self._status, [len(content).to_bytes(4, "big")], streams)
        self._status.sendall(content)
        for descriptor in descriptors_of_the_command:
            os.close(descriptor)
        self._answers = self._status.makefile("r")
        self.pid = int(self._answers.readline())
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """The exit status if the command has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, negative for a signal. Raises `subprocess.TimeoutExpired`."""
        with self._lock:
            if self.returncode is None:
                with selectors.DefaultSelector() as selector:
                    selector.register(self._status, selectors.EVENT_READ)
                    if not selector.select(timeout):
                        raise subprocess.TimeoutExpired(self.args, timeout or 0)
                self.returncode = int(self._answers.readline())
                self._answers.close()
                self._status.close()
            return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal unless the command has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask the command to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the command."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[Any, Any]:
        """What the command writes until it has ended."""
        deadline = None if timeout is None else time.monotonic() + timeout
        if self.stdin:
            self.stdin.close()
        content: dict[int, Any] = {}

        def read(number: int, file: Any) -> None:
            content[number] = file.read()
            file.close()

        pipes = [(number, file) for number, file in enumerate((self.stdout, self.stderr)) if file and not file.closed]
        readers = [threading.Thread(target=read, args=pipe, daemon=True) for pipe in pipes]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(None if deadline is None else max(0, deadline - time.monotonic()))
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.wait(None if deadline is None else max(0, deadline - time.monotonic()))
        return content.get(0), content.get(1)

    def __enter__(self) -> Popen:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self.stdin, self.stdout, self.stderr):
            if file:
                file.close()
        self.wait()


def start(command: list[str], **how: Any) -> Any:
    """A command as a process: `Popen`, or `subprocess.Popen` where that would not be the same."""
    environment = how.get("env") or os.environ
    if not hasattr(os, "pidfd_open") or _at_the_start(environment) != _at_the_start(ENVIRONMENT):
        return subprocess.Popen(command, **how)
    return Popen(command, **how)


def run(
    command: list[str],
    *,
    capture_output: bool = False,
    check: bool = False,
    timeout: float | None = None,
    **how: Any,
) -> subprocess.CompletedProcess[Any]:
    """What `subprocess.run` does."""
    if capture_output:
        how |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = start(command, **how)
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    except BaseException:
        process.kill()
        raise
    done = subprocess.CompletedProcess(command, process.returncode, stdout, stderr)
    if check:
        done.check_returncode()
    return done


def warm_forkserver() -> None:
    """Let the processes of `multiprocessing`'s forkserver be forked from one that has imported what workers import.

    It outlives the test that needs it first, whose PYTHONPATH it therefore does not get.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*BY_WORKERS])
    process = context.Process(target=int)
    with mock.patch.dict(os.environ):
        os.environ.pop("PYTHONPATH", None)
        process.start()
    process.join()


@contextlib.contextmanager
def forked_workers() -> Iterator[None]:
    """Meanwhile Dask forks its workers on this machine, with this environment, from a process that has imported all.

    That is one of Dask's settings; by default each is a fresh interpreter. They have that process's number of threads.
    """
    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        distributed.utils.get_mp_context()  # which would have less imported, but only the first time
        warm_forkserver()
        with dask.config.set({"distributed.nanny.environ": {"PYTHONPATH": "", **os.environ}}):
            yield


@contextlib.contextmanager
def forked_decoders() -> Iterator[None]:
    """Meanwhile the processes that read videos for this process are forked from the warm one."""
    with mock.patch("excl.datasets.video.decoder_process.subprocess", _subprocess_that_forks()):
        yield


def _subprocess_that_forks() -> types.SimpleNamespace:
    """A stand-in for the module `subprocess` whose `Popen` is `start`."""
    return types.SimpleNamespace(**{**vars(subprocess), "Popen": start})


def _at_the_start(environment: Any) -> dict[str, str]:
    """The part of an environment that an interpreter and its libraries read once, and that is not read again here."""
    later = {"PYTHONPATH", "PYTHONUNBUFFERED", "TORCHINDUCTOR_CACHE_DIR"}  # PyTorch itself sets the last one
    return {name: value for name, value in environment.items() if name.startswith(READ_AT_THE_START) and name not in later}


def warm_process() -> str:
    """The address of the warm process, which is started if none of the test processes has done so, and ends with them."""
    address = f"\0excl-warm-{os.getuid()}-{os.stat('/proc/self/ns/pid').st_ino}-{OWNER}"
    with socket.socket(socket.AF_UNIX) as listener:
        try:
            listener.bind(address)
        except OSError:
            return address  # it is there, or about to be
        listener.listen(128)
        _started.append(
            subprocess.Popen(
                [sys.executable, __file__, str(OWNER), str(listener.fileno())],
                env=ENVIRONMENT,
                pass_fds=[listener.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C and what a test does to its own session does not reach it
            )
        )
    return address


_started: list[Any] = []  # the warm process, in the process that started it


def _connect() -> socket.socket:
    """Connect to the warm process, which another test process may be about to start."""
    deadline = time.monotonic() + 60
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(warm_process())
        except ConnectionRefusedError:
            connection.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return connection


def write_forking_python(path: Path) -> None:
    """Write a program to be called as `python` is: a fork does what it is to do, and ends when the program is killed.

    The fork has a session of its own, to which the program passes SIGTERM on. For scripts of jobs, whose environment has
    nothing that an interpreter reads only while it starts.
    """
    path.write_text(FORKING_PYTHON.format(python=sys.executable, address=warm_process()))
    path.chmod(0o755)


FORKING_PYTHON = """#!{python} -IS
import json, os, signal, socket, sys
request = {{"arguments": sys.argv[1:], "environment": dict(os.environ), "folder": os.getcwd(),
           "session": True, "group": None, "ignored": [], "ends with who asks": True}}
content = json.dumps(request).encode()
status = socket.socket(socket.AF_UNIX)
status.connect({address!r})
socket.send_fds(status, [len(content).to_bytes(4, "big")], [0, 1, 2])
status.sendall(content)
answers = status.makefile()
pid = int(answers.readline())
signal.signal(signal.SIGTERM, lambda *_: os.killpg(pid, signal.SIGTERM))
exit_code = int(answers.readline())
sys.exit(exit_code if exit_code >= 0 else 128 - exit_code)
"""


class _WarmProcess:
    """The warm process as it is in itself: it forks commands until its owner has ended."""

    def __init__(self, listener: socket.socket, owner: int) -> None:
        self._listener, self._owner = listener, owner
        self._running: dict[int, tuple[int, socket.socket]] = {}  # by the descriptor of a command's process
        self._selector = selectors.DefaultSelector()
        for waited_for in (self._listener, self._owner):
            self._selector.register(waited_for, selectors.EVENT_READ)

    def serve(self) -> tuple[dict[str, Any], list[int]] | None:
        """Start what is asked for, and tell how it ended. Returns in each command's process, and with None at the end."""
        while True:
            for key, _ in self._selector.select():
                if key.fd == self._owner:
                    for pid, _ in self._running.values():
                        os.kill(pid, signal.SIGKILL)
                    return None
                if key.fileobj is self._listener:
                    if task := self._fork():
                        return task
                elif isinstance(key.fileobj, socket.socket):
                    if key.fileobj.fileno() >= 0:  # and not a command that has ended just now
                        self._selector.unregister(key.fileobj)
                        _kill_session(key.data)
                else:
                    self._tell_end(key.fd)

    def _fork(self) -> tuple[dict[str, Any], list[int]] | None:
        """Start a command; returns in its process."""
        status = self._listener.accept()[0]
        _, user, _ = struct.unpack("3i", status.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
        if user != os.getuid():  # anybody can connect
            status.close()
            return None
        head, streams, _, _ = socket.recv_fds(status, 4, 3)
        size, content = int.from_bytes(head, "big"), b""
        while head and len(content) < size and (more := status.recv(size - len(content))):
            content += more
        whole = bool(head) and len(content) == size  # otherwise who asked has ended
        pid = os.fork() if whole else None
        if pid == 0:
            self._selector.close()
            for connection in (self._listener, status, *(other for _, other in self._running.values())):
                connection.close()
            for descriptor in (self._owner, *self._running):
                os.close(descriptor)
            return json.loads(content), streams
        for stream in streams:
            os.close(stream)
        if pid is None:
            status.close()
            return None
        with contextlib.suppress(OSError):
            status.sendall(b"%d\n" % pid)
        descriptor = os.pidfd_open(pid)
        self._running[descriptor] = pid, status
        self._selector.register(descriptor, selectors.EVENT_READ)
        if json.loads(content).get("ends with who asks"):
            self._selector.register(status, selectors.EVENT_READ, pid)
        return None

    def _tell_end(self, descriptor: int) -> None:
        pid, status = self._running.pop(descriptor)
        for ended in (descriptor, status):
            with contextlib.suppress(KeyError):
                self._selector.unregister(ended)
        os.close(descriptor)
        with contextlib.suppress(OSError), status:  # nobody may want to know any more
            status.sendall(b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def _kill_session(leader: int) -> None:
    """Kill a command and what it has started in its session, which it may not have begun yet."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        os.kill(leader, signal.SIGKILL)


def _become(request: dict[str, Any], streams: list[int]) -> None:
    """Make the process as a fresh interpreter is that has been started for a command."""
    if request["session"]:
        os.setsid()
    if request["group"] is not None:
        os.setpgid(0, request["group"])
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        with contextlib.suppress(OSError, ValueError):
            if number in request["ignored"] or number in {signal.SIGPIPE, getattr(signal, "SIGXFSZ", None)}:
                signal.signal(number, signal.SIG_IGN)
            else:
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    for place, descriptor in enumerate(streams):
        os.dup2(descriptor, place)
    for descriptor in streams:
        os.close(descriptor)
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # type: ignore[misc]  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # type: ignore[misc]  # noqa: SIM115
    raw = io.BufferedWriter(io.FileIO(2, "w", closefd=False))
    sys.stderr = sys.__stderr__ = io.TextIOWrapper(raw, errors="backslashreplace", line_buffering=True)  # type: ignore[misc]
    os.chdir(request["folder"])
    earlier = os.environ.get("PYTHONPATH", "")
    os.environ.clear()
    os.environ.update(request["environment"])
    if hasattr(time, "tzset"):
        time.tzset()
    importlib.import_module("numpy").random.seed()
    importlib.import_module("dask").config.refresh()
    if os.environ.get("PYTHONUNBUFFERED"):
        sys.stdout.reconfigure(write_through=True)
    _take_path(earlier, os.environ.get("PYTHONPATH", ""))
    if FORKING.items() <= os.environ.items():
        _fork_forkserver()
        mock.patch("excl.pipeline.sweep.jobs.subprocess", _subprocess_that_forks()).start()
    if FORKED_DECODERS.items() <= os.environ.items():
        mock.patch("excl.datasets.video.decoder_process.subprocess", _subprocess_that_forks()).start()


def _fork_forkserver() -> None:
    """Fork `multiprocessing`'s forkserver from this process, which has imported all, while it has no other thread yet."""
    forkserver = importlib.import_module("multiprocessing.forkserver")
    resource_tracker.ensure_running()

    def fork(_program: Any, arguments: list[str], descriptors: list[int]) -> int:
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(SystemExit):
                for descriptor in {int(name) for name in os.listdir("/proc/self/fd")} - {0, 1, 2, *descriptors}:
                    with contextlib.suppress(OSError):
                        os.close(descriptor)
                exec(arguments[-1])
            os._exit(0)
        return pid

    with mock.patch("multiprocessing.util.spawnv_passfds", fork):
        forkserver.set_forkserver_preload([])
        forkserver.ensure_running()


def _take_path(earlier: str, path: str) -> None:
    """Search for modules where the environment says so, and import `sitecustomize` if it is there, as the start does."""
    if path == earlier:
        return
    before = [os.path.abspath(folder) for folder in earlier.split(os.pathsep) if folder]
    sys.path[1:] = [
        *(os.path.abspath(folder) for folder in path.split(os.pathsep) if folder),
        *(folder for folder in sys.path[1:] if folder not in before),
    ]
    importlib.invalidate_caches()
    sys.modules.pop("sitecustomize", None)
    with contextlib.suppress(ModuleNotFoundError):
        importlib.import_module("sitecustomize")


def _execute(kind: str, program: str, arguments: list[str]) -> None:
    """Run a module or code as the interpreter does that is given it by -m or -c."""
    sys.orig_argv = [sys.executable, kind, program, *arguments]
    sys.argv[:] = [program if kind == "-m" else kind, *arguments]
    sys.path[0] = os.getcwd() if kind == "-m" else ""
    if kind == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
        return
    assert kind == "-c"
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    exec(compile(program, "<string>", "exec"), vars(main))


def _execute_to_the_end(kind: str, program: str, arguments: list[str]) -> None:
    """Run it, wait for its threads, call what it has registered for its exit, and end as the interpreter does.

    But for the end of all modules, which takes PyTorch's half a second.
    """
    try:
        _execute(kind, program, arguments)
        _end.status = 0
    except SystemExit as stop:
        _end.status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if not isinstance(stop.code, int | None):
            print(stop.code, file=sys.stderr)  # noqa: T201
    except BaseException as error:  # noqa: BLE001  (the boundary of the process)
        sys.excepthook(type(error), error, error.__traceback__)
        _end.status = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1


def _remember_formula_weights() -> None:
    """Compute I3D's weights random:0 once for all commands, in this thread: many take them, which costs each 0.6 s."""
    weights: Any = importlib.import_module("excl.models.i3d.weights")
    weights._formula_values = functools.cache(weights._formula_values)
    logging.disable()
    weights.load_weights("random:0")
    logging.disable(logging.NOTSET)


class _End:
    """What is called at the exit after all that was registered later: once there is a status, the process ends with it."""

    status: int | None = None

    def __call__(self) -> None:
        if self.status is None:
            return
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(BrokenPipeError, ValueError):
                stream.flush()
        if self.status < 0:
            signal.signal(-self.status, signal.SIG_DFL)
            os.kill(os.getpid(), -self.status)
        os._exit(self.status & 0xFF)


if __name__ == "__main__":
    _end = _End()
    atexit.register(_end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    OWNER = int(sys.argv[1])
    try:
        owner = os.pidfd_open(OWNER)
    except ProcessLookupError:  # the tests were stopped
        sys.exit(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in IMPORTED:
            importlib.import_module(module)
    _remember_formula_weights()
    own_folder = str(Path(__file__).parent)
    sys.path[:] = [sys.path[0], *(folder for folder in sys.path[1:] if folder != own_folder)]
    gc.collect()
    gc.freeze()  # what is there already is never looked through again, nor copied for that
    if task := _WarmProcess(socket.socket(fileno=int(sys.argv[2])), owner).serve():
        _become(*task)
        kind_of_program, program_text, *program_arguments = task[0]["arguments"]
        _execute_to_the_end(kind_of_program, program_text, program_arguments)
