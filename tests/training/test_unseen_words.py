"""Words that the vocabulary lacks: their vectors serve answers, and nothing of them reaches the training."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
from chain_data import make_from_raw_videos
from train_data import arguments, make_store, vector_lines

from excl.pipeline import localize, pack, tokenise
from excl.pipeline.artifacts.manifest import COMPLETE, Manifest
from excl.pipeline.config import parse_section
from excl.pipeline.store.training_store import TrainingStore
from excl.pipeline.training.trained_run import load_run
from excl.workflows.cli import main

CAT, DOG = (np.random.default_rng(n).standard_normal(6).round(3).tolist() for n in (1, 2))  # their vectors in train_data
OTHERS = {"feline": CAT, "hound": DOG, "zebra": [9.0, -9.0, 9.0, -9.0, 9.0, -9.0]}


def store_with(folder, *, test_word, unseen_words="vector"):
    """A store like that of train_data, whose test queries say another word for "cat"; both words have a vector."""
    made = folder.parent / "made"
    if not made.exists():
        make_store(made)
        (made / "vectors.txt").write_text(vector_lines(OTHERS))
    folder.mkdir()
    (folder / "test.jsonl").write_text((made / "test.jsonl").read_text().replace("cat", test_word))
    files = {"train": made / "train.jsonl", "val": made / "val.jsonl", "test": folder / "test.jsonl"}
    settings = {split: [str(path)] for split, path in files.items()} | {
        "dataset": "jsonl",
        "glove": str(made / "vectors.txt"),
        "out": str(folder / "queries"),
        "unseen_words": unseen_words,
    }
    tokenise.run(parse_section(tokenise.TokeniseConfig, settings, where="settings"))
    return pack.run(pack.PackConfig(features=made / "features", queries=folder / "queries", out=folder / "store"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Stores and runs: of test queries with known words, with a synonym that GloVe has, with a word that nobody has."""
    folder = tmp_path_factory.mktemp("unseen")
    for word in ("cat", "feline", "qwzx"):
        store_with(folder / word, test_word=word)
    assert main(arguments(folder / "feline" / "store", folder / "run")) == 0
    return folder


def answers_of(folder, word, *more):
    out = folder / f"answers-{word}-{'-'.join(more)}"
    asked = ["evaluate", str(folder / "run"), "--store", str(folder / word / "store"), "--out", str(out), "--device", "cpu"]
    assert main([*asked, *more]) == 0
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    return [(line["vid"], line["pred_relevant_windows"]) for line in lines], json.loads((out / "metrics.json").read_text())


@pytest.mark.parametrize("model", [(), ("--model.train-vectors",)])
def test_trained_weights_are_the_same_whatever_words_the_test_split_has(folder, tmp_path, model):
    """Byte for byte, with frozen and with trained word vectors; also the rows that are drawn for words without one."""
    weights, histories, matrices = [], [], []
    for word in ("cat", "zebra", "qwzx"):
        store = folder / word / "store"
        if not store.exists():
            store_with(folder / word, test_word=word)
        run = tmp_path / word
        assert main(arguments(store, run, "--epochs", "3", "--learning-rate", "0.01", *model)) == 0
        weights.append((run / "best.safetensors").read_bytes())
        histories.append((run / "metrics.jsonl").read_bytes())
        matrices.append((store / "vectors.npy").read_bytes() + (store / "vocabulary.txt").read_bytes())
    assert list(TrainingStore(folder / "zebra" / "store").unseen_vectors) == ["zebra"], "there is something to leak"
    assert weights[0] == weights[1] == weights[2]
    assert histories[0] == histories[1] == histories[2]
    assert matrices[0] == matrices[1] == matrices[2]


def test_an_unseen_word_is_answered_by_its_own_vector(folder):
    """A synonym with the vector of "cat" gets the answers of "cat"; strictly it is as unknown as a word without a vector."""
    assert "feline" not in (folder / "feline" / "store" / "vocabulary.txt").read_text()
    known, metrics = answers_of(folder, "cat")
    synonym, own = answers_of(folder, "feline")
    strict, other = answers_of(folder, "feline", "--unseen-words", "unk")
    unknown, _ = answers_of(folder, "qwzx")
    assert synonym == known
    assert own["model"] == metrics["model"]
    assert strict == unknown != known
    assert (own["unseen_words"], other["unseen_words"]) == ("vector", "unk")
    assert "feline" not in load_run(folder / "run").words


def test_validation_follows_the_choice_and_the_checkpoint_does_not_keep_the_vectors(folder, tmp_path):
    """With synonyms in the validation split the curve is that of the known words by `vector`, another one by `unk`."""
    curves = {}
    strictly = ("--unseen-words", "unk")
    synonyms = ("feline", "hound")
    for name, (cat, dog), more in (("known", ("cat", "dog"), ()), ("vector", synonyms, ()), ("unk", synonyms, strictly)):
        swapped = tmp_path / name
        swapped.mkdir()
        made, text = folder / "made", (folder / "made" / "val.jsonl").read_text()
        (swapped / "val.jsonl").write_text(text.replace("cat", cat).replace("dog", dog))
        flags = ["--train", str(made / "train.jsonl"), "--val", str(swapped / "val.jsonl")]
        queries = [
            "tokenise",
            "--dataset",
            "jsonl",
            *flags,
            "--glove",
            str(made / "vectors.txt"),
            "--out",
            str(swapped / "q"),
        ]
        assert main(queries) == 0
        store = pack.run(pack.PackConfig(features=made / "features", queries=swapped / "q", out=swapped / "store"))
        learning = ("--epochs", "8", "--patience", "8", "--model.dropout", "0")
        assert main(arguments(store, swapped / "run", *learning, *more)) == 0
        curves[name] = (swapped / "run" / "metrics.jsonl").read_text()
        with (swapped / "run" / "best.safetensors").open("rb") as file:
            embedding = safetensors.numpy.load(file.read())["text_encoder.embedding.weight"]
        assert len(embedding) == len((store / "vocabulary.txt").read_text().splitlines())
    assert curves["vector"] == curves["known"] != curves["unk"]


def test_stores_and_runs_without_the_choice_mean_unk(folder, tmp_path, caplog):
    """As they were before there was one."""
    queries = tmp_path / "queries"
    shutil.copytree(folder / "feline" / "queries", queries)
    old = Manifest.read(queries, stage="tokenise")
    record = {name: value for name, value in old.records[COMPLETE].items() if name not in ("id", "crc")}
    about = {name: value for name, value in record["about"].items() if name not in ("unseen_words", "glove")}
    identity = {name: value for name, value in old.header["identity"].items() if name != "unseen_words"}
    for name in ("manifest.json", "records.jsonl", "unseen_words.txt", "unseen_vectors.npy"):
        (queries / name).unlink()
    files = {p.name: p.read_bytes() for p in queries.iterdir() if p.is_file()}
    shutil.rmtree(queries)
    with Manifest.open(queries, stage="tokenise", identity=identity, code_version=old.header["code_version"]) as manifest:
        for name, content in files.items():
            (queries / name).write_bytes(content)
        manifest.complete({**record, "about": about, "sha256": {n: s for n, s in record["sha256"].items() if n in files}})
    store = pack.run(pack.PackConfig(features=folder / "made" / "features", queries=queries, out=tmp_path / "store"))
    assert TrainingStore(store).unseen_words == "unk"
    assert main(arguments(store, tmp_path / "run", "--epochs", "1")) == 0
    assert load_run(tmp_path / "run").unseen_words == "unk"
    asked = ["evaluate", str(tmp_path / "run"), "--device", "cpu"]
    assert main(asked) == 0
    assert json.loads((tmp_path / "run-evaluation-test" / "metrics.json").read_text())["unseen_words"] == "unk"
    assert main([*asked, "--unseen-words", "vector", "--out", str(tmp_path / "e")]) == 2
    assert "no vectors for words outside its vocabulary; tokenise and pack again with --unseen-words vector" in caplog.text


def test_tokenise_says_which_unseen_words_have_a_vector(folder, tmp_path, capsys):
    made = folder / "made"
    (tmp_path / "test.jsonl").write_text((made / "test.jsonl").read_text().replace("cat", "zebra qwzx"))
    files = ["--train", str(made / "train.jsonl"), "--val", str(made / "val.jsonl"), "--test", str(tmp_path / "test.jsonl")]
    asked = ["tokenise", "--dataset", "jsonl", *files, "--glove", str(made / "vectors.txt"), "--report"]
    number = (tmp_path / "test.jsonl").read_text().count("zebra")
    assert main(asked) == 0
    shown = capsys.readouterr().out
    both = f"not in the vocabulary: {2 * number} tokens in {number} queries, 2 words: qwzx, zebra"
    assert both in shown
    assert f"but with a vector, which answers use: {number} tokens in {number} queries, 1 words: zebra" in shown
    assert f"  without a vector: {number} tokens in {number} queries, 1 words: qwzx" in shown
    assert main([*asked, "--unseen-words", "unk"]) == 0
    shown = capsys.readouterr().out
    assert both in shown
    assert "which answers use" not in shown


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return make_from_raw_videos(tmp_path_factory.mktemp("raw"), more_vectors="begins 0.3 0.4\n")


def ask(raw, capsys, query, *more):
    video = str(raw / "videos" / "r0.mp4")
    assert main(["localize", "--run", str(raw / "run"), "--video", video, "--query", query, "--json", *more]) == 0
    [row] = json.loads(capsys.readouterr().out)
    return (row["start_s"], row["end_s"], row["score"]), row["unseen_words"], row["unknown_words"]


def test_localize_says_which_words_it_does_not_know(raw, capsys, caplog):
    known, *words = ask(raw, capsys, "it starts")
    assert words == [[], []]
    assert ask(raw, capsys, "it begins") == (known, ["begins"], []), "begins has the vector of starts"
    assert "'it begins': words that the training split did not have: begins" in caplog.text
    assert "unknown to the model" not in caplog.text
    unknown = ask(raw, capsys, "it qwzx")
    assert unknown[1:] == (["qwzx"], ["qwzx"])
    assert unknown[0] != known
    assert "words that the model treats as one unknown word: qwzx" in caplog.text
    assert ask(raw, capsys, "it begins", "--unseen-words", "unk") == (unknown[0], ["begins"], ["begins"])


def test_a_program_that_asks_often_looks_a_word_up_once(raw, monkeypatch):
    trained, remembered, queries = load_run(raw / "run", device="cpu"), {}, ["it begins", "it qwzx"]
    first = localize.look_up(trained, queries, remembered=remembered)
    assert {word: vector.tolist() for word, vector in first.items()} == {"begins": pytest.approx([0.3, 0.4])}
    monkeypatch.setattr(localize, "vectors_for", lambda *_, **__: pytest.fail("read again"))
    again = localize.look_up(trained, queries[::-1], remembered=remembered)
    assert again["begins"].tolist() == first["begins"].tolist()


def test_the_vectors_are_found_again_or_asked_for(raw, tmp_path, monkeypatch, capsys, caplog):
    """On another machine, or where the file was moved: the words are unknown until --glove says where it is."""
    known, *_ = ask(raw, capsys, "it starts")
    monkeypatch.setenv("EXCL_CACHE", str(tmp_path / "cache"))
    assert ask(raw, capsys, "it begins")[1:] == (["begins"], ["begins"])
    assert "vectors.txt, with the word vectors of the run, is not on this machine; say with --glove" in caplog.text
    moved = tmp_path / "moved.txt"
    shutil.copyfile(raw / "vectors.txt", moved)
    assert ask(raw, capsys, "it begins", "--glove", str(moved)) == (known, ["begins"], [])
    assert ask(raw, capsys, "it begins") == (known, ["begins"], []), "it was read here, so it is found"
    moved.write_text("begins 0.3 0.4\n")
    video = str(raw / "videos" / "r0.mp4")
    asked = ["localize", "--run", str(raw / "run"), "--video", video, "--query", "it begins", "--glove", str(moved)]
    assert main(asked) == 2
    assert "expected vectors.txt" in caplog.text
