"""Moments: what is refused at birth, carving out validation videos."""

import math
import os
import random
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_fixtures import moment

from excl.datasets.annotations.moments import carve_validation

# Moment


@pytest.mark.parametrize("duration_s", [0.0, -1.0, math.nan, math.inf])
def test_a_duration_that_is_no_length_is_refused(duration_s):
    with pytest.raises(ValueError, match=r"file\.txt:1: the duration of video v is .* above 0"):
        moment(duration_s=duration_s)


@pytest.mark.parametrize("name", ["annotation_id", "video_id", "split"])
def test_an_empty_name_is_refused(name):
    with pytest.raises(ValueError, match=rf"file\.txt:1: {name} is empty"):
        replace(moment(), **{name: " "})


@pytest.mark.parametrize("name", ["annotation_id", "video_id", "split", "query", "group", "query_id", "raw_query"])
@pytest.mark.parametrize("text", ["a\0b", "a\ud800b"])
def test_a_text_that_no_file_can_keep_is_refused(name, text):
    with pytest.raises(ValueError, match=rf"file\.txt:1: {name} .* correct the annotation"):
        replace(moment(), **{name: text})


# carve_validation


def training_moments(num_videos):
    return [moment(video_id=f"v{row // 3}", row=row) for row in range(num_videos * 3)]


def moved_videos(carved):
    return {m.video_id for m in carved if m.split == "val"}


@pytest.mark.parametrize(
    ("num_videos", "fraction", "num_moved"), [(100, 0.1, 10), (20, 0.01, 1), (2, 0.9, 1), (2, 0.1, 1), (9, 0.5, 4)]
)
def test_whole_videos_move_and_nothing_else_changes(num_videos, fraction, num_moved):
    before = training_moments(num_videos)
    after = carve_validation(before, fraction=fraction, seed=1)
    assert [replace(m, split="train") for m in after] == before
    assert len(moved_videos(after)) == num_moved
    assert not moved_videos(after) & {m.video_id for m in after if m.split == "train"}


def test_the_choice_depends_on_the_seed_and_not_on_the_order():
    before = training_moments(50)
    shuffled = random.Random(0).sample(before, len(before))
    chosen = moved_videos(carve_validation(before, fraction=0.2, seed=1))
    assert moved_videos(carve_validation(shuffled, fraction=0.2, seed=1)) == chosen
    assert moved_videos(carve_validation(before, fraction=0.2, seed=2)) != chosen


def test_the_choice_does_not_depend_on_pythons_hash_seed():
    program = (
        "from excl.datasets.annotations.moments import *\n"
        "ms = [Moment(annotation_id=str(i), video_id=f'v{i}', query='q', start_s=0, end_s=1, duration_s=None,"
        " split='train', source='s') for i in range(40)]\n"
        "print(*[m.video_id for m in carve_validation(ms, fraction=.25, seed=7) if m.split == 'val'])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert len(outputs.pop().split()) == 10


@settings(max_examples=30)
@given(st.integers(2, 30), st.floats(0.001, 0.999), st.integers(0, 1000))
def test_both_sides_have_a_video(num_videos, fraction, seed):
    after = carve_validation(training_moments(num_videos), fraction=fraction, seed=seed)
    assert 1 <= len(moved_videos(after)) < num_videos


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_a_fraction_outside_0_to_1_is_refused(fraction):
    with pytest.raises(ValueError, match=r"fraction .* between 0 and 1"):
        carve_validation(training_moments(5), fraction=fraction, seed=0)


@pytest.mark.parametrize("num_videos", [0, 1])
def test_fewer_than_two_videos_are_refused(num_videos):
    with pytest.raises(ValueError, match=f"out of {num_videos} videos: at least 2"):
        carve_validation(training_moments(num_videos), fraction=0.5, seed=0)


def test_moments_of_several_splits_are_refused():
    mixed = [*training_moments(3), moment(video_id="t", split="test")]
    with pytest.raises(ValueError, match=r"\['test', 'train'\]: give the moments of one split"):
        carve_validation(mixed, fraction=0.5, seed=0)


def test_the_split_to_carve_out_must_be_a_new_one():
    with pytest.raises(ValueError, match="another name"):
        carve_validation(training_moments(3), fraction=0.5, seed=0, split="train")
