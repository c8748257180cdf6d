"""The sections of a report about a trained run: recipe, results, training, where it is right and wrong, examples."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from excl.datasets.parsing import printable
from excl.models.excl import PAPER_BASELINES, THRESHOLDS, paper_r1, query_ious
from excl.pipeline import evaluate
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.evaluation.predictions import TOP, qid
from excl.pipeline.evaluation.split_metrics import (
    BASELINE_KNOWLEDGE,
    BASELINES,
    INTERVAL,
    NO_INTERVAL,
    GroundTruth,
    metrics_with_intervals,
    rows,
)
from excl.pipeline.execution.video_reading import VideoReading
from excl.pipeline.store.training_store import Query, TrainingStore
from excl.pipeline.sweep.table import RANDOM
from excl.pipeline.training.examples import load_examples
from excl.pipeline.training.trained_run import load_run
from excl.pipeline.training.validation import split_of
from excl.workflows.pages import charts, views
from excl.workflows.pages.charts import IntervalRow
from excl.workflows.pages.page import Section, Table, VideoExample
from excl.workflows.pages.report_store import recipe_table

RIGHT = 0.5
"""The IoU from which an answer counts as right in charts of one figure, as in the paper's text."""
R1 = f"R1@{RIGHT}"
BINS, PER_KIND, SEED = 5, 3, 0


@dataclass(frozen=True)
class Evaluation:
    """The results of `excl evaluate`: the metrics, and the windows of each query by its qid, the best first."""

    metrics: dict[str, Any]
    windows: dict[str, list[list[float]]]

    @classmethod
    def read(cls, folder: Path) -> Evaluation:
        """Read a finished evaluation."""
        Manifest.read(folder, stage=evaluate.STAGE)
        text = (folder / evaluate.PREDICTIONS).read_text(encoding="utf-8")
        lines = [json.loads(line) for line in text.split("\n") if line]
        windows = {str(line["qid"]): line["pred_relevant_windows"] for line in lines}
        return cls(json.loads((folder / evaluate.METRICS).read_text(encoding="utf-8")), windows)


@dataclass(frozen=True)
class Answered:
    """The moments of a split with the answers [N, 5, 3] (start, end, p; NaN where there are none), and IoUs by query."""

    moments: Sequence[Query]
    answers: np.ndarray
    first: np.ndarray
    """The first moment of each query, int [Q]."""
    which: np.ndarray
    """The query of each moment, int [N]."""
    iou: np.ndarray
    """The IoU of the best answer of each query, float64 [Q]."""

    @classmethod
    def of(cls, moments: Sequence[Query], windows: Mapping[str, list[list[float]]]) -> Answered:
        """Put moments and windows together."""
        answers = np.full((len(moments), TOP, 3), np.nan)
        for index, query in enumerate(moments):
            best = windows.get(qid(query), [])[:TOP]
            answers[index, : len(best)] = np.array(best).reshape(-1, 3)
        _, first, inverse = np.unique([query.key for query in moments], return_index=True, return_inverse=True)
        order = np.argsort(first)
        which = np.argsort(order)[inverse]
        iou = query_ious(answers[:, :, :2], _spans(moments), which)[:, 0]
        return cls(moments, answers, first[order], which, iou)

    @property
    def queries(self) -> list[Query]:
        """The first moment of each query."""
        return [self.moments[index] for index in self.first]

    def recall(self, chosen: np.ndarray, label: str) -> IntervalRow:
        """Return R@1 at IoU 0.5 over the queries where `chosen` [Q] is True, with the interval of a bootstrap by video."""
        mask = chosen[self.which]
        part = [query for query, is_in in zip(self.moments, mask, strict=True) if is_in]
        figures = metrics_with_intervals(self.answers[mask, 0, :2], GroundTruth.from_queries(part))
        low, high = figures[INTERVAL].get(R1, (None, None))
        return IntervalRow(label, figures[R1], low, high, int(figures["num_queries"]))


def _spans(moments: Sequence[Query]) -> np.ndarray:
    return np.array([[query.start_s, query.end_s] for query in moments], dtype=np.float64)


def recipe_section(run: Path, metrics: Mapping[str, Any] | None) -> Section:
    """Return what was trained, with which settings, on which data."""
    manifest = Manifest.read(run)
    training = {key: value for key, value in manifest.header["identity"].items() if key != "recipe"}
    about = {} if metrics is None else {"best_epoch": metrics["best_epoch"]["epoch"], "selected_on": metrics["selected_on"]}
    return Section(
        "Recipe",
        tables=[
            recipe_table("Training", about, training),
            recipe_table("Features", manifest.header["identity"]["recipe"]),
        ],
    )


def results_section(metrics: Mapping[str, Any]) -> Section:
    """Return the figures of the model, the baselines and the paper, with intervals."""
    paper = paper_r1(metrics["variant"], metrics["dataset"]) if metrics["split"] == "test" else {}
    names = [f"R{k}@{threshold}" for k in (1, 5) for threshold in THRESHOLDS] + ["mIoU"]
    table = []
    for approach, queries, figures in rows(metrics, covered="those with features"):
        cells = [_with_interval(figures, name) for name in names]
        table.append([approach if queries == "all" else f"{approach}: {queries}", f"{figures['num_queries']:,}", *cells])
    methods = [("in the paper, the same variant", paper)] if paper else []
    if metrics["split"] == "test":
        others = {method: paper_r1(method, metrics["dataset"]) for method in PAPER_BASELINES}
        methods += [(f"in the paper, {method}", reported) for method, reported in others.items() if reported]
    for name, reported in methods:
        values = [f"{reported[t]:.1f}" if t in reported else "-" for t in THRESHOLDS]
        table.append([name, "-", *values, "-", "-", "-", "-"])
    return Section(
        "Results",
        texts=[
            f"Split {metrics['split']} ({printable(str(metrics['split_made_of']))}) of {metrics['dataset']}: "
            f"{metrics['num_queries']:,} queries, {metrics['num_covered']:,} of them with features (others are misses)."
            f" Intervals are those of a bootstrap by video, 95\u00a0%. {NO_INTERVAL}"
        ],
        warnings=[*([RANDOM] if metrics["random_weights"] else []), *([metrics["stamp"]] if metrics["stamp"] else [])],
        tables=[Table("Figures in percent", ["approach", "queries", *names], table, _about_baselines(metrics))],
        charts=[_recalls(metrics, threshold, paper) for threshold in THRESHOLDS],
    )


def _about_baselines(metrics: Mapping[str, Any]) -> list[str]:
    """Return a line for each baseline that is there, and what it means if one beats the model."""
    lines = [f"{title} knows {BASELINE_KNOWLEDGE[key]}" for key, title in BASELINES.items() if metrics.get(key)]
    meaning = "If one that does not see the video beats the model, the model has not learnt to find moments by looking."
    return [*lines, meaning] if lines else []


def _with_interval(figures: Mapping[str, Any], name: str) -> str:
    if name not in figures:
        return "-"
    interval = figures.get(INTERVAL, {}).get(name)
    return f"{figures[name]:.1f}" + (f"\u00a0({interval[0]:.1f}\u2013{interval[1]:.1f})" if interval else "")


def _recalls(metrics: Mapping[str, Any], threshold: float, paper: Mapping[float, float]) -> charts.Chart:
    name = f"R1@{threshold}"
    entries = []
    for key, title in (("model", metrics["variant"]), *BASELINES.items()):
        if not metrics.get(key):
            continue
        figures = metrics[key]["all"]
        reported = paper.get(threshold) if key == "model" else None
        low, high = figures[INTERVAL].get(name, (None, None))
        entries.append(IntervalRow(title, figures[name], low, high, figures["num_queries"], reported))
    diamond = "; the diamond is the paper's" if paper else ""
    caption = f"R@1 in percent{_said_of_intervals(entries)} (number of queries){diamond}."
    return charts.intervals(f"R@1 at IoU {threshold}", entries, caption=caption)


def _said_of_intervals(entries: Sequence[IntervalRow]) -> str:
    return ", with 95\u00a0% intervals" if any(entry.low is not None for entry in entries) else ""


def training_section(run: Path) -> Section:
    """Return the curves of the training."""
    text = (run / "metrics.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.split("\n") if line]
    best = Manifest.read(run)
    split = split_of(lines[-1])
    figures = {f"IoU {t}": [(line["epoch"], line[f"{split}_R1@{t}"]) for line in lines] for t in THRESHOLDS}
    figures["mIoU"] = [(line["epoch"], line[f"{split}_mIoU"]) for line in lines]
    chosen = json.loads((best.folder / "best.json").read_text(encoding="utf-8"))["best"]["epoch"]
    return Section(
        "Training",
        charts=[
            charts.lines(
                "Loss on the training split",
                {"loss": [(line["epoch"], line["train_loss"]) for line in lines]},
                x_name="epoch",
                caption=f"{len(lines):,} epochs; the dashed line is the best one, {chosen}.",
                mark_x=chosen,
            ),
            charts.lines(
                f"R@1 and mIoU on the split {split}",
                figures,
                x_name="epoch",
                caption="In percent; the best epoch is chosen by these.",
                mark_x=chosen,
                top=charts.percent_top(value for points in figures.values() for _, value in points),
            ),
        ],
    )


def strengths_section(answered: Answered) -> Section:
    """Return R@1 by what queries and moments are like, calibration, and where answers fall."""
    queries = answered.queries
    lengths_s = np.array([query.end_s - query.start_s for query in queries])
    words = np.array([len(query.tokens) or len(query.query.split()) for query in queries], dtype=np.float64)
    durations_s = np.array([query.duration_s or np.nan for query in queries])
    middles = np.array([(query.start_s + query.end_s) / 2 for query in queries]) / durations_s
    groups = sorted({query.group for query in queries})
    by = {
        "the moment's length": [*_quantile_bins(lengths_s, lambda a, b: f"{a:.1f} to {b:.1f} s")],
        "the moment's position in the video": [*_fifths(middles)],
        "words of the query": [
            *_quantile_bins(words, lambda a, b: f"{a:.0f} to {b:.0f} words" if a < b else f"{a:.0f} words")
        ],
    }
    if len(groups) > 1:
        of = np.array([query.group for query in queries])
        by["group of queries"] = [(of == group, printable(group) or "(no group)") for group in groups]
    figures = []
    for name, parts in by.items():
        entries = [answered.recall(*part) for part in parts]
        caption = f"R@1 at IoU {RIGHT} in percent{_said_of_intervals(entries)} (number of queries)."
        figures += [charts.intervals(f"By {name}", entries, caption=caption)] if entries else []
    return Section("Where it is right", charts=[*figures, *_calibration(answered)])


def _quantile_bins(values: np.ndarray, name: Callable[[float, float], str]) -> Iterator[tuple[np.ndarray, str]]:
    """Yield masks of about equally many values, and the names of their ranges."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, BINS + 1), method="nearest"))
    for low, high in itertools.pairwise(edges) if len(edges) > 1 else [(edges[0], edges[0])]:
        mask = ((values > low) if low > edges[0] else (values >= low)) & (values <= high)
        if mask.any():
            yield mask, name(float(values[mask].min()), float(values[mask].max()))


def _fifths(places: np.ndarray) -> Iterator[tuple[np.ndarray, str]]:
    for number in range(BINS):
        low, high = number / BINS, (number + 1) / BINS
        mask = (places >= low) & ((places < high) | (number == BINS - 1))
        if mask.any():
            yield mask, f"{low:.0%} to {high:.0%}"


def _calibration(answered: Answered) -> list[charts.Chart]:
    p = answered.answers[answered.first, 0, 2]
    has = ~np.isnan(p)
    if not has.any():
        return []
    order = np.argsort(p[has])
    parts = [part for part in np.array_split(order, min(10, len(order))) if len(part)]
    right = answered.iou[has] >= RIGHT
    points = [(float(p[has][part].mean()), float(right[part].mean())) for part in parts]
    return [
        charts.lines(
            "Calibration",
            {"share that is right": points},
            x_name="p of the answer, mean of a tenth of the queries",
            caption=f"The share of answers with IoU {RIGHT} or more, by their p, the probability of just one span of rows:"
            " spans near it are right too, so points above the dashed line are to be expected.",
            diagonal=True,
            top=1.0,
        )
    ]


def bias_section(answered: Answered) -> Section:
    """Return where moments are in their videos, and where the answers are."""
    durations_s = np.array([query.duration_s or np.nan for query in answered.moments])[:, None]
    placed = _spans(answered.moments) / durations_s
    predicted = answered.answers[answered.first, 0, :2] / durations_s[answered.first]
    known, given = ~np.isnan(placed).any(axis=1), ~np.isnan(predicted).any(axis=1)
    return Section(
        "Where moments are, and where the answers are",
        texts=["A model that has learnt where moments usually are, and little else, answers with a map like that of the"
               " moments for whatever it is asked; the query-blind baseline above measures how far that takes it."],
        charts=[
            charts.density("Annotated moments", placed[known], caption=f"{known.sum():,} moments of the split."),
            charts.density("Best answers", predicted[given], caption=f"{given.sum():,} queries of the split."),
        ],
    )  # fmt: skip


def example_section(
    run: Path, store: TrainingStore, answered: Answered, *, videos: Path | None, page: Path, embedded: int, device: str
) -> Section:
    """Return some of the best answers, the most probable wrong ones, and some others, each with its video."""
    queries = answered.queries
    p = answered.answers[answered.first, 0, 2]
    has = np.flatnonzero(~np.isnan(p))
    by_p = has[np.argsort(-p[has], kind="stable")]
    sure = by_p[: len(by_p) // 2]
    best = by_p[np.argsort(-answered.iou[by_p], kind="stable")]
    kinds = {
        "Among the best": best[answered.iou[best] >= RIGHT][:PER_KIND],
        "Sure and wrong": sure[answered.iou[sure] < RIGHT][:PER_KIND],
    }
    shown_before = np.concatenate([*kinds.values()])
    others = np.random.default_rng(SEED).permutation(has)
    kinds["At random"] = others[~np.isin(others, shown_before)][:PER_KIND]
    picked = [(kind, int(index)) for kind, order in kinds.items() for index in order]
    if not picked:
        return Section("Examples", texts=["No query of the split has features, so there are no answers."])
    trained = load_run(run, device=device)
    asked = trained.with_token_ids(store, [queries[index] for _, index in picked])
    records = views.answer(trained, load_examples(store, asked), top=TOP)
    examples = []
    for number, ((kind, index), query, record) in enumerate(zip(picked, asked, records, strict=True)):
        record["moments"] = views.annotated([m for m in answered.moments if m.key == query.key])[0]["moments"]
        record["note"] = f"IoU of the first answer {answered.iou[index]:.2f}"
        video = store[query.video_id]
        file = views.video_file(videos, video)
        inside = None if number < embedded else page
        shown = views.timeline(video, [record], file=file, page=inside, reading=VideoReading())
        examples.append(VideoExample(f"{kind}: {printable(query.query)} ({printable(query.video_id)})", shown))
    texts = [
        f"“Among the best” have an IoU of {RIGHT} or more, “sure and wrong” an IoU below {RIGHT} and a p in the upper half. "
        "Each query is here once."
    ]
    if videos is None:
        texts.append("The videos are not shown; `--videos DIR` says where their files are.")
    return Section("Examples", texts=texts, examples=examples)


def run_lines(metrics: Mapping[str, Any] | None) -> list[str]:
    """Return what the report is about, in a line."""
    return [] if metrics is None else [f"{metrics['variant']}, evaluated on the split {metrics['split']}."]
