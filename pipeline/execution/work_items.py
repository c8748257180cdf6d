"""What `decode` and `extract` share: one record for every video of a run, whatever becomes of it.

A video that fails is recorded with its reason and the run goes on. A video that is recorded is not done again, unless it
failed and `retry_failed` is asked for, or it could not be read and can be now, or the failure was our own. If its file has
changed that is refused: a store does not mix two inputs.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tqdm import tqdm

from excl.datasets.video.container import require_regular_file
from excl.datasets.video.discovery import Paths
from excl.datasets.video.errors import OF_THE_MACHINE, InternalError, VideoError
from excl.datasets.video.sampling import MAX_SHARE_MISSING, MENDED
from excl.pipeline.artifacts.atomic_files import sha256_file
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.execution import circuit_breaker
from excl.pipeline.execution.video_reading import stop_decoders

log = logging.getLogger(__name__)

LOOK_FIRST_S = 0.5
RETRY = "--retry-failed (in a recipe, retry_failed = true)"
_STAT = '"stat": ['
PASSING = ("missing", "unreadable")  # reasons that a file system comes and goes with
INTERNAL = "internal"  # the reason of failures that are not the video's

# By default bars share a lock with forked processes, and one of these that is killed holding it stops all for good.
tqdm.set_lock(threading.RLock())


class Map(Protocol):
    """How a function is mapped over items: the builtin `map`, or one that spreads them."""

    def __call__(self, function: Callable[[Any], Any], items: Iterable[Any], /) -> Iterable[Any]: ...


def in_threads(workers: int) -> Map:
    """A map that works on so many items at once and gives results as they come."""

    def mapped(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        iterator = iter(items)
        pending: set[Future[Any]] = set()
        threads: list[threading.Thread] = []
        pool = ThreadPoolExecutor(
            workers, thread_name_prefix="excl", initializer=lambda: threads.append(threading.current_thread())
        )
        interrupted = False
        try:
            while True:
                pending |= {pool.submit(function, item) for item in itertools.islice(iterator, workers + 1 - len(pending))}
                if not pending:
                    return
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        except KeyboardInterrupt:
            interrupted = True  # and does not want to wait
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            stop_decoders(threads)
            pool.shutdown(wait=not interrupted)

    return mapped


class VideoTask(NamedTuple):
    """One video of a run: `number` is its place in the plan and names its file, since an id is no safe file name.

    `threads` are those that its decoder may use.
    """

    video_id: str
    file: str | Path
    number: int
    threads: int = 1

    @property
    def path(self) -> Path:
        """Of the video, or of what holds it."""
        return Path(self.file)


def key(video_id: str) -> str:
    """The record id of a video."""
    return f"video/{video_id}"


def plan(manifest: Manifest, videos: Mapping[str, Path], *, present: Callable[[str], bool]) -> list[VideoTask]:
    """The videos in an order that never changes: those planned before, then new ones by id; recorded before any work.

    A planned video that is no longer there is left as it is if what was made of it is `present` (or it failed), and is
    recorded as failed if not: it can neither be used nor be done.
    """
    known = planned(manifest)
    files = videos.files if isinstance(videos, Paths) else videos
    found: list[str | Path | None] = list(map(files.get, known))
    gone = [v for v, file in zip(known, found, strict=True) if file is None]
    for video_id in gone:
        if key(video_id) not in manifest.records or (not manifest.has_failed(key(video_id)) and not present(video_id)):
            message = f"{video_id}: planned in an earlier run, not among the videos now, and nothing made of it is left"
            manifest.add(failure(video_id, VideoError("missing", message)))
    new = sorted(files.keys() - known) if len(files) > len(known) - len(gone) else []
    if new:
        free = next(n for n in itertools.count(len(known)) if f"plan/{n}" not in manifest.records)
        manifest.add({"id": f"plan/{free}", "planned": new})
        known, found = known + new, found + list(map(files.get, new))
    return [
        VideoTask(v, file, number) for number, (v, file) in enumerate(zip(known, found, strict=True)) if file is not None
    ]


def planned(manifest: Manifest) -> list[str]:
    """All ids planned so far, in order."""
    return [v for name in manifest.ids("plan/") for v in manifest.records[name]["planned"]]


def positions(manifest: Manifest) -> dict[str, tuple[str, int]]:
    """Video id to the file that holds it and its place in there: a shard if it was joined, and its part if not."""
    found: dict[str, tuple[str, int]] = {}
    for name in manifest.ids("shard/"):
        record = manifest.records[name]
        if "file" in record:
            found.update((video_id, (record["file"], place)) for place, video_id in enumerate(record["videos"]))
    for name in manifest.ids("video/"):
        if name.removeprefix("video/") not in found and not manifest.has_failed(name) and "part" in manifest.records[name]:
            found[name.removeprefix("video/")] = (manifest.records[name]["part"], 0)
    return found


def file_facts(path: Path) -> dict[str, Any]:
    """Which file it is: {"file", "bytes", "sha256"}; VideoError if it cannot be read."""
    require_regular_file(path)
    try:
        sha256 = sha256_file(path)
    except OSError as error:
        if error.errno in OF_THE_MACHINE:
            raise
        raise VideoError("unreadable", f"{path}: cannot be read ({error.strerror})") from error
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256}


def file_stat(path: Path | str) -> list[int]:
    """Size and time of modification: while they stay the same the file is taken to be the same. VideoError if it is gone."""
    status = require_regular_file(path)
    return [status.st_size, status.st_mtime_ns]


def require_unchanged(path: Path, state: list[int]) -> None:
    """VideoError if the file is not as it was when `state` was read."""
    if file_stat(path) != state:
        raise VideoError("changed", f"{path}: changed while it was read; {RETRY} reads it again")


def pending(
    manifest: Manifest, items: list[VideoTask], *, present: Callable[[str], bool], retry_failed: bool
) -> tuple[list[VideoTask], list[VideoTask]]:
    """The items that still need work, not done, or done and not `present` any more; and those that are done.

    Those that failed because they were not to be read need it as soon as they are, those that failed by an error of ours
    always, and others that failed if they have another file now.
    """
    left, done, back = [], [], 0
    for item in items:
        name = key(item.video_id)
        if name not in manifest.records:
            left.append(item)
        elif manifest.has_failed(name):
            returned = not retry_failed and has_returned(manifest, item.video_id, item.file)
            back += returned
            if retry_failed or returned:
                del manifest.records[name]  # until then it counts as not done
                left.append(item)
        elif present(item.video_id):
            done.append(item)
        else:
            log.warning("%s: what was made of it is gone; it is done again", item.video_id)
            del manifest.records[name]
            left.append(item)
    if back:
        log.info(
            "%d videos that failed before are tried again: they can be read now, have another file, or failed by an error "
            "of excl or of a library", back,
        )  # fmt: skip
    return left, done


def has_returned(manifest: Manifest, video_id: str, file: str | Path) -> bool:
    """Whether a video that failed has another file now, or was not to be read and can be, or the failure was our own.

    No record is parsed to know it.
    """
    name = key(video_id)
    if manifest.says(name, f'"error": "{INTERNAL}"'):
        return True
    if not any(manifest.says(name, f'"error": "{reason}"') for reason in PASSING):
        state = _state(file)
        as_it_was = state is None or manifest.says(name, f"{_STAT}{state[0]}, {state[1]}]")
        return not as_it_was and manifest.says(name, _STAT)
    try:
        require_regular_file(file)
        with open(file, "rb") as opened:
            return bool(opened.read(1))
    except (OSError, VideoError):
        return False


class SourceWatcher:
    """Looks whether the files of items that are done are still those that were used, in a thread beside the work.

    A million files take seconds, on a network minutes. Few are looked at before the work begins.
    """

    def __init__(self, manifest: Manifest, done: list[VideoTask], identify: Callable[[VideoTask], dict[str, Any]]) -> None:
        self._manifest, self._done, self._identify = manifest, done, identify
        self._error: Exception | None = None
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="excl-look", daemon=True)

    def __enter__(self) -> SourceWatcher:
        self._thread.start()
        self._thread.join(LOOK_FIRST_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._thread.join()

    def require_unchanged(self, *, all: bool = False) -> None:
        """ValueError if a file was found to have changed; `all` waits until all were looked at."""
        if all:
            self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            for item in self._done:
                if self._ended:
                    return
                if not is_as_recorded(self._manifest, item):
                    _refuse_changed(self._manifest.records[key(item.video_id)], item, self._identify, self._manifest.folder)
        except Exception as error:  # noqa: BLE001  (the boundary of a thread; it is raised again in the one that works)
            self._error = error


def is_as_recorded(manifest: Manifest, item: VideoTask) -> bool:
    """Whether the file has the size and the time that are recorded, or is no longer there."""
    try:
        state = file_stat(item.file)
    except VideoError as error:
        return error.reason == "missing"
    return manifest.says(key(item.video_id), f"{_STAT}{state[0]}, {state[1]}]")


def _refuse_changed(
    record: Mapping[str, Any], item: VideoTask, identify: Callable[[VideoTask], dict[str, Any]], folder: Path
) -> None:
    try:
        found = identify(item)["sha256"]
    except VideoError as error:
        log.warning("%s: cannot be read any more, what was made of it stays: %s", item.video_id, error)
        return
    if found != record["source"]["sha256"]:
        raise ValueError(
            f"{item.path} has changed since {folder} was made from it; put the file back that it was, choose another output "
            "folder, or remove this one"
        )


def quality(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a record says of how a video could be read, of all the facts; with `damage` in words if it was kept damaged."""
    names = ("frames_expected", "frames_decoded", "frames_skipped", "bad_packets", "corrupt_frames", "largest_gap_s")
    found = {name: facts[name] for name in ("duration_s", "claimed_duration_s", "backend", *names)}
    found |= {name: facts[name] for name in MENDED if facts.get(name)}
    flaws = _damage(found)
    return {"quality": found} | ({"damage": flaws} if flaws else {})


def _damage(found: Mapping[str, Any]) -> str:
    claimed_s = found["claimed_duration_s"]
    flaws = []
    if claimed_s and found["duration_s"] < (1 - MAX_SHARE_MISSING) * claimed_s:
        flaws.append(f"{found['duration_s']:.1f} of {claimed_s:.1f} s")
    if found["bad_packets"]:
        flaws.append(f"{found['bad_packets']} packets could not be decoded")
    if found["corrupt_frames"]:
        flaws.append(f"{found['corrupt_frames']} of {found['frames_decoded']} frames are damaged")
    if late := found.get("reordered_frames"):
        flaws.append(
            "1 frame came late and was put in order" if late == 1 else f"{late} frames came late and were put in order"
        )
    if restarts := found.get("clock_restarts"):
        often = "once" if restarts == 1 else f"{restarts} times"
        if (first_s := found.get("first_restart_s")) is not None:  # which older records do not have
            often += f", at {first_s:.3f} s," if restarts == 1 else f", first at {first_s:.3f} s,"
        flaws.append(f"the clock started again {often} and was continued")
    return ", ".join(flaws)


def failure(video_id: str, error: VideoError | InternalError, file: str | Path | None = None) -> dict[str, Any]:
    """The record of a video that failed: the reason from the closed list, and the sentence; and which state its file had.

    Of an error of our own it has what was raised where, too.
    """
    state = None if file is None else _state(file)
    facts: dict[str, Any] = {"id": key(video_id), "error": error.reason, "message": str(error)}
    if (cause := circuit_breaker.cause_of(error)) is not None:
        facts["cause"] = cause
    if isinstance(error, InternalError):
        facts["details"] = error.details
    return facts | ({"stat": state} if state else {})


def unless_systemic(records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The records of videos as they come; SystemicError where one after the other failed in a way that is not theirs."""
    return circuit_breaker.unless_systemic(
        records,
        cause=lambda record: record.get("cause"),
        is_done=lambda record: "error" not in record,
        message=lambda record: record["message"],
        details=lambda record: record.get("details", ""),
    )


def _state(file: str | Path) -> list[int] | None:
    """Size and time of modification of whatever is there."""
    try:
        status = os.stat(file)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def report(manifest: Manifest, *, what: str) -> None:
    """One line that counts the videos, and the failures grouped by reason."""
    failed = failed_by_reason(manifest)
    num_failed = sum(map(len, failed.values()))
    recorded = manifest.ids("video/")
    done = sum(not manifest.has_failed(name) for name in recorded)
    damaged = [name.removeprefix("video/") for name in manifest.records_with("damage")]
    if damaged:
        log.warning("%d damaged and kept: %s", len(damaged), ", ".join(damaged[:5]) + (", …" if len(damaged) > 5 else ""))
    log.info("%s: %d of %d videos done, in %s", what, done, done + num_failed, manifest.folder)
    for error, names in failed.items():
        log.warning("%d failed as %s: %s", len(names), error, ", ".join(names[:5]) + (", …" if len(names) > 5 else ""))
    if failed:
        log.warning("%s says more of each; %s tries them again", manifest.folder / "records.jsonl", RETRY)


def failed_by_reason(manifest: Manifest) -> dict[str, list[str]]:
    """The ids of the videos that failed, by reason, the most frequent first."""
    found: dict[str, list[str]] = {}
    for name, record in manifest.failed.items():
        found.setdefault(record["error"], []).append(name.removeprefix("video/"))
    return dict(sorted(found.items(), key=lambda pair: -len(pair[1])))


def require_finished(manifest: Manifest) -> None:
    """ValueError if the folder's stage still has videos to do: what is made from it now would not be made from all."""
    left = [v for v in planned(manifest) if key(v) not in manifest.records]
    if left:
        raise ValueError(
            f"{manifest.folder}: {len(left)} of its videos are still to be done ({left[0]!r} for one); "
            f"run `excl {manifest.header['stage']}` to its end first"
        )
