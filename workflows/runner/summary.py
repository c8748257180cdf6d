"""What a step's folder holds, in a line, what has become of it, and what people have to know: failures and coverage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from excl.pipeline import evaluate, pack, tokenise, train
from excl.pipeline.artifacts.header import HEADER
from excl.pipeline.artifacts.manifest import COMPLETE, RECORDS, Manifest
from excl.pipeline.artifacts.video_records import failed_by_reason, video_keys
from excl.pipeline.sweep import reproduce
from excl.workflows import demo
from excl.workflows.runner.output_folders import READ_VIDEOS, old_folders

NAMES_SHOWN = 5


@dataclass(frozen=True)
class FolderSnapshot:
    """Which folder is at the place of a step, if any is, and the size and time of its records, or of those in a sweep."""

    inode: int | None = None
    records: frozenset[tuple[str, int, int]] = frozenset()

    @classmethod
    def of(cls, folder: Path) -> FolderSnapshot:
        """The state now."""
        if not folder.is_dir():
            return cls()
        paths = [folder / RECORDS] if (folder / HEADER).is_file() else folder.rglob(RECORDS)
        found = [(str(path.relative_to(folder)), path.stat()) for path in paths if path.is_file()]
        return cls(folder.stat().st_ino, frozenset((name, status.st_size, status.st_mtime_ns) for name, status in found))


@dataclass(frozen=True)
class StepSnapshot:
    """What there was of a step before a run."""

    state: FolderSnapshot
    kept: tuple[FolderSnapshot, ...]
    """Of the folders that had been moved aside."""

    @classmethod
    def of(cls, folder: Path) -> StepSnapshot:
        """What there is now."""
        return cls(FolderSnapshot.of(folder), tuple(map(FolderSnapshot.of, old_folders(folder))))

    def change_since(self, now: FolderSnapshot, planned: str) -> str:
        """What has become of it, in words; `planned` is the kind of what was to become of it."""
        if now == self.state:
            return "unchanged"
        if now.inode in {state.inode for state in self.kept}:
            return "taken back" if now in self.kept else "taken back and gone on"
        if now.inode == self.state.inode:
            return "gone on" if planned == "goes on" or (self.state.records and planned != "new") else "new"
        return "made again" if self.state.records or planned == "again" else "new"


def summary(step: str, manifest: Manifest) -> str:
    """What was made: videos, hours, rows, shards, bytes, or what else there is to count."""
    whole = manifest.records.get(COMPLETE, {})
    if step in READ_VIDEOS:
        return videos_line(manifest)
    if step == demo.STAGE and whole:
        return f"{whole['num_videos']:,} videos, {whole['num_queries']:,} queries"
    if step == tokenise.STAGE and whole:
        splits = json.loads((manifest.folder / "report.json").read_text(encoding="utf-8"))["splits"]
        moments = [f"{split} {of_split['moments']:,}" for split, of_split in splits.items()]
        return f"{', '.join(moments)} moments; {whole['words']:,} words"
    if step == pack.STAGE and whole:
        counts = _coverage(manifest.folder)
        covered = [f"{split} {of_split['covered']:,} of {of_split['queries']:,}" for split, of_split in counts.items()]
        return f"{', '.join(covered)} queries have features"
    if step == train.STAGE and whole:
        return f"{whole['epochs']} epochs"
    return ""


def videos_line(manifest: Manifest) -> str:
    """What decode or extract made, and of how many videos it could not."""
    videos = [manifest.records[key] for key in video_keys(manifest)]
    done = [record for record in videos if "error" not in record]
    of = f" of {len(videos):,}" if len(done) < len(videos) else ""
    parts = [
        f"{len(done):,}{of} videos",
        f"{sum(record.get('duration_s', 0.0) for record in done) / 3600:,.2f} hours of video",
    ]
    for key, what in (("num_frames", "frames"), ("num_rows", "rows")):
        if any(key in record for record in done):
            parts.append(f"{sum(record.get(key, 0) for record in done):,} {what}")
    shards = [manifest.folder / record["file"] for record in manifest.records.values() if "file" in record]
    sizes = [path.stat().st_size for path in shards if path.is_file()]
    return ", ".join([*parts, f"{len(shards):,} shards", f"{sum(sizes) / 1e6:,.1f} MB"])


def failures(manifest: Manifest) -> list[str]:
    """A line for every reason for which videos failed, with how many and which."""
    return [
        f"{len(names):,} {reason}: {', '.join(names[:NAMES_SHOWN])}{', …' if len(names) > NAMES_SHOWN else ''}"
        for reason, names in failed_by_reason(manifest).items()
    ]


def coverage(store: Path) -> dict[str, str]:
    """For every split of a training store how many of its queries have features, and which videos are missing."""
    return {split: pack.coverage_line(counts) for split, counts in _coverage(store).items()}


def _coverage(store: Path) -> Mapping[str, Any]:
    return json.loads((store / "coverage.json").read_text(encoding="utf-8"))["splits"]


def table(step: str, folder: Path) -> str:
    """The figures that a step ends with; empty for one that has none."""
    if step == evaluate.STAGE and (folder / evaluate.METRICS).is_file():
        return evaluate.table(folder)
    if step == "reproduce" and (folder / reproduce.MARKDOWN).is_file():
        return (folder / reproduce.MARKDOWN).read_text(encoding="utf-8").rstrip()
    return ""
