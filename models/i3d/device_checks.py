"""Checks of a device before I3D runs on it: precisions that the card lacks, versions of cuDNN that compute wrongly."""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Literal

from excl.models.lazy_module import LazyModule

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

log = logging.getLogger(__name__)

Precision = Literal["float32", "tf32", "bfloat16"]
WRONG_CUDNN = (90800, 91300)  # from, to before: large bfloat16 convolutions over time are wrong (pytorch issue 163539)
WASTEFUL_CUDNN = 91500  # before it PyTorch 2.9 and later take slow convolutions of many times the memory (issue 166643)


def check_precision(precision: Precision, device: torch.device) -> None:
    """Raise ValueError for a precision that the device lacks, or that its cuDNN computes wrongly; warn of one it wastes.

    The versions are looked at besides `Runner.check`, because the errors show with large inputs only.
    """
    if device.type != "cuda":
        if precision == "tf32":
            raise ValueError(f"precision tf32 exists on NVIDIA's GPUs only, not on {device}; choose float32 or bfloat16")
        return
    if precision == "float32":
        return
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        name, version = torch.cuda.get_device_name(device), ".".join(map(str, capability))
        raise ValueError(
            f"precision {precision}: {name} (compute capability {version}) has none; it takes 8.0 or higher (Ampere and "
            "newer), so choose float32"
        )
    cudnn = torch.backends.cudnn.version()
    if precision != "bfloat16" or cudnn is None:
        return
    if WRONG_CUDNN[0] <= cudnn < WRONG_CUDNN[1]:
        raise ValueError(
            f"precision bfloat16: cuDNN {_version(cudnn)} computes large three-dimensional convolutions wrongly (pytorch "
            f"issue 163539); install cuDNN {_version(WASTEFUL_CUDNN)} or newer, or choose float32 or tf32"
        )
    if cudnn < WASTEFUL_CUDNN and _torch_version() >= (2, 9):
        _warn_of_waste(torch.__version__, cudnn)


@functools.cache
def _warn_of_waste(of_torch: str, cudnn: int) -> None:
    """Say it once in a process."""
    log.warning(
        "precision bfloat16: PyTorch %s with cuDNN %s can take several times the memory and time (pytorch issue 166643); "
        "cuDNN %s or newer does not",
        of_torch,
        _version(cudnn),
        _version(WASTEFUL_CUDNN),
    )


def _version(number: int) -> str:
    """Return cuDNN's number of a version as people write it: 91002 as 9.10.2."""
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


def _torch_version() -> tuple[int, int]:
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)
