"""A trained run as others use it: its best epoch's model with its vocabulary and recipe, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from excl.datasets.text import Vocabulary
from excl.models.excl import ExCL, ExCLConfig, RowTimes, decode
from excl.models.i3d.extractor import choose_device
from excl.pipeline.checkpoints import read_checkpoint
from excl.pipeline.examples import Batch, Example, collate
from excl.pipeline.joint import with_ids
from excl.pipeline.manifest import Manifest
from excl.pipeline.standing import BEST
from excl.pipeline.store import Query, TrainingStore

STAGE = "train"


@dataclass(frozen=True)
class TrainedRun:
    """A trained model with all it needs: its vocabulary, and the recipe of the features it was trained on."""

    path: Path
    model: ExCL
    words: list[str]
    recipe: dict[str, Any]
    about_queries: dict[str, Any]
    best: dict[str, Any]
    stores: dict[str, str]
    """The fingerprints of the training stores, by name."""
    selected_on: str
    """The split on which the epoch was chosen: "val", or "test" of a run that may be compared with its like alone."""

    @property
    def stamp(self) -> str:
        """What is to be said beside every figure of this run; empty where the epoch was chosen as it should be."""
        if self.selected_on == "val":
            return ""
        return (
            f"The epoch was chosen on the {self.selected_on.upper()} split (--select-on-test): figures on it are too good."
        )

    def knows(self, store: TrainingStore) -> bool:
        """Whether a store's words are those of the run, or it is one of the several stores that it was trained on."""
        same = self.words == list(store.vocabulary.words)
        return same or store.manifest.fingerprint() in self.stores.values()

    def asked(self, store: TrainingStore, queries: Sequence[Query]) -> list[Query]:
        """Queries of such a store with the run's token ids."""
        return with_ids(queries, store.vocabulary, Vocabulary(tuple(self.words)))


def load_run(path: Path, *, device: str) -> TrainedRun:
    """The best epoch of a finished run, in evaluation mode; ValueError if there is none."""
    if not Manifest.read(path, stage=STAGE).is_complete:
        raise ValueError(f"{path}: its training has not finished; run `excl train` again, it goes on")
    weights, about = read_checkpoint(path, BEST)
    vectors = weights["text_encoder.embedding.weight"]
    model = ExCL(ExCLConfig(**about["config"]["model"]), vectors=vectors, feature_dim=len(weights["feature_mean"]))
    model.load_state_dict(weights)
    model.to(choose_device(device)).eval()
    known = {name: about[name] for name in ("words", "recipe", "about_queries", "best", "stores", "selected_on")}
    return TrainedRun(path, model, **known)


def forward(model: ExCL, batch: Batch) -> tuple[Tensor, Tensor]:
    """Start and end logits [B, T] of a batch, computed where the model is."""
    device = model.feature_mean.device
    return model(batch.features.to(device), batch.num_rows, batch.token_ids.to(device), batch.num_tokens)


@torch.inference_mode()
def predict(model: ExCL, examples: Sequence[Example], *, batch_size: int, k: int | None = None) -> np.ndarray:
    """The best moment of every example, float64 [N, 3]: start and end in seconds, and its probability.

    With k the k best, [N, k, 3], NaN where there are fewer.
    """
    model.eval()
    predicted = []
    for first in range(0, len(examples), batch_size):
        chosen = examples[first : first + batch_size]
        starts, ends = forward(model, collate(chosen))
        row_times = [RowTimes(example.row_start_s, example.row_end_s) for example in chosen]
        predicted.append(decode(starts, ends, row_times, loss=model.config.parts.loss, k=k or 1))
    moments = np.concatenate(predicted)
    return moments[:, 0] if k is None else moments
