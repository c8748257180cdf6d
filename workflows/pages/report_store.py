"""The sections of a report about a store: its videos, moments and words, what failed, and its features."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from excl.datasets.parsing import printable
from excl.datasets.text.vocabulary import UNK
from excl.pipeline import extract
from excl.pipeline.artifacts.header import HEADER
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.artifacts.video_records import failed_by_reason, video_key
from excl.pipeline.execution.video_reading import VideoReading
from excl.pipeline.store.feature_store import FeatureStore
from excl.pipeline.store.training_store import Query, TrainingStore
from excl.workflows.pages import charts, views
from excl.workflows.pages.page import Section, Table, VideoExample

SPLITS = ("train", "val", "test")
SAMPLED = 200
"""Videos whose rows are read for the norms of features."""
FILES_SHOWN, WORDS_SHOWN, EXAMPLES = 20, 15, 3


@dataclass(frozen=True)
class StoreContent:
    """A store with its queries by split; none where it has no queries."""

    store: FeatureStore
    queries: Mapping[str, list[Query]]

    @classmethod
    def read(cls, path: Path) -> StoreContent:
        """Read the queries of a store, in one pass."""
        if Manifest.read(path).header["stage"] != "pack":
            return cls(FeatureStore(path), {})
        store = TrainingStore(path)
        queries = store.all_queries()
        by_split = {split: [query for query in queries if query.split == split] for split in SPLITS}
        return cls(store, {split: chosen for split, chosen in by_split.items() if chosen})


def folder_beside(path: Path, stage: str, wanted: Callable[[Manifest], bool]) -> Path | None:
    """Return the folder of a stage next to `path` whose manifest is the wanted one, if there is one."""
    for header in sorted(path.absolute().parent.glob(f"*/{HEADER}")):
        try:
            manifest = Manifest.read(header.parent, stage=stage)
            if wanted(manifest):
                return header.parent
        except (OSError, ValueError, KeyError):
            continue  # of another stage, or of an older version
    return None


def recipe_table(title: str, *settings: Mapping[str, Any]) -> Table:
    """Return settings as a table, nested ones by their names with dots."""
    rows: list[tuple[str, str]] = []

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping) and value:
            for key, inner in value.items():
                add(f"{prefix}.{key}" if prefix else str(key), inner)
        elif value not in (None, {}, [], ""):
            rows.append((prefix, printable(value if isinstance(value, str) else json.dumps(value))))

    for group in settings:
        add("", group)
    return Table(title, ("setting", "value"), rows)


def data_section(content: StoreContent) -> Section:
    """Return what the store has: videos, moments, coverage, failures, words."""
    store, queries = content.store, content.queries
    durations_s = np.array([store.duration_s(video_id) for video_id in store])
    figures = [
        charts.histogram(
            "Durations of videos", durations_s, x_name="seconds", caption=f"{len(store):,} videos with features."
        )
    ]
    tables = []
    if queries:
        moments = [query for chosen in queries.values() for query in chosen]
        lengths_s = np.array([query.end_s - query.start_s for query in moments])
        per_video = np.array([*Counter(query.video_id for query in moments).values()])
        words = np.array([len(query.tokens) for query in moments])
        number = f"{len(moments):,} moments"
        figures += [
            charts.histogram("Lengths of moments", lengths_s, x_name="seconds", caption=f"{number}, of all splits."),
            charts.histogram(
                "Moments of a video", per_video, x_name="moments", caption=f"{len(per_video):,} videos.", integers=True
            ),
            charts.histogram("Words of a query", words, x_name="words", caption=f"{number}.", integers=True),
        ]
        tables = [_coverage(content), _words(content)]
    failures = failure_table(store)
    texts = [queries_made_of(store)] if isinstance(store, TrainingStore) else []
    return Section(
        "Data",
        texts=texts if failures else [*texts, "No record of videos that failed lies with or next to this store."],
        tables=[*tables, *([failures] if failures else [])],
        charts=figures,
    )


def _coverage(content: StoreContent) -> Table:
    rows = []
    for split, queries in content.queries.items():
        videos = {query.video_id for query in queries}
        missing = sorted(video_id for video_id in videos if video_id not in content.store)
        covered = sum(query.video_id in content.store for query in queries)
        shown = ", ".join(map(printable, missing[:FILES_SHOWN])) + (", …" if len(missing) > FILES_SHOWN else "")
        share = f"{100 * covered / len(queries):.1f} %"
        rows.append((split, f"{len(queries):,}", f"{covered:,}", share, f"{len(videos):,}", f"{len(missing):,}", shown))
    columns = ("split", "moments", "with features", "coverage", "videos", "without features", "which")
    return Table("Coverage", columns, rows)


def _words(content: StoreContent) -> Table:
    rows = []
    for split, queries in content.queries.items():
        pairs = [(token, index) for query in queries for token, index in zip(query.tokens, query.token_ids, strict=True)]
        unknown = Counter(token for token, index in pairs if index == UNK)
        with_unknown = sum(UNK in query.token_ids for query in queries)
        words = ", ".join(f"{printable(word)} ({count:,})" for word, count in unknown.most_common(WORDS_SHOWN))
        share = f"{100 * unknown.total() / max(len(pairs), 1):.2f} %"
        different = len({token for token, _ in pairs})
        rows.append((split, f"{len(pairs):,}", f"{different:,}", f"{unknown.total():,}", share, f"{with_unknown:,}", words))
    assert isinstance(content.store, TrainingStore)
    title = f"Words: the vocabulary, of the training split, has {len(content.store.vocabulary.words):,}"
    columns = ("split", "words", "different", "not in the vocabulary", "share", "queries with such", "the most frequent")
    return Table(title, columns, rows)


def failure_table(store: FeatureStore) -> Table | None:
    """Return the videos that failed, by reason, as extract recorded them; None if its folder is not there."""
    manifest = store.manifest
    if manifest.header["stage"] == "pack":
        features = manifest.header["identity"]["features"]
        folder = folder_beside(store.path, extract.STAGE, lambda other: other.fingerprint() == features)
        if folder is None:
            return None
        manifest = Manifest.read(folder)
    rows = []
    for reason, video_ids in failed_by_reason(manifest).items():
        records = [manifest.records[video_key(video_id)] for video_id in video_ids]
        names = [str(r.get("source", {}).get("file", v)) for r, v in zip(records, video_ids, strict=True)]
        shown = ", ".join(map(printable, names[:FILES_SHOWN])) + (", …" if len(names) > FILES_SHOWN else "")
        rows.append((reason, f"{len(video_ids):,}", shown, printable(str(records[0].get("message", "")))))
    return Table(
        "Videos that failed", ("reason", "videos", "files", "the first one's message"), rows or [("none", "0", "", "")]
    )


def feature_section(store: FeatureStore) -> Section:
    """Return what the features are like: rows of a video, and norms of a sample of them."""
    video_ids = list(store)
    rows = np.array([store.num_rows(video_id) for video_id in video_ids])
    sample = video_ids[:: max(1, len(video_ids) // SAMPLED)]
    norms = np.concatenate([np.linalg.norm(store[v].features.astype(np.float32), axis=1) for v in sample])
    size = store[video_ids[0]].features.shape[1]
    return Section(
        "Features",
        tables=[recipe_table("What made the features", store.recipe)],
        charts=[
            charts.histogram(
                "Rows of a video",
                rows,
                x_name="rows",
                caption=f"{rows.sum():,} rows of {size} numbers; a video has {np.median(rows):,.0f} in the middle.",
                integers=True,
            ),
            charts.histogram(
                "Norms of rows",
                norms,
                x_name="Euclidean norm",
                caption=f"{len(norms):,} rows of {len(sample):,} videos; mean {norms.mean():.2f}, least {norms.min():.2f}.",
            ),
        ],
    )


def store_examples(content: StoreContent, *, videos: Path | None, page: Path, embedded: int) -> Section:
    """Return some videos of the store, evenly chosen, with what is annotated there."""
    store = content.store
    about: dict[str, list[Query]] = {}
    for query in (query for chosen in content.queries.values() for query in chosen if query.video_id in store):
        about.setdefault(query.video_id, []).append(query)
    video_ids = sorted(about) or list(store)
    examples = []
    for number, video_id in enumerate(video_ids[:: max(1, len(video_ids) // EXAMPLES)][:EXAMPLES]):
        video = store[video_id]
        file = views.video_file(videos, video)
        records = views.annotated(about.get(video_id, []))
        inside = None if number < embedded else page
        record = views.timeline(video, records, file=file, page=inside, reading=VideoReading())
        examples.append(VideoExample(printable(video_id), record))
    return Section("Some videos", examples=examples)


def queries_made_of(store: TrainingStore) -> str:
    """Return which files the splits are of, in a line."""
    about = store.about_queries
    splits = ", ".join(f"{split} is {printable(str(files))}" for split, files in about["splits"].items())
    return f"Data set {about['dataset']}: {splits}."


def store_sections(path: Path, *, videos: Path | None, page: Path, embedded: int) -> list[Section]:
    """Return the sections of a store's report."""
    content = StoreContent.read(path)
    return [
        data_section(content),
        feature_section(content.store),
        store_examples(content, videos=videos, page=page, embedded=embedded),
    ]
