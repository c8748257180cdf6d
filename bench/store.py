"""How fast feature stores are written and read, against a memory map of float32 and against the usual alternatives.

    python bench/store.py [--videos 640] [--rounds 3]

Every way writes the same features of the same videos (lengths log-normal, 1024 numbers a row; made up) and reads the same
random batches of 32 whole videos into a zero-padded float32 batch, with the files in the page cache. Times are the median of
the rounds, in which all ways take turns; 1.00 is `np.memmap` of float32, copied row block by row block into a NumPy batch.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.store.feature_store import FeatureStore
from excl.pipeline.store.shard import VideoFeatures, write_shard

SIZE, BATCH, BATCHES, SHARD_VIDEOS = 1024, 32, 20, 64
Read = Callable[[list[str]], object]


def padded(arrays: list[np.ndarray]) -> np.ndarray:
    """What one does without us: a zeroed NumPy batch, filled video by video."""
    batch = np.zeros((len(arrays), max(map(len, arrays)), SIZE), np.float32)
    for index, array in enumerate(arrays):
        batch[index, : len(array)] = array
    return batch


class Ways:
    """Every way of keeping features, as a function that writes and one that gives a reader."""

    def __init__(self, folder: Path, features: dict[str, np.ndarray]) -> None:
        self.folder, self.features = folder, features
        self.lengths = {name: len(array) for name, array in features.items()}
        self.begins = dict(zip(features, np.cumsum([0, *self.lengths.values()]), strict=False))

    def memmap(self, dtype: str) -> tuple[Callable[[], None], Callable[[], Read]]:
        path = self.folder / f"{dtype}.bin"
        shape = (sum(self.lengths.values()), SIZE)

        def write() -> None:
            with path.open("wb") as file:
                for array in self.features.values():
                    file.write(array.astype(dtype).data)

        def reader() -> Read:
            rows = np.memmap(path, dtype, "r", shape=shape)
            return lambda names: padded([rows[self.begins[n] : self.begins[n] + self.lengths[n]] for n in names])

        return write, reader

    def excl(self, dtype: str, *, verified_before: bool) -> tuple[Callable[[], None], Callable[[], Read]]:
        folder = self.folder / f"excl-{dtype}"

        def write() -> None:
            shutil.rmtree(folder, ignore_errors=True)
            names = list(self.features)
            with Manifest.open(folder, stage="extract", identity={}, code_version=1) as manifest:
                for first in range(0, len(names), SHARD_VIDEOS):
                    videos = [self._video(name, dtype) for name in names[first : first + SHARD_VIDEOS]]
                    write_shard(folder / f"{first}.h5", videos, recipe={})
                    manifest.add({"id": f"shard/{first}", "file": f"{first}.h5", "videos": [v.video_id for v in videos]})

        def reader() -> Read:
            store = FeatureStore(folder)
            if verified_before:
                for name in store:
                    _ = store[name]
            return store.read_batch

        return write, reader

    def _video(self, name: str, dtype: str) -> VideoFeatures:
        edges = np.arange(self.lengths[name] + 1) * 1.6
        return VideoFeatures(name, self.features[name].astype(dtype), edges[:-1], edges[1:], {})

    def npy(self) -> tuple[Callable[[], None], Callable[[], Read]]:
        folder = self.folder / "npy"

        def write() -> None:
            folder.mkdir(exist_ok=True)
            for name, array in self.features.items():
                np.save(folder / f"{name}.npy", array)

        return write, lambda: lambda names: padded([np.load(folder / f"{name}.npy") for name in names])

    def h5(self, name: str, **settings: object) -> tuple[Callable[[], None], Callable[[], Read]]:
        path = self.folder / f"{name}.h5"

        def write() -> None:
            with h5py.File(path, "w") as file:
                for video, array in self.features.items():
                    file.create_dataset(video, data=array, **settings)

        def reader() -> Read:
            file = h5py.File(path, "r")
            return lambda names: padded([file[video][:] for video in names])

        return write, reader


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None, help="where to write (default: a temporary folder)")
    settings = parser.parse_args()
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(5.0, 0.8, settings.videos), 10, 1500).astype(int)
    features = {
        f"v{i:05d}": np.maximum(generator.standard_normal((n, SIZE), np.float32), -0.36) for i, n in enumerate(lengths)
    }
    batches = [generator.choice(list(features), BATCH).tolist() for _ in range(BATCHES)]
    read_bytes = sum(features[name].nbytes for batch in batches for name in batch)
    with tempfile.TemporaryDirectory(dir=settings.folder) as folder:
        ways = Ways(Path(folder), features)
        named = {
            "np.memmap, float32": ways.memmap("float32"),
            "excl, float32": ways.excl("float32", verified_before=True),
            "excl, float16": ways.excl("float16", verified_before=True),
            "excl, float32, checksums verified meanwhile": ways.excl("float32", verified_before=False),
            "excl, float16, checksums verified meanwhile": ways.excl("float16", verified_before=False),
            "np.memmap, float16": ways.memmap("float16"),
            "one .npy a video, float32": ways.npy(),
            "HDF5, one dataset a video, float32": ways.h5("per-video"),
            "HDF5, one dataset a video, gzip 4": ways.h5("gzip", compression="gzip", compression_opts=4),
        }
        writing, reading = measure(named, batches, settings.rounds)
    total = sum(array.nbytes for array in features.values())
    first = next(iter(named))
    print(f"{settings.videos} videos, {sum(lengths):,} rows, {total / 1e6:,.0f} MB as float32")
    print(f"{'':46}{'write':>8}{'read':>8}{'read MB/s':>11}")
    for name in named:
        write_ratio, read_ratio = writing[first] / writing[name], reading[first] / reading[name]
        rate = read_bytes / reading[name] / 1e6
        print(f"{name:46}{write_ratio:8.2f}{read_ratio:8.2f}{rate:11,.0f}")


def measure(
    named: dict[str, tuple[Callable[[], None], Callable[[], Read]]], batches: list[list[str]], rounds: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds to write everything and to read all batches, by way; all ways take turns in every round."""
    writing: dict[str, list[float]] = {name: [] for name in named}
    reading: dict[str, list[float]] = {name: [] for name in named}
    for name, (write, _) in named.items():
        began = time.perf_counter()
        write()
        writing[name].append(time.perf_counter() - began)
    for _, reader in named.values():  # once unmeasured: the files come into the page cache
        read = reader()
        for batch in batches:
            read(batch)
    for _ in range(rounds):
        for name, (_, reader) in named.items():
            read = reader()
            began = time.perf_counter()
            for batch in batches:
                read(batch)
            reading[name].append(time.perf_counter() - began)
    return (
        {name: statistics.median(times) for name, times in writing.items()},
        {name: statistics.median(times) for name, times in reading.items()},
    )


if __name__ == "__main__":
    main()
