"""What anybody's predictions are worth: reads JSON lines in Moment-DETR's format and the annotations, prints the figures.

The annotations are those of a training store (as cleaned by `excl tokenise`), its queries alone (moments.jsonl of that
stage), a file of one's own (datasets/annotations/jsonl.py), or Moment-DETR's JSON lines; files are taken as they are.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass as plain_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from pydantic.dataclasses import dataclass

from excl.datasets.annotations import jsonl, moment_detr
from excl.datasets.annotations.moments import Moment
from excl.datasets.parsing import annotation_id, parse_object, read_lines
from excl.pipeline.artifacts.atomic_files import write_json
from excl.pipeline.config import STRICT, existing_file
from excl.pipeline.evaluation import metrics as scoring
from excl.pipeline.evaluation import metrics_table
from excl.pipeline.evaluation.predictions import match, read_predictions, require_own_qids, warn_of_mismatches
from excl.pipeline.store.training_store import Query, TrainingStore

log = logging.getLogger(__name__)

Split = Literal["train", "val", "test"]


@dataclass(frozen=True, config=STRICT)
class ScoreConfig:
    """Score predictions, JSON lines in Moment-DETR's format, against annotations."""

    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    """The predictions: {"qid", "vid", "pred_relevant_windows": [[start, end, score], ...]} a line, the best window first."""
    against: Path
    """A training store; or annotations: moments.jsonl of `excl tokenise`, JSON lines of one's own, or Moment-DETR's."""
    split: Split | None = None
    """The split to score on (default: test). A file in Moment-DETR's format is one split and has no other."""
    train: Path | None = None
    """The training annotations, to which the baselines are fitted, where --against has none: like --against, no store."""
    strict: bool = False
    """Show the figures that count only what is above a threshold."""
    json: bool = False
    """Print all figures as JSON, strict ones and intervals too, in place of the table."""
    out: Path | None = None
    """A file for the same JSON."""

    def __post_init__(self) -> None:
        if self.train is not None and self.against.is_dir():
            raise ValueError(f"train: {self.against} has training annotations of its own")


@plain_dataclass(frozen=True)
class Scores:
    """The figures, and how they are to be shown."""

    metrics: dict[str, Any]
    strict: bool
    as_json: bool


def run(config: ScoreConfig) -> Scores:
    """Score the file. ValueError where none of its lines answers a query."""
    predictions = read_predictions(existing_file(config.file, what="predictions"))
    if config.against.is_dir():
        store = TrainingStore(config.against)
        split: str = config.split or "test"
        queries, training = store.queries(split), store.queries("train")
    else:
        split, queries, training = _score_file(config.against, config.split)
    if config.train is not None:
        training = _score_file(config.train, None, default="train")[1]
    require_own_qids(queries)
    windows, misfits = match(predictions, queries)
    warn_of_mismatches(config.file, misfits)
    truth = scoring.GroundTruth.from_queries(queries)
    metrics = {
        "variant": config.file.name,
        "against": str(config.against),
        "split": split,
        "misfits": misfits,
        **scoring.prediction_metrics(windows, truth),
        **scoring.baselines(training, truth),
    }
    if config.out is not None:
        write_json(config.out, metrics)
    return Scores(metrics, config.strict, config.json)


def _score_file(path: Path, split: Split | None, *, default: Split = "test") -> tuple[str, list[Query], list[Query]]:
    """The split, its queries, and those of the training split, of a file of annotations; ValueError if there are none."""
    first = next(read_lines(existing_file(path, what="annotations"), comment="#"), None)
    if first is None:
        raise ValueError(f"{path}: no annotations in it")
    keys = parse_object(first[1], path, first[0]).keys()
    if "relevant_windows" in keys:
        if split is not None:
            raise ValueError(f"split: {path} is one split, and says nothing of others")
        return default, _of_moment_detr(path), []
    wanted = split or default
    queries = _of_moments(path) if "token_ids" in keys else _of_own(path, wanted)
    chosen = [query for query in queries if query.split == wanted]
    if not chosen:
        raise ValueError(f"{path}: no queries of a split {wanted!r}; it has {sorted({q.split for q in queries})}")
    return wanted, chosen, [query for query in queries if query.split == "train"]


def _of_own(path: Path, split: str) -> list[Query]:
    """The moments in JSON lines of one's own; where no line names a split, all are of this one."""
    named = any("split" in parse_object(line, path, number) for number, line in read_lines(path, comment="#"))
    return [_query(moment) for moment in jsonl.load(path, split=None if named else split)]


def _of_moments(path: Path) -> list[Query]:
    """The queries in moments.jsonl of `excl tokenise`."""
    queries = []
    for line_number, line in read_lines(path):
        try:
            queries.append(Query.from_json(parse_object(line, path, line_number)))
        except KeyError as error:
            raise ValueError(f"{path}:{line_number}: no {error}; is it moments.jsonl of `excl tokenise`?") from error
    return queries


def _of_moment_detr(path: Path) -> list[Query]:
    """The windows in a file of Moment-DETR's format, with the qids that stand there."""
    moments = moment_detr.load(path, split="test")
    prefix = annotation_id("test", path, "")
    return [_query(moment, query_id=moment.query_id.removeprefix(prefix)) for moment in moments]


def _query(moment: Moment, *, query_id: str | None = None) -> Query:
    return Query(
        moment.annotation_id,
        moment.video_id,
        moment.query,
        moment.start_s,
        moment.end_s,
        moment.duration_s,
        moment.split,
        moment.group,
        (),
        (),
        moment.query_id if query_id is None else query_id,
    )


def show(scores: Scores) -> str:
    """The figures as a table, or as JSON."""
    metrics = scores.metrics
    if scores.as_json:
        return json.dumps(metrics, indent=2)
    lines = [
        f"{metrics['against']}, split {metrics['split']}: {metrics['num_queries']:,} queries, "
        f"{metrics['num_covered']:,} with an answer",
        *metrics_table.table(scoring.rows(metrics, covered="those with an answer"), strict=scores.strict),
    ]
    if metrics["best_fixed_span"] is None:
        lines.append("No training moments of known duration are at hand, so there are no baselines; --train says where.")
    return "\n".join(lines)
