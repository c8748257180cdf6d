"""Stage 4, pack: joins a feature store and tokenised queries into one sharded training store.

A training store has everything that training needs and nothing else: shards of the videos that have queries, each with the
queries about them (`pipeline/store/training_store.py`), `vocabulary.txt` and `vectors.npy`, with `--unseen-words vector`
those of the words outside the vocabulary too, and `uncovered.jsonl`, the queries whose video has no features. Those are
counted, named and later evaluated as misses, never dropped in silence.
`coverage.json` says which videos are missing, which have no queries, and whose file is not as long as the annotations say.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from excl.datasets.parsing import printable
from excl.pipeline import tokenise
from excl.pipeline.artifacts.atomic_files import atomic_write, sha256_file, write_json, write_text
from excl.pipeline.artifacts.header import read_header
from excl.pipeline.artifacts.manifest import COMPLETE, Manifest
from excl.pipeline.artifacts.run_once import run_once
from excl.pipeline.artifacts.video_records import shard_key
from excl.pipeline.config import STRICT, PositiveFloat, PositiveInt, RunOnly, identity
from excl.pipeline.store.feature_store import FeatureStore
from excl.pipeline.store.shard import write_shard
from excl.pipeline.store.training_store import Query
from excl.pipeline.store.virtual_index import write_index

log = logging.getLogger(__name__)

STAGE, CODE_VERSION = "pack", 3
NAMES_SHOWN = 5


@dataclass(frozen=True, config=STRICT)
class PackConfig:
    """Join features and queries into a training store, and say which queries have features."""

    features: RunOnly[Path]
    """The feature store that `excl extract` wrote."""
    queries: RunOnly[Path]
    """The folder that `excl tokenise` wrote."""
    out: RunOnly[Path]
    """The training store to write."""
    missing_video: Literal["keep", "drop", "fail"] = "keep"
    """Treatment of queries whose video has no features. keep: they stay in the store and count as misses, so that results
    are over all queries of a split; results over those with features are given too."""
    other_duration: Literal["keep", "clip", "drop", "fail"] = "keep"
    """Treatment of queries whose video's file is longer or shorter than the annotations say, by more than
    --duration-tolerance-s: is it the same video? keep leaves the moments as annotated, so that results can be compared (none
    that begins after the file's end is trained on); clip cuts them to the file."""
    duration_tolerance_s: PositiveFloat = 1.0
    """Largest difference in seconds that counts as none: containers and annotators round."""
    shard_videos: PositiveInt = 64
    """Videos in one shard."""


def run(config: PackConfig) -> Path:
    """Pack everything, unless it is done. Return the folder."""
    store = FeatureStore(config.features)
    return run_once(
        config.out,
        stage=STAGE,
        identity=_made_by(config, store),
        code_version=CODE_VERSION,
        build=lambda manifest: _work(config, store, manifest),
    )


def made_by(config: PackConfig) -> dict[str, Any]:
    """Return what determines the training store; ValueError if features or queries are not finished."""
    return _made_by(config, FeatureStore(config.features))


def _made_by(config: PackConfig, store: FeatureStore) -> dict[str, Any]:
    store.require_finished()
    queries = Manifest.read(config.queries, stage=tokenise.STAGE)
    if not queries.is_complete:
        raise ValueError(f"{config.queries}: `excl tokenise` has not finished there; run it again")
    return {
        **identity(config),
        "features": store.manifest.fingerprint(),
        "queries": queries.fingerprint(),
        "recipe": store.recipe,
        "about_queries": queries.records[COMPLETE]["about"],
        "tokenised": queries.header["identity"],
    }


def _work(config: PackConfig, store: FeatureStore, manifest: Manifest) -> dict[str, Any]:
    queries = [Query.from_json(row) for row in _json_lines(config.queries / "moments.jsonl")]
    durations_s = {video_id: store.duration_s(video_id) for video_id in {q.video_id for q in queries} if video_id in store}
    beyond = manifest.header["identity"]["about_queries"]["hygiene"]["beyond_video"]
    queries, dropped, clipped = _fit(config, queries, durations_s, beyond=beyond)
    if not queries:
        raise ValueError(f"{config.queries}: no query is left; the reason for the first: {dropped[0]['why']}")
    coverage = _coverage(queries, store)
    _tell(coverage, store)
    if not any(counts["covered"] for counts in coverage.values()):
        raise ValueError(
            f"no query's video has features: the queries ask for {queries[0].video_id!r}, "
            f"{config.features} holds {next(iter(store))!r}{match_hint({q.video_id for q in queries}, set(store))}"
        )
    uncovered = [query for query in queries if query.video_id not in store]
    if uncovered and config.missing_video == "fail":
        raise ValueError(f"{len(uncovered):,} queries ask for videos without features, {uncovered[0].video_id!r} for one")
    write_json(manifest.folder / "coverage.json", {
        "splits": coverage,
        "uncovered_queries": config.missing_video,
        "dropped": dropped,
        "clipped": clipped,
        "videos_without_queries": sorted(set(store) - {query.video_id for query in queries}),
        "other_durations": _other_durations(config, queries, durations_s),
    })  # fmt: skip
    kept = uncovered if config.missing_video == "keep" else []
    write_text(manifest.folder / "uncovered.jsonl", "".join(json.dumps(q.to_json()) + "\n" for q in kept))
    texts = ["vocabulary.txt", "vectors.npy"]
    if (config.queries / tokenise.UNSEEN_WORDS).is_file():
        texts += [tokenise.UNSEEN_WORDS, tokenise.UNSEEN_VECTORS]
    for name in texts:
        with atomic_write(manifest.folder / name) as temporary:
            shutil.copyfile(config.queries / name, temporary)
    _write_shards(config, store, queries, manifest)
    write_index(manifest)
    files = ("coverage.json", "uncovered.jsonl", *texts)
    made_with = read_header(config.features).get("about", {}).get("made_with", {})
    return {"sha256": {name: sha256_file(manifest.folder / name) for name in files}, "made_with": made_with}


def _json_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]  # splitlines() cuts at U+2028


def _fit(
    config: PackConfig, queries: list[Query], durations_s: Mapping[str, float], *, beyond: str
) -> tuple[list[Query], list[dict[str, str]], list[dict[str, Any]]]:
    """The queries in order, those dropped, with why, and those clipped, by the duration of the video's file.

    Where the annotations know no duration the file's own is taken, and `beyond`, the policy of `tokenise` for moments beyond
    their video, is followed as it is there.
    """
    differ = _other_durations(config, queries, durations_s)
    if differ:
        few = ", ".join(
            f"{v} ({d['annotated_s']:.1f} s, file {d['file_s']:.1f} s)" for v, d in [*differ.items()][:NAMES_SHOWN]
        )
        message = f"{len(differ):,} videos are not as long as annotated: {few}"
        if config.other_duration == "fail":
            raise ValueError(f"{message}; are they the same videos? --other-duration says what becomes of their queries")
        log.warning("%s (%s)", message, config.other_duration)
    kept: list[Query] = []
    dropped: list[dict[str, str]] = []
    clipped: list[dict[str, Any]] = []
    for query in queries:
        fitted, why = query, ""
        if query.video_id in differ and config.other_duration == "drop":
            why = "its video's file has another duration"
        elif query.video_id in durations_s and query.duration_s is None:
            fitted, why = _to_file(query, durations_s[query.video_id], policy=beyond)
        elif query.video_id in differ and config.other_duration == "clip":
            fitted, why = _to_file(query, durations_s[query.video_id], policy="clip")
        if why:
            dropped.append({"annotation_id": query.annotation_id, "why": why})
            continue
        kept.append(fitted)
        if fitted.end_s != query.end_s:
            clipped.append({"annotation_id": query.annotation_id, "end_s": query.end_s, "of_file_s": fitted.end_s})
    if clipped:
        few = ", ".join(f"{c['annotation_id']} ({c['end_s']:g} to {c['of_file_s']:.2f} s)" for c in clipped[:NAMES_SHOWN])
        log.warning("%d moments reach beyond the end of their video's file and are clipped: %s", len(clipped), few)
    for why in sorted({row["why"] for row in dropped}):
        named = [row["annotation_id"] for row in dropped if row["why"] == why]
        log.warning("%d moments are dropped: %s: %s", len(named), why, ", ".join(named[:NAMES_SHOWN]))
    return kept, dropped, clipped


def _to_file(query: Query, duration_s: float, *, policy: str) -> tuple[Query, str]:
    """The query with its file's duration, fitted to it by the policy, and why it is dropped, if it is."""
    known = dataclasses.replace(query, duration_s=duration_s)
    if query.end_s <= duration_s or policy == "keep":
        return known, ""
    if policy == "fail":
        raise ValueError(
            f"{query.annotation_id}: ends at {query.end_s:g} s, and the file of {query.video_id!r} at {duration_s:.2f} s; "
            "correct the annotation, or tokenise with another --hygiene.beyond-video"
        )
    if policy == "drop" or query.start_s >= duration_s:
        return known, "it lies beyond the end of its video's file"
    return dataclasses.replace(known, end_s=duration_s), ""


def _other_durations(
    config: PackConfig, queries: list[Query], durations_s: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """The videos whose file is not as long as annotated, with both lengths."""
    return {
        q.video_id: {"annotated_s": q.duration_s, "file_s": durations_s[q.video_id]}
        for q in queries
        if q.duration_s is not None
        and q.video_id in durations_s
        and abs(q.duration_s - durations_s[q.video_id]) > config.duration_tolerance_s
    }


def _tell(coverage: Mapping[str, Any], store: FeatureStore) -> None:
    for split, counts in coverage.items():
        log.info("%s: %s", split, coverage_line(counts))
        if not counts["covered"]:
            asked, held = next(iter(counts["missing"])), next(iter(store))
            hint = match_hint(set(counts["missing"]), set(store))
            log.warning(
                "%s has no features at all: it asks for %r, the features hold %r; do the ids match?%s",
                split,
                asked,
                held,
                hint,
            )


RENAMINGS: dict[str, Callable[[str], str]] = {  # by which names of videos and ids in annotations are known to differ
    "without the prefix v_": lambda name: name.removeprefix("v_"),
    "without a suffix such as .avi": lambda name: name.rsplit(".", 1)[0],
    "in lower case": str.lower,
    "without the time range at their end": lambda name: re.sub(r"_\d+(\.\d+)?_\d+(\.\d+)?$", "", name),
}


def match_hint(asked: Set[str], held: Set[str]) -> str:
    """Return how the ids of annotations and videos would match better, as the end of a message; empty if nothing helps."""
    now = len(asked & held)
    matches = {how: len({rename(a) for a in asked} & {rename(h) for h in held}) for how, rename in RENAMINGS.items()}
    best = max(matches, key=lambda how: matches[how])
    return f"; {matches[best]:,} would match {best}, in place of {now:,}" if matches[best] > now else ""


def _coverage(queries: list[Query], store: FeatureStore) -> dict[str, dict[str, Any]]:
    """Return for every split its queries, those with features, and the missing videos with the number of their queries."""
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
    """Return a line like `3,700 of 3,720 queries have features (99.5 %); missing videos: A, B, …`."""
    total, covered, missing = counts["queries"], counts["covered"], list(counts["missing"])
    line = f"{covered:,} of {total:,} queries have features ({100 * covered / total:.1f} %)"
    if missing:
        line += (
            f"; {len(missing):,} missing videos: {printable(', '.join(missing[:10]))}{', …' if len(missing) > 10 else ''}"
        )
    return line


def _write_shards(config: PackConfig, store: FeatureStore, queries: list[Query], manifest: Manifest) -> None:
    asked: dict[str, list[Query]] = defaultdict(list)
    for query in queries:
        if query.video_id in store:
            asked[query.video_id].append(query)
    video_ids = sorted(asked)
    (config.out / "shards").mkdir(exist_ok=True)
    for first in range(0, len(video_ids), config.shard_videos):
        members = video_ids[first : first + config.shard_videos]
        name = f"shards/{first // config.shard_videos:05d}.h5"
        if shard_key(name) in manifest.records:
            continue
        about = [query.to_json() for video_id in members for query in asked[video_id]]
        videos = [store[video_id] for video_id in members]
        for video in videos:
            video.require_in_order()
        write_shard(config.out / name, videos, recipe=store.recipe, queries=about)
        sha256 = sha256_file(config.out / name)
        manifest.add({"id": shard_key(name), "file": name, "videos": members, "sha256": sha256})
