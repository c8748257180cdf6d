"""The records of a stage that works through videos, by their ids: a plan, what became of each video, the shards.

plan/0       which videos there are, in the order of their numbers; plan/1, … have those that were added later
video/ID     a video that is done, with its part, or one that failed, with the error
shard/00012  the file that a shard's videos were joined in
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, Required, TypedDict, TypeGuard, cast

from excl.pipeline.artifacts.manifest import PLAN, Manifest
from excl.pipeline.artifacts.record_log import Record

_VIDEO, _SHARD = "video/", "shard/"


class SourceFacts(TypedDict):
    """The facts that identify the file of a video: its name, size and sha256."""

    file: str
    bytes: int
    sha256: str


class Quality(TypedDict, total=False):
    """The quality of a video as read, in numbers; `damage` says in words why it counts as damaged, if it was kept so."""

    quality: dict[str, Any]
    damage: str


class Timing(TypedDict, total=False):
    """The seconds that a video took, by kind of work."""

    wall_s: float
    timing: dict[str, float]


class VideoRecord(Quality, Timing, total=False):
    """The outcome for a video: `part` is the file of its own, if it is done, and `error` the reason, if it failed.

    `stat` is the size and the modification time [bytes, ns] of its file.
    """

    id: Required[str]
    part: str
    part_sha256: str
    videos: list[str]
    source: Mapping[str, Any]
    num_frames: int
    num_rows: int
    frames_repeated: int
    transposed: bool
    bytes: int
    duration_s: float
    device: str
    stat: list[int]
    error: str
    message: str
    cause: str
    details: str


class ShardRecord(TypedDict, total=False):
    """The videos of a shard that are done, in order, and the `file` that holds them; none where all of them failed."""

    id: Required[str]
    videos: Required[list[str]]
    file: str
    sha256: str
    num_rows: int
    num_frames: int
    bytes: int


class PlanRecord(TypedDict):
    """The ids of videos, in the order of their numbers."""

    id: str
    planned: list[str]


def video_key(video_id: str) -> str:
    """Return the id of a video's record."""
    return f"{_VIDEO}{video_id}"


def video_id_of(record_id: str) -> str:
    """Return the video whose record has this id."""
    return record_id.removeprefix(_VIDEO)


def shard_key(shard: int | str) -> str:
    """Return the id of the record of a shard, by its number, or by its name where shards have no numbers."""
    return f"{_SHARD}{shard:05d}" if isinstance(shard, int) else f"{_SHARD}{shard}"


def is_video(record: Record) -> TypeGuard[VideoRecord]:
    """Return whether a record is that of a video."""
    return record["id"].startswith(_VIDEO)


def is_shard(record: Record) -> TypeGuard[ShardRecord]:
    """Return whether a record is that of a shard."""
    return record["id"].startswith(_SHARD)


def planned_ids(manifest: Manifest) -> list[str]:
    """Return the ids of all videos planned so far, in the order of their numbers."""
    return [video_id for key in manifest.ids(PLAN) for video_id in manifest.records[key]["planned"]]


def add_to_plan(manifest: Manifest, video_ids: list[str], *, first_number: int) -> None:
    """Give videos the numbers from `first_number` on."""
    keys = (f"{PLAN}{number}" for number in itertools.count(first_number))
    manifest.add(PlanRecord(id=next(key for key in keys if key not in manifest.records), planned=video_ids))


def video_keys(manifest: Manifest) -> list[str]:
    """Return the ids of the records of videos, in the order in which they came."""
    return manifest.ids(_VIDEO)


def video_record(manifest: Manifest, video_id: str) -> VideoRecord:
    """Return the record of a video; KeyError if it has none."""
    return cast(VideoRecord, manifest.records[video_key(video_id)])


def shard_records(manifest: Manifest) -> list[ShardRecord]:
    """Return the records of all shards, in the order in which they came."""
    return [cast(ShardRecord, manifest.records[key]) for key in manifest.ids(_SHARD)]


def positions(manifest: Manifest) -> dict[str, tuple[str, int]]:
    """Map each video that is done to the file that holds it, a shard or its part, and its place in there."""
    places: dict[str, tuple[str, int]] = {}
    for shard in shard_records(manifest):
        if "file" in shard:
            places.update((video_id, (shard["file"], place)) for place, video_id in enumerate(shard["videos"]))
    for key in video_keys(manifest):
        if (video_id := video_id_of(key)) not in places and not manifest.has_failed(key):
            record = manifest.records[key]
            if "part" in record:
                places[video_id] = (record["part"], 0)
    return places


def video_files(manifest: Manifest) -> dict[str, str]:
    """Map each video that is done to the file that holds it."""
    return {video_id: file for video_id, (file, _) in positions(manifest).items()}


def failed_by_reason(manifest: Manifest) -> dict[str, list[str]]:
    """Return the ids of the videos that failed, by reason, the most frequent reason first."""
    failed: dict[str, list[str]] = {}
    for key, record in manifest.failed.items():
        failed.setdefault(record["error"], []).append(video_id_of(key))
    return dict(sorted(failed.items(), key=lambda pair: -len(pair[1])))


def require_finished(manifest: Manifest) -> None:
    """Raise ValueError if the folder's stage still has videos to do: a result made from it now would not cover all."""
    pending = [video_id for video_id in planned_ids(manifest) if video_key(video_id) not in manifest.records]
    if pending:
        raise ValueError(
            f"{manifest.folder}: {len(pending)} of its videos are still to be done, such as {pending[0]!r}; "
            f"run `excl {manifest.header['stage']}` to its end first"
        )
