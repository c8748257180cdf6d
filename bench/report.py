"""The report of a large store: how long `excl report` takes, and how large the page is.

    python bench/report.py [VIDEOS [QUERIES]]

The store is made first, of random features with 64 numbers a row and random moments; of a video's features the report reads
the sizes alone, but for those of 200 videos. Prints what it measured: seconds of the whole command, megabytes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from excl.pipeline import pack, tokenise
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.config import parse_section
from excl.pipeline.store.shard import VideoFeatures, write_shard

RECIPE = {"fps": 5.0, "dtype": "float16", "weights": {"source": "random:0", "sha256": "?", "random": True}}
WORDS = ("the", "a", "person", "opens", "closes", "door", "window", "and", "then", "runs", "sits", "laughs", "cooks", "eats")
SHARD, SIZE, ROW_S = 512, 64, 1.6


def videos(number: int) -> Iterator[VideoFeatures]:
    """Yield videos of 10 to 120 rows."""
    random = np.random.default_rng(0)
    for index in range(number):
        edges = ROW_S * np.arange(int(random.integers(10, 121)) + 1)
        features = random.standard_normal((len(edges) - 1, SIZE)).astype(np.float16)
        facts = {"duration_s": float(edges[-1])}
        yield VideoFeatures(f"v{index:06d}", features, edges[:-1], edges[1:], facts)


def make_store(folder: Path, num_videos: int, num_queries: int) -> Path:
    """Make the store, and return its folder."""
    random = np.random.default_rng(1)
    durations: dict[str, float] = {}
    with Manifest.open(folder / "features", stage="extract", identity=RECIPE, code_version=1) as manifest:
        batch: list[VideoFeatures] = []
        for video in videos(num_videos):
            batch.append(video)
            durations[video.video_id] = video.duration_s
            if len(batch) == SHARD or len(durations) == num_videos:
                name = f"{len(durations):06d}.h5"
                write_shard(folder / "features" / name, batch, recipe=RECIPE)
                manifest.add({"id": f"shard/{name}", "file": name, "videos": [v.video_id for v in batch]})
                batch = []
    names = [*durations]
    lines: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for index in range(num_queries):
        name = names[index % num_videos]
        start_s, end_s = sorted(random.uniform(0, durations[name], 2).tolist())
        query = " ".join(random.choice(WORDS, int(random.integers(4, 13))))
        row = {"video_id": name, "query": query, "start_s": start_s, "end_s": end_s, "duration_s": durations[name]}
        lines["test" if index % num_videos % 4 == 3 else "val" if index % num_videos % 8 == 2 else "train"].append(
            json.dumps(row) + "\n"
        )
    settings: dict[str, object] = {"dataset": "jsonl", "out": str(folder / "queries"), "glove": str(folder / "vectors.txt")}
    for split, rows in lines.items():
        (folder / f"{split}.jsonl").write_text("".join(rows))
        settings[split] = [str(folder / f"{split}.jsonl")]
    (folder / "vectors.txt").write_text("".join(f"{word} 0.1 0.2\n" for word in WORDS))
    tokenise.run(parse_section(tokenise.TokeniseConfig, settings, where="settings"))
    return pack.run(pack.PackConfig(features=folder / "features", queries=folder / "queries", out=folder / "store"))


def main() -> None:
    """Make the store and its report, and print what that took."""
    num_videos, num_queries = (int(value) for value in (sys.argv[1:] + ["10000", "50000"][len(sys.argv) - 1 :]))
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        store = make_store(Path(folder), num_videos, num_queries)
        print(f"store of {num_videos:,} videos and {num_queries:,} queries: made in {time.monotonic() - began:.1f} s")
        page = Path(folder) / "page.html"
        began = time.monotonic()
        subprocess.run([sys.executable, "-m", "excl.workflows.cli", "report", store, "--out", page], check=True)
        print(f"excl report: {time.monotonic() - began:.1f} s, a page of {page.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
