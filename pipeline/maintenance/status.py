"""Say how far a folder is: read its manifest, leave nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import tyro
from pydantic.dataclasses import dataclass

from excl.datasets.parsing import shortened
from excl.pipeline.artifacts.header import read_header
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.artifacts.video_records import failed_by_reason, planned_ids, video_key, video_keys
from excl.pipeline.config import STRICT


@dataclass(frozen=True, config=STRICT)
class StatusConfig:
    """Say how far a store, or the folder of any other stage, is: done, failed by reason, missing, bytes, rates."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="STORE")]
    """The folder to report on. Another process may be working on it."""
    json: bool = False
    """Print one JSON object, for programs."""


def run(config: StatusConfig) -> dict[str, Any]:
    """The state of a folder as JSON values."""
    manifest = Manifest.read(config.folder)
    videos = {key: manifest.records[key] for key in video_keys(manifest)}
    done = [record for record in videos.values() if "error" not in record]
    planned = planned_ids(manifest)
    video_s, wall_s = sum(r.get("duration_s", 0.0) for r in done), sum(r.get("wall_s", 0.0) for r in done)
    return {
        "folder": str(config.folder),
        "stage": manifest.header["stage"],
        "written_by": read_header(config.folder).get("excl"),
        "complete": manifest.is_complete or (bool(planned) and len(videos) >= len(planned)),
        "videos_planned": len(planned),
        "videos_done": len(done),
        "videos_failed": {reason: sorted(names) for reason, names in failed_by_reason(manifest).items()},
        "videos_to_do": sum(video_key(video_id) not in videos for video_id in planned),
        "hours_of_video": round(video_s / 3600, 3),
        "hours_of_work": round(wall_s / 3600, 3),
        "times_real_time_of_one_worker": round(video_s / wall_s, 2) if wall_s else None,
        "frames": sum(record.get("num_frames", 0) for record in done),
        "rows": sum(record.get("num_rows", 0) for record in done),
        "shards": sum("file" in record for record in manifest.records.values()),
        "bytes": sum(_size(path) for path in config.folder.rglob("*")),
    }


def _size(path: Path) -> int:
    """The size in bytes; 0 if it is not a file or has just been deleted."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:
        return 0


def show(config: StatusConfig, state: dict[str, Any]) -> str:
    """The state for people, or as JSON."""
    if config.json:
        return json.dumps(state)
    progress = "complete" if state["complete"] else "not finished; run the same command again to resume"
    lines = [f"{state['folder']}: {state['stage']}, by excl {state['written_by']}, {progress}"]
    if state["videos_planned"]:
        lines.append(f"{state['videos_done']:,} of {state['videos_planned']:,} videos done")
    if state["videos_to_do"]:
        lines.append(f"{state['videos_to_do']:,} videos still to do")
    for reason, names in state["videos_failed"].items():
        lines.append(f"{len(names):,} failed as {reason}: {shortened(names, most=5, describe=str)}")
    if state["hours_of_work"] or state["hours_of_video"]:
        rate = state["times_real_time_of_one_worker"]
        lines.append(f"{state['hours_of_video']:,} hours of video, {rate} times real time a worker")
    counts = f"{state['frames']:,} frames, {state['rows']:,} rows, " if state["frames"] else ""
    lines.append(f"{counts}{state['shards']:,} shards, {state['bytes'] / 1e6:,.1f} MB")
    return "\n".join(lines)
