"""Predictions as JSON lines in Moment-DETR's format: written, read, and matched with the queries that they answer.

    {"qid": 8737, "query": "a man cooks", "vid": "NUsG9BgSes0_210.0_360.0", "pred_relevant_windows": [[14.0, 22.0, 0.93]]}

Windows are start, end (seconds) and score, the best first: their order counts, scores are not read. A query of ours has the
qid `query_id`, or `annotation_id` where it has none.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from excl.datasets.parsing import describe, get, number, one_line, parse_object, read_lines
from excl.models.excl import RECALL_AT
from excl.pipeline.artifacts.atomic_files import write_text
from excl.pipeline.store.training_store import Query

log = logging.getLogger(__name__)

TOP = max(RECALL_AT)
"""Windows of a query that are written, and that count."""
NAMED = 10  # ids that are named where many are wrong


@dataclass(frozen=True)
class Prediction:
    """What a line says: the windows [k, 2], NaN where one is no interval, and what it says of the query, None if nothing."""

    windows: np.ndarray
    vid: str | None
    query: str | None


@dataclass(frozen=True)
class Predictions:
    """The lines of a file by qid, of several with the same one the first, and the qids of those that were not the first."""

    path: Path
    by_qid: dict[str, Prediction]
    duplicates: list[str]


def qid(query: Query) -> str:
    """The name of a query in files of predictions."""
    return query.query_id or query.annotation_id


def write_predictions(path: Path, queries: Iterable[Query], windows: np.ndarray) -> None:
    """One line a query, with those of its windows [N, k, 3] that are not NaN; moments of one query share a line.

    Numbers are written in full, so that the figures of the file are exactly those of the windows.
    """
    lines: dict[str, dict[str, Any]] = {}
    for query, found in zip(queries, windows, strict=True):
        kept = found[~np.isnan(found).any(axis=1)].tolist()
        line = {"qid": qid(query), "query": query.query, "vid": query.video_id, "pred_relevant_windows": kept}
        lines.setdefault(query.key, line)
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines.values()))


def read_predictions(path: Path) -> Predictions:
    """The predictions of a file; ValueError with file and line for what is no prediction."""
    by_qid: dict[str, Prediction] = {}
    duplicates = []
    for line_number, line in read_lines(path):
        where = f"{path}:{line_number}"
        record = parse_object(line, path, line_number)
        name = get(record, "qid", object, where)
        if isinstance(name, bool) or not isinstance(name, int | str):
            raise ValueError(f"{where}: 'qid' is {describe(name)}; wanted a number or a name")
        if str(name) in by_qid:
            duplicates.append(str(name))
            continue
        rows = get(record, "pred_relevant_windows", list, where)[:TOP]
        windows = np.array([_window(row, where) for row in rows]).reshape(-1, 2)
        vid, query = (record.get(key) for key in ("vid", "query"))
        by_qid[str(name)] = Prediction(windows, vid if isinstance(vid, str) else None, query if query else None)
    if not by_qid:
        raise ValueError(f"{path}: no predictions in it")
    return Predictions(path, by_qid, duplicates)


def _window(row: object, where: str) -> tuple[float, float]:
    if not isinstance(row, list) or len(row) not in (2, 3):
        raise ValueError(f"{where}: a predicted window is {describe(row)}; wanted [start, end, score] in seconds")
    start_s, end_s = (number(value, "a window's time", where) for value in row[:2])
    if not (math.isfinite(start_s) and math.isfinite(end_s) and start_s <= end_s):
        return math.nan, math.nan
    return start_s, end_s


def match(predictions: Predictions, queries: Sequence[Query]) -> tuple[np.ndarray, dict[str, Any]]:
    """The windows for every query, float64 [N, k, 2], NaN where there are none, and what does not fit, by kind.

    k is 1 if no line has a second window, else 5. Ids are those of our own predictions. Where queries came from a file with
    numbered ones, `<split>:<file>:8737`, the number alone is one too, if the line says the same video and the same sentence.
    ValueError if no line answers any of the queries.
    """
    found = [_answer(predictions, query) for query in queries]
    k = TOP if any(len(p.windows) > 1 for p in predictions.by_qid.values()) else 1
    windows = np.full((len(queries), k, 2), np.nan)
    used, elsewhere, missing = set(), set(), set()
    for index, (query, (name, prediction)) in enumerate(zip(queries, found, strict=True)):
        if prediction is None:
            missing.add(qid(query))
            continue
        used.add(name)
        if prediction.vid not in (None, query.video_id):
            elsewhere.add(name)
            continue
        windows[index, : len(prediction.windows)] = prediction.windows
    if used <= elsewhere:
        wanted, given = qid(queries[0]), next(iter(predictions.by_qid))
        total = len({qid(query) for query in queries})
        raise ValueError(
            f"{predictions.path}: answers none of the {total:,} queries: its qids are like {given!r}, theirs like "
            f"{wanted!r}{', of the same name but about other videos' if elsewhere else ''}"
        )
    broken = [name for name in predictions.by_qid if np.isnan(predictions.by_qid[name].windows).any()]
    kinds = {
        "missing": sorted(missing),
        "unknown": [name for name in predictions.by_qid if name not in used],
        "duplicate": predictions.duplicates,
        "about_another_video": sorted(elsewhere),
        "with_broken_windows": broken,
    }
    return windows, {kind: {"number": len(names), "first": names[:NAMED]} for kind, names in kinds.items()}


def _answer(predictions: Predictions, query: Query) -> tuple[str, Prediction | None]:
    """The line that answers a query, and the qid by which it does."""
    name = qid(query)
    if name in predictions.by_qid or name.count(":") < 2:
        return name, predictions.by_qid.get(name)
    number_of = name.split(":", 2)[2]
    line = predictions.by_qid.get(number_of)
    if line is None or line.vid != query.video_id or line.query is None or one_line(line.query) != query.query:
        return name, None
    return number_of, line


def warn_of_mismatches(path: Path, misfits: dict[str, Any]) -> None:
    """Warn of all that `match` found not to fit."""
    sentences = {
        "missing": "queries have no line and count as misses",
        "unknown": "lines answer no query of this split and are not counted",
        "duplicate": "lines have the qid of an earlier one, which counts",
        "about_another_video": "lines are about another video than their query and count as misses",
        "with_broken_windows": "lines have a window that is no interval of seconds; it counts as a miss",
    }
    for kind, sentence in sentences.items():
        total, first = misfits[kind]["number"], misfits[kind]["first"]
        if total:
            log.warning("%s: %d %s: %s", path, total, sentence, ", ".join(first) + (", …" if total > len(first) else ""))


def require_own_qids(queries: Iterable[Query]) -> None:
    """ValueError if a qid stands for two queries, one by its query_id, one by its annotation_id."""
    names = Counter({query.key: qid(query) for query in queries}.values())
    name, uses = names.most_common(1)[0]
    if uses > 1:
        raise ValueError(f"the qid {name!r} stands for {uses} queries; give the annotations other ids")
