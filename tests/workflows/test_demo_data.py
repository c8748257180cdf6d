"""The demo data set: what it plans, what its videos show, and that a killed run goes on."""

from __future__ import annotations

import collections
import functools
import itertools
import json
import pickle
from pathlib import Path

import av
import numpy as np
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from excl.pipeline.artifacts.header import RecipeMismatchError
from excl.pipeline.artifacts.manifest import Manifest
from excl.workflows import demo

INNER = (slice(8, 120), slice(24, 136))  # what the feature extractor's crop sees of 128 x 160 pixels
small = functools.partial(demo.DemoConfig, num_train=3, num_val=1, num_test=1, min_seconds=12, max_seconds=14)
WORDS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "yellow": (1, 1, 0)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return demo.run(small(out=tmp_path_factory.mktemp("demo") / "data"))


def decode(path: Path) -> np.ndarray:
    with av.open(path) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def contents(folder: Path) -> dict[str, bytes]:
    files = [*folder.glob("*.jsonl"), *folder.glob("*.txt"), *folder.glob("videos/*")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def read_rows(folder: Path, split: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]


def shape_of(frame: np.ndarray) -> np.ndarray:
    """Where a saturated colour is, bool [..., H, W]."""
    red, green, blue = np.moveaxis(frame, -1, 0)
    return np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue) > 90


def test_files_and_rows(folder):
    names = {f"videos/demo_{i:04d}.mp4" for i in range(5)}
    assert set(contents(folder)) == {"records.jsonl", "train.jsonl", "val.jsonl", "test.jsonl", "vectors.txt", *names}
    rows = {split: read_rows(folder, split) for split in ("train", "val", "test")}
    assert [len({row["video_id"] for row in rows[split]}) for split in rows] == [3, 1, 1]
    keys = ["annotation_id", "video_id", "query", "start_s", "end_s", "duration_s", "split", "group"]
    assert all(list(row) == keys and row["split"] == split for split in rows for row in rows[split])
    done = Manifest.read(folder, stage="demo").records["complete"]
    groups = collections.Counter(row["group"] for row in itertools.chain(*rows.values()))
    assert done["group"] == groups
    assert done["split"] == {split: len(rows[split]) for split in rows}
    assert done["num_videos"] == 5


def test_the_same_configuration_gives_the_same_bytes_and_another_seed_does_not(folder, tmp_path):
    again = contents(demo.run(small(out=tmp_path / "again")))
    assert again == contents(folder)
    other = contents(demo.run(small(out=tmp_path / "other", seed=1)))
    assert {name for name in again if again[name] == other[name]} == set()


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32),
    index=st.integers(0, 191),
    fps=st.sampled_from([5, 12, 15, 25, 30]),
    seconds=st.lists(st.floats(12, 37), min_size=2, max_size=2).map(sorted),
)
def test_a_plan_keeps_its_promises(seed, index, fps, seconds):
    config = demo.DemoConfig(out=Path("unused"), seed=seed, fps=fps, min_seconds=seconds[0], max_seconds=seconds[1])
    video = demo.plan_video(index, config)
    assert video == demo.plan_video(index, config)
    assert seconds[0] - 1 / fps < video.duration_s <= seconds[1]
    assert 3 <= len(video.events) <= 5
    edges = [0.0, *(edge for event in video.events for edge in (event.start_s, event.end_s)), video.duration_s]
    spans = np.diff(edges)  # gap, event, gap, ..., gap
    assert np.allclose(np.array(edges) * fps, np.round(np.array(edges) * fps), atol=1e-9)
    frame = 1 / fps + 1e-9
    assert ((spans[1::2] > 2.5 - frame) & (spans[1::2] < 7 + frame)).all()
    assert ((spans[::2] > 0.5 - frame) & (spans[::2] < 4 + frame)).all()


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), index=st.integers(0, 191))
def test_every_query_has_one_right_moment(seed, index):
    video = demo.plan_video(index, demo.DemoConfig(out=Path("unused"), seed=seed))
    rows = video.queries()
    for row in rows:
        words = row["query"].split()
        said = " ".join(words).removesuffix(" for the first time").removesuffix(" for the second time")
        right = [e for e in video.events if said == f"the {e.colour} {e.shape} {e.action}"]
        assert (row["group"] == "ordinal") == ("time" in words) == (len(right) == 2)
        which = 1 if "second" in words else 0
        assert (right[which].start_s, right[which].end_s) == (row["start_s"], row["end_s"])
    assert len({row["query"] for row in rows}) == len({row["annotation_id"] for row in rows}) == len(video.events)


def test_the_mixture_of_queries():
    config = demo.DemoConfig(out=Path("unused"))
    rows = [row for index in range(100) for row in demo.plan_video(index, config).queries()]
    share = sum(row["group"] == "ordinal" for row in rows) / len(rows)
    assert 0.2 < share < 0.45
    assert 3.4 < len(rows) / 100 < 3.9


@pytest.mark.parametrize("index", range(5))
def test_the_pixels_show_the_colour_during_events_and_nothing_between(folder, index):
    video = demo.plan_video(index, small(out=folder))
    frames = decode(folder / "videos" / f"{video.video_id}.mp4")
    assert frames.shape == (round(video.duration_s * 15), 128, 160, 3)
    masks = shape_of(frames)
    seen = masks[:, *INNER].sum(axis=(1, 2))
    assert (masks.sum(axis=(1, 2)) == seen).all()  # nothing outside the crop
    expected = np.zeros(len(frames), bool)
    for event in video.events:
        start, end = round(event.start_s * 15), round(event.end_s * 15)
        expected[start:end] = True
        if event.action == "blinks":
            assert 0.3 < (seen[start:end] > 0).mean() < 0.7
            assert seen[start] > 0 < seen[end - 1]
            expected[start:end] = seen[start:end] > 0
        middle = next(frame for frame in frames[(start + end) // 2 :] if shape_of(frame).any())
        colour = middle[shape_of(middle)].mean(axis=0)
        nearest = max(WORDS, key=lambda word: np.corrcoef(WORDS[word], colour)[0, 1])
        assert nearest == event.colour
    assert ((seen > 40) == expected).all()


@pytest.mark.parametrize("shape", demo.SHAPES)
@pytest.mark.parametrize("action", demo.ACTIONS)
def test_what_an_action_looks_like(shape, action):
    event = demo.Event("yellow", shape, action, start_s=1.0, end_s=5.0)
    frames = list(demo.render_frames(demo.DemoVideo("v", "test", 90, 15, 40, (event,))))
    assert len(frames) == 90
    masks = [shape_of(frame) for frame in frames]
    assert [mask.any() for mask in masks[:15] + masks[75:]] == [False] * 30
    first, last = masks[15], masks[74]
    assert all(mask[INNER].sum() == mask.sum() for mask in masks)
    if action == "blinks":
        runs = [(seen, len(list(group))) for seen, group in itertools.groupby(mask.any() for mask in masks[15:75])]
        assert [seen for seen, _ in runs] == [True, False] * 5 + [True]
        assert {length for _, length in runs} <= {5, 6}
    elif action == "grows":
        assert last.sum() > 20 * first.sum()
    else:
        moved = np.argwhere(last).mean(axis=0) - np.argwhere(first).mean(axis=0)  # rows, columns
        word = action.split()[-1]
        axis, sign = {"right": (1, 1), "left": (1, -1), "up": (0, -1), "down": (0, 1)}[word]
        assert sign * moved[axis] > 70
        assert moved[1 - axis] == 0


def test_shapes_are_what_they_are_called():
    areas = {shape: demo._mask(shape, 20).mean() for shape in demo.SHAPES}
    assert areas["square"] == 1
    assert areas["circle"] == pytest.approx(np.pi / 4, abs=0.02)
    assert areas["triangle"] == pytest.approx(0.5, abs=0.02)


def test_a_killed_run_goes_on_and_leaves_the_finished_alone(folder, tmp_path, monkeypatch):
    config, real, calls = small(out=tmp_path / "data"), demo.write_video, []

    def write_video(path, video):
        calls.append(video.video_id)
        if len(calls) == 3:
            path.with_name(f".{path.name}.1.tmp").write_bytes(b"half a video")
            raise KeyboardInterrupt
        real(path, video)

    monkeypatch.setattr(demo, "write_video", write_video)
    with pytest.raises(KeyboardInterrupt):
        demo.run(config)
    assert sorted(contents(config.out)) == ["records.jsonl", *(f"videos/{n}" for n in (
        ".demo_0002.mp4.1.tmp", "demo_0000.mp4", "demo_0001.mp4"))]  # fmt: skip
    before = {path: path.stat().st_mtime_ns for path in config.out.glob("videos/demo_*.mp4")}
    calls[:] = ["out of reach of the third call"] * 3
    demo.run(config)
    assert calls[3:] == ["demo_0002", "demo_0003", "demo_0004"]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert contents(config.out) == contents(folder)


def test_a_video_that_could_not_be_encoded_leaves_no_file(tmp_path, monkeypatch):
    video = demo.plan_video(0, small(out=tmp_path))

    def render_frames(video):
        yield np.zeros((128, 160, 3), np.uint8)
        raise OSError("no space left")

    monkeypatch.setattr(demo, "render_frames", render_frames)
    with pytest.raises(OSError, match="no space"):
        demo.write_video(tmp_path / "a.mp4", video)
    assert list(tmp_path.iterdir()) == []


def test_a_complete_folder_is_left_alone_and_another_recipe_refused(folder, caplog):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"}
    with caplog.at_level("INFO"):
        demo.run(small(out=folder), map=None)
    assert "nothing to do" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in before} == before
    with pytest.raises(RecipeMismatchError, match="seed"):
        demo.run(small(out=folder, seed=7))


def test_a_map_may_carry_the_work_elsewhere(folder, tmp_path):
    def far_map(function, items):
        for item in items:
            yield pickle.loads(pickle.dumps(function))(pickle.loads(pickle.dumps(item)))

    assert contents(demo.run(small(out=tmp_path / "data"), map=far_map)) == contents(folder)


def test_every_word_has_a_vector(folder):
    lines = (folder / "vectors.txt").read_text().splitlines()
    vectors = {line.split(" ")[0]: [float(number) for number in line.split(" ")[1:]] for line in lines}
    assert {len(vector) for vector in vectors.values()} == {50}
    assert len(vectors) == len(lines) == len({tuple(vector) for vector in vectors.values()})
    config = demo.DemoConfig(out=folder)
    queries = [row["query"] for index in range(192) for row in demo.plan_video(index, config).queries()]
    words = set(" ".join(queries).split())
    assert words < set(vectors)
    assert {"first", "second", *demo.COLOURS, *demo.SHAPES, "right", "left", "up", "down", "grows", "blinks"} <= words


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"min_seconds": 30.0, "max_seconds": 25.0}, "min_seconds is 30.0"),
        ({"min_seconds": 11.0}, "min_seconds"),
        ({"num_val": 0}, "num_val"),
        ({"frames": 3}, "frames"),
    ],
)
def test_impossible_configurations_are_refused_by_name(values, named):
    with pytest.raises(pydantic.ValidationError, match=named):
        demo.DemoConfig(out=Path("unused"), **values)
