"""I3D's weights by their name, and the facts that travel with them into every store.

`kinetics` and `charades` are the RGB files of the public PyTorch port, fetched from its repository at a pinned commit into
a cache folder and known by their git blob id. Weights of one's own are a file of the same keys, torch's or safetensors, or
the name under which such a file was imported into the cache. `random:SEED` fills every tensor by a formula: for tests and
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
from typing import TYPE_CHECKING

import numpy as np

from excl.models.download import cache_folder, replacing
from excl.models.i3d.download import cached_path, fetch
from excl.models.i3d.published import PUBLISHED, WeightFacts, class_names, git_blob_id, mismatch, published_name
from excl.models.i3d.weight_files import digest, read_weight_file, write_safetensors
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
        """Whether the weights are by formula, so that features made with them mean nothing."""
        return self.source.startswith("random:")

    def network(self) -> I3D:
        """The network with these weights, in evaluation mode, without gradients; ValueError if they do not fit."""
        model = network.I3D(self.num_classes)
        try:
            model.load_state_dict(self.state_dict, strict=True)
        except RuntimeError as error:
            raise ValueError(f"{self.source}: these are not weights of RGB I3D: {error}") from error
        return model.eval().requires_grad_(False)


def check_spec(spec: str) -> str:
    """`spec` if it can name weights; ValueError otherwise.

    That is `kinetics`, `charades`, `random:SEED`, a name that was imported, or an existing file.
    """
    if spec in PUBLISHED:
        return spec
    if spec.startswith("random") and not Path(spec).is_file():
        seed = spec.removeprefix("random:")
        if not (seed.isascii() and seed.isdecimal() and int(seed) < 1 << 32):
            raise ValueError(f"weights {spec!r}: wanted is random:SEED with a whole number below 2**32, such as random:0")
        return spec
    is_name = NAME.fullmatch(spec) is not None and imported_path(spec).is_file()
    if is_name and Path(spec).is_file():
        raise ValueError(
            f"weights {spec!r}: weights were imported under this name, and a file here has it too; for the "
            f"file say {str(Path.cwd() / spec)!r}"
        )
    if not is_name and not Path(spec).is_file():
        raise ValueError(
            f"weights {spec!r}: neither kinetics, charades nor random:SEED, no name that was imported, and there is no "
            "such file; `excl weights list` shows what there is"
        )
    return spec


def load_weights(spec: str) -> Weights:
    """The weights that `spec` names: `kinetics`, `charades`, `random:SEED`, an imported name, or a path.

    Downloads `kinetics` and `charades` on first use. Raises ValueError for a file that is not what it should be.
    """
    check_spec(spec)
    if spec.startswith("random:"):
        return _random_weights(spec)
    if spec in PUBLISHED:
        return read_weights(fetch(spec), source=spec)
    if NAME.fullmatch(spec) and imported_path(spec).is_file():
        return read_weights(imported_path(spec), source=spec)
    return read_weights(Path(spec), source=Path(spec).name)


def read_weights(path: Path, *, source: str) -> Weights:
    """The weights in a file; ValueError says by name what a wrong file is. A published file is known by its content."""
    state, facts = read_weight_file(path)
    name = published_name(facts.git_blob_id)
    num_classes = len(state["logits.conv3d.bias"])
    names = class_names(name) if name else None
    if names is not None and len(names) != num_classes:
        names = None
    return Weights(state, num_classes, name or source, digest(state), facts, names)


def describe_wrong(path: Path) -> str:
    """What a file is if it is no weights of RGB I3D, in a sentence; empty if it is."""
    try:
        read_weight_file(path)
    except (ValueError, OSError) as error:
        return str(error).removeprefix(f"{path}: ")
    return ""


def imported_path(name: str) -> Path:
    """Where in the cache the weights are, or would be, that were imported under a name."""
    return cache_folder() / "imported" / f"{name}.safetensors"


def imported_names() -> list[str]:
    """The names under which weights were imported, sorted."""
    return sorted(path.stem for path in imported_path("x").parent.glob("*.safetensors") if NAME.fullmatch(path.stem))


def import_published(path: Path) -> Path | None:
    """Put a file into the cache if it is a published one, so that its name works offline; None if it is not."""
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    name = published_name(git_blob_id(path))
    if name is None:
        return None
    target = cached_path(name)
    if not (target.is_file() and target.samefile(path)):
        with replacing(target) as temporary:
            shutil.copyfile(path, temporary)
            if (found := mismatch(temporary, PUBLISHED[name])) is not None:
                raise ValueError(f"{path}: not the published {name}, or changed while it was copied ({found})")
    return target


def convert(path: Path, target: Path, *, trained_on: str | None, licence: str | None, fps: float | None) -> Path:
    """Write the weights in `path` as safetensors, with what is known of them; what is said here goes before that."""
    state, facts = read_weight_file(path)
    said = {"trained_on": trained_on, "licence": licence, "fps": fps}
    said = {key: value for key, value in said.items() if value is not None}
    if target.is_file() and not describe_wrong(target):  # what was said before is kept
        there, facts_there = read_weight_file(target)
        if digest(there) != digest(state):
            raise ValueError(f"{target}: there are other weights in this file; choose another name, or remove it")
        said = {"trained_on": facts_there.trained_on, "licence": facts_there.licence, "fps": facts_there.fps} | said
    if said and published_name(facts.git_blob_id):
        raise ValueError(f"{path}: these are published weights, whose facts are known; leave out {', '.join(said)}")
    write_safetensors(target, state, dataclasses.replace(facts, **said))  # type: ignore[arg-type]
    return target


def check_name(name: str) -> str:
    """`name` if weights can be imported under it; ValueError otherwise."""
    if name in PUBLISHED or name.startswith("random"):
        raise ValueError(f"--name {name}: this name is taken; choose another one")
    if not NAME.fullmatch(name):
        raise ValueError(f"--name {name!r}: wanted are letters, digits, - and _, and first a letter or a digit")
    return name


def check_free(name: str, path: Path) -> None:
    """ValueError if other weights than those in `path` were imported under `name`."""
    target = imported_path(name)
    if not target.is_file() or describe_wrong(target):
        return
    there, new = load_weights(name), read_weights(path, source=path.name)
    if there.sha256 != new.sha256:
        raise ValueError(f"--name {name}: other weights were imported under this name; choose another, or remove {target}")


def _random_weights(spec: str) -> Weights:
    log.warning("%s: I3D has RANDOM weights. Its features are for trying things out and mean nothing else.", spec)
    seed = int(spec.removeprefix("random:"))
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in network.I3D().state_dict().items()}
    state = {key: _by_formula(key, shape, seed) for key, shape in shapes.items()}
    digest = hashlib.sha256(f"formula 1, seed {seed}".encode()).hexdigest()
    return Weights(state, 400, spec, digest, WeightFacts(trained_on="nothing: random values by a formula"))


def _by_formula(key: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Normal values from a generator seeded by the key's crc32 and `seed`, scaled so that activations keep their size."""
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
