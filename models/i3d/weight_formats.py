"""Weight files as state dicts and back: torch's formats, and safetensors with the facts next to the tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors

from excl.models.files import atomic_write, sha256_file
from excl.models.i3d.file_diagnosis import describe_load_error, describe_wrong_content, describe_wrong_file
from excl.models.i3d.weight_catalogue import PUBLISHED, WeightFacts, git_blob_id, published_name
from excl.models.lazy_module import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")

FACTS, DIGEST = "excl.facts", "excl.sha256"  # keys of the metadata of a safetensors file
COUNTER = "num_batches_tracked"


class WeightFileError(ValueError):
    """The error for a file that holds no weights of RGB I3D, with the reason."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.reason = reason


def read_weight_file(path: Path) -> tuple[dict[str, Tensor], WeightFacts]:
    """Return the float32 tensors of a file and its facts; WeightFileError says which kind of file a wrong one is."""
    if not path.is_file():
        raise WeightFileError(path, "there is no such file")
    if (reason := describe_wrong_file(path)) is not None:
        raise WeightFileError(path, reason)
    if is_safetensors(path):
        return _read_safetensors(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load can raise anything, depending on the file's content
        raise WeightFileError(path, describe_load_error(path, error)) from error
    return _checked(path, state), facts_of_file(path)


def facts_of_file(path: Path) -> WeightFacts:
    """Return the facts that a file's bytes tell: all of them for a published file, and otherwise its checksums."""
    blob_id, sha256 = git_blob_id(path), sha256_file(path)
    name = published_name(blob_id)
    return PUBLISHED[name].facts(sha256) if name else WeightFacts(git_blob_id=blob_id, file_sha256=sha256)


def is_safetensors(path: Path) -> bool:
    """Return whether a file is safetensors by its name or by its beginning."""
    with path.open("rb") as file:
        head = file.read(9)
    return path.suffix == ".safetensors" or (head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], WeightFacts]:
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no mapping)
    except (safetensors.SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise WeightFileError(path, f"a safetensors file that is cut short or damaged ({error}); make it again") from error
    state = _checked(path, state)
    if DIGEST in metadata and metadata[DIGEST] != digest(state):
        raise WeightFileError(path, "damaged: its tensors have changed since it was written; import the weights again")
    if FACTS not in metadata:
        return state, facts_of_file(path)
    try:
        return state, WeightFacts.from_json(json.loads(metadata[FACTS]))
    except (ValueError, AttributeError) as error:
        reason = f"its metadata {FACTS!r} cannot be read ({error}); import the weights again"
        raise WeightFileError(path, reason) from error


def _checked(path: Path, state: object) -> dict[str, Tensor]:
    if (reason := describe_wrong_content(state)) is not None:
        raise WeightFileError(path, reason)
    assert isinstance(state, Mapping)
    return {k: v if k.endswith(COUNTER) else v.detach().to(torch.float32).contiguous() for k, v in state.items()}


def digest(state: Mapping[str, Tensor]) -> str:
    """Return the hex sha256 over the tensors: in the order of their names, each one's name, shape, and float32 values.

    The counters of batches are left out: they have no effect, and older files have none.
    """
    checksum = hashlib.sha256()
    for key in sorted(key for key in state if not key.endswith(COUNTER)):
        value = state[key].to(torch.float32).contiguous()
        checksum.update(json.dumps([key, list(value.shape), "float32"]).encode() + b"\n")
        checksum.update(value.numpy().astype("<f4", copy=False).tobytes())
    return checksum.hexdigest()


def write_safetensors(path: Path, state: Mapping[str, Tensor], facts: WeightFacts) -> None:
    """Write tensors and facts so that `path` holds either what it held before or all of it."""
    from safetensors.torch import save_file  # noqa: PLC0415  (imports PyTorch)

    metadata = {FACTS: json.dumps(facts.to_json()), DIGEST: digest(state)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        save_file({k: v.clone() for k, v in state.items()}, temporary, metadata=metadata)
