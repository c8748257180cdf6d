"""Stage 5, train: reads training stores, leaves a run: checkpoints with their configuration inside, and the learning curve.

    best.safetensors, best.json    the epoch that was best on the validation split; all that `evaluate` and `localize` need
    last-N.safetensors, last.json  the state of the training after N steps: a killed run resumes from it exactly
    metrics.jsonl                  one line an epoch
    tensorboard/                   the same curves, if they were asked for
    stores.json                    where the training stores were, for `evaluate`

The choice of the epoch and the early stop look at the validation split only, unless `select_on_test` says otherwise.
Nothing in a training has a hidden state: order, dropout and learning rate are functions of seed, epoch and step.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from excl.models.lazy_module import LazyModule
from excl.pipeline.artifacts.atomic_files import sha256_file
from excl.pipeline.artifacts.run_once import run_once
from excl.pipeline.config import identity
from excl.pipeline.training.checkpoint_format import files_of, read_checkpoint
from excl.pipeline.training.checkpointer import BEST, LAST
from excl.pipeline.training.config import TrainConfig
from excl.pipeline.training.distributed import RankContext, launch, training_devices
from excl.pipeline.training.metrics_log import require_tensorboard
from excl.pipeline.training.multi_store import MultiStore
from excl.pipeline.training.trained_run import TrainedRun, load_run, predict, write_stores
from excl.pipeline.training.validation import describe

if TYPE_CHECKING:
    from excl.pipeline.training import trainer
else:
    trainer = LazyModule("excl.pipeline.training.trainer")

__all__ = ["TrainConfig", "TrainedRun", "load_run", "predict", "run"]

log = logging.getLogger(__name__)

STAGE, CODE_VERSION = "train", 6


def run(config: TrainConfig) -> Path:
    """Train unless it is done. Return the run's folder."""
    if config.tensorboard:
        require_tensorboard()
    if config.select_on_test:
        log.warning("train: the epoch is chosen on the TEST split; the figures on it will be too good")
    return run_once(
        config.out,
        stage=STAGE,
        identity=made_by(config),
        code_version=CODE_VERSION,
        build=lambda _: _work(config),
    )


def made_by(config: TrainConfig) -> dict[str, Any]:
    """Return what determines the run; ValueError if a path is no training store, or stores do not go together.

    The number of devices that share a batch counts, because each draws its own dropout; which devices they are does not.
    """
    devices = len(training_devices(config.device))
    several = {"devices_sharing_a_batch": devices} if devices > 1 else {}
    return identity(config) | several | MultiStore(config.store).identity


def _work(config: TrainConfig) -> dict[str, Any]:
    devices = training_devices(config.device)
    if config.precision == "bfloat16" and devices[0].type == "cpu":
        log.warning(
            "train: bfloat16 takes several times as long as float32 on CPUs without instructions for it (AVX-512 BF16, AMX)"
        )
    if len(devices) == 1:
        _train(config, RankContext(devices[0]))
    else:
        launch(devices, _train, config)
    _, stands = read_checkpoint(config.out, LAST)
    files = [*files_of(config.out, BEST), *files_of(config.out, LAST), "metrics.jsonl"]
    best = stands["best"]
    write_stores(config.out, MultiStore(config.store).paths)
    log.info("train: %d epochs, the best is number %d: %s", stands["epoch"], best["epoch"], describe(best["metrics"]))
    return {
        "epochs": stands["epoch"],
        "best": best["metrics"],
        "selected_on": config.split,
        "device": config.device,
        "sha256": {name: sha256_file(config.out / name) for name in files},
    }


def _train(config: TrainConfig, ranks: RankContext) -> None:
    """Train, alone or as one of several processes."""
    if ranks.world > 1:
        logging.basicConfig(level=logging.INFO if ranks.is_first else logging.ERROR, format="%(message)s")
    trainer.Trainer(config, ranks, identity=identity(config)).run()
