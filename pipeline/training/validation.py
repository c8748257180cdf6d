"""The evaluation of a model after an epoch, and the rule by which one epoch is better than another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from excl.models.excl import summary
from excl.pipeline.training.examples import Example
from excl.pipeline.training.trained_run import predict

if TYPE_CHECKING:
    from excl.models.excl import ExCL

SELECT_BY = ("R1@0.5", "mIoU")
NUMBER = "num_queries"


def validate(model: ExCL, sets: Mapping[str, Sequence[Example]], *, split: str, batch_size: int) -> dict[str, Any]:
    """Return the figures on a split as `<split>_<figure>`: of one data set, or means over several and each one in `sets`."""
    figures = {}
    for name, examples in sets.items():
        truth = np.array([[e.query.start_s, e.query.end_s] for e in examples])
        ids = np.array([example.query.key for example in examples])
        _, first, which = np.unique(ids, return_index=True, return_inverse=True)  # one query has one prediction
        predicted = predict(model, [examples[index] for index in first], batch_size=batch_size)[which]
        figures[name] = summary(predicted[:, :2], truth, ids)
    by_figure = {key: [of[key] for of in figures.values()] for key in next(iter(figures.values()))}
    over_all = {f"{split}_{key}": float(np.mean(values)) for key, values in by_figure.items() if key != NUMBER}
    over_all[f"{split}_{NUMBER}"] = int(sum(by_figure[NUMBER]))
    return {**over_all, "sets": figures} if len(figures) > 1 else over_all


def split_of(line: Mapping[str, Any]) -> str:
    """Return the split that an epoch's line is about."""
    return "val" if f"val_{NUMBER}" in line else "test"


def selection_key(line: Mapping[str, Any]) -> tuple[float, ...]:
    """Return the key by which the best epoch is chosen: the greater, the better."""
    return tuple(line[f"{split_of(line)}_{name}"] for name in SELECT_BY)


def describe(line: Mapping[str, Any]) -> str:
    """Return an epoch's line as text for people."""
    split = split_of(line)
    return (
        f"epoch {line['epoch']}: loss {line['train_loss']:.3f}, "
        f"{split} R@1 IoU 0.5 {line[f'{split}_R1@0.5']:.1f} %, mIoU {line[f'{split}_mIoU']:.1f} %"
    )
