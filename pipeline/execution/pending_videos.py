"""Which videos `decode` and `extract` still have to process, and the record of each, whatever becomes of it.

A video that fails is recorded with its reason and the run continues. A recorded video is not processed again, unless it
failed and `retry_failed` is set, it was unreadable and is readable now, or the failure was our own. A changed file is
refused: a store does not mix two inputs.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from excl.datasets.video.container import require_regular_file
from excl.datasets.video.discovery import Paths
from excl.datasets.video.errors import InternalError, VideoError
from excl.datasets.video.sampling import MAX_SHARE_MISSING, MENDED
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.artifacts.video_records import (
    Quality,
    VideoRecord,
    add_to_plan,
    failed_by_reason,
    planned_ids,
    video_id_of,
    video_key,
    video_keys,
    video_record,
)
from excl.pipeline.execution import circuit_breaker

log = logging.getLogger(__name__)

RETRY = "--retry-failed (in a recipe, retry_failed = true)"
PASSING = ("missing", "unreadable")  # reasons that a file system comes and goes with
INTERNAL = "internal"  # the reason of failures that are not the video's


class VideoTask(NamedTuple):
    """One video of a run: `number` is its place in the plan and names its file, since an id is no safe file name.

    `threads` is how many threads its decoder may use.
    """

    video_id: str
    file: str | Path
    number: int
    threads: int = 1

    @property
    def path(self) -> Path:
        """The path of the video, or of the file that holds it."""
        return Path(self.file)


def plan(manifest: Manifest, videos: Mapping[str, Path], *, present: Callable[[str], bool]) -> list[VideoTask]:
    """Return the videos in an order that never changes: those planned before, then the others by id, which it records.

    A planned video that no longer exists is left as it is if its result is `present` (or it failed), and is recorded as
    failed if not: it can neither be used nor processed.
    """
    video_ids = planned_ids(manifest)
    files = videos.files if isinstance(videos, Paths) else videos
    paths: list[str | Path | None] = list(map(files.get, video_ids))
    missing = [video_id for video_id, path in zip(video_ids, paths, strict=True) if path is None]
    for video_id in missing:
        key = video_key(video_id)
        if key not in manifest.records or (not manifest.has_failed(key) and not present(video_id)):
            message = f"{video_id}: planned in an earlier run, not among the videos now, and nothing made of it is left"
            manifest.add(failure(video_id, VideoError("missing", message)))
    added = sorted(files.keys() - video_ids) if len(files) > len(video_ids) - len(missing) else []
    if added:
        add_to_plan(manifest, added, first_number=len(video_ids))
        video_ids, paths = video_ids + added, paths + list(map(files.get, added))
    numbered = enumerate(zip(video_ids, paths, strict=True))
    return [VideoTask(video_id, path, number) for number, (video_id, path) in numbered if path is not None]


def pending(
    manifest: Manifest, tasks: list[VideoTask], *, present: Callable[[str], bool], retry_failed: bool
) -> tuple[list[VideoTask], list[VideoTask]]:
    """Split the videos into (to do, done).

    A video is to do if it has no record, if its result is not `present`, or if it failed and `retry_failed` or
    `has_returned` says to try again.
    """
    todo, done, num_returned = [], [], 0
    for task in tasks:
        key = video_key(task.video_id)
        if key not in manifest.records:
            todo.append(task)
        elif manifest.has_failed(key):
            is_back = not retry_failed and is_worth_retrying(manifest, task.video_id, task.file)
            num_returned += is_back
            if retry_failed or is_back:
                del manifest.records[key]  # until then it counts as not done
                todo.append(task)
        elif present(task.video_id):
            done.append(task)
        else:
            log.warning("%s: what was made of it is gone; it is done again", task.video_id)
            del manifest.records[key]
            todo.append(task)
    if num_returned:
        log.info(
            "%d videos that failed before are tried again: they can be read now, have another file, or failed by an error "
            "of excl or of a library", num_returned,
        )  # fmt: skip
    return todo, done


def is_worth_retrying(manifest: Manifest, video_id: str, file: str | Path) -> bool:
    """Return whether a video that failed is worth another try.

    It is if the failure was our own, or if its file was unreadable and is readable now, or has changed.
    """
    record = video_record(manifest, video_id)
    if record["error"] == INTERNAL:
        return True
    if record["error"] not in PASSING:
        stat = _stat_or_none(file)
        return stat is not None and record.get("stat", stat) != stat
    try:
        require_regular_file(file)
        with open(file, "rb") as opened:
            return bool(opened.read(1))
    except (OSError, VideoError):
        return False


def _stat_or_none(file: str | Path) -> list[int] | None:
    """Return size and modification time of a file; None if it cannot be looked at."""
    try:
        status = os.stat(file)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def quality(facts: Mapping[str, Any]) -> Quality:
    """Return what a record says about the quality of a video, with `damage` in words if it was kept damaged."""
    names = ("frames_expected", "frames_decoded", "frames_skipped", "bad_packets", "corrupt_frames", "largest_gap_s")
    numbers = {name: facts[name] for name in ("duration_s", "claimed_duration_s", "backend", *names)}
    numbers |= {name: facts[name] for name in MENDED if facts.get(name)}
    damage = _damage(numbers)
    return {"quality": numbers, "damage": damage} if damage else {"quality": numbers}


def _damage(numbers: Mapping[str, Any]) -> str:
    claimed_s = numbers["claimed_duration_s"]
    flaws = []
    if claimed_s and numbers["duration_s"] < (1 - MAX_SHARE_MISSING) * claimed_s:
        flaws.append(f"{numbers['duration_s']:.1f} of {claimed_s:.1f} s")
    if numbers["bad_packets"]:
        flaws.append(f"{numbers['bad_packets']} packets could not be decoded")
    if numbers["corrupt_frames"]:
        flaws.append(f"{numbers['corrupt_frames']} of {numbers['frames_decoded']} frames are damaged")
    if late := numbers.get("reordered_frames"):
        flaws.append(
            "1 frame came late and was put in order" if late == 1 else f"{late} frames came late and were put in order"
        )
    if restarts := numbers.get("clock_restarts"):
        times = "once" if restarts == 1 else f"{restarts} times"
        if (first_s := numbers.get("first_restart_s")) is not None:  # which older records do not have
            times += f", at {first_s:.3f} s," if restarts == 1 else f", first at {first_s:.3f} s,"
        flaws.append(f"the clock started again {times} and was continued")
    return ", ".join(flaws)


def failure(video_id: str, error: VideoError | InternalError, file: str | Path | None = None) -> VideoRecord:
    """Return the record of a video that failed: the reason from the closed list, the sentence, and the state of its file.

    For an error of our own, it also says what was raised and where.
    """
    record = VideoRecord(id=video_key(video_id), error=error.reason, message=str(error))
    if (cause := circuit_breaker.cause_of(error)) is not None:
        record["cause"] = cause
    if isinstance(error, InternalError):
        record["details"] = error.details
    if file is not None and (stat := _stat_or_none(file)) is not None:
        record["stat"] = stat
    return record


def unless_systemic(records: Iterable[VideoRecord]) -> Iterator[VideoRecord]:
    """Yield the records of videos as they come; SystemicError if one after another failed through no fault of its own."""
    return circuit_breaker.unless_systemic(
        records,
        cause=lambda record: record.get("cause"),
        is_done=lambda record: "error" not in record,
        message=lambda record: record["message"],
        details=lambda record: record.get("details", ""),
    )


def report(manifest: Manifest, *, what: str) -> None:
    """Log one line that counts the videos, and the failures grouped by reason."""
    failed = failed_by_reason(manifest)
    num_failed = sum(map(len, failed.values()))
    num_videos = len(video_keys(manifest))
    damaged = list(map(video_id_of, manifest.records_with("damage")))
    if damaged:
        log.warning("%d damaged and kept: %s", len(damaged), _first_names(damaged))
    log.info("%s: %d of %d videos done, in %s", what, num_videos - num_failed, num_videos, manifest.folder)
    for error, video_ids in failed.items():
        log.warning("%d failed as %s: %s", len(video_ids), error, _first_names(video_ids))
    if failed:
        log.warning("%s says more of each; %s tries them again", manifest.folder / "records.jsonl", RETRY)


def _first_names(video_ids: list[str]) -> str:
    return ", ".join(video_ids[:5]) + (", …" if len(video_ids) > 5 else "")
