"""Feature stores: the rows of many videos in HDF5 shards, each row with the seconds it describes.

A shard (`*.h5`) holds, for V videos with R rows together:

    features     [R, D]  float16 or float32, the videos one after another, contiguous and uncompressed
    row_start_s  [R]     float64, seconds on the player's clock
    row_end_s    [R]     float64
    offsets      [V + 1] int64: video v has the rows offsets[v] to offsets[v + 1]
    videos       uint8, UTF-8 JSON: a list of V objects {"id", "crc32" of the features' bytes, and the source's facts}
    queries      uint8, UTF-8 JSON, in training stores: the moments of these videos
    attributes   format, version, recipe (JSON: what made the features)

Nothing in it needs this code to be read, and nothing in it is an object, a link or an external file. Shards are written
whole under a temporary name and moved into place; `FeatureStore` believes only those that the folder's manifest records.
"""

from __future__ import annotations

import dataclasses
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from excl.datasets.text import Vocabulary
from excl.pipeline import items
from excl.pipeline.manifest import Manifest, atomic

FORMAT, VERSION = "excl-features", 1


@dataclass(frozen=True)
class VideoFeatures:
    """The rows of one video: features [n, D] float16 or float32, start_s and end_s [n] float64 seconds.

    Rows of the whole video tile it: start_s[0] = 0, start_s[k + 1] = end_s[k], end_s[-1] = the duration. Those of windows
    may overlap, leave gaps, and end before the video. `facts` says where they come from (file, sha256, frames, fps,
    duration, …) as JSON values.
    """

    video_id: str
    features: np.ndarray
    start_s: np.ndarray
    end_s: np.ndarray
    facts: Mapping[str, Any]

    def __post_init__(self) -> None:
        rows = len(self.features)
        if self.features.ndim != 2 or rows == 0 or self.start_s.shape != (rows,) or self.end_s.shape != (rows,):
            raise ValueError(
                f"{self.video_id}: features {self.features.shape} with {self.start_s.shape} starts and "
                f"{self.end_s.shape} ends; wanted are n > 0 rows with a start and an end each"
            )
        if not np.isfinite(self.features).all():
            raise ValueError(f"{self.video_id}: {(~np.isfinite(self.features)).sum()} feature values are not finite")

    def require_in_order(self) -> None:
        """ValueError unless rows follow each other in time, as spans need it: neither starts nor ends go back."""
        if (np.diff(self.start_s) < 0).any() or (np.diff(self.end_s) < 0).any():
            raise ValueError(
                f"{self.video_id}: its rows go back in time, as those of overlapping windows with several rows each, and "
                "of overlapping chunks: no span of rows is a moment. Extract with --window-mean True, or a hop of a window"
            )

    @property
    def duration_s(self) -> float:
        """The end of the video; where nothing is known of it, that of the rows."""
        return float(self.facts.get("duration_s", self.end_s.max()))


@dataclass(frozen=True)
class Query:
    """A moment as training stores keep it: `duration_s` is the video's by its annotations, None if nothing knows it."""

    annotation_id: str
    video_id: str
    query: str
    start_s: float
    end_s: float
    duration_s: float | None
    split: str
    group: str
    tokens: tuple[str, ...]
    token_ids: tuple[int, ...]
    query_id: str = ""
    """Queries with the same one are one query with several answers; empty where there is one."""

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Query:
        """A query from a JSON object with these keys; others are left out."""
        values = {field.name: row[field.name] for field in dataclasses.fields(cls)}
        return cls(**{**values, "tokens": tuple(values["tokens"]), "token_ids": tuple(values["token_ids"])})

    def to_json(self) -> dict[str, Any]:
        """The query as JSON values."""
        return dataclasses.asdict(self)


def write_shard(
    path: Path,
    videos: Sequence[VideoFeatures],
    *,
    recipe: Mapping[str, Any],
    queries: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Write `videos` (and the queries about them) as one shard, atomically; the same input gives the same bytes."""
    offsets = np.cumsum([0] + [len(video.features) for video in videos])
    described = [{"id": v.video_id, "crc32": _crc32(v.features), **v.facts} for v in videos]
    with atomic(path) as temporary:
        with h5py.File(temporary, "w", track_order=False) as file:
            file.attrs["format"], file.attrs["version"] = FORMAT, VERSION
            file.attrs["recipe"] = json.dumps(recipe, sort_keys=True)
            file["features"] = np.concatenate([video.features for video in videos])
            file["row_start_s"] = np.concatenate([video.start_s for video in videos]).astype(np.float64)
            file["row_end_s"] = np.concatenate([video.end_s for video in videos]).astype(np.float64)
            file["offsets"] = offsets.astype(np.int64)
            file["videos"] = _json_bytes(described)
            if queries is not None:
                file["queries"] = _json_bytes(list(queries))
        with Shard(temporary) as shard:  # what is committed has been read back
            for position in range(len(videos)):
                shard.video(position)


class Shard:
    """One open shard; a context manager. ValueError for a file that is none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # Shards never change once they are in place, so a read-only medium without locks is fine.
            self.file = h5py.File(path, "r", locking=False)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{path}: this shard is recorded but not there; run `excl extract` again, it makes what is missing"
            ) from None
        except OSError as error:
            raise ValueError(f"{path}: not a readable HDF5 file ({error})") from error
        if self.file.attrs.get("format") != FORMAT or self.file.attrs.get("version") != VERSION:
            raise ValueError(f"{path}: not a shard of the format {FORMAT} {VERSION}")
        self.offsets: np.ndarray = self.file["offsets"][:]
        self.videos: list[dict[str, Any]] = json.loads(self.file["videos"][:].tobytes())

    def __enter__(self) -> Shard:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def video(self, position: int) -> VideoFeatures:
        """The rows of the shard's video number `position`; ValueError if their checksum is not the recorded one."""
        facts = dict(self.videos[position])
        rows = slice(self.offsets[position], self.offsets[position + 1])
        features = self.file["features"][rows]
        video_id, expected = facts.pop("id"), facts.pop("crc32")
        if _crc32(features) != expected:
            raise ValueError(
                f"{self.path}: the features of {video_id!r} are damaged (checksum); remove the file and extract again"
            )
        return VideoFeatures(video_id, features, self.file["row_start_s"][rows], self.file["row_end_s"][rows], facts)

    def queries(self) -> list[dict[str, Any]]:
        """The moments stored with these videos, as JSON objects; empty for a store without queries."""
        return json.loads(self.file["queries"][:].tobytes()) if "queries" in self.file else []


def _crc32(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).data)


def _json_bytes(value: object) -> np.ndarray:
    return np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)


class FeatureStore:
    """A folder of shards as a mapping from video id to `VideoFeatures`.

    Files are opened when first needed and once per process, so a store may be handed to worker processes.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.manifest = Manifest.read(self.path)
        self._where: dict[str, tuple[str, int]] = {}
        for kind in ("part", "file"):  # a shard over the parts that were joined in it
            for record in self.manifest.records.values():
                if kind in record:
                    for position, video_id in enumerate(record["videos"]):
                        self._where[video_id] = (record[kind], position)
        if not self._where:
            raise ValueError(f"{self.path}: a folder of the stage {self.manifest.header['stage']!r} without features")
        self._open: dict[str, Shard] = {}
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # a process that it is sent to opens files of its own

    @property
    def recipe(self) -> dict[str, Any]:
        """What made the features: sampling, geometry, weights, precision."""
        identity = self.manifest.header["identity"]
        return identity.get("recipe", identity)

    def __getitem__(self, video_id: str) -> VideoFeatures:
        try:
            file, position = self._where[video_id]
        except KeyError:
            raise KeyError(f"{self.path} has no features of {video_id!r}") from None
        video = self._shard(file).video(position)
        if video.video_id != video_id:
            raise ValueError(f"{self.path / file}: holds {video.video_id!r} where {video_id!r} is recorded; it is damaged")
        return video

    def duration_s(self, video_id: str) -> float:
        """The end of a video, by its facts alone if they say it."""
        file, position = self._where[video_id]
        known = self._shard(file).videos[position].get("duration_s")
        return self[video_id].duration_s if known is None else float(known)

    def __contains__(self, video_id: object) -> bool:
        return video_id in self._where

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._where))

    def __len__(self) -> int:
        return len(self._where)

    def require_finished(self) -> None:
        """ValueError if `extract` has not come to its end here: the store is still going to change."""
        items.require_finished(self.manifest)
        if any(file.startswith("parts/") for file, _ in self._where.values()):
            raise ValueError(f"{self.path}: its last shards are still to be joined; run `excl extract` to its end first")

    def _shard(self, file: str) -> Shard:
        if self._process != os.getpid():
            self._open, self._process = {}, os.getpid()
        if file not in self._open:
            self._open[file] = Shard(self.path / file)
        return self._open[file]

    def shards(self) -> Iterator[Shard]:
        """All shards in the order of their names."""
        for file in sorted({file for file, _ in self._where.values()}):
            yield self._shard(file)


class TrainingStore(FeatureStore):
    """What `excl pack` wrote: features, and the queries about them with their vocabulary and word vectors."""

    def __init__(self, path: Path | str) -> None:
        super().__init__(path)
        if self.manifest.header["stage"] != "pack" or not self.manifest.is_complete:
            raise ValueError(f"{self.path}: not a finished training store; `excl pack` writes one")

    def queries(self, split: str) -> list[Query]:
        """The queries of a split, those without features last; ValueError with the splits there are if it is empty."""
        rows = [row for shard in self.shards() for row in shard.queries()]
        with (self.path / "uncovered.jsonl").open(encoding="utf-8") as file:
            rows += [json.loads(line) for line in file]
        chosen = [Query.from_json(row) for row in rows if row["split"] == split]
        if not chosen:
            raise ValueError(f"{self.path}: no queries of a split {split!r}; it has {sorted({r['split'] for r in rows})}")
        return chosen

    @property
    def about_queries(self) -> dict[str, Any]:
        """Which data set the queries are of, what its splits are made of, the tokeniser, the policies on bad annotations."""
        return self.manifest.header["identity"]["about_queries"]

    @property
    def vocabulary(self) -> Vocabulary:
        """The words of the token ids."""
        return Vocabulary.load(self.path / "vocabulary.txt")

    @property
    def vectors(self) -> np.ndarray:
        """The word vectors, float32 [V, D]."""
        return np.load(self.path / "vectors.npy", allow_pickle=False)
