"""The settings of a training: flags, recipe keys and the identity of the run."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Literal

from pydantic.dataclasses import dataclass

from excl.datasets.text.vocabulary import UnseenWords
from excl.models.excl import ExCLConfig
from excl.pipeline.config import (
    STRICT,
    NonNegativeFloat,
    NonNegativeInt,
    OneOrMorePaths,
    PositiveFloat,
    PositiveInt,
    RunOnly,
    SaidInText,
)
from excl.pipeline.training.distributed import training_devices
from excl.pipeline.training.lr_schedule import Schedule


@dataclass(frozen=True, config=STRICT)
class TrainConfig:
    """Train ExCL on one or more training stores. Defaults are the paper's where it gives them."""

    store: RunOnly[OneOrMorePaths]
    """The training store that `excl pack` wrote; or several, for one model of all their queries and words."""
    out: RunOnly[Path]
    """The run to write. Run again with the same settings, it resumes from its last checkpoint."""
    model: ExCLConfig = field(default_factory=ExCLConfig)
    """Variant, parts and sizes of the model."""
    epochs: PositiveInt = 30
    """At most so many passes over the training split."""
    batch_size: PositiveInt = 32
    """Queries in a step, over all devices."""
    learning_rate: PositiveFloat = 1e-3
    """Adam's learning rate."""
    schedule: Schedule = "none"
    """Schedule of the learning rate: none keeps it constant, cosine lets it fall along a half cosine to zero at the last
    epoch, step to a tenth after a third and to a hundredth after two thirds of the epochs."""
    weight_decay: NonNegativeFloat = 0.0
    """Adam's L2 penalty."""
    grad_clip: PositiveFloat | None = None
    """Scale gradients with a larger norm down to this norm. None: never."""
    patience: PositiveInt = 5
    """Stop after so many epochs without a better R@1 at IoU 0.5 on the validation split (mIoU decides between equals; of
    several stores, the mean of each figure over the stores)."""
    select_on_test: bool = False
    """Choose the epoch, and stop, by the test split, as some published code does: to compare with its figures only. The
    run, its checkpoint and the figures that it gets say so."""
    unseen_words: SaidInText[UnseenWords | None] = None
    """Treatment of words that the vocabulary lacks, when the epoch is chosen: vector or unk, as for `excl tokenise`.
    Default: as the store was tokenised. No training step sees such words; answers of this run treat them the same way."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the training. bfloat16 is autocast: weights, losses and validation stay in float32. It saves time
    where the processor has instructions for it; without them it costs much."""
    buckets: bool = False
    """Batch videos of similar length together: less padding, but chance alone no longer decides which queries share a
    batch."""
    seed: NonNegativeInt = 0
    """Seed of the initial weights, the query order and dropout."""
    device: RunOnly[str] = "auto"
    """Device to train on: auto (a GPU if there is one), cpu, cuda, cuda:1, mps; or several GPUs, as in cuda:0,cuda:1, that
    share every batch. Each draws its own dropout, so a training resumes only with as many devices as it began with."""
    workers: RunOnly[NonNegativeInt] = 0
    """Processes that read batches ahead; 0 reads in the training's own. Results do not depend on it."""
    checkpoint_steps: RunOnly[PositiveInt | None] = None
    """Save a checkpoint after every so many steps too, not only after every epoch."""
    checkpoint_seconds: RunOnly[PositiveFloat | None] = None
    """Save a checkpoint every so many seconds too. Results do not depend on when checkpoints are saved."""
    tensorboard: RunOnly[bool] = False
    """Write the learning curves for TensorBoard too; it comes with `pip install 'excl[tensorboard]'`."""

    def __post_init__(self) -> None:
        if self.device != "auto":  # which is always there, and PyTorch takes seconds to import
            training_devices(self.device)

    @property
    def split(self) -> Literal["val", "test"]:
        """The split by which the epoch is chosen."""
        return "test" if self.select_on_test else "val"
