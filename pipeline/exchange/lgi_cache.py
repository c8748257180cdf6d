"""The caches that LGI makes of annotations when it first runs, written here so that they fit the exported features.

LGI finds a cache by the names of split and settings alone: it uses an existing one, whatever features it was made from.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from excl.datasets.text.vocabulary import tokenise
from excl.pipeline.exchange.annotation_writers import Videos
from excl.pipeline.exchange.export_view import ExportView
from excl.pipeline.store.training_store import Query

SPECIAL = ("<PAD>", "<UNK>", "<S>", "<E>")
UNK = 1
SEGMENTS = 128  # `num_segment` of its settings


def write_caches(
    folder: Path, view: ExportView, videos: Videos, splits: dict[str, str], *, max_words: int, kind: str
) -> None:
    """Write `query_info` and `grounding_info` below `folder` for every split, under the split's name at LGI (`splits`).

    Words are those of the training split, without punctuation, by the alphabet; ids of queries are their numbers in the
    annotation file. Places in rows are those of rows that lie evenly, as LGI takes them to do.
    """
    training = {word for query in view.queries.get("train", ()) for word in _words(query)}
    index = {word: number for number, word in enumerate((*SPECIAL, *sorted(training)))}
    (folder / "query_info").mkdir(parents=True)
    (folder / "grounding_info").mkdir()
    for split, name in splits.items():
        queries = view.queries.get(split, [])
        _write_queries(folder / "query_info", f"{name}_{{}}_F1_L{max_words}_{kind}", queries, index, max_words)
        _write_places(folder / "grounding_info" / f"{name}_labels_S{SEGMENTS}_{kind}.hdf5", queries, view, videos)


def _words(query: Query) -> list[str]:
    return tokenise(query.query, "no-punctuation")


def _write_queries(folder: Path, name: str, queries: Sequence[Query], index: dict[str, int], max_words: int) -> None:
    lengths: dict[str, int] = {}
    with h5py.File(folder / (name.format("label") + ".hdf5"), "x", locking=False) as file:
        for number, query in enumerate(queries):
            words = _words(query)[:max_words]
            label = np.zeros(max_words, np.int64)
            label[: len(words)] = [index.get(word, UNK) for word in words]
            file.create_dataset(str(number), data=label)
            lengths[str(number)] = len(words)
    info = {"wtoi": index, "itow": {number: word for word, number in index.items()}, "query_lengths": lengths}
    (folder / (name.format("info") + ".json")).write_text(json.dumps(info), encoding="utf-8")


def _write_places(path: Path, queries: Sequence[Query], view: ExportView, videos: Videos) -> None:
    with h5py.File(path, "x", locking=False) as file:
        groups = {name: file.create_group(name) for name in ("start_pos", "end_pos", "att_mask")}
        for number, query in enumerate(queries):
            video = videos[view.name(query.video_id)]
            rows = min(video["rows"], SEGMENTS)
            start, end = query.start_s / video["duration_s"], query.end_s / video["duration_s"]
            first_row = min(round(start * rows), rows - 1)
            last_row = max(round(end * rows), first_row + 1)
            mask = np.zeros(SEGMENTS)
            mask[first_row : last_row + 1] = 1
            groups["start_pos"].create_dataset(str(number), data=start)
            groups["end_pos"].create_dataset(str(number), data=end)
            groups["att_mask"].create_dataset(str(number), data=mask)
