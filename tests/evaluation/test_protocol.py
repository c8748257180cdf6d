"""The protocol of a table: repeated to the digit, refused by name, compared with another."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil

import pytest
from chain_data import MODEL, RECIPE, make, tokenise_arguments

from excl.pipeline.artifacts.header import comparable_header, write_header
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.store.feature_store import FeatureStore
from excl.workflows.cli import main

SETTINGS = [*MODEL, "--epochs", "2", "--batch-size", "8", "--learning-rate", "0.01"]
SWEEP = ["--variants", "clf-1-a", "reg-1-a", "--seeds", "2", "--split", "val"]


def features(made, folder, *, av):
    """The same features, as if made with this version of PyAV."""
    made_with = {"made_with": {"av": av}}
    with Manifest.open(folder, stage="extract", identity=RECIPE, code_version=1, about=made_with) as manifest:
        shutil.copy(made / "features" / "all.h5", folder / "all.h5")
        manifest.add({"id": "shard/all.h5", "file": "all.h5", "videos": list(FeatureStore(made / "features"))})
    return folder


def packed(made, folder, *, av="17.1.0", more=()):
    """A training store of what was made."""
    folder.mkdir()
    assert main([*tokenise_arguments(made, folder / "queries"), *more]) == 0
    paths = ["--features", str(features(made, folder / "features", av=av)), "--queries", str(folder / "queries")]
    assert main(["pack", *paths, "--out", str(folder / "store")]) == 0
    return folder / "store"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def store(made, tmp_path_factory):
    return packed(made, tmp_path_factory.mktemp("packed") / "first")


@pytest.fixture(scope="module")
def table(store, tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep") / "table"
    assert main(["reproduce", str(store), "--out", str(out), *SWEEP, *SETTINGS, "--device", "cpu"]) == 0
    return out


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def repeat(table, out, *more):
    return main(["reproduce", "--protocol", str(table / "protocol.json"), "--out", str(out), "--device", "cpu", *more])


def test_a_protocol_states_what_decided_the_table(made, store, table):
    protocol = json.loads((table / "protocol.json").read_text())
    facts = protocol["stores"]["jsonl"]
    hashes = {s: {f"{s}.jsonl": sha256(made / f"{s}.jsonl")} for s in ("train", "val", "test")}
    assert {split: facts["annotations"][split] for split in hashes} == hashes
    assert facts["missing videos"]["test"] == {"v23": 2}
    assert len(facts["videos"]) == 23
    assert facts["features"] == RECIPE
    assert facts["decoders"] == {"av": "17.1.0"}
    assert facts["hygiene"]["beyond_video"] == "clip"
    assert facts["vocabulary"]["sha256"] == sha256(store / "vocabulary.txt")
    assert protocol["sweep"]["variants"] == ["clf-1-a", "reg-1-a"]
    assert (protocol["sweep"]["seeds"], protocol["sweep"]["split"], protocol["training"]["epochs"]) == (2, "val", 2)
    assert protocol["versions"]["torch"] == importlib.metadata.version("torch")
    assert protocol["table"]["sha256"] == sha256(table / "table.csv")


def test_a_table_is_repeated_to_the_digit(table, tmp_path, caplog):
    caplog.set_level("INFO")
    assert repeat(table, tmp_path / "again") == 0
    for name in ("table.md", "table.csv", "table.json", "protocol.json"):
        assert (tmp_path / "again" / name).read_bytes() == (table / name).read_bytes()
    assert "to the digit" in caplog.text


def test_the_store_may_have_moved(store, table, tmp_path):
    moved = shutil.copytree(store, tmp_path / "moved")
    assert repeat(table, tmp_path / "again", str(moved)) == 0
    assert (tmp_path / "again" / "table.csv").read_bytes() == (table / "table.csv").read_bytes()


def test_a_store_of_an_earlier_version_still_makes_a_table(store, tmp_path):
    """Until pack's version 3 stores did not say which files their queries came from, nor which decoders were used."""
    old = shutil.copytree(store, tmp_path / "old")
    header = comparable_header(old)
    del header["identity"]["tokenised"]
    write_header(old, header, {})
    assert main(["reproduce", str(old), "--out", str(tmp_path / "out"), "--variants", "clf-1-a", "--seeds", "1",
                 *SETTINGS[:-4], "--device", "cpu"]) == 0  # fmt: skip
    facts = json.loads((tmp_path / "out" / "protocol.json").read_text())["stores"]["jsonl"]
    assert facts["word vectors"] == "not recorded"
    assert facts["vocabulary"]["sha256"] == sha256(store / "vocabulary.txt")


def changed_annotations(made, folder):
    changed = shutil.copytree(made, folder / "changed")
    lines = (changed / "test.jsonl").read_text().splitlines()
    row = json.loads(lines[0])
    lines[0] = json.dumps({**row, "end_s": row["end_s"] - 0.5})
    (changed / "test.jsonl").write_text("\n".join(lines) + "\n")
    return packed(changed, folder / "packed")


def other_vocabulary(made, folder):
    return packed(made, folder / "packed", more=["--max-words", "3"])


def other_decoder(made, folder):
    return packed(made, folder / "packed", av="17.2.0")


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (changed_annotations, ["jsonl: annotations.test.test.jsonl: "]),
        (other_vocabulary, ["jsonl: vocabulary.sha256: ", "jsonl: vocabulary.words: 7 in the first, 5 in the second",
                            "jsonl: queries.max_words: None in the first, 3 in the second"]),
        (other_decoder, ["jsonl: decoders.av: 17.1.0 in the first, 17.2.0 in the second"]),
    ],
)  # fmt: skip
def test_another_store_is_refused_by_name(made, table, tmp_path, caplog, *, change, messages):
    other = change(made, tmp_path)
    assert repeat(table, tmp_path / "again", str(other)) == 2
    assert all(message in caplog.text for message in messages)
    assert "Nothing was trained" in caplog.text
    assert not (tmp_path / "again").exists()


def test_other_decoders_and_versions_can_be_accepted(made, table, tmp_path, caplog, monkeypatch):
    other = other_decoder(made, tmp_path)
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0" if name == "torch" else version(name))
    assert repeat(table, tmp_path / "again", str(other), "--accept", "decoders") == 2
    assert f"versions.torch: {version('torch')} in the first, 0.0 in the second" in caplog.text
    caplog.clear()
    assert repeat(table, tmp_path / "again", str(other), "--accept", "decoders", "versions") == 0
    assert "accepted, so the figures may differ: jsonl: decoders.av" in caplog.text


def test_settings_that_contradict_the_protocol_are_refused(table, tmp_path, caplog):
    assert repeat(table, tmp_path / "again", "--epochs", "3", "--seeds", "5") == 2
    assert "training.epochs: 3 asked for, 2 in the protocol" in caplog.text
    assert "seeds: 5 asked for, 2 in the protocol" in caplog.text


def test_a_protocol_whose_table_was_another_is_said_to_be_so(table, tmp_path, caplog):
    protocol = json.loads((table / "protocol.json").read_text())
    (tmp_path / "protocol.json").write_text(json.dumps({**protocol, "table": {"sha256": "0" * 64}}))
    assert repeat(tmp_path, tmp_path / "again") == 2
    assert "and the table differs from the one in it" in caplog.text
    assert (tmp_path / "again" / "table.csv").read_bytes() == (table / "table.csv").read_bytes(), "it is kept"


def test_a_table_of_two_machines_says_so_and_is_not_repeated(store, tmp_path, caplog):
    out = tmp_path / "table"
    arguments = [
        "reproduce",
        str(store),
        "--out",
        str(out),
        "--variants",
        "clf-1-a",
        *SETTINGS,
        "--device",
        "cpu",
        "--seeds",
    ]
    assert main([*arguments, "1"]) == 0
    first = json.loads((out / "protocol.json").read_text())
    elsewhere = {**first, "hardware": {**first["hardware"], "processor": "another"}}
    (out / "protocol.json").write_text(json.dumps(elsewhere))
    assert main([*arguments, "1"]) == 0
    assert json.loads((out / "protocol.json").read_text()) == elsewhere, "nothing was trained here"
    assert main([*arguments, "2"]) == 0
    protocol = json.loads((out / "protocol.json").read_text())
    assert protocol["earlier trainings"] == [{"hardware": elsewhere["hardware"]}]
    assert protocol["hardware"] == first["hardware"]
    assert repeat(out, tmp_path / "again") == 2
    assert "earlier trainings.0.hardware.processor: another in the first" in caplog.text


def test_two_protocols_are_compared(made, table, tmp_path, capsys, caplog):
    assert main(["protocol", str(table), str(table / "protocol.json")]) == 0
    assert "The two protocols are the same" in capsys.readouterr().out
    other = json.loads((table / "protocol.json").read_text())
    other["hardware"]["processor"] = "another"
    other["training"]["epochs"] = 9
    (tmp_path / "protocol.json").write_text(json.dumps(other))
    assert main(["protocol", str(table), str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "These two tables differ in: training, hardware" in shown
    assert "training.epochs: 2 in the first, 9 in the second" in shown
    (tmp_path / "protocol.json").write_text("[1]")
    assert main(["protocol", str(table), str(tmp_path)]) in (1, 2)
    assert "no protocol that this version of excl reads" in caplog.text
