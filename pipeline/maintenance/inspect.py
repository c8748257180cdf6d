"""Show what a store holds: read its shards, leave nothing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from pydantic.dataclasses import dataclass
from tabulate import tabulate

from excl.datasets.parsing import shortened
from excl.pipeline.comparison.similarity import row_statistics
from excl.pipeline.config import STRICT
from excl.pipeline.store.feature_store import FeatureStore

COLUMNS = {"start_s": "start_s", "end_s": "end_s", "norms": "norm"}


@dataclass(frozen=True, config=STRICT)
class InspectConfig:
    """Show what a store holds: what made it and its rows together, or one video with its facts and rows."""

    store: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="STORE")]
    """A store that extract, import or pack wrote."""
    video: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="ID")] = ""
    """The id of a video; without, the store as a whole."""
    json: bool = False
    """Print one JSON object, for programs."""


def run(config: InspectConfig) -> dict[str, Any]:
    """The content of a store, or of one of its videos, as JSON values."""
    store = FeatureStore(config.store)
    if not config.video:
        return _inspect_store(store)
    if config.video not in store:
        raise ValueError(f"{config.store}: no video {config.video!r}; it has {shortened(list(store), most=5)}")
    video = store[config.video]
    return {
        "id": video.video_id,
        "shape": list(video.features.shape),
        "dtype": str(video.features.dtype),
        "start_s": video.start_s.tolist(),
        "end_s": video.end_s.tolist(),
        "mean": float(video.features.mean(dtype=np.float64)),
        "std": float(video.features.std(dtype=np.float64)),
        "norms": np.linalg.norm(video.features.astype(np.float64), axis=1).round(4).tolist(),
        "condition": dataclasses.asdict(row_statistics(video.features.astype(np.float32))),
        "facts": dict(video.facts),
    }


def _inspect_store(store: FeatureStore) -> dict[str, Any]:
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
        "first_videos": list(store)[:5],
    }


def show(config: InspectConfig, content: dict[str, Any]) -> str:
    """The content for people, the rows of a video as a table, or all as JSON."""
    if config.json:
        return json.dumps(content)
    facts = [[key, json.dumps(value, ensure_ascii=False)] for key, value in content.items() if key not in COLUMNS]
    text = tabulate(facts, tablefmt="plain", disable_numparse=True)
    if config.video:
        columns = {title: content[key] for key, title in COLUMNS.items()}
        floats = ("", ".2f", ".2f", ".3f")
        text += "\n" + tabulate({"row": range(content["shape"][0]), **columns}, "keys", tablefmt="plain", floatfmt=floats)
    return text
