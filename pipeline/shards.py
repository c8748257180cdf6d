"""What `decode` and `extract` leave: videos committed one by one as parts, and joined in shards when a shard is complete.

Each video is committed by itself, as a shard of one in `parts/`; when all videos of a shard are done they are joined in
`shards/`. Which videos make up a shard is settled before any work, so the shards' bytes do not depend on interruptions or
on the order in which videos are done. A shard's name has its content in it, so a version with more videos never takes the
place of one that is recorded.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from excl.pipeline import items
from excl.pipeline.manifest import Manifest, move, sha256_file
from excl.pipeline.reading import num_cores

MAX_THREADS = 16  # more than that help no decoder
Join = Callable[[Path, list[tuple[str, Path]]], dict[str, Any]]


@dataclass(frozen=True)
class ShardedStage:
    """A stage that makes something of every video: `work` makes a part (at `part_name(item.number)`) and its record.

    `join(target, [(video_id, file), …])` writes a shard of what these files hold of these videos, in that order, and returns
    what its record is to say of it. `identify` says which video a planned item is now, with its "sha256".
    """

    name: str
    code_version: int
    out: Path
    identity: Mapping[str, Any]
    shard_videos: int
    work: Callable[[items.Item], dict[str, Any]]
    join: Join
    identify: Callable[[items.Item], dict[str, Any]]
    before: Callable[[list[items.Item]], None] = lambda _: None
    about: Mapping[str, Any] | None = None
    after: Callable[[Manifest], None] = lambda _: None

    def run(self, videos: Mapping[str, Path], *, map: items.Map, retry_failed: bool) -> None:
        """Do what is not done yet, `before` it told what that is, `after` it told when all that can be is done.

        Failures are recorded and do not stop the run.
        """
        opened = Manifest.open(
            self.out, stage=self.name, identity=self.identity, code_version=self.code_version, about=self.about
        )
        with opened as manifest:
            for name in ("parts", "shards"):
                (self.out / name).mkdir(exist_ok=True)
            self._remove_superseded(manifest)
            held = {v for r in manifest.records.values() if self._is_there(r) for v in r["videos"]}.__contains__
            planned = items.plan(manifest, videos, present=held)
            todo = items.pending(manifest, planned, identify=self.identify, present=held, retry_failed=retry_failed)
            threads = max(1, min(MAX_THREADS, num_cores() // max(1, len(todo))))  # of a decoder
            todo = [dataclasses.replace(item, threads=threads) for item in todo]
            ids = items.planned(manifest)
            numbers = {item.video_id: item.number for item in todo}
            if todo:
                self.before(todo)
            for video_id in items.work_off(manifest, todo, self.work, map=map, what=self.name):
                self._join_parts(manifest, ids, shard=numbers[video_id] // self.shard_videos)
            for shard in range(math.ceil(len(ids) / self.shard_videos)):
                self._join_parts(manifest, ids, shard=shard)  # what an interrupted run left to do
            self.after(manifest)
            items.report(manifest, what=self.name)

    def _join_parts(self, manifest: Manifest, ids: list[str], *, shard: int) -> None:
        """Write a shard of the planned `ids` if all its videos are recorded and it lacks one; then remove its parts."""
        numbers = range(shard * self.shard_videos, (shard + 1) * self.shard_videos)
        members = ids[numbers.start : numbers.stop]
        records = [manifest.records.get(items.key(v)) for v in members]
        done = [v for v, record in zip(members, records, strict=True) if record and "error" not in record]
        committed = manifest.records.get(shard_key(shard), {})
        if None not in records and not done and committed.get("videos"):  # all that it held is lost for good
            manifest.add({"id": shard_key(shard), "videos": []})
        if None in records or not done:
            return
        if committed.get("videos") != done or not self._is_there(committed):
            self._join(manifest, shard, done)
            if "file" in committed and committed["file"] != manifest.records[shard_key(shard)]["file"]:
                (self.out / committed["file"]).unlink(missing_ok=True)
        for number, video_id in zip(numbers, members, strict=False):
            if video_id in done:
                (self.out / part_name(number)).unlink(missing_ok=True)

    def _join(self, manifest: Manifest, shard: int, video_ids: list[str]) -> None:
        """Join the parts of `video_ids`, and what an earlier version of the shard holds of them, into a new shard."""
        earlier = manifest.records.get(shard_key(shard), {})
        sources = []
        for video_id in video_ids:
            part = self.out / manifest.records[items.key(video_id)]["part"]
            sources.append((video_id, part if part.exists() or "file" not in earlier else self.out / earlier["file"]))
        joined = self.out / "parts" / f"joined-{shard:05d}.h5"
        facts = self.join(joined, sources)
        sha256 = sha256_file(joined)
        name = f"shards/{shard:05d}-{sha256[:12]}.h5"
        move(joined, self.out / name)
        manifest.add({"id": shard_key(shard), "file": name, "videos": video_ids, **facts, "sha256": sha256})

    def _is_there(self, record: Mapping[str, Any]) -> bool:
        """Whether a record names a shard or a part, and the file is there."""
        name = record.get("file", record.get("part"))
        return name is not None and (self.out / name).is_file()

    def _remove_superseded(self, manifest: Manifest) -> None:
        """Remove shards that no record names: versions from before or after the recorded one, left by a kill in between."""
        recorded = {record.get("file") for record in manifest.records.values()}
        for path in (self.out / "shards").iterdir():
            if f"shards/{path.name}" not in recorded:
                path.unlink()


def shard_key(shard: int) -> str:
    """The record id of a shard."""
    return f"shard/{shard:05d}"


def part_name(number: int) -> str:
    """The file of a video's own part; an id is no safe file name, so its place in the plan is."""
    return f"parts/{number:06d}.h5"


def whereabouts(manifest: Manifest) -> dict[str, str]:
    """Video id to the file that holds it: a shard if it was joined, and its part if not."""
    found: dict[str, str] = {}
    for kind in ("part", "file"):
        for record in manifest.records.values():
            if kind in record:
                found |= dict.fromkeys(record["videos"], record[kind])
    return found
