"""Predictions as JSON lines in Moment-DETR's format: written, read, and matched with the queries that they answer.

    {"qid": 8737, "query": "a man cooks", "vid": "NUsG9BgSes0_210.0_360.0", "pred_relevant_windows": [[14.0, 22.0, 0.93]]}

Windows are start, end (seconds) and score, the best first: their order counts, scores only for mAP. `pred_saliency_scores`,
one a clip of 2 s, may stand beside them. A query of ours has the qid `query_id`, or `annotation_id` where it has none.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from excl.datasets.parsing import describe, get, number, one_line, parse_object, read_lines
from excl.models.excl import RECALL_AT
from excl.pipeline.artifacts.atomic_files import write_text
from excl.pipeline.evaluation.moment_detr_metrics import MOST_WINDOWS
from excl.pipeline.store.training_store import Query

log = logging.getLogger(__name__)

TOP = max(RECALL_AT)
"""Windows of a query that count for recall."""
NAMED = 10  # the most ids that a warning names
MISMATCHES = {
    "missing": "queries have no line and count as misses",
    "unknown": "lines answer no query of this split and are not counted",
    "duplicate": "lines have the qid of an earlier one, which counts",
    "about_another_video": "lines are about another video than their query and count as misses",
    "with_broken_windows": "lines have a window that is no interval of seconds; it counts as a miss",
}


@dataclass(frozen=True)
class Prediction:
    """One line: the windows [k, 3] with their scores, times NaN where one is no interval; saliency [clips], video and
    sentence, None where the line has none."""

    windows: np.ndarray
    saliency: np.ndarray | None
    vid: str | None
    query: str | None


@dataclass(frozen=True)
class Predictions:
    """The lines of a file by qid, the first of several with the same qid, and the qids of the other ones."""

    path: Path
    by_qid: dict[str, Prediction]
    duplicates: list[str]

    @cached_property
    def by_sentence(self) -> dict[tuple[str, str], str]:
        """The qid of the first line about a video with a sentence, by `sentence_key`."""
        lines: dict[tuple[str, str], str] = {}
        for name, line in self.by_qid.items():
            if line.vid is not None and line.query is not None:
                lines.setdefault(sentence_key(line.vid, line.query), name)
        return lines


def sentence_key(video_id: str, sentence: str) -> tuple[str, str]:
    """Return the video and the sentence but for what annotators add or leave out: case, spaces, the full stop."""
    return video_id, " ".join(sentence.lower().split()).rstrip(". ")


def qid(query: Query) -> str:
    """The id of a query in files of predictions."""
    return query.query_id or query.annotation_id


def write_predictions(path: Path, queries: Iterable[Query], windows: np.ndarray) -> None:
    """Write one line a query with its windows [N, k, 3], without those that are NaN; moments of one query share a line.

    Numbers are written in full, so that the file scores exactly what the windows score.
    """
    lines: dict[str, dict[str, Any]] = {}
    for query, answers in zip(queries, windows, strict=True):
        intervals = answers[~np.isnan(answers).any(axis=1)].tolist()
        line = {"qid": qid(query), "query": query.query, "vid": query.video_id, "pred_relevant_windows": intervals}
        lines.setdefault(query.key, line)
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines.values()))


def read_predictions(path: Path) -> Predictions:
    """The predictions of a file; ValueError with file and line if a line is no prediction."""
    by_qid: dict[str, Prediction] = {}
    duplicates = []
    for line_number, line in read_lines(path):
        place = f"{path}:{line_number}"
        record = parse_object(line, path, line_number)
        name = get(record, "qid", object, place)
        if isinstance(name, bool) or not isinstance(name, int | str):
            raise ValueError(f"{place}: 'qid' is {describe(name)}; expected a number or a name")
        if str(name) in by_qid:
            duplicates.append(str(name))
            continue
        rows = get(record, "pred_relevant_windows", list, place)[:MOST_WINDOWS]
        windows = np.array([_window(row, rank, place) for rank, row in enumerate(rows)]).reshape(-1, 3)
        saliency = _saliency(record, place)
        vid, query = (record.get(key) for key in ("vid", "query"))
        by_qid[str(name)] = Prediction(windows, saliency, vid if isinstance(vid, str) else None, query if query else None)
    if not by_qid:
        raise ValueError(f"{path}: no predictions in it")
    return Predictions(path, by_qid, duplicates)


def _window(row: object, rank: int, place: str) -> tuple[float, float, float]:
    """Return start, end and score; the score of a window without one is lower by rank."""
    if not isinstance(row, list) or len(row) not in (2, 3):
        raise ValueError(f"{place}: a predicted window is {describe(row)}; expected [start, end, score] in seconds")
    start_s, end_s = (number(value, "a window's time", place) for value in row[:2])
    score = number(row[2], "a window's score", place) if len(row) > 2 else -float(rank)
    if math.isnan(score):
        raise ValueError(f"{place}: a window's score is NaN; expected a number")
    if not (math.isfinite(start_s) and math.isfinite(end_s) and start_s <= end_s):
        return math.nan, math.nan, score
    return start_s, end_s, score


def _saliency(record: dict[str, Any], place: str) -> np.ndarray | None:
    """Return the predicted saliency of a line [clips]; None if it has none."""
    if record.get("pred_saliency_scores") is None:
        return None
    scores = get(record, "pred_saliency_scores", list, place)
    return np.array([number(score, "a saliency score", place) for score in scores], dtype=np.float64)


def match(
    predictions: Predictions, queries: Sequence[Query], *, by_sentence: bool = False
) -> tuple[np.ndarray, dict[str, Any]]:
    """The windows with scores for every query, float64 [N, k, 3], NaN where there are none, and the mismatches by kind.

    k is 1 if no line has a second window, else 10. Ids are those of `write_predictions`. Where queries came from a file that
    numbers them, `<split>:<file>:8737`, the number alone is an id too, if the line has the same video and sentence. A query
    whose id no line has is answered by a line with its video and sentence, if `by_sentence` is set.
    ValueError if no line answers any of the queries.
    """
    k = MOST_WINDOWS if any(len(p.windows) > 1 for p in predictions.by_qid.values()) else 1
    windows = np.full((len(queries), k, 3), np.nan)
    used, elsewhere, missing = set(), set(), set()
    for index, query in enumerate(queries):
        name = _line_of(predictions, query)
        if name is None and by_sentence:
            name = predictions.by_sentence.get(sentence_key(query.video_id, query.query))
        if name is None:
            missing.add(qid(query))
            continue
        used.add(name)
        prediction = predictions.by_qid[name]
        if prediction.vid not in (None, query.video_id):
            elsewhere.add(name)
        else:
            windows[index, : len(prediction.windows)] = prediction.windows
    if used <= elsewhere:
        total, qid_of_line = len({qid(query) for query in queries}), next(iter(predictions.by_qid))
        raise ValueError(
            f"{predictions.path}: answers none of the {total:,} queries: its qids are like {qid_of_line!r}, theirs like "
            f"{qid(queries[0])!r}{', of the same name but about other videos' if elsewhere else ''}"
        )
    names_by_kind = {
        "missing": sorted(missing),
        "unknown": [name for name in predictions.by_qid if name not in used],
        "duplicate": predictions.duplicates,
        "about_another_video": sorted(elsewhere),
        "with_broken_windows": [name for name, line in predictions.by_qid.items() if np.isnan(line.windows[:TOP]).any()],
    }
    return windows, {kind: {"number": len(names), "first": names[:NAMED]} for kind, names in names_by_kind.items()}


def match_saliency(predictions: Predictions, queries: Sequence[Query]) -> dict[str, np.ndarray]:
    """The predicted saliency [clips] by query key, of the queries that have some."""
    names = {query.key: _line_of(predictions, query) for query in queries}
    lines = {key: predictions.by_qid[name].saliency for key, name in names.items() if name is not None}
    return {key: saliency for key, saliency in lines.items() if saliency is not None}


def _line_of(predictions: Predictions, query: Query) -> str | None:
    """The qid of the line that answers a query, None if there is no such line."""
    name = qid(query)
    if name in predictions.by_qid:
        return name
    *prefix, query_number = name.split(":", 2)
    line = predictions.by_qid.get(query_number) if len(prefix) == 2 else None
    if line is None or line.vid != query.video_id or line.query is None or one_line(line.query) != query.query:
        return None
    return query_number


def warn_of_mismatches(path: Path, mismatches: dict[str, Any]) -> None:
    """Warn of the mismatches that `match` returned."""
    for kind, sentence in MISMATCHES.items():
        total, names = mismatches[kind]["number"], mismatches[kind]["first"]
        if total:
            ellipsis = ", …" if total > len(names) else ""
            log.warning("%s: %d %s: %s%s", path, total, sentence, ", ".join(names), ellipsis)


def require_own_qids(queries: Iterable[Query]) -> None:
    """Raise ValueError if a qid stands for two queries, one by its query_id, one by its annotation_id."""
    names = Counter({query.key: qid(query) for query in queries}.values())
    name, uses = names.most_common(1)[0]
    if uses > 1:
        raise ValueError(f"the qid {name!r} stands for {uses} queries; give the annotations other ids")
