"""The state of a training: saved at any step, and resumed exactly there."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from excl.pipeline.training.checkpoint_format import (
    TENSORS,
    exists,
    load_optimizer,
    optimizer_tensors,
    part,
    read_checkpoint,
    write_checkpoint,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from excl.models.excl import ExCL

log = logging.getLogger(__name__)

BEST, LAST = "best", "last"


@dataclass
class TrainingState:
    """The state of a training, besides its weights and its optimiser's state."""

    epoch: int = 0
    """The number of finished epochs."""
    step: int = 0
    """The number of finished steps of the next epoch."""
    loss_sum: float = 0.0
    """The sum of the losses of the queries of these steps."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """One line for each epoch."""
    best: dict[str, Any] = field(default_factory=lambda: {"epoch": 0})
    """The best epoch and its line."""

    def add_losses(self, losses: list[Tensor]) -> None:
        """Move the losses of single steps into the sum, one by one, so that it is the same however often this is called."""
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
        """Take `about`, the facts about the run that its best checkpoint also holds."""
        self.folder, self.model, self.optimizer, self.about = folder, model, optimizer, about
        self.steps_an_epoch = steps_an_epoch

    def save(self, state: TrainingState) -> None:
        """Save the state of the training."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"optimizer.{name}": value for name, value in optimizer_tensors(self.optimizer).items()}
        file = f"{LAST}-{state.epoch * self.steps_an_epoch + state.step}{TENSORS}"
        write_checkpoint(self.folder, LAST, tensors=tensors, about=dataclasses.asdict(state), file=file)

    def save_best(self, state: TrainingState) -> None:
        """Save the model if it is the best. Call this after `save`, so that a resumed run repeats it with equal weights."""
        if state.best["epoch"] == state.epoch:
            about = {"best": state.best, **self.about}
            write_checkpoint(self.folder, BEST, tensors=self.model.state_dict(), about=about, file=BEST + TENSORS)

    def resume(self) -> TrainingState:
        """Load model and optimiser from the last checkpoint, if there is one; return the state of the training."""
        if not exists(self.folder, LAST):
            return TrainingState()
        tensors, stands = read_checkpoint(self.folder, LAST)
        state = TrainingState(**stands)
        log.info("train: going on after epoch %d and %d steps", state.epoch, state.step)
        self.model.load_state_dict(part(tensors, "model."))
        load_optimizer(self.optimizer, part(tensors, "optimizer."))
        return state
