"""Take out of a folder what is damaged, and nothing else, so that the command that made it makes just that again.

Of a damaged shard the videos that are whole are kept as parts, from which the next run joins the shard anew.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import tyro
from pydantic.dataclasses import dataclass

from excl.pipeline.artifacts import journals
from excl.pipeline.artifacts.atomic_files import sha256_file
from excl.pipeline.artifacts.manifest import COMPLETE, Manifest
from excl.pipeline.artifacts.video_records import planned_ids, shard_key, video_id_of, video_key, video_keys
from excl.pipeline.config import STRICT
from excl.pipeline.execution import work_items
from excl.pipeline.execution.sharded_stage import part_name
from excl.pipeline.maintenance import verify
from excl.pipeline.store.shard import Shard, VideoFeatures, write_shard

log = logging.getLogger(__name__)


@dataclass(frozen=True, config=STRICT)
class RepairConfig:
    """Take what is damaged out of a store, or the folder of any other stage; the same command then makes it again."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="STORE")]
    """The folder."""
    dry_run: bool = False
    """Say what would be taken out, and change nothing."""


@dataclasses.dataclass(frozen=True)
class RepairReport:
    """What was taken out, as lines for people, and which stage has to be run again."""

    config: RepairConfig
    lines: list[str]
    stage: str


def run(config: RepairConfig) -> RepairReport:
    """Verify every byte and take out what is damaged. ValueError where the header or the plan is: then nothing is known."""
    lines: list[str] = []
    with Manifest.repair(config.folder) as (manifest, damaged_lines):
        stage = manifest.header["stage"]
        if damaged_lines:
            if stage in ("extract", "import", "decode") and not _has_plan(manifest):
                raise ValueError(
                    f"{config.folder}: the record that says which videos make up which shard is damaged; remove the folder "
                    f"and run `excl {stage}` again"
                )
            lines.append(f"records.jsonl: {len(damaged_lines)} damaged lines; what they recorded is made again")
            if stage == "pack":  # what is missing is made again
                manifest.records.pop(COMPLETE, None)
            if stage in ("extract", "import"):
                found_again = _from_shards(manifest)
                lines += [f"records.jsonl: {len(found_again)} known again from whole shards"] if found_again else []
        if not config.dry_run and (
            damaged_lines or verify.unfinished_line(config.folder) or journals.journals(config.folder)
        ):
            manifest.rewrite(manifest.records)
        found = verify.find(manifest, read_data=True) if not (damaged_lines and config.dry_run) else []
        files = sorted({finding.file for finding in found if not finding.remark})
        for name in files:
            kept = _take_out(manifest, name, dry_run=config.dry_run)
            of_it = f"; {len(kept)} whole videos of it are kept" if kept else ""
            lines.append(f"{name}: taken out{of_it}")
    return RepairReport(config, lines, stage)


def _has_plan(manifest: Manifest) -> bool:
    """Whether every video that has a record is planned: records of a plan are the first and never many."""
    planned = set(planned_ids(manifest))
    recorded = set(map(video_id_of, video_keys(manifest)))
    return bool(planned) and recorded <= planned


def _from_shards(manifest: Manifest) -> list[str]:
    """Records of shards and of videos that are lost, made again from the shards; returns their keys."""
    found: list[str] = []
    numbers = {video_id: number for number, video_id in enumerate(planned_ids(manifest))}
    named = {record.get("file") for record in manifest.records.values()}
    for path in sorted((manifest.folder / "shards").glob("*.h5")):
        name, (number, _, content) = f"shards/{path.name}", path.stem.partition("-")
        key, sha256 = shard_key(number), sha256_file(path)
        known = name in named
        if (not known and key in manifest.records) or not content or not sha256.startswith(content):
            continue  # an older version of the shard, or damaged
        try:
            shard = Shard(path)
            videos = [shard.video(position) for position in range(len(shard.videos))]
        except (ValueError, OSError):
            continue
        ids = [video.video_id for video in videos]
        if shard.recipe != manifest.recipe or not set(ids) <= numbers.keys():
            continue
        if not known:
            manifest.records[key] = {
                "id": key, "file": name, "videos": ids, "num_rows": len(shard.mapped), "sha256": sha256,
            }  # fmt: skip
            found.append(key)
        for video in videos:
            if video_key(video.video_id) not in manifest.records:
                record = _video_record(video, manifest.folder / part_name(numbers[video.video_id]), shard.recipe)
                manifest.records[record["id"]] = record
                found.append(record["id"])
    return found


def _video_record(video: VideoFeatures, part: Path, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What extract or import recorded of a video, by the facts of its shard; without the file's state, which it compares."""
    write_shard(part, [video], recipe=recipe)
    sha256 = sha256_file(part)
    part.unlink()
    told = ("source", "num_frames", "frames_repeated", "transposed")
    record = {
        "id": video_key(video.video_id),
        "part": f"{part.parent.name}/{part.name}",
        "part_sha256": sha256,
        "videos": [video.video_id],
        **{name: video.facts[name] for name in told if name in video.facts},
        "num_rows": len(video.features),
        "duration_s": video.duration_s,
        "stat": [],
    }
    return record | (work_items.quality(video.facts) if "frames_expected" in video.facts else {})


def _take_out(manifest: Manifest, name: str, *, dry_run: bool) -> list[str]:
    """Remove a damaged file and what the records say of it; returns the videos of it that were kept as parts."""
    path = manifest.folder / name
    records = dict(manifest.records)
    kept: list[str] = []
    if manifest.header["stage"] in ("extract", "import") and name.startswith("shards/") and path.is_file():
        kept = _keep_whole_videos(manifest, path, dry_run=dry_run)
    if dry_run:
        return kept
    for key, record in manifest.records.items():
        if name in (record.get("file"), record.get("index")):
            del records[key]
    if name in records.get(COMPLETE, {}).get("sha256", {}) or manifest.header["stage"] == "pack":
        records.pop(COMPLETE, None)
    path.unlink(missing_ok=True)
    manifest.rewrite(records)
    return kept


def _keep_whole_videos(manifest: Manifest, path: Path, *, dry_run: bool) -> list[str]:
    try:
        shard = Shard(path)
    except (ValueError, OSError):
        return []
    numbers = {video_id: number for number, video_id in enumerate(planned_ids(manifest))}
    kept = []
    if shard.recipe != manifest.recipe:
        return []
    for position in range(len(shard.videos)):
        try:
            video = shard.video(position)
        except ValueError:
            continue
        if video.video_id in numbers and video_key(video.video_id) in manifest.records:
            kept.append(video.video_id)
            if not dry_run:
                write_shard(manifest.folder / part_name(numbers[video.video_id]), [video], recipe=shard.recipe)
    return kept


def show(repaired: RepairReport) -> str:
    """What was taken out, and what to do next."""
    folder = repaired.config.folder
    if not repaired.lines:
        return f"{folder}: nothing is damaged"
    if repaired.config.dry_run:
        return "\n".join([*repaired.lines, "nothing was changed; without --dry-run it is"])
    return "\n".join([*repaired.lines, f"now run the same `excl {repaired.stage}` again: it makes just that again"])
