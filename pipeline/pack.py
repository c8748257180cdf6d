"""Stage 4, pack: joins a feature store and tokenised queries into one sharded training store.

A training store has everything that training needs and nothing else: shards of the videos that have queries, each with
the queries about them (`pipeline/store.py`), `vocabulary.txt` and `vectors.npy`, and `uncovered.jsonl`, the queries whose
video has no features. Those are counted, named and later evaluated as misses, never dropped in silence.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic.dataclasses import dataclass

from excl.pipeline import tokenise
from excl.pipeline.config import STRICT, PositiveInt, identity
from excl.pipeline.manifest import Manifest, atomic, sha256_file, single, write_json, write_text
from excl.pipeline.store import FeatureStore, Query, write_shard

log = logging.getLogger(__name__)

STAGE, CODE_VERSION = "pack", 1


@dataclass(frozen=True, config=STRICT)
class Config:
    """Join features and queries into a training store, and say which queries have features."""

    features: Path
    """The feature store that `excl extract` wrote."""
    queries: Path
    """The folder that `excl tokenise` wrote."""
    out: Path
    """The training store to write."""
    shard_videos: PositiveInt = 64
    """How many videos make up one shard."""


def run(config: Config) -> Path:
    """Pack everything, unless it is done. Returns the folder."""
    store = FeatureStore(config.features)
    store.require_finished()
    queries = Manifest.read(config.queries, stage=tokenise.STAGE)
    if not queries.is_complete:
        raise ValueError(f"{config.queries}: `excl tokenise` has not finished there; run it again")
    made_by = identity(config, run_only=("features", "queries", "out"))
    made_by |= {
        "features": store.manifest.fingerprint(),
        "queries": queries.fingerprint(),
        "recipe": store.recipe,
        "dataset": queries.header["identity"]["dataset"],
    }
    return single(
        config.out,
        stage=STAGE,
        identity=made_by,
        code_version=CODE_VERSION,
        work=lambda manifest: _work(config, store, manifest),
    )


def _work(config: Config, store: FeatureStore, manifest: Manifest) -> dict[str, Any]:
    queries, dropped = _read_queries(config.queries / "moments.jsonl", store)
    if dropped:
        names = ", ".join(query.annotation_id for query in dropped[:5])
        log.warning("%d moments lie beyond the end of their video and are dropped: %s", len(dropped), names)
    coverage = _coverage(queries, store)
    for split, counts in coverage.items():
        log.info("%s: %s", split, coverage_line(counts))
        if not counts["covered"]:
            asked, held = next(iter(counts["missing"])), next(iter(store))
            log.warning(
                "%s has no features at all: it asks for %r, the features hold %r; do the ids match?", split, asked, held
            )
    if not any(counts["covered"] for counts in coverage.values()):
        raise ValueError(
            f"no query's video has features: the queries ask for {queries[0].video_id!r}, "
            f"{config.features} holds {next(iter(store))!r}"
        )
    beyond = [query.annotation_id for query in dropped]
    write_json(manifest.folder / "coverage.json", {"splits": coverage, "dropped_beyond_the_end": beyond})
    uncovered = [query for query in queries if query.video_id not in store]
    write_text(manifest.folder / "uncovered.jsonl", "".join(json.dumps(q.to_json()) + "\n" for q in uncovered))
    for name in ("vocabulary.txt", "vectors.npy"):
        with atomic(manifest.folder / name) as temporary:
            shutil.copyfile(config.queries / name, temporary)
    _write_shards(config, store, queries, manifest)
    files = ("coverage.json", "uncovered.jsonl", "vocabulary.txt", "vectors.npy")
    return {"sha256": {name: sha256_file(manifest.folder / name) for name in files}}


def _read_queries(path: Path, store: FeatureStore) -> tuple[list[Query], list[Query]]:
    """The queries in order, and those that had to be dropped.

    Where the annotations know no duration the video's own is taken, the moment clipped to it, and dropped if it lies
    beyond: `tokenise` does the same with the durations that it has.
    """
    queries: list[Query] = []
    dropped: list[Query] = []
    durations: dict[str, float] = {}
    for line in path.read_text(encoding="utf-8").split("\n")[:-1]:  # splitlines() would also cut at U+2028
        query = Query.from_json(json.loads(line))
        if query.duration_s is None and query.video_id in store:
            if query.video_id not in durations:
                durations[query.video_id] = store[query.video_id].duration_s
            duration_s = durations[query.video_id]
            query = dataclasses.replace(query, duration_s=duration_s, end_s=min(query.end_s, duration_s))
        (queries if query.start_s < query.end_s else dropped).append(query)
    return queries, dropped


def _coverage(queries: list[Query], store: FeatureStore) -> dict[str, dict[str, Any]]:
    """For every split: queries, those covered by features, and the videos that are missing with their queries' number."""
    coverage: dict[str, dict[str, Any]] = {}
    for query in queries:
        counts = coverage.setdefault(query.split, {"queries": 0, "covered": 0, "missing": defaultdict(int)})
        counts["queries"] += 1
        if query.video_id in store:
            counts["covered"] += 1
        else:
            counts["missing"][query.video_id] += 1
    return coverage


def coverage_line(counts: Mapping[str, Any]) -> str:
    """`3,700 of 3,720 queries have features (99.5 %); missing videos: A, B, …`."""
    total, covered, missing = counts["queries"], counts["covered"], list(counts["missing"])
    line = f"{covered:,} of {total:,} queries have features ({100 * covered / total:.1f} %)"
    if missing:
        line += f"; {len(missing):,} missing videos: {', '.join(missing[:10])}{', …' if len(missing) > 10 else ''}"
    return line


def _write_shards(config: Config, store: FeatureStore, queries: list[Query], manifest: Manifest) -> None:
    asked: dict[str, list[Query]] = defaultdict(list)
    for query in queries:
        if query.video_id in store:
            asked[query.video_id].append(query)
    video_ids = sorted(asked)
    (config.out / "shards").mkdir(exist_ok=True)
    for first in range(0, len(video_ids), config.shard_videos):
        members = video_ids[first : first + config.shard_videos]
        name = f"shards/{first // config.shard_videos:05d}.h5"
        if f"shard/{name}" in manifest.records:
            continue
        about = [query.to_json() for video_id in members for query in asked[video_id]]
        videos = [store[video_id] for video_id in members]
        for video in videos:
            video.require_in_order()
        write_shard(config.out / name, videos, recipe=store.recipe, queries=about)
        manifest.add({"id": f"shard/{name}", "file": name, "videos": members, "sha256": sha256_file(config.out / name)})
