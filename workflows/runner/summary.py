"""The content of a step's folder, in a line, and what people have to know: failures and coverage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from excl.pipeline import evaluate, pack, tokenise, train
from excl.pipeline.artifacts.header import HEADER
from excl.pipeline.artifacts.manifest import COMPLETE, RECORDS, Manifest
from excl.pipeline.artifacts.video_records import failed_by_reason, video_keys
from excl.pipeline.sweep import reproduce
from excl.workflows import demo
from excl.workflows.runner.output_folders import READ_VIDEOS, is_free

NAMES_SHOWN = 5


def records_state(folder: Path) -> dict[str, tuple[int, int]]:
    """Return the sizes and times of the records in a folder, which show whether a step has added to them."""
    if is_free(folder):
        return {}
    paths = [folder / RECORDS] if (folder / HEADER).is_file() else folder.rglob(RECORDS)
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in paths if path.is_file()}


def summary(step: str, manifest: Manifest) -> str:
    """Return what a folder holds, in counts: videos, hours, rows, shards, bytes, or whatever its stage makes."""
    totals = manifest.records.get(COMPLETE, {})
    if step in READ_VIDEOS:
        return videos_line(manifest)
    if step == demo.STAGE and totals:
        return f"{totals['num_videos']:,} videos, {totals['num_queries']:,} queries"
    if step == tokenise.STAGE and totals:
        splits = json.loads((manifest.folder / "report.json").read_text(encoding="utf-8"))["splits"]
        moments = [f"{split} {of_split['moments']:,}" for split, of_split in splits.items()]
        return f"{', '.join(moments)} moments; {totals['words']:,} words"
    if step == pack.STAGE and totals:
        counts = _coverage(manifest.folder)
        covered = [f"{split} {of_split['covered']:,} of {of_split['queries']:,}" for split, of_split in counts.items()]
        return f"{', '.join(covered)} queries have features"
    if step == train.STAGE and totals:
        return f"{totals['epochs']} epochs"
    return ""


def videos_line(manifest: Manifest) -> str:
    """Return what decode or extract has made, and of how many of the videos."""
    videos = [manifest.records[key] for key in video_keys(manifest)]
    done = [record for record in videos if "error" not in record]
    out_of = f" of {len(videos):,}" if len(done) < len(videos) else ""
    parts = [
        f"{len(done):,}{out_of} videos",
        f"{sum(record.get('duration_s', 0.0) for record in done) / 3600:,.2f} hours of video",
    ]
    for key, unit in (("num_frames", "frames"), ("num_rows", "rows")):
        if any(key in record for record in done):
            parts.append(f"{sum(record.get(key, 0) for record in done):,} {unit}")
    shards = [manifest.folder / record["file"] for record in manifest.records.values() if "file" in record]
    sizes = [path.stat().st_size for path in shards if path.is_file()]
    return ", ".join([*parts, f"{len(shards):,} shards", f"{sum(sizes) / 1e6:,.1f} MB"])


def failures(manifest: Manifest) -> list[str]:
    """Return a line for every reason for which videos failed, with how many and which."""
    return [
        f"{len(names):,} {reason}: {', '.join(names[:NAMES_SHOWN])}{', …' if len(names) > NAMES_SHOWN else ''}"
        for reason, names in failed_by_reason(manifest).items()
    ]


def coverage(store: Path) -> dict[str, str]:
    """Return for every split of a training store how many of its queries have features, and which videos are missing."""
    return {split: pack.coverage_line(counts) for split, counts in _coverage(store).items()}


def _coverage(store: Path) -> Mapping[str, Any]:
    return json.loads((store / "coverage.json").read_text(encoding="utf-8"))["splits"]


def table(step: str, folder: Path) -> str:
    """Return the table of figures that a step has made; empty if it makes none."""
    if step == evaluate.STAGE and (folder / evaluate.METRICS).is_file():
        return evaluate.table(folder)
    if step == reproduce.STAGE and (folder / reproduce.MARKDOWN).is_file():
        return (folder / reproduce.MARKDOWN).read_text(encoding="utf-8").rstrip()
    return ""
