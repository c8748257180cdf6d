"""The section of a report about the paper's table: the variants that `excl reproduce` trained, with intervals."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from excl.models.excl import THRESHOLDS, paper_r1
from excl.pipeline import evaluate
from excl.pipeline.evaluation.split_metrics import INTERVAL, NO_INTERVAL
from excl.pipeline.sweep.table import EVALUATION, RANDOM, read_results
from excl.workflows.pages import charts
from excl.workflows.pages.page import Section, Table
from excl.workflows.pages.report_store import recipe_table


def is_sweep(path: Path) -> bool:
    """Return whether a folder is one that `excl reproduce` wrote."""
    return (path / "table.json").is_file() and any(path.glob(f"*/*/seed-*/{EVALUATION}/{evaluate.METRICS}"))


def sweep_sections(path: Path) -> list[Section]:
    """Return a section for each training store of a sweep."""
    folders = sorted(metrics.parent for metrics in path.glob(f"*/*/seed-*/{EVALUATION}/{evaluate.METRICS}"))
    return [_section(store, scores) for store, scores in read_results(folders).items()]


def _section(store: str, scores: list[dict[str, Any]]) -> Section:
    first = scores[0]
    variants: dict[str, list[dict[str, Any]]] = {}
    for score in scores:
        variants.setdefault(score["variant"], []).append(score)
    training = {key: value for key, value in first["training"].items() if key not in ("seed", "recipe")}
    rows = []
    for variant, runs in variants.items():
        paper = paper_r1(variant, first["dataset"]) if first["split"] == "test" else {}
        cells = [_cell([run["model"]["all"][f"R1@{t}"] for run in runs], paper.get(t)) for t in THRESHOLDS]
        rows.append([variant, str(len(runs)), *cells, _cell([run["model"]["all"]["mIoU"] for run in runs], None)])
    title = "R@1 in percent: mean ± standard deviation over seeds (in the paper)"
    return Section(
        f"{first['dataset']}, split {first['split']} ({store})",
        texts=[
            f"{first['num_queries']:,} queries, {first['num_covered']:,} of them with features; the others count as misses. "
            f"{NO_INTERVAL}"
        ],
        warnings=[*([RANDOM] if first["random_weights"] else []), *([first["stamp"]] if first["stamp"] else [])],
        tables=[
            Table(title, ["variant", "seeds", *(f"IoU {t}" for t in THRESHOLDS), "mIoU"], rows),
            recipe_table("Training, of all variants but for the model's parts", json.loads(json.dumps(training))),
        ],
        charts=[_chart(variants, t, first["dataset"], is_test=first["split"] == "test") for t in THRESHOLDS],
    )


def _cell(values: list[float], paper: float | None) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}" + ("" if paper is None else f" ({paper:.1f})")


def _chart(variants: dict[str, list[dict[str, Any]]], threshold: float, dataset: str, *, is_test: bool) -> charts.Chart:
    name = f"R1@{threshold}"
    rows = []
    for variant, runs in variants.items():
        ends = [interval for run in runs if (interval := run["model"]["all"][INTERVAL].get(name))]
        low, high = (min(low for low, _ in ends), max(high for _, high in ends)) if ends else (None, None)
        reported = paper_r1(variant, dataset).get(threshold) if is_test else None
        mean = statistics.fmean(run["model"]["all"][name] for run in runs)
        rows.append(charts.IntervalRow(variant, mean, low, high, None, reported))
    caption = (
        "Dots are means over seeds; lines go from the lowest to the highest end of the seeds' 95 % intervals (bootstrap by "
        "video); diamonds are the paper's."
    )
    return charts.intervals(f"R@1 at IoU {threshold}", rows, caption=caption)
