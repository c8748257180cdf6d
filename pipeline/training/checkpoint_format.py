"""Checkpoints: the tensors in a safetensors file, all else in a JSON file that names it and its sha256; nothing is
unpickled.

The JSON file is written last, so it is the commit: until it is replaced, the previous checkpoint counts. If both files have
fixed names (`best`), a kill between the two leaves a pair that does not match, which `read_checkpoint` refuses.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from excl.models.lazy_module import LazyModule
from excl.pipeline.artifacts.atomic_files import atomic_write, sha256_file, write_json

if TYPE_CHECKING:
    import safetensors.torch as tensor_files
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")
    tensor_files = LazyModule("safetensors.torch")

TENSORS = ".safetensors"


def write_checkpoint(folder: Path, name: str, *, tensors: Mapping[str, Tensor], about: Mapping[str, Any], file: str) -> None:
    """Write `tensors` to `file` and then `about`, JSON values, to `<name>.json`; remove other tensors of that name."""
    # clones: safetensors refuses tensors that share memory, as tied weights do
    content = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    with atomic_write(folder / file) as temporary:
        temporary.write_bytes(tensor_files.save(content))
    write_json(folder / f"{name}.json", {"tensors": {"file": file, "sha256": sha256_file(folder / file)}, **about})
    for old in (*folder.glob(f"{name}-*{TENSORS}"), folder / f"{name}{TENSORS}"):
        if old.name != file:
            old.unlink(missing_ok=True)


def read_checkpoint(folder: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors, on the CPU, and the facts stored with them; ValueError if a file is missing or was changed."""
    path = folder / f"{name}.json"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        of_tensors = about.pop("tensors")
        path = folder / of_tensors["file"]
        content = path.read_bytes()
        if sha256_file(path) != of_tensors["sha256"]:
            raise ValueError(f"its sha256 is not the one in {name}.json")
        return tensor_files.load(content), about
    except FileNotFoundError as error:
        raise ValueError(f"{path} is not there any more; remove the folder {folder} and train again") from error
    except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise ValueError(f"{path}: damaged ({error}); remove the folder {folder} and train again") from error


def exists(folder: Path, name: str) -> bool:
    """Return whether a checkpoint was committed."""
    return (folder / f"{name}.json").exists()


def files_of(folder: Path, name: str) -> list[str]:
    """Return the names of a checkpoint's two files."""
    about = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return [f"{name}.json", about["tensors"]["file"]]


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimiser's state by `<parameter's number>.<key>`; all of it must be tensors, as Adam's is."""
    state = optimizer.state_dict()["state"]
    return {f"{number}.{key}": value for number, values in state.items() for key, value in values.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore the state that `optimizer_tensors` returned."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        number, key = name.split(".")
        state.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `prefix`, under the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
