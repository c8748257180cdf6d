"""What `decode` and `extract` share: one record for every video of a run, whatever becomes of it.

A video that fails is recorded with its reason and the run goes on. A video that is recorded is not done again, unless it
failed and `retry_failed` is asked for, or its file has changed, which is refused: a store does not mix two inputs.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from excl.datasets.container import require_regular_file
from excl.datasets.sampling import MAX_SHARE_MISSING
from excl.datasets.video_errors import VideoError
from excl.pipeline.manifest import Manifest, sha256_file
from excl.pipeline.reading import stop_decoders

log = logging.getLogger(__name__)

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
        pool = ThreadPoolExecutor(workers, thread_name_prefix="excl")
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
            stop_decoders()
            pool.shutdown(wait=not interrupted)

    return mapped


@dataclass(frozen=True)
class Item:
    """One video of a run: `number` is its place in the plan and names its file, since an id is no safe file name.

    `threads` are those that its decoder may use.
    """

    video_id: str
    path: Path
    number: int
    threads: int = 1


def key(video_id: str) -> str:
    """The record id of a video."""
    return f"video/{video_id}"


def plan(manifest: Manifest, videos: Mapping[str, Path], *, present: Callable[[str], bool]) -> list[Item]:
    """The videos in an order that never changes: those planned before, then new ones by id; recorded before any work.

    A planned video that is no longer there is left as it is if what was made of it is `present` (or it failed), and is
    recorded as failed if not: it can neither be used nor be done.
    """
    known = planned(manifest)
    for video_id in [v for v in known if v not in videos]:
        record = manifest.records.get(key(video_id))
        if record is None or ("error" not in record and not present(video_id)):
            message = f"{video_id}: planned in an earlier run, not among the videos now, and nothing made of it is left"
            manifest.add(failure(video_id, VideoError("missing", message)))
    new = sorted(set(videos) - set(known))
    if new:
        manifest.add({"id": f"plan/{len(known)}", "planned": new})
    return [Item(v, videos[v], number) for number, v in enumerate([*known, *new]) if v in videos]


def planned(manifest: Manifest) -> list[str]:
    """All ids planned so far, in order."""
    return [v for name, record in manifest.records.items() if name.startswith("plan/") for v in record["planned"]]


def file_facts(path: Path) -> dict[str, Any]:
    """Which file it is: {"file", "bytes", "sha256"}; VideoError if it cannot be read."""
    require_regular_file(path)
    try:
        sha256 = sha256_file(path)
    except OSError as error:
        raise VideoError("unreadable", f"{path}: cannot be read ({error.strerror})") from error
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256}


def read_state(path: Path) -> list[int]:
    """Size and time of modification: while they stay the same the file is taken to be the same. VideoError if it is gone."""
    require_regular_file(path)
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def require_unchanged(path: Path, state: list[int]) -> None:
    """VideoError if the file is not as it was when `state` was read."""
    if read_state(path) != state:
        raise VideoError("changed", f"{path}: changed while it was read; --retry-failed reads it again")


def pending(
    manifest: Manifest,
    items: list[Item],
    *,
    identify: Callable[[Item], dict[str, Any]],
    present: Callable[[str], bool],
    retry_failed: bool,
) -> list[Item]:
    """The items that still need work: not done, or done and not `present` any more.

    ValueError if a video that was done has changed, by what `identify` says of it.
    """
    left = []
    for item in items:
        record = manifest.records.get(key(item.video_id))
        if record is None or (retry_failed and "error" in record):
            left.append(item)
        elif "error" not in record and not present(item.video_id):
            log.warning("%s: what was made of it is gone; it is done again", item.video_id)
            del manifest.records[key(item.video_id)]  # until then it counts as not done
            left.append(item)
        elif "error" not in record and item.path.exists() and _state_or_none(item.path) != record["stat"]:
            _refuse_changed(record, item, identify, manifest.folder)
    return left


def _state_or_none(path: Path) -> list[int] | None:
    try:
        return read_state(path)
    except VideoError:
        return None


def _refuse_changed(record: Mapping[str, Any], item: Item, identify: Callable[[Item], dict[str, Any]], folder: Path) -> None:
    try:
        found = identify(item)["sha256"]
    except VideoError as error:
        log.warning("%s: cannot be read any more, what was made of it stays: %s", item.video_id, error)
        return
    if found != record["source"]["sha256"]:
        raise ValueError(
            f"{item.path} has changed since {folder} was made from it; choose another output folder, or remove this one"
        )


def work_off(
    manifest: Manifest, items: list[Item], work: Callable[[Item], dict[str, Any]], *, map: Map, what: str
) -> Iterable[str]:
    """Map `work` over the items and commit each record as it comes; yields the ids as they are done.

    Progress is a bar on a terminal and ten lines elsewhere, with sampled frames a second and the remaining time.
    """
    started, frames, video_s = time.monotonic(), 0, 0.0
    with logging_redirect_tqdm(), tqdm(total=len(items), desc=what, unit="video", disable=None) as bar:
        lines_every = max(1, len(items) // 10)
        for count, record in enumerate(map(work, items), start=1):
            manifest.add(record)
            _tell(record)
            elapsed_s = time.monotonic() - started
            frames += record.get("num_frames", 0)
            video_s += record.get("duration_s", 0.0)
            bar.set_postfix_str(f"{frames / elapsed_s:,.0f} frames/s", refresh=False)
            bar.update()
            if bar.disable and count % lines_every == 0:
                left_s = elapsed_s / count * (len(items) - count)
                rate = frames / elapsed_s
                log.info("%s: %d of %d videos, %.0f frames/s, %.0f s left", what, count, len(items), rate, left_s)
            yield record["id"].removeprefix("video/")
        if frames:
            wall_s = time.monotonic() - started
            log.info("%s: %.0f s of video in %.1f s, %.1f times real time", what, video_s, wall_s, video_s / wall_s)


def _tell(record: Mapping[str, Any]) -> None:
    video_id = record["id"].removeprefix("video/")
    if "error" in record:
        log.warning("%s: %s", video_id, record["message"])
    elif damage := _damage(record):
        log.warning("%s: damaged, and kept: %s", video_id, damage)


def quality(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a record says of how a video could be read, of all the facts."""
    names = ("frames_expected", "frames_decoded", "frames_skipped", "bad_packets", "corrupt_frames", "largest_gap_s")
    return {name: facts[name] for name in ("duration_s", "claimed_duration_s", "backend", *names)}


def _damage(record: Mapping[str, Any]) -> str:
    """What is wrong with a video that was kept nevertheless; empty if nothing."""
    found = record.get("quality", {})
    claimed_s = found.get("claimed_duration_s")
    flaws = []
    if claimed_s and found["duration_s"] < (1 - MAX_SHARE_MISSING) * claimed_s:
        flaws.append(f"{found['duration_s']:.1f} of {claimed_s:.1f} s")
    if found.get("bad_packets"):
        flaws.append(f"{found['bad_packets']} packets could not be decoded")
    if found.get("corrupt_frames"):
        flaws.append(f"{found['corrupt_frames']} of {found['frames_decoded']} frames are damaged")
    return ", ".join(flaws)


def failure(video_id: str, error: VideoError) -> dict[str, Any]:
    """The record of a video that failed: the reason from the closed list, and the sentence."""
    return {"id": key(video_id), "error": error.reason, "message": str(error)}


def report(manifest: Manifest, *, what: str) -> None:
    """One line that counts the videos, and the failures grouped by reason."""
    done = sum(1 for name, r in manifest.records.items() if name.startswith("video/") and "error" not in r)
    failed = manifest.failed
    damaged = [name.removeprefix("video/") for name, record in manifest.records.items() if _damage(record)]
    if damaged:
        log.warning("%d damaged and kept: %s", len(damaged), ", ".join(damaged[:5]) + (", …" if len(damaged) > 5 else ""))
    log.info("%s: %d of %d videos done, in %s", what, done, done + len(failed), manifest.folder)
    for error, count in Counter(record["error"] for record in failed.values()).most_common():
        names = [name.removeprefix("video/") for name, record in failed.items() if record["error"] == error]
        log.warning("%d failed as %s: %s", count, error, ", ".join(names[:5]) + (", …" if count > 5 else ""))
    if failed:
        log.warning("%s says more of each; --retry-failed tries them again", manifest.folder / "records.jsonl")


def require_finished(manifest: Manifest) -> None:
    """ValueError if the folder's stage still has videos to do: what is made from it now would not be made from all."""
    left = [v for v in planned(manifest) if key(v) not in manifest.records]
    if left:
        raise ValueError(
            f"{manifest.folder}: {len(left)} of its videos are still to be done ({left[0]!r} for one); "
            f"run `excl {manifest.header['stage']}` to its end first"
        )
