"""Features of a whole video from a stream of its frames, exact and in bounded memory, by any layout of rows."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING

import numpy as np

from excl.models.i3d.chunks import CONTEXT_FRAMES, continuous_chunks, overlapping_chunks, single_clips
from excl.models.i3d.compile_policy import Compile
from excl.models.i3d.row_layout import FRAMES_PER_STEP, Clips, Continuous, RowLayout, require_frames
from excl.models.i3d.runner import Precision, Runner
from excl.models.i3d.weights import Weights
from excl.models.lazy_module import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from excl.models.i3d import network
else:
    torch = LazyModule("torch")
    network = LazyModule("excl.models.i3d.network")

CHUNK_FRAMES = 512
CHUNK_SIZE = 224  # pixels of the side at which a chunk has so many frames; larger pictures come in shorter chunks
MAX_SIZE = 1024  # at which no tensor of the shortest chunk reaches 2**31 elements
MAX_BATCH_FRAMES = 4096  # of 224 pixels, on a GPU; 5300 would make a tensor of 2**31 elements


# Clips uint8 [B, T, H, W, 3] of equal length, and which of their blocks of 8 frames count (all: slice(None)). What the
# network computes of several parts is put together along time, so those are of the same clip.
Part = tuple[np.ndarray, slice]


def choose_device(name: str) -> torch.device:
    """The device that `name` says (`auto`, `cpu`, `cuda`, `cuda:1`, `mps`); ValueError if this machine has it not."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r}: not to be had on this machine ({str(error).splitlines()[0]})") from error


def choose_devices(names: str) -> list[torch.device]:
    """The devices of a list like `cuda:0,cuda:1`, each as in `choose_device`; ValueError for one that is named twice."""
    devices = [choose_device(name.strip()) for name in names.split(",")]
    if len(set(devices)) < len(devices):
        raise ValueError(f"device {names!r}: names one device twice")
    return devices


class Extractor:
    """I3D on a device. Call it with the frames of one video for the video's feature rows.

    Threads may share it: each collects its own frames, and the network runs what they hand over, clips of equal shape
    together. In float32 the rows of a video differ by no more than 2e-6 of the largest value, however it is cut into chunks
    and whatever is computed beside it.
    """

    def __init__(
        self,
        weights: Weights,
        *,
        device: torch.device,
        layout: RowLayout = Continuous(),
        precision: Precision = "float32",
        chunk_frames: int = CHUNK_FRAMES,
        compile: Compile = "never",
    ) -> None:
        if chunk_frames <= 0 or chunk_frames % FRAMES_PER_STEP:
            raise ValueError(f"chunk_frames: {chunk_frames}; wanted is a multiple of 8")
        self.layout, self.chunk_frames = layout, chunk_frames
        stride = layout.stride if isinstance(layout, Continuous) else FRAMES_PER_STEP
        batch_frames = min(MAX_BATCH_FRAMES, 8 * chunk_frames) if device.type == "cuda" else 0
        self.runner = Runner(
            weights, device=device, precision=precision, stride=stride, batch_frames=batch_frames, compile=compile
        )

    def __call__(self, frames: Iterable[np.ndarray]) -> np.ndarray:
        """Feature rows, float32 [n, 1024] with n = `layout.num_rows(T)`, of T uint8 RGB frames [H, W, 3].

        NoRowsError for a video that the layout has no rows for.
        """
        counted = _Counted(frames)
        if isinstance(self.layout, Continuous):
            return self._continuous(counted, self.layout)
        assert isinstance(self.layout, Clips)
        return self._clips(counted, self.layout)

    def _continuous(self, frames: _Counted, layout: Continuous) -> np.ndarray:
        chunks = continuous_chunks(frames, layout, self._chunk_frames(frames.size))
        blocks = [steps[0] for steps in self._run([(chunk.frames[None], chunk.wanted)] for chunk in chunks)]
        steps = torch.cat(blocks).flatten(0, 1)
        rows = steps if layout.pool == "1x7x7" else network.pool_pairs(steps[None], offsets=layout.offsets)[0]
        return rows[: layout.num_rows(frames.count)].numpy()

    def _clips(self, frames: _Counted, layout: Clips) -> np.ndarray:
        rows = [self._rows(steps, layout) for steps in self._run(self._batches(frames, layout))]
        return torch.cat(rows)[torch.from_numpy(layout.kept(frames.count))].numpy()

    @staticmethod
    def _rows(steps: Tensor, layout: Clips) -> Tensor:
        """Rows of clips, [B * rows, 1024], of their steps [B, T', 1, 1024]."""
        rows = steps[:, :, 0]
        if layout.pool == "2x7x7":
            rows = network.pool_pairs(rows)
        if layout.mean:
            rows = rows.mean(dim=1, keepdim=True)
        return rows.reshape(-1, network.FEATURE_DIM)

    def _batches(self, frames: _Counted, layout: Clips) -> Iterator[list[Part]]:
        """Clips of equal length together, as many as make up a chunk; longer ones in chunks that change nothing."""
        chunk_frames = self._chunk_frames(frames.size)
        waiting: list[np.ndarray] = []
        for clip in single_clips(frames, layout):
            if waiting and (len(clip) != len(waiting[0]) or (len(waiting) + 1) * len(clip) > chunk_frames):
                yield [(np.stack(waiting), slice(None))]
                waiting = []
            if len(clip) > chunk_frames + 2 * CONTEXT_FRAMES:
                chunks = overlapping_chunks(clip, len(clip) % FRAMES_PER_STEP, chunk_frames)
                yield [(chunk.frames[None], chunk.wanted) for chunk in chunks]
            else:
                waiting.append(clip)
        if waiting:
            yield [(np.stack(waiting), slice(None))]

    def _run(self, jobs: Iterable[list[Part]]) -> Iterator[Tensor]:
        """Steps of each job's clips, [B, blocks of 8 frames, offsets, 1024]; the next job is collected meanwhile."""
        waiting: deque[list[tuple[Future[Tensor], slice]]] = deque()
        for job in jobs:
            waiting.append([(self.runner.submit(clips), wanted) for clips, wanted in job])
            if len(waiting) > 1:
                yield self._joined(waiting.popleft())
        while waiting:
            yield self._joined(waiting.popleft())

    def _joined(self, parts: list[tuple[Future[Tensor], slice]]) -> Tensor:
        offsets = FRAMES_PER_STEP // self.runner.stride
        return torch.cat([future.result().unflatten(1, (-1, offsets))[:, wanted] for future, wanted in parts], dim=1)

    def _chunk_frames(self, size: int) -> int:
        """Frames of a chunk, fewer for larger pictures, so that its memory is that of `chunk_frames` at 224 pixels."""
        at_size = int(self.chunk_frames * min(1.0, (CHUNK_SIZE / size) ** 2))
        return max(FRAMES_PER_STEP, at_size // FRAMES_PER_STEP * FRAMES_PER_STEP)


class _Counted:
    """Frames with their size, known at once, and their number, known when they are used up."""

    def __init__(self, frames: Iterable[np.ndarray]) -> None:
        iterator = iter(frames)
        first = next(iterator, None)
        self.count = 0
        require_frames(0 if first is None else 1)
        assert first is not None
        self.size = max(first.shape[:2])
        self._frames = itertools.chain([first], iterator)

    def __iter__(self) -> Iterator[np.ndarray]:
        for frame in self._frames:
            self.count += 1
            yield frame
