"""Read arrays from files that came from anywhere: nothing is unpickled, no file opens another one, sizes have a limit."""

from __future__ import annotations

import contextlib
import pickle
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np

from excl.datasets.parsing import shortened
from excl.models.lazy_module import LazyModule

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

MAX_VALUES = 2**30  # a video: a million rows of 1024


@contextlib.contextmanager
def describe_read_errors(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong in reading a file into a ValueError that names it."""
    try:
        yield
    except (ValueError, EOFError, RuntimeError, KeyError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path}: cannot be read ({first_line(error)})") from error
    except (zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise ValueError(f"{path}: a damaged archive ({first_line(error)})") from error


def first_line(error: Exception) -> str:
    """The first line of an error, without the explanations that torch and HDF5 add."""
    return (str(error).splitlines() or [repr(error)])[0].strip()


def read_array(path: Path, member: str = "") -> np.ndarray:
    """The array of an .npy file, the one tensor of a .pt file, or an array of an .npz file.

    Of an .npz file the array called `member`, or without a name the only one, or the one called `features`.
    """
    with describe_read_errors(path):
        match path.suffix.lower():
            case ".npz":
                return _read_npz(path, member)
            case ".npy":
                with path.open("rb") as file:
                    if file.read(6) != b"\x93NUMPY":  # np.load says that it is pickled, and how to load it unsafely
                        raise ValueError("not an array file of NumPy")
                return load_values(np.load(path, mmap_mode="r", allow_pickle=False))
            case _:
                return tensor_to_array(torch.load(path, map_location="cpu", weights_only=True), str(path))


def load_values(array: np.ndarray | h5py.Dataset) -> np.ndarray:
    """The values; ValueError for a shape that is too large to be a video's features."""
    if array.size > MAX_VALUES:
        raise ValueError(f"the shape {array.shape} has more than {MAX_VALUES:,} values, which no video's features have")
    return np.asarray(array[()])


def _read_npz(path: Path, member: str) -> np.ndarray:
    with zipfile.ZipFile(path) as archive:
        largest = max((entry.file_size for entry in archive.infolist()), default=0)
    if largest > 8 * MAX_VALUES:
        raise ValueError(f"an array of {largest:,} bytes, which no video's features have")
    with np.load(path, allow_pickle=False) as arrays:
        names = list(arrays.keys())
        if not member and len(names) != 1 and "features" not in names:
            raise ValueError(
                f"{len(names)} arrays ({shortened(names, most=5, describe=str)}); expected one, or one named 'features'"
            )
        array = arrays[member or (names[0] if len(names) == 1 else "features")]
    if not isinstance(array, np.ndarray):  # what is no array in the archive comes as bytes
        raise ValueError("not an archive of NumPy arrays")
    return array


def tensor_to_array(tensor: object, place: str) -> np.ndarray:
    """Return a tensor as an array, bfloat16 as float32; ValueError for any other object."""
    if not isinstance(tensor, torch.Tensor):
        raise ValueError(f"{place}: a {type(tensor).__name__}; expected a tensor")
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().numpy()


def read_dataset(file: h5py.File, name: str) -> np.ndarray:
    """The values of the dataset of that name, or of the only one in the group of that name."""
    dataset = _follow(file, name)
    if isinstance(dataset, h5py.Group):
        names = list(dataset)
        if len(names) != 1 or not isinstance(_follow(dataset, names[0]), h5py.Dataset):
            raise ValueError(
                f"a group with {shortened(names, most=5, describe=str) or 'nothing'} in it; expected one dataset"
            )
        dataset = _follow(dataset, names[0])
    if not isinstance(dataset, h5py.Dataset) or dataset.shape is None or dataset.dtype.kind not in "fiu":
        raise ValueError(f"a dataset of the type {getattr(dataset, 'dtype', type(dataset).__name__)}; expected numbers")
    if dataset.external or dataset.is_virtual:
        raise ValueError("its values are in other files, which are not opened (of a store of excl give the folder)")
    return load_values(dataset)


def _follow(group: h5py.Group, name: str) -> h5py.HLObject:
    """Return the member of a group if it is in the same file: a file from elsewhere must not open files of this machine."""
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise ValueError("a link to another place, which is not followed; copy what it means into this file")
    return group[name]
