"""When excl, a library or the machine fails, the run stops and blames no video; one odd video does not stop it."""

from __future__ import annotations

import errno
import json
import shutil

import commands
import pytest
from chain_data import jsonl
from hypothesis import given
from hypothesis import strategies as st
from shared_fixtures import decoding_here, write_video

from excl.pipeline import extract
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.execution import source_files
from excl.pipeline.execution.circuit_breaker import LIMIT, SystemicError, unless_systemic
from excl.pipeline.execution.video_reading import stop_decoders
from excl.workflows.cli import main

pytestmark = pytest.mark.usefixtures("one_thread")
FLAGS = ["--weights", "random:0", "--short-side", "32", "--crop", "32", "--device", "cpu"]
NUM_VIDEOS = LIMIT + 1

# Python runs a module of this name at the start of every process: here, of the decoder's.
BROKEN = """
import sys
import av
original = av.open
def broken(url, *arguments, **options):
    if {wanted!r} in str(url):
        raise TypeError("open() got an unexpected argument")
    return original(url, *arguments, **options)
av.open = broken
"""
CRASHING = BROKEN.replace('raise TypeError("open() got an unexpected argument")', "__import__('os').abort()")
NOT_INSTALLED = "import sys; sys.modules['av'] = None"
KILLED = "import av, os, signal; av.open = lambda *_, **__: os.kill(os.getpid(), signal.SIGSEGV)"


@pytest.fixture
def videos(tmp_path):
    (tmp_path / "videos").mkdir()
    first = write_video(tmp_path / "videos" / "v0.mp4", [i * 40 for i in range(30)], rate=25, width=64, height=48)
    for number in range(1, NUM_VIDEOS):
        shutil.copy(first, tmp_path / "videos" / f"v{number}.mp4")
    return tmp_path / "videos"


@pytest.fixture
def breaking(tmp_path, monkeypatch):
    """`breaking(code)` runs the code at the start of every Python process; `breaking("")` ends that."""

    def breaking(code):
        (tmp_path / "site").mkdir(exist_ok=True)
        (tmp_path / "site" / "sitecustomize.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
        monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
        stop_decoders()

    return breaking


@pytest.fixture
def said(capfd, caplog):
    """`said()`: all that reached the terminal, by this process and by those that it started."""
    return lambda: caplog.text + capfd.readouterr().err


def recorded(out):
    manifest = Manifest.read(out)
    return [manifest.records[name] for name in manifest.ids("video/")]


@given(st.lists(st.sampled_from(["done", "corrupt", "cause a", "cause b", "crashed"]), max_size=40), st.booleans())
def test_what_is_passed_on(results, works):
    """Against the rule said otherwise: nothing is lost, and LIMIT failures of a kind since the last success are the end."""
    found = []
    stopped = False
    try:
        for result in unless_systemic(
            results,
            cause=lambda result: result if result.startswith(("cause", "crashed")) else None,
            works=lambda: works,
            is_done=lambda result: result == "done",
            message=str,
        ):
            found.append(result)
    except SystemicError:
        stopped = True
    parts = " ".join(results).replace("cause ", "").split("done")  # of one letter a failure of our own
    of_ours = any(part.split().count(letter) >= LIMIT for part in parts for letter in "ab")
    assert stopped == (of_ours or (not works and parts[0].split().count("crashed") >= LIMIT))
    if stopped:
        last_done = max((i for i, result in enumerate(found) if result == "done"), default=-1)
        assert not any(result.startswith("cause") for result in found[last_done + 1 :])
        assert works or "crashed" not in found[last_done + 1 :] or last_done >= 0
    else:
        assert sorted(found) == sorted(results)


@pytest.mark.parametrize(
    "broken",
    [
        (BROKEN.format(wanted=""), "TypeError"),
        (NOT_INSTALLED, "exit code 1, ModuleNotFoundError"),
        (KILLED, "SIGSEGV"),
    ],
    ids=["an error in the program", "a library that is not there", "a library that crashes"],
)
def test_a_run_stops_when_the_decoder_is_broken_and_goes_on_when_mended(videos, tmp_path, breaking, said, broken):
    command = ["extract", "--videos", str(videos), "--out", str(tmp_path / "out"), *FLAGS]
    code, reason = broken
    breaking(code)
    assert main(command) == 1
    output = said()
    assert (reason in output, output.count("in a row failed in the same way"), "Traceback" in output) == (True, 1, False)
    assert recorded(tmp_path / "out") == []
    breaking("")
    assert main(command) == 0
    assert len(recorded(tmp_path / "out")) == NUM_VIDEOS


def test_videos_that_crash_the_decoder_one_after_another_are_to_blame_if_it_works(videos, tmp_path, breaking):
    command = ["extract", "--videos", str(videos), "--out", str(tmp_path / "out"), *FLAGS]
    breaking(CRASHING.format(wanted=str(videos)))
    assert main(command) == 3
    assert [record["error"] for record in recorded(tmp_path / "out")] == ["crashed"] * NUM_VIDEOS


@pytest.mark.parametrize("command", ["probe", "decode"])
def test_other_commands_stop_too(videos, tmp_path, breaking, said, command):
    breaking(BROKEN.format(wanted=""))
    out = ["--out", str(tmp_path / "out")] if command == "decode" else []
    assert main([command, "--videos", str(videos), *out]) == 1
    assert "in a row failed in the same way" in said()


def test_workers_stop_too(videos, tmp_path, breaking, said):
    command = ["extract", "--videos", str(videos), "--out", str(tmp_path / "out"), *FLAGS, "--executor", "local"]
    breaking(BROKEN.format(wanted=""))
    with commands.forked_workers():
        assert main(command) == 1
    assert "in a row failed in the same way" in said()
    assert recorded(tmp_path / "out") == []


def test_one_video_for_which_a_library_fails_does_not_stop_the_run(videos, tmp_path, breaking, said):
    """Its failure is recorded as ours, with where it was raised, and the next run tries it again."""
    command = ["extract", "--videos", str(videos), "--out", str(tmp_path / "out"), *FLAGS]
    breaking(BROKEN.format(wanted="v3"))
    assert main(command) == 3
    assert "Traceback" not in said()
    odd = Manifest.read(tmp_path / "out").records["video/v3"]
    assert (odd["error"], "TypeError" in odd["message"], "in broken" in odd["details"]) == ("internal", True, True)
    assert len(Manifest.read(tmp_path / "out").failed) == 1
    breaking("")
    assert main(command) == 0
    assert len(recorded(tmp_path / "out")) == NUM_VIDEOS


def recipe(tmp_path, videos):
    rows = [{"video_id": f"v{n}", "query": "it starts", "start_s": 0, "end_s": 1.0} for n in range(NUM_VIDEOS)]
    jsonl(tmp_path / "train.jsonl", rows[:4])
    jsonl(tmp_path / "val.jsonl", rows[4:])
    (tmp_path / "vectors.txt").write_text("it 0.1 0.2\nstarts 0.3 0.4\n")
    text = f"""
        [extract]
        videos = {json.dumps(str(videos))}
        out = "features"
        weights = "random:0"
        short_side = 32
        crop = 32
        device = "cpu"
        [tokenise]
        dataset = "jsonl"
        train = ["train.jsonl"]
        val = ["val.jsonl"]
        glove = "vectors.txt"
        out = "queries"
    """
    (tmp_path / "mine.toml").write_text(text)
    return str(tmp_path / "mine.toml")


def test_the_traceback_is_in_the_log_of_the_run(videos, tmp_path, breaking, said):
    breaking(BROKEN.format(wanted=""))
    assert main(["run", recipe(tmp_path, videos)]) == 1
    assert "Traceback" not in said()
    log = next((tmp_path / "logs").iterdir()).read_text()
    assert 'TypeError("open() got' in log
    assert not (tmp_path / "queries").exists()
    breaking("")
    assert main(["run", recipe(tmp_path, videos)]) == 0


def test_a_run_whose_videos_all_failed_does_not_go_on(tmp_path, said):
    (tmp_path / "videos").mkdir()
    for number in range(NUM_VIDEOS):
        (tmp_path / "videos" / f"v{number}.mp4").write_bytes(b"no video at all")
    with decoding_here():
        assert main(["run", recipe(tmp_path, tmp_path / "videos")]) == 1
    assert f"every video failed ({NUM_VIDEOS} not_a_video)" in said()
    assert not (tmp_path / "queries").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left"),
        (RuntimeError("CUDA error: unspecified launch failure"), "launch failure: an error in excl or in a library"),
    ],
    ids=["too many files", "no space", "a device that is gone"],
)
def test_what_is_wrong_with_the_machine_is_not_recorded_of_a_video(videos, tmp_path, monkeypatch, said, wrong):
    error, message = wrong

    def fail(*_arguments, **_options):
        raise error

    command = ["extract", "--videos", str(videos), "--out", str(tmp_path / "out"), *FLAGS]
    with monkeypatch.context() as patch, decoding_here():
        patch.setattr(source_files if isinstance(error, OSError) else extract, "sha256_file", fail)
        assert main(command) == 1
    output = said()
    assert (output.count(message), "Traceback" in output) == (1, False)
    assert recorded(tmp_path / "out") == []
    with decoding_here():
        assert main(command) == 0
