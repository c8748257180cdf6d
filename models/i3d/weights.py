"""I3D's weights by their name, and the facts that travel with them into every store.

`kinetics` and `charades` are the RGB files of the public PyTorch port, fetched from its repository at a pinned commit into
a cache folder and recognised by their git blob id. Your own weights are a file with the same keys, torch's or safetensors,
or the name under which such a file was imported into the cache. `random:SEED` fills every tensor by a formula: for tests and
the demo, never for results.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
import re
import shutil
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from excl.models.download import cache_folder
from excl.models.files import atomic_write
from excl.models.i3d.weight_catalogue import PUBLISHED, WeightFacts, class_names, git_blob_id, published_name
from excl.models.i3d.weight_formats import WeightFileError, digest, read_weight_file, write_safetensors
from excl.models.lazy_module import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from excl.models.i3d import network
    from excl.models.i3d.network import I3D
else:
    torch = LazyModule("torch")
    network = LazyModule("excl.models.i3d.network")

log = logging.getLogger(__name__)

KINETICS_600 = "rgb600"  # a name for imported weights, which the preset of this name has
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class Weights:
    """A state dict for `I3D(num_classes)` and what it is: `source` as asked for, `sha256` over the tensors (or the formula).

    The same tensors have the same `sha256` in whatever file they are.
    """

    state_dict: dict[str, Tensor]
    num_classes: int
    source: str
    sha256: str
    facts: WeightFacts = field(default_factory=WeightFacts)
    class_names: tuple[str, ...] | None = None

    @property
    def is_random(self) -> bool:
        """Return whether the weights are by formula, so that features made with them mean nothing."""
        return self.source.startswith("random:")

    def network(self) -> I3D:
        """Return the network with these weights, in evaluation mode, without gradients; ValueError if they do not fit."""
        with torch.device("meta"):  # which neither makes nor fills tensors that the weights replace
            model = network.I3D(self.num_classes)
        state = {key: value.float() if value.is_floating_point() else value for key, value in self.state_dict.items()}
        try:
            model.load_state_dict(state, strict=True, assign=True)
        except RuntimeError as error:
            raise ValueError(f"{self.source}: these are not weights of RGB I3D: {error}") from error
        return model.eval().requires_grad_(False)


def check_spec(spec: str) -> str:
    """Return `spec` if it can name weights; ValueError otherwise.

    Weights are named by `kinetics`, `charades`, `random:SEED`, an imported name, or an existing file.
    """
    if spec in PUBLISHED:
        return spec
    if spec.startswith("random") and not Path(spec).is_file():
        seed = spec.removeprefix("random:")
        if not (seed.isascii() and seed.isdecimal() and int(seed) < 1 << 32):
            raise ValueError(f"weights {spec!r}: expected random:SEED with a whole number below 2**32, such as random:0")
        return spec
    is_name = NAME.fullmatch(spec) is not None and imported_path(spec).is_file()
    if is_name and Path(spec).is_file():
        raise ValueError(
            f"weights {spec!r}: weights were imported under this name, and a file here has it too; for the "
            f"file say {str(Path.cwd() / spec)!r}"
        )
    if spec == KINETICS_600 and not is_name and not Path(spec).is_file():
        raise ValueError(
            f"weights {spec!r}: DeepMind's Kinetics-600 checkpoint of I3D (rgb_scratch_kin600) is of TensorFlow; "
            "convert it to the names of the public PyTorch port, then `excl weights import FILE --name rgb600`"
        )
    if not is_name and not Path(spec).is_file():
        raise ValueError(
            f"weights {spec!r}: neither kinetics, charades nor random:SEED, no name that was imported, and there is no "
            "such file; `excl weights list` shows what there is"
        )
    return spec


def load_weights(spec: str) -> Weights:
    """Return the weights that `spec` names: `kinetics`, `charades`, `random:SEED`, an imported name, or a path.

    Downloads `kinetics` and `charades` on first use. Raises ValueError for a wrong file.
    """
    check_spec(spec)
    if spec.startswith("random:"):
        return _random_weights(spec)
    if spec in PUBLISHED:
        return read_weights(PUBLISHED[spec].fetch(), source=spec)
    if NAME.fullmatch(spec) and imported_path(spec).is_file():
        return read_weights(imported_path(spec), source=spec)
    return read_weights(Path(spec), source=Path(spec).name)


def read_weights(path: Path, *, source: str) -> Weights:
    """Return the weights in a file; a published file is recognised by its content. WeightFileError for a wrong file."""
    state, facts = read_weight_file(path)
    name = published_name(facts.git_blob_id)
    num_classes = len(state["logits.conv3d.bias"])
    names = class_names(name) if name else None
    if names is not None and len(names) != num_classes:
        names = None
    return Weights(state, num_classes, name or source, digest(state), facts, names)


def describe_wrong(path: Path) -> str:
    """Return what a file is if it holds no weights of RGB I3D, in a sentence; empty if it does."""
    try:
        read_weight_file(path)
    except WeightFileError as error:
        return error.reason
    except (ValueError, OSError) as error:
        return str(error)
    return ""


def imported_path(name: str) -> Path:
    """Return the path in the cache of the weights imported under a name, whether or not it exists."""
    return cache_folder() / "imported" / f"{name}.safetensors"


def imported_names() -> list[str]:
    """Return the names under which weights were imported, sorted."""
    return sorted(path.stem for path in imported_path("x").parent.glob("*.safetensors") if NAME.fullmatch(path.stem))


def import_published(path: Path) -> Path | None:
    """Copy a published file into the cache, so that its name works offline; None if the file is not a published one."""
    if not path.is_file():
        raise WeightFileError(path, "there is no such file")
    name = published_name(git_blob_id(path))
    if name is None:
        return None
    target = PUBLISHED[name].cached_path
    if not (target.is_file() and target.samefile(path)):
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target) as temporary:
            shutil.copyfile(path, temporary)
            if (difference := PUBLISHED[name].mismatch(temporary)) is not None:
                raise WeightFileError(path, f"not the published {name}, or changed while it was copied ({difference})")
    return target


def convert(path: Path, target: Path, *, trained_on: str | None, licence: str | None, fps: float | None) -> Path:
    """Write the weights in `path` as safetensors with their facts; the facts given here override those of the files."""
    state, facts = read_weight_file(path)
    overrides: dict[str, Any] = {"trained_on": trained_on, "licence": licence, "fps": fps}
    overrides = {key: value for key, value in overrides.items() if value is not None}
    if target.is_file() and not describe_wrong(target):  # facts given in an earlier import are kept
        target_state, target_facts = read_weight_file(target)
        if digest(target_state) != digest(state):
            raise WeightFileError(
                target, "other weights were imported under this name or into this file; choose another, or remove it"
            )
        overrides = {key: getattr(target_facts, key) for key in ("trained_on", "licence", "fps")} | overrides
    if overrides and published_name(facts.git_blob_id):
        raise WeightFileError(path, f"these are published weights, whose facts are known; leave out {', '.join(overrides)}")
    write_safetensors(target, state, dataclasses.replace(facts, **overrides))
    return target


def check_name(name: str) -> str:
    """Return `name` if weights can be imported under it; ValueError otherwise."""
    if name in PUBLISHED or name.startswith("random"):
        raise ValueError(f"--name {name}: this name is taken; choose another one")
    if not NAME.fullmatch(name):
        raise ValueError(f"--name {name!r}: use letters, digits, - and _, beginning with a letter or a digit")
    return name


def _random_weights(spec: str) -> Weights:
    log.warning("%s: I3D has RANDOM weights. Its features are for trying things out and mean nothing else.", spec)
    seed = int(spec.removeprefix("random:"))
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in network.I3D().state_dict().items()}
    state = {key: _formula_values(key, shape, seed) for key, shape in shapes.items()}
    sha256 = hashlib.sha256(f"formula 1, seed {seed}".encode()).hexdigest()
    return Weights(state, 400, spec, sha256, WeightFacts(trained_on="nothing: random values by a formula"))


def _formula_values(key: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Return normal values seeded by the key's crc32 and `seed`, scaled so that activations keep their size."""
    if key.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.int64)
    z = np.random.RandomState(zlib.crc32(key.encode()) ^ seed).standard_normal(shape)
    if key.endswith("conv3d.weight"):
        z = z * math.sqrt(2 / math.prod(shape[1:]))
    elif key.endswith("bn.weight"):
        z = 1 + 0.1 * z
    elif key.endswith("running_var"):
        z = 1 + 0.1 * np.abs(z)
    else:
        z = 0.1 * z
    return torch.from_numpy(z.astype(np.float32))
