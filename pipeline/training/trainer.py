"""The training loop: a model, its data in memory, and steps in an order that seed and epoch determine."""

from __future__ import annotations

import hashlib
import logging
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from excl.models.excl import ExCL, span_loss
from excl.models.progress.bars import Bar, progress_bar
from excl.pipeline.execution.progress import ONLY_FILES
from excl.pipeline.training.checkpointer import Checkpointer, TrainingState
from excl.pipeline.training.config import TrainConfig
from excl.pipeline.training.distributed import RankContext
from excl.pipeline.training.examples import Example, normalisation
from excl.pipeline.training.loader import RankBatch, TrainLoader
from excl.pipeline.training.lr_schedule import learning_rate
from excl.pipeline.training.metrics_log import MetricsLog
from excl.pipeline.training.multi_store import MultiStore
from excl.pipeline.training.validation import describe, selection_key, validate

log = logging.getLogger(__name__)


class Trainer:
    """One training: the model, its data in memory, and the loop."""

    def __init__(self, config: TrainConfig, ranks: RankContext, *, identity: dict[str, Any]) -> None:
        """Take `identity`, the settings that the checkpoint states."""
        self.config, self.ranks, self.device, self.folder = config, ranks, ranks.device, config.out
        stores = MultiStore(config.store)
        covered = [e for examples in stores.examples("train").values() for e in examples]
        training = [e for e in covered if e.query.start_s < e.row_end_s[-1]]
        if len(training) < len(covered) and ranks.is_first:
            log.warning(
                "train: %d of %d training moments begin after the last feature row of their video and are left out",
                len(covered) - len(training),
                len(covered),
            )
        unseen_words = config.unseen_words or stores.first.unseen_words
        self.validation, unseen_vectors = stores.validation_examples(config.split, unseen_words=unseen_words)
        self._require_queries(training)
        torch.manual_seed(config.seed)
        self.model = ExCL(config.model, vectors=torch.from_numpy(stores.vectors), feature_dim=training[0].features.shape[1])
        self.model.set_normalisation(*normalisation(training))
        self.model.set_unseen_vectors(torch.from_numpy(unseen_vectors))
        self.model.to(self.device)
        self.network = ranks.wrap(self.model)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=self.device.type == "cpu" or None,  # a fifth of the time; None leaves the choice for a GPU to torch
        )
        self.batches = TrainLoader(
            training,
            batch_size=config.batch_size,
            seed=config.seed,
            buckets=config.buckets,
            workers=config.workers,
            ranks=ranks,
        )
        self.num_queries = len(training)
        self.metrics_log = MetricsLog(self.folder, tensorboard=config.tensorboard) if ranks.is_first else None
        about = {
            "config": identity,
            "selected_on": config.split,
            "stores": stores.identity["stores"],
            "words": list(stores.vocabulary.words),
            "unseen_words": unseen_words,
            "recipe": stores.recipe,
            "about_queries": stores.about_queries,
        }
        self.checkpointer = Checkpointer(self.folder, self.model, self.optimizer, about, steps_an_epoch=len(self.batches))

    def _require_queries(self, training: list[Example]) -> None:
        empty = [name for name, examples in self.validation.items() if not examples]
        if not training or empty:
            counts = ", ".join(f"{name} {len(examples)}" for name, examples in self.validation.items())
            raise ValueError(
                f"{', '.join(map(str, self.config.store))}: {len(training)} training queries have features, and of the "
                f"{self.config.split} split {counts}; all are needed, and a store's coverage.json says which videos are "
                "missing. Without a validation split of its own a data set gets one by `excl tokenise --carve-val`"
            )

    def run(self) -> None:
        """Train to the end."""
        state = self.checkpointer.resume()
        if self.metrics_log is not None and state.history:
            if state.step == 0:
                self.checkpointer.save_best(state)
            self.metrics_log.write(state.history)
        steps, done = self.config.epochs * len(self.batches), state.epoch * len(self.batches) + state.step
        with progress_bar("train", steps, unit="step", done=done, shown=self.ranks.is_first) as bar:
            while state.epoch < self.config.epochs and state.epoch - state.best["epoch"] < self.config.patience:
                self._train_epoch(state, bar)
                self._finish_epoch(state)
                if self.ranks.is_first:
                    log.info("%s", describe(state.history[-1]), extra={ONLY_FILES: bar.is_live})

    def _train_epoch(self, state: TrainingState, bar: Bar) -> None:
        """Take the remaining steps of the next epoch."""
        self.model.train()
        losses: list[Tensor] = []  # read at the end only, since a GPU is waited for when they are, and for people
        kept_at, shown_at = time.monotonic(), 0.0
        for share in self.batches.epoch(state.epoch, skip=state.step):
            losses.append(self._step(state, share))
            state.step += 1
            if bar.is_live and time.monotonic() - shown_at > 1:
                bar.note = self._now(state, losses[-1].item() / share.whole_size)
                shown_at = time.monotonic()
            bar.advance()
            if state.step < len(self.batches) and self._is_due(state, kept_at):
                state.add_losses(losses)
                self._require_finite(state)
                self.checkpointer.save(state)
                kept_at = time.monotonic()
        state.add_losses(losses)
        self._require_finite(state)

    def _now(self, state: TrainingState, loss: float) -> str:
        """Return the epoch and the loss of the latest batch, and the figures of the epoch before, for the view."""
        now = f"epoch {state.epoch + 1} of {self.config.epochs}: loss now {loss:.3f}"
        return f"{now}; {describe(state.history[-1])}" if state.history else now

    def _require_finite(self, state: TrainingState) -> None:
        """Raise ValueError if training cannot continue from this state, so that it is not saved."""
        where = f"in epoch {state.epoch + 1}; is the learning rate too high?"
        if not np.isfinite(state.loss_sum):
            raise ValueError(f"train: the loss is {state.loss_sum} {where}")
        for name, values in self.model.named_parameters():
            if not torch.isfinite(values).all():
                raise ValueError(f"train: the weights {name} are not finite {where}")

    def _step(self, state: TrainingState, share: RankBatch) -> Tensor:
        """Take one step; return the sum of the loss over the batch's queries."""
        config = self.config
        torch.manual_seed(_dropout_seed(config.seed, state.epoch, state.step, self.ranks.rank))
        for group in self.optimizer.param_groups:
            done = (state.epoch + state.step / len(self.batches)) / config.epochs
            group["lr"] = learning_rate(config.schedule, config.learning_rate, done)
        batch = share.batch.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            logits = self.network(batch.features, batch.num_rows, batch.token_ids, batch.num_tokens)
        loss = share.weight * span_loss(config.model, logits[0], logits[1], batch.targets)
        self.optimizer.zero_grad()
        loss.backward()
        if config.grad_clip is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.grad_clip)
        self.optimizer.step()
        return self.ranks.mean(loss.detach()) * share.whole_size

    def _is_due(self, state: TrainingState, kept_at: float) -> bool:
        every, seconds = self.config.checkpoint_steps, self.config.checkpoint_seconds
        by_steps = every is not None and (state.epoch * len(self.batches) + state.step) % every == 0
        by_time = seconds is not None and self.ranks.is_first and time.monotonic() - kept_at >= seconds
        return self.ranks.is_first and (by_steps or by_time)

    def _finish_epoch(self, state: TrainingState) -> None:
        """Validate; save the state of the training, and the model if it is the best yet."""
        line: dict[str, Any] = {}
        if self.ranks.is_first:
            line = {
                "epoch": state.epoch + 1,
                "train_loss": state.loss_sum / self.num_queries,
                "learning_rate": self.optimizer.param_groups[0]["lr"],
                **validate(self.model, self.validation, split=self.config.split, batch_size=self.config.batch_size),
            }
        line = self.ranks.broadcast_from_first(line)
        state.epoch, state.step, state.loss_sum = state.epoch + 1, 0, 0.0
        state.history.append(line)
        if state.best["epoch"] == 0 or selection_key(line) > selection_key(state.best["metrics"]):
            state.best = {"epoch": state.epoch, "metrics": line}
        if self.metrics_log is not None:
            self.checkpointer.save(state)
            self.checkpointer.save_best(state)
            self.metrics_log.write(state.history)


def _dropout_seed(*of: int) -> int:
    """Return a seed of 32 bits, as torch's CPU generator takes, far from that of the next step."""
    return int.from_bytes(hashlib.sha256(repr(of).encode()).digest()[:4], "little")
