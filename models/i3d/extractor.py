"""Features of a whole video from a stream of its frames, exact and in bounded memory, by any layout of rows."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING

import numpy as np

from excl.models.i3d.chunks import CONTEXT_FRAMES, continuous_chunks, overlapping_chunks, single_clips
from excl.models.i3d.compilation import Compile
from excl.models.i3d.device_checks import Precision
from excl.models.i3d.row_layout import FRAMES_PER_STEP, Clips, Continuous, RowLayout, require_frames
from excl.models.i3d.runner import Runner
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
    """Return the device of a name (`auto`, `cpu`, `cuda`, `cuda:1`, `mps`); ValueError if it is not available."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r}: not available on this machine ({str(error).splitlines()[0]})") from error


def choose_devices(names: str) -> list[torch.device]:
    """Return the devices of a list like `cuda:0,cuda:1`; ValueError if one is not available or named twice."""
    devices = [choose_device(name.strip()) for name in names.split(",")]
    if len(set(devices)) < len(devices):
        raise ValueError(f"device {names!r}: names one device twice")
    return devices


class Extractor:
    """I3D on a device. Call it with the frames of one video for the video's feature rows.

    Threads may share it: each collects its own frames, and the network runs what they hand over, clips of equal shape
    together. In float32 the rows of a video differ by no more than 2e-6 of the largest value, however it is cut into chunks
    and whatever is computed together with it.
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
            raise ValueError(f"chunk_frames: {chunk_frames}; it must be a multiple of 8")
        self.layout, self.chunk_frames = layout, chunk_frames
        stride = layout.stride if isinstance(layout, Continuous) else FRAMES_PER_STEP
        batch_frames = min(MAX_BATCH_FRAMES, 8 * chunk_frames) if device.type == "cuda" else 0
        self.runner = Runner(
            weights, device=device, precision=precision, stride=stride, batch_frames=batch_frames, compile=compile
        )

    def __call__(self, frames: Iterable[np.ndarray]) -> np.ndarray:
        """Return feature rows, float32 [n, 1024] with n = `layout.num_rows(T)`, of T uint8 RGB frames [H, W, 3].

        NoRowsError for a video that has no rows in the layout.
        """
        counted = _CountedFrames(frames)
        if isinstance(self.layout, Continuous):
            return self._continuous_rows(counted, self.layout)
        assert isinstance(self.layout, Clips)
        rows = [self._clip_rows(steps, self.layout) for steps in self._run(self._batches(counted, self.layout))]
        return torch.cat(rows)[torch.from_numpy(self.layout.real_rows(counted.count))].numpy()

    def _continuous_rows(self, frames: _CountedFrames, layout: Continuous) -> np.ndarray:
        chunks = continuous_chunks(frames, layout, self._chunk_frames(frames.size))
        blocks = [steps[0] for steps in self._run([(chunk.frames[None], chunk.blocks)] for chunk in chunks)]
        steps = torch.cat(blocks).flatten(0, 1)
        rows = steps if layout.pool == "1x7x7" else network.pool_pairs(steps[None], offsets=layout.offsets)[0]
        return rows[: layout.num_rows(frames.count)].numpy()

    @staticmethod
    def _clip_rows(steps: Tensor, layout: Clips) -> Tensor:
        """Return the rows of clips, [B * rows, 1024], from their steps [B, T', 1, 1024]."""
        rows = steps[:, :, 0]
        if layout.pool == "2x7x7":
            rows = network.pool_pairs(rows)
        if layout.mean:
            rows = rows.mean(dim=1, keepdim=True)
        return rows.reshape(-1, network.FEATURE_DIM)

    def _batches(self, frames: _CountedFrames, layout: Clips) -> Iterator[list[Part]]:
        """Yield clips of equal length together, as many as fill a chunk; longer ones in chunks that change nothing."""
        chunk_frames = self._chunk_frames(frames.size)
        waiting: list[np.ndarray] = []
        for clip in single_clips(frames, layout):
            if waiting and (len(clip) != len(waiting[0]) or (len(waiting) + 1) * len(clip) > chunk_frames):
                yield [(np.stack(waiting), slice(None))]
                waiting = []
            if len(clip) > chunk_frames + 2 * CONTEXT_FRAMES:
                chunks = overlapping_chunks(clip, len(clip) % FRAMES_PER_STEP, chunk_frames)
                yield [(chunk.frames[None], chunk.blocks) for chunk in chunks]
            else:
                waiting.append(clip)
        if waiting:
            yield [(np.stack(waiting), slice(None))]

    def _run(self, jobs: Iterable[list[Part]]) -> Iterator[Tensor]:
        """Yield the steps of each job's clips, [B, blocks of 8 frames, offsets, 1024], while the next job is collected."""
        waiting: deque[list[tuple[Future[Tensor], slice]]] = deque()
        for job in jobs:
            waiting.append([(self.runner.submit(clips), blocks) for clips, blocks in job])
            if len(waiting) > 1:
                yield self._joined(waiting.popleft())
        while waiting:
            yield self._joined(waiting.popleft())

    def _joined(self, parts: list[tuple[Future[Tensor], slice]]) -> Tensor:
        offsets = FRAMES_PER_STEP // self.runner.stride
        return torch.cat([future.result().unflatten(1, (-1, offsets))[:, blocks] for future, blocks in parts], dim=1)

    def _chunk_frames(self, size: int) -> int:
        """Return how many frames a chunk has: fewer of larger pictures, for the memory of `chunk_frames` at 224 pixels."""
        num_frames = int(self.chunk_frames * min(1.0, (CHUNK_SIZE / size) ** 2))
        return max(FRAMES_PER_STEP, num_frames // FRAMES_PER_STEP * FRAMES_PER_STEP)


class _CountedFrames:
    """Frames with their size, known at once, and their number, known at their end."""

    def __init__(self, frames: Iterable[np.ndarray]) -> None:
        iterator = iter(frames)
        frame = next(iterator, None)
        self.count = 0
        require_frames(0 if frame is None else 1)
        assert frame is not None
        self.size = max(frame.shape[:2])
        self._frames = itertools.chain([frame], iterator)

    def __iter__(self) -> Iterator[np.ndarray]:
        for frame in self._frames:
            self.count += 1
            yield frame
