"""Features as others keep them, as arrays by video id: an excl store, a folder of array files, one HDF5, .npz or .pt file.

Nothing is unpickled, and no file opens another one. What cannot be read is a ValueError that names the file (and in it the
dataset).
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np

from excl.pipeline.artifacts.header import HEADER
from excl.pipeline.artifacts.lazy_module import LazyModule
from excl.pipeline.comparison.array_files import (
    as_array,
    describe_read_errors,
    first_line,
    in_memory,
    local_dataset,
    read_npy,
    read_npz,
    read_tensor,
)
from excl.pipeline.store.feature_store import FeatureStore
from excl.pipeline.store.shard import FORMAT

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

ENDINGS = (".npy", ".npz", ".pt", ".pth")
HDF5_ENDINGS = (".h5", ".hdf5", ".hdf")
WANTED = f"wanted is a feature store of excl, a folder of {', '.join(ENDINGS)} files, or one HDF5, .npz or .pt file"


class ArraySource(Mapping[str, np.ndarray]):
    """Arrays by name, each read when it is asked for; a ValueError or OSError where it cannot be."""

    def __init__(
        self,
        path: Path,
        kind: str,
        read: Mapping[str, Callable[[], np.ndarray]],
        files: Mapping[str, Path] | None = None,
    ) -> None:
        self.path, self.kind, self._read, self._files = path, kind, read, files or {}

    def __getitem__(self, name: str) -> np.ndarray:
        return as_matrix(self._read[name](), where=f"{self.path}: {name!r}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._read)

    def __len__(self) -> int:
        return len(self._read)

    def file_of(self, name: str) -> Path:
        """The file that an array is in."""
        return self._files.get(name, self.path)

    def centres_s(self, name: str) -> np.ndarray | None:  # noqa: ARG002
        """The middle of each row's time in seconds, where the source knows it."""
        return None


class StoreSource(ArraySource):
    """The features of a store of excl."""

    def __init__(self, path: Path) -> None:
        self.store = FeatureStore(path)
        super().__init__(path, "excl store", {name: self._reader(name) for name in self.store})

    def _reader(self, name: str) -> Callable[[], np.ndarray]:
        return lambda: self.store[name].features

    def centres_s(self, name: str) -> np.ndarray | None:
        video = self.store[name]
        return (video.start_s + video.end_s) / 2


def open_source(path: Path) -> ArraySource:
    """The features at `path`; ValueError or FileNotFoundError says what was found and what is wanted."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is nothing of that name; {WANTED}")
    if path.is_dir():
        return StoreSource(path) if (path / HEADER).exists() else _folder(path)
    if path.suffix.lower() in HDF5_ENDINGS or h5py.is_hdf5(path):
        return _hdf5(path)
    if path.suffix.lower() in (".npz", ".pt", ".pth"):
        return _archive(path)
    hint = " (give the folder that it lies in)" if path.suffix == ".npy" else ""
    raise ValueError(f"{path}: a file, and no HDF5{hint}; {WANTED}")


def as_matrix(array: np.ndarray, *, where: str) -> np.ndarray:
    """Rows [n, D] of [n, D], [1, n, D], [n, 1, 1, D] and the like: axes of length one go, from the left, until two stay."""
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{where}: values of the type {array.dtype}; wanted are numbers")
    shape = list(array.shape)
    while len(shape) > 2 and 1 in shape:
        shape.remove(1)
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"{where}: an array of the shape {array.shape}; wanted is [n, D], [1, n, D] or [n, 1, 1, D], n > 0")
    return array.reshape(shape)


def _folder(path: Path) -> ArraySource:
    files = sorted(entry for entry in path.iterdir() if entry.suffix.lower() in ENDINGS and entry.is_file())
    if not files:
        below = next((file.parent for ending in ENDINGS for file in sorted(path.rglob(f"*{ending}"))), None)
        hint = f"; there are some in {below}" if below else ""
        raise ValueError(f"{path}: a folder without a {HEADER} of excl and without array files{hint}; {WANTED}")
    by_id: dict[str, Path] = {}
    for file in files:
        if file.stem in by_id:
            raise ValueError(f"{path}: {by_id[file.stem].name} and {file.name} are of one video; leave one of them there")
        by_id[file.stem] = file
    read = {name: _reader(file) for name, file in by_id.items()}
    return ArraySource(path, f"folder of {len(files):,} array files", read, by_id)


def _archive(path: Path) -> ArraySource:
    """One file with an array a video: the arrays of an .npz, or the dict of tensors in a .pt."""
    if path.suffix.lower() == ".npz":
        with describe_read_errors(path), np.load(path, allow_pickle=False) as found:
            names = list(found.keys())
        return ArraySource(path, f"file of {len(names):,} arrays", {name: _reader(path, name) for name in names})
    with describe_read_errors(path):
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(tensors, dict) or not all(isinstance(name, str) for name in tensors):
            raise ValueError(f"holds a {type(tensors).__name__}; wanted is a dict of tensors by video id")
    read = {name: functools.partial(as_array, value, f"{path}: {name!r}") for name, value in tensors.items()}
    return ArraySource(path, f"file of {len(tensors):,} tensors", read)


def _reader(path: Path, member: str = "") -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        with describe_read_errors(path):
            if path.suffix.lower() == ".npz":
                return read_npz(path, member)
            return read_npy(path) if path.suffix.lower() == ".npy" else read_tensor(path)

    return read


def _hdf5(path: Path) -> ArraySource:
    try:
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        raise ValueError(f"{path}: not a readable HDF5 file ({first_line(error)})") from error
    if file.attrs.get("format") == FORMAT:
        raise ValueError(f"{path}: one shard of a feature store of excl; give the store's folder")
    if not len(file):
        raise ValueError(f"{path}: an HDF5 file without anything in it; wanted is a dataset or a group a video")

    def reader(name: str) -> Callable[[], np.ndarray]:
        def read() -> np.ndarray:
            try:
                return in_memory(local_dataset(file, name))
            except (ValueError, OSError, KeyError, RuntimeError) as error:
                raise ValueError(f"{path}: {name!r}: {first_line(error)}") from error

        return read

    names = list(file)
    if len(names) == 1 and isinstance(file.get(names[0]), h5py.Group) and len(file[names[0]]) > 1:
        raise ValueError(
            f"{path}: all of it is in the group {names[0]!r}; wanted is a dataset or a group a video at the top"
        )
    return ArraySource(path, f"HDF5 file of {len(names):,} entries", {name: reader(name) for name in names})


def transposed_side(shapes_a: Sequence[tuple[int, int]], shapes_b: Sequence[tuple[int, int]]) -> str:
    """'A' or 'B' if that side is [D, n] where the other is [n, D], 'A or B' if nothing tells which, else ''.

    A side is transposed if the other has one width in most videos, and most of its own have it as their height only.
    """
    width_a, width_b = _most(shape[1] for shape in shapes_a), _most(shape[1] for shape in shapes_b)
    height_a, height_b = _most(shape[0] for shape in shapes_a), _most(shape[0] for shape in shapes_b)
    if width_a and width_a == width_b:
        return ""
    turned = [
        side
        for side, (height, width) in {"A": (height_a, width_b), "B": (height_b, width_a)}.items()
        if height and height == width
    ]
    return " or ".join(turned)


def _most(lengths: Iterable[int]) -> int:
    """The length that more than half have; 0 if there is none."""
    counts = Counter(lengths)
    length, times = counts.most_common(1)[0] if counts else (0, 0)
    return length if 2 * times > counts.total() else 0
