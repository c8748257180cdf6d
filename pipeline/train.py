"""Stage 5, train: reads training stores, leaves a run: checkpoints with their configuration inside, and the learning curve.

    best.safetensors, best.json    the epoch that was best on the validation split; all that `evaluate` and `localize` need
    last-N.safetensors, last.json  where the training stands after N steps: a run that was killed goes on from it exactly
    metrics.jsonl                  one line an epoch
    tensorboard/                   the same curves, if they were asked for
    stores.json                    where the training stores were, for `evaluate`

The choice of the epoch and the early stop look at the validation split only, unless `select_on_test` says otherwise.
Nothing in a training has a hidden state: order, dropout and learning rate are functions of seed, epoch and step.
"""

from __future__ import annotations

import logging
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from excl.models.excl import ExCLConfig
from excl.pipeline.checkpoints import files_of, read_checkpoint
from excl.pipeline.config import (
    STRICT,
    NonNegativeFloat,
    NonNegativeInt,
    OneOrMorePaths,
    PositiveFloat,
    PositiveInt,
    identity,
)
from excl.pipeline.curves import require_tensorboard
from excl.pipeline.durable import sha256_file
from excl.pipeline.joint import JointStore
from excl.pipeline.manifest import single
from excl.pipeline.parallel import Ranks, cpu_has_bfloat16_lstm, launch, training_devices
from excl.pipeline.schedules import Schedule
from excl.pipeline.standing import BEST, LAST
from excl.pipeline.trained import TrainedRun, load_run, predict, write_stores
from excl.pipeline.training import Training
from excl.pipeline.validation import describe

__all__ = ["Config", "TrainedRun", "load_run", "predict", "run"]

log = logging.getLogger(__name__)

STAGE, CODE_VERSION = "train", 6


@dataclass(frozen=True, config=STRICT)
class Config:
    """Train ExCL on one or more training stores. Defaults are the paper's where it gives them."""

    store: OneOrMorePaths
    """The training store that `excl pack` wrote; or several, for one model of all their queries and words."""
    out: Path
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
    device: str = "auto"
    """Where to train: auto (a GPU if there is one), cpu, cuda, cuda:1, mps; or several GPUs, as in cuda:0,cuda:1, that
    share every batch. Each draws its own dropout, so a training goes on with as many devices as it began with only."""
    workers: NonNegativeInt = 0
    """Processes that read batches ahead; 0 reads in the training's own. Results do not depend on it."""
    checkpoint_steps: PositiveInt | None = None
    """Also keep where the training stands after every so many steps, not only after every epoch."""
    checkpoint_seconds: PositiveFloat | None = None
    """Also keep it after so many seconds. Results depend on neither."""
    tensorboard: bool = False
    """Write the learning curves for TensorBoard too; it comes with `pip install 'excl[tensorboard]'`."""

    def __post_init__(self) -> None:
        training_devices(self.device)

    @property
    def split(self) -> Literal["val", "test"]:
        """The split by which the epoch is chosen."""
        return "test" if self.select_on_test else "val"


RUN_ONLY = ("store", "out", "device", "workers", "checkpoint_steps", "checkpoint_seconds", "tensorboard")


def run(config: Config) -> Path:
    """Train unless it is done. Returns the run's folder."""
    if config.tensorboard:
        require_tensorboard()
    if config.select_on_test:
        log.warning("train: the epoch is chosen on the TEST split; the figures on it will be too good")
    return single(
        config.out,
        stage=STAGE,
        identity=made_by(config),
        code_version=CODE_VERSION,
        work=lambda _: _work(config),
    )


def made_by(config: Config) -> dict[str, Any]:
    """What determines the run; ValueError where a store is none, or stores do not go together.

    How many devices share a batch does, because each draws dropout of its own; which they are does not.
    """
    devices = len(training_devices(config.device))
    several = {"devices_sharing_a_batch": devices} if devices > 1 else {}
    return identity(config, run_only=RUN_ONLY) | several | JointStore(config.store).identity


def _work(config: Config) -> dict[str, Any]:
    devices = training_devices(config.device)
    if config.precision == "bfloat16" and devices[0].type == "cpu" and not cpu_has_bfloat16_lstm():
        raise ValueError(
            "train: PyTorch computes no LSTM in bfloat16 on this processor, which would need AVX-512; train with "
            "--precision float32, or on a GPU"
        )
    if len(devices) == 1:
        _train(config, Ranks(devices[0]))
    else:
        launch(devices, _train, config)
    _, stands = read_checkpoint(config.out, LAST)
    files = [*files_of(config.out, BEST), *files_of(config.out, LAST), "metrics.jsonl"]
    best = stands["best"]
    write_stores(config.out, JointStore(config.store).paths)
    log.info("train: %d epochs, the best is number %d: %s", stands["epoch"], best["epoch"], describe(best["metrics"]))
    return {
        "epochs": stands["epoch"],
        "best": best["metrics"],
        "selected_on": config.split,
        "device": config.device,
        "sha256": {name: sha256_file(config.out / name) for name in files},
    }


def _train(config: Config, ranks: Ranks) -> None:
    """Train, maybe as one of several processes."""
    if ranks.world > 1:
        logging.basicConfig(level=logging.INFO if ranks.is_first else logging.ERROR, format="%(message)s")
    Training(config, ranks, identity=identity(config, run_only=RUN_ONLY)).run()
