"""Decoding in a process of its own: the same frames, and no video that can take the run with it."""

from __future__ import annotations

import dataclasses
import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from shared_fixtures import write_video

from excl.datasets.video.container import Limits
from excl.datasets.video.decoder_process import DecoderProcess
from excl.datasets.video.errors import InternalError, VideoError
from excl.datasets.video.geometry import Geometry
from excl.datasets.video.pyav_backend import PyAVVideo
from excl.datasets.video.sampling import Sampling

SAMPLING = Sampling(5.0, Geometry(48, 40))
GUARD_S = 120  # it only guards against waiting for ever: a machine that is busy with other things is slow


@pytest.fixture
def decoder():
    process = DecoderProcess(timeout_s=GUARD_S, memory_bytes=2**32)
    yield process
    process.kill()


@pytest.fixture
def video(tmp_path):
    return write_video(tmp_path / "good.mp4", [i * 40 for i in range(60)], rate=25, width=64, height=48)


def test_the_same_frames_and_facts(decoder, video):
    inside = PyAVVideo(video, SAMPLING)
    wanted = np.stack(list(inside))
    for _ in range(3):  # one process serves many videos
        outside = decoder.read(video, SAMPLING)
        np.testing.assert_array_equal(np.stack(list(outside)), wanted)
        assert outside.facts == inside.facts


def test_errors_come_through_and_the_next_video_is_read(decoder, video, tmp_path):
    (tmp_path / "bad.mp4").write_text("no video")
    with pytest.raises(VideoError, match=r"bad\.mp4: cannot be decoded") as error:
        list(decoder.read(tmp_path / "bad.mp4", SAMPLING))
    assert error.value.reason == "not_a_video"
    assert len(list(decoder.read(video, SAMPLING))) == 12
    before = decoder._process.pid
    assert len(list(decoder.read(video, SAMPLING))) == 12
    assert decoder._process.pid == before  # good videos share one


def test_a_consumer_that_goes_away_leaves_nothing_for_the_next(decoder, video):
    next(iter(decoder.read(video, SAMPLING)))
    assert len(list(decoder.read(video, SAMPLING))) == 12


@pytest.mark.parametrize(
    ("code", "reason", "message"),
    [
        ("import time; time.sleep(60)", "timeout", "gave nothing for 1 s"),
        ("while True: pass", "timeout", "gave nothing for 1 s"),
        ("import os; os.abort()", "crashed", "SIGABRT"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashed", "SIGSEGV"),
        ("import sys; sys.stdout.buffer.write(b'F'); sys.stdout.flush(); raise SystemExit(7)", "internal", "exit code 7"),
        ("raise KeyError('of nobody')", "internal", "exit code 1, KeyError: 'of nobody'"),
    ],
    ids=["sleeps", "spins", "aborts", "segfaults", "exits in the middle", "raises"],
)
def test_a_decoder_that_misbehaves_costs_one_video(decoder, video, code, reason, message):
    if reason == "timeout":
        decoder.timeout_s = 1
    good, decoder.command = decoder.command, [sys.executable, "-c", code]
    with pytest.raises((VideoError, InternalError), match=message) as error:
        list(decoder.read(video, SAMPLING))
    assert error.value.reason == reason
    decoder.command, decoder.timeout_s = good, GUARD_S
    assert len(list(decoder.read(video, SAMPLING))) == 12


def test_memory_is_limited(tmp_path):
    """A picture that needs more than the decoder may have is refused, and the next video is read.

    Which reason it gets depends on the allocation that fails: some of them look to FFmpeg like damage.
    """
    big = write_video(tmp_path / "big.mp4", [0, 40], width=7680, height=4320, options={"preset": "ultrafast"})
    small = write_video(tmp_path / "small.mp4", [0, 40], width=64, height=48)
    narrow = DecoderProcess(timeout_s=GUARD_S, memory_bytes=64 * 2**20)
    with pytest.raises(VideoError, match=r"big\.mp4"):
        list(narrow.read(big, SAMPLING))
    assert len(list(narrow.read(small, SAMPLING))) == 1
    narrow.kill()


def test_an_answer_that_was_not_read_to_its_end_is_nobody_elses(decoder, video, tmp_path):
    """However a reader was stopped, even before it could clean up, the next order gets its own answer."""
    decoder.ask({"path": str(video), "sampling": dataclasses.asdict(SAMPLING)})
    assert decoder.receive(video)[0] == b"F"
    assert decoder.probe(video, Limits()).codec == "h264"
    assert len(list(decoder.read(video, SAMPLING))) == 12


def test_many_open_files(video):
    """More than select(2) can watch."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard < 1200:
        pytest.skip(f"no more than {hard} files may be open here")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1200, hard))
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        process = DecoderProcess(timeout_s=GUARD_S, memory_bytes=2**32)
        assert len(list(process.read(video, SAMPLING))) == 12
        process.kill()
    finally:
        for descriptor in opened:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_limit_on_memory_that_was_there_before(video):
    """As a cluster's scheduler sets it: it stays, and videos are read."""
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (20 * 2**30, 20 * 2**30))\n"
        "import sys; from excl.workflows.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "probe", "--videos", str(video)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, "h264" in result.stdout) == (0, True), result.stdout


def is_alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE  # which only waits for whoever inherited it
    except psutil.NoSuchProcess:
        return False


def test_it_ends_with_its_parent(video):
    """Also when the parent is killed in the middle of a video."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            process = DecoderProcess(timeout_s=GUARD_S, memory_bytes=2**32)
            frames = iter(process.read(video, SAMPLING))
            next(frames)
            os.write(writing, str(process._process.pid).encode())
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(writing)
    with os.fdopen(reading) as told:
        decoder = int(told.read())
    deadline = time.monotonic() + GUARD_S
    while is_alive(decoder) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_alive(decoder)


def test_a_fork_has_a_decoder_of_its_own(decoder, video):
    assert len(list(decoder.read(video, SAMPLING))) == 12
    pid = os.fork()
    if pid == 0:
        count = len(list(decoder.read(video, SAMPLING)))
        decoder.kill()
        os._exit(0 if count == 12 else 1)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert len(list(decoder.read(video, SAMPLING))) == 12
