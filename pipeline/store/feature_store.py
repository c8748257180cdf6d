"""Feature stores: folders of shards as mappings from video id to rows.

A store believes only the shards that its manifest records. Everything about a shard is in `shard.py`.
"""

from __future__ import annotations

import dataclasses
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from excl.models.lazy_module import LazyModule
from excl.pipeline.artifacts.manifest import COMPLETE, Manifest
from excl.pipeline.artifacts.video_records import positions, require_finished
from excl.pipeline.store.shard import Shard, VideoFeatures

if TYPE_CHECKING:
    import dask.array
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")

ELEMENTS_OF_ONE_THREAD = 32_768  # torch's grain size
MAX_MAPPED = 4096  # shards at once: a system allows about 65,000 mappings a process


class FeatureStore:
    """A folder of shards as a mapping from video id to `VideoFeatures`.

    Shards are mapped into memory when first needed and once per process, so a store may be handed to worker processes,
    forked or spawned. A video's checksum is verified when it is first read. `in_memory` reads everything at once.
    """

    def __init__(self, path: Path | str, *, in_memory: bool = False) -> None:
        self.path = Path(path)
        self.manifest = Manifest.read(self.path)
        self._where = positions(self.manifest)
        if not self._where:
            raise ValueError(f"{self.path}: a folder of the stage {self.manifest.header['stage']!r} without features")
        self._mapped: OrderedDict[str, Shard] = OrderedDict()
        self._held: dict[str, VideoFeatures] = {}
        self._process = os.getpid()
        if in_memory:
            self._held = {video_id: _copied(self[video_id]) for video_id in self}

    def __getstate__(self) -> dict[str, Any]:
        """Leave out open maps, which a receiving process makes itself, and records, which may be many."""
        records = {key: record for key, record in self.manifest.records.items() if key == COMPLETE}
        manifest = Manifest(self.manifest.folder, self.manifest.header, records)
        return {**self.__dict__, "_mapped": OrderedDict(), "manifest": manifest}

    @property
    def recipe(self) -> dict[str, Any]:
        """The recipe of the features: sampling, geometry, weights, precision."""
        return self.manifest.recipe

    def __getitem__(self, video_id: str) -> VideoFeatures:
        if video_id in self._held:
            return self._held[video_id]
        shard, position = self._find(video_id)
        return shard.video(position)

    def __contains__(self, video_id: object) -> bool:
        return video_id in self._where

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._where))

    def __len__(self) -> int:
        return len(self._where)

    def read_batch(self, video_ids: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the rows of several videos, padded with zeros, float32 [B, T, D], and their row counts, int64 [B]."""
        rows = [self._rows(video_id) for video_id in video_ids]
        num_rows = torch.tensor([len(features) for features in rows])
        shape = len(rows), int(num_rows.max()), rows[0].shape[1]
        batch = torch.from_numpy(np.zeros(shape, np.float32))  # [B, T, D]; NumPy's zeros cost nothing until they are touched
        for index, features in enumerate(rows):
            copy_rows(torch.from_numpy(features), batch[index])
        return batch, num_rows

    def tensor(self, video_id: str) -> Tensor:
        """Return the features of a video as a tensor [n, D] that shares the memory of the store: do not write to it."""
        return torch.from_numpy(self._rows(video_id))

    def num_rows(self, video_id: str) -> int:
        """Return how many rows a video has, without reading them."""
        shard, position = self._find(video_id)
        return int(shard.offsets[position + 1] - shard.offsets[position])

    def duration_s(self, video_id: str) -> float:
        """Return the end of a video in seconds, from its facts alone if they state it."""
        shard, position = self._find(video_id)
        duration_s = shard.videos[position].get("duration_s")
        return self[video_id].duration_s if duration_s is None else float(duration_s)

    def to_dask(self) -> dask.array.Array:
        """Return all rows of all videos as one lazy array [R, D], a block a shard, shards by name."""
        import dask  # noqa: PLC0415  (half a second, which only those wait who want it)
        import dask.array  # noqa: PLC0415

        blocks = []
        for name in self.shard_files():
            shard = self._shard(name)
            rows = dask.delayed(_all_rows)(self.path / name)
            blocks.append(dask.array.from_delayed(rows, shape=shard.mapped.shape, dtype=shard.mapped.dtype))
        return dask.array.concatenate(blocks)

    def require_finished(self) -> None:
        """Raise ValueError if `extract` has not finished here: the store will still change."""
        require_finished(self.manifest)
        if any(file.startswith("parts/") for file, _ in self._where.values()):
            raise ValueError(f"{self.path}: its last shards are still to be joined; run `excl extract` to its end first")

    def shard_files(self) -> list[str]:
        """The names of all shards, relative to the store's folder, sorted."""
        return sorted({file for file, _ in self._where.values()})

    def shards(self) -> Iterator[Shard]:
        """Yield all shards in the order of their names."""
        for file in self.shard_files():
            yield self._shard(file)

    def _rows(self, video_id: str) -> np.ndarray:
        """Return the features of a video, as they are mapped or held."""
        if video_id in self._held:
            return self._held[video_id].features
        shard, position = self._find(video_id)
        return shard.rows(position)

    def _find(self, video_id: str) -> tuple[Shard, int]:
        try:
            file, position = self._where[video_id]
        except KeyError:
            raise KeyError(f"{self.path} has no features of {video_id!r}") from None
        shard = self._shard(file)
        stored_id = shard.videos[position]["id"] if position < len(shard.videos) else None
        if stored_id != video_id:
            raise ValueError(f"{self.path / file}: holds {stored_id!r} where {video_id!r} is recorded; it is damaged")
        return shard, position

    def _shard(self, file: str) -> Shard:
        if self._process != os.getpid():
            self._mapped, self._process = OrderedDict(), os.getpid()
        if file not in self._mapped:
            shard = Shard(self.path / file)
            if shard.recipe != self.recipe:
                raise ValueError(f"{self.path / file}: of another recipe than the store; it is damaged, see `excl repair`")
            self._mapped[file] = shard
            if len(self._mapped) > MAX_MAPPED:
                self._mapped.popitem(last=False)
        self._mapped.move_to_end(file)
        return self._mapped[file]


def copy_rows(rows: Tensor, target: Tensor) -> None:
    """Copy rows [n, D] to the beginning of `target`, as float32: torch casts float16 fifteen times as fast as NumPy.

    The blocks are too small for several threads, which gain nothing here and wait for each other when cores are busy.
    """
    if rows.dtype == torch.float32:
        target.numpy()[: len(rows)] = rows.numpy()
        return
    step = max(1, ELEMENTS_OF_ONE_THREAD // rows.shape[1])
    for begin in range(0, len(rows), step):
        block = rows[begin : begin + step]
        target[begin : begin + len(block)].copy_(block)


def _copied(video: VideoFeatures) -> VideoFeatures:
    features = video.features.copy()
    features.flags.writeable = False
    return dataclasses.replace(video, features=features)


def _all_rows(path: Path) -> np.ndarray:
    """Return the features of a whole shard, after verifying every video's checksum."""
    shard = Shard(path)
    for position in range(len(shard.videos)):
        shard.rows(position)
    return shard.mapped
