"""`excl doctor` says what the machine has, keeps what is private to itself, and fails where something needed is wrong."""

from __future__ import annotations

import getpass
import importlib.metadata
import json
import os
import resource
import socket
import sys
from types import SimpleNamespace

import av
import pytest
import torch

from excl.pipeline.tools import doctor
from excl.workflows.cli import main


@pytest.fixture
def findings(capsys):
    """`findings(…)` runs the command with these flags; returns its exit code and what it says by name."""

    def run(*flags):
        code = main(["doctor", "--json", *flags])
        said = json.loads(capsys.readouterr().out)
        assert said["ok"] is (code == 0)
        assert all(finding["advice"] for finding in said["findings"] if finding["state"] != "ok")
        return code, {finding["name"]: finding for finding in said["findings"]}

    return run


def test_a_machine_in_order(findings):
    code, said = findings("--offline")
    assert code == 0
    assert f"PyAV {av.__version__} with FFmpeg {av.ffmpeg_version_info}" in said["decoding"]["text"]
    assert "h264" in said["decoding"]["text"].split("decodes ")[1]
    assert f"torch {torch.__version__.split('+')[0]}" in said["packages"]["text"]
    assert f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} cores" in said["processor"]["text"]
    assert not any(name.startswith("network") for name in said)


def test_home_and_name_of_the_user_are_not_shown(findings, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path / "somebody"))
    monkeypatch.setenv("EXCL_CACHE", str(tmp_path / "somebody" / "cache"))
    monkeypatch.setenv("USER", "jane.doe")
    monkeypatch.setenv("LOGNAME", "jane.doe")
    monkeypatch.setenv("TMPDIR", "/scratch/jane.doe/tmp")
    monkeypatch.setenv("HTTPS_PROXY", "http://jane:secret@proxy:1")
    assert getpass.getuser() == "jane.doe"
    _, said = findings("--offline")
    assert said["cache"]["text"].startswith("~/cache, ")
    assert "TMPDIR=/scratch/USER/tmp" in said["environment"]["text"]
    main(["doctor", "--offline"])
    shown = capsys.readouterr().out
    for private in ("somebody", "jane", "secret"):
        assert private not in json.dumps(said)
        assert private not in shown
    assert "HTTPS_PROXY" in shown


def test_what_is_needed_and_wrong_is_exit_code_1(findings, monkeypatch, caplog):
    monkeypatch.setenv("EXCL_CACHE", "/dev/null/cache")
    monkeypatch.setitem(sys.modules, "h5py", None)
    monkeypatch.setattr(doctor, "decoder_works", lambda: False)
    code, said = findings("--offline")
    assert code == 1
    assert {name for name, finding in said.items() if finding["state"] == "WRONG"} == {"cache", "h5py", "decoding"}
    assert "EXCL_CACHE" in said["cache"]["advice"]
    assert said["h5py"]["advice"] == "`pip install --force-reinstall h5py`"
    assert "h5py, decoding, cache: needed, and does not work" in caplog.text


def test_a_package_that_is_too_old_is_wrong_and_one_of_an_extra_is_noted(findings, monkeypatch):
    old = {"pydantic": "1.10.2", "tensorboard": "2.1", "torch": "99.0a1+cpu"}
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: old.get(name) or real(name))
    code, said = findings("--offline")
    assert code == 1
    assert (said["pydantic"]["state"], said["pydantic"]["text"]) == ("WRONG", "1.10.2, expected >=2.10")
    assert said["pydantic"]["advice"] == "`pip install 'pydantic>=2.10'`"
    assert said["tensorboard"]["state"] == "note"
    assert "torch" not in said


def test_a_user_without_a_home_folder_is_no_error(findings, monkeypatch):
    """As of a container with --user, where the system does not know the number."""

    def unknown(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr("pwd.getpwuid", unknown)
    for name in ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    code, said = findings("--offline")
    assert code == 0
    assert "excl" in said


def test_a_package_that_breaks_a_check_does_not_stop_the_others(findings, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    code, said = findings("--offline")
    assert code == 1
    assert said["av"]["state"] == "WRONG"
    assert said["decoding"]["text"].startswith("could not be checked (ModuleNotFoundError")
    assert said["processor"]["state"] == "ok"


def test_few_open_files_are_noted_with_the_command_that_helps(findings):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = 512 if hard < 0 else min(512, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
    try:
        code, said = findings("--offline")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert code == 0
    assert (said["open files"]["state"], said["open files"]["text"]) == ("note", f"at most {few}")
    assert said["open files"]["advice"] == f"`ulimit -n {hard if hard > 0 else 65536}` before excl"


def test_the_limits_of_a_container_are_told(findings, tmp_path, monkeypatch):
    (tmp_path / "memory").write_text("2000000000\n")
    (tmp_path / "cpu").write_text("150000 100000\n")
    monkeypatch.setattr(doctor, "CGROUPS", {name: (str(tmp_path / name),) for name in ("memory", "cpu")})
    _, said = findings("--offline")
    assert said["memory"]["state"] == "note"
    assert said["memory"]["text"].endswith("of which the control group allows 2.0 GB")
    assert "the control group allows the time of 1.5" in said["processor"]["text"]


def test_a_gpu_that_does_not_compute_is_wrong(findings, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Test GPU")
    facts = SimpleNamespace(total_memory=8e9, major=3, minor=5)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: facts)
    monkeypatch.setattr(torch, "ones", fails)
    code, said = findings("--offline")
    assert code == 1
    assert said["GPU cuda:0"]["state"] == "WRONG"
    assert said["GPU cuda:0"]["text"] == "Test GPU, 8 GB, compute capability 3.5: no kernel image is available"


def test_a_server_that_does_not_answer_is_not_waited_for(findings, monkeypatch):
    monkeypatch.setattr(doctor, "NETWORK_S", 0.5)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.create_server(("127.0.0.1", 0)) as closed:
        hosts = [f"127.0.0.1:{server.getsockname()[1]}" for server in (silent, closed)]
        closed.close()
        files = {
            host: SimpleNamespace(url=f"https://{host}/file", cached_path=SimpleNamespace(is_file=lambda: False))
            for host in hosts
        }
        monkeypatch.setattr(doctor, "_published", lambda: {"glove": files})
        code, said = findings()
    assert code == 0
    states = [said[f"network: {host}"] for host in hosts]
    assert [finding["state"] for finding in states] == ["note", "note"]
    assert "Connection refused" in states[1]["text"] or "no answer" in states[1]["text"]  # on a machine that is very busy
