"""Take out of a folder what is damaged, and nothing else, so that the command that made it makes just that again.

The whole videos of a damaged shard are saved as parts, from which the next run joins the shard again.
"""

from __future__ import annotations

import contextlib
import dataclasses
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
from excl.pipeline.execution import pending_videos
from excl.pipeline.execution.sharded_stage import part_name
from excl.pipeline.maintenance import verify
from excl.pipeline.store.shard import Shard, VideoFeatures, write_shard


@dataclass(frozen=True, config=STRICT)
class RepairConfig:
    """Take what is damaged out of a store, or the folder of any other stage; the same command then rebuilds it."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="STORE")]
    """The folder to repair."""
    dry_run: bool = False
    """Report what would be taken out, and change nothing."""


@dataclasses.dataclass(frozen=True)
class RepairReport:
    """Lines for people on the files that were taken out, and the stage that has to be run again."""

    lines: list[str]
    stage: str


def run(config: RepairConfig) -> RepairReport:
    """Verify every byte and take out what is damaged. ValueError if the header or the plan is damaged: nothing is known."""
    lines: list[str] = []
    with Manifest.repair(config.folder) as (manifest, damaged_lines):
        stage = manifest.header["stage"]
        if damaged_lines:
            if stage in ("extract", "import", "decode") and not _has_plan(manifest):
                raise ValueError(
                    f"{config.folder}: the record that says which videos make up which shard is damaged; remove the folder "
                    f"and run `excl {stage}` again"
                )
            lines.append(f"records.jsonl: {len(damaged_lines)} damaged lines; what they recorded is rebuilt")
            if stage == "pack":  # the next run makes what is missing
                manifest.records.pop(COMPLETE, None)
            if stage in ("extract", "import") and (num_restored := _restore_records(manifest)):
                lines.append(f"records.jsonl: {num_restored} known again from whole shards")
        if not config.dry_run and (
            damaged_lines or verify.has_unfinished_line(config.folder) or journals.journals(config.folder)
        ):
            manifest.rewrite(manifest.records)
        findings = verify.find(manifest, read_data=True) if not (damaged_lines and config.dry_run) else []
        for name in sorted({finding.file for finding in findings if not finding.remark}):
            num_whole = _take_out(manifest, name, dry_run=config.dry_run)
            lines.append(f"{name}: taken out" + (f"; {num_whole} whole videos of it are kept" if num_whole else ""))
    return RepairReport(lines, stage)


def _has_plan(manifest: Manifest) -> bool:
    """Return whether every video that has a record is planned: records of a plan are the first and never many."""
    planned = set(planned_ids(manifest))
    recorded = set(map(video_id_of, video_keys(manifest)))
    return bool(planned) and recorded <= planned


def _part_names(manifest: Manifest) -> dict[str, str]:
    """The name of the part file of every planned video."""
    return {video_id: part_name(number) for number, video_id in enumerate(planned_ids(manifest))}


def _restore_records(manifest: Manifest) -> int:
    """Rebuild lost records of shards and of their videos from the shards; return their number."""
    num_records = len(manifest.records)
    parts = _part_names(manifest)
    recorded_files = {record.get("file") for record in manifest.records.values()}
    for path in sorted((manifest.folder / "shards").glob("*.h5")):
        name, (number, _, content) = f"shards/{path.name}", path.stem.partition("-")
        key, sha256 = shard_key(number), sha256_file(path)
        is_recorded = name in recorded_files
        if (not is_recorded and key in manifest.records) or not content or not sha256.startswith(content):
            continue  # an older version of the shard, or damaged
        shard = _open_shard(manifest, path)
        videos = _whole_videos(shard) if shard else []
        ids = [video.video_id for video in videos]
        if shard is None or len(ids) < len(shard.videos) or not set(ids) <= parts.keys():
            continue
        if not is_recorded:
            record: dict[str, Any] = {
                "id": key,
                "file": name,
                "videos": ids,
                "num_rows": len(shard.mapped),
                "sha256": sha256,
            }
            manifest.records[key] = record
        for video in videos:
            if video_key(video.video_id) not in manifest.records:
                record = _video_record(video, manifest.folder, parts[video.video_id], shard.recipe)
                manifest.records[record["id"]] = record
    return len(manifest.records) - num_records


def _video_record(video: VideoFeatures, folder: Path, part: str, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The record that extract or import wrote of a video, from the facts in its shard; without the state of its file."""
    write_shard(folder / part, [video], recipe=recipe)
    sha256 = sha256_file(folder / part)
    (folder / part).unlink()
    names = ("source", "num_frames", "frames_repeated", "transposed")
    record = {
        "id": video_key(video.video_id),
        "part": part,
        "part_sha256": sha256,
        "videos": [video.video_id],
        **{name: video.facts[name] for name in names if name in video.facts},
        "num_rows": len(video.features),
        "duration_s": video.duration_s,
        "stat": [],
    }
    return record | (pending_videos.quality(video.facts) if "frames_expected" in video.facts else {})


def _take_out(manifest: Manifest, name: str, *, dry_run: bool) -> int:
    """Remove a damaged file and its records; return the number of its videos that are whole and were saved as parts."""
    path, num_whole = manifest.folder / name, 0
    if manifest.header["stage"] in ("extract", "import") and name.startswith("shards/") and path.is_file():
        num_whole = _save_whole_videos(manifest, path, dry_run=dry_run)
    if dry_run:
        return num_whole
    records = {
        key: record for key, record in manifest.records.items() if name not in (record.get("file"), record.get("index"))
    }
    if name in records.get(COMPLETE, {}).get("sha256", {}) or manifest.header["stage"] == "pack":
        records.pop(COMPLETE, None)
    path.unlink(missing_ok=True)
    manifest.rewrite(records)
    return num_whole


def _save_whole_videos(manifest: Manifest, path: Path, *, dry_run: bool) -> int:
    """Write the whole videos of a damaged shard as parts; return their number."""
    shard, parts = _open_shard(manifest, path), _part_names(manifest)
    videos = [
        video
        for video in (_whole_videos(shard) if shard else [])
        if video.video_id in parts and video_key(video.video_id) in manifest.records
    ]
    for video in videos if not dry_run else []:
        write_shard(manifest.folder / parts[video.video_id], [video], recipe=manifest.recipe)
    return len(videos)


def _open_shard(manifest: Manifest, path: Path) -> Shard | None:
    """Return a shard of the folder's recipe; None if it cannot be opened or is of another recipe."""
    with contextlib.suppress(ValueError, OSError):
        shard = Shard(path)
        if shard.recipe == manifest.recipe:
            return shard
    return None


def _whole_videos(shard: Shard) -> list[VideoFeatures]:
    """The videos whose checksum is right."""
    videos = []
    for position in range(len(shard.videos)):
        with contextlib.suppress(ValueError, OSError):
            videos.append(shard.video(position))
    return videos


def show(config: RepairConfig, report: RepairReport) -> str:
    """The lines of the report, and what to do next."""
    if not report.lines:
        return f"{config.folder}: nothing is damaged"
    if config.dry_run:
        return "\n".join([*report.lines, "nothing was changed; without --dry-run it is"])
    return "\n".join([*report.lines, f"now run the same `excl {report.stage}` again: it makes just that again"])
