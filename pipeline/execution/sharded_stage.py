"""A stage that works through videos: each is committed as a part, and the parts of a complete shard are joined.

Each video is committed by itself, as a shard of one in `parts/`; when all videos of a shard are done they are joined in
`shards/`. Which videos make up a shard is settled before any work, so the shards' bytes do not depend on interruptions or on
the order in which videos are done. A shard's name has its content in it, so a version with more videos never replaces a
recorded one.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from excl.pipeline.artifacts.journals import FOLDER
from excl.pipeline.artifacts.manifest import HEADER, Manifest, ManifestSnapshot
from excl.pipeline.artifacts.shard_range import ShardRange
from excl.pipeline.artifacts.video_records import VideoRecord, is_video, planned_ids, shard_key, shard_records, video_key
from excl.pipeline.execution import pending_videos
from excl.pipeline.execution.interrupts import graceful_interrupt
from excl.pipeline.execution.pending_videos import VideoTask
from excl.pipeline.execution.progress import log_problem, progress
from excl.pipeline.execution.shard_work import Executor, Join, ShardTask, ShardWork, inline, shard_exists
from excl.pipeline.execution.source_files import SourceWatcher
from excl.pipeline.execution.video_reading import num_cores

log = logging.getLogger(__name__)

MAX_THREADS = 16  # more than that help no decoder


@dataclass(frozen=True)
class ShardedStage:
    """A stage that makes something of every video: `work` makes a part (at `part_name(task.number)`) and its record.

    `work`, `join` and `at_once` are those of `ShardWork`. `identify` says which file a planned video has now. `before` is
    called with the pending videos, `after` once everything possible is done.
    """

    name: str
    code_version: int
    out: Path
    identity: Mapping[str, Any]
    shard_videos: int
    work: Callable[[VideoTask], VideoRecord]
    join: Join
    identify: Callable[[VideoTask], Mapping[str, Any]]
    at_once: Callable[[], int] = lambda: 1
    before: Callable[[list[VideoTask]], None] = lambda _: None
    about: Mapping[str, Any] | None = None
    after: Callable[[Manifest], None] = lambda _: None

    def run(
        self,
        videos: Mapping[str, Path],
        *,
        retry_failed: bool,
        executor: Executor | None = None,
        share: ShardRange | None = None,
    ) -> None:
        """Process the pending videos, or this share of them.

        Failures are recorded and do not stop the run. Raises KeyboardInterrupt if a stop was requested.
        """
        shard_work = ShardWork(self.name, self.out, self.work, self.join, self.at_once)
        label = self.name if share is None else f"{self.name}, share {share.number}/{share.of}"
        opened = Manifest.open(
            self.out, stage=self.name, identity=self.identity, code_version=self.code_version, about=self.about, share=share
        )
        with opened as manifest:
            with manifest.exclusive(), _garbage_collection_off():
                todo, done, video_ids = self._plan(manifest, videos, share, retry_failed=retry_failed)
            with SourceWatcher(manifest, done, self.identify) as watcher:
                watcher.require_unchanged()
                if todo:
                    self.before(todo)
                with graceful_interrupt("the shard in hand") as interrupt, progress(self.name, len(todo)) as run_progress:
                    tasks = self._tasks(manifest, todo, video_ids)
                    records = (executor or inline())(shard_work, tasks, manifest, interrupt)
                    with contextlib.closing(records):
                        for record in records:
                            watcher.require_unchanged()
                            if is_video(record):
                                run_progress.count(record)
                                log_problem(record)
                watcher.require_unchanged(all=True)
            with manifest.finishing() as is_last:
                if is_last:
                    self._join_left_over(manifest, shard_work)
                    self.after(manifest)
                pending_videos.report(manifest, what=label)

    def _plan(
        self, manifest: Manifest, videos: Mapping[str, Path], share: ShardRange | None, *, retry_failed: bool
    ) -> tuple[list[VideoTask], list[VideoTask], list[str]]:
        """Return the videos to do, in order, the videos that are done, and the ids of all planned videos."""
        for name in ("parts", "shards"):
            (self.out / name).mkdir(exist_ok=True)
        if share is None:
            self._remove_superseded(manifest)
        present = _present(manifest)
        tasks = pending_videos.plan(manifest, videos, present=present)
        if share is not None:
            tasks = [task for task in tasks if share.has(task.number // self.shard_videos)]
        todo, done = pending_videos.pending(manifest, tasks, present=present, retry_failed=retry_failed)
        threads = max(1, min(MAX_THREADS, num_cores() // max(1, len(todo))))  # of a decoder
        if threads > 1:
            todo = [task._replace(threads=threads) for task in todo]
        return todo, done, planned_ids(manifest)

    def _tasks(self, manifest: Manifest, todo: list[VideoTask], video_ids: list[str]) -> Iterator[ShardTask]:
        """Yield the work by shards, each made when its turn comes; make a folder for the journals of this run."""
        run = uuid.uuid4().hex[:12]
        for shard, group in itertools.groupby(todo, key=lambda task: task.number // self.shard_videos):
            (self.out / FOLDER / run).mkdir(parents=True, exist_ok=True)
            members = self._members(video_ids, shard)
            keys = [shard_key(shard), *map(video_key, members)]
            known = tuple(manifest.records[key] for key in keys if key in manifest.records)
            yield ShardTask(shard, tuple(members), tuple(group), known, run)

    def _members(self, video_ids: list[str], shard: int) -> list[str]:
        return video_ids[shard * self.shard_videos : (shard + 1) * self.shard_videos]

    def _join_left_over(self, manifest: Manifest, work: ShardWork) -> None:
        """Join shards that an interrupted run, or several workers, left unjoined; remove parts that shards hold already."""
        video_ids, present = planned_ids(manifest), _present(manifest)
        for shard in range(-(-len(video_ids) // self.shard_videos)):
            members = self._members(video_ids, shard)
            if not all(video_key(video_id) in manifest.records for video_id in members):
                continue
            done = [video_id for video_id in members if not manifest.has_failed(video_key(video_id))]  # parses no record
            if work.is_up_to_date(manifest.records.get(shard_key(shard), {}), done):
                continue
            if all(map(present, done)):
                work.join_parts(manifest, shard, members)
            else:
                log.warning("shard %d: some of it is gone; the same command, for all shards, makes it again", shard)
        shards = [record for record in shard_records(manifest) if shard_exists(self.out, record)]
        joined = {video_id for record in shards for video_id in record["videos"]}
        for part in (self.out / "parts").glob("*.h5"):
            if part.stem.isdigit() and int(part.stem) < len(video_ids) and video_ids[int(part.stem)] in joined:
                part.unlink(missing_ok=True)
        self._remove_superseded(manifest)

    def _remove_superseded(self, manifest: Manifest) -> None:
        """Remove shards that no record names: versions from before or after the recorded one, left by a kill in between."""
        recorded = {record.get("file") for record in shard_records(manifest)}
        for path in (self.out / "shards").iterdir():
            if f"shards/{path.name}" not in recorded:
                path.unlink()


class Preview(NamedTuple):
    """The videos that a stage would work on if it were run now, and the number of all its videos."""

    todo: list[VideoTask]
    num_videos: int


def preview(
    folder: Path,
    videos: Mapping[str, Path],
    *,
    identify: Callable[[VideoTask], Mapping[str, Any]],
    retry_failed: bool,
) -> Preview:
    """Plan as `run` does, and write nothing. ValueError if a used video has changed, which `run` refuses."""
    manifest = ManifestSnapshot.read(folder) if (folder / HEADER).is_file() else ManifestSnapshot(folder, {}, {})
    present = _present(manifest)
    items = pending_videos.plan(manifest, videos, present=present)
    todo, done = pending_videos.pending(manifest, items, present=present, retry_failed=retry_failed)
    with SourceWatcher(manifest, done, identify) as watcher:
        watcher.require_unchanged(all=True)
    return Preview(todo, len(planned_ids(manifest)))


def _present(manifest: Manifest) -> Callable[[str], bool]:
    """Return a function that says whether a video's result exists: in a recorded shard, or as a part."""
    present: set[str] = set()
    for shard in shard_records(manifest):
        if shard_exists(manifest.folder, shard):
            present.update(shard["videos"])
    if parts := {f"parts/{entry.name}" for entry in (manifest.folder / "parts").glob("*")}:
        present.update(video_id for number, video_id in enumerate(planned_ids(manifest)) if part_name(number) in parts)
    return present.__contains__


@contextlib.contextmanager
def _garbage_collection_off() -> Iterator[None]:
    """Switch garbage collection off: a million new objects have no garbage, and looking takes as long as making them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def part_name(number: int) -> str:
    """Return the file of a video's own part, which is named by its place in the plan: an id is no safe file name."""
    return f"parts/{number:06d}.h5"
