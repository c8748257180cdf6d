"""Say how far a folder is, once or as it changes: read its manifest, leave nothing."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import tyro
from pydantic.dataclasses import dataclass

from excl.datasets.parsing import shortened
from excl.models.progress.bars import progress_bar
from excl.pipeline.artifacts.header import read_header
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.artifacts.video_records import failed_by_reason, planned_ids, video_key, video_keys
from excl.pipeline.config import STRICT

WATCH_EVERY_S, WATCH_PAUSE = 2.0, 10  # the shortest pause, and a longer one as a multiple of the time to read


@dataclass(frozen=True, config=STRICT)
class StatusConfig:
    """Say how far a store, or the folder of any other stage, is: done, failed by reason, missing, bytes, rates."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="STORE")]
    """The folder to report on. Another process may be working on it."""
    json: bool = False
    """Print one JSON object, for programs."""
    watch: bool = False
    """Show the progress as it changes, until the folder is complete or Ctrl-C is pressed, and then the state."""

    def __post_init__(self) -> None:
        if self.watch and self.json:
            raise ValueError("give either --watch or --json")


def run(config: StatusConfig) -> dict[str, Any]:
    """The state of a folder as JSON values; with `watch` the state when watching ended."""
    return _watch(config.folder) if config.watch else read_state(config.folder)


def _watch(folder: Path) -> dict[str, Any]:
    """Show how the state changes. The folder is read again after ten times as long as reading took, or two seconds."""
    state = read_state(folder)
    try:
        with progress_bar(f"{state['stage']} in {folder}", None, unit=_counts(state)[0], done=_counts(state)[1]) as bar:
            while not state["complete"]:
                _, done, bar.total = _counts(state)
                failed = sum(map(len, state["videos_failed"].values()))
                bar.advance(done - bar.done, note=f"{failed:,} failed" if failed else "")
                began = time.monotonic()
                state = read_state(folder)
                time.sleep(max(WATCH_EVERY_S, WATCH_PAUSE * (time.monotonic() - began)))
    except KeyboardInterrupt:
        pass
    return state


def _counts(state: dict[str, Any]) -> tuple[str, int, int | None]:
    """Return what is counted, how many of it are done, failed ones included, and how many there will be."""
    if state["epochs_planned"]:
        return "epoch", state["epochs_done"], state["epochs_planned"]
    failed = sum(map(len, state["videos_failed"].values()))
    return "video", state["videos_done"] + failed, state["videos_planned"] or None


def read_state(folder: Path) -> dict[str, Any]:
    """Return the state of a folder as JSON values."""
    manifest = Manifest.read(folder)
    videos = {key: manifest.records[key] for key in video_keys(manifest)}
    done = [record for record in videos.values() if "error" not in record]
    planned = planned_ids(manifest)
    video_s, wall_s = sum(r.get("duration_s", 0.0) for r in done), sum(r.get("wall_s", 0.0) for r in done)
    return {
        "folder": str(folder),
        "stage": manifest.header["stage"],
        "written_by": read_header(folder).get("excl"),
        "complete": manifest.is_complete or (bool(planned) and len(videos) >= len(planned)),
        "videos_planned": len(planned),
        "videos_done": len(done),
        "videos_failed": {reason: sorted(names) for reason, names in failed_by_reason(manifest).items()},
        "videos_to_do": sum(video_key(video_id) not in videos for video_id in planned),
        "hours_of_video": round(video_s / 3600, 3),
        "hours_of_work": round(wall_s / 3600, 3),
        "times_real_time_of_one_worker": round(video_s / wall_s, 2) if wall_s else None,
        "epochs_planned": manifest.header["identity"].get("epochs", 0) if manifest.header["stage"] == "train" else 0,
        "epochs_done": _num_lines(folder / "metrics.jsonl"),
        "frames": sum(record.get("num_frames", 0) for record in done),
        "rows": sum(record.get("num_rows", 0) for record in done),
        "shards": sum("file" in record for record in manifest.records.values()),
        "bytes": sum(_size(path) for path in folder.rglob("*")),
    }


def _num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


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
    if state["epochs_planned"]:
        lines.append(f"{state['epochs_done']:,} of at most {state['epochs_planned']:,} epochs done")
    for reason, names in state["videos_failed"].items():
        lines.append(f"{len(names):,} failed as {reason}: {shortened(names, most=5, describe=str)}")
    if state["hours_of_work"] or state["hours_of_video"]:
        rate = state["times_real_time_of_one_worker"]
        lines.append(f"{state['hours_of_video']:,} hours of video, {rate} times real time a worker")
    counts = f"{state['frames']:,} frames, {state['rows']:,} rows, " if state["frames"] else ""
    lines.append(f"{counts}{state['shards']:,} shards, {state['bytes'] / 1e6:,.1f} MB")
    return "\n".join(lines)
