"""Score anybody's predictions: read JSON lines in Moment-DETR's format and the annotations, print the metrics.

The annotations are those of a training store (as cleaned by `excl tokenise`), its queries alone (moments.jsonl of that
stage), JSON lines of the user's own (datasets/annotations/jsonl.py), or Moment-DETR's; files are not cleaned.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from pydantic.dataclasses import dataclass

from excl.datasets.annotations import jsonl, moment_detr
from excl.datasets.annotations.formats import read_moments
from excl.datasets.annotations.moments import Moment
from excl.datasets.parsing import annotation_id, parse_object, read_lines
from excl.datasets.text.vocabulary import tokenise, too_long
from excl.pipeline.artifacts.atomic_files import write_json
from excl.pipeline.config import STRICT, existing_file
from excl.pipeline.evaluation import metrics_table, split_metrics
from excl.pipeline.evaluation.moment_detr_metrics import CLIP_S, moment_metrics, saliency_metrics
from excl.pipeline.evaluation.predictions import (
    TOP,
    match,
    match_saliency,
    read_predictions,
    require_own_qids,
    warn_of_mismatches,
)
from excl.pipeline.evaluation.query_kinds import metrics_by_kind, query_kinds
from excl.pipeline.store.training_store import Query, TrainingStore

Split = Literal["train", "val", "test"]
AGAIN = {".json": "timelens", ".csv": "charades-reannotated"}
"""The formats of re-annotations, by their files' names."""


@dataclass(frozen=True, config=STRICT)
class ScoreConfig:
    """Score predictions, JSON lines in Moment-DETR's format, against annotations."""

    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    """The predictions: {"qid", "vid", "pred_relevant_windows": [[start, end, score], ...]} a line, the best window
    first; and "pred_saliency_scores", if any, which are measured against annotations in Moment-DETR's format."""
    against: Path
    """A training store; or annotations: moments.jsonl of `excl tokenise`, JSON lines of your own, or Moment-DETR's; or the
    re-annotations TimeLens-Bench (.json) or hidden-challenges-MR (.csv), whose queries are matched by video and sentence."""
    split: Split | None = None
    """The split to score on (default: test). A file in Moment-DETR's format is one split and has no other."""
    durations: tuple[Path, ...] = ()
    """The files with the videos' durations, which the annotations of hidden-challenges-MR need: Charades_v1_test.csv."""
    train: Path | None = None
    """The training annotations, to which the baselines are fitted, if --against has none: a file like --against."""
    strict: bool = False
    """Show the recalls that count IoU > threshold in place of >=."""
    json: bool = False
    """Print all metrics as JSON, strict ones and intervals too, in place of the table."""
    out: Path | None = None
    """A file for the same JSON."""

    def __post_init__(self) -> None:
        if self.train is not None and self.against.is_dir():
            raise ValueError(f"train: {self.against} has training annotations of its own")


def run(config: ScoreConfig) -> dict[str, Any]:
    """Score the file and return the metrics. ValueError if none of its lines answers a query."""
    predictions = read_predictions(existing_file(config.file, what="predictions"))
    store = TrainingStore(config.against) if config.against.is_dir() else None
    split, queries, training = read_queries(config.against, config.split, durations=config.durations)
    if config.train is not None:
        training = read_annotations(config.train, None, default="train")[1]
    require_own_qids(queries)
    windows, mismatches = match(predictions, queries, by_sentence=config.against.suffix in AGAIN)
    saliency = match_saliency(predictions, queries)
    annotated = _read_saliency(config.against, queries) if saliency else {}
    warn_of_mismatches(config.file, mismatches)
    truth = split_metrics.GroundTruth.from_queries(queries)
    baselines, answers = split_metrics.baselines(training, queries, truth, store)
    answers = {"model": windows[:, :TOP, :2], **answers}
    training_words = frozenset(word for query in training for word in query.tokens)
    metrics = {
        "variant": config.file.name,
        "against": str(config.against),
        "split": split,
        "misfits": mismatches,
        **split_metrics.prediction_metrics(answers["model"], truth),
        "moment_detr": moment_metrics(windows, truth) | (saliency_metrics(saliency, annotated) if annotated else {}),
        **baselines,
        "kinds": metrics_by_kind(answers, truth, query_kinds(queries, truth, training, training_words=training_words)),
    }
    if config.out is not None:
        write_json(config.out, metrics)
    return metrics


def read_queries(
    against: Path, split: Split | None, *, durations: Sequence[Path] = ()
) -> tuple[Split, list[Query], list[Query]]:
    """The split (default: test), its queries, and those of the training split, of a training store or of annotations."""
    if against.is_dir():
        store = TrainingStore(against)
        return split or "test", store.queries(split or "test"), store.queries("train")
    return read_annotations(against, split, durations=durations)


def read_annotations(
    path: Path, split: Split | None, *, default: Split = "test", durations: Sequence[Path] = ()
) -> tuple[Split, list[Query], list[Query]]:
    """The split, its queries, and the queries of the training split; ValueError if the split has none in this file."""
    if path.suffix in AGAIN:
        existing_file(path, what="annotations")
        moments = read_moments(AGAIN[path.suffix], path, split=split or default, durations=durations)
        return split or default, [_query(moment) for moment in moments], []
    line_number, line = next(read_lines(existing_file(path, what="annotations"), comment="#"), (0, ""))
    if not line:
        raise ValueError(f"{path}: no annotations in it")
    keys = parse_object(line, path, line_number).keys()
    if "relevant_windows" in keys:
        if split is not None:
            raise ValueError(f"split: {path} is one split, and says nothing of others")
        return default, _read_moment_detr(path), []
    split = split or default
    queries = _read_tokenised(path) if "token_ids" in keys else _read_jsonl(path, split)
    chosen = [query for query in queries if query.split == split]
    if not chosen:
        raise ValueError(f"{path}: no queries of a split {split!r}; it has {sorted({q.split for q in queries})}")
    return split, chosen, [query for query in queries if query.split == "train"]


def _read_saliency(path: Path, queries: Sequence[Query]) -> dict[str, np.ndarray]:
    """The annotated saliency [clips, annotators] by query key; {} where the annotations have none."""
    is_jsonl = path.is_file() and path.suffix not in AGAIN
    if not is_jsonl or "relevant_windows" not in parse_object(next(read_lines(path, comment="#"))[1], path):
        return {}
    saliency = moment_detr.load_saliency(path, clip_s=CLIP_S)
    return {query.key: saliency[query.query_id] for query in queries if query.query_id in saliency}


def _read_jsonl(path: Path, split: Split) -> list[Query]:
    """The moments in JSON lines of the user's own; if no line names a split, all are of this one."""
    with_splits = any("split" in parse_object(line, path, number) for number, line in read_lines(path, comment="#"))
    return [_query(moment) for moment in jsonl.load(path, split=None if with_splits else split)]


def _read_tokenised(path: Path) -> list[Query]:
    """The queries in moments.jsonl of `excl tokenise`."""
    queries = []
    for line_number, line in read_lines(path):
        try:
            queries.append(Query.from_json(parse_object(line, path, line_number)))
        except KeyError as error:
            raise ValueError(f"{path}:{line_number}: no {error}; is it moments.jsonl of `excl tokenise`?") from error
    return queries


def _read_moment_detr(path: Path) -> list[Query]:
    """The windows in a file of Moment-DETR's format, with the file's own qids."""
    prefix = annotation_id("test", path, "")
    moments = moment_detr.load(path, split="test")
    return [_query(replace(moment, query_id=moment.query_id.removeprefix(prefix))) for moment in moments]


def _query(moment: Moment) -> Query:
    tokens = [] if too_long(moment.query) else tokenise(moment.query)
    return Query.from_json({**vars(moment), "tokens": tokens, "token_ids": ()})


def show(config: ScoreConfig, metrics: dict[str, Any]) -> str:
    """The metrics as a table, or as JSON."""
    if config.json:
        return json.dumps(metrics, indent=2)
    lines = [
        f"{metrics['against']}, split {metrics['split']}: {metrics['num_queries']:,} queries, "
        f"{metrics['num_covered']:,} with an answer",
        *metrics_table.table(split_metrics.rows(metrics, covered="those with an answer"), strict=config.strict),
        *metrics_table.kinds_table(metrics["kinds"]),
        *metrics_table.moment_detr_table(metrics["moment_detr"]),
    ]
    if metrics["best_fixed_span"] is None:
        lines.append("There are no baselines, for want of training moments of known duration; give some with --train.")
    else:
        lines.append(metrics_table.ABOUT_BASELINES)
    return "\n".join(lines)
