"""Take out of a folder what is damaged, and nothing else, so that the command that made it makes just that again.

Of a damaged shard the videos that are whole are kept as parts, from which the next run joins the shard anew.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Annotated

import tyro
from pydantic.dataclasses import dataclass

from excl.pipeline import items, verify
from excl.pipeline.config import STRICT
from excl.pipeline.manifest import COMPLETE, Manifest
from excl.pipeline.shard import Shard, write_shard
from excl.pipeline.shards import part_name

log = logging.getLogger(__name__)


@dataclass(frozen=True, config=STRICT)
class Config:
    """Take what is damaged out of a store, or the folder of any other stage; the same command then makes it again."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="STORE")]
    """The folder."""
    dry_run: bool = False
    """Say what would be taken out, and change nothing."""


@dataclasses.dataclass(frozen=True)
class Repaired:
    """What was taken out, as lines for people, and which stage has to be run again."""

    config: Config
    lines: list[str]
    stage: str


def run(config: Config) -> Repaired:
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
        if not config.dry_run and (damaged_lines or verify.unfinished_line(config.folder)):
            manifest.rewrite(manifest.records)
        found = verify.find(manifest, read_data=True) if not (damaged_lines and config.dry_run) else []
        files = sorted({finding.file for finding in found if not finding.remark})
        for name in files:
            kept = _take_out(manifest, name, dry_run=config.dry_run)
            of_it = f"; {len(kept)} whole videos of it are kept" if kept else ""
            lines.append(f"{name}: taken out{of_it}")
    return Repaired(config, lines, stage)


def _has_plan(manifest: Manifest) -> bool:
    """Whether every video that has a record is planned: records of a plan are the first and never many."""
    planned = set(items.planned(manifest))
    recorded = {name.removeprefix("video/") for name in manifest.records if name.startswith("video/")}
    return bool(planned) and recorded <= planned


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
    numbers = {video_id: number for number, video_id in enumerate(items.planned(manifest))}
    kept = []
    for position in range(len(shard.videos)):
        try:
            video = shard.video(position)
        except ValueError:
            continue
        if video.video_id in numbers and items.key(video.video_id) in manifest.records:
            kept.append(video.video_id)
            if not dry_run:
                write_shard(manifest.folder / part_name(numbers[video.video_id]), [video], recipe=shard.recipe)
    return kept


def show(repaired: Repaired) -> str:
    """What was taken out, and what to do next."""
    folder = repaired.config.folder
    if not repaired.lines:
        return f"{folder}: nothing is damaged"
    if repaired.config.dry_run:
        return "\n".join([*repaired.lines, "nothing was changed; without --dry-run it is"])
    return "\n".join([*repaired.lines, f"now run the same `excl {repaired.stage}` again: it makes just that again"])
