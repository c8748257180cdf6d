"""Weights: known by what they are, refused for what they are not."""

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import subprocess
import threading
from collections import OrderedDict

import pytest
import torch

from excl.models.i3d import weights as module
from excl.models.i3d.weights import Published, check_spec, git_blob_id, load_weights


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


def save_port_file(path, num_classes=157):
    """A file like the published ones: no counters, another number of classes."""
    state = OrderedDict(
        (key, value) for key, value in load_weights("random:0").state_dict.items() if not key.endswith("num_batches_tracked")
    )
    state["logits.conv3d.weight"] = torch.zeros(num_classes, 1024, 1, 1, 1)
    state["logits.conv3d.bias"] = torch.zeros(num_classes)
    torch.save(state, path, _use_new_zipfile_serialization=False)
    return path


def test_a_file_of_the_port_loads(tmp_path):
    path = save_port_file(tmp_path / "mine.pt")
    loaded = load_weights(str(path))
    assert loaded.num_classes == 157
    assert loaded.source == "mine.pt"
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert not loaded.is_random
    assert loaded.network().training is False


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/excl-evil-ran",)


def test_what_is_no_weight_file_is_refused(tmp_path):
    page, evil, other = tmp_path / "page.pt", tmp_path / "evil.pt", tmp_path / "other.pt"
    page.write_text("<!DOCTYPE html><html>not found</html>")
    torch.save({"x": Evil()}, evil)
    torch.save({"fc.weight": torch.zeros(3)}, other)
    for path, reason in [(page, "cannot|not a weight file"), (evil, "not a weight file"), (other, "no state dict of I3D")]:
        with pytest.raises(ValueError, match=f"{path.name}.*({reason})"):
            load_weights(str(path))
    assert not os.path.exists("/tmp/excl-evil-ran")
    cut = tmp_path / "cut.pt"
    cut.write_bytes(save_port_file(tmp_path / "whole.pt").read_bytes()[:-7])
    with pytest.raises(ValueError, match=r"cut\.pt"):
        load_weights(str(cut))


def test_weights_of_another_network_are_refused(tmp_path):
    path = tmp_path / "half.pt"
    state = {k: v for k, v in load_weights("random:0").state_dict.items() if not k.startswith("Mixed_5")}
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"half\.pt: these are not weights of RGB I3D"):
        load_weights(str(path)).network()


@pytest.fixture
def port(tmp_path, monkeypatch):
    """A web server in the place of the port's repository, and an empty cache."""
    folder = tmp_path / "repository"
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(module, "BASE_URL", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setenv("EXCL_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield folder
    server.shutdown()


def test_published_weights_are_fetched_once_and_checked(port, monkeypatch, tmp_path):
    blob = git_blob_id(save_port_file(port / "rgb_charades.pt"))
    monkeypatch.setitem(module.PUBLISHED, "charades", Published("rgb_charades.pt", blob, 157))
    assert load_weights("charades").num_classes == 157
    (port / "rgb_charades.pt").unlink()
    loaded = load_weights("charades")  # from the cache
    assert loaded.source == "charades"
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [f"{blob[:12]}-rgb_charades.pt"]


def test_a_download_that_is_not_the_published_file_is_refused_and_removed(port, tmp_path):
    save_port_file(port / "rgb_charades.pt")
    with pytest.raises(ValueError, match="not the published file"):
        load_weights("charades")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_download_that_fails_says_what_to_do(port, tmp_path):
    with pytest.raises(OSError, match=r"rgb_imagenet\.pt: cannot be downloaded .*404.*give its path"):
        load_weights("kinetics")
    assert list((tmp_path / "cache").iterdir()) == []
