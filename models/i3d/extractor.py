"""Features of a whole video from a stream of its frames, exact and in bounded memory.

The network is fully convolutional, so a long video is run in chunks that overlap: time step k of Mixed_5c reads frames
[8k - 44, 8k + 54], and with 48 frames of context on either side, a start that is a multiple of 8 and a length that is one
too (the video is edge-padded to it), every chunk gives what the whole video would give.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from excl.models.i3d.network import fold_batch_norm, pool_pairs
from excl.models.i3d.timemap import FRAMES_PER_ROW, padded_frames
from excl.models.i3d.weights import Weights

CONTEXT_FRAMES = 48
CHUNK_FRAMES = 512


def choose_device(name: str) -> torch.device:
    """The device that `name` says (`auto`, `cpu`, `cuda`, `cuda:1`, `mps`); ValueError if this machine has it not."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r}: not to be had on this machine ({str(error).splitlines()[0]})") from error


class Extractor:
    """I3D on a device. Call it with the frames of one video for the video's feature rows.

    Threads may share it: each collects its frames, and the network runs for one at a time.
    """

    def __init__(self, weights: Weights, *, device: torch.device, chunk_frames: int = CHUNK_FRAMES) -> None:
        assert chunk_frames > 0
        assert chunk_frames % FRAMES_PER_ROW == 0
        self.device = device
        self.chunk_frames = chunk_frames
        self._turn = threading.Lock()
        self.network = fold_batch_norm(weights.network()).to(device)
        self.network.to(memory_format=torch.channels_last_3d)
        if device.type == "cuda":
            torch.backends.cudnn.allow_tf32 = False  # float32 means float32: TF32 keeps three digits

    def __call__(self, frames: Iterable[np.ndarray]) -> np.ndarray:
        """Feature rows, float32 [n, 1024] with n = `num_rows(T)`, of T uint8 RGB frames [H, W, 3] at the sampled rate."""
        window: list[np.ndarray] = []  # frames from index `first` on
        first = done = 0  # `done`: the frame up to which time steps have been computed
        steps: list[Tensor] = []
        count = 0
        for frame in frames:
            window.append(frame)
            count += 1
            if count == done + self.chunk_frames + CONTEXT_FRAMES:
                steps.append(self._steps(window, done - first, done - first + self.chunk_frames))
                done += self.chunk_frames
                keep_from = max(0, done - CONTEXT_FRAMES)
                del window[: keep_from - first]
                first = keep_from
        padding = padded_frames(count) - count  # refuses a video without frames
        window.extend([window[-1]] * padding)
        steps.append(self._steps(window, done - first, len(window)))
        return pool_pairs(torch.cat(steps)[None])[0].numpy()

    @torch.inference_mode()
    def _steps(self, window: list[np.ndarray], begin: int, end: int) -> Tensor:
        """Time steps of the window's frames [begin, end), float32 [(end - begin) / 8, 1024] on the CPU."""
        stacked = torch.from_numpy(np.stack(window))  # uint8 [T, H, W, 3]
        with self._turn:
            x = stacked.to(self.device).permute(3, 0, 1, 2)[None]  # [1, 3, T, H, W], channels last in memory
            steps = self.network.steps(x.float() / 127.5 - 1)[0]  # [T', 1024]
            return steps[begin // FRAMES_PER_ROW : end // FRAMES_PER_ROW].cpu()
