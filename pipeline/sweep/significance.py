"""Say which differences between methods are real: read predictions for the same queries, print intervals of differences.

A method is a run, an evaluation, a file of predictions, or a folder of several trainings of one method, such as a variant's
folder of `excl reproduce`, whose seeds then count as a second level. evaluation/paired_bootstrap.py has the bootstrap.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from pydantic.dataclasses import dataclass

from excl.pipeline import evaluate, train
from excl.pipeline.artifacts.atomic_files import write_json
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.config import STRICT, SaidInText
from excl.pipeline.evaluation.paired_bootstrap import FIGURES, Difference, differences, query_values, query_videos
from excl.pipeline.evaluation.predictions import match, read_predictions, require_own_qids, warn_of_mismatches
from excl.pipeline.evaluation.score import read_queries
from excl.pipeline.evaluation.split_metrics import GroundTruth
from excl.pipeline.training.trained_run import store_of


@dataclass(frozen=True, config=STRICT)
class SignificanceConfig:
    """Say which differences between methods stand at 95 %: a paired bootstrap by video, with seeds as a second level."""

    methods: Annotated[
        tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="METHOD …", help_behavior_hint="(required)")
    ]
    """Two or more methods, each a run that was evaluated, an evaluation, a file of predictions in Moment-DETR's format, or a
    folder of several of these: trainings of one method, as those in VARIANT of `excl reproduce`."""
    against: SaidInText[Path | None] = None
    """A training store or annotations, as for `excl score`. Default: the store that the first method was trained on."""
    split: Literal["train", "val", "test"] | None = None
    """The split (default: test). A file in Moment-DETR's format is one split and has no other."""
    json: bool = False
    """Print all as JSON, in place of the table."""
    out: Path | None = None
    """A file for the same JSON."""

    def __post_init__(self) -> None:
        if len({path.resolve() for path in self.methods}) < 2:
            raise ValueError("methods: expected two or more; put several trainings of one method into one folder")


def run(config: SignificanceConfig) -> dict[str, Any]:
    """Compare every two methods. ValueError if a method has no predictions, or none that answer the queries."""
    split = config.split or "test"
    files = {path: _prediction_files(path, split) for path in config.methods}
    against, queries, _ = _truth(config, next(iter(files.values())))
    require_own_qids(queries)
    truth = GroundTruth.from_queries(queries)
    values = {
        name: np.stack([_values(file, queries, truth) for file in files[path]])
        for name, path in zip(_names(config.methods), config.methods, strict=True)
    }
    result = {
        "against": str(against),
        "split": split,
        "num_queries": len(set(truth.query_ids)),
        "num_videos": len(set(truth.video_ids)),
        "methods": {
            name: {"seeds": len(seeds), **dict(zip(FIGURES, seeds.mean((0, 1)).tolist(), strict=True))}
            for name, seeds in values.items()
        },
        "differences": [dataclasses.asdict(difference) for difference in differences(values, query_videos(truth))],
    }
    if config.out is not None:
        write_json(config.out, result)
    return result


def _truth(config: SignificanceConfig, files: Sequence[Path]) -> tuple[Path, list[Any], list[Any]]:
    against = config.against or _store_of_evaluation(files[0])
    _, queries, training = read_queries(against, config.split)
    return against, queries, training


def _values(file: Path, queries: Sequence[Any], truth: GroundTruth) -> np.ndarray:
    windows, mismatches = match(read_predictions(file), queries)
    warn_of_mismatches(file, mismatches)
    return query_values(windows, truth)


def _names(paths: Sequence[Path]) -> list[str]:
    """Return what tells the methods apart: the names of their files or folders, if these differ, or their whole paths."""
    names = [path.absolute().name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _prediction_files(path: Path, split: str) -> list[Path]:
    """Return the predictions of a method, a file for each of its trainings."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: there is no such file or folder (a method to compare)")
    predictions = path / evaluate.PREDICTIONS
    if predictions.is_file():
        return [predictions]
    runs = [folder for folder, _ in _stage_folders([path], train.STAGE)]
    if runs:
        evaluations = _stage_folders(sorted(path.absolute().parent.iterdir()), evaluate.STAGE)
        fingerprint = Manifest.read(path).fingerprint()
        identity = {"run": fingerprint, "split": split}
        files = [
            folder / evaluate.PREDICTIONS
            for folder, manifest in evaluations
            if manifest.is_complete and identity.items() <= manifest.header["identity"].items()
        ]
        if not files:
            raise ValueError(f"{path}: not evaluated on {split}; run `excl evaluate {path} --split {split}` first")
        return files[:1]
    files = sorted(path.rglob(evaluate.PREDICTIONS))
    if not files:
        raise ValueError(f"{path}: neither a run nor an evaluation, and no {evaluate.PREDICTIONS} in it or below it")
    evaluations = _stage_folders([file.parent for file in files], evaluate.STAGE)
    splits = {folder: manifest.header["identity"]["split"] for folder, manifest in evaluations}
    if len(set(splits.values())) > 1:
        files = [file for file in files if splits.get(file.parent, split) == split]
    _require_one_method(path, [file.parent / evaluate.METRICS for file in files if file.parent in splits])
    return files


def _require_one_method(path: Path, files: Sequence[Path]) -> None:
    """Raise ValueError if the metrics of a folder's evaluations are of several variants: they are no seeds of one method."""
    variants = sorted({json.loads(file.read_text(encoding="utf-8"))["variant"] for file in files})
    if len(variants) > 1:
        raise ValueError(
            f"{path}: has evaluations of {len(variants)} variants ({', '.join(variants)}); "
            "expected trainings of one method: give the folder of each variant"
        )


def _stage_folders(folders: Sequence[Path], stage: str) -> Iterator[tuple[Path, Manifest]]:
    """Yield those folders that a stage wrote, with their manifests."""
    for folder in folders:
        try:
            yield folder, Manifest.read(folder, stage=stage)
        except (ValueError, OSError):  # whatever else stands next to a run
            continue


def _store_of_evaluation(file: Path) -> Path:
    """Return the training store of the run whose evaluation wrote a file; ValueError if there is no such run next to it."""
    folder = file.absolute().parent
    for _, evaluation in _stage_folders([folder], evaluate.STAGE):
        for run_folder, manifest in _stage_folders(sorted(folder.parent.iterdir()), train.STAGE):
            if manifest.fingerprint() == evaluation.header["identity"]["run"]:
                return store_of(run_folder)
    raise ValueError(f"{file}: the queries that it answers are unknown; give a training store or annotations by --against")


def show(config: SignificanceConfig, result: dict[str, Any]) -> str:
    """Return the differences as a table, or as JSON."""
    if config.json:
        return json.dumps(result, indent=2)
    lines = [
        f"{result['against']}, split {result['split']}: {result['num_queries']:,} queries of "
        f"{result['num_videos']:,} videos",
        "Points of percent with 95 % intervals; * stands at 95 %, each comparison taken alone.",
        "",
        f"{'':22}" + "".join(f"{figure:>14}" for figure in FIGURES),
    ]
    for name, method in result["methods"].items():
        lines.append(f"{_with_seeds(name, method):22}" + "".join(f"{method[figure]:>13.1f} " for figure in FIGURES))
    rows = [Difference(**difference) for difference in result["differences"]]
    for first in range(0, len(rows), len(FIGURES)):
        pair = rows[first : first + len(FIGURES)]
        lines += ["", f"{pair[0].method} less {pair[0].other}"]
        cells = {
            "difference": [f"{difference.difference:+.1f}{'*' if difference.stands else ' '}" for difference in pair],
            "95 % from": [f"{difference.low:+.1f} " for difference in pair],
            "to": [f"{difference.high:+.1f} " for difference in pair],
            "seeds for 1 point": [_count(difference.seeds_for_1_point) for difference in pair],
            "videos for 1 point": [_count(difference.videos_for_1_point) for difference in pair],
        }
        lines += [f"  {label:20}" + "".join(f"{cell:>14}" for cell in row) for label, row in cells.items()]
    if any(method["seeds"] == 1 for method in result["methods"].values()):
        lines += ["", "With one seed a comparison is about these trainings and not about the methods: other seeds may"]
        lines += ["reverse it. Train each several times, and give the folder of a method's trainings."]
    else:
        lines += ["", '"For 1 point": how many, by themselves, would show a true difference of 1 point in four of five']
        lines += ["tries; a dash where more of them alone never would."]
    return "\n".join(lines)


def _with_seeds(name: str, method: dict[str, Any]) -> str:
    return f"{name}, {method['seeds']} seed{'s' if method['seeds'] > 1 else ''}"


def _count(number: int | None) -> str:
    return "- " if number is None else f"{number:,} "
