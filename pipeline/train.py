"""Stage 5, train: reads a training store, leaves a run: checkpoints with their configuration inside, and the learning curve.

    best.pt        the epoch that was best on the validation split; all that `evaluate` and `localize` need
    last.pt        the last epoch, with optimiser and random states: a run that was killed goes on from it exactly
    metrics.jsonl  one line an epoch

The choice of the epoch and the early stop look at the validation split only.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator
from dataclasses import field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic.dataclasses import dataclass
from torch import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from excl.models.excl import ExCL, ExCLConfig, RowTimes, decode, span_loss, summary
from excl.models.i3d.extractor import choose_device
from excl.pipeline.config import STRICT, NonNegativeInt, PositiveFloat, PositiveInt, identity
from excl.pipeline.examples import Batch, Example, collate, load_examples, normalisation
from excl.pipeline.manifest import Manifest, atomic, sha256_file, single, write_text
from excl.pipeline.store import TrainingStore

log = logging.getLogger(__name__)

STAGE, CODE_VERSION = "train", 4
SELECT_BY = ("R1@0.5", "mIoU")


@dataclass(frozen=True, config=STRICT)
class Config:
    """Train ExCL on a training store. Defaults are the paper's where it gives them."""

    store: Path
    """The training store that `excl pack` wrote."""
    out: Path
    """The run to write. Run again with the same settings, it goes on after the last finished epoch."""
    model: ExCLConfig = field(default_factory=ExCLConfig)
    """Variant, parts and sizes of the model."""
    epochs: PositiveInt = 30
    """At most so many passes over the training split."""
    batch_size: PositiveInt = 32
    """Queries in a step."""
    learning_rate: PositiveFloat = 1e-3
    """Of Adam."""
    patience: PositiveInt = 5
    """Stop after so many epochs without a better R@1 at IoU 0.5 on the validation split (mIoU decides between equals)."""
    seed: NonNegativeInt = 0
    """Of the initial weights, the order of the queries and dropout."""
    device: str = "auto"
    """Where to train: auto (a GPU if there is one), cpu, cuda, cuda:1, mps."""

    def __post_init__(self) -> None:
        choose_device(self.device)


RUN_ONLY = ("store", "out", "device")


def run(config: Config) -> Path:
    """Train unless it is done. Returns the run's folder."""
    store = TrainingStore(config.store)
    made_by = identity(config, run_only=RUN_ONLY)
    made_by |= {"store": store.manifest.fingerprint(), "recipe": store.recipe}
    return single(
        config.out,
        stage=STAGE,
        identity=made_by,
        code_version=CODE_VERSION,
        work=lambda manifest: Training(config, store, manifest).run(),
    )


@dataclasses.dataclass
class State:
    """Where a training stands after some epochs; everything that the next epoch depends on."""

    epoch: int
    history: list[dict[str, Any]]
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    random: dict[str, Tensor]
    best: dict[str, Any]


class Training:
    """One training: the model, its data in memory, and the loop."""

    def __init__(self, config: Config, store: TrainingStore, manifest: Manifest) -> None:
        self.config, self.folder = config, manifest.folder
        self.device = choose_device(config.device)
        self.train = [e for e in load_examples(store, store.queries("train")) if e.query.start_s < e.row_end_s[-1]]
        self.val = load_examples(store, store.queries("val"))
        if not self.train or not self.val:
            raise ValueError(
                f"{store.path}: {len(self.train)} training and {len(self.val)} validation queries have features, and both "
                "are needed; its coverage.json says which videos are missing. Without a validation split of its own a data "
                "set gets one by `excl tokenise --carve-val`"
            )
        torch.manual_seed(config.seed)
        self.model = ExCL(config.model, vectors=torch.from_numpy(store.vectors), feature_dim=self.train[0].features.shape[1])
        self.model.set_normalisation(*normalisation(self.train))
        self.model.to(self.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.learning_rate)
        self.about = {
            "config": identity(config, run_only=RUN_ONLY),
            "words": list(store.vocabulary.words),
            "recipe": store.recipe,
            "about_queries": store.about_queries,
        }

    def run(self) -> dict[str, Any]:
        """Train to the end; returns what is to be said of the run."""
        state = self._resume()
        with logging_redirect_tqdm(), tqdm(initial=state.epoch, total=self.config.epochs, desc=STAGE, unit="epoch",
                                           disable=None) as bar:  # fmt: skip
            while state.epoch < self.config.epochs and state.epoch - state.best["epoch"] < self.config.patience:
                state = self._one_epoch(state)
                bar.update()
                bar.set_postfix_str(describe(state.history[-1]))
                if bar.disable:
                    log.info("%s", describe(state.history[-1]))
        best = state.best
        log.info("train: %d epochs, the best is number %d: %s", state.epoch, best["epoch"], describe(best["metrics"]))
        return {
            "epochs": state.epoch,
            "best": best["metrics"],
            "sha256": {"best.pt": sha256_file(self.folder / "best.pt")},
        }

    def _one_epoch(self, state: State) -> State:
        epoch = state.epoch + 1
        loss = self._train_epoch(epoch)
        predicted = predict(self.model, self.val, batch_size=self.config.batch_size)
        truth = np.array([[e.query.start_s, e.query.end_s] for e in self.val])
        ids = np.array([example.query.key for example in self.val])
        _, first, which = np.unique(ids, return_index=True, return_inverse=True)
        predicted = predicted[first[which]]  # one query has one prediction, which rounding could make differ
        scores = {f"val_{name}": value for name, value in summary(predicted[:, :2], truth, ids).items()}
        metrics = {"epoch": epoch, "train_loss": loss, **scores}
        best = state.best
        if best["epoch"] == 0 or _selection(metrics) > _selection(best["metrics"]):
            best = {"epoch": epoch, "metrics": metrics}
            self._save("best.pt", {"model": self.model.state_dict(), "best": best, **self.about})
        state = State(
            epoch,
            [*state.history, metrics],
            self.model.state_dict(),
            self.optimizer.state_dict(),
            self._random_state(),
            best,
        )
        write_text(self.folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in state.history))
        self._save("last.pt", dataclasses.asdict(state))
        return state

    def _train_epoch(self, epoch: int) -> float:
        """One pass over the training queries in an order that depends on seed and epoch alone; returns the mean loss."""
        self.model.train()
        shuffle = torch.Generator().manual_seed(self.config.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.train), generator=shuffle).tolist()
        total = 0.0
        for first in range(0, len(order), self.config.batch_size):
            batch = collate([self.train[i] for i in order[first : first + self.config.batch_size]])
            starts, ends = forward(self.model, batch)
            loss = span_loss(self.config.model, starts, ends, batch.targets.to(self.device))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total += loss.item() * len(batch.num_rows)
        return total / len(order)

    def _save(self, name: str, value: dict[str, Any]) -> None:
        with atomic(self.folder / name) as temporary, temporary.open("wb") as file:
            torch.save(value, file)  # given a path, torch would write the temporary name into the file

    def _random_state(self) -> dict[str, Tensor]:
        state = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.device)
        return state

    def _resume(self) -> State:
        path = self.folder / "last.pt"
        if not path.exists():
            return State(0, [], {}, {}, {}, {"epoch": 0})
        state = State(**_load(path))
        log.info("train: going on after epoch %d", state.epoch)
        self.model.load_state_dict(state.model)
        self.optimizer.load_state_dict(state.optimizer)
        torch.set_rng_state(state.random["cpu"])
        if "cuda" in state.random and self.device.type == "cuda":
            torch.cuda.set_rng_state(state.random["cuda"], self.device)
        return state


def _selection(metrics: dict[str, Any]) -> tuple[float, ...]:
    return tuple(metrics[f"val_{name}"] for name in SELECT_BY)


def describe(metrics: dict[str, Any]) -> str:
    """An epoch's line for people."""
    return (
        f"epoch {metrics['epoch']}: loss {metrics['train_loss']:.3f}, "
        f"val R@1 IoU 0.5 {metrics['val_R1@0.5']:.1f} %, mIoU {metrics['val_mIoU']:.1f} %"
    )


def forward(model: ExCL, batch: Batch) -> tuple[Tensor, Tensor]:
    """Start and end logits [B, T] of a batch, computed where the model is."""
    device = model.feature_mean.device
    return model(batch.features.to(device), batch.num_rows, batch.token_ids.to(device), batch.num_tokens)


@torch.inference_mode()
def predict(model: ExCL, examples: list[Example], *, batch_size: int, k: int | None = None) -> np.ndarray:
    """The best moment of every example, float64 [N, 3]: start and end in seconds, and its probability.

    With k the k best, [N, k, 3], NaN where there are fewer.
    """
    model.eval()
    predicted = []
    for chosen in _batches(examples, batch_size):
        starts, ends = forward(model, collate(chosen))
        row_times = [RowTimes(example.row_start_s, example.row_end_s) for example in chosen]
        predicted.append(decode(starts, ends, row_times, loss=model.config.parts.loss, k=k or 1))
    moments = np.concatenate(predicted)
    return moments[:, 0] if k is None else moments


def _batches(examples: list[Example], size: int) -> Iterator[list[Example]]:
    for first in range(0, len(examples), size):
        yield examples[first : first + size]


def _load(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ValueError(f"{path} is not there any more; remove the folder {path.parent} and train again") from error
    except Exception as error:
        raise ValueError(
            f"{path}: damaged ({type(error).__name__}); remove the folder {path.parent} and train again"
        ) from error


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """A trained model with all it needs: its vocabulary, and the recipe of the features it was trained on."""

    path: Path
    model: ExCL
    words: list[str]
    recipe: dict[str, Any]
    about_queries: dict[str, Any]
    best: dict[str, Any]


def load_run(path: Path, *, device: str) -> TrainedRun:
    """The best epoch of a finished run, in evaluation mode; ValueError if there is none."""
    if not Manifest.read(path, stage=STAGE).is_complete:
        raise ValueError(f"{path}: its training has not finished; run `excl train` again, it goes on")
    saved = _load(path / "best.pt")
    vectors = saved["model"]["text_encoder.embedding.weight"]
    model = ExCL(ExCLConfig(**saved["config"]["model"]), vectors=vectors, feature_dim=len(saved["model"]["feature_mean"]))
    model.load_state_dict(saved["model"])
    model.to(choose_device(device)).eval()
    return TrainedRun(path, model, saved["words"], saved["recipe"], saved["about_queries"], saved["best"])
