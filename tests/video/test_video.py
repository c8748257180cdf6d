"""Sampling in time: the right frame at every sampling time, whatever the container's clock does."""

from __future__ import annotations

import os
import struct
from fractions import Fraction
from math import ceil

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shared_fixtures import numbered_picture, read_number

from excl.datasets.video.container import Limits
from excl.datasets.video.discovery import find_videos, video_files
from excl.datasets.video.errors import VideoError
from excl.datasets.video.geometry import FrameConverter, Geometry, kept_region
from excl.datasets.video.pyav_backend import PyAVVideo
from excl.datasets.video.sampling import Sampling

SMALL = Geometry(short_side=192, crop=192)


def sample(path, fps=5.0, geometry=SMALL):
    video = PyAVVideo(path, Sampling(fps, geometry))
    return [read_number(frame) for frame in video], video.facts


def expected(times, end, t0, fps):
    """The rule, literally and slowly, in fractions: the last frame at or before k / fps, the first one if there is none."""
    numbers = []
    for k in range(ceil(fps * (end - t0))):
        shown = [i for i, time in enumerate(times) if time - t0 <= Fraction(k) / fps]
        numbers.append(shown[-1] if shown else 0)
    return numbers


@pytest.mark.parametrize(
    ("name", "rate", "count"),
    [
        ("cfr30.mp4", Fraction(30), 95),
        ("cfr25.mkv", Fraction(25), 77),
        ("film.mp4", Fraction(24000, 1001), 90),
        ("ntsc.mp4", Fraction(30000, 1001), 100),
        ("slow.mp4", Fraction(3), 20),
    ],
)
def test_constant_rate(make_video, name, rate, count):
    base = 1 / rate if name.endswith("mp4") else Fraction(1, 1000)
    pts = [round(i / rate / base) for i in range(count)]
    path = make_video(name, pts, time_base=base, rate=rate, options={"preset": "ultrafast", "crf": "10", "bf": "2"})
    numbers, facts = sample(path)
    times = [p * base for p in pts]
    end = Fraction(facts.duration_s).limit_denominator(10**6)
    assert float(end) == pytest.approx(float(count / rate), abs=0.002)
    assert numbers == expected(times, end, 0, 5)
    assert facts.num_frames == len(numbers)
    assert facts.frames_decoded + facts.frames_skipped == count


def test_a_frame_exactly_at_a_sampling_time_is_the_one_taken(make_video):
    """0.6 < 3/5 in floats: frames at multiples of 1/5 s are where counting in floats goes wrong."""
    numbers, _ = sample(make_video("exact.mp4", list(range(40)), time_base=Fraction(1, 5)))
    assert numbers == list(range(40))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    gaps=st.lists(st.integers(5, 900), min_size=1, max_size=30),
    fps=st.sampled_from([1.0, 2.5, 5.0, 7.3, 25.0]),
)
def test_variable_rate_follows_the_rule(tmp_path, gaps, fps):
    from shared_fixtures import write_video

    pts = [0, *np.cumsum(gaps).tolist()]
    path = write_video(tmp_path / "vfr.mkv", pts)
    numbers, facts = sample(path, fps=fps)
    with av.open(str(path)) as container:  # what was really written
        frames = list(container.decode(video=0))
        times = [frame.pts * frame.time_base for frame in frames]
        end = times[-1] + (frames[-1].duration or 0) * frames[-1].time_base
    if frames[-1].duration:
        assert facts.duration_s == float(end)
        assert numbers == expected(times, end, times[0], Fraction(str(fps)))


def test_the_clock_starts_with_the_container(make_video):
    """Transport streams start anywhere, here at a time that no whole number of microseconds is."""
    pts = [126001 + i * 3000 for i in range(100)]
    numbers, facts = sample(make_video("late.ts", pts, time_base=Fraction(1, 90000)))
    assert facts.t0_s == float(Fraction(126001, 90000))
    assert numbers == [i * 6 for i in range(17)]
    assert facts.duration_s == pytest.approx(100 / 30, abs=1e-4)


def test_a_video_that_starts_after_the_sound_holds_its_first_frame(tmp_path):
    path = tmp_path / "late_video.mkv"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        video = container.add_stream("libx264", rate=30, options={"preset": "ultrafast", "crf": "10"})
        video.width, video.height, video.pix_fmt = 256, 192, "yuv420p"
        video.time_base = video.codec_context.time_base = Fraction(1, 1000)
        from shared_fixtures import numbered_picture

        samples = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), "s16", "mono")
        samples.sample_rate, samples.pts = 8000, 0
        container.mux(sound.encode(samples))
        for number in range(30):
            frame = av.VideoFrame.from_ndarray(numbered_picture(number), "rgb24")
            frame.pts, frame.time_base = 1000 + number * 100, Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode())
    numbers, facts = sample(path)
    assert facts.t0_s == 0
    assert numbers == [0] * 5 + list(range(0, 30, 2))


def test_geometry_crops_the_centre(make_video):
    frames = list(PyAVVideo(make_video("wide.mp4", [0, 33]), Sampling(5, Geometry(96, 64))))
    assert frames[0].shape == (64, 64, 3)
    assert frames[0].dtype == np.uint8
    # 256 x 192 becomes 128 x 96; the black cells of number 0 span 96 x 16 pixels of it, so the crop's middle is black
    assert frames[0][26:38].max() < 40
    assert frames[0][:20].min() > 100


@given(
    width=st.integers(1, 5000),
    height=st.integers(1, 5000),
    aspect=st.fractions(Fraction(1, 4), 4, max_denominator=50),
    short_side=st.integers(32, 512),
    data=st.data(),
)
def test_the_kept_region_is_the_centred_square(width, height, aspect, short_side, data):
    crop = data.draw(st.integers(1, short_side))
    kept_width, kept_height, left, top = kept_region(width, height, aspect, Geometry(short_side, crop))
    assert 0 < kept_width <= width - left
    assert 0 < kept_height <= height - top
    assert left >= 0
    assert top >= 0
    if min(width, height) > 1:
        assert [n % 2 for n in (kept_width, kept_height, left, top)] == [0] * 4
    side = min(width * aspect, Fraction(height)) * crop / short_side
    if side / aspect >= 2 and side >= 2:
        assert abs(kept_width - side / aspect) <= 2  # nearest even, or one less where the picture ends
        assert abs(kept_height - side) <= 2
    assert abs(left + Fraction(kept_width, 2) - Fraction(width, 2)) <= 1
    assert abs(top + Fraction(kept_height, 2) - Fraction(height, 2)) <= 1


@pytest.mark.parametrize(
    ("pixels", "matrix", "full"),
    [("yuv420p", None, False), ("yuv420p", 1, False), ("yuv420p", 5, False), ("yuvj420p", 5, True),
     ("yuvj420p", 1, True), ("yuv444p", 1, False), ("yuv420p10le", 1, False), ("rgb24", None, True)],
)  # fmt: skip
def test_colours_come_back(pixels, matrix, full):
    """Large patches of known colour through every matrix, range and depth; a wrong matrix is off by 20 and more."""
    colours = np.random.default_rng(0).integers(0, 256, (4, 4, 3))
    picture = np.kron(colours, np.ones((48, 48, 1))).astype(np.uint8)  # [192, 192, 3]
    to = {None: {}, 1: {"dst_colorspace": "ITU709"}, 5: {"dst_colorspace": "ITU601"}}[matrix]
    frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format=pixels, **to)
    if matrix is not None:
        frame.colorspace = matrix
    if full:
        frame.color_range = 2
    found = FrameConverter(Geometry(192, 192), pixel_aspect=Fraction(1))(frame)
    middles = np.s_[24::48, 24::48]
    assert np.abs(found[middles].astype(int) - colours).max() <= 4


def test_pixels_are_those_of_exact_arithmetic():
    """From the planes in floats: bilinear with averaging, then BT.601; in hard colours, where short cuts show."""
    generator = np.random.default_rng(0)
    blocks = generator.integers(0, 256, (60, 80, 3)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
    frame = av.VideoFrame.from_ndarray(blocks, "rgb24").reformat(format="yuv420p")
    planes = frame.to_ndarray().astype(np.float64)
    luma, chroma = planes[:480], planes[480:].reshape(2, 240, 320)
    # 480 * 224 / 256 = 420 lines and columns of the source
    y = (shrunk(luma[30:450, 110:530], 224) - 16) * 255 / 219
    u, v = ((shrunk(plane[15:225, 55:265], 224) - 128) * 255 / 224 for plane in chroma)
    exact = np.stack([y + 1.402 * v, y - 0.344136 * u - 0.714136 * v, y + 1.772 * u], axis=-1).clip(0, 255)
    found = FrameConverter(Geometry(), pixel_aspect=Fraction(1))(frame)
    assert np.abs(found - exact).mean() < 0.5
    assert abs((found - exact).mean()) < 0.1


def shrunk(plane, size):
    """A plane scaled to size x size by a triangle filter as wide as the step, or as a source pixel if that is wider."""
    for _ in range(2):
        step = len(plane) / size
        reach = max(step, 1.0)
        centres = (np.arange(size) + 0.5) * step - 0.5
        weights = np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(-4, len(plane) + 4)) / reach)
        folded = np.pad(np.eye(len(plane)), ((4, 4), (0, 0)), mode="edge")  # beyond the edge its pixel stands
        plane = ((weights / weights.sum(1, keepdims=True)) @ folded @ plane).T
    return plane


def test_cropping_first_is_scaling_first_but_for_a_pixel(make_video):
    """Against the other order of work, by a smooth picture in which a shift by a pixel changes little."""
    rows, columns = np.mgrid[0:480, 0:640]
    smooth = np.stack([columns / 640, rows / 480, (rows + columns) / 1120], axis=-1)
    frame = av.VideoFrame.from_ndarray((255 * smooth).astype(np.uint8), "rgb24").reformat(format="yuv444p")
    found = FrameConverter(Geometry(), pixel_aspect=Fraction(1))(frame).astype(int)
    scaled = frame.reformat(341, 256, "rgb24", interpolation="BILINEAR").to_ndarray()[16:240, 58:282].astype(int)
    assert np.abs(found - scaled).max() <= 3


def test_pixels_that_are_not_square_are_squared(make_video):
    path = make_video("anamorphic.mp4", [0, 33], width=128, pixel_aspect=Fraction(2), options={"crf": "5"})
    numbers = [frame.shape for frame in PyAVVideo(path, Sampling(5, SMALL))]
    assert numbers == [(192, 192, 3)]
    plain = next(iter(PyAVVideo(make_video("square.mp4", [0, 33], width=128), Sampling(5, Geometry(64, 64)))))
    squared = next(iter(PyAVVideo(path, Sampling(5, Geometry(64, 64)))))
    # without its aspect the picture is 128 wide and 192 high, with it 256 x 192: another short side, another scale
    assert (plain < 60).any(axis=(1, 2)).sum() > (squared < 60).any(axis=(1, 2)).sum()


def rotate_by_display_matrix(path, degrees):
    """Turn the picture as phones do it: by the matrix in the track header, which the encoder knows nothing of."""
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 4 + 20 + 16  # version and flags, five times and ids (version 0), layer to reserved
    one = 1 << 16
    matrix = {90: (0, one, 0, -one, 0, 0, 0, 0, 1 << 30), 180: (-one, 0, 0, 0, -one, 0, 0, 0, 1 << 30)}[degrees]
    content[at : at + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(content)


def test_avi_with_b_frames_comes_in_order(make_video):
    """AVI has no presentation times; those of decoding are sorted."""
    options = {"preset": "fast", "crf": "10", "bf": "2"}
    path = make_video("old.avi", list(range(100)), time_base=Fraction(1, 25), rate=25, options=options)
    numbers, facts = sample(path)
    assert (facts.frames_decoded, facts.frames_skipped) == (100, 0)
    assert numbers == sorted(numbers)
    assert all(abs(number - 5 * k) <= 1 for k, number in enumerate(numbers))  # FFmpeg shows AVI's first frame a frame late


@pytest.mark.parametrize(("degrees", "turns"), [(90, -1), (180, 2)])
def test_rotation_is_applied(make_video, degrees, turns):
    path = make_video("phone.mp4", [i * 200 for i in range(8)])
    upright = list(PyAVVideo(path, Sampling(5, SMALL)))[7]  # number 7: white on the left only, no symmetry
    rotate_by_display_matrix(path, degrees)
    turned = list(PyAVVideo(path, Sampling(5, SMALL)))[7]
    assert np.abs(np.rot90(upright, turns).astype(int) - turned).mean() < 3
    assert np.abs(upright.astype(int) - turned).mean() > 10


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"this is no video\n" * 100, "cannot be decoded"),
        (b"ffconcat version 1.0\nfile good.mp4\n", "cannot be decoded"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\ngood.mp4\n#EXT-X-ENDLIST\n", "cannot be decoded"),
    ],
)
def test_what_is_no_video_is_refused(make_video, tmp_path, content, reason):
    make_video("good.mp4", [0, 33])
    path = tmp_path / "bad.mp4"
    path.write_bytes(content)
    with pytest.raises(VideoError, match=f"bad.mp4.*{reason}"):
        list(PyAVVideo(path, Sampling(5, SMALL)))


@pytest.mark.parametrize("name", ["cut.mp4", "cut.mkv", "cut.avi"])
def test_a_video_cut_short_is_refused(make_video, name):
    path = make_video(name, list(range(100)), time_base=Fraction(1, 25), rate=25)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(VideoError, match=name):
        list(PyAVVideo(path, Sampling(5, SMALL)))


def test_sound_alone_and_pipes_are_refused(tmp_path):
    path = tmp_path / "sound.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(VideoError, match="no video stream"):
        list(PyAVVideo(path, Sampling(5, SMALL)))
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(VideoError, match="not a regular file"):
        list(PyAVVideo(tmp_path / "pipe.mp4", Sampling(5, SMALL)))


def test_find_videos(make_video, tmp_path):
    (tmp_path / "deeper").mkdir()
    paths = [make_video("b.mp4", [0]), make_video("a.mkv", [0]), make_video("deeper/c.webm.mp4", [0])]
    (tmp_path / "notes.txt").write_text("no video")
    assert find_videos(tmp_path) == {"a": paths[1], "b": paths[0], "c.webm": paths[2]}
    assert find_videos(paths[0]) == {"b": paths[0]}
    make_video("deeper/a.mp4", [0])
    with pytest.raises(ValueError, match="share the id 'a'"):
        find_videos(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="no videos there"):
        find_videos(empty)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        find_videos(tmp_path / "nowhere")


@given(st.sets(st.from_regex(r"[.a ]{0,4}(\.(mp4|MKV|Mp4|mp3|webm))?", fullmatch=True), min_size=1))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_which_names_are_those_of_videos(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("names")
    files = [folder / name for name in names if name.strip(".") and name.strip()]
    for file in [*files, folder / "z.mp4"]:
        file.touch()
    parts = {file: os.path.splitext(file.name) for file in sorted({*files, folder / "z.mp4"})}
    wanted = {file: stem for file, (stem, suffix) in parts.items() if suffix.lower() in (".mp4", ".mkv", ".webm")}
    assert video_files(folder) == list(wanted)
    if len(set(wanted.values())) == len(wanted):
        assert list(find_videos(folder).items()) == sorted((stem, file) for file, stem in wanted.items())


def test_real_videos(shared):
    """Frame counts of the real videos by the rule, from their packets' times alone."""
    for path in sorted((shared / "videos").iterdir()):
        video = PyAVVideo(path, Sampling(5, Geometry()))
        shapes = {frame.shape for frame in video}
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            ends = [(p.pts + p.duration) * p.time_base for p in container.demux(stream) if p.pts is not None]
        assert shapes == {(224, 224, 3)}
        assert video.facts.num_frames == ceil(5 * max(ends))
        assert video.facts.duration_s == pytest.approx(float(max(ends)))


def test_the_largest_of_several_video_streams_is_taken(tmp_path):
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as container:
        streams = []
        for width, height in ((64, 48), (256, 192), (128, 96)):
            stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast", "crf": "10"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            streams.append(stream)
        for number in range(30):
            for stream in streams:
                shown = numbered_picture(number if stream.width == 256 else 4095)
                frame = av.VideoFrame.from_ndarray(shown, "rgb24").reformat(stream.width, stream.height, "yuv420p")
                frame.pts, frame.time_base = number, Fraction(1, 25)
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode())
    numbers, facts = sample(path)
    assert numbers == list(range(0, 30, 5))
    assert (facts.width, facts.height) == (256, 192)


def test_a_size_that_changes_in_mid_stream(tmp_path):
    """Each frame is cropped and scaled by its own size."""
    path = tmp_path / "change.ts"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast", "crf": "10", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 256, 192, "yuv420p"
        for part, (width, height) in enumerate(((256, 192), (512, 384))):
            encoder = av.CodecContext.create("libx264", "w")
            encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
            encoder.time_base, encoder.framerate = Fraction(1, 25), Fraction(25)
            encoder.options = {"preset": "ultrafast", "crf": "10", "bf": "0", "tune": "zerolatency"}
            for number in range(25 * part, 25 * part + 25):
                frame = av.VideoFrame.from_ndarray(numbered_picture(number), "rgb24").reformat(width, height, "yuv420p")
                frame.pts, frame.time_base = number, Fraction(1, 25)
                for packet in encoder.encode(frame):
                    packet.stream = stream
                    container.mux(packet)
    numbers, facts = sample(path)
    assert facts.frames_decoded == 50
    assert numbers == list(range(0, 50, 5))


@pytest.mark.parametrize(("start_s", "reason"), [(80_000, "too_large"), (700, "bad_times"), (500, None)])
def test_pictures_that_start_long_after_the_sound(tmp_path, start_s, reason):
    """What the first frame would have to fill is bounded as a gap is."""
    path = tmp_path / "late.mkv"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        video = container.add_stream("libx264", rate=30, options={"preset": "ultrafast", "crf": "10"})
        video.width, video.height, video.pix_fmt = 256, 192, "yuv420p"
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), "s16", "mono")
        samples.sample_rate, samples.pts = 8000, 0
        container.mux(sound.encode(samples))
        frame = av.VideoFrame.from_ndarray(numbered_picture(0), "rgb24")
        frame.pts, frame.time_base = start_s, Fraction(1)
        container.mux([*video.encode(frame), *video.encode()])
    video = PyAVVideo(path, Sampling(1, SMALL, Limits(max_duration_s=3600, max_gap_s=600 if start_s < 1000 else 1e6)))
    if reason is None:
        assert len(list(video)) >= 500
        return
    with pytest.raises(VideoError) as error:
        list(video)
    assert error.value.reason == reason


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"max_pixels": 256 * 192 - 1}, "too_large"),
        ({"max_duration_s": 1.9}, "too_large"),
        ({"max_frames": 49}, "too_large"),
        ({"max_gap_s": 0.039}, "bad_times"),
        ({"max_pixels": 256 * 192, "max_duration_s": 2.0, "max_frames": 50, "max_gap_s": 0.04}, None),
    ],
)
def test_what_a_video_may_ask_for(make_video, limits, reason):
    path = make_video("a.mp4", list(range(50)), time_base=Fraction(1, 25), rate=25)
    video = PyAVVideo(path, Sampling(5, SMALL, Limits(**limits)))
    if reason is None:
        assert len(list(video)) == 10
        return
    with pytest.raises(VideoError, match=r"a\.mp4") as error:
        list(video)
    assert error.value.reason == reason
