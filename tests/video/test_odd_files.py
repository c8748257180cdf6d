"""Files with times that go back, containers that are not read, and files that a folder leaves out: each is said in words."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter
from kinds import HEIGHT, KINDS, WIDTH, by_the_rule, even, picture, turn_by_display_matrix, uneven, write
from PIL import Image
from shared_fixtures import read_number, write_video

from excl.datasets.video.backends import missing_reason, open_sampled, sample_frames
from excl.datasets.video.errors import VideoError
from excl.datasets.video.geometry import Geometry
from excl.datasets.video.sampling import Sampling
from excl.pipeline.artifacts.manifest import Manifest
from excl.workflows.cli import main

FLAGS = ["--weights", "random:0", "--short-side", "32", "--crop", "32", "--device", "cpu"]
X264 = {"preset": "veryfast", "crf": "10", "bf": "0"}


def read(path, on_damage):
    """The numbers of the frames that are sampled at 5 a second, and the facts."""
    video = open_sampled(path, Sampling(5, Geometry(HEIGHT, HEIGHT), on_damage=on_damage))
    return [read_number(frame) for frame in video], video.facts


def stepping_back(folder, times_ms, options=X264):
    """Matroska, in which the frames have these times, in milliseconds."""

    def edit(packets):
        for packet in packets:
            time = times_ms[round(packet.pts * Fraction(30, 1000))]
            packet.pts, packet.dts, packet.time_base = time, min(times_ms), Fraction(1, 1000)
            yield packet

    path = folder / "a.mkv"
    return write(path, even(len(times_ms)), base=Fraction(1, 1000), options=options, edit=edit)


def expected(times_ms, last_ms=33):
    """By the rule: the frames sorted by time, of those with one time the last."""
    order = sorted(range(len(times_ms)), key=lambda i: (times_ms[i], i))
    times = [Fraction(times_ms[i], 1000) for i in order]
    return by_the_rule(times, times[-1] + Fraction(last_ms, 1000), times[0], order)


@pytest.fixture
def run_command(tmp_path, monkeypatch):
    """Run the ffmpeg command that a message gives, in the videos' folder, and return the path of what it wrote."""

    def run(message, rate="RATE"):
        if shutil.which("ffmpeg") is None:
            pytest.skip("the program ffmpeg is not installed")
        monkeypatch.chdir(tmp_path)
        before = set(tmp_path.iterdir())
        command = re.search(r"`(ffmpeg [^`]+)`", message)[1].replace("RATE", rate)
        subprocess.run(f"{command} -v error", shell=True, check=True, stdin=subprocess.DEVNULL)
        [written] = set(tmp_path.iterdir()) - before
        return written

    return run


def frames_with_times(path):
    """The number and the seconds of every frame of the largest stream, in the order in which they come."""
    with av.open(str(path)) as container:
        stream = max(container.streams.video, key=lambda stream: stream.width)
        start_s = Fraction(container.start_time or 0, av.time_base)
        found = []
        reformatter = VideoReformatter()
        for frame in container.decode(stream):
            upright = np.rot90(reformatter.reformat(frame, format="rgb24").to_ndarray(), frame.rotation // 90)
            left = (upright.shape[1] - HEIGHT) // 2
            number = read_number(np.ascontiguousarray(upright[:HEIGHT, left : left + HEIGHT]))
            found.append((number, frame.pts * Fraction(stream.time_base.numerator, stream.time_base.denominator) - start_s))
    return [number for number, _ in found], [float(time_s) for _, time_s in found]


def one_step_back(at=101, back_ms=32):
    return [200 + 33 * i - (33 + back_ms if i >= at else 0) for i in range(150)]


LATE = r"a frame comes late: time steps back by 0\.032 s after 3\.300 s; .*--on-damage keep puts all frames in order"


@pytest.mark.parametrize("fps", [5, 29])
@pytest.mark.parametrize("backend", ["pyav", "decord", "torchcodec"])
def test_a_small_step_back_is_refused(tmp_path, backend, fps):
    if missing_reason(backend):
        pytest.skip(f"{backend}: {missing_reason(backend)}")
    with pytest.raises(VideoError, match=LATE) as error:
        list(sample_frames(stepping_back(tmp_path, one_step_back()), fps=fps, backend=backend))
    assert error.value.reason == "bad_times"


@pytest.mark.parametrize(
    "times", [one_step_back(), [0, 40, 80, 120, 90, 120, 160, 240, 200, 280]], ids=["a step", "several"]
)
def test_the_command_leaves_out_frames_that_come_late_and_no_other(tmp_path, run_command, times):
    path = stepping_back(tmp_path, times)
    with pytest.raises(VideoError, match="makes a file without the frames that come late") as error:
        read(path, "fail")
    numbers, times_s = frames_with_times(run_command(str(error.value)))
    in_time = [i for i, time in enumerate(times) if time > max(times[:i], default=-1)]
    assert numbers == in_time
    np.testing.assert_allclose(times_s, [(times[i] - times[0]) / 1000 for i in in_time], atol=0.0011)


@pytest.mark.parametrize("backend", ["decord", "torchcodec"])
@pytest.mark.parametrize("step_ms", [0, 7])
@pytest.mark.parametrize("b_frames", ["0", "3"])
def test_other_decoders_do_not_read_times_that_go_back(tmp_path, backend, step_ms, b_frames):
    if missing_reason(backend):
        pytest.skip(f"{backend}: {missing_reason(backend)}")
    for times in (one_step_back(), [200 + 33 * (i % 60) + step_ms * (i // 60) for i in range(105)]):
        path = stepping_back(tmp_path, times, {**X264, "bf": b_frames})
        with pytest.raises(VideoError, match=r"times that go back; use|its frame .* is that of") as error:
            next(sample_frames(path, fps=29, backend=backend, on_damage="keep"))
        assert error.value.reason == "unsupported"


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


def recordings(folder, *lengths, starts_s=()):
    """Transport streams of so many frames one after another in one file; the numbers go on, the clock starts again."""
    content, begun = b"", 0
    for length, start_s in itertools.zip_longest(lengths, starts_s, fillvalue=0):
        part = folder / f"part{begun}.ts"
        write(
            part,
            even(length, start=start_s),
            options=X264,
            container_options={"mpegts_copyts": "1"},
            content=lambda number, begun=begun: picture(number + begun),
        )
        content += part.read_bytes()
        part.unlink()
        begun += length
    (folder / "a.ts").write_bytes(content)
    return folder / "a.ts"


@pytest.mark.parametrize(
    ("late_ms", "places", "restarts"), [(990, 16, 0), (1010, 16, 1), (990, 17, 1), (320, 17, 1), (320, 16, 0)]
)
def test_the_rule_for_what_is_late(tmp_path, late_ms, places, restarts):
    """One frame comes so many places late, and so long before the latest; with or without a leap before it."""
    times = [200 + 20 * i for i in range(40)]
    last_ms = times[-1] + 2000
    times += [last_ms + (late_ms + 5) * (i - places + 1) // places for i in range(places)] + [last_ms - late_ms]
    times += [last_ms + 20 * (i + 1) for i in range(30)]
    _, facts = read(stepping_back(tmp_path, times), "keep")
    assert (facts.clock_restarts, facts.reordered_frames) == (restarts, 1 - restarts)
    with pytest.raises(VideoError, match="the clock starts again" if restarts else "a frame comes late"):
        read(tmp_path / "a.mkv", "fail")


@pytest.mark.parametrize("lengths", [(90, 60), (60, 90, 45), (17, 75), (45, 1)], ids=str)
def test_a_clock_that_starts_again(tmp_path, lengths):
    path = recordings(tmp_path, *lengths)
    wanted = by_the_rule(even(sum(lengths)), Fraction(sum(lengths), 30), Fraction(0), list(range(sum(lengths))))
    numbers, facts = read(path, "keep")
    assert numbers == wanted
    assert (facts.clock_restarts, facts.reordered_frames) == (len(lengths) - 1, 0)
    assert facts.first_restart_s == pytest.approx(lengths[0] / 30)
    first_s = (lengths[0] - 1) / 30
    with pytest.raises(VideoError, match=rf"the clock starts again after {first_s:.3f} s, .*two recordings"):
        read(path, "fail")


@pytest.mark.parametrize(
    ("starts_s", "says"),
    [
        ((100, 0), "101.967 s earlier"),  # FFmpeg presents the second at 95,443.7 s
        ((3600, 0), "3601.967 s earlier"),
        ((50, 0), "51.967 s earlier"),
        ((0, 3600), "3598.033 s later"),
        ((95430, 95300), "131.967 s earlier"),  # near the clock's end, which FFmpeg presents as before 0
        ((95430, 0), None),  # the clock's end lies between: a gap of 11.8 s
        ((0, 599), None),
    ],
    ids=str,
)
def test_clocks_of_33_bits(tmp_path, starts_s, says):
    """Two recordings in one transport stream; the clock wraps round at 2^33 / 90000 = 95,443.7 s."""
    path = recordings(tmp_path, 60, 60, starts_s=starts_s)
    if says is None:
        _, facts = read(path, "fail")
        assert facts.largest_gap_s == pytest.approx((starts_s[1] - starts_s[0] - 59 / 30) % (2**33 / 90000), abs=1e-3)
        return
    with pytest.raises(VideoError, match=rf"the clock starts again after 1\.967 s, {says}: two recordings"):
        read(path, "fail")
    numbers, facts = read(path, "keep")
    assert numbers == by_the_rule(even(120), Fraction(4), Fraction(0), list(range(120)))
    assert (facts.clock_restarts, facts.first_restart_s) == (1, pytest.approx(2))


def test_a_clock_that_wraps_round_in_a_recording(tmp_path):
    path = recordings(tmp_path, 120, starts_s=(Fraction(2**33, 90000) - 2,))
    for on_damage in ("fail", "keep"):
        numbers, facts = read(path, on_damage)
        assert numbers == by_the_rule(even(120), Fraction(4), Fraction(0), list(range(120)))
        assert facts.clock_restarts == 0


def test_a_second_recording_that_runs_past_the_place_where_ffmpeg_presents_the_clock_as_wrapped(tmp_path):
    """The second begins at 35 s, which FFmpeg presents as a whole range later, and from 40 s on as it is."""
    path = recordings(tmp_path, 60, 300, starts_s=(100, 35))
    numbers, facts = read(path, "keep")
    assert numbers == by_the_rule(even(360), Fraction(12), Fraction(0), list(range(360)))
    assert facts.clock_restarts == 1


def concatenated(folder, name, times, **settings):
    """Two recordings with these times, and numbers that go on, one after the other in one file."""
    parts = []
    for part, part_times in enumerate(times):
        begun = part * len(times[0])
        file = write(folder / f"part{part}{Path(name).suffix}", part_times,
                     content=settings.get("content", lambda number, begun=begun: picture(number + begun)),
                     **{name: value for name, value in settings.items() if name != "content"})  # fmt: skip
        parts.append(file.read_bytes())
        file.unlink()
    (folder / name).write_bytes(b"".join(parts))
    return folder / name


def turned_pieces(folder):
    """Two fragmented mp4 one after the other, held as a phone is. FFmpeg passes over the second's first fragment."""
    path = concatenated(
        folder, "a.mp4", [even(50), even(50)], options={**X264, "g": "10"}, size=(HEIGHT, WIDTH),
        content=lambda number: np.ascontiguousarray(np.rot90(picture(number))),
        container_options={"movflags": "frag_keyframe+empty_moov+default_base_moof"},
    )  # fmt: skip
    turn_by_display_matrix(path, 90)
    return path


def two_streams(folder):
    """A small stream before the one that is read, in a transport stream whose clock starts again."""
    content = b""
    for part in range(2):
        path = folder / "part.ts"
        with av.open(str(path), "w") as container:
            small = container.add_stream("libx264", rate=30, options=X264)
            large = container.add_stream("libx264", rate=30, options=X264)
            small.width, small.height, small.pix_fmt = 64, 48, "yuv420p"
            large.width, large.height, large.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            for number in range(50):
                for stream in (small, large):
                    frame = av.VideoFrame.from_ndarray(picture(50 * part + number), "rgb24")
                    frame.pts, frame.time_base = number, Fraction(1, 30)
                    container.mux(stream.encode(frame))
            for stream in (small, large):
                container.mux(stream.encode())
        content += path.read_bytes()
        path.unlink()
    (folder / "a.ts").write_bytes(content)
    return folder / "a.ts"


NTSC = Fraction(30000, 1001)
MS = Fraction(1, 1000)
RECORDINGS = {
    "transport stream": lambda f: concatenated(f, "a.ts", [even(50), even(50)], options=X264),
    "B-frames": lambda f: concatenated(f, "a.ts", [even(50), even(50)], options={**X264, "bf": "3"}),
    "variable rate": lambda f: concatenated(f, "a.ts", [uneven(50), uneven(50)], options={**X264, "bf": "3"}),
    "29.97": lambda f: concatenated(f, "a.ts", [even(50, NTSC), even(50, NTSC)], options=X264, rate=NTSC),
    "an hour back": lambda f: concatenated(f, "a.ts", [uneven(50, 3600), uneven(50)], options=X264),
    "past the first's clock": lambda f: recordings(f, 60, 300, starts_s=(100, 35)),
    "an hour ahead": lambda f: concatenated(f, "a.ts", [uneven(50), uneven(50, 3600)], options=X264),
    "three": lambda f: concatenated(f, "a.ts", [even(50), even(50), even(50)], options=X264),
    "after the sound": lambda f: concatenated(f, "a.ts", [even(50, start=1), even(50)], options=X264, with_sound=True),
    "programme stream": lambda f: concatenated(f, "a.mpg", [even(50, 25), even(50, 25)], codec="mpeg2video", rate=25,
                                               options={"b": "4M", "bf": "2"}, base=Fraction(1, 25)),
    "WebM": lambda f: concatenated(f, "a.webm", [uneven(50), uneven(50)], codec="libvpx", base=MS,
                                   options={"b": "4M", "deadline": "realtime"}),
    "Matroska, B-frames": lambda f: concatenated(f, "a.mkv", [uneven(50), uneven(50)], base=MS,
                                                 options={**X264, "bf": "3"}),
    "blanks and quotes": lambda f: concatenated(f, "a 'b' \"c\" $d.ts", [even(50), even(50)], options=X264),
    "turned": turned_pieces,
    "two video streams": two_streams,
    "a dash": lambda f: concatenated(f, "-a.ts", [even(50), even(50)], options=X264),
    "a colon": lambda f: concatenated(f, "http:a.ts", [even(50), even(50)], options=X264),
}  # fmt: skip


@pytest.mark.parametrize("kind", RECORDINGS)
def test_the_command_that_continues_the_clock_keeps_every_frame_at_its_time(tmp_path, monkeypatch, run_command, kind):
    path = RECORDINGS[kind](tmp_path)
    (tmp_path / f"{path.stem}-mended.mkv").write_bytes(b"something that is there already")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VideoError, match="the clock starts again") as error:
        read(Path(path.name), "fail")
    require_same_frames(path, run_command(str(error.value)))


@pytest.mark.parametrize("first", ["tff", "bff"])
def test_the_command_keeps_pictures_interlaced(tmp_path, run_command, first):
    def content(number):
        frame, later = picture(2 * number), picture(2 * number + 1)
        lines = slice(first == "tff", None, 2)
        frame[lines] = later[lines]
        return frame

    path = concatenated(tmp_path, "a.ts", [even(50, 25)] * 2, rate=25, options={**X264, "flags": "+ildct+ilme"},
                        fields=first, content=content)  # fmt: skip
    with pytest.raises(VideoError, match="the clock starts again") as error:
        read(path, "fail")
    wanted = [*range(0, 100, 10)] * 2
    assert read(path, "keep")[0] == wanted
    assert read(run_command(str(error.value)), "fail")[0] == wanted


def test_recordings_of_two_sizes_have_no_command(tmp_path):
    parts = [
        write(tmp_path / f"{scale}.ts", even(50), size=(scale * WIDTH, scale * HEIGHT), options=X264) for scale in (1, 2)
    ]
    path = tmp_path / "a.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    with pytest.raises(VideoError, match=r"starts again [^`]*differ in size or kind, so no command [^`]*--on-damage keep"):
        read(path, "fail")
    assert read(path, "keep")[1].clock_restarts == 1


def test_what_comes_late_besides_is_not_taken_for_a_restart_by_the_command(tmp_path, run_command):
    """The command mends the clock alone, and what it writes is refused for the frame that comes late."""
    times = [200 + 33 * (i % 60) for i in range(105)]
    times[90] -= 90
    with pytest.raises(VideoError, match="the clock starts again") as error:
        read(stepping_back(tmp_path, times), "fail")
    with pytest.raises(VideoError, match="a frame comes late"):
        read(run_command(str(error.value)), "fail")


def require_same_frames(path, mended):
    """Every frame of `path` is in `mended`, which is read; between two of one recording is the same time, in order."""
    assert read(mended, "fail")[1].clock_restarts == 0
    (numbers, times_s), (new_numbers, new_times_s) = frames_with_times(path), frames_with_times(mended)
    assert new_numbers == numbers
    gaps_s, new_gaps_s = np.diff(times_s), np.diff(new_times_s)
    gaps_s[gaps_s < -95000] += 2**33 / 90000  # where FFmpeg presents a clock as one that has wrapped round, and no more
    in_one = (gaps_s > 0) & (gaps_s < 0.5)
    assert new_times_s[0] == 0  # also where the sound starts before it: until its time the first frame stands
    np.testing.assert_allclose(new_times_s[1], times_s[1], atol=0.0011)
    np.testing.assert_allclose(new_gaps_s[1:][in_one[1:]], gaps_s[1:][in_one[1:]], atol=0.0011)
    np.testing.assert_allclose(new_gaps_s[~in_one], 1 / 30, atol=0.008)  # a period of the rate


def test_the_record_says_what_was_mended(tmp_path, caplog):
    (tmp_path / "videos").mkdir()
    recordings(tmp_path / "videos", 45, 60)
    command = ["extract", "--videos", str(tmp_path / "videos"), "--out", str(tmp_path / "out"), *FLAGS]
    assert main(command) == 3
    assert main([*command, "--on-damage", "keep", "--retry-failed"]) == 0
    record = Manifest.read(tmp_path / "out").records["video/a"]
    words = "the clock started again once, at 1.500 s, and was continued"
    assert record["damage"] == words
    assert (record["quality"]["clock_restarts"], record["quality"]["first_restart_s"]) == (1, 1.5)
    assert "reordered_frames" not in record["quality"]
    assert f"a: damaged, and kept: {words}" in caplog.text


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


NOT_READ = {  # suffix: (codec, options, times, time base, suffix of the file that ffmpeg makes it of)
    "264": ("libx264", {**X264, "bf": "3"}, even(50, 25), Fraction(1, 90000), "ts"),
    "265": ("libx265", {"preset": "ultrafast", "x265-params": "log-level=error"}, even(50, 25), Fraction(1, 90000), "ts"),
    "m2v": ("mpeg2video", {"b": "4M", "bf": "2"}, even(50, 25), Fraction(1, 25), "mpg"),
    "nut": ("libx264", {**X264, "bf": "3"}, uneven(50), MS, ""),
    "ivf": ("libvpx", {"b": "4M", "deadline": "realtime"}, uneven(50), MS, ""),
    "mxf": ("mpeg2video", {"b": "8M", "bf": "2"}, even(50, NTSC), 1 / NTSC, ""),
    "png": ("", {}, even(50, 25), Fraction(1, 25), ""),
    "rm": ("mpeg4", {"b": "4M"}, even(50, 25), Fraction(1, 25), "avi"),
    "dv": ("mpeg4", {"b": "4M"}, even(50, 25), Fraction(1, 25), "avi"),
    "y4m": ("mpeg4", {"b": "4M"}, even(50, 25), Fraction(1, 25), "avi"),
}
CODED_BY_FFMPEG = {"rm": "-c:v rv20 -q:v 2 -s 352x288", "dv": "-pix_fmt yuv420p -s 720x576", "y4m": "-pix_fmt yuv420p"}


@pytest.mark.parametrize("suffix", NOT_READ)
def test_a_container_that_is_not_read_is_named_with_what_converts_it(tmp_path, monkeypatch, run_command, suffix):
    codec, options, times, base, made_of = NOT_READ[suffix]
    rate = 1 / base if suffix == "mxf" else 25
    path, inner = tmp_path / f"-a b.{suffix}", tmp_path / f"inner.{made_of}"
    if suffix == "png":
        pictures = [Image.fromarray(picture(number)) for number in range(50)]
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=40)
    else:
        write(inner if made_of else path, times, codec=codec, options=options, rate=rate, base=base)
    if suffix in CODED_BY_FFMPEG:
        if shutil.which("ffmpeg") is None:
            pytest.skip("the program ffmpeg is not installed")
        command = ["ffmpeg", "-v", "error", "-i", str(inner), *CODED_BY_FFMPEG[suffix].split(), str(path)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    elif made_of:
        path.write_bytes(raw(inner))
    (tmp_path / "-a b.mkv").write_bytes(b"something that is there already")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VideoError, match=r"is an? .*, which is not read here: files of MP4/MOV.*`.*` converts it") as error:
        next(sample_frames(Path(path.name)))
    assert error.value.reason == "not_a_video"
    numbers, times_s = frames_with_times(run_command(str(error.value), rate="25"))
    assert len(numbers) == 50
    if suffix not in {"rm", "dv"}:  # which are of another size, in which the numbers cannot be read
        assert numbers == list(range(50))
    np.testing.assert_allclose(times_s, [float(time) for time in times], atol=0.0011)


def test_an_animated_webp_is_named_with_what_converts_it(tmp_path):
    path = tmp_path / "a.webp"
    pictures = [Image.fromarray(picture(number)) for number in range(12)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=100)
    with pytest.raises(VideoError, match=r"an animated WebP, which is not read here: .*`convert .*a\.gif` converts it"):
        next(sample_frames(path))


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
