"""Where a training stands: kept at any step, and taken up again exactly there."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from excl.models.excl import ExCL
from excl.pipeline.training.checkpoint_files import (
    TENSORS,
    exists,
    load_optimizer,
    optimizer_tensors,
    part,
    read_checkpoint,
    write_checkpoint,
)

log = logging.getLogger(__name__)

BEST, LAST = "best", "last"


@dataclass
class TrainingState:
    """Where a training stands, besides its weights and its optimiser's state."""

    epoch: int = 0
    """Finished epochs."""
    step: int = 0
    """Finished steps of the next one."""
    loss_sum: float = 0.0
    """Of the queries of these steps."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """A line an epoch."""
    best: dict[str, Any] = field(default_factory=lambda: {"epoch": 0})
    """The best epoch and its line."""

    def add_losses(self, losses: list[Tensor]) -> None:
        """Move the losses of single steps into the sum, one by one, so that it is the same however often this is done."""
        for loss in losses:
            self.loss_sum += loss.item()
        losses.clear()


class Checkpointer:
    """The checkpoints of a training: its model and optimiser on disk and back."""

    def __init__(
        self,
        folder: Path,
        model: ExCL,
        optimizer: torch.optim.Optimizer,
        about: dict[str, Any],
        *,
        steps_an_epoch: int,
    ) -> None:
        """Take also what is to be said about the run in its best checkpoint."""
        self.folder, self.model, self.optimizer, self.about = folder, model, optimizer, about
        self.steps_an_epoch = steps_an_epoch

    def save(self, state: TrainingState) -> None:
        """Keep where the training stands."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"optimizer.{name}": value for name, value in optimizer_tensors(self.optimizer).items()}
        file = f"{LAST}-{state.epoch * self.steps_an_epoch + state.step}{TENSORS}"
        write_checkpoint(self.folder, LAST, tensors=tensors, about=dataclasses.asdict(state), file=file)

    def save_best(self, state: TrainingState) -> None:
        """Keep the model if it is the best. Comes after `save`: whoever resumes there does it again, of the same weights."""
        if state.best["epoch"] == state.epoch:
            about = {"best": state.best, **self.about}
            write_checkpoint(self.folder, BEST, tensors=self.model.state_dict(), about=about, file=BEST + TENSORS)

    def resume(self) -> TrainingState:
        """Put model and optimiser back to where the training stood last, if it has begun."""
        if not exists(self.folder, LAST):
            return TrainingState()
        tensors, stands = read_checkpoint(self.folder, LAST)
        state = TrainingState(**stands)
        log.info("train: going on after epoch %d and %d steps", state.epoch, state.step)
        self.model.load_state_dict(part(tensors, "model."))
        load_optimizer(self.optimizer, part(tensors, "optimizer."))
        return state
