"""Sampled frames of many videos in HDF5 shards, each frame a picture of its own, for extracting from them again and again.

A shard (`*.h5`) holds, for V videos with F frames of B bytes together:

    pictures        uint8 [B]      PNG or JPEG files, one after another
    picture_offsets [F + 1] int64: frame f has the bytes picture_offsets[f] to picture_offsets[f + 1]
    offsets         [V + 1] int64: video v has the frames offsets[v] to offsets[v + 1]
    videos          uint8, UTF-8 JSON: a list of V objects {"id", "crc32" of the pictures' bytes, "facts" of the sampling,
                    "source", the video's file}
    attributes      format, version, recipe (JSON: how the frames were sampled and kept)

PNG keeps every bit; JPEG at quality 95 takes about a quarter of the room.
"""

from __future__ import annotations

import itertools
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from excl.datasets.video.errors import VideoError
from excl.datasets.video.sampling import Video, VideoFacts
from excl.pipeline.artifacts.atomic_files import atomic_write
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.artifacts.video_records import video_files
from excl.pipeline.store.frame_codec import decode_picture, encoder

FORMAT, VERSION = "excl-frames", 1
BLOCK_BYTES = 8 * 2**20


def write_part(
    path: Path,
    video: Video,
    *,
    frames: Iterable[np.ndarray] | None = None,
    video_id: str,
    spec: str,
    source: Mapping[str, Any],
    recipe: Mapping[str, Any],
) -> int:
    """Write the frames of one video as a shard of one, atomically, as they come; return how many bytes of pictures it has.

    `frames` are the video's frames, if the caller watches them on their way.
    """
    encode: Callable[[np.ndarray], bytes] | None = None
    lengths, crc = [], 0
    with atomic_write(path) as temporary, h5py.File(temporary, "w") as file:
        pictures = file.create_dataset("pictures", shape=(0,), maxshape=(None,), chunks=(2**18,), dtype=np.uint8)
        block = bytearray()
        for frame in video if frames is None else frames:
            encode = encode or encoder(spec, side=len(frame))
            encoded = encode(frame)
            lengths.append(len(encoded))
            crc = zlib.crc32(encoded, crc)
            block += encoded
            if len(block) >= BLOCK_BYTES:
                _append(pictures, block)
        _append(pictures, block)
        described = {"id": video_id, "crc32": crc, "facts": video.facts.to_json(), "source": dict(source)}
        _write_index(file, lengths=np.array(lengths), frames=[len(lengths)], videos=[described], recipe=recipe)
        return len(pictures)


def _append(pictures: h5py.Dataset, block: bytearray) -> None:
    pictures.resize(len(pictures) + len(block), axis=0)
    if block:
        pictures[-len(block) :] = np.frombuffer(bytes(block), np.uint8)
    block.clear()


def _write_index(
    file: h5py.File, *, lengths: np.ndarray, frames: Sequence[int], videos: list[dict[str, Any]], recipe: Mapping[str, Any]
) -> None:
    file.attrs["format"], file.attrs["version"] = FORMAT, VERSION
    file.attrs["recipe"] = json.dumps(recipe, sort_keys=True)
    file["picture_offsets"] = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    file["offsets"] = np.concatenate([[0], np.cumsum(frames)]).astype(np.int64)
    file["videos"] = np.frombuffer(json.dumps(videos).encode(), dtype=np.uint8)


def join_frames(target: Path, sources: Sequence[tuple[str, Path]], *, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Write a shard of the videos in `sources`, each from the file that holds it; return the facts for its record."""
    stored = [StoredFrames(path, video_id) for video_id, path in sources]
    lengths = np.concatenate([video.lengths for video in stored])
    with atomic_write(target) as temporary, h5py.File(temporary, "w") as file:
        pictures = file.create_dataset("pictures", shape=(int(lengths.sum()),), dtype=np.uint8)
        position = 0
        for video in stored:
            for block in video.blocks():
                pictures[position : position + len(block)] = block
                position += len(block)
        frames, described = [len(video.lengths) for video in stored], [video.described for video in stored]
        _write_index(file, lengths=lengths, frames=frames, videos=described, recipe=recipe)
    return {"num_frames": sum(frames), "bytes": int(lengths.sum())}


class FrameStore(Mapping[str, "StoredFrames"]):
    """A folder of `decode` as a mapping from video id to its frames."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.manifest = Manifest.read(self.path, stage="decode")
        self._where = video_files(self.manifest)

    def __getitem__(self, video_id: str) -> StoredFrames:
        return StoredFrames(self.path / self._where[video_id], video_id)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._where))

    def __len__(self) -> int:
        return len(self._where)


class StoredFrames:
    """The frames of one video as `decode` left them: a `Video`. `source` is the video's own file, `lengths` bytes a frame.

    Raises VideoError("corrupt") if the file is no such shard or is damaged.
    """

    def __init__(self, path: Path, video_id: str) -> None:
        self.path, self.video_id = path, video_id
        try:
            with h5py.File(path, "r", locking=False) as file:
                if file.attrs["format"] != FORMAT or file.attrs["version"] != VERSION:
                    raise ValueError(f"not of the format {FORMAT} {VERSION}")
                videos = json.loads(file["videos"][:].tobytes())
                position = [video["id"] for video in videos].index(video_id)
                begin, end = file["offsets"][position : position + 2]
                self.offsets = file["picture_offsets"][begin : end + 1]
                self.described: dict[str, Any] = videos[position]
                self.facts = VideoFacts(**self.described["facts"])
                self.source: dict[str, Any] = self.described["source"]
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise self._damaged(error) from error
        self.lengths = np.diff(self.offsets)

    def _damaged(self, error: object) -> VideoError:
        message = f"{self.path}: no sound file of frames that `excl decode` wrote, for {self.video_id!r} ({error})"
        return VideoError("corrupt", f"{message}; remove it and run `excl decode` again")

    def __iter__(self) -> Iterator[np.ndarray]:
        crc = 0
        for begin, end, content in self._reads():
            crc = zlib.crc32(content.data, crc)
            offsets = self.offsets[begin : end + 1] - self.offsets[begin]
            for start, stop in itertools.pairwise(offsets):
                try:
                    yield decode_picture(content[start:stop])
                except ValueError as error:
                    raise self._damaged(error) from error
        if crc != self.described["crc32"]:
            raise self._damaged("checksum")

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield the pictures' bytes in order, some megabytes at a time, uint8 [n]; VideoError if they are damaged."""
        crc = 0
        for _, _, content in self._reads():
            crc = zlib.crc32(content.data, crc)
            yield content
        if crc != self.described["crc32"]:
            raise self._damaged("checksum")

    def _reads(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """Yield frames [begin, end) with their bytes, in blocks of at least one frame and otherwise of bounded size."""
        try:
            with h5py.File(self.path, "r", locking=False) as file:
                begin, count = 0, len(self.lengths)
                while begin < count:
                    limit = self.offsets[begin] + BLOCK_BYTES
                    end = max(begin + 1, int(np.searchsorted(self.offsets, limit, side="right")) - 1)
                    yield begin, end, file["pictures"][self.offsets[begin] : self.offsets[end]]
                    begin = end
        except (OSError, KeyError) as error:
            raise self._damaged(error) from error
