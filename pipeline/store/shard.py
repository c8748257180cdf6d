"""One shard of a feature store: the rows of many videos in one HDF5 file, each row with the seconds it describes.

A shard (`*.h5`) holds, for V videos with R rows together (docs/store.md has the format in full):

    features     [R, D]  float16 or float32, the videos one after another, contiguous and uncompressed
    row_start_s  [R]     float64, seconds on the player's clock
    row_end_s    [R]     float64
    offsets      [V + 1] int64: video v has the rows offsets[v] to offsets[v + 1]
    videos       uint8, UTF-8 JSON: a list of V objects {"id", "crc32" of all of the video, and the source's facts}
    queries      uint8, UTF-8 JSON, in training stores: the moments of these videos
    attributes   format, version, recipe (JSON: what made the features)

It can be read without this code, and holds no object, link or external file; a file that does is refused. Shards are written
whole under a temporary name and moved into place, and never change again, so the reader maps the features into memory and
keeps no file open.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from excl.pipeline.artifacts.atomic_files import atomic_write

try:
    from isal.isal_zlib import crc32  # the same numbers as zlib's, ten times as fast
except ImportError:  # where there is no wheel of it
    from zlib import crc32

FORMAT, VERSION = "excl-features", 2
DTYPES = {
    "features": ("<f2", "<f4"),
    "row_start_s": ("<f8",),
    "row_end_s": ("<f8",),
    "offsets": ("<i8",),
    "videos": ("|u1",),
}
OPTIONAL_DTYPES = {"queries": ("|u1",)}


@dataclass(frozen=True)
class VideoFeatures:
    """The rows of one video: features [n, D] float16 or float32, start_s and end_s [n] float64 seconds.

    Rows of the whole video tile it: start_s[0] = 0, start_s[k + 1] = end_s[k], end_s[-1] = the duration. Those of windows
    may overlap, leave gaps, and end before the video. `facts` says where they come from (file, sha256, frames, fps,
    duration, …) as JSON values. Those of a store cannot be written to.
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
                f"{self.end_s.shape} ends; expected n > 0 rows with a start and an end each"
            )

    def require_finite(self) -> None:
        """Raise ValueError if a value is NaN or infinite."""
        if not np.isfinite(self.features).all():
            raise ValueError(f"{self.video_id}: {(~np.isfinite(self.features)).sum()} feature values are not finite")

    def require_in_order(self) -> None:
        """Raise ValueError unless rows follow each other in time, as spans require: neither starts nor ends go back."""
        if (np.diff(self.start_s) < 0).any() or (np.diff(self.end_s) < 0).any():
            raise ValueError(
                f"{self.video_id}: its rows go back in time, as those of overlapping windows with several rows each, and "
                "of overlapping chunks: no span of rows is a moment. Extract with --window-mean True, or a hop of a window"
            )

    @property
    def duration_s(self) -> float:
        """The end of the video in seconds; if it is unknown, that of the rows."""
        return float(self.facts.get("duration_s", self.end_s.max()))


@contextlib.contextmanager
def h5_file(path: Path) -> Iterator[h5py.File]:
    """Yield an HDF5 file that is made in memory and then written as plain bytes.

    HDF5 may crash the process if a write of its own fails, as on a full disk; here that is an OSError.
    """
    with h5py.File(path, "w", driver="core", backing_store=False, track_order=False) as file:
        yield file
        file.flush()
        image = file.id.get_file_image()
    try:
        path.write_bytes(image)
    except OSError as error:  # which knows no name where it is not the opening that fails
        raise OSError(error.errno, f"{error.strerror}; what was recorded is kept", str(path)) from error


def write_shard(
    path: Path,
    videos: Sequence[VideoFeatures],
    *,
    recipe: Mapping[str, Any],
    queries: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Write `videos` (and the queries about them) as one shard, atomically; the same input gives the same bytes.

    ValueError if a feature is not finite.
    """
    for video in videos:
        video.require_finite()
    described = [{"id": v.video_id, "crc32": _crc32(v), **v.facts} for v in videos]
    offsets = np.cumsum([0, *(len(video.features) for video in videos)])
    with atomic_write(path) as temporary:
        with h5_file(temporary) as file:
            file.attrs["format"], file.attrs["version"] = FORMAT, VERSION
            file.attrs["recipe"] = json.dumps(recipe, sort_keys=True)
            features = np.concatenate([video.features for video in videos])
            file["features"] = features.astype(features.dtype.newbyteorder("<"))
            file["row_start_s"] = np.concatenate([video.start_s for video in videos]).astype("<f8")
            file["row_end_s"] = np.concatenate([video.end_s for video in videos]).astype("<f8")
            file["offsets"] = offsets.astype("<i8")
            file["videos"] = _json_bytes(described)
            if queries is not None:
                file["queries"] = _json_bytes(list(queries))
        shard = Shard(temporary)  # what is committed has been read back
        for position in range(len(videos)):
            shard.video(position)


class Shard:
    """One shard, mapped into memory; ValueError for a file that is not one.

    `mapped` [R, D] are the features; a private mapping, so that torch takes it without a copy.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # Shards never change once they are in place, so a read-only medium without locks is fine.
            with h5py.File(path, "r", locking=False) as file:
                arrays = self._checked(file)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{path}: this shard is recorded but not there; open the store again if it was worked on, or run "
                "`excl extract` again, which makes what is missing"
            ) from None
        except (OSError, RuntimeError, KeyError, TypeError, json.JSONDecodeError) as error:  # whatever h5py makes of damage
            raise ValueError(f"{path}: not a readable HDF5 file ({error})") from error
        self.mapped: np.ndarray = arrays["features"]
        self.start_s: np.ndarray = arrays["row_start_s"]
        self.end_s: np.ndarray = arrays["row_end_s"]
        self.start_s.flags.writeable = self.end_s.flags.writeable = False  # videos share them
        self.offsets: np.ndarray = arrays["offsets"]
        try:
            self.videos: list[dict[str, Any]] = json.loads(arrays["videos"].tobytes())
            self._queries = arrays["queries"].tobytes() if "queries" in arrays else b"[]"
            described = [(video["id"], video["crc32"]) for video in self.videos]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: its list of videos is damaged ({error!r})") from error
        self._require_consistent(len(described))
        self._verified: set[int] = set()

    def _checked(self, file: h5py.File) -> dict[str, np.ndarray]:
        """Return the arrays of the file, the features mapped; ValueError for anything that no shard has."""
        if file.attrs.get("format") != FORMAT or file.attrs.get("version") != VERSION:
            raise ValueError(f"{self.path}: not a shard of the format {FORMAT} {VERSION}")
        self.recipe: dict[str, Any] = json.loads(file.attrs["recipe"])
        dtypes_of = {**DTYPES, **(OPTIONAL_DTYPES if "queries" in file else {})}
        if set(file) != set(dtypes_of):
            raise ValueError(f"{self.path}: holds {sorted(file)[:8]}; a shard holds {sorted(dtypes_of)}")
        return {name: self._array(file, name, dtypes) for name, dtypes in dtypes_of.items()}

    def _array(self, file: h5py.File, name: str, dtypes: tuple[str, ...]) -> np.ndarray:
        """Return one dataset, which has to be a plain one whose bytes are in this very file."""
        link, dataset = file.get(name, getlink=True), file.get(name)
        if not isinstance(link, h5py.HardLink) or not isinstance(dataset, h5py.Dataset):
            raise ValueError(f"{self.path}: {name} is a link or a group; in a shard it is a dataset")
        if (
            dataset.external is not None
            or dataset.is_virtual
            or dataset.chunks is not None
            or dataset.dtype.str not in dtypes
        ):
            raise ValueError(
                f"{self.path}: {name} is external, virtual, chunked or of the type {dataset.dtype}; in a shard it is a "
                f"contiguous dataset of {' or '.join(dtypes)}"
            )
        dimensions = 2 if name == "features" else 1
        begin, size = dataset.id.get_offset(), os.path.getsize(self.path)
        if dataset.ndim != dimensions or begin is None or begin + dataset.nbytes > size:
            raise ValueError(f"{self.path}: {name} {dataset.shape} does not fit the file of {size:,} bytes; it is cut short")
        if name == "features":
            return np.memmap(self.path, dataset.dtype, "c", begin, dataset.shape).view(np.ndarray)
        return dataset[:]

    def _require_consistent(self, num_videos: int) -> None:
        rows = len(self.mapped)
        is_consistent = (
            self.offsets[:1].tolist() == [0] and self.offsets[-1:].tolist() == [rows] and (np.diff(self.offsets) > 0).all()
        )
        if not is_consistent or len(self.offsets) != num_videos + 1 or not len(self.start_s) == len(self.end_s) == rows:
            raise ValueError(
                f"{self.path}: {num_videos} videos, {len(self.offsets)} offsets, {rows} rows and {len(self.start_s)} times "
                "do not go together; it is damaged"
            )

    def rows(self, position: int) -> np.ndarray:
        """Return the features [n, D] of the shard's video number `position`, as they are mapped: do not write to them.

        ValueError if their checksum, which is verified once, is not the recorded one.
        """
        features = self.mapped[self.offsets[position] : self.offsets[position + 1]]
        if position not in self._verified:
            if _crc32(self.unverified(position)) != self.videos[position]["crc32"]:
                raise ValueError(
                    f"{self.path}: the features of {self.videos[position]['id']!r} are damaged (checksum); "
                    "`excl repair` and `excl extract` make them again"
                )
            self._verified.add(position)
        return features

    def video(self, position: int) -> VideoFeatures:
        """Return the rows of the shard's video number `position`; ValueError as in `rows`."""
        self.rows(position)
        return self.unverified(position)

    def unverified(self, position: int) -> VideoFeatures:
        """Return the same rows, whether they are damaged or not."""
        facts = dict(self.videos[position])
        video_id = facts.pop("id")
        del facts["crc32"]
        taken = slice(self.offsets[position], self.offsets[position + 1])
        features = self.mapped[taken]
        features.flags.writeable = False
        return VideoFeatures(video_id, features, self.start_s[taken], self.end_s[taken], facts)

    def queries(self) -> list[dict[str, Any]]:
        """Return the moments stored with these videos, as JSON objects; empty for a store without queries."""
        return json.loads(self._queries)


def _crc32(video: VideoFeatures) -> int:
    """Return the crc32 over id and facts as JSON, features, starts and ends of rows."""
    value = crc32(json.dumps([video.video_id, dict(video.facts)], sort_keys=True).encode())
    dtype_of_features = video.features.dtype.newbyteorder("<")
    for array, dtype in ((video.features, dtype_of_features), (video.start_s, "<f8"), (video.end_s, "<f8")):
        value = crc32(np.ascontiguousarray(array, dtype).data.cast("B"), value)
    return value


def _json_bytes(value: object) -> np.ndarray:
    return np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)
