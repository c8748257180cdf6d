"""Frames as other pipelines take them: FFmpeg's choice of frames at a rate, OpenCV's scaling, pictures of a fixed size."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from shared_fixtures import read_number

from excl.datasets.video.geometry import Geometry, scale_plainly
from excl.datasets.video.pyav_backend import PyAVVideo
from excl.datasets.video.sampling import Sampling
from excl.pipeline.extract import ExtractConfig


@pytest.mark.parametrize("fps", [25, 20, 15, 10, 7.5, 5, 40])
def test_nearest_frames_are_those_of_ffmpegs_filter(make_video, fps):
    """Frame i of 30 a second goes to place i * fps / 30, rounded, halves up; a place shows the last one there or before."""
    path = make_video("a.mp4", [300 * i for i in range(60)], time_base=Fraction(1, 9000))
    video = PyAVVideo(path, Sampling(fps, Geometry(192, 192), nearest=True))
    numbers = [read_number(frame) for frame in video]
    places = [int(Fraction(i) * Fraction(str(fps)) / 30 + Fraction(1, 2)) for i in range(61)]
    assert numbers == [max(i for i in range(60) if places[i] <= k) for k in range(places[60])]


def test_at_the_videos_own_rate_every_frame_is_taken_once_either_way(make_video):
    path = make_video("a.mkv", [round(i * 1000 / 30) for i in range(30)])
    for nearest in (False, True):
        video = PyAVVideo(path, Sampling(None, Geometry(192, 192), nearest=nearest))
        assert [read_number(frame) for frame in video] == list(range(30))


@pytest.mark.parametrize(
    ("size", "rows", "columns"),
    [
        ("40", 96, 128),
        ("64", 96, 128),
        ("200", 96, 128),
        ("34-upscale-only", 96, 128),
        ("34-upscale-only", 20, 30),
        ("48x36", 96, 128),
    ],
)
def test_plain_scaling_is_bilinear_interpolation_of_the_whole_picture(size, rows, columns):
    """Against PyTorch's, which has OpenCV's convention: places at (x + 1/2) / scale - 1/2, no averaging."""
    crop = 32
    picture = np.random.default_rng(0).integers(0, 256, (rows, columns, 3), dtype=np.uint8)
    if "x" in size:
        width, height = map(int, size.split("x"))
    else:
        short = int(size.removesuffix("-upscale-only"))
        factor = max(1.0, short / min(rows, columns)) if size.endswith("only") else short / min(rows, columns)
        width, height = round(columns * factor), round(rows * factor)
    x = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    scaled = torch.nn.functional.interpolate(x, (height, width), mode="bilinear", align_corners=False, antialias=False)
    top, left = round((height - crop) / 2), round((width - crop) / 2)
    wanted = scaled[0, :, top : top + crop, left : left + crop].permute(1, 2, 0).numpy()
    made = scale_plainly(picture, Fraction(1), Geometry.parse(size, crop, antialias=False))
    assert made.shape == (crop, crop, 3)
    assert np.abs(made - wanted).max() <= 0.51  # rounded to whole numbers


def test_frames_scaled_plainly_keep_single_pixels_that_averaging_blurs(make_video):
    path = make_video("a.mp4", [0, 33])
    plain, averaged = (next(iter(PyAVVideo(path, Sampling(5, Geometry(32, 32, antialias=way))))) for way in (False, True))
    assert plain.shape == averaged.shape == (32, 32, 3)
    assert abs(float(plain.mean()) - float(averaged.mean())) < 4
    assert not np.array_equal(plain, averaged)


def test_a_fixed_size_squeezes_the_whole_picture(make_video):
    """Of a picture of 256 x 192 all columns are kept: the two outermost cells of the number, which a square cuts off."""
    path = make_video("a.mp4", [33 * i for i in range(5)], width=320, height=96)
    for antialias in (True, False):
        geometry = Geometry.parse("96x96", 96, antialias=antialias)
        frame = list(PyAVVideo(path, Sampling(None, geometry)))[1]  # number 1: its white cell is the first of twelve
        row = frame[48].mean(axis=-1)
        white = np.flatnonzero(row > 200)
        left = (320 - 12 * 16) / 2 * 96 / 320  # where the cells begin
        assert white.min() == pytest.approx(left, abs=1.5)
        assert white.max() == pytest.approx(left + 16 * 96 / 320, abs=1.5)


def test_sizes_that_cannot_be():
    assert (Geometry.parse("340x256", 224).width, str(Geometry.parse("340x256", 224))) == (340, "340x256")
    for size in ("200x256", "256x200", "x256", "340 x 256"):
        with pytest.raises(ValueError, match=r"crop|short_side"):
            Geometry.parse(size, 224)


@pytest.mark.parametrize(("flag", "setting"), [("--nearest", {"nearest": True}), ("--no-antialias", {"antialias": False})])
def test_decoded_frames_were_made_without_these_settings(tmp_path, flag, setting):
    with pytest.raises(ValueError, match=f"{flag}: the frames of `excl decode` are made without it"):
        ExtractConfig(frames=tmp_path, out=tmp_path / "out", weights="random:0", **setting)
