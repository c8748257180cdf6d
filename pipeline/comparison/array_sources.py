"""Arrays by video id from features in the usual forms: an excl store, a folder of array files, one HDF5, .npz or .pt file.

Nothing is unpickled, and no file opens another one. A file that cannot be read is a ValueError that names it (and the
dataset in it).
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np

from excl.models.lazy_module import LazyModule
from excl.pipeline.artifacts.header import HEADER
from excl.pipeline.comparison.array_files import describe_read_errors, first_line, read_array, read_dataset, tensor_to_array
from excl.pipeline.store.feature_store import FeatureStore
from excl.pipeline.store.shard import FORMAT

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

ENDINGS = (".npy", ".npz", ".pt", ".pth")
SAMPLE = 16  # the arrays whose shapes show whether rows are columns
HDF5_ENDINGS = (".h5", ".hdf5", ".hdf")
WANTED = f"expected a feature store of excl, a folder of {', '.join(ENDINGS)} files, or one HDF5, .npz or .pt file"


class ArraySource(Mapping[str, np.ndarray]):
    """Arrays by name, each read when it is looked up; a ValueError or OSError if that fails."""

    def __init__(
        self,
        path: Path,
        kind: str,
        read: Mapping[str, Callable[[], np.ndarray]],
        files: Mapping[str, Path] | None = None,
    ) -> None:
        self.path, self.kind, self._read, self._files = path, kind, read, files or {}

    def __getitem__(self, name: str) -> np.ndarray:
        return drop_unit_axes(self._read[name](), place=f"{self.path}: {name!r}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._read)

    def __len__(self) -> int:
        return len(self._read)

    def file_of(self, name: str) -> Path:
        """The file that an array is in."""
        return self._files.get(name, self.path)

    def centres_s(self, name: str) -> np.ndarray | None:  # noqa: ARG002
        """The middle of each row's time in seconds; None if the source does not know it."""
        return None


class StoreSource(ArraySource):
    """The features of a store of excl."""

    def __init__(self, path: Path) -> None:
        self.store = FeatureStore(path)
        super().__init__(path, "excl store", {name: partial(self._features, name) for name in self.store})

    def _features(self, name: str) -> np.ndarray:
        return self.store[name].features

    def centres_s(self, name: str) -> np.ndarray | None:
        video = self.store[name]
        return (video.start_s + video.end_s) / 2


def open_source(path: Path) -> ArraySource:
    """Open the features at `path`; ValueError or FileNotFoundError if it has none."""
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


def drop_unit_axes(array: np.ndarray, *, place: str) -> np.ndarray:
    """Return rows [n, D] from [n, D], [1, n, D], [n, 1, 1, D] and the like: all but two axes have length one, and go."""
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{place}: values of the type {array.dtype}; expected numbers")
    shape = list(array.shape)
    while len(shape) > 2 and 1 in shape:
        shape.remove(1)
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"{place}: an array of the shape {array.shape}; expected [n, D], [1, n, D] or [n, 1, 1, D], n > 0")
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
    readers = {name: partial(read_array, file) for name, file in by_id.items()}
    return ArraySource(path, f"folder of {len(files):,} array files", readers, by_id)


def _archive(path: Path) -> ArraySource:
    """Return the source for one file with an array a video: the arrays of an .npz, or the dict of tensors in a .pt."""
    if path.suffix.lower() == ".npz":
        with describe_read_errors(path), np.load(path, allow_pickle=False) as arrays:
            names = list(arrays.keys())
        return ArraySource(path, f"file of {len(names):,} arrays", {name: partial(read_array, path, name) for name in names})
    with describe_read_errors(path):
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(tensors, dict) or not all(isinstance(name, str) for name in tensors):
            raise ValueError(f"holds a {type(tensors).__name__}; expected a dict of tensors by video id")
    readers = {name: partial(tensor_to_array, tensor, f"{path}: {name!r}") for name, tensor in tensors.items()}
    return ArraySource(path, f"file of {len(tensors):,} tensors", readers)


def _hdf5(path: Path) -> ArraySource:
    try:
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        raise ValueError(f"{path}: not a readable HDF5 file ({first_line(error)})") from error
    if file.attrs.get("format") == FORMAT:
        raise ValueError(f"{path}: one shard of a feature store of excl; give the store's folder")
    if not len(file):
        raise ValueError(f"{path}: an HDF5 file without anything in it; expected a dataset or a group a video")

    def read(name: str) -> np.ndarray:
        try:
            return read_dataset(file, name)
        except (ValueError, OSError, KeyError, RuntimeError) as error:
            raise ValueError(f"{path}: {name!r}: {first_line(error)}") from error

    names = list(file)
    if len(names) == 1 and isinstance(file.get(names[0]), h5py.Group) and len(file[names[0]]) > 1:
        raise ValueError(f"{path}: all of it is in the group {names[0]!r}; expected a dataset or a group a video at the top")
    return ArraySource(path, f"HDF5 file of {len(names):,} entries", {name: partial(read, name) for name in names})


def sample_shapes(source: ArraySource, names: Sequence[str]) -> list[tuple[int, ...]]:
    """The shapes of some arrays, at most SAMPLE, spread over the names; those that cannot be read are left out."""
    shapes = []
    for name in names[:: max(1, len(names) // SAMPLE)][:SAMPLE]:
        with contextlib.suppress(ValueError, OSError):  # reported when the array is read in its turn
            shapes.append(source[name].shape)
    return shapes


def transposed_side(shapes_a: Sequence[tuple[int, ...]], shapes_b: Sequence[tuple[int, ...]]) -> str:
    """Return 'A' or 'B' if that side is [D, n] where the other is [n, D], 'A or B' if nothing tells which, else ''.

    A side is transposed if the other has one width in most videos, and most of its own have it as their height only.
    """
    height_a, width_a, height_b, width_b = (
        majority(shape[axis] for shape in shapes) for shapes in (shapes_a, shapes_b) for axis in (0, 1)
    )
    if width_a and width_a == width_b:
        return ""
    sides = {"A": (height_a, width_b), "B": (height_b, width_a)}
    return " or ".join(side for side, (height, width) in sides.items() if height and height == width)


def majority(lengths: Iterable[int]) -> int:
    """The length that more than half have; 0 if there is none."""
    counts = Counter(lengths)
    length, times = counts.most_common(1)[0] if counts else (0, 0)
    return length if 2 * times > counts.total() else 0
