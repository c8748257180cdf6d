"""Training: the run is the same however often it was killed, and every option does what it says."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from train_data import arguments, make_store

from excl.pipeline.checkpoints import read_checkpoint, write_checkpoint
from excl.pipeline.manifest import Manifest
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
from excl.pipeline import manifest, training
from excl.workflows.cli import main

def die_at(event):
    seen = 0
    def count():
        nonlocal seen
        seen += 1
        if seen == event:
            os.kill(os.getpid(), signal.SIGKILL)
    loss, move = training.span_loss, manifest.move
    def counted_loss(*arguments):
        count()
        return loss(*arguments)
    def counted_move(*arguments):
        count()
        move(*arguments)
        count()
    training.span_loss, manifest.move = counted_loss, counted_move

for event in map(int, sys.argv[1].split(",")):
    child = os.fork()
    if child == 0:
        die_at(event)
        os._exit(main(sys.argv[2:]))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_a_training_killed_at_20_steps_ends_the_same(store, trained, tmp_path):
    import random

    out = tmp_path / "run"
    chance = random.Random(0)
    events = [chance.randint(3, 16) for _ in range(20)]
    command = [sys.executable, "-c", KILLED, ",".join(map(str, events)), *arguments(store, out, "--checkpoint-steps", "2")]
    killed = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    assert killed.stdout.split() == ["-9"] * 20
    about = json.loads((out / "last.json").read_text())
    assert 0 < about["epoch"] < 10
    assert not Manifest.read(out).is_complete
    assert main(arguments(store, out)) == 0
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
