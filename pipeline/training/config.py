"""The settings of a training: flags, recipe keys and the identity of the run."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Literal

from pydantic.dataclasses import dataclass

from excl.models.excl import ExCLConfig
from excl.pipeline.config import (
    STRICT,
    NonNegativeFloat,
    NonNegativeInt,
    OneOrMorePaths,
    PositiveFloat,
    PositiveInt,
    RunOnly,
)
from excl.pipeline.training.distributed import training_devices
from excl.pipeline.training.lr_schedule import Schedule


@dataclass(frozen=True, config=STRICT)
class TrainConfig:
    """Train ExCL on one or more training stores. Defaults are the paper's where it gives them."""

    store: RunOnly[OneOrMorePaths]
    """The training store that `excl pack` wrote; or several, for one model of all their queries and words."""
    out: RunOnly[Path]
    """The run to write. Run again with the same settings, it goes on from its last checkpoint."""
    model: ExCLConfig = field(default_factory=ExCLConfig)
    """Variant, parts and sizes of the model."""
    epochs: PositiveInt = 30
    """At most so many passes over the training split."""
    batch_size: PositiveInt = 32
    """Queries in a step, over all devices."""
    learning_rate: PositiveFloat = 1e-3
    """Of Adam."""
    schedule: Schedule = "none"
    """How the learning rate falls: not at all, along a half cosine to zero at the last epoch, or in steps, to a tenth after
    a third and to a hundredth after two thirds of the epochs."""
    weight_decay: NonNegativeFloat = 0.0
    """Adam's L2 penalty."""
    grad_clip: PositiveFloat | None = None
    """Scale gradients down to this norm where theirs is larger. None: never."""
    patience: PositiveInt = 5
    """Stop after so many epochs without a better R@1 at IoU 0.5 on the validation split (mIoU decides between equals; of
    several stores, the mean of each figure over the stores)."""
    select_on_test: bool = False
    """Choose the epoch, and stop, by the test split, as some published code does: to compare with its figures only. The
    run, its checkpoint and the figures that it gets say so."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """In which the model is trained. bfloat16 is autocast: weights, losses and validation stay in float32. A CPU needs
    AVX-512 for it."""
    buckets: bool = False
    """Batches of videos of like length: less padding, but who meets in a batch is no longer up to chance alone."""
    seed: NonNegativeInt = 0
    """Of the initial weights, the order of the queries and dropout."""
    device: RunOnly[str] = "auto"
    """Where to train: auto (a GPU if there is one), cpu, cuda, cuda:1, mps; or several GPUs, as in cuda:0,cuda:1, that
    share every batch. Each draws its own dropout, so a training goes on with as many devices as it began with only."""
    workers: RunOnly[NonNegativeInt] = 0
    """Processes that read batches ahead; 0 reads in the training's own. Results do not depend on it."""
    checkpoint_steps: RunOnly[PositiveInt | None] = None
    """Also keep where the training stands after every so many steps, not only after every epoch."""
    checkpoint_seconds: RunOnly[PositiveFloat | None] = None
    """Also keep it after so many seconds. Results depend on neither."""
    tensorboard: RunOnly[bool] = False
    """Write the learning curves for TensorBoard too; it comes with `pip install 'excl[tensorboard]'`."""

    def __post_init__(self) -> None:
        training_devices(self.device)

    @property
    def split(self) -> Literal["val", "test"]:
        """The split by which the epoch is chosen."""
        return "test" if self.select_on_test else "val"
