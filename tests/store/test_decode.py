"""`excl decode`: frames in shards, without loss or as JPEG, and the features made of them."""

from __future__ import annotations

import dataclasses
import os
import shutil

import h5py
import numpy as np
import pytest
from coded_videos import moving
from killing import left_by_kills
from shared_fixtures import write_video

from excl.datasets.video.discovery import find_videos
from excl.datasets.video.errors import VideoError
from excl.datasets.video.geometry import Geometry
from excl.datasets.video.pyav_backend import PyAVVideo
from excl.datasets.video.sampling import Sampling
from excl.pipeline import decode, extract
from excl.pipeline.artifacts.header import RecipeMismatchError
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.store.feature_store import FeatureStore
from excl.pipeline.store.frame_store import FrameStore, StoredFrames
from excl.workflows.cli import main

pytestmark = pytest.mark.usefixtures("one_thread", "decoded_here")
SMALL = {"short_side": 48, "crop": 40}
LUMA = np.array([0.299, 0.587, 0.114])
COUNTS = [40, 100, 31, 70, 55]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for number, frames in enumerate(COUNTS):
        write_video(folder / f"v{number}.mp4", [i * 40 for i in range(frames)], rate=25, width=64, height=48)
    return folder


def straight(path):
    return np.stack(list(PyAVVideo(path, Sampling(5, Geometry(**SMALL)))))


def stored(out):
    videos = decode.stored_videos(out, fps=5.0, **SMALL, backends=("pyav",))
    return {video_id: StoredFrames(path, video_id) for video_id, path in videos.items()}


def shard_bytes(out):
    return {path.name: path.read_bytes() for path in sorted((out / "shards").iterdir())}


def test_every_bit_comes_back(videos, tmp_path, caplog):
    caplog.set_level("INFO")
    out = decode.run(decode.DecodeConfig(videos=videos, out=tmp_path / "out", shard_videos=2, **SMALL))
    for video_id, video in stored(out).items():
        np.testing.assert_array_equal(np.stack(list(video)), straight(videos / f"{video_id}.mp4"))
    assert len(list((out / "shards").iterdir())) == 3
    assert os.listdir(out / "parts") == []
    records = Manifest.read(out).records
    assert [records[f"shard/{i:05d}"]["num_frames"] for i in range(3)] == [28, 21, 11]
    assert "decode: 5 videos, about 59 frames" in caplog.text  # 5 times 296 / 25 s, of which 60 were made


def test_jpeg_is_a_choice_and_another_recipe(videos, tmp_path):
    small = {"weights": "random:0", "device": "cpu", "short_side": 32, "crop": 32}
    for pictures in ("png", "jpeg:90"):
        name = pictures[:4].rstrip(":")
        out = tmp_path / name
        decode.run(decode.DecodeConfig(videos=videos, out=out, pictures=pictures, short_side=32, crop=32))
        extract.run(extract.ExtractConfig(frames=out, out=tmp_path / f"{name}-features", **small))
    lossless, lossy = FeatureStore(tmp_path / "png-features"), FeatureStore(tmp_path / "jpeg-features")
    assert (lossless.recipe["pictures"], lossy.recipe["pictures"]) == ("png", "jpeg:90")
    assert not np.array_equal(lossless["v1"].features, lossy["v1"].features)
    with pytest.raises(RecipeMismatchError, match="pictures"):  # features of the two do not mix
        extract.run(extract.ExtractConfig(frames=tmp_path / "jpeg", out=tmp_path / "png-features", **small))
    with pytest.raises(RecipeMismatchError, match="pictures"):
        decode.run(decode.DecodeConfig(videos=videos, out=tmp_path / "png", pictures="jpeg:90", short_side=32, crop=32))


def test_jpeg_pictures_are_near(tmp_path):
    path = moving(tmp_path / "a.mp4", "libx264", {"preset": "veryfast"})
    exact, bits = straight(path), {}
    for pictures, least, most in (("png", 0, 0), ("jpeg:98", 0.1, 3), ("jpeg:50", 3, 20)):
        out = decode.run(decode.DecodeConfig(videos=path, out=tmp_path / pictures, pictures=pictures, **SMALL))
        found = np.stack(list(stored(out)["a"])).astype(int)
        assert least <= np.abs((found - exact) @ LUMA).mean() <= most  # JPEG keeps colours at half the size
        bits[pictures] = Manifest.read(out).records["shard/00000"]["bytes"]
    assert bits["jpeg:50"] < bits["jpeg:98"] < bits["png"]


def test_kill_9_at_every_write(videos, tmp_path):
    for name in ("v0", "v2", "v4"):  # a full shard and one more
        shutil.copy(videos / f"{name}.mp4", tmp_path)
    config = decode.DecodeConfig(videos=tmp_path, out=tmp_path / "whole", shard_videos=2, **SMALL)
    killed = left_by_kills(config, tmp_path / "killed", stage=decode)
    for out in killed:
        decode.run(dataclasses.replace(config, out=out))
        assert shard_bytes(out) == shard_bytes(config.out)
        assert os.listdir(out / "parts") == []
    assert len(killed) > 20


@pytest.mark.parametrize("place", ["pictures", "videos", "the file's end"])
def test_damaged_frames_cost_one_video(videos, tmp_path, place):
    """Of a shard whose bytes changed on the disk, every video that is not sound is refused, and named."""
    out = decode.run(decode.DecodeConfig(videos=videos, out=tmp_path / "frames", short_side=32, crop=32, shard_videos=2))
    shard = sorted((out / "shards").iterdir())[0]
    if place == "the file's end":
        os.truncate(shard, shard.stat().st_size // 2)
    else:
        with h5py.File(shard, "r") as file:
            at = file[place].id.get_offset() + (file["picture_offsets"][20] + 50 if place == "pictures" else 5)
        with shard.open("r+b") as file:
            file.seek(at)
            file.write(b"\xff\xff\xff")
    features = tmp_path / "features"
    flags = ["--weights", "random:0", "--short-side", "32", "--crop", "32", "--device", "cpu"]
    assert main(["extract", "--frames", str(out), "--out", str(features), *flags]) == 3
    lost = ["v1"] if place == "pictures" else ["v0", "v1"]
    failed = Manifest.read(features).failed
    assert sorted(failed) == [f"video/{name}" for name in lost]
    assert all(record["error"] == "corrupt" and shard.name in record["message"] for record in failed.values())
    assert sorted(FeatureStore(features)) == [f"v{i}" for i in range(5) if f"v{i}" not in lost]


def test_a_list_of_videos(videos, tmp_path, monkeypatch):
    listed = tmp_path / "list.txt"
    shutil.copy(videos / "v0.mp4", tmp_path / os.fsdecode(b"caf\xe9.mp4"))
    v3 = os.fsencode(videos / "v3.mp4")
    content = b"\xef\xbb\xbf" + v3 + b"\r\n\n# a remark\n caf\xe9.mp4 \nnowhere.mp4\n" + v3 + b"\n"
    listed.write_bytes(content)
    found = find_videos(listed)
    assert found["v3"] == videos / "v3.mp4"
    assert found[os.fsdecode(b"caf\xe9")] == tmp_path / os.fsdecode(b"caf\xe9.mp4")  # from the list's folder
    monkeypatch.chdir(tmp_path)
    flags = ["--short-side", "32", "--crop", "32"]
    assert main(["decode", "--videos", "list.txt", "--out", "out", *flags]) == 3
    assert Manifest.read(tmp_path / "out").failed["video/nowhere"]["error"] == "missing"
    listed.write_text("\n\n")
    with pytest.raises(ValueError, match="an empty list"):
        find_videos(listed)
    listed.write_text("a/v.mp4\nb/v.mkv\n")
    with pytest.raises(ValueError, match="share the id 'v'"):
        find_videos(listed)


def test_damage_that_is_kept_is_told(tmp_path, caplog):
    path = write_video(tmp_path / "cut.mkv", [i * 40 for i in range(100)], width=64, height=48)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    flags = ["--videos", str(path), "--out", str(tmp_path / "out"), "--short-side", "32", "--crop", "32"]
    assert main(["decode", *flags]) == 3
    assert "--on-damage keep uses what there is; of a video that failed before, with --retry-failed" in caplog.text
    assert main(["decode", *flags, "--on-damage", "keep", "--retry-failed"]) == 0
    assert "cut: damaged, and kept: " in caplog.text
    assert " of 4.0 s" in caplog.text
    assert "1 damaged and kept: cut" in caplog.text
    quality = Manifest.read(tmp_path / "out").records["video/cut"]["quality"]
    assert quality["duration_s"] < 3 < quality["claimed_duration_s"]
    assert quality["frames_decoded"] < 70
    assert next(iter(FrameStore(tmp_path / "out")["cut"])).shape == (32, 32, 3)


def test_too_little_room_is_told_before(videos, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 1000))
    decode.run(decode.DecodeConfig(videos=videos, out=tmp_path / "out", **SMALL))
    assert "will probably be full before the end" in caplog.text
    assert len(stored(tmp_path / "out")) == 5


def test_another_decoder_is_another_recipe(videos, tmp_path):
    pytest.importorskip("decord")
    decode.run(decode.DecodeConfig(videos=videos, out=tmp_path / "out", backend="decord", **SMALL))
    [record] = [r for r in Manifest.read(tmp_path / "out").records.values() if "file" in r]
    assert StoredFrames(tmp_path / "out" / record["file"], "v1").facts.backend == "decord"
    with pytest.raises(RecipeMismatchError, match="backend"):
        decode.run(decode.DecodeConfig(videos=videos, out=tmp_path / "out", **SMALL))
    with pytest.raises(ValueError, match=r"backend is .*decord.*asked for is .*pyav"):
        stored(tmp_path / "out")


def test_many_decoders_or_one_give_the_same_shards(videos, tmp_path):
    from excl.pipeline.execution.video_reading import ReadingSeveral

    for decoders in (1, 4):
        reading = ReadingSeveral(decoders=decoders)
        decode.run(decode.DecodeConfig(videos=videos, out=tmp_path / str(decoders), reading=reading, **SMALL))
    assert shard_bytes(tmp_path / "1") == shard_bytes(tmp_path / "4")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pictures": "jpeg"}, "neither 'png' nor 'jpeg:QUALITY'"),
        ({"pictures": "jpeg:0"}, "neither 'png' nor 'jpeg:QUALITY'"),
        ({"pictures": "webp"}, "neither 'png' nor 'jpeg:QUALITY'"),
        ({"short_side": 16}, "the least is 32"),
        ({"short_side": "226-downscale-only"}, "neither a number of pixels"),
        ({"short_side": "120-upscale-only"}, "do not fit into a short side of 120"),
    ],
)
def test_impossible_settings(settings, message, tmp_path, capsys):
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in settings.items()]
    with pytest.raises(SystemExit):
        main(["decode", "--videos", "x", "--out", str(tmp_path / "out"), *flags])
    assert message.replace("'", "") in " ".join("".join(capsys.readouterr()).replace("│", "").split()).replace("'", "")


def test_upscale_only_keeps_large_pictures_as_they_are(tmp_path):
    """Of a large picture the middle pixels, of a small one the same as with a fixed short side."""
    large = write_video(tmp_path / "large.mp4", [0, 200], width=256, height=192)
    flags = ["--short-side", "100-upscale-only", "--crop", "96"]
    assert main(["decode", "--videos", str(large), "--out", str(tmp_path / "out"), *flags]) == 0
    [shard] = (tmp_path / "out" / "shards").iterdir()
    found = next(iter(StoredFrames(shard, "large")))
    whole = next(iter(PyAVVideo(large, Sampling(5, Geometry(192, 192)))))  # columns 32 to 224 of the source
    assert np.abs(found.astype(int) - whole[48:144, 48:144]).max() <= 2
    small = write_video(tmp_path / "small.mp4", [0, 200], width=64, height=48)
    upscaled, fixed = (
        np.stack(list(PyAVVideo(small, Sampling(5, Geometry.parse(size, 96))))) for size in ("100-upscale-only", 100)
    )
    np.testing.assert_array_equal(upscaled, fixed)


def test_frames_that_are_no_longer_what_they_were(tmp_path):
    with pytest.raises(VideoError, match=r"nothing\.h5: no sound file of frames"):
        StoredFrames(tmp_path / "nothing.h5", "a")
