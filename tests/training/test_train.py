"""Training: the run is the same however often it was killed, and every option does what it says."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys

import commands
import pytest
import torch
from train_data import arguments, make_store

from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.train import load_run
from excl.pipeline.training import trainer
from excl.pipeline.training.checkpoint_format import read_checkpoint, write_checkpoint
from excl.pipeline.training.checkpointer import Checkpointer
from excl.pipeline.training.distributed import RankContext
from excl.pipeline.training.loader import TrainLoader
from excl.pipeline.training.multi_store import MultiStore
from excl.workflows.cli import main


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("one") / "data")


@pytest.fixture(scope="module")
def trained(store, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "run"
    assert main(arguments(store, out)) == 0
    return out


def content(run):
    """All files of a run that are no bookkeeping."""
    return {path.name: path.read_bytes() for path in run.iterdir() if path.suffix in {".json", ".jsonl", ".safetensors"}}


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


# The parent imports everything once and computes nothing; each child is a training that kills itself -9 at its n-th event:
# a loss, or before or after a file gets its name.
KILLED = """
import os, signal, sys
import torch._dynamo  # which torch would import when each child makes its optimizer
from excl.models import files
from excl.pipeline.training import trainer
from excl.workflows.cli import main

def die_at(event):
    seen = 0
    def count():
        nonlocal seen
        seen += 1
        if seen == event:
            os.kill(os.getpid(), signal.SIGKILL)
    loss, move = trainer.span_loss, files.move
    def counted_loss(*arguments):
        count()
        return loss(*arguments)
    def counted_move(*arguments):
        count()
        move(*arguments)
        count()
    trainer.span_loss, files.move = counted_loss, counted_move

for event in map(int, sys.argv[1].split(",")):
    child = os.fork()
    if child == 0:
        die_at(event)
        os._exit(main(sys.argv[2:]))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


OTHER_WAYS = (
    ("--model.variant", "reg-2-c", "--schedule", "cosine", "--buckets", "--epochs", "4"),
    ("--precision", "bfloat16", "--epochs", "4"),
)


@pytest.mark.parametrize(
    ("times", "flags"),
    [
        pytest.param(20, (), id="plain"),
        pytest.param(5, OTHER_WAYS[0], id="reg"),
        pytest.param(5, OTHER_WAYS[1], id="bf16"),
    ],
)
def test_a_training_killed_at_20_steps_ends_the_same(store, trained, tmp_path, times, flags):
    if flags:
        trained = tmp_path / "whole"
        assert main(arguments(store, trained, *flags)) == 0
    out, often = tmp_path / "run", ("--checkpoint-steps", "2")
    chance = random.Random(0)
    events = [chance.randint(3, 16) for _ in range(times)]
    command = [sys.executable, "-c", KILLED, ",".join(map(str, events)), *arguments(store, out, *flags, *often)]
    killed = commands.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    assert killed.stdout.split() == ["-9"] * times
    about = json.loads((out / "last.json").read_text())
    assert 0 < about["epoch"] < (4 if flags else 10)
    assert not Manifest.read(out).is_complete
    assert main(arguments(store, out, *flags)) == 0
    assert content(out) == content(trained)
    assert Manifest.read(out).fingerprint() == Manifest.read(trained).fingerprint()
    assert not [path.name for path in out.iterdir() if path.name.endswith(".tmp")]


def test_the_manifest_has_the_sha256_of_both_checkpoints(trained):
    names = set(Manifest.read(trained).records["complete"]["sha256"])
    steps = 10 * 4  # epochs of 14 queries in batches of 4
    assert names == {"best.safetensors", "best.json", f"last-{steps}.safetensors", "last.json", "metrics.jsonl"}
    assert names < set(content(trained))


def test_a_checkpoint_of_another_time_is_refused(trained, tmp_path):
    tensors, about = read_checkpoint(trained, "last")
    write_checkpoint(tmp_path, "last", tensors=tensors, about=about, file="last-1.safetensors")
    assert read_checkpoint(tmp_path, "last")[1] == about
    changed = {name: value + 1 for name, value in tensors.items()}
    write_checkpoint(tmp_path, "other", tensors=changed, about=about, file="other.safetensors")
    (tmp_path / "last-1.safetensors").write_bytes((tmp_path / "other.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"last-1.safetensors: damaged \(its sha256 is not the one in last.json\)"):
        read_checkpoint(tmp_path, "last")


def test_results_do_not_depend_on_workers_or_checkpoints(store, trained, tmp_path):
    assert main(arguments(store, tmp_path / "run", "--workers", "2", "--checkpoint-seconds", "1e-9")) == 0
    assert content(tmp_path / "run") == content(trained)


def test_a_step_in_the_middle_of_an_epoch_is_kept_by_steps_and_by_seconds(store, tmp_path, monkeypatch):
    for number, (flags, wanted) in enumerate(
        [((), [4, 8]), (("--checkpoint-steps", "3"), [3, 4, 6, 8]), (("--checkpoint-seconds", "1e-9"), [*range(1, 9)])]
    ):
        kept = []
        original = Checkpointer.save
        monkeypatch.setattr(Checkpointer, "save", lambda self, s: (kept.append(s.epoch * 4 + s.step), original(self, s)))  # noqa: B023
        assert main(arguments(store, tmp_path / str(number), "--epochs", "2", *flags)) == 0
        monkeypatch.undo()
        assert kept == wanted


def test_schedules_are_functions_of_what_is_done(store, tmp_path):
    for schedule, wanted in (
        ("cosine", [0.01 * (1 + math.cos(math.pi * step / 12)) / 2 for step in (3, 7, 11)]),
        ("step", [0.01, 0.001, 0.0001]),
        ("none", [0.01] * 3),
    ):
        assert main(arguments(store, tmp_path / schedule, "--epochs", "3", "--schedule", schedule)) == 0
        assert [line["learning_rate"] for line in lines(tmp_path / schedule)] == pytest.approx(wanted)
    assert len({content(tmp_path / schedule)["best.safetensors"] for schedule in ("cosine", "step", "none")}) == 3


@pytest.mark.parametrize("flags", [[], ["--grad-clip", "0.1"]])
def test_gradients_are_clipped_only_on_request(store, tmp_path, monkeypatch, flags):
    norms = []

    def step(self):
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(torch.nn.utils.get_total_norm(gradients).item())

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    assert main(arguments(store, tmp_path / "run", "--epochs", "1", *flags)) == 0
    if flags:
        assert norms == pytest.approx([0.1] * 4, rel=1e-3)
    else:
        assert min(norms) > 0.2


def test_weight_decay_shrinks_weights(store, trained, tmp_path):
    assert main(arguments(store, tmp_path / "run", "--weight-decay", "0.5")) == 0
    norms = [
        torch.cat([t.flatten() for n, t in read_checkpoint(run, "last")[0].items() if "weight_hh" in n]).norm()
        for run in (trained, tmp_path / "run")
    ]
    assert norms[1] < 0.5 * norms[0]


def test_bfloat16_is_in_the_network_and_nowhere_else(store, trained, tmp_path, monkeypatch, caplog):
    seen = set()
    original = trainer.span_loss

    def loss(config, starts, ends, targets):
        seen.update((starts.dtype, ends.dtype))
        value = original(config, starts, ends, targets)
        seen.add(value.dtype)
        return value

    monkeypatch.setattr(trainer, "span_loss", loss)
    assert main(arguments(store, tmp_path / "run", "--precision", "bfloat16")) == 0
    assert "several times as long as float32 on CPUs without instructions for it" in caplog.text
    assert seen == {torch.float32}
    assert {tensor.dtype for tensor in read_checkpoint(tmp_path / "run", "last")[0].values()} == {torch.float32}
    first, exact = lines(tmp_path / "run")[0]["train_loss"], lines(trained)[0]["train_loss"]
    assert first != exact
    assert first == pytest.approx(exact, rel=1e-2)


def test_buckets_put_videos_of_like_length_together(store, trained, tmp_path):
    examples = MultiStore((store,)).examples("train")["jsonl"]
    spread = {}
    for buckets in (False, True):
        batches = TrainLoader(
            examples, batch_size=4, seed=0, buckets=buckets, workers=0, ranks=RankContext(torch.device("cpu"))
        )
        shares = list(batches.epoch(0, skip=0))
        assert sum(share.whole_size for share in shares) == len(examples) == 14
        spread[buckets] = sum(int(share.batch.num_rows.max() - share.batch.num_rows.min()) for share in shares)
        rest = list(batches.epoch(0, skip=3))
        assert len(rest) == 1
        assert torch.equal(rest[0].batch.features, shares[3].batch.features)
    assert spread[True] < spread[False]
    assert main(arguments(store, tmp_path / "run", "--buckets")) == 0
    assert content(tmp_path / "run")["best.safetensors"] != content(trained)["best.safetensors"]


def test_a_run_that_was_chosen_on_test_says_so_everywhere(store, trained, tmp_path, caplog, capsys):
    run = tmp_path / "run"
    assert main(arguments(store, run, "--select-on-test")) == 0
    assert "the epoch is chosen on the TEST split" in caplog.text
    assert {key.split("_")[0] for key in lines(run)[0] if "R1" in key} == {"test"}
    assert json.loads((run / "best.json").read_text())["selected_on"] == "test"
    assert Manifest.read(run).records["complete"]["selected_on"] == "test"
    assert Manifest.read(run).header["identity"]["select_on_test"] is True
    assert load_run(run, device="cpu").stamp.startswith("The epoch was chosen on the TEST split")
    assert load_run(trained, device="cpu").stamp == ""
    for one, said in ((run, True), (trained, False)):
        flags = [str(one), "--store", str(store), "--out", str(tmp_path / f"e{said}"), "--device", "cpu"]
        assert main(["evaluate", *flags]) == 0
        assert ("The epoch was chosen on the TEST split" in capsys.readouterr().out) is said
    assert main(arguments(store, run)) == 2
    assert "identity.select_on_test: the folder has True, asked for is False" in caplog.text


def test_a_loss_that_is_no_number_ends_the_training(store, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(trainer, "span_loss", lambda _config, starts, *_: starts[:, 0].sum() * float("nan"))
    assert main(arguments(store, tmp_path / "run")) == 2
    assert "the loss is nan in epoch 1; is the learning rate too high?" in caplog.text


@pytest.mark.parametrize("broken", ["loss", "weights"])
def test_what_is_no_number_is_never_kept(store, trained, tmp_path, monkeypatch, broken):
    """The training goes on from the last sound step."""
    out, steps, loss, step = tmp_path / "run", [], trainer.span_loss, torch.optim.Adam.step

    def broken_loss(*arguments):
        steps.append(1)
        return loss(*arguments) * (float("nan") if broken == "loss" and len(steps) == 7 else 1)

    def broken_step(self):
        step(self)
        if broken == "weights" and len(steps) == 7:
            with torch.no_grad():
                self.param_groups[0]["params"][-1].fill_(float("inf"))

    monkeypatch.setattr(trainer, "span_loss", broken_loss)
    monkeypatch.setattr(torch.optim.Adam, "step", broken_step)
    assert main(arguments(store, out, "--checkpoint-steps", "1")) == 2
    assert json.loads((out / "last.json").read_text())["step"] == 2, "of an epoch of four"
    monkeypatch.undo()
    assert main(arguments(store, out)) == 0
    assert content(out) == content(trained)


def test_tensorboard_is_an_extra(store, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert main(arguments(store, tmp_path / "run", "--tensorboard")) == 2
    assert "pip install 'excl[tensorboard]'" in caplog.text
    assert not (tmp_path / "run").exists()


def test_tensorboard_gets_what_metrics_jsonl_has(store, trained, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert main(arguments(store, tmp_path / "run", "--tensorboard")) == 0
    assert content(tmp_path / "run") == content(trained)
    found = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    for name in ("train_loss", "val_mIoU"):
        events = found.Scalars(name)
        assert [event.step for event in events] == [line["epoch"] for line in lines(trained)]
        assert [event.value for event in events] == pytest.approx([line[name] for line in lines(trained)])
