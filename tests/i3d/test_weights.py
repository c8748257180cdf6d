"""Weights: known by what they are, refused for what they are not."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import random
import subprocess
import tarfile
import zipfile
from collections import OrderedDict

import pytest
import safetensors.torch
import torch

from excl.models.i3d import weight_catalogue
from excl.models.i3d.weight_catalogue import PublishedWeights, WeightFacts, class_names, git_blob_id
from excl.models.i3d.weight_formats import write_safetensors
from excl.models.i3d.weights import check_spec, describe_wrong, load_weights
from excl.workflows.cli import main


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("EXCL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def state():
    """A state dict like those of the published files: no counters, and 157 classes."""
    pairs = load_weights("random:0").state_dict.items()
    made = OrderedDict((key, value) for key, value in pairs if not key.endswith("num_batches_tracked"))
    made["logits.conv3d.weight"] = torch.zeros(157, 1024, 1, 1, 1)
    made["logits.conv3d.bias"] = torch.zeros(157)
    return made


def save_old(state, path):
    torch.save(state, path, _use_new_zipfile_serialization=False)
    return path


def test_random_weights_say_so_and_are_by_formula(caplog):
    first, again, other = load_weights("random:1"), load_weights("random:1"), load_weights("random:2")
    assert caplog.text.count("RANDOM") == 3
    assert first.is_random
    assert first.sha256 == again.sha256 != other.sha256
    key = "Mixed_3b.b1b.conv3d.weight"
    assert torch.equal(first.state_dict[key], again.state_dict[key])
    assert not torch.equal(first.state_dict[key], other.state_dict[key])


@pytest.mark.parametrize("spec", ["kinetcs", "random", "random:x", "random:-1", "/no/such/file.pt"])
def test_what_names_no_weights_is_refused_by_name(spec):
    with pytest.raises(ValueError, match=spec):
        check_spec(spec)


def test_git_blob_id_is_gits(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"some bytes\0" * 1000)
    wanted = subprocess.run(["git", "hash-object", path], capture_output=True, text=True, check=True).stdout.strip()
    assert git_blob_id(path) == wanted


def test_kinetics_class_names_are_deepminds(tmp_path):
    path = tmp_path / "label_map.txt"
    path.write_text("\n".join(class_names("kinetics")) + "\n", encoding="utf-8")
    assert git_blob_id(path) == "cdaafcb1415eee46483561e78cb4747cce76a933"  # kinetics-i3d/data/label_map.txt


def test_charades_class_names():
    names = class_names("charades")
    assert len(names) == len(set(names)) == weight_catalogue.PUBLISHED["charades"].num_classes
    known = {
        0: "Holding some clothes",
        59: "Sitting in a chair",
        97: "Walking through a doorway",
        156: "Someone is eating something",
    }
    assert {index: names[index] for index in known} == known


def test_the_facts_of_the_published_files():
    facts = weight_catalogue.PUBLISHED["charades"].facts("ab").to_json()
    assert json.loads(json.dumps(facts)) == facts
    assert WeightFacts.from_json(facts).to_json() == facts
    assert facts["url"] == f"{facts['repository']}/raw/{facts['commit']}/{facts['path']}"
    assert (facts["fps"], facts["value_range"], facts["channels"]) == (24, [-1, 1], "RGB")
    assert weight_catalogue.PUBLISHED["kinetics"].fps == 25
    assert facts["licence"].startswith("Apache-2.0")


def test_a_file_of_the_port_loads(tmp_path, state):
    path = save_old(state, tmp_path / "mine.pt")
    loaded = load_weights(str(path))
    assert loaded.num_classes == 157
    assert loaded.source == "mine.pt"
    assert loaded.facts.file_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert loaded.facts.git_blob_id == git_blob_id(path)
    assert not loaded.is_random
    assert loaded.class_names is None
    assert loaded.network().training is False


def test_weights_are_known_by_their_tensors(tmp_path, state):
    """In whatever file they are and in whatever order; and one bit that differs makes them others."""
    one = load_weights(str(save_old(state, tmp_path / "old.pt"))).sha256
    torch.save({**dict(reversed(state.items())), "Mixed_3b.b0.bn.num_batches_tracked": torch.tensor(7)}, tmp_path / "new.pt")
    safetensors.torch.save_file({k: v.clone() for k, v in state.items()}, tmp_path / "bare.safetensors")
    assert {load_weights(str(tmp_path / name)).sha256 for name in ("new.pt", "bare.safetensors")} == {one}
    key = "Mixed_5c.b3b.conv3d.weight"
    other = state[key].clone()
    other.view(-1).view(torch.int32)[5] ^= 1
    torch.save({**state, key: other}, tmp_path / "other.pt")
    assert load_weights(str(tmp_path / "other.pt")).sha256 != one


class Evil:
    def __reduce__(self):
        return os.system, ("touch excl-evil-ran",)


def in_tar(**members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def in_zip(name, content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


WRONG_BYTES = {
    "empty": (b"", "an empty file"),
    "zeros": (bytes(5000), "begins with zeros"),
    "page": (b"\xef\xbb\xbf\n<!DOCTYPE html><html>blob</html>", r"an HTML page.*/raw/"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n", "git LFS pointer.*git lfs pull"),
    "text": (b"weights", "not a weight file"),
    "gz": (gzip.compress(b"weights"), "packed with gzip"),
    "zip": (in_zip("rgb_imagenet.pt", b"x"), "zip archive that torch.save did not write.*unpack"),
    "script": (in_zip("a/constants.pkl", b"x"), "TorchScript"),
    "tar": (in_tar(readme=b"x"), "tar archive .*readme.*unpack"),
    "legacy_tar": (in_tar(pickle=b"x", storages=b"x", tensors=b"x"), "legacy .tar format"),
    "cut_tar": (in_tar(readme=bytes(5000))[:1500], "(tar archive|cut short)"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
}


@pytest.mark.parametrize("kind", WRONG_BYTES)
def test_a_file_of_another_kind_is_refused_by_name(tmp_path, kind):
    content, reason = WRONG_BYTES[kind]
    path = tmp_path / f"{kind}.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{kind}\.pt: .*{reason}"):
        load_weights(str(path))


@pytest.mark.parametrize("old", [True, False])
def test_a_pickle_that_would_run_code_is_not_run(tmp_path, monkeypatch, old):
    monkeypatch.chdir(tmp_path)
    torch.save({"x": Evil()}, "evil.pt", _use_new_zipfile_serialization=not old)
    with pytest.raises(ValueError, match=r"evil\.pt: a pickle that would run code to load \((posix|nt)\.system\)"):
        load_weights("evil.pt")
    assert not os.path.exists("excl-evil-ran")


@pytest.mark.parametrize("kind", ["old.pt", "new.pt", "new.safetensors"])
def test_a_file_that_is_cut_anywhere_is_refused_as_such(tmp_path, state, kind):
    path = tmp_path / kind
    if kind == "old.pt":
        save_old(state, path)
    elif kind == "new.pt":
        torch.save(state, path)
    else:
        safetensors.torch.save_file({k: v.clone() for k, v in state.items()}, path)
    whole = path.read_bytes()
    for kept in (20, 500, 5_000, 30_000, 1_000_000, len(whole) // 2, len(whole) - 7, len(whole) - 1):
        path.write_bytes(whole[:kept])
        assert any(word in describe_wrong(path) for word in ("truncated", "cut short")), (kept, describe_wrong(path))


@pytest.mark.parametrize("kind", ["new.pt", "mine.safetensors"])
def test_a_flipped_bit_is_found_where_there_is_a_checksum(tmp_path, state, kind):
    torch.save(state, tmp_path / "new.pt")
    assert main(["weights", "import", str(tmp_path / "new.pt"), "--to", str(tmp_path / "mine.safetensors")]) == 0
    path = tmp_path / kind
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    assert describe_wrong(path).startswith("damaged")


@pytest.mark.parametrize("kind", ["old.pt", "new.pt", "mine.safetensors"])
def test_whatever_is_damaged_is_told_and_never_raised(tmp_path, state, kind):
    path, draw = tmp_path / kind, random.Random(0)
    if kind == "mine.safetensors":
        write_safetensors(path, state, WeightFacts())
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "new.pt")
    whole = path.read_bytes()
    for attempt in range(12):
        damaged = bytearray(whole)
        start = 0 if attempt % 3 else len(whole) - 30_000  # where names and lengths are
        for _ in range(draw.choice([1, 5, 50])):
            damaged[start + draw.randrange(30_000)] = draw.randrange(256)
        path.write_bytes(damaged)
        assert describe_wrong(path) or kind == "old.pt"  # which has no checksums


def test_a_length_of_exabytes_asks_for_no_memory(tmp_path):
    path = tmp_path / "long.pt"
    path.write_bytes(b"\x80\x02\x8e" + (1 << 60).to_bytes(8, "little") + bytes(100))
    assert "truncated" in describe_wrong(path)


def changed(state, key, value):
    return {**state, key: value}


FIRST = "Conv3d_1a_7x7.conv3d.weight"
WRONG_CONTENT = {
    "list": (lambda _: [torch.zeros(3)], "it holds a list"),
    "empty_dict": (lambda _: {}, "empty"),
    "other": (lambda _: {"fc.weight": torch.zeros(3)}, r"none of its keys.*fc\.weight"),
    "flow": (lambda s: changed(s, FIRST, torch.zeros(64, 2, 7, 7, 7)), "FLOW weights.*2 input channels"),
    "hassony": (lambda _: {"conv3d_1a_7x7.conv3d.weight": torch.zeros(64, 3, 7, 7, 7)}, "hassony2.*video_features"),
    "training": (
        lambda s: {"epoch": 3, "state_dict": dict(s)},
        r"training checkpoint.*'state_dict'.*torch\.save\(torch\.load",
    ),
    "model": (lambda s: {"model": dict(s), "optimizer": {}}, "training checkpoint.*'model'"),
    "module": (lambda s: {f"module.{k}": v for k, v in s.items()}, r"'module\.'"),
    "missing": (lambda s: {k: v for k, v in s.items() if not k.startswith("Mixed_5")}, r"keys are missing \(Mixed_5b"),
    "unexpected": (lambda s: changed(s, "head.bias", torch.zeros(3)), r"1 keys are unexpected \(head\.bias\)"),
    "shape": (lambda s: changed(s, "Mixed_3b.b0.bn.bias", torch.zeros(3)), r"Mixed_3b\.b0\.bn\.bias has the shape \(3,\)"),
    "whole_numbers": (lambda s: changed(s, "logits.conv3d.bias", torch.zeros(157, dtype=torch.int32)), "torch.int32"),
    "no_tensor": (lambda s: changed(s, "Mixed_3b.b0.bn.bias", 3), "is a int and no tensor"),
    "nan": (lambda s: changed(s, "logits.conv3d.bias", torch.full((157,), torch.nan)), "NaN or infinite"),
    "inf": (lambda s: changed(s, "logits.conv3d.bias", torch.full((157,), -torch.inf)), "NaN or infinite"),
}


@pytest.mark.parametrize("kind", WRONG_CONTENT)
def test_content_that_is_no_rgb_i3d_is_refused_by_name(tmp_path, state, kind):
    make, reason = WRONG_CONTENT[kind]
    torch.save(make(state), tmp_path / f"{kind}.pt")
    with pytest.raises(ValueError, match=rf"{kind}\.pt: .*{reason}"):
        load_weights(str(tmp_path / f"{kind}.pt"))


@pytest.fixture
def port_file(tmp_path, state, monkeypatch):
    """A file that counts as the published one of charades."""
    path = save_old(state, tmp_path / "from_elsewhere.pt")
    entry = PublishedWeights("rgb_charades.pt", git_blob_id(path), 157, trained_on="Charades", fps=24.0)
    monkeypatch.setitem(weight_catalogue.PUBLISHED, "charades", entry)
    return path


def test_a_published_file_is_imported_under_its_name(port_file, cache, capsys):
    assert main(["weights", "verify", "charades"]) == 3
    assert "excl weights fetch charades" in capsys.readouterr().out
    assert main(["weights", "import", str(port_file)]) == 0
    loaded = load_weights("charades")
    assert loaded.source == "charades"
    assert loaded.facts == load_weights(str(port_file)).facts
    assert loaded.facts.fps == 24
    assert loaded.class_names[156] == "Someone is eating something"
    assert [path for path in cache.rglob("*") if path.is_file()] == [weight_catalogue.PUBLISHED["charades"].cached_path]
    assert main(["weights", "verify", str(port_file), "charades", "--is", "charades"]) == 0


def test_conversion_keeps_tensors_identity_and_facts(port_file, tmp_path):
    target = tmp_path / "converted.safetensors"
    assert main(["weights", "import", str(port_file), "--to", str(target)]) == 0
    before, after = load_weights(str(port_file)), load_weights(str(target))
    assert before.state_dict.keys() == after.state_dict.keys()
    assert all(torch.equal(value, after.state_dict[key]) for key, value in before.state_dict.items())
    assert (before.sha256, before.facts, before.class_names) == (after.sha256, after.facts, after.class_names)
    assert main(["weights", "import", str(port_file), "--to", str(target), "--fps", "5"]) == 2


def test_ones_own_weights_get_a_name(tmp_path, state, capsys, caplog, monkeypatch):
    path = tmp_path / "mine.pt"
    torch.save(state, path)
    assert main(["weights", "import", str(path)]) == 2
    assert "say with --name" in caplog.text
    facts = ["--trained-on", "my videos", "--fps", "12.5", "--licence", "mine"]
    assert main(["weights", "import", str(path), "--name", "mine-2", *facts]) == 0
    loaded = load_weights(check_spec("mine-2"))
    assert (loaded.source, loaded.sha256) == ("mine-2", load_weights(str(path)).sha256)
    assert (loaded.facts.trained_on, loaded.facts.fps, loaded.facts.licence) == ("my videos", 12.5, "mine")
    assert loaded.facts.file_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    torch.save({**state, "logits.conv3d.bias": torch.ones(157)}, path)
    assert main(["weights", "import", str(path), "--name", "mine-2"]) == 2
    assert "other weights were imported under this name" in caplog.text
    capsys.readouterr()
    assert main(["weights", "list", "--json"]) == 0
    listed = {row["name"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert listed.keys() == {"kinetics", "charades", "mine-2"}
    assert listed["mine-2"]["sha256"] == loaded.sha256
    assert listed["kinetics"]["path"] is None
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine-2").write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="a file here has it too"):
        check_spec("mine-2")


@pytest.mark.parametrize("name", ["kinetics", "random", "random-1", "a/b", "..", "", "-x", "a.pt"])
def test_names_that_cannot_be_given(tmp_path, name, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["weights", "import", str(tmp_path / "x.pt"), f"--name={name}"])
    assert ended.value.code == 2
    assert "--name" in capsys.readouterr().err


def test_verify_tells_of_every_file_and_counts(tmp_path, state, capsys, port_file):
    torch.save(state, tmp_path / "good.pt")
    (tmp_path / "page.pt").write_text("<html>")
    files = [str(tmp_path / name) for name in ("good.pt", "page.pt", "none.pt")]
    assert main(["weights", "verify", *files]) == 3
    good, page, none = capsys.readouterr().out.splitlines()
    assert "ok: weights of RGB I3D, 157 classes" in good
    assert "WRONG: an HTML page" in page
    assert "WRONG: there is no such file" in none
    assert main(["weights", "verify", files[0], "--is", "charades"]) == 3
    assert "not the published charades: git blob id" in capsys.readouterr().out
    assert main(["weights", "verify", files[0], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["wrong"] is None


def test_list_tells_of_damage(port_file, capsys):
    assert main(["weights", "import", str(port_file)]) == 0
    with weight_catalogue.PUBLISHED["charades"].cached_path.open("r+b") as file:
        file.seek(40_000_000)
        file.write(b"damage")
    capsys.readouterr()
    assert main(["weights", "list"]) == 0
    kinetics, charades = capsys.readouterr().out.splitlines()[1:]
    assert kinetics.startswith("kinetics") and kinetics.endswith("not fetched")  # noqa: PT018
    assert "WRONG: weights of RGB I3D, and not the published charades" in charades


def test_localize_finds_imported_weights_by_what_is_in_them(tmp_path, monkeypatch, caplog):
    """A run's own weights are looked for among the imported ones; a damaged one beside them is no obstacle."""
    from types import SimpleNamespace

    from excl.models.i3d.weights import convert, imported_path
    from excl.pipeline import localize
    from excl.pipeline.store.feature_recipe import weights_identity

    monkeypatch.setenv("EXCL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    state = load_weights("random:3").state_dict
    torch.save(state, tmp_path / "zip.pt")
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    recipe = {"weights": weights_identity(load_weights("zip.pt"))}
    assert recipe["weights"] == weights_identity(load_weights("old.pt"))  # the same weights are one recipe
    config = SimpleNamespace(run=tmp_path / "run", weights=None)
    with pytest.raises(ValueError, match=r"run: .* that are not in the cache; say where they are with --weights"):
        localize._weights(config, recipe)
    convert(tmp_path / "zip.pt", imported_path("mine"), trained_on=None, licence=None, fps=None)
    imported_path("broken").write_bytes(b"nothing")
    (tmp_path / "mine").touch()  # a file of the same name where the command is run
    assert localize._weights(config, recipe).sha256 == recipe["weights"]["sha256"]
    assert "broken.safetensors" in caplog.text
    with pytest.raises(ValueError, match=r"made with the weights .* not with random:1"):
        localize._weights(SimpleNamespace(run=tmp_path / "run", weights="random:1"), recipe)
