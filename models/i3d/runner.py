"""The network on a device: it takes clips from several threads and computes those of equal shape together.

Arithmetic bounds the work: 1.74 G multiply-adds a frame of 224 x 224. On a CPU memory comes next, and most of that
is memory that the C library gives back after every layer and asks for again page by page (`keep_freed_memory`). On a GPU
frames travel as bytes from pinned memory on a stream of their own while the batch before is computed, and are normalised
there.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import math
import sys
import threading
import time
from collections import Counter, deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from excl.models.i3d.compilation import Compile, Compiler
from excl.models.i3d.device_checks import Precision, check_precision
from excl.models.i3d.weights import Weights
from excl.models.lazy_module import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from excl.models.i3d import network
else:
    torch = LazyModule("torch")
    network = LazyModule("excl.models.i3d.network")

log = logging.getLogger(__name__)

# How far features may differ from float32 on random weights and noise, relative to the largest. Measured on a CPU: 6e-7 and
# 7e-3 (docs/features.md); beyond these bounds the arithmetic is not what it says.
TOLERANCE = {"float32": 2e-5, "tf32": 1e-2, "bfloat16": 3e-2}
POLL_S = 2e-4
SAME_SHAPES_BEFORE_TUNING = 3  # cuDNN tries its algorithms only for shapes that come again and again


# cuDNN's settings are those of the process, and are read when work is enqueued: one runner at a time does that.
_choosing = threading.Lock()


@dataclass
class Usage:
    """The work of a runner: frames given to the network, the seconds it was busy, and from when to when (monotonic)."""

    frames: int = 0
    flops: int = 0
    busy_s: float = 0.0
    first_s: float | None = None
    last_s: float = 0.0

    @property
    def wall_s(self) -> float:
        """The seconds from the first frames to the last."""
        return 0.0 if self.first_s is None else self.last_s - self.first_s

    @property
    def waited(self) -> float:
        """The share of that time in which there was nothing to compute, from 0 to 1."""
        return max(0.0, 1 - self.busy_s / self.wall_s) if self.wall_s else 0.0

    def summary(self) -> str:
        """Return one line for people."""
        if self.first_s is None:
            return "I3D had nothing to do"
        return (
            f"I3D: {self.frames} frames in {self.busy_s:.1f} s of computing, {self.flops / self.busy_s / 1e12:.2f} TFLOP/s; "
            f"it waited for frames {self.waited:.0%} of {self.wall_s:.1f} s"
        )


@dataclass(eq=False)
class _Job:
    clips: np.ndarray
    result: Future[Tensor]


class Runner:
    """A runner of I3D. `submit` from any thread; clips of equal shape that wait together are computed together.

    Together they have at most the largest tensor of `batch_frames` frames of 224 x 224 pixels; with 0 each job runs alone.

    Raises ValueError for a precision that the device lacks, or that this machine computes wrongly.
    """

    def __init__(
        self,
        weights: Weights,
        *,
        device: torch.device,
        precision: Precision = "float32",
        stride: int = 8,
        batch_frames: float = 0,
        compile: Compile = "never",
    ) -> None:
        check_precision(precision, device)
        self.device, self.precision, self.stride, self.batch_frames = device, precision, stride, batch_frames
        self.usage = Usage()
        self._dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        self._network = network.prepare(weights.network(), device, self._dtype, compiled=compile == "always")
        if precision == "bfloat16" and device.type == "cpu" and not network.has_onednn(self._dtype):
            log.warning("bfloat16 takes far longer than float32 on this CPU, which has no instructions for it")
        self._compiler = Compiler(tolerance=TOLERANCE[precision]) if compile == "always" else None
        self._jobs: deque[_Job] = deque()
        self._changing = threading.Lock()
        self._seen: Counter[tuple[int, ...]] = Counter()
        self._thread = ThreadPoolExecutor(1, "excl-i3d", initializer=_use_device, initargs=(device,))
        self._copying = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._flying: deque[tuple[Any, Any, Tensor, list[_Job]]] = deque()
        if precision != "float32" or device.type != "cpu":
            self.check(weights)

    def submit(self, clips: np.ndarray) -> Future[Tensor]:
        """Return the steps of uint8 [B, T, H, W, 3], as `I3D.steps` does: float32 [B, T' * 8 / stride, 1024] on the CPU."""
        job = _Job(clips, Future())
        with self._changing:
            self._jobs.append(job)
        self._thread.submit(self._work)
        return job.result

    def take_usage(self) -> Usage:
        """Return the usage since the last call."""
        usage, self.usage = self.usage, Usage()
        return usage

    def check(self, weights: Weights) -> None:
        """Compare a small clip with the CPU's float32; ValueError if they differ by more than the precision allows.

        Some versions of cuDNN and of PyTorch had wrong three-dimensional convolutions.
        """
        noise = np.random.default_rng(0).integers(0, 256, (1, 24 - self.stride, 48, 48, 3), dtype=np.uint8)
        with torch.no_grad():
            x = _normalise(torch.from_numpy(noise), torch.float32)
            expected = weights.network().steps(x, stride=self.stride)
            steps = self._compute(torch.from_numpy(noise).to(self.device), tuned=False, compiled=False).cpu()
        error = float((steps - expected).abs().max() / expected.abs().max())
        log.info("I3D on %s in %s: relative error %.1e against float32 on the CPU", self.device, self.precision, error)
        if not error <= TOLERANCE[self.precision]:
            raise ValueError(
                f"I3D on {self.device} in {self.precision} is off by {error:.1e}, allowed is "
                f"{TOLERANCE[self.precision]:.0e}: PyTorch {torch.__version__} with cuDNN "
                f"{torch.backends.cudnn.version()} computes it wrongly here. "
                "Take another version of PyTorch, another precision, or the device cpu."
            )

    def _work(self) -> None:
        """Compute the jobs that wait, as many at once as fit together. The runner's thread calls this once for every job.

        A call whose job was taken together with an earlier one finds nothing to take. A batch in flight on a GPU lands when
        the next is on its way, or when there is no next.
        """
        while (jobs := self._take()) and not self._compute_together(jobs):
            pass
        while self._flying and (len(self._flying) > 1 or not self._jobs):
            if len(self._flying) == 1 and not _is_over(self._flying[0][1]):
                time.sleep(POLL_S)  # until it has landed, or something new is to be copied meanwhile
            else:
                self._land()

    def _compute_together(self, jobs: list[_Job]) -> bool:
        """Compute jobs and return True; False if the device lacks the memory for so many.

        Then they wait again, and no more than half as much is taken at once from now on.
        """
        try:
            with torch.no_grad():
                self._run(jobs)
            return True
        except torch.OutOfMemoryError as error:
            shortage = str(error).splitlines()[0]
        except Exception as error:  # noqa: BLE001  (it belongs to those who submitted the jobs)
            for job in jobs:
                if not job.result.done():
                    job.result.set_exception(error)
            return True
        # Outside the handler, where the error's frames no longer hold the tensors of the layers that were computed.
        if self._flying:
            while self._flying:
                self._land()
        elif len(jobs) == 1:
            frames = jobs[0].clips.shape[0] * jobs[0].clips.shape[1]
            problem = f"{self.device} has not enough memory for {frames} frames at once; give a smaller --chunk-frames"
            jobs[0].result.set_exception(ValueError(f"{problem} ({shortage})"))
            return True
        if len(jobs) > 1:
            self.batch_frames = sum(map(self._cost, jobs)) / 2
        with self._changing:
            self._jobs.extendleft(reversed(jobs))
        return False

    def _take(self) -> list[_Job]:
        with self._changing:
            if not self._jobs:
                return []
            jobs = [self._jobs.popleft()]
            room = self.batch_frames - self._cost(jobs[0])
            for job in list(self._jobs):
                if job.clips.shape[1:] == jobs[0].clips.shape[1:] and self._cost(job) <= room:
                    room -= self._cost(job)
                    self._jobs.remove(job)
                    jobs.append(job)
        return jobs

    def _cost(self, job: _Job) -> float:
        """Return the size of the job's largest tensor, in frames of 224 x 224 pixels at a stride of 8."""
        clips, num_frames, height, width, _ = job.clips.shape
        return clips * num_frames * (height * width / 224**2) * (2 if self.stride == 1 else 1)

    def _run(self, jobs: list[_Job]) -> None:
        shape = (sum(len(job.clips) for job in jobs), *jobs[0].clips.shape[1:])
        self.usage.first_s = self.usage.first_s or time.monotonic()
        self._seen[shape] += 1
        tuned = self._seen[shape] > SAME_SHAPES_BEFORE_TUNING
        frames = torch.empty(shape, dtype=torch.uint8, pin_memory=self._copying is not None)
        np.concatenate([job.clips for job in jobs], out=frames.numpy())
        if self._copying is None:
            started = time.monotonic()
            steps = self._compute(frames.to(self.device), tuned=tuned).cpu()
            self._done(jobs, steps, shape, busy_s=time.monotonic() - started)
            return
        with torch.cuda.stream(self._copying):
            x = frames.to(self.device, non_blocking=True)
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self._copying)
        x.record_stream(computing)
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        before.record(computing)
        steps = self._compute(x, tuned=tuned)
        landing = torch.empty(steps.shape, dtype=steps.dtype, pin_memory=True)
        landing.copy_(steps, non_blocking=True)
        after.record(computing)
        self._flying.append((before, after, landing, jobs))

    def _land(self) -> None:
        before, after, steps, jobs = self._flying.popleft()
        try:
            after.synchronize()
            shape = (len(steps), *jobs[0].clips.shape[1:])
            self._done(jobs, steps, shape, busy_s=before.elapsed_time(after) / 1000)
        except Exception as error:  # noqa: BLE001  (an error of the device comes when it is waited for)
            for job in jobs:
                job.result.set_exception(error)

    def _compute(self, frames: Tensor, *, tuned: bool, compiled: bool = True) -> Tensor:
        """Return the steps of uint8 [B, T, H, W, 3] on the device."""

        def steps(frames: Tensor) -> Tensor:
            return self._network.steps(_normalise(frames, self._dtype), stride=self.stride)

        allow_tf32 = self.precision == "tf32"
        cudnn_flags = torch.backends.cudnn.flags(enabled=True, benchmark=tuned, deterministic=False, allow_tf32=allow_tf32)
        with contextlib.ExitStack() as settings:
            if self._copying is not None:
                settings.enter_context(_choosing)
                settings.enter_context(cudnn_flags)
            return self._compiler(steps, frames) if compiled and self._compiler else steps(frames)

    def _done(self, jobs: list[_Job], steps: Tensor, shape: tuple[int, ...], *, busy_s: float) -> None:
        self.usage.frames += shape[0] * shape[1]
        self.usage.flops += shape[0] * flops_of_clip(shape[1], shape[2], self.stride)
        self.usage.busy_s += busy_s
        self.usage.last_s = time.monotonic()
        begin = 0
        for job in jobs:
            job.result.set_result(steps[begin : begin + len(job.clips)])
            begin += len(job.clips)


def _use_device(device: torch.device) -> None:
    """Make pinned memory and events of this thread belong to the device, of several."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def _is_over(event: torch.cuda.Event) -> bool:
    try:
        return event.query()
    except RuntimeError:  # of the device: it comes again, and is reported, when the event is waited for
        return True


def _normalise(frames: Tensor, dtype: torch.dtype) -> Tensor:
    """Return uint8 [B, T, H, W, 3] as the network's input: [B, 3, T, H, W] in [-1, 1], channels last in memory."""
    return frames.permute(0, 4, 1, 2, 3).float().div_(127.5).sub_(1).to(dtype)


@functools.cache
def flops_of_clip(num_frames: int, size: int, stride: int = 8) -> int:
    """Count floating-point operations (two a multiply-add) of the network's convolutions over a clip of size x size pixels.

    They are counted by the sizes of the maps: to run the network on PyTorch's meta device costs seconds the first time.
    """
    with torch.device("meta"):
        layers = network.I3D().layers()
    clips, shape, flops = 1, (num_frames, size, size), 0
    for name, layer in layers:
        if stride < network.FRAMES_BEFORE_HALVING.get(name, 0):
            clips, shape = 2 * clips, (shape[0] - 1, *shape[1:])
        shape = network.shape_after(layer, shape)
        weights = sum(part.conv3d.weight.numel() for part in layer.modules() if isinstance(part, network.Unit))
        flops += 2 * clips * math.prod(shape) * weights
    return flops


def keep_freed_memory() -> None:
    """Let this process keep memory that it frees, instead of asking the system for every tensor's pages again.

    On a CPU that makes the network 1.5 times as fast. It is a setting of glibc for the whole process, so commands make
    it and the library does not; elsewhere than on Linux with glibc nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_max, arena_max = -1, -4, -8  # as <malloc.h> numbers them
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_max, 0)
        mallopt(arena_max, 1)  # memory that another thread freed, too
