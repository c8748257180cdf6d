"""Stores and runs on the hub, against a stand-in for it: what is pushed is whole, and what is pulled is what was pushed."""

from __future__ import annotations

import json
import shutil
import sys

import commands
import pytest
from hub_server import HubServer
from huggingface_hub import constants
from train_data import SMALL, make_store

from excl.pipeline.artifacts.locks import locked
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.store.training_store import TrainingStore
from excl.pipeline.training.trained_run import load_run
from excl.workflows.cli import main

NAME = "somebody/moments"


@pytest.fixture
def hub(monkeypatch):
    server = HubServer()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants._HF_DEFAULT_ENDPOINT, server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # a protocol of its own, which the stand-in does not have
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield server
    server.close()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("data") / "data")


@pytest.fixture
def store(data, tmp_path):
    shutil.copytree(data, tmp_path / "store")
    return tmp_path / "store"


def of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".lock")
    }


def test_a_store_comes_back_as_it_was_with_a_card_that_says_how_it_was_made(hub, store, tmp_path, capsys):
    assert main(["push", str(store), NAME]) == 0
    pushed = hub.files("dataset", NAME)
    assert {**of(store), "README.md": pushed["README.md"], ".gitattributes": b""} == pushed
    assert hub.private["dataset", NAME]
    card = pushed["README.md"].decode()
    identity = Manifest.read(store).header["identity"]
    assert json.loads(card.split("```json\n")[1].split("```")[0])["identity"] == identity
    assert f"excl pull {NAME}" in card
    assert str(tmp_path) not in card
    assert main(["pull", NAME, "--out", str(tmp_path / "pulled")]) == 0
    assert of(tmp_path / "pulled") == of(store)
    assert TrainingStore(tmp_path / "pulled").manifest.fingerprint() == Manifest.read(store).fingerprint()
    assert not list(tmp_path.glob(".*"))
    hub.sent = []
    assert main(["pull", NAME, "--out", str(tmp_path / "pulled")]) == 0  # and fetches no features again
    assert "every byte verified" in capsys.readouterr().out
    assert not any(name.endswith(".h5") for name in hub.sent)


def test_a_run_is_a_model_and_answers_where_it_was_pulled(hub, store, tmp_path):
    run = tmp_path / "run"
    assert main(["train", "--store", str(store), "--out", str(run), "--epochs", "1", *SMALL]) == 0
    assert main(["push", str(run), NAME, "--public"]) == 0
    assert not hub.private["model", NAME]
    assert not any(str(tmp_path).encode() in content for content in hub.files("model", NAME).values())
    assert main(["pull", NAME, "--out", str(tmp_path / "pulled")]) == 0
    assert load_run(tmp_path / "pulled").words == load_run(run).words


def test_the_command_finds_the_hub_by_its_variable(hub, store, tmp_path):
    done = commands.run(
        [sys.executable, "-m", "excl.workflows.cli", "push", str(store), NAME], capture_output=True, text=True,
        env={"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_test", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "hf"),
             "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"pushed: {hub.url}")
    assert "records.jsonl" in hub.files("dataset", NAME)


def test_an_interrupted_push_leaves_no_half_store_and_is_resumed(hub, store, caplog):
    assert len(list(store.rglob("*.h5"))) > 1
    assert main(["push", str(store), NAME]) == 0
    whole = dict(hub.files("dataset", NAME))
    hub.repositories.clear()
    first = hub.uploads[0]
    hub.large = {first: hub.large[first]}  # as if the line had been cut after the first file
    hub.uploads, hub.allowed_uploads = [], 0
    assert main(["push", str(store), NAME]) == 1
    assert f"{store} to {NAME}: Error while uploading" in caplog.text
    assert "the line was cut" in caplog.text
    assert set(hub.files("dataset", NAME)) == {".gitattributes"}
    hub.allowed_uploads = 1 << 30
    assert main(["push", str(store), NAME]) == 0
    assert first not in hub.uploads  # which was not sent again
    assert hub.files("dataset", NAME) == whole


def test_what_is_unfinished_in_use_or_damaged_is_not_pushed(hub, store, tmp_path, caplog):
    assert main(["push", str(tmp_path), NAME]) == 2
    with locked(store):
        assert main(["push", str(store), NAME]) == 1
    assert "another process is working on it" in caplog.text
    half = tmp_path / "half"
    with Manifest.open(half, stage="extract", identity={"fps": 5.0}, code_version=1) as manifest:
        manifest.add({"id": "plan/0", "planned": ["a", "b"]})
        manifest.add({"id": "video/a", "error": "truncated", "message": "a: it ends early"})
    assert main(["push", str(half), NAME]) == 2
    assert "not finished" in caplog.text
    shard = next(store.rglob("*.h5"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert main(["push", str(store), NAME]) == 2
    assert "damaged" in caplog.text
    assert hub.repositories == {}


def test_other_things_in_the_repository_are_left_as_they_are(hub, store, tmp_path, caplog):
    hub.repositories["dataset", NAME] = [{"precious.csv": b"1,2"}]
    hub.private["dataset", NAME] = False
    assert main(["push", str(store), NAME]) == 2
    assert "was not pushed by excl" in caplog.text
    other = make_store(tmp_path / "other", verb="sleeps")
    hub.repositories.clear()
    assert main(["push", str(other), NAME]) == 0
    before = dict(hub.files("dataset", NAME))
    assert main(["push", str(store), NAME]) in (1, 2)
    assert f"{NAME} on the hub" in caplog.text
    assert hub.files("dataset", NAME) == before


def test_damage_on_the_way_is_found_and_no_folder_appears(hub, store, tmp_path, caplog):
    assert main(["push", str(store), NAME]) == 0
    files = hub.files("dataset", NAME)
    name = next(name for name in files if name.endswith(".h5"))
    sound = files[name]
    files[name] = sound[:-100] + bytes([sound[-100] ^ 1]) + sound[-99:]
    assert main(["pull", NAME, "--out", str(tmp_path / "pulled")]) == 2
    assert "damaged" in caplog.text
    assert not (tmp_path / "pulled").exists()
    files[name] = sound
    assert main(["pull", NAME, "--out", str(tmp_path / "pulled")]) == 0
    assert of(tmp_path / "pulled") == of(store)


def test_damage_of_the_records_does_not_stay_either(hub, store, tmp_path):
    assert main(["push", str(store), NAME]) == 0
    files = hub.files("dataset", NAME)
    sound = files["records.jsonl"]
    files["records.jsonl"] = b"?" + sound[1:]
    assert main(["pull", NAME, "--out", str(tmp_path / "pulled")]) == 2
    files["records.jsonl"] = sound
    assert main(["pull", NAME, "--out", str(tmp_path / "pulled")]) == 0
    assert of(tmp_path / "pulled") == of(store)


def test_damage_here_is_found_by_a_second_pull(hub, store, tmp_path, caplog):
    assert main(["push", str(store), NAME]) == 0
    assert main(["pull", NAME, "--out", str(tmp_path / "pulled")]) == 0
    shard = next((tmp_path / "pulled").rglob("*.h5"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert main(["pull", NAME, "--out", str(tmp_path / "pulled")]) == 2
    assert "damaged" in caplog.text


def test_a_pull_that_was_cut_fetches_what_is_missing(hub, store, tmp_path):
    assert main(["push", str(store), NAME]) == 0
    hub.cut_after = 1000
    assert main(["pull", NAME, "--out", str(tmp_path / "pulled")]) == 1
    assert not (tmp_path / "pulled").exists()
    here = {path.relative_to(tmp_path / ".pulled.pull").as_posix() for path in (tmp_path / ".pulled.pull").rglob("*.*")}
    first, hub.cut_after, hub.sent = {*hub.sent} & here, None, []
    assert main(["pull", NAME, "--out", str(tmp_path / "pulled")]) == 0
    assert of(tmp_path / "pulled") == of(store)
    assert not first & {*hub.sent}


def test_other_folders_are_not_touched(hub, store, tmp_path, caplog):
    assert main(["push", str(store), NAME]) == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    assert main(["pull", NAME, "--out", str(tmp_path / "mine")]) == 2
    other = make_store(tmp_path / "other", seed=1)
    before = of(other)
    assert main(["pull", NAME, "--out", str(other)]) == 2
    assert "has other results" in caplog.text
    assert of(other) == before
    hub.files("dataset", NAME)["../escaped.txt"] = b"!"
    assert main(["pull", NAME, "--out", str(tmp_path / "new")]) == 2
    assert not (tmp_path / "escaped.txt").exists()
    assert main(["pull", "somebody/else", "--out", str(tmp_path / "new")]) == 1
    assert "not on the hub" in caplog.text
    caplog.clear()
    del hub.files("dataset", NAME)["../escaped.txt"]
    assert main(["pull", NAME, "--out", str(tmp_path / "new"), "--revision", "v9"]) == 1
    assert "look at the names of the repository and of the revision" in caplog.text
    assert not list(tmp_path.glob(".*"))


def test_without_a_login_the_message_says_how_to_log_in(hub, store, monkeypatch, caplog):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert main(["push", str(store), NAME]) == 1
    assert "hf auth login" in caplog.text
    assert hub.repositories == {}
