"""Features as files: one HDF5 file, a folder with a file a video, tar shards.

Each function is a generator that yields every video when it is written. It never overwrites a file.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import safetensors.numpy

from excl.pipeline.store.shard import VideoFeatures

Kind = Literal["npy", "npz", "safetensors"]


def write_hdf5(path: Path, videos: Iterable[VideoFeatures], *, dataset: str = "") -> Iterator[VideoFeatures]:
    """Write one HDF5 file with a dataset [n, D] a video, under its name or, with `dataset`, in a group of that name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "x", locking=False) as file:
        for video in videos:
            group = file.create_group(video.video_id) if dataset else file
            group.create_dataset(dataset or video.video_id, data=video.features)
            yield video


def write_arrays(
    folder: Path, videos: Iterable[VideoFeatures], kind: Kind, *, times: bool = True
) -> Iterator[VideoFeatures]:
    """Write a file `NAME.KIND` for every video.

    An .npy file is the features [n, D]. The other kinds hold `features` and, with `times`, `start_s` and `end_s` [n];
    safetensors also the video's id.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for video in videos:
        arrays = {"features": np.ascontiguousarray(video.features)}
        if times:
            arrays |= {"start_s": video.start_s, "end_s": video.end_s}
        with (folder / f"{video.video_id}.{kind}").open("xb") as file:
            if kind == "npy":
                np.save(file, video.features)
            elif kind == "npz":
                np.savez(file, **arrays)  # type: ignore[arg-type]
            else:
                file.write(safetensors.numpy.save(arrays, metadata={"id": video.video_id}))
        yield video


def write_tars(
    folder: Path,
    prefix: str,
    videos: Iterable[VideoFeatures],
    *,
    queries: Mapping[str, Sequence[Mapping[str, Any]]],
    shard_videos: int,
) -> Iterator[VideoFeatures]:
    """Write `PREFIX-000000.tar` and so on for WebDataset, with three files a video, which share a number as their key.

    `KEY.npy` has the features [n, D], `KEY.times.npy` start and end of the rows, float64 [n, 2], `KEY.json` the id, the
    facts and the queries.
    """
    for shard, members in groupby(enumerate(videos), key=lambda item: item[0] // shard_videos):
        with tarfile.open(folder / f"{prefix}-{shard:06d}.tar", "x:", format=tarfile.USTAR_FORMAT) as tar:
            for number, video in members:
                video_queries = list(queries.get(video.video_id, ()))
                description = {"id": video.video_id, "facts": dict(video.facts), "queries": video_queries}
                _add(tar, f"{number:09d}.npy", _npy(video.features))
                _add(tar, f"{number:09d}.times.npy", _npy(np.stack([video.start_s, video.end_s], axis=1)))
                _add(tar, f"{number:09d}.json", json.dumps(description).encode())
                yield video


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)  # without time or owner: the same store gives the same bytes
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))
