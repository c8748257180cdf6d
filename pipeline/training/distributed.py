"""Several devices for one training: a process for each, which share every batch and average their gradients (DDP).

The first process alone validates and writes, and sends its decisions to the others. A kill of the parent ends them all.
"""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from excl.models.i3d.extractor import choose_device
from excl.models.lazy_module import LazyModule
from excl.models.progress.bars import no_live_view

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist
    import torch.multiprocessing as mp
    from torch import Tensor, nn
else:
    torch = LazyModule("torch")
    dist = LazyModule("torch.distributed")
    mp = LazyModule("torch.multiprocessing")

T = TypeVar("T")


@dataclass(frozen=True)
class RankContext:
    """The rank of this process, the number of processes, and its device."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def is_first(self) -> bool:
        """Return whether this process validates and writes."""
        return self.rank == 0

    def shard_batch(self, batch: Sequence[int]) -> tuple[list[int], float]:
        """Return this process's part of a batch, and the weight of its mean loss with which averaging gives the whole
        batch's.

        If a batch is too small for all, some get its first item, with weight 0: all must take the step.
        """
        own = list(batch[self.rank :: self.world])
        return (own, len(own) * self.world / len(batch)) if own else ([batch[0]], 0.0)

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model as the training step calls it: its backward pass averages gradients over all processes."""
        if self.world == 1:
            return model
        ids = [self.device] if self.device.type == "cuda" else None
        return torch.nn.parallel.DistributedDataParallel(model, device_ids=ids)

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of a value over all processes."""
        if self.world > 1:
            value = value.clone()
            dist.all_reduce(value)
            value /= self.world
        return value

    def broadcast_from_first(self, value: T) -> T:
        """Return the first process's `value` in every process."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]


def training_devices(names: str) -> list[torch.device]:
    """Return the devices of a list such as `cuda:0,cuda:1`; ValueError if one is not available, or a GPU is named twice.

    `cpu,cpu` is allowed, for tests: two processes on one processor.
    """
    devices = [choose_device(name.strip()) for name in names.split(",")]
    if len(devices) > 1 and len({device.type for device in devices}) > 1:
        raise ValueError(f"device {names!r}: expected devices of one kind, for their gradients are averaged")
    if len(devices) > 1 and devices[0].type not in ("cuda", "cpu"):
        raise ValueError(f"device {names!r}: several devices can be cuda or cpu")
    gpus = [device for device in devices if device.type != "cpu"]  # each with its number: `cuda` is the present one
    if len(set(gpus)) < len(gpus):
        raise ValueError(f"device {names!r}: names one device twice")
    return devices


def launch(devices: Sequence[torch.device], work: Callable[..., Any], *arguments: Any) -> None:
    """Call `work(*arguments, ranks)` in a process for each device; return when all are done.

    Raises what a process raised: as ValueError or OSError if it was one of these, otherwise as RuntimeError.
    """
    with tempfile.TemporaryDirectory() as folder:
        names = [str(device) for device in devices]
        try:
            with no_live_view():  # the first of the processes shows its own
                mp.spawn(_process, args=(names, Path(folder), work, arguments), nprocs=len(names))
        except (mp.ProcessRaisedException, mp.ProcessExitedException) as error:
            for kind in (ValueError, OSError):
                if (message := Path(folder) / kind.__name__).exists():
                    raise kind(message.read_text(encoding="utf-8")) from None
            raise RuntimeError(f"one of the processes that share the training ended: {error}") from error


def _process(rank: int, names: list[str], folder: Path, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    device = choose_device(names[rank])
    if device.type == "cuda":
        torch.cuda.set_device(device)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // len(names)))
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=len(names))
    try:
        work(*arguments, RankContext(device, rank, len(names)))
        gc.collect()  # of the wrapped model, whose threads must end before the group does
        dist.barrier()
    except (ValueError, OSError) as error:
        kind = ValueError if isinstance(error, ValueError) else OSError
        (folder / kind.__name__).write_text(str(error), encoding="utf-8")
        raise
    finally:
        dist.destroy_process_group()
