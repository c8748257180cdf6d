"""What `decode` and `extract` leave: videos committed one by one as parts, and joined in shards when a shard is complete.

Each video is committed by itself, as a shard of one in `parts/`; when all videos of a shard are done they are joined in
`shards/`. Which videos make up a shard is settled before any work, so the shards' bytes do not depend on interruptions or
on the order in which videos are done. A shard's name has its content in it, so a version with more videos never takes the
place of one that is recorded.
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

from excl.pipeline.artifacts.journals import FOLDER, ShardRange
from excl.pipeline.artifacts.manifest import HEADER, Manifest, ManifestSnapshot
from excl.pipeline.execution import work_items
from excl.pipeline.execution.executors import Executor, Join, ShardTask, ShardWork, inline, shard_exists, shard_key
from excl.pipeline.execution.interrupts import graceful_interrupt
from excl.pipeline.execution.progress import log_problem, progress
from excl.pipeline.execution.video_reading import num_cores

__all__ = ["Preview", "ShardedStage", "part_name", "preview", "shard_key", "video_files"]

log = logging.getLogger(__name__)

MAX_THREADS = 16  # more than that help no decoder


@dataclass(frozen=True)
class ShardedStage:
    """A stage that makes something of every video: `work` makes a part (at `part_name(item.number)`) and its record.

    `join(target, [(video_id, file), …])` writes a shard of what these files hold of these videos, in that order, and returns
    what its record is to say of it. `identify` says which video a planned item is now, with its "sha256". `at_once` says
    how many videos to work on at a time in the process that asks. What workers elsewhere need of it can be pickled.
    """

    name: str
    code_version: int
    out: Path
    identity: Mapping[str, Any]
    shard_videos: int
    work: Callable[[work_items.VideoTask], dict[str, Any]]
    join: Join
    identify: Callable[[work_items.VideoTask], dict[str, Any]]
    at_once: Callable[[], int] = lambda: 1
    before: Callable[[list[work_items.VideoTask]], None] = lambda _: None
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
        """Do what is not done yet, or a share of it; `before` it told what that is, `after` it told when all that can be is.

        Failures are recorded and do not stop the run. Raises KeyboardInterrupt where a stop was asked for.
        """
        shard_work = ShardWork(self.name, self.out, self.work, self.join, self.at_once)
        opened = Manifest.open(
            self.out, stage=self.name, identity=self.identity, code_version=self.code_version, about=self.about, share=share
        )
        with opened as manifest:
            with manifest.exclusive(), _uncollected():
                todo, done, ids = self._plan(manifest, videos, share, retry_failed=retry_failed)
            with work_items.SourceWatcher(manifest, done, self.identify) as look:
                look.require_unchanged()
                if todo:
                    self.before(todo)
                with graceful_interrupt("the shard in hand") as stop, progress(self.name, len(todo)) as told:
                    new = (executor or inline())(shard_work, self._tasks(manifest, todo, ids), manifest, stop)
                    with contextlib.closing(new):
                        for record in new:
                            look.require_unchanged()
                            if record["id"].startswith("video/"):
                                told.count(record)
                                log_problem(record)
                look.require_unchanged(all=True)
            with manifest.finishing() as is_last:
                if is_last:
                    self._join_left_over(manifest, shard_work)
                    self.after(manifest)
                work_items.report(
                    manifest, what=self.name if share is None else f"{self.name}, share {share.number}/{share.of}"
                )

    def _plan(
        self, manifest: Manifest, videos: Mapping[str, Path], share: ShardRange | None, *, retry_failed: bool
    ) -> tuple[list[work_items.VideoTask], list[work_items.VideoTask], list[str]]:
        """What is to be done, in order, what is done, and the ids of all videos that are planned."""
        for name in ("parts", "shards"):
            (self.out / name).mkdir(exist_ok=True)
        if share is None:
            self._remove_superseded(manifest)
        present = _present(manifest)
        planned = work_items.plan(manifest, videos, present=present)
        if share is not None:
            planned = [item for item in planned if share.has(item.number // self.shard_videos)]
        todo, done = work_items.pending(manifest, planned, present=present, retry_failed=retry_failed)
        threads = max(1, min(MAX_THREADS, num_cores() // max(1, len(todo))))  # of a decoder
        if threads > 1:
            todo = [item._replace(threads=threads) for item in todo]
        return todo, done, work_items.planned(manifest)

    def _tasks(self, manifest: Manifest, todo: list[work_items.VideoTask], ids: list[str]) -> Iterator[ShardTask]:
        """The work by shards, each made when its turn comes; there is a folder for the journals of this run."""
        run = uuid.uuid4().hex[:12]
        for shard, group in itertools.groupby(todo, key=lambda item: item.number // self.shard_videos):
            (self.out / FOLDER / run).mkdir(parents=True, exist_ok=True)
            members = ids[shard * self.shard_videos : (shard + 1) * self.shard_videos]
            names = [shard_key(shard), *map(work_items.key, members)]
            known = tuple(manifest.records[name] for name in names if name in manifest.records)
            yield ShardTask(shard, tuple(members), tuple(group), known, run)

    def _join_left_over(self, manifest: Manifest, work: ShardWork) -> None:
        """Join shards that an interrupted run, or several workers, left to be joined; remove what is in them already."""
        ids, present = work_items.planned(manifest), _present(manifest)
        for shard, first in enumerate(range(0, len(ids), self.shard_videos)):
            members = ids[first : first + self.shard_videos]
            if all(work_items.key(v) in manifest.records for v in members):
                done = [v for v in members if not manifest.has_failed(work_items.key(v))]
                committed = manifest.records.get(shard_key(shard), {})
                if committed.get("videos", []) != done or not (done == [] or shard_exists(self.out, committed)):
                    if all(map(present, done)):
                        work.join_parts(manifest, shard, members)
                    else:
                        log.warning("shard %d: some of it is gone; the same command, for all shards, makes it again", shard)
        shards = [record for name in manifest.ids("shard/") if shard_exists(self.out, record := manifest.records[name])]
        joined = {video_id for record in shards for video_id in record["videos"]}
        for part in (self.out / "parts").glob("*.h5"):
            if part.stem.isdigit() and int(part.stem) < len(ids) and ids[int(part.stem)] in joined:
                part.unlink(missing_ok=True)
        self._remove_superseded(manifest)

    def _remove_superseded(self, manifest: Manifest) -> None:
        """Remove shards that no record names: versions from before or after the recorded one, left by a kill in between."""
        recorded = {manifest.records[name].get("file") for name in manifest.ids("shard/")}
        for path in (self.out / "shards").iterdir():
            if f"shards/{path.name}" not in recorded:
                path.unlink()


class Preview(NamedTuple):
    """The videos that a stage would work on if it were run now, and the number of all its videos."""

    todo: list[work_items.VideoTask]
    num_videos: int


def preview(
    folder: Path,
    videos: Mapping[str, Path],
    *,
    identify: Callable[[work_items.VideoTask], dict[str, Any]],
    retry_failed: bool,
) -> Preview:
    """Plan as `run` does, and write nothing. ValueError if a video that was used has changed, which `run` refuses."""
    manifest = ManifestSnapshot.read(folder) if (folder / HEADER).is_file() else ManifestSnapshot(folder, {}, {})
    present = _present(manifest)
    items = work_items.plan(manifest, videos, present=present)
    todo, done = work_items.pending(manifest, items, present=present, retry_failed=retry_failed)
    with work_items.SourceWatcher(manifest, done, identify) as watcher:
        watcher.require_unchanged(all=True)
    return Preview(todo, len(work_items.planned(manifest)))


def _present(manifest: Manifest) -> Callable[[str], bool]:
    """Whether what was made of a video is there: in a shard that is recorded, or as a part."""
    held: set[str] = set()
    for name in manifest.ids("shard/"):
        record = manifest.records[name]
        if shard_exists(manifest.folder, record):
            held.update(record["videos"])
    parts = {entry.name for entry in (manifest.folder / "parts").glob("*")}
    ids = work_items.planned(manifest)
    held.update(video_id for number, video_id in enumerate(ids) if parts and Path(part_name(number)).name in parts)
    return held.__contains__


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Meanwhile no garbage is looked for: a million new objects have none, and looking takes as long as making them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def part_name(number: int) -> str:
    """The file of a video's own part; an id is no safe file name, so its place in the plan is."""
    return f"parts/{number:06d}.h5"


def video_files(manifest: Manifest) -> dict[str, str]:
    """Video id to the file that holds it: a shard if it was joined, and its part if not."""
    return {video_id: file for video_id, (file, _) in work_items.positions(manifest).items()}
