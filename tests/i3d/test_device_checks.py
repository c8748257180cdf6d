"""What is said about a GPU before it is used, and what is done when its memory runs out, tried without one."""

from __future__ import annotations

import gc
import threading
import weakref

import numpy as np
import pytest
import torch

from excl.models.i3d import device_checks
from excl.models.i3d.device_checks import check_precision
from excl.models.i3d.runner import Runner
from excl.models.i3d.weights import load_weights

GPU = torch.device("cuda", 0)


@pytest.fixture
def card(monkeypatch):
    """`card(capability, cudnn, torch)` makes PyTorch say that it has such a card and such versions."""

    def pretend(capability: tuple[int, int], cudnn: int = 92400, of_torch: str = "2.14.1+cu130") -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Card")
        monkeypatch.setattr(torch.backends.cudnn, "version", lambda: cudnn)
        monkeypatch.setattr(torch, "__version__", of_torch)

    device_checks._warn_of_waste.cache_clear()
    return pretend


@pytest.mark.parametrize("capability", [(7, 0), (7, 5)])
@pytest.mark.parametrize("precision", ["bfloat16", "tf32"])
def test_precisions_that_older_cards_lack(card, capability, precision):
    card(capability)
    check_precision("float32", GPU)
    version = ".".join(map(str, capability))
    with pytest.raises(ValueError, match=rf"{precision}: Card \(compute capability {version}\) has none.*choose float32"):
        check_precision(precision, GPU)


@pytest.mark.parametrize(("cudnn", "named"), [(90800, "9.8.0"), (91002, "9.10.2"), (91201, "9.12.1")])
def test_cudnn_that_computes_bfloat16_wrongly_is_refused(card, cudnn, named):
    card((9, 0), cudnn, "2.8.0")
    for precision in ("float32", "tf32"):
        check_precision(precision, GPU)
    with pytest.raises(ValueError, match=rf"cuDNN {named} computes large .*163539.*install cuDNN 9.15.0 or newer"):
        check_precision("bfloat16", GPU)


@pytest.mark.parametrize(
    ("cudnn", "of_torch", "is_warned"),
    [(91300, "2.9.0", True), (91400, "2.14.1+cu126", True), (91300, "2.8.0", False), (91500, "2.9.1", False)],
)
def test_cudnn_that_wastes_memory_is_warned_of_once(card, caplog, cudnn, of_torch, is_warned):
    card((9, 0), cudnn, of_torch)
    for precision in ("float32", "tf32", "bfloat16", "bfloat16"):
        check_precision(precision, GPU)
    assert [("166643" in message and of_torch in message) for message in caplog.messages] == [True] * is_warned


class Memory:
    """A runner's network that has memory for so many frames, and whose tensors are watched."""

    def __init__(self, runner: Runner, frames: int) -> None:
        self.compute, self.room = runner._compute, frames
        self.batches: list[int] = []
        self.held: list[weakref.ref[torch.Tensor]] = []
        runner._compute = self  # type: ignore[method-assign]

    def __call__(self, frames, **settings):
        gc.collect()
        assert all(tensor() is None for tensor in self.held), "the tensors of the failed batch are still held"
        self.batches.append(len(frames))
        if frames.shape[0] * frames.shape[1] > self.room:
            layer = torch.zeros(10)
            self.held.append(weakref.ref(layer))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
        return self.compute(frames, **settings)


def submitted_together(runner, clips):
    begin = threading.Event()
    runner._thread.submit(begin.wait)
    futures = [runner.submit(clip) for clip in clips]
    begin.set()
    return futures


def test_out_of_memory_is_taken_back_in_halves():
    runner = Runner(load_weights("random:0"), device=torch.device("cpu"), batch_frames=10**6)
    clips = [np.random.default_rng(seed).integers(0, 256, (1, 16, 16, 16, 3), dtype=np.uint8) for seed in range(8)]
    expected = [runner.submit(clip).result() for clip in clips]
    memory = Memory(runner, frames=3 * 16)
    for future, steps in zip(submitted_together(runner, clips), expected, strict=True):
        assert torch.allclose(future.result(), steps, rtol=1e-4, atol=1e-5)
    assert memory.batches == [8, 4, 2, 2, 2, 2]
    for future in submitted_together(runner, clips):
        future.result()
    assert memory.batches[6:] == [2, 2, 2, 2]  # and never more from then on


def test_a_clip_that_does_not_fit_alone_is_refused_and_the_others_are_computed():
    runner = Runner(load_weights("random:0"), device=torch.device("cpu"), batch_frames=10**6)
    Memory(runner, frames=20)
    small, large = np.zeros((1, 16, 16, 16, 3), np.uint8), np.zeros((1, 24, 16, 16, 3), np.uint8)
    first, second, third = submitted_together(runner, [small, large, small])
    assert first.result().shape == third.result().shape
    with pytest.raises(ValueError, match=r"not enough memory for 24 frames.*--chunk-frames \(CUDA out of memory"):
        second.result()
