"""Arrays out of files that came from anywhere: nothing is unpickled, no file opens another one, sizes have a limit."""

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

from excl.pipeline.artifacts.lazy_module import LazyModule

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

MAX_VALUES = 2**30  # of one video: a million rows of 1024


@contextlib.contextmanager
def describe_read_errors(path: Path) -> Iterator[None]:
    """Whatever goes wrong in reading a file as a ValueError that names it."""
    try:
        yield
    except (ValueError, EOFError, RuntimeError, KeyError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path}: cannot be read ({first_line(error)})") from error
    except (zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise ValueError(f"{path}: a damaged archive ({first_line(error)})") from error


def first_line(error: Exception) -> str:
    """What an error says, without the rest of what torch and HDF5 tell."""
    return (str(error).splitlines() or [repr(error)])[0].strip()


def read_npy(path: Path) -> np.ndarray:
    """The array of an .npy file."""
    with path.open("rb") as file:
        if file.read(6) != b"\x93NUMPY":  # of which np.load says that it is pickled, and how to load it unsafely
            raise ValueError("not an array file of NumPy")
    return in_memory(np.load(path, mmap_mode="r", allow_pickle=False))


def in_memory(array: np.ndarray | h5py.Dataset) -> np.ndarray:
    """The values; ValueError for a shape that is too large to be a video's features."""
    if array.size > MAX_VALUES:
        raise ValueError(f"the shape {array.shape} has more than {MAX_VALUES:,} values, which no video's features have")
    return np.asarray(array[()])


def read_npz(path: Path, member: str = "") -> np.ndarray:
    """The array of that name, or without a name the only one, or the one called `features`."""
    with zipfile.ZipFile(path) as archive:
        largest = max((entry.file_size for entry in archive.infolist()), default=0)
    if largest > 8 * MAX_VALUES:
        raise ValueError(f"an array of {largest:,} bytes, which no video's features have")
    with np.load(path, allow_pickle=False) as arrays:
        names = list(arrays.keys())
        if not member and len(names) != 1 and "features" not in names:
            raise ValueError(f"{len(names)} arrays ({', '.join(names[:5])}); wanted is one, or one named 'features'")
        array = arrays[member or (names[0] if len(names) == 1 else "features")]
    if not isinstance(array, np.ndarray):  # what is no array in the archive comes as bytes
        raise ValueError("not an archive of NumPy arrays")
    return array


def read_tensor(path: Path) -> np.ndarray:
    """The one tensor of a file of torch's."""
    found = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(found, torch.Tensor):
        raise ValueError(f"holds a {type(found).__name__}; wanted is one tensor")
    return as_array(found, str(path))


def as_array(found: object, where: str) -> np.ndarray:
    """A tensor as an array, bfloat16 as float32; ValueError for what is no tensor."""
    if not isinstance(found, torch.Tensor):
        raise ValueError(f"{where}: a {type(found).__name__}; wanted is a tensor")
    return (found.float() if found.dtype == torch.bfloat16 else found).detach().numpy()


def local_dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """The dataset of that name, or the only one in the group of that name."""
    found = _own(file, name)
    if isinstance(found, h5py.Group):
        inside = list(found)
        if len(inside) != 1 or not isinstance(_own(found, inside[0]), h5py.Dataset):
            raise ValueError(f"a group with {', '.join(inside[:5]) or 'nothing'} in it; wanted is one dataset")
        found = _own(found, inside[0])
    if not isinstance(found, h5py.Dataset) or found.shape is None or found.dtype.kind not in "fiu":
        raise ValueError(f"a dataset of the type {getattr(found, 'dtype', type(found).__name__)}; wanted are numbers")
    if found.external or found.is_virtual:
        raise ValueError("its values are in other files, which are not opened (of a store of excl give the folder)")
    return found


def _own(group: h5py.Group, name: str) -> h5py.HLObject:
    """What a group itself holds under a name: a file that came from elsewhere is not to open files of this machine."""
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise ValueError("a link to another place, which is not followed; copy what it means into this file")
    return group[name]
