"""Files with times that go back, containers that are not read, and files that a folder leaves out: each is said in words."""

from __future__ import annotations

import re
import shutil
import subprocess
from fractions import Fraction

import av
import numpy as np
import pytest
from conftest import read_number, write_video
from kinds import HEIGHT, KINDS, by_the_rule, even, picture, write
from PIL import Image

from excl.datasets.backends import open_sampled, sample_frames
from excl.datasets.picture import Geometry
from excl.datasets.sampling import Sampling
from excl.datasets.video_errors import VideoError
from excl.pipeline.manifest import Manifest
from excl.workflows.cli import main

FLAGS = ["--weights", "random:0", "--short-side", "32", "--crop", "32", "--device", "cpu"]
X264 = {"preset": "veryfast", "crf": "10", "bf": "0"}


def read(path, on_damage):
    """The numbers of the frames that are sampled at 5 a second, and the facts."""
    video = open_sampled(path, Sampling(5, Geometry(HEIGHT, HEIGHT), on_damage=on_damage))
    return [read_number(frame) for frame in video], video.facts


def stepping_back(folder, times_ms):
    """Matroska, whose packets have these times in this order, in milliseconds."""

    def edit(packets):
        for packet, time in zip(packets, times_ms, strict=True):
            packet.pts, packet.dts, packet.time_base = time, min(times_ms), Fraction(1, 1000)
            yield packet

    path = folder / "a.mkv"
    return write(path, even(len(times_ms)), base=Fraction(1, 1000), options=X264, edit=edit)


def expected(times_ms, last_ms=33):
    """By the rule: the frames sorted by time, of those with one time the last."""
    order = sorted(range(len(times_ms)), key=lambda i: (times_ms[i], i))
    times = [Fraction(times_ms[i], 1000) for i in order]
    return by_the_rule(times, times[-1] + Fraction(last_ms, 1000), times[0], order)


@pytest.fixture
def mended(tmp_path):
    """Run the ffmpeg command that an error gives, and return what it wrote."""

    def run(message):
        if shutil.which("ffmpeg") is None:
            pytest.skip("the program ffmpeg is not installed")
        command = re.search(r"`(ffmpeg [^`]+)`", message)[1]
        subprocess.run(f"{command} -v error", shell=True, check=True, stdin=subprocess.DEVNULL)
        return next(path for path in tmp_path.iterdir() if "-mended" in path.name)

    return run


def one_step_back(at=101, back_ms=32):
    return [200 + 33 * i - (33 + back_ms if i >= at else 0) for i in range(150)]


def test_a_small_step_back_is_refused_with_what_mends_it(tmp_path, mended):
    path = stepping_back(tmp_path, one_step_back())
    with pytest.raises(VideoError, match=r"time steps back by 0\.032 s after 3\.300 s; .*--on-damage keep") as error:
        read(path, "fail")
    assert error.value.reason == "bad_times"
    numbers, facts = read(mended(str(error.value)), "fail")
    assert facts.clock_restarts == 0
    wanted = expected(one_step_back())
    assert len(numbers) == len(wanted)
    assert max(abs(a - b) for a, b in zip(numbers, wanted, strict=True)) <= 1  # the frame that came late is left out


def test_a_small_step_back_that_is_kept_is_put_in_order(tmp_path):
    path = stepping_back(tmp_path, one_step_back())
    numbers, facts = read(path, "keep")
    assert numbers == expected(one_step_back())
    assert (facts.reordered_frames, facts.clock_restarts, facts.frames_decoded) == (1, 0, 150)


@pytest.mark.parametrize("seed", range(6))
def test_frames_that_come_late_are_put_in_order(tmp_path, seed):
    """Random times, of which each is at most 12 frames late; some are equal."""
    generator = np.random.default_rng(seed)
    times = [200 + 33 * i for i in range(90)]
    for at in generator.choice(np.arange(14, 80), 5, replace=False):
        times[at] -= 33 * int(generator.integers(1, 12))
    numbers, facts = read(stepping_back(tmp_path, times), "keep")
    assert numbers == expected(times)
    assert facts.clock_restarts == 0
    late = sum(time <= max(times[:number], default=-1) for number, time in enumerate(times))
    assert facts.reordered_frames == late > 0


def recordings(folder, *lengths):
    """Transport streams of so many frames one after another in one file; the numbers go on, the clock starts again."""
    content, begun = b"", 0
    for length in lengths:
        part = folder / f"part{begun}.ts"
        write(part, even(length), options=X264, content=lambda number, begun=begun: picture(number + begun))
        content += part.read_bytes()
        part.unlink()
        begun += length
    (folder / "a.ts").write_bytes(content)
    return folder / "a.ts"


@pytest.mark.parametrize("lengths", [(90, 60), (60, 90, 45), (9, 75), (45, 1, 60)], ids=str)
def test_a_clock_that_starts_again(tmp_path, mended, lengths):
    path = recordings(tmp_path, *lengths)
    wanted = by_the_rule(even(sum(lengths)), Fraction(sum(lengths), 30), Fraction(0), list(range(sum(lengths))))
    numbers, facts = read(path, "keep")
    assert numbers == wanted
    assert (facts.clock_restarts, facts.reordered_frames) == (len(lengths) - 1, 0)
    first_s = (lengths[0] - 1) / 30
    with pytest.raises(VideoError, match=rf"the clock starts again after {first_s:.3f} s, .*two recordings") as error:
        read(path, "fail")
    if 1 not in lengths:  # whose only frame lasts nothing for ffmpeg
        assert abs(len(read(mended(str(error.value)), "fail")[0]) - len(wanted)) <= 1


def test_a_clock_that_starts_again_in_matroska(tmp_path, mended):
    times = [200 + 33 * i for i in range(60)] + [200 + 33 * i for i in range(45)]
    path = stepping_back(tmp_path, times)
    numbers, facts = read(path, "keep")
    assert facts.clock_restarts == 1
    assert numbers == expected([200 + 33 * i for i in range(105)])
    with pytest.raises(VideoError, match="the clock starts again") as error:
        read(path, "fail")
    mended_numbers, _ = read(mended(str(error.value)), "fail")
    assert mended_numbers[0] == 0
    assert mended_numbers[-1] > 100


def test_the_record_says_what_was_mended(tmp_path, caplog):
    (tmp_path / "videos").mkdir()
    recordings(tmp_path / "videos", 45, 60)
    command = ["extract", "--videos", str(tmp_path / "videos"), "--out", str(tmp_path / "out"), *FLAGS]
    assert main(command) == 3
    assert main([*command, "--on-damage", "keep", "--retry-failed"]) == 0
    record = Manifest.read(tmp_path / "out").records["video/a"]
    assert record["damage"] == "restarts of the clock, which was continued: 1"
    assert record["quality"]["clock_restarts"] == 1
    assert "a: damaged, and kept: restarts of the clock" in caplog.text


def test_transparent_parts_of_a_gif_are_white(tmp_path):
    made = KINDS["GIF with transparent parts"](tmp_path)
    frames = list(open_sampled(made.path, Sampling(5, Geometry(HEIGHT, HEIGHT))))
    assert frames[0][-10, 5].tolist() == [128] * 3  # in the middle of the picture there is no hole
    whole = av.open(str(made.path)).decode(video=0)
    assert next(whole).to_ndarray(format="rgb24")[-10, 5].tolist() == [255] * 3


def raw(path):
    """The packets of a video alone, without a container."""
    with av.open(str(path)) as container:
        return b"".join(bytes(packet) for packet in container.demux(video=0))


@pytest.mark.parametrize("suffix", ["webp", "png", "264", "m2v", "nut", "ivf", "mxf"])
def test_a_container_that_is_not_read_is_named_with_what_converts_it(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    pictures = [Image.fromarray(picture(number)) for number in range(12)]
    if suffix in {"webp", "png"}:
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=100)
    elif suffix in {"264", "m2v"}:
        codec, inside = ("libx264", "a.ts") if suffix == "264" else ("mpeg2video", "a.mpg")
        path.write_bytes(raw(write(tmp_path / inside, even(30, 25), codec=codec, options={}, rate=25, base=Fraction(1, 25))))
    else:
        codec = {"nut": "mpeg4", "ivf": "libvpx", "mxf": "mpeg2video"}[suffix]
        write(path, even(30, 25), codec=codec, options={"b": "4M"}, rate=25, base=Fraction(1, 25))
    with pytest.raises(VideoError, match=r"is an? .*, which is not read here: files of MP4/MOV.*`.*` converts it") as error:
        next(sample_frames(path))
    assert error.value.reason == "not_a_video"
    if suffix in {"nut", "mxf"} and shutil.which("ffmpeg"):
        command = re.search(r"`(ffmpeg [^`]+)`", str(error.value))[1]
        subprocess.run(f"{command} -v error", shell=True, check=True, stdin=subprocess.DEVNULL)
        assert sum(len(chunk.frames) for chunk in sample_frames(tmp_path / "a.mp4")) == 6


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "bmp"])
def test_a_picture_is_no_video_whatever_its_name(tmp_path, kind):
    path = tmp_path / "a.mp4"
    Image.fromarray(picture(1)).save(path, format=kind)
    with pytest.raises(VideoError, match="and no video") as error:
        next(sample_frames(path))
    assert error.value.reason == "not_a_video"


def test_rubbish_is_still_rubbish(tmp_path):
    (tmp_path / "a.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    with pytest.raises(VideoError, match="is it a whole video file"):
        next(sample_frames(tmp_path / "a.mp4"))


@pytest.fixture
def mixed(tmp_path):
    """A folder of two videos and files of other kinds."""
    folder = tmp_path / "videos"
    (folder / "inner").mkdir(parents=True)
    write_video(folder / "a.mp4", [i * 40 for i in range(30)], rate=25, width=64, height=48)
    vob = write(folder / "b.mpg", even(30, 25), codec="mpeg2video", options={"b": "2M"}, rate=25, base=Fraction(1, 25))
    vob.rename(folder / "inner" / "b.vob")
    for name in ("c.rmvb", "inner/d.RMVB", "e.dv", "notes.txt", ".webp", "f.srt"):
        (folder / name).write_bytes(b"something")
    (folder / "a.gif").write_bytes(b"a preview of a.mp4")
    return folder


def test_files_that_are_left_out_are_counted(mixed, tmp_path, caplog, capsys):
    line = "left out are files whose containers are not read: 1 .dv, 2 .rmvb"
    assert main(["probe", "--videos", str(mixed)]) == 0
    assert line in caplog.text
    assert "2 files, 0 with problems" in capsys.readouterr().out
    for command, flags in (("extract", FLAGS), ("decode", ["--short-side", "32", "--crop", "32"])):
        caplog.clear()
        assert main([command, "--videos", str(mixed), "--out", str(tmp_path / command), *flags]) == 0
        assert line in caplog.text
        assert sorted(Manifest.read(tmp_path / command).ids("video/")) == ["video/a", "video/b"]


def test_a_folder_of_such_files_alone(tmp_path, caplog):
    (tmp_path / "a.rmvb").write_bytes(b"something")
    assert main(["probe", "--videos", str(tmp_path)]) == 2
    assert "no videos there" in caplog.text
    assert "left out are files whose containers are not read: 1 .rmvb" in caplog.text


@pytest.mark.parametrize("suffix", ["vob", "f4v", "divx", "qt", "m2t", "mpe", "ogm"])
def test_suffixes_of_containers_that_are_read(tmp_path, suffix):
    inner = {"vob": "mpg", "f4v": "mp4", "divx": "avi", "qt": "mov", "m2t": "ts", "mpe": "mpg", "ogm": "ogg"}[suffix]
    codec = {"mpg": "mpeg2video", "avi": "mpeg4", "ogg": "libvpx"}.get(inner, "libx264")
    made = write(tmp_path / f"a.{inner}", even(25, 25), codec=codec, options={"b": "2M"}, rate=25, base=Fraction(1, 25))
    made.rename(tmp_path / f"a.{suffix}")
    assert main(["probe", "--videos", str(tmp_path)]) == 0


@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_what_is_too_long_says_so(tmp_path, backend):
    path = write_video(tmp_path / "long.mp4", [0, 5 * 1000, 10 * 1000], rate=25, width=64, height=48)
    command = ["probe", "--videos", str(path)]
    assert main(command) == 0
    command = ["extract", "--videos", str(path), "--out", str(tmp_path / "out"), "--max-hours", "0.001", *FLAGS]
    assert main([*command, "--backend", backend]) == 3
    record = Manifest.read(tmp_path / "out").records["video/long"]
    assert record["message"].endswith("is longer than the 3.6 s that are allowed (--max-hours)")
