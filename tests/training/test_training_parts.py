"""What a training is made of, part by part: which epoch is the best, what normalises, what each process drops, answers."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from train_data import SMALL, arguments, make_store

from excl.models.excl import ExCL, ExCLConfig, RowTimes, decode, layers, variant_config
from excl.pipeline import train
from excl.pipeline.training import trainer
from excl.pipeline.training.checkpointer import TrainingState
from excl.pipeline.training.distributed import RankContext
from excl.pipeline.training.examples import collate, normalisation
from excl.pipeline.training.multi_store import MultiStore
from excl.pipeline.training.samplers import BucketBatchSampler, ShuffledBatchSampler
from excl.pipeline.training.trained_run import predict
from excl.workflows.cli import main


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("parts") / "data")


@pytest.fixture(scope="module")
def examples(store):
    """Two queries about each of seven videos, those of a video not side by side."""
    found = MultiStore((store,)).examples("train")["jsonl"]
    return found[::2] + found[1::2]


EPOCHS = [  # R@1 at IoU 0.3, 0.5, 0.7, mIoU
    ((50, 40, 30, 35), (60, 40, 35, 34), (20, 41, 10, 20), (70, 41, 50, 20), (90, 40, 60, 90)),
    ((50, 40, 30, 35), (10, 40, 20, 36), (60, 39, 50, 70)),
    ((50, 40, 30, 35), (60, 40, 40, 35)),
]


@pytest.mark.parametrize(("epochs", "best"), [*zip(EPOCHS, (3, 2, 1), strict=True)])
def test_the_best_epoch_is_the_first_with_most_at_half_then_by_miou(store, tmp_path, monkeypatch, epochs, best):
    lines = iter(epochs)

    def validate(*_, split, **__):
        names = ("R1@0.3", "R1@0.5", "R1@0.7", "mIoU", "num_queries")
        return {f"{split}_{name}": value for name, value in zip(names, (*next(lines), 8), strict=True)}

    monkeypatch.setattr(trainer, "validate", validate)
    assert main(arguments(store, tmp_path / "run", "--epochs", str(len(epochs)))) == 0
    assert json.loads((tmp_path / "run" / "best.json").read_text())["best"]["epoch"] == best


def test_features_are_normalised_by_their_mean_and_deviation(examples):
    """Those of all rows of all videos, each video once."""
    videos = {example.query.video_id: example.features.numpy().astype(np.float64) for example in examples}
    assert len(videos) == 7 < len(examples)
    rows = np.concatenate([*videos.values()])
    mean, std = normalisation(examples)
    np.testing.assert_allclose(mean.numpy(), rows.mean(0), rtol=1e-5)
    np.testing.assert_allclose(std.numpy(), rows.std(0), rtol=1e-5)


def test_each_process_draws_its_own_dropout(store, tmp_path):
    def masks(rank, step):
        config = train.TrainConfig(
            store=(store,), out=tmp_path, model=ExCLConfig(text_hidden=8, video_hidden=8), device="cpu"
        )
        one, seen = trainer.Trainer(config, RankContext(torch.device("cpu"), rank), identity={}), []
        share = next(trainer.Trainer(config, RankContext(torch.device("cpu")), identity={}).batches.epoch(0, skip=0))
        for module in one.model.modules():
            if isinstance(module, layers.Dropout):
                module.register_forward_hook(lambda _, __, output: seen.append(output == 0))
        one.model.train()
        one._step(TrainingState(step=step), share)
        return seen

    first, again, other_rank, other_step = masks(0, 0), masks(0, 0), masks(1, 0), masks(0, 1)
    assert len(first) >= 4
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for other in (other_rank, other_step):
        assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_moment_that_ends_behind_the_last_row_is_to_be_reached(examples):
    one = examples[0]
    query = dataclasses.replace(one.query, start_s=one.row_start_s[1], end_s=one.row_end_s[-1] + 1)
    targets = collate([dataclasses.replace(one, query=query), *examples[1:3]]).targets
    assert targets.ends[0] == targets.row_ends[0].max() == 1
    assert targets.starts[0].item() == pytest.approx(one.row_start_s[1] / one.row_end_s[-1])


@pytest.mark.parametrize("kind", [ShuffledBatchSampler, BucketBatchSampler])
def test_any_seed_that_torch_takes_orders_batches(kind):
    orders = []
    for seed in (0, 2**43 + 1, 2**64 - 1):
        batches = kind([3] * 50, batch_size=4, seed=seed)
        batches.set_epoch(7)
        orders.append([index for batch in batches for index in batch])
        assert sorted(orders[-1]) == list(range(50))
    assert len({tuple(order) for order in orders}) == 3


@pytest.mark.parametrize("variant", ["clf-2-b", "reg-2-c", "clf-1-a"])
def test_predictions_are_those_of_single_questions_and_a_video_is_encoded_once(examples, variant):
    torch.manual_seed(0)
    sizes = {flag.removeprefix("--model.").replace("-", "_"): 8 for flag in SMALL[::2]}
    model = ExCL(variant_config(variant, sizes=ExCLConfig(**sizes)), vectors=torch.randn(20, 6), feature_dim=8).eval()
    model.set_normalisation(*normalisation(examples))
    encoded = []
    model.video_encoder.register_forward_hook(lambda _, inputs, __: encoded.append(len(inputs[0])))
    found = {k: predict(model, examples, batch_size=3, k=k) for k in (None, 5)}
    assert sum(encoded) == 2 * 7
    for index, example in enumerate(examples):
        batch = collate([example])
        with torch.inference_mode():
            logits = model(batch.features, batch.num_rows, batch.token_ids, batch.num_tokens)
        times = RowTimes(example.row_start_s, example.row_end_s)
        [wanted] = decode(*logits, [times], loss=model.config.parts.loss, k=5)
        np.testing.assert_allclose(found[5][index], wanted, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(found[None][index], wanted[0], rtol=1e-6, atol=1e-6)
    assert predict(model, [], batch_size=3, k=5).shape == (0, 5, 3)
