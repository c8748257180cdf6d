"""Weight files as state dicts and back: torch's formats, and safetensors with the facts beside the tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors

from excl.models.download import replacing
from excl.models.i3d.file_diagnosis import describe_wrong_content, describe_wrong_file, why_not_loaded
from excl.models.i3d.published import PUBLISHED, WeightFacts, git_blob_id, published_name, sha256_file
from excl.models.lazy_module import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")

FACTS, DIGEST = "excl.facts", "excl.sha256"  # keys of the metadata of a safetensors file
COUNTER = "num_batches_tracked"


def read_weight_file(path: Path) -> tuple[dict[str, Tensor], WeightFacts]:
    """The float32 tensors of a file and what is known of it; ValueError says by name what a wrong file is."""
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    if (wrong := describe_wrong_file(path)) is not None:
        raise ValueError(f"{path}: {wrong}")
    if is_safetensors(path):
        return _read_safetensors(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a file's content anything can come
        raise ValueError(f"{path}: {why_not_loaded(path, error)}") from error
    return _checked(path, state), facts_of_file(path)


def facts_of_file(path: Path) -> WeightFacts:
    """What the bytes of a file tell: everything if they are a published file's, and otherwise their ids."""
    blob, sha256 = git_blob_id(path), sha256_file(path)
    name = published_name(blob)
    return PUBLISHED[name].facts(sha256) if name else WeightFacts(git_blob_id=blob, file_sha256=sha256)


def is_safetensors(path: Path) -> bool:
    """Whether a file says that it is safetensors, by its name or by how it begins."""
    with path.open("rb") as file:
        head = file.read(9)
    return path.suffix == ".safetensors" or (head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], WeightFacts]:
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no mapping)
    except (safetensors.SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: a safetensors file that is cut short or damaged ({error}); make it again") from error
    state = _checked(path, state)
    if DIGEST in metadata and metadata[DIGEST] != digest(state):
        raise ValueError(f"{path}: damaged: its tensors have changed since it was written; import the weights again")
    if FACTS not in metadata:
        return state, facts_of_file(path)
    try:
        return state, WeightFacts.from_json(json.loads(metadata[FACTS]))
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path}: its metadata {FACTS!r} cannot be read ({error}); import the weights again") from error


def _checked(path: Path, state: object) -> dict[str, Tensor]:
    if (wrong := describe_wrong_content(state)) is not None:
        raise ValueError(f"{path}: {wrong}")
    assert isinstance(state, Mapping)
    return {k: v if k.endswith(COUNTER) else v.detach().to(torch.float32).contiguous() for k, v in state.items()}


def digest(state: Mapping[str, Tensor]) -> str:
    """Hex sha256 over the tensors: in the order of their names, each one's name, shape, and float32 values.

    The counters of batches are left out: they do nothing, and older files have none.
    """
    total = hashlib.sha256()
    for key in sorted(key for key in state if not key.endswith(COUNTER)):
        value = state[key].to(torch.float32).contiguous()
        total.update(json.dumps([key, list(value.shape), "float32"]).encode() + b"\n")
        total.update(value.numpy().astype("<f4", copy=False).tobytes())
    return total.hexdigest()


def write_safetensors(path: Path, state: Mapping[str, Tensor], facts: WeightFacts) -> None:
    """Write tensors and facts so that `path` holds either what it held before or all of it."""
    from safetensors.torch import save_file  # noqa: PLC0415  (imports PyTorch)

    metadata = {FACTS: json.dumps(facts.to_json()), DIGEST: digest(state)}
    with replacing(path) as temporary:
        save_file({k: v.clone() for k, v in state.items()}, temporary, metadata=metadata)
