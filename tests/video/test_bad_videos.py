"""A folder of everything that is no good video beside a few that are: one record each, and nothing else happens."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import get_args

import commands
import numpy as np
import pytest
from bad_videos import bad_contents, encode
from coded_videos import KINDS as VIDEO_KINDS
from coded_videos import moving

from excl.datasets.video.errors import Reason
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.store.feature_store import FeatureStore

GOOD_NAMES = [b"plain.mp4", b"-dash.mkv", b"new\nline %s.mp4", b"caf\xe9.mp4", "日本.webm".encode()]

# What is forbidden stays so for the command and for what it starts, even if it is root's (prctl(2), capabilities(7)).
AS_ANYBODY = """
import ctypes, os, sys
from excl.workflows.cli import main

if sys.platform == "linux" and os.geteuid() == 0:
    libc, drop_from_bounding_set, dac_override, dac_read_search = ctypes.CDLL(None), 24, 1, 2
    version_and_process, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(version_and_process, sets) == 0
    for capability in (dac_override, dac_read_search):
        assert libc.prctl(drop_from_bounding_set, capability, 0, 0, 0) == 0
        for position in range(3):  # effective, permitted, inheritable
            sets[position] &= ~(1 << capability)
    assert libc.capset(version_and_process, sets) == 0
sys.exit(main())
"""


def bad_entries(folder: Path) -> list[str]:
    """What is no regular file, and cannot be written as one."""
    os.mkfifo(folder / "fifo.mp4")
    (folder / "a_folder.mp4").mkdir()
    (folder / "dangling.mp4").symlink_to(folder / "nowhere")
    (folder / "loop.mp4").symlink_to(folder / "loop.mp4")
    (folder / "device.mp4").symlink_to("/dev/zero")
    (folder / "to_folder.mp4").symlink_to(folder / "a_folder.mp4")
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(folder)  # the name of a socket may not be long
        try:
            server.bind("socket.mp4")
        finally:
            os.chdir(here)
    (folder / "forbidden.mp4").write_bytes(b"x")
    (folder / "forbidden.mp4").chmod(0)
    return ["fifo.mp4", "a_folder.mp4", "dangling.mp4", "loop.mp4", "device.mp4", "to_folder.mp4", "socket.mp4",
            "forbidden.mp4"]  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    scratch, folder = tmp_path_factory.mktemp("scratch"), tmp_path_factory.mktemp("corpus")
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.settimeout(0)
        port = str(listening.getsockname()[1]).encode()
        bad = bad_contents(scratch)
        for name, content in bad.items():
            (folder / name).write_bytes(content.replace(b"PORT", port))
        names = [*bad, *bad_entries(folder)]
        (folder.parent / "outside").mkdir(exist_ok=True)
        encode(folder.parent / "outside" / "secret.mp4")
        for name in GOOD_NAMES:
            path = Path(os.fsdecode(os.fsencode(folder) + b"/" + name))
            temporary = scratch / ("good" + path.suffix)
            codec = {"codec": "libvpx-vp9", "options": {"deadline": "realtime"}} if path.suffix == ".webm" else {}
            encode(temporary, **codec)
            temporary.rename(path)
        yield folder, names, listening


def test_forty_kinds_of_bad_entries_and_five_good_videos(corpus, tmp_path):
    folder, bad, listening = corpus
    assert len(bad) >= 40
    out = tmp_path / "out"
    arguments = ["--videos", str(folder), "--out", str(out), "--weights", "random:0", "--short-side", "32", "--crop", "32",
                 "--device", "cpu", "--timeout-s", "20"]  # fmt: skip
    started = time.monotonic()
    result = commands.run([sys.executable, "-c", AS_ANYBODY, "extract", *arguments], capture_output=True, timeout=300)
    shown = result.stderr.decode(errors="replace")
    assert result.returncode == 3, shown
    assert "Traceback" not in shown
    assert time.monotonic() - started < 200

    manifest = Manifest.read(out)
    lines = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    per_video = [record["id"] for record in lines if record["id"].startswith("video/")]
    assert len(per_video) == len(set(per_video)) == len(bad) + len(GOOD_NAMES)
    failed = {name.removeprefix("video/"): record for name, record in manifest.failed.items()}
    assert sorted(failed) == sorted(Path(name).stem for name in bad)
    for name, record in failed.items():
        assert record["error"] in get_args(Reason), name
        assert name in record["message"]
    assert failed["forbidden"]["error"] == "unreadable"
    assert list(FeatureStore(out)) == sorted(Path(os.fsdecode(name)).stem for name in GOOD_NAMES)
    assert f"{len(GOOD_NAMES)} of {len(bad) + len(GOOD_NAMES)} videos done" in shown
    with pytest.raises(BlockingIOError):  # nobody connected
        listening.accept()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("empty", "empty"),
        ("fifo", "not_a_file"),
        ("dangling", "missing"),
        ("text", "not_a_video"),
        ("outside", "not_a_video"),
        ("sound", "no_video_stream"),
        ("cut", "truncated"),
        ("noise_in_it", "corrupt"),
        ("no_data", "no_frames"),
        ("ten_hours_gap", "bad_times"),
    ],
)
def test_reasons(corpus, name, reason):
    """The obvious cases have the obvious reasons."""
    from excl.datasets.video.errors import VideoError
    from excl.datasets.video.pyav_backend import PyAVVideo
    from excl.datasets.video.sampling import Sampling

    folder, names, _ = corpus
    [path] = [folder / one for one in names if Path(one).stem == name]
    with pytest.raises(VideoError) as error:
        list(PyAVVideo(path, Sampling()))
    assert error.value.reason == reason


def test_damage_can_be_kept(corpus):
    """With on_damage="keep" a damaged video gives what can be decoded, and says what could not."""
    from excl.datasets.video.pyav_backend import PyAVVideo
    from excl.datasets.video.sampling import Sampling

    folder, _, _ = corpus
    video = PyAVVideo(folder / "noise_in_it.mp4", Sampling(on_damage="keep"))
    frames = list(video)
    assert 0 < len(frames) <= 15
    assert video.facts.bad_packets + video.facts.corrupt_frames > 0
    cut = PyAVVideo(folder / "cut.mkv", Sampling(on_damage="keep"))
    assert len(list(cut)) == cut.facts.num_frames < 12
    assert cut.facts.claimed_duration_s == 3.0


def damaged(content: bytes, generator: np.random.Generator) -> bytes:
    """One of six kinds of damage, somewhere."""
    changed, at = bytearray(content), int(generator.integers(len(content)))
    length = int(generator.integers(1, 400))
    match generator.integers(6):
        case 0:
            for place in generator.integers(len(content), size=10):
                changed[place] ^= 1 << int(generator.integers(8))
        case 1:
            changed[at : at + length] = generator.bytes(length)
        case 2:
            del changed[at:]
        case 3:
            changed[at:at] = generator.bytes(length)
        case 4:
            changed[at : at + length] = bytes(min(length, len(changed) - at))
        case 5:
            del changed[at : at + length]
    return bytes(changed)


@pytest.mark.parametrize("kind", ["h264", "h264, transport stream", "hevc", "vp9", "mpeg4", "flv"])
def test_whatever_is_in_a_file_there_are_frames_or_one_error(kind, tmp_path):
    from excl.datasets.video.errors import VideoError
    from excl.datasets.video.geometry import Geometry
    from excl.datasets.video.pyav_backend import PyAVVideo
    from excl.datasets.video.sampling import Sampling

    name, codec, options = VIDEO_KINDS[kind]
    content = moving(tmp_path / name, codec, options, count=40).read_bytes()
    generator, outcomes = np.random.default_rng(0), set()
    for _ in range(25):
        (tmp_path / name).write_bytes(damaged(content, generator))
        for on_damage in ("fail", "keep"):
            video = PyAVVideo(tmp_path / name, Sampling(5, Geometry(48, 48), on_damage=on_damage))
            try:
                assert {frame.shape for frame in video} == {(48, 48, 3)}
                assert video.facts.num_frames > 0
                outcomes.add("frames")
            except VideoError as error:
                outcomes.add(error.reason if name in str(error) else "an error without the file's name")
    assert "frames" in outcomes
    assert len(outcomes) > 1
    assert "an error without the file's name" not in outcomes


def test_a_codec_that_nobody_knows(tmp_path):
    from excl.datasets.video.errors import VideoError
    from excl.datasets.video.pyav_backend import PyAVVideo
    from excl.datasets.video.sampling import Sampling

    path = tmp_path / "new.mkv"
    encode(path)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"V_MPEG4/ISO/AVC", b"V_FUTURE/ISO/X1"))
    with pytest.raises(VideoError, match="of a codec that FFmpeg does not know") as error:
        list(PyAVVideo(path, Sampling()))
    assert error.value.reason == "no_video_stream"
