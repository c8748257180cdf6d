"""One model over several stores, and one training over several processes."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time

import commands
import numpy as np
import psutil
import pytest
import torch
import torch.multiprocessing as mp
from train_data import RECIPE, arguments, make_store

from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.train import load_run
from excl.pipeline.training import distributed
from excl.pipeline.training.checkpoint_format import read_checkpoint
from excl.pipeline.training.distributed import RankContext, launch, training_devices
from excl.pipeline.training.multi_store import MultiStore
from excl.workflows.cli import main


@pytest.fixture(scope="module", autouse=True)
def forked_processes():
    """Processes that share a training are forked, but for those of the command, which are fresh interpreters."""
    commands.warm_forkserver()

    def spawn(function, args, nprocs):
        mp.start_processes(function, args=args, nprocs=nprocs, start_method="forkserver")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed.mp, "spawn", spawn)
        yield


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Two data sets about the same kind of features, with other words and other numbers of queries."""
    folder = tmp_path_factory.mktemp("two")
    first = make_store(folder / "a")
    return first, make_store(folder / "b", verb="sleeps", animals=("bird", "dog"), num_videos=10, seed=1)


def joint_arguments(stores, out, *more):
    given = arguments(stores[0], out, *more)
    given.insert(given.index("--store") + 2, str(stores[1]))
    return given


@pytest.fixture(scope="module")
def joint(stores, tmp_path_factory):
    out = tmp_path_factory.mktemp("joint") / "run"
    assert main(joint_arguments(stores, out)) == 0
    return out


def test_words_of_two_stores_keep_their_meaning(stores):
    both = MultiStore(stores)
    own = {store.path: store for store in both.stores.values()}
    assert list(both.stores) == ["jsonl", "jsonl-2"]
    a, b = (own[path] for path in stores)
    assert both.vocabulary.words == (*a.vocabulary.words, *(w for w in b.vocabulary.words if w not in a.vocabulary.words))
    assert len(both.vocabulary) > len(a.vocabulary)
    assert len(both.vocabulary) == len(both.vectors)
    for name, store in zip(both.stores, (a, b), strict=True):
        examples = both.examples("train")[name]
        assert [e.query.video_id for e in examples] == [q.video_id for q in store.queries("train")]
        for example, query in zip(examples, store.queries("train"), strict=True):
            assert [both.vocabulary.words[i] for i in example.query.token_ids] == list(query.tokens)
            known = store.vectors[list(query.token_ids)]
            assert np.array_equal(both.vectors[list(example.query.token_ids)], known)


def test_a_word_unknown_to_its_own_store_stays_unknown(stores, tmp_path):
    other = make_store(tmp_path / "c", verb="sleeps", seed=2)
    rows = (tmp_path / "c" / "val.jsonl").read_text().replace("sleeps", "jumps")
    (tmp_path / "c" / "val.jsonl").write_text(rows)
    flags = [x for split in ("train", "val") for x in (f"--{split}", str(tmp_path / "c" / f"{split}.jsonl"))]
    flags += ["--glove", str(tmp_path / "c" / "vectors.txt"), "--out", str(tmp_path / "q")]
    assert main(["tokenise", "--dataset", "jsonl", *flags]) == 0
    flags = ["--features", str(tmp_path / "c" / "features"), "--queries", str(tmp_path / "q"), "--out", str(tmp_path / "s")]
    assert main(["pack", *flags]) == 0
    both = MultiStore((stores[0], tmp_path / "s"))
    assert "jumps" in both.vocabulary.words
    assert {e.query.token_ids[2] for e in both.examples("val")["jsonl-2"]} == {1}
    assert other != tmp_path / "s"


def test_a_joint_run_has_the_figures_of_each_set(stores, joint):
    lines = [json.loads(line) for line in (joint / "metrics.jsonl").read_text().splitlines()]
    sets = lines[-1]["sets"]
    assert [sets[name]["num_queries"] for name in ("jsonl", "jsonl-2")] == [8, 6]
    assert lines[-1]["val_num_queries"] == 14
    assert lines[-1]["val_mIoU"] == pytest.approx((sets["jsonl"]["mIoU"] + sets["jsonl-2"]["mIoU"]) / 2)
    assert len(lines) == 10
    identity = Manifest.read(joint).header["identity"]
    assert identity["stores"] == dict(
        zip(("jsonl", "jsonl-2"), (Manifest.read(path).fingerprint() for path in stores), strict=True)
    )
    trained = load_run(joint, device="cpu")
    assert trained.words == list(MultiStore(stores).vocabulary.words)
    assert set(trained.about_queries["sets"]) == {"jsonl", "jsonl-2"}
    assert trained.model.text_encoder.embedding.num_embeddings == len(trained.words)


def test_the_features_of_both_sets_are_normalised_though_ids_are_the_same(stores, joint):
    both = MultiStore(stores)
    rows = torch.cat([store.tensor(video).float() for store in both.stores.values()
                      for video in sorted({q.video_id for q in store.queries("train")})])  # fmt: skip
    mean = read_checkpoint(joint, "best")[0]["feature_mean"]
    torch.testing.assert_close(mean, rows.mean(0), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"recipe": {**RECIPE, "fps": 4.0}}, "features: fps: 4.0 there, 5.0 here"),
        ({"tokeniser": "words"}, "queries: tokeniser: words there, nltk here"),
        ({"vectors": {"the": [9.0] * 6}}, "1 words have other vectors than in the stores before it: the"),
        ({"vectors": {"the": [9.0] * 7, "cat": [1.0] * 7}}, "expected"),
    ],
)
def test_stores_that_do_not_fit_are_refused(stores, tmp_path, caplog, other, message):
    if message == "expected":
        vectors = {w: [0.5] * 7 for w in ("the", "cat", "dog", "jumps", "sleeps", "bird", ".")}
        other, message = {"vectors": vectors}, "its word vectors have 7 numbers, not 6"
    second = make_store(tmp_path / "c", seed=3, **other)
    assert main(joint_arguments((stores[0], second), tmp_path / "run")) == 2
    assert message in caplog.text


def test_words_without_a_vector_are_those_of_the_first_store(stores, tmp_path):
    """Theirs are drawn, and scaled to the vocabulary they are in."""
    made = [
        make_store(tmp_path / n, verb="zzz", animals=animals)
        for n, animals in (("c", ("cat", "dog")), ("d", ("cat", "bird")))
    ]
    both = MultiStore(made)
    first, second = both.stores.values()
    index = [store.vocabulary.words.index("zzz") for store in (first, second)]
    assert not np.array_equal(first.vectors[index[0]], second.vectors[index[1]])
    assert np.array_equal(both.vectors[both.vocabulary.words.index("zzz")], first.vectors[index[0]])


def test_one_store_named_twice_is_refused(stores, tmp_path, caplog):
    assert main(joint_arguments((stores[0], stores[0]), tmp_path / "run")) == 2
    assert "one store is named twice" in caplog.text


def test_a_batch_is_shared_out():
    device = torch.device("cpu")
    parts = [RankContext(device, rank, 3).shard_batch([5, 6, 7, 8]) for rank in range(3)]
    assert [indices for indices, _ in parts] == [[5, 8], [6], [7]]
    assert [weight for _, weight in parts] == pytest.approx([2 * 3 / 4, 3 / 4, 3 / 4])
    assert RankContext(device, 2, 3).shard_batch([5, 6]) == ([5], 0.0)
    assert RankContext(device).shard_batch([5, 6]) == ([5, 6], 1.0)


def test_devices_are_of_one_kind():
    assert [device.type for device in training_devices("cpu,cpu")] == ["cpu", "cpu"]
    for names, message in (
        ("cpu,meta", "of one kind"),
        ("meta,meta", "can be cuda or cpu"),
        ("cpu,nothing", "not available"),
    ):
        with pytest.raises(ValueError, match=message):
            training_devices(names)


# Batches of 13 and of 1 query: of the second, the second process has nothing.
TWO_STEPS = ("--model.dropout", "0", "--epochs", "2", "--batch-size", "13", "--checkpoint-steps", "1")


def two_processes(store, out):
    given = arguments(store, out, *TWO_STEPS)
    given[given.index("--device") + 1] = "cpu,cpu"
    return given


@pytest.fixture(scope="module")
def by_two(stores, tmp_path_factory):
    out = tmp_path_factory.mktemp("two") / "run"
    assert main(two_processes(stores[0], out)) == 0
    return out


def test_two_processes_train_as_one_does(stores, by_two, tmp_path):
    """But for rounding, and for biases that softmax ignores: their gradients are rounding alone, which Adam scales up."""
    assert main(arguments(stores[0], tmp_path / "run", *TWO_STEPS)) == 0
    (one, _), (two, _) = (read_checkpoint(run, "best") for run in (tmp_path / "run", by_two))
    for name in one:
        if not name.endswith("mlp.2.bias"):
            torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4)
    losses = [
        [json.loads(line)["train_loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (tmp_path / "run", by_two)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_two_processes_that_were_killed_go_on(stores, by_two, tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "excl.workflows.cli", *two_processes(stores[0], out)]
    parent = commands.start(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (out / "last.json").exists():
        assert parent.poll() is None
        time.sleep(0.02)
    children = psutil.Process(parent.pid).children(recursive=True)
    parent.kill()
    parent.wait()
    assert not psutil.wait_procs(children, timeout=120)[1], "children outlive their parent"
    assert main(two_processes(stores[0], out)) == 0
    assert (out / "last.json").read_bytes() == (by_two / "last.json").read_bytes()
    assert (out / "metrics.jsonl").read_bytes() == (by_two / "metrics.jsonl").read_bytes()


def test_another_number_of_devices_does_not_go_on(stores, by_two, caplog):
    """Dropout is drawn by each of them."""
    assert main(arguments(stores[0], by_two, *TWO_STEPS)) == 2
    assert "identity.devices_sharing_a_batch: the folder has 2, asked for is '(nothing)'" in caplog.text


def test_moments_behind_the_last_row_are_counted(stores, tmp_path, caplog, monkeypatch):
    examples = MultiStore.examples

    def later(self, split):
        found = examples(self, split)
        if split == "train":
            one = found["jsonl"][0]
            query = dataclasses.replace(one.query, start_s=1000.0, end_s=1001.0)
            found["jsonl"][0] = dataclasses.replace(one, query=query)
        return found

    monkeypatch.setattr(MultiStore, "examples", later)
    assert main(arguments(stores[0], tmp_path / "run", "--epochs", "1")) == 0
    assert "1 of 14 training moments begin after the last feature row of their video and are left out" in caplog.text


def fails(ranks):
    if not ranks.is_first:
        raise ValueError("v00 is broken")
    ranks.mean(torch.zeros(1))  # waits for the other


def test_what_goes_wrong_in_a_process_is_said_in_one_line():
    with pytest.raises(ValueError, match="v00 is broken"):
        launch(training_devices("cpu,cpu"), fails)


def test_a_joint_run_is_evaluated_on_each_of_its_stores(stores, joint, tmp_path):
    last = json.loads((joint / "best.json").read_text())["best"]["metrics"]["sets"]
    for name, store in zip(("jsonl", "jsonl-2"), stores, strict=True):
        flags = [str(joint), "--store", str(store), "--split", "val", "--out", str(tmp_path / name)]
        assert main(["evaluate", *flags, "--device", "cpu"]) == 0
        found = json.loads((tmp_path / name / "metrics.json").read_text())["model"]["all"]
        assert found["mIoU"] == pytest.approx(last[name]["mIoU"], abs=1e-3)
