"""Evaluations of several variants and seeds as a table beside the paper's Table 1: as Markdown, CSV and JSON.

Figures are means over seeds, with the standard deviation of a sample (n - 1) where there are several.
"""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from excl.models.excl import PAPER_BASELINES, THRESHOLDS, paper_r1
from excl.pipeline import evaluate, train
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.evaluation.metrics import INTERVAL
from excl.pipeline.training.validation import SELECT_BY

MADE = "evaluation"
R1 = {threshold: f"R1@{threshold}" for threshold in THRESHOLDS}
BLIND = "R1@0.5"
OF_STORE = ("dataset", "split", "num_queries", "num_covered", "selection", "feature_recipe")
RANDOM = "The features come from an I3D with RANDOM weights: the figures show that the chain works, no more."
Results = dict[str, list[dict[str, Any]]]


class Line(NamedTuple):
    """One figure of one method on one group of queries: over seeds, of which a method that is the paper's has none, and in
    the paper (None: no such cell)."""

    method: str
    queries: str
    number: int
    figure: str
    mean: float | None
    std: float | None
    seeds: int
    paper: float | None
    difference: float | None


def read_results(folders: Sequence[Path]) -> Results:
    """The metrics of those evaluations that are finished, by the folder of their store, variants in the paper's order."""
    results: Results = {}
    for folder in folders:
        if not (folder / evaluate.METRICS).exists():
            continue
        made, run = Manifest.read(folder), Manifest.read(folder.parent / "run", stage=train.STAGE)
        if not made.is_complete or made.header["identity"]["run"] != run.fingerprint():
            continue  # not finished, or of another training than the one that is there
        metrics = json.loads((folder / evaluate.METRICS).read_text(encoding="utf-8"))
        results.setdefault(folder.parents[2].name, []).append({**metrics, "training": run.header["identity"]})
    return {store: sorted(found, key=lambda one: one["variant"]) for store, found in results.items()}


def render(results: Results) -> dict[str, str]:
    """The texts of the table by suffix: md, csv, json."""
    lines = {store: _lines(found) for store, found in results.items()}
    about = {store: _about(found) for store, found in results.items()}
    return {
        "md": "\n".join(_markdown(about[store], lines[store]) for store in results),
        "csv": _csv(about, lines),
        "json": json.dumps(
            {store: {**about[store], "lines": [line._asdict() for line in lines[store]]} for store in results}, indent=2
        )
        + "\n",
    }


def _about(found: list[dict[str, Any]]) -> dict[str, Any]:
    """What the figures of one store are of, which all its evaluations have in common."""
    one = found[0]
    names = ("dataset", "split", "split_made_of", "num_queries", "num_covered", "feature_recipe", "random_weights")
    training = {key: value for key, value in one["training"].items() if key not in ("seed", "store", "recipe", "model")}
    model = {key: value for key, value in one["training"]["model"].items() if key != "variant"}
    on_test = bool(training.get("select_on_test"))
    split = "TEST split, so these figures are too high" if on_test else "validation split"
    made_of = one["trained_on"]["splits"].get("test" if on_test else "val", "")
    return {
        **{name: one[name] for name in names},
        "selection": f"best epoch by {', then '.join(SELECT_BY)} on the {split} ({made_of})",
        "training": {**training, "model": model},
        "query_blind_rule": one["query_blind"]["rule"],
    }


def _lines(found: list[dict[str, Any]]) -> list[Line]:
    """Every figure of every variant on all queries, on those with features, and by group; then those of the baselines."""
    dataset, is_test = found[0]["dataset"], found[0]["split"] == "test"
    lines = []
    for variant in dict.fromkeys(one["variant"] for one in found):
        runs = [one for one in found if one["variant"] == variant]
        paper = paper_r1(variant, dataset) if is_test else {}
        lines += _of_method(variant, [run["model"] for run in runs], paper)
        if runs[0]["model_where_covered"]:
            lines += _of_queries(variant, "those with features", [run["model_where_covered"] for run in runs], {})
        lines += _of_method(f"query-blind {variant}", [run["query_blind"] for run in runs], {})
    for key, name in (("best_fixed_span", "best fixed span"), ("time_prior", "time prior")):
        if found[0][key]:
            lines += _of_method(name, [found[0][key]], {})
    return lines + (_of_paper(dataset, found[0]["num_queries"]) if is_test else [])


def _of_paper(dataset: str, number: int) -> list[Line]:
    """What the paper says of the methods that it compares ExCL with."""
    return [
        Line(f"{method} (in the paper)", "all", number, R1[threshold], None, None, 0, value, None)
        for method in PAPER_BASELINES
        for threshold, value in paper_r1(method, dataset).items()
    ]


def _of_method(method: str, scores: Sequence[Mapping[str, Any]], paper: Mapping[float, float]) -> list[Line]:
    lines = _of_queries(method, "all", [score["all"] for score in scores], paper)
    for group in scores[0]["groups"]:
        lines += _of_queries(method, group or "(no group)", [score["groups"][group] for score in scores], {})
    return lines


def _of_queries(method: str, queries: str, figures: Sequence[Mapping[str, Any]], paper: Mapping[float, float]) -> list[Line]:
    cells = {R1[threshold]: value for threshold, value in paper.items()}
    lines = []
    for name in (name for name in figures[0] if name not in ("num_queries", INTERVAL)):
        values = [one[name] for one in figures]
        mean, std = statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None
        cell = cells.get(name)
        difference = None if cell is None else mean - cell
        lines.append(Line(method, queries, figures[0]["num_queries"], name, mean, std, len(values), cell, difference))
    return lines


def _csv(about: Mapping[str, Mapping[str, Any]], lines: Mapping[str, list[Line]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["store", *OF_STORE, *Line._fields])
    for store, found in lines.items():
        values = [about[store][name] for name in OF_STORE]
        of_store = [json.dumps(value) if isinstance(value, dict) else value for value in values]
        writer.writerows([store, *of_store, *line] for line in found)
    return text.getvalue()


def narrow(text: str) -> list[str]:
    """The table of `render`'s JSON in lines of at most 80 characters (unless a name is longer), for terminals."""
    shown = []
    for about in json.loads(text).values():
        lines = [Line(**line) for line in about["lines"]]
        cells = {(line.method, line.queries, line.figure): line for line in lines}
        shown += [f"{about['dataset']}, split {about['split']}: R@1 in percent, mean ± standard deviation over seeds", ""]
        shown.append(_row("", [f"IoU {threshold}" for threshold in THRESHOLDS] + ["mIoU"]))
        for method in dict.fromkeys(line.method for line in lines if not line.method.startswith("query-blind ")):
            seeds = cells[method, "all", BLIND].seeds if (method, "all", BLIND) in cells else 0
            name = f"{method}, {seeds} seeds" if _is_trained(cells, method) else method
            groups = [line.queries for line in lines if line.method == method and line.queries != "all"]
            shown.append(_row(name, _values(cells, method, "all")))
            shown += [
                _row(f"  {group} ({_number(lines, group):,})", _values(cells, method, group))
                for group in dict.fromkeys(groups)
            ]
            if _is_trained(cells, method):
                shown.append(_row("  query-blind", _values(cells, f"query-blind {method}", "all")))
            paper = [cells[method, "all", R1[t]].paper if (method, "all", R1[t]) in cells else None for t in THRESHOLDS]
            if any(value is not None for value in paper):
                shown.append(_row("  in the paper", [*map(_plain, paper), ""]))
        if about["random_weights"]:
            shown += ["", RANDOM]
        shown.append("")
    return shown[:-1]


def _values(cells: Mapping[tuple[str, str, str], Line], method: str, queries: str) -> list[str]:
    return [_cell(cells.get((method, queries, name))) for name in (*R1.values(), "mIoU")]


def _row(label: str, values: Sequence[str]) -> str:
    return (f"{label:27}" + "".join(f"{value:>13}" for value in values)).rstrip()


def _markdown(about: Mapping[str, Any], lines: list[Line]) -> str:
    cells = {(line.method, line.queries, line.figure): line for line in lines}
    methods = [*dict.fromkeys(line.method for line in lines if not line.method.startswith("query-blind "))]
    groups = [*dict.fromkeys(line.queries for line in lines if line.queries != "all")]
    with_paper = any(line.paper is not None for line in lines)
    text = [f"## {about['dataset']}, split {about['split']}", "", *_preamble(about, with_paper), ""]
    text += _main_table(cells, methods, with_paper)
    if groups:
        text += ["", "By queries, R@1 in percent:", ""]
        head = [f"{group} ({_number(lines, group):,}), IoU {t}" for group in groups for t in THRESHOLDS]
        rows = [
            [method, *(_cell(cells.get((method, group, R1[t]))) for group in groups for t in THRESHOLDS)]
            for method in [*dict.fromkeys(line.method for line in lines if line.mean is not None)]
        ]
        text += _table(["", *head], rows)
    return "\n".join([*text, ""])


def _preamble(about: Mapping[str, Any], with_paper: bool) -> list[str]:
    recipe = about["feature_recipe"]
    made = ", ".join(f"{key} {recipe[key]}" for key in ("fps", "short_side", "crop", "precision", "dtype") if key in recipe)
    settings = json.dumps(about["training"])
    lines = [
        f"- R@1 in percent over {about['num_queries']:,} queries ({about['split_made_of']}), of which "
        f"{about['num_covered']:,} have features; the others count as misses.",
        f"- Selection: {about['selection']}.",
        f"- Features: weights {recipe['weights']['source']}, {made}; rows {json.dumps(recipe.get('rows'))}.",
        f"- Training: {settings}",
        f"- Query-blind: the same model, but {about['query_blind_rule']}.",
    ]
    if with_paper:
        lines.append("- Paper: the cell of Table 1 (single numbers); difference: our mean less that cell.")
    if with_paper and about["dataset"] == "tacos":
        lines.append("- The paper's TACoS are TALL's files (tacos-tall), whose queries are not quite these.")
    if about["random_weights"]:
        lines.append(f"- **{RANDOM}**")
    return lines


def _main_table(cells: Mapping[tuple[str, str, str], Line], methods: list[str], with_paper: bool) -> list[str]:
    head = ["", "seeds"]
    for threshold in THRESHOLDS:
        head += [f"IoU {threshold}", *(["paper", "difference"] if with_paper else [])]
    rows = []
    for method in methods:
        row = [method, str(cells[method, "all", BLIND].seeds) if _is_trained(cells, method) else "-"]
        for threshold in THRESHOLDS:
            line = cells.get((method, "all", R1[threshold]))
            paper = (None, None) if line is None else (line.paper, line.difference)
            row += [_cell(line), *([_plain(paper[0]), _signed(paper[1])] if with_paper else [])]
        others = cells.get((method, "all", "mIoU")), cells.get((f"query-blind {method}", "all", BLIND))
        rows.append([*row, *map(_cell, others)])
    return _table([*head, "mIoU", "query-blind, IoU 0.5"], rows)


def _is_trained(cells: Mapping[tuple[str, str, str], Line], method: str) -> bool:
    return (f"query-blind {method}", "all", BLIND) in cells


def _number(lines: list[Line], queries: str) -> int:
    return next(line.number for line in lines if line.queries == queries)


def _cell(line: Line | None) -> str:
    if line is None or line.mean is None:
        return "-"
    return f"{line.mean:.1f}" + ("" if line.std is None else f" ± {line.std:.1f}")


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.1f}"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table whose columns are as wide as what is in them."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    text = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in [head, *rows]]
    rule = ["-" * width for width in widths]
    return ["| " + " | ".join(row) + " |" for row in [text[0], rule, *text[1:]]]
