"""The table of several variants and seeds next to the paper's Table 1: as Markdown, CSV and JSON.

Figures are means over seeds, with the standard deviation of a sample (n - 1) where there are several. Of variants with
several seeds the table marks which are worse than the best by a difference that stands at 95 %. It says how many epochs each
training took, and names those that reached the bound of epochs before they had converged.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from tabulate import tabulate

from excl.models.excl import PAPER_BASELINES, THRESHOLDS, paper_r1
from excl.pipeline import evaluate, train
from excl.pipeline.artifacts.manifest import COMPLETE, Manifest
from excl.pipeline.evaluation.paired_bootstrap import FIGURES, differences, query_values, query_videos
from excl.pipeline.evaluation.predictions import match, read_predictions
from excl.pipeline.evaluation.split_metrics import INTERVAL, GroundTruth
from excl.pipeline.store.training_store import TrainingStore
from excl.pipeline.training.validation import SELECT_BY

EVALUATION = "evaluation"
R1 = {threshold: f"R1@{threshold}" for threshold in THRESHOLDS}
BLIND = "R1@0.5"
STORE_COLUMNS = ("dataset", "split", "num_queries", "num_covered", "selection", "feature_recipe")
RANDOM = "The features come from an I3D with RANDOM weights: the figures show that the chain works, no more."
Results = dict[str, list[dict[str, Any]]]


class Line(NamedTuple):
    """One figure of one method on one group of queries: over seeds (0 for a method of the paper's), and in the paper (None:
    no such cell)."""

    method: str
    queries: str
    number: int
    figure: str
    mean: float | None
    std: float | None
    seeds: int
    paper: float | None
    difference: float | None


Cells = dict[tuple[str, str, str], Line]  # by method, queries and figure


def read_results(folders: Sequence[Path]) -> Results:
    """Return the metrics of finished evaluations, by the folder of their store, variants in the paper's order.

    `training` are the settings of the run, `epochs` what it took, `file` its predictions.
    """
    results: Results = {}
    for folder in folders:
        if not (folder / evaluate.METRICS).exists():
            continue
        evaluation, run = Manifest.read(folder), Manifest.read(folder.parent / "run", stage=train.STAGE)
        if not evaluation.is_complete or evaluation.header["identity"]["run"] != run.fingerprint():
            continue  # not finished, or of another training than the one that is there
        metrics = json.loads((folder / evaluate.METRICS).read_text(encoding="utf-8"))
        training = run.header["identity"]
        of_run = {"training": training, "epochs": _epochs(run), "file": folder / evaluate.PREDICTIONS}
        results.setdefault(folder.parents[2].name, []).append({**metrics, **of_run})
    return {store: sorted(scores, key=lambda score: score["variant"]) for store, scores in results.items()}


def _epochs(run: Manifest) -> dict[str, Any]:
    """Return the epochs that a run took, its best one, and whether it converged: stopped before the bound of epochs."""
    training, summary = run.header["identity"], run.records[COMPLETE]
    best = summary["best"]["epoch"]
    converged = summary["epochs"] - best >= training["patience"]
    return {"seed": training["seed"], "epochs": summary["epochs"], "best_epoch": best, "converged": converged}


def compare_variants(results: Results, stores: Mapping[str, TrainingStore]) -> dict[str, list[dict[str, Any]]]:
    """Return the differences of every two variants that have several seeds, by the folder of their store."""
    return {name: _differences(scores, stores[name]) for name, scores in results.items()}


def _differences(scores: list[dict[str, Any]], store: TrainingStore) -> list[dict[str, Any]]:
    files: dict[str, list[Path]] = {}
    for score in scores:
        files.setdefault(score["variant"], []).append(score["file"])
    queries = store.queries(scores[0]["split"])
    truth = GroundTruth.from_queries(queries)
    values = {
        variant: np.stack([query_values(match(read_predictions(file), queries)[0], truth) for file in of_variant])
        for variant, of_variant in files.items()
        if len(of_variant) > 1
    }
    videos = query_videos(truth)
    if len(values) < 2 or len(set(videos)) < 2:
        return []
    return [dataclasses.asdict(difference) for difference in differences(values, videos)]


def render(results: Results, comparisons: Mapping[str, list[dict[str, Any]]]) -> dict[str, str]:
    """Return the texts of the table by suffix: md, csv, json. `comparisons` is what `compare_variants` returns."""
    stores = {
        store: {**_facts(scores), "lines": _lines(scores), "differences": comparisons[store]}
        for store, scores in results.items()
    }
    as_json = {store: {**facts, "lines": [line._asdict() for line in facts["lines"]]} for store, facts in stores.items()}
    return {
        "md": "\n".join(map(_markdown, stores.values())),
        "csv": _csv(stores),
        "json": json.dumps(as_json, indent=2) + "\n",
    }


def _facts(scores: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what all evaluations of one store have in common."""
    score = scores[0]
    names = ("dataset", "split", "split_made_of", "num_queries", "num_covered", "feature_recipe", "random_weights")
    training = {key: value for key, value in score["training"].items() if key not in ("seed", "store", "recipe", "model")}
    model = {key: value for key, value in score["training"]["model"].items() if key != "variant"}
    on_test = bool(training.get("select_on_test"))
    split = "TEST split, so these figures are too high" if on_test else "validation split"
    files = score["trained_on"]["splits"].get("test" if on_test else "val", "")
    return {
        **{name: score[name] for name in names},
        "selection": f"best epoch by {', then '.join(SELECT_BY)} on the {split} ({files})",
        "training": {**training, "model": model},
        "epochs": _epochs_by_variant(scores),
        "query_blind_rule": score["query_blind"]["rule"],
    }


def _epochs_by_variant(scores: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    variants = dict.fromkeys(score["variant"] for score in scores)
    return {variant: [score["epochs"] for score in scores if score["variant"] == variant] for variant in variants}


def not_converged(facts: Mapping[str, Any]) -> list[str]:
    """Return the names of the trainings that reached the bound of epochs before they had converged."""
    return [
        f"{variant} seed {run['seed']} (best epoch {run['best_epoch']} of {run['epochs']})"
        for variant, runs in facts["epochs"].items()
        for run in runs
        if not run["converged"]
    ]


def _lines(scores: list[dict[str, Any]]) -> list[Line]:
    """Return every figure of every variant on all queries, on those with features, and by group; then of the baselines."""
    dataset, is_test = scores[0]["dataset"], scores[0]["split"] == "test"
    lines = []
    for variant in dict.fromkeys(score["variant"] for score in scores):
        runs = [score for score in scores if score["variant"] == variant]
        lines += _method_lines(variant, [run["model"] for run in runs], paper_r1(variant, dataset) if is_test else {})
        if runs[0]["model_where_covered"]:
            lines += _query_lines(variant, "those with features", [run["model_where_covered"] for run in runs])
        lines += _method_lines(f"query-blind {variant}", [run["query_blind"] for run in runs])
    for key, name in (("best_fixed_span", "best fixed span"), ("time_prior", "time prior")):
        if scores[0][key]:
            lines += _method_lines(name, [scores[0][key]])
    if is_test:
        lines += [
            Line(f"{method} (in the paper)", "all", scores[0]["num_queries"], R1[threshold], None, None, 0, value, None)
            for method in PAPER_BASELINES
            for threshold, value in paper_r1(method, dataset).items()
        ]
    return lines


def _method_lines(
    method: str, scores: Sequence[Mapping[str, Any]], paper: Mapping[float, float] = MappingProxyType({})
) -> list[Line]:
    lines = _query_lines(method, "all", [score["all"] for score in scores], paper)
    for group in scores[0]["groups"]:
        lines += _query_lines(method, group or "(no group)", [score["groups"][group] for score in scores])
    return lines


def _query_lines(
    method: str,
    queries: str,
    figures: Sequence[Mapping[str, Any]],
    paper: Mapping[float, float] = MappingProxyType({}),
) -> list[Line]:
    paper_cells = {R1[threshold]: value for threshold, value in paper.items()}
    lines = []
    for name in (name for name in figures[0] if name not in ("num_queries", INTERVAL)):
        values = [seed_figures[name] for seed_figures in figures]
        mean, std = statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None
        cell = paper_cells.get(name)
        difference = None if cell is None else mean - cell
        lines.append(Line(method, queries, figures[0]["num_queries"], name, mean, std, len(values), cell, difference))
    return lines


def _csv(stores: Mapping[str, Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["store", *STORE_COLUMNS, *Line._fields])
    for store, facts in stores.items():
        values = [facts[name] for name in STORE_COLUMNS]
        columns = [json.dumps(value) if isinstance(value, dict) else value for value in values]
        writer.writerows([store, *columns, *line] for line in facts["lines"])
    return text.getvalue()


def narrow(text: str) -> list[str]:
    """Return the table of `render`'s JSON in lines of at most 80 characters (unless a name is longer), for terminals."""
    shown: list[str] = []
    for facts in json.loads(text).values():
        lines = [Line(**line) for line in facts["lines"]]
        cells = _cells(lines)
        shown += [f"{facts['dataset']}, split {facts['split']}: R@1 in percent, mean ± standard deviation over seeds", ""]
        shown.append(_row("", [f"IoU {threshold}" for threshold in THRESHOLDS] + ["mIoU"]))
        for method in _methods(lines):
            is_trained = _is_trained(cells, method)
            name = f"{method}, {cells[method, 'all', BLIND].seeds} seeds" if is_trained else method
            groups = [line.queries for line in lines if line.method == method and line.queries != "all"]
            labels = {"all": name, **{group: f"  {group} ({_number(lines, group):,})" for group in groups}}
            worse = _worse(facts, cells, method)
            for queries, label in labels.items():
                marks = ["*" if queries == "all" and figure in worse else "" for figure in FIGURES]
                values = _values(cells, method, queries)
                shown.append(_row(label, [value + mark for value, mark in zip(values, marks, strict=True)]))
            if is_trained:
                shown.append(_row("  query-blind", _values(cells, f"query-blind {method}", "all")))
            paper = [cells[method, "all", R1[t]].paper if (method, "all", R1[t]) in cells else None for t in THRESHOLDS]
            if any(value is not None for value in paper):
                shown.append(_row("  in the paper", [*map(_rounded, paper), ""]))
        shown += [""] if facts["differences"] or not_converged(facts) or facts["random_weights"] else []
        shown += ["* worse than the best variant by a difference that stands at 95 %"] if facts["differences"] else []
        shown += [f"not converged: {name}" for name in not_converged(facts)]
        shown += [RANDOM] if facts["random_weights"] else []
        shown.append("")
    return shown[:-1]


def _worse(facts: Mapping[str, Any], cells: Cells, method: str) -> set[str]:
    """Return the figures in which a variant is worse than the best one by a difference that stands at 95 %."""
    worse = set()
    names = {name for difference in facts["differences"] for name in (difference["method"], difference["other"])}
    for difference in facts["differences"]:
        figure = difference["figure"]
        best = max(names, key=lambda name: cells[name, "all", figure].mean or 0.0)
        if difference["stands"] and method != best and {difference["method"], difference["other"]} == {method, best}:
            worse.add(figure)
    return worse


def _cells(lines: list[Line]) -> Cells:
    return {(line.method, line.queries, line.figure): line for line in lines}


def _methods(lines: list[Line]) -> list[str]:
    return [*dict.fromkeys(line.method for line in lines if not line.method.startswith("query-blind "))]


def _values(cells: Cells, method: str, queries: str) -> list[str]:
    return [_cell(cells.get((method, queries, name))) for name in (*R1.values(), "mIoU")]


def _row(label: str, values: Sequence[str]) -> str:
    return (f"{label:27}" + "".join(f"{value:>13}" for value in values)).rstrip()


def _markdown(facts: Mapping[str, Any]) -> str:
    lines: list[Line] = facts["lines"]
    cells = _cells(lines)
    groups = [*dict.fromkeys(line.queries for line in lines if line.queries != "all")]
    with_paper = any(line.paper is not None for line in lines)
    text = [f"## {facts['dataset']}, split {facts['split']}", "", *_preamble(facts, with_paper), ""]
    text.append(_main_table(facts, cells, with_paper))
    text += ["", *_remarks(facts)]
    if groups:
        head = [f"{group} ({_number(lines, group):,}), IoU {t}" for group in groups for t in THRESHOLDS]
        rows = [
            [method, *(_cell(cells.get((method, group, R1[t]))) for group in groups for t in THRESHOLDS)]
            for method in dict.fromkeys(line.method for line in lines if line.mean is not None)
        ]
        text += ["", "By queries, R@1 in percent:", "", _markdown_table(["", *head], rows)]
    return "\n".join([*text, ""])


def _preamble(facts: Mapping[str, Any], with_paper: bool) -> list[str]:
    recipe = facts["feature_recipe"]
    settings = ", ".join(
        f"{key} {recipe[key]}" for key in ("fps", "short_side", "crop", "precision", "dtype") if key in recipe
    )
    lines = [
        f"- R@1 in percent over {facts['num_queries']:,} queries ({facts['split_made_of']}), of which "
        f"{facts['num_covered']:,} have features; the others count as misses.",
        f"- Selection: {facts['selection']}.",
        f"- Features: weights {recipe['weights']['source']}, {settings}; rows {json.dumps(recipe.get('rows'))}.",
        f"- Training: {json.dumps(facts['training'])}",
        f"- Query-blind: the same model, but {facts['query_blind_rule']}.",
    ]
    if with_paper:
        lines.append("- Paper: the cell of Table 1 (single numbers); difference: our mean less that cell.")
    if with_paper and facts["dataset"] == "tacos":
        lines.append("- The paper's TACoS are TALL's files (tacos-tall), whose queries are not quite these.")
    if facts["random_weights"]:
        lines.append(f"- **{RANDOM}**")
    return lines


def _remarks(facts: Mapping[str, Any]) -> list[str]:
    """Return what the table shows and what not: the differences that stand, and the trainings that did not converge."""
    text = []
    if facts["differences"]:
        text.append(
            "\\* worse than the best variant of the column by a difference that stands at 95 %: a paired bootstrap by "
            "video, with seeds as a second level; each comparison is taken alone, and the best was chosen by these figures. "
            f"{_needed(facts['differences'])}"
        )
    else:
        text.append("Which differences are real is not known: that takes several seeds of several variants.")
    if names := not_converged(facts):
        text += [
            "",
            f"**Not converged**, with {facts['training']['epochs']} epochs as the bound: {'; '.join(names)}. Their figures "
            "may rise with more epochs; a comparison with the others is one of optimisation.",
        ]
    return text


def _needed(comparisons: list[dict[str, Any]]) -> str:
    rows = [difference for difference in comparisons if difference["figure"] == BLIND]
    kinds = {kind: [difference[f"{kind}_for_1_point"] for difference in rows] for kind in ("seeds", "videos")}
    parts = []
    for kind, numbers in kinds.items():
        enough = [number for number in numbers if number is not None]
        middle = f"{statistics.median_low(enough):,} in the median" if enough else "none"
        parts.append(f"more {kind} alone would do it for {len(enough)} of {len(rows)} pairs of variants ({middle})")
    return f"To see a difference of 1 point at IoU 0.5 in four of five tries, {' and '.join(parts)}."


def _main_table(facts: Mapping[str, Any], cells: Cells, with_paper: bool) -> str:
    head = ["", "seeds", "epochs (best)"]
    for threshold in THRESHOLDS:
        head += [f"IoU {threshold}", *(["paper", "difference"] if with_paper else [])]
    rows = []
    for method in _methods(facts["lines"]):
        worse = _worse(facts, cells, method)
        seeds = str(cells[method, "all", BLIND].seeds) if _is_trained(cells, method) else "-"
        row = [method, seeds, _epochs_cell(facts["epochs"].get(method, []))]
        for threshold in THRESHOLDS:
            line = cells.get((method, "all", R1[threshold]))
            paper = (None, None) if line is None else (line.paper, line.difference)
            row += [
                _cell(line) + _mark(worse, R1[threshold]),
                *([_rounded(paper[0]), _signed(paper[1])] if with_paper else []),
            ]
        blind = cells.get((f"query-blind {method}", "all", BLIND))
        rows.append([*row, _cell(cells.get((method, "all", "mIoU"))) + _mark(worse, "mIoU"), _cell(blind)])
    return _markdown_table([*head, "mIoU", "query-blind, IoU 0.5"], rows)


def _mark(worse: set[str], figure: str) -> str:
    return " \\*" if figure in worse else ""


def _epochs_cell(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return the fewest and the most epochs of a variant's trainings, and of their best epochs."""
    spans = [[run[key] for run in runs] for key in ("epochs", "best_epoch")]
    taken, best = (f"{min(span)} to {max(span)}" if len(set(span)) > 1 else f"{max(span, default=0)}" for span in spans)
    return f"{taken} ({best})" if runs else "-"


def _is_trained(cells: Cells, method: str) -> bool:
    return (f"query-blind {method}", "all", BLIND) in cells


def _number(lines: list[Line], queries: str) -> int:
    return next(line.number for line in lines if line.queries == queries)


def _cell(line: Line | None) -> str:
    if line is None or line.mean is None:
        return "-"
    return f"{line.mean:.1f}" + ("" if line.std is None else f" ± {line.std:.1f}")


def _rounded(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.1f}"


def _markdown_table(head: list[str], rows: list[list[str]]) -> str:
    return tabulate(rows, head, tablefmt="github", disable_numparse=True)
