"""How far a folder is, and what is in it: reads manifests and shards, leaves nothing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from pydantic.dataclasses import dataclass

from excl.pipeline.artifacts.header import read_header
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.artifacts.video_records import failed_by_reason, planned_ids, video_key, video_keys
from excl.pipeline.comparison.similarity import row_statistics
from excl.pipeline.config import STRICT
from excl.pipeline.store.feature_store import FeatureStore

NAMES_SHOWN = 5


@dataclass(frozen=True, config=STRICT)
class StatusConfig:
    """Say how far a store, or the folder of any other stage, is: done, failed by reason, missing, bytes, rates."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="STORE")]
    """The folder. It may be worked on at the same time."""
    json: bool = False
    """Print one JSON object, for programs."""


@dataclass(frozen=True, config=STRICT)
class InspectConfig:
    """Show what a store holds: what made it and its rows together, or one video with its facts and rows."""

    store: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="STORE")]
    """A store that extract, import or pack wrote."""
    video: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="ID")] = ""
    """The id of a video; without, the store as a whole."""
    json: bool = False
    """Print one JSON object, for programs."""


def status(config: StatusConfig) -> tuple[StatusConfig, dict[str, Any]]:
    """The state of a folder as JSON values."""
    manifest = Manifest.read(config.folder)
    videos = {name: manifest.records[name] for name in video_keys(manifest)}
    done = [record for record in videos.values() if "error" not in record]
    planned = planned_ids(manifest)
    seconds, wall_s = sum(r.get("duration_s", 0.0) for r in done), sum(r.get("wall_s", 0.0) for r in done)
    return config, {
        "folder": str(config.folder),
        "stage": manifest.header["stage"],
        "written_by": read_header(config.folder).get("excl"),
        "complete": manifest.is_complete or (bool(planned) and len(videos) >= len(planned)),
        "videos_planned": len(planned),
        "videos_done": len(done),
        "videos_failed": {reason: sorted(names) for reason, names in failed_by_reason(manifest).items()},
        "videos_to_do": len([name for name in planned if video_key(name) not in videos]),
        "hours_of_video": round(seconds / 3600, 3),
        "hours_of_work": round(wall_s / 3600, 3),
        "times_real_time_of_one_worker": round(seconds / wall_s, 2) if wall_s else None,
        "frames": sum(r.get("num_frames", 0) for r in done),
        "rows": sum(r.get("num_rows", 0) for r in done),
        "shards": sum("file" in r for r in manifest.records.values()),
        "bytes": sum(_size(path) for path in config.folder.rglob("*")),
    }


def _size(path: Path) -> int:
    """Of a file; 0 for what is none, or went while it was looked at."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:
        return 0


def status_lines(found: tuple[StatusConfig, dict[str, Any]]) -> str:
    """The state for people."""
    config, state = found
    if config.json:
        return json.dumps(state)
    of = f"{state['videos_done']:,} of {state['videos_planned']:,} videos done" if state["videos_planned"] else ""
    how = "complete" if state["complete"] else "not finished; the same command goes on"
    lines = [f"{state['folder']}: {state['stage']}, by excl {state['written_by']}, {how}", of]
    if state["videos_to_do"]:
        lines.append(f"{state['videos_to_do']:,} videos still to do")
    for reason, names in state["videos_failed"].items():
        more = ", …" if len(names) > NAMES_SHOWN else ""
        lines.append(f"{len(names):,} failed as {reason}: {', '.join(names[:NAMES_SHOWN])}{more}")
    if state["hours_of_work"] or state["hours_of_video"]:
        rate = state["times_real_time_of_one_worker"]
        lines.append(f"{state['hours_of_video']:,} hours of video, {rate} times real time a worker")
    counts = f"{state['frames']:,} frames, {state['rows']:,} rows, " if state["frames"] else ""
    lines.append(f"{counts}{state['shards']:,} shards, {state['bytes'] / 1e6:,.1f} MB")
    return "\n".join(line for line in lines if line)


def inspect(config: InspectConfig) -> tuple[InspectConfig, dict[str, Any]]:
    """What a store holds, or one of its videos, as JSON values."""
    store = FeatureStore(config.store)
    if not config.video:
        return config, _whole(store)
    if config.video not in store:
        raise ValueError(f"{config.store}: no video {config.video!r}; it has {', '.join(list(store)[:NAMES_SHOWN])}, …")
    video = store[config.video]
    state = dataclasses.asdict(row_statistics(video.features.astype(np.float32)))
    return config, {
        "id": video.video_id,
        "shape": list(video.features.shape),
        "dtype": str(video.features.dtype),
        "start_s": video.start_s.tolist(),
        "end_s": video.end_s.tolist(),
        "mean": float(video.features.mean(dtype=np.float64)),
        "std": float(video.features.std(dtype=np.float64)),
        "norms": np.linalg.norm(video.features.astype(np.float64), axis=1).round(4).tolist(),
        "condition": state,
        "facts": dict(video.facts),
    }


def _whole(store: FeatureStore) -> dict[str, Any]:
    rows = store.to_dask().astype(np.float64)
    mean, std, low, high = (float(x) for x in (rows.mean(), rows.std(), rows.min(), rows.max()))
    lengths = np.array([store.num_rows(video_id) for video_id in store])
    return {
        "stage": store.manifest.header["stage"],
        "videos": len(store),
        "rows": int(lengths.sum()),
        "rows_of_a_video": {"least": int(lengths.min()), "median": float(np.median(lengths)), "most": int(lengths.max())},
        "features": {"size": rows.shape[1], "mean": mean, "std": std, "least": low, "most": high},
        "recipe": store.recipe,
        "first_videos": list(store)[:NAMES_SHOWN],
    }


def inspect_lines(found: tuple[InspectConfig, dict[str, Any]]) -> str:
    """What was found for people; the rows of a video as a table."""
    config, values = found
    if config.json:
        return json.dumps(values)
    table = {key: values.pop(key) for key in ("start_s", "end_s", "norms") if key in values}
    lines = [f"{key:18}{json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    if table:
        lines.append(f"{'row':>6}{'start_s':>10}{'end_s':>10}{'norm':>10}")
        columns = zip(table["start_s"], table["end_s"], table["norms"], strict=True)
        lines += [f"{k:6}{start:10.2f}{end:10.2f}{norm:10.3f}" for k, (start, end, norm) in enumerate(columns)]
    return "\n".join(lines)
