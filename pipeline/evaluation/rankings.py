"""Compare predictions on two sets of annotations of the same queries: which of them is better, and whether both sets agree.

Queries are those that both sets have: the same sentence, but for case, spaces and the full stop, about the same video. A
file of predictions answers them by the ids of the first set.
"""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from pydantic import Field
from pydantic.dataclasses import dataclass
from tabulate import simple_separated_format, tabulate

from excl.models.excl import summary
from excl.pipeline.artifacts.atomic_files import write_json
from excl.pipeline.config import STRICT, existing_file
from excl.pipeline.evaluation.predictions import match, read_predictions, sentence_key
from excl.pipeline.evaluation.score import Split, read_annotations
from excl.pipeline.evaluation.split_metrics import GroundTruth
from excl.pipeline.store.training_store import Query, TrainingStore

log = logging.getLogger(__name__)

FIGURES = ("R1@0.3", "R1@0.5", "R1@0.7", "mIoU")


@dataclass(frozen=True, config=STRICT)
class RankingsConfig:
    """Rank predictions on official annotations and on others of the same queries, and show what changes."""

    files: Annotated[
        tyro.conf.Positional[Annotated[tuple[Path, ...], Field(min_length=1)]],
        tyro.conf.arg(metavar="FILE …", help_behavior_hint="(required)"),
    ]
    """Predictions, as for `excl score`, with the ids of the official annotations."""
    against: Path
    """The official annotations: as for `excl score`."""
    again: Path
    """The re-annotations: TimeLens-Bench (.json), hidden-challenges-MR (.csv), or as for `excl score`."""
    durations: tuple[Path, ...] = ()
    """The files with the videos' durations, which those of hidden-challenges-MR need: Charades_v1_test.csv."""
    split: Split = "test"
    """The split to compare on, where a file has several."""
    out: Path | None = None
    """A file for the figures as JSON."""


def run(config: RankingsConfig) -> dict[str, Any]:
    """Score every file on both sets. ValueError if they have no query in common."""
    official = _queries(config.against, config)
    again = _queries(config.again, config)
    keys = {sentence_key(query.video_id, query.query) for query in official}
    keys &= {sentence_key(query.video_id, query.query) for query in again}
    if not keys:
        raise ValueError(
            f"{config.again}: no sentence in common with {config.against}; the first is {again[0].query!r} about "
            f"{again[0].video_id!r}, and there {official[0].query!r} about {official[0].video_id!r}"
        )
    official = [query for query in official if sentence_key(query.video_id, query.query) in keys]
    moments: dict[tuple[str, str], list[Query]] = {}
    for query in again:
        moments.setdefault(sentence_key(query.video_id, query.query), []).append(query)
    pairs = [(query, other) for query in official for other in moments.get(sentence_key(query.video_id, query.query), [])]
    figures = {}
    for path in config.files:
        predictions = read_predictions(existing_file(path, what="predictions"))
        windows, _ = match(predictions, official)
        by_key = {query.key: row[:, :2] for query, row in zip(official, windows, strict=True)}
        figures[str(path)] = {
            "official": _figures(np.stack([by_key[query.key] for query in official]), official, official),
            "again": _figures(
                np.stack([by_key[query.key] for query, _ in pairs]), [q for q, _ in pairs], [other for _, other in pairs]
            ),
        }
    result = {
        "against": str(config.against),
        "again": str(config.again),
        "queries": len({query.key for query in official}),
        "sentences_of_again": {"in both": len(keys), "all": len(moments)},
        "figures": figures,
        "swapped": {figure: _swapped(figures, figure) for figure in FIGURES},
    }
    if config.out is not None:
        write_json(config.out, result)
    return result


def _queries(path: Path, config: RankingsConfig) -> list[Query]:
    """Return the queries of a split with a moment that is one; warn of those that are none."""
    if path.is_dir():
        queries = TrainingStore(path).queries(config.split)
    else:
        queries = read_annotations(path, None, default=config.split, durations=config.durations)[1]
    usable = [query for query in queries if query.start_s < query.end_s]
    if len(usable) < len(queries):
        log.warning("%s: left out %d moments that do not end after their start", path, len(queries) - len(usable))
    return usable


def _figures(windows: np.ndarray, queries: list[Query], moments: list[Query]) -> dict[str, float]:
    truth = GroundTruth.from_queries(moments).moments
    figures = summary(windows, truth, np.array([query.key for query in queries]))
    return {name: figures[name] for name in FIGURES}


def _swapped(figures: dict[str, Any], figure: str) -> list[list[str]]:
    """Return the pairs of files of which the first is better by the official annotations, and the second by the others."""
    return [
        [better, worse]
        for better, worse in itertools.permutations(figures, 2)
        if figures[better]["official"][figure] > figures[worse]["official"][figure]
        and figures[better]["again"][figure] < figures[worse]["again"][figure]
    ]


def show(result: dict[str, Any]) -> str:
    """Return the figures on both sets, with ranks by R@1 at IoU 0.5, and which rankings change."""
    shared, total = result["sentences_of_again"]["in both"], result["sentences_of_again"]["all"]
    lines = [
        f"{result['queries']:,} queries in both {result['against']} and {result['again']} "
        f"({shared:,} of the {total:,} sentences of the latter)"
    ]
    figures = result["figures"]
    cells = [["", *(f"{name} {when}" for name in ("R1@0.5", "R1@0.7", "mIoU") for when in ("", "again")), "rank", "again"]]
    for path, both in figures.items():
        row = [f"{both[when][name]:.1f}" for name in ("R1@0.5", "R1@0.7", "mIoU") for when in ("official", "again")]
        cells.append([path, *row, *(str(_rank(figures, path, when)) for when in ("official", "again"))])
    alignment = ("left", *["right"] * (len(cells[0]) - 1))
    lines += tabulate(cells, tablefmt=simple_separated_format("  "), colalign=alignment, disable_numparse=True).splitlines()
    for figure, pairs in result["swapped"].items():
        lines += [f"by {figure} the order of {better} and {worse} changes" for better, worse in pairs]
    if len(figures) > 1 and not any(result["swapped"].values()):
        lines.append("both sets rank the predictions alike")
    return "\n".join(line.rstrip() for line in lines)


def _rank(figures: dict[str, Any], path: str, when: str) -> int:
    return 1 + sum(other[when]["R1@0.5"] > figures[path][when]["R1@0.5"] for other in figures.values())
