"""excl compare: every verdict from data made to have it, with figures in closed form or from a slow literal version."""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import PurePath

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.comparison import compare
from excl.pipeline.comparison.array_sources import drop_unit_axes, open_source, transposed_side
from excl.pipeline.comparison.id_matching import pair
from excl.pipeline.comparison.similarity import best_offset, measure_similarity, repeats, row_statistics
from excl.pipeline.comparison.verdicts import Verdict, judge, ratio
from excl.pipeline.store.shard import VideoFeatures, write_shard
from excl.workflows.cli import main

WIDTH = 24


def rows_of(n, *, seed=0, width=WIDTH):
    """Rows that are alike within a video only by chance: n rows of independent values."""
    return np.random.default_rng(seed).standard_normal((n, width)).astype(np.float32)


def slow_best_offset(a, b, max_offset):
    """The definition, word by word."""
    best = (0, math.nan)
    for k in sorted(range(-max_offset, max_offset + 1), key=lambda k: (abs(k), -k)):
        cosines, overlap = [], 0
        for i in range(len(a)):
            if 0 <= i + k < len(b):
                overlap += 1
                x, y = a[i], b[i + k]
                size = math.sqrt(sum(v * v for v in x)) * math.sqrt(sum(v * v for v in y))
                if math.isfinite(size) and size > 0:
                    cosines.append(sum(p * q for p, q in zip(x, y, strict=True)) / size)
        if 2 * overlap >= min(len(a), len(b)) and cosines:
            mean = sum(cosines) / len(cosines)
            if math.isnan(best[1]) or mean > best[1] + 1e-6:
                best = (k, mean)
    return best


# -- measures -----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 12), m=st.integers(1, 12), reach=st.integers(0, 8), seed=st.integers(0, 99), gaps=st.booleans())
def test_the_best_offset_is_that_of_the_definition(n, m, reach, seed, gaps):
    a, b = rows_of(n, seed=seed, width=3).astype(float), rows_of(m, seed=seed + 1000, width=3).astype(float)
    if gaps:
        a[seed % n], b[seed % m] = 0, np.nan
    offset, mean = best_offset(a, b, reach)
    wanted, wanted_mean = slow_best_offset(a, b, reach)
    assert offset == wanted
    assert mean == pytest.approx(wanted_mean, abs=1e-12, nan_ok=True)


@settings(max_examples=60, deadline=None)
@given(k=st.integers(-16, 16), n=st.integers(34, 60), seed=st.integers(0, 99))
def test_a_shift_is_found(k, n, seed):
    """B is A with k rows put before it, or taken away there: A[i] is B[i + k]."""
    a = rows_of(n, seed=seed)
    b = np.concatenate([rows_of(k, seed=1000 + seed), a]) if k > 0 else a[-k:]
    judged = judge(a, b, 16)
    assert judged.likeness.offset == k
    assert judged.likeness.rel == 0
    assert judged.verdict is (Verdict.SHIFTED if k else Verdict.IDENTICAL)


def test_a_still_video_is_not_shifted():
    a = np.tile(rows_of(1), (40, 1))
    assert judge(a, a.astype(np.float16), 16).likeness.offset == 0


def test_measures_in_closed_form():
    """Rows (3, 4) against (4, 3): cosine 24/25, difference sqrt 2 of 5, factor 24/25."""
    found = measure_similarity(np.tile([3.0, 4.0], (20, 1)), np.tile([4.0, 3.0], (20, 1)), 3)
    assert found.cos_mean == pytest.approx(24 / 25)
    assert (found.cos_min, found.cos_inner, found.cos_border) == pytest.approx((24 / 25,) * 3)
    assert found.control == pytest.approx(24 / 25)
    assert (found.rel, found.rel_inner) == pytest.approx((math.sqrt(2) / 5,) * 2)
    assert found.factor == pytest.approx(24 / 25)
    assert found.max_abs == 1
    assert found.overlap == 20
    assert found.undefined == 0
    assert found.odd == tuple(range(20))
    assert found.odd_inside == 6  # 20 rows less 7 at either end


def test_rows_without_a_direction_are_counted_and_left_out():
    a, b = rows_of(30), rows_of(30)
    a[4], b[4] = 0, 0  # equal
    a[9] = 0  # on one side
    b[20, 3], b[20, 4] = np.inf, np.nan
    judged = judge(a, b, 4)
    assert judged.likeness.undefined == 3
    assert judged.likeness.cos_mean == pytest.approx(1)
    assert judged.likeness.odd == (9, 20)
    assert judged.verdict is Verdict.ROWS
    assert (judged.a.zero_rows, judged.b.zero_rows) == (2, 1)
    assert (judged.a.bad_values, judged.b.bad_values, judged.b.bad_rows) == (0, 2, 1)
    assert judge(a, a, 4).verdict is Verdict.IDENTICAL
    assert judge(b, b, 4).verdict is Verdict.IDENTICAL  # NaN in the same places


@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.integers(0, 5), min_size=1, max_size=150))
def test_repeats_are_those_of_the_definition(values):
    rows = np.array(values, np.float32)[:, None] * [1, 2]
    previous, earlier = repeats(rows)
    for i, value in enumerate(values):
        neighbour = i > 0 and values[i - 1] == value != 0
        back = [d for d in range(2, min(64, i) + 1) if values[i - d] == value != 0]
        assert previous[i] == neighbour
        assert earlier[i] == (back[0] if back and not neighbour else 0)


def test_a_repetition_further_back_is_none():
    a = rows_of(100)
    a[70], a[90] = a[5], a[26]  # 65 and 64 rows back
    found = row_statistics(a)
    assert (found.repeated, found.repeat_distance) == (1, 64)


# -- verdicts -----------------------------------------------------------------------------------------------------------


def noisy(a, share, seed=1):
    """A with noise so that the relative error of every row is `share`, exactly."""
    noise = rows_of(len(a), seed=seed, width=a.shape[1]).astype(float)
    noise *= share * np.linalg.norm(a, axis=1, keepdims=True) / np.linalg.norm(noise, axis=1, keepdims=True)
    return a + noise


def made(kind):
    """(A, B) with the verdict of that name."""
    b = rows_of(100).astype(float)
    ends = np.r_[0:7, 93:100]
    other = b.copy()
    if kind == "borders":
        other[ends] = noisy(b, 0.5)[ends]
    if kind == "rows":
        other[[20, 50]] = rows_of(2, seed=5)
    slow = np.repeat(rows_of(25), 4, axis=0) + 0.2 * b
    return {
        "identical": (b, b),
        "rounding": (noisy(b, 0.99e-3), b),
        "reduced": (noisy(b, 1.99e-2), b),
        "length": (b[:80], b),
        "shifted": (noisy(b, 0.01)[3:], b),
        "borders": (other, b),
        "rows": (other, b),
        "repeats": (np.concatenate([b[:50], b[37:]]), b),
        "factor": (3 * noisy(b, 0.01), b),
        "rate": (slow[::4], slow),
        "related": (noisy(b, 0.3), b),
        "unclear": (noisy(b + 9, 0.3), b + 9),
        "different": (rows_of(100, seed=1), b),
        "incomparable": (b[:, :5], b),
    }[kind]


@pytest.mark.parametrize("verdict", list(Verdict), ids=lambda v: v.name)
def test_every_verdict(verdict):
    a, b = made(verdict.name.lower())
    assert judge(a, b, 16).verdict is verdict


@pytest.mark.parametrize(("share", "verdict"), [(1.01e-3, Verdict.REDUCED), (2.01e-2, Verdict.RELATED)])
def test_just_over_a_threshold(share, verdict):
    b = rows_of(100).astype(float)
    b[:, 0] += 0.1 * np.arange(100)  # lengths that differ, so that the errors are no common factor
    judged = judge(noisy(b, share), b, 4)
    assert judged.likeness.rel == pytest.approx(share)
    assert judged.verdict is verdict


def test_l2_normalised_rows_are_found():
    b = rows_of(40).astype(float) * np.linspace(1, 3, 40)[:, None]
    judged = judge(b / np.linalg.norm(b, axis=1, keepdims=True), b, 4)
    assert judged.verdict is Verdict.FACTOR
    assert judged.notes == ("only A has rows of norm 1",)
    assert judge(2.5 * b, b, 4).notes == ("A is about 2.5 B",)


def test_repeated_rows_at_the_seams_of_overlapping_chunks():
    """A long video taken in chunks of 200 rows with 13 rows in common, put together without cutting them."""
    b = rows_of(600)
    a = np.concatenate([b[max(0, start - 6) : start + 207] for start in range(0, 600, 200)])
    judged = judge(a, b, 16)
    assert (judged.a.rows, judged.a.repeated, judged.a.repeat_distance) == (600 + 26, 26, 13)
    assert judged.verdict is Verdict.REPEATS
    assert judged.likeness.rel == 0
    assert judged.notes == ("A: 26 rows repeat an earlier one, mostly 13 before",)
    scaled = judge(2 * a, b, 16)
    assert scaled.verdict is Verdict.FACTOR
    assert scaled.notes[0] == "without the repeated rows"


@pytest.mark.parametrize("times", [2, 4, 8])
def test_another_rate(times):
    """Rows that change slowly, kept every so many: compared at the same times."""
    b = np.repeat(rows_of(32), times, axis=0)
    judged = judge(b[::times], b, 16)
    assert judged.verdict is Verdict.RATE
    assert judged.likeness.cos_min == pytest.approx(1)
    assert judged.notes[0] == f"rows A to B 1:{times}, B resampled"
    back = judge(b, b[::times], 16)
    assert back.verdict is Verdict.RATE
    assert back.notes[0] == f"rows A to B {times}:1, B resampled"


def test_another_rate_of_rows_that_are_all_alike():
    """Cosines above 0.99 everywhere, as a network gives them: twice the rows is another rate, not an offset."""
    b = np.cumsum(rows_of(11).astype(float), axis=0) + 40
    a = noisy(np.repeat(b, 2, axis=0), 0.02)
    judged = judge(a, b, 16)
    assert judged.likeness.control > 0.98
    assert judged.likeness.resampled
    assert judged.likeness.offset == 0
    assert judged.verdict is Verdict.RATE


def test_a_part_of_related_features_is_no_rate():
    b = rows_of(100)
    judged = judge(noisy(b, 0.3)[:55], b, 16)
    assert (judged.verdict, judged.likeness.resampled, judged.likeness.offset) == (Verdict.RELATED, False, 0)


def test_ratios():
    assert ratio(100, 203) == "1:2"
    assert ratio(800, 101) == "8:1"
    assert ratio(100, 110) == "0.909"
    assert ratio(300, 200) == "1.500"


def test_nearest_rows_in_time():
    assert compare.nearest(np.array([0.0, 0.9, 1.1, 9]), np.array([0.5, 1.5, 2.5])).tolist() == [0, 0, 1, 2]
    assert compare.nearest(np.array([0.0, 1]), np.array([5.0])).tolist() == [0, 0]


# -- sources ------------------------------------------------------------------------------------------------------------


def npy(folder, arrays):
    folder.mkdir(exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return folder


def store(folder, arrays, *, dtype=np.float16, seconds=1.6, recipe=None):
    recipe = recipe or {"fps": 5.0, "weights": {"source": "random:0"}}
    with Manifest.open(folder, stage="extract", identity=recipe, code_version=1) as manifest:
        videos = []
        for name, array in arrays.items():
            edges = np.arange(len(array) + 1) * seconds
            videos.append(VideoFeatures(name, array.astype(dtype), edges[:-1], edges[1:], {}))
        write_shard(folder / "0.h5", videos, recipe=recipe)
        manifest.add({"id": "shard/0", "file": "0.h5", "videos": list(arrays)})
    return folder


def found(capsys, *arguments):
    """Exit code and JSON of the command."""
    code = main(["compare", *map(str, arguments), "--json", "-"])
    return code, json.loads(capsys.readouterr().out)


def verdicts(capsys, *arguments):
    code, value = found(capsys, *arguments)
    assert code == 0
    return {name: video["verdict"] for name, video in value["videos"].items()}


@pytest.mark.parametrize("shape", [(30, 24), (1, 30, 24), (30, 1, 1, 24), (30, 1, 1, 1, 24), (30, 1, 24)])
def test_shapes(shape):
    assert drop_unit_axes(np.zeros(shape), place="x").shape == (30, 24)
    assert drop_unit_axes(np.zeros((1, 1, 1, 24)), place="x").shape == (1, 24)


@pytest.mark.parametrize("array", [np.zeros(5), np.zeros((2, 3, 4)), np.zeros((0, 4)), np.array(3.0), np.array([["a"]])])
def test_shapes_that_are_refused(array):
    with pytest.raises(ValueError, match=r"here: .*expected"):
        drop_unit_axes(array, place="here")


def test_a_store_in_float16_is_its_float32_original(tmp_path, capsys):
    arrays = {"a": rows_of(30), "b": rows_of(9, seed=1)}
    assert verdicts(capsys, store(tmp_path / "s", arrays), npy(tmp_path / "n", arrays)) == {"a": "rounding", "b": "rounding"}
    assert verdicts(capsys, tmp_path / "s", tmp_path / "s") == {"a": "identical", "b": "identical"}


def test_every_layout_gives_the_same(tmp_path, capsys):
    arrays = {"a": rows_of(30), "b": rows_of(9, seed=1)}
    reference = npy(tmp_path / "npy", arrays)
    npy(tmp_path / "dense", {name: array[:, None, None] for name, array in arrays.items()})
    for kind in ("npz", "pt", "pth"):
        (tmp_path / kind).mkdir()
    for name, array in arrays.items():
        np.savez(tmp_path / "npz" / f"{name}.npz", features=array, other=np.zeros(3))
        torch.save(torch.from_numpy(array)[None], tmp_path / "pt" / f"{name}.pt")
        torch.save(torch.from_numpy(array), tmp_path / "pth" / f"{name}.pth")
    with h5py.File(tmp_path / "flat.h5", "w") as flat, h5py.File(tmp_path / "groups.hdf5", "w") as groups:
        for name, array in arrays.items():
            flat[name] = array
            groups[f"v_{name}/c3d_features"] = array
    for other in ("dense", "npz", "pt", "pth", "flat.h5", "groups.hdf5"):
        assert verdicts(capsys, tmp_path / other, reference) == {"a": "identical", "b": "identical"}, other


def test_transposed_features_are_told_of(tmp_path, capsys):
    arrays = {"a": rows_of(30), "b": rows_of(9, seed=1)}
    turned = npy(tmp_path / "t", {name: array.T for name, array in arrays.items()})
    upright = npy(tmp_path / "n", arrays)
    assert main(["compare", str(upright), str(turned)]) == 0
    text = capsys.readouterr().out
    assert "B is [D, n], as the width of the other side shows; it was transposed" in text
    assert "same features, value by value: all 2 videos" in text
    assert found(capsys, turned, upright)[1]["transposed"] == "A"
    one = npy(tmp_path / "one", {"a": arrays["a"].T})
    assert found(capsys, store(tmp_path / "s", arrays), one)[1]["transposed"] == "B"
    code, value = found(capsys, npy(tmp_path / "other", {"a": arrays["a"]}), one)
    assert (code, value["transposed"], value["videos"]["a"]["verdict"]) == (0, "A or B", "incomparable")


def test_square_features_are_not_turned():
    assert transposed_side([(24, 24)], [(24, 24)]) == ""
    assert transposed_side([(30, 24), (9, 24)], [(24, 7), (24, 8), (24, 9)]) == "B"
    assert transposed_side([(30, 24), (9, 24)], [(30, 12), (9, 12)]) == ""
    assert transposed_side([], []) == ""


def test_stores_tell_how_their_recipes_differ(tmp_path, capsys):
    """And rows of stores with other windows meet by their seconds: 2 rows of A for every one of B."""
    slow = rows_of(20)
    fine = store(tmp_path / "fine", {"a": np.repeat(slow, 2, axis=0)}, seconds=0.8, recipe={"fps": 10.0, "crop": 224})
    coarse = store(tmp_path / "coarse", {"a": slow}, recipe={"fps": 5.0, "crop": 224})
    assert main(["compare", str(fine), str(coarse)]) == 0
    text = capsys.readouterr().out
    assert "recipes differ in fps: A has 10.0, B has 5.0" in text
    assert "crop" not in text
    assert "another rate; rows A to B 2:1, B resampled" in text


def test_broken_files_cost_themselves_only(tmp_path, capsys):
    a = npy(tmp_path / "a", {name: rows_of(9) for name in "uvwxyz"})
    b = npy(tmp_path / "b", {"u": rows_of(9), "w": rows_of(9)[0], "x": np.array([{"an": "object"}], dtype=object)})
    (b / "v.npy").write_bytes((a / "v.npy").read_bytes()[:200])
    (b / "y.npy").write_bytes(b"")
    with zipfile.ZipFile(b / "z.npz", "w") as archive:
        archive.writestr("x.npy", b"nothing")
    torch.save(PurePath("x"), b / "q.pt")  # an object to unpickle
    np.save(a / "q.npy", rows_of(9))
    code, value = found(capsys, a, b)
    assert code == 3
    assert set(value["videos"]) == {"u"}
    assert set(value["failed"]) == set("qvwxyz")
    for name, message in value["failed"].items():
        assert str(b) in message, name
        assert "allow_pickle" not in message or name == "x"
    main(["compare", str(a), str(b)])
    text = capsys.readouterr().out
    assert text.count("cannot be read:") == 6
    assert text.endswith("all 1 videos; 6 cannot be read.\n")


@pytest.mark.parametrize("case", ["nothing", "empty", "nested", "twice", "text", "file", "shard", "bare", "one group"])
def test_sources_that_are_refused(tmp_path, case):
    path = tmp_path / "source"
    if case != "nothing" and case not in ("text", "file", "shard", "bare", "one group"):
        path.mkdir()
    if case == "nested":
        npy(path / "rgb", {"a": rows_of(3)})
    if case == "twice":
        npy(path, {"a": rows_of(3)})
        np.savez(path / "a.npz", rows_of(3))
    if case == "text":
        path = tmp_path / "x.h5"
        path.write_text("no HDF5")
    if case == "file":
        path = npy(tmp_path, {"a": rows_of(3)}) / "a.npy"
    if case == "shard":
        path = store(tmp_path / "s", {"a": rows_of(3)}) / "0.h5"
    if case in ("bare", "one group"):
        path = tmp_path / "x.h5"
        with h5py.File(path, "w") as file:
            if case == "one group":
                file["train/a"], file["train/b"] = rows_of(3), rows_of(3)
    reason = {
        "nothing": "nothing of that name",
        "empty": "without array files; expected",
        "nested": r"there are some in .*rgb",
        "twice": r"a\.npy and a\.npz are of one video",
        "text": "not a readable HDF5",
        "file": "give the folder that it lies in",
        "shard": "give the store's folder",
        "bare": "without anything in it",
        "one group": "all of it is in the group 'train'",
    }[case]
    with pytest.raises((ValueError, OSError), match=rf"{path.name}.*{reason}"):
        open_source(path)


def test_odd_things_in_hdf5_are_refused_by_name(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["good"] = rows_of(3)
        file["two/rgb"], file["two/flow"] = rows_of(3), rows_of(3)
        file["refs"] = np.array([file["good"].ref], dtype=h5py.ref_dtype)
        file["words"] = ["a", "b"]
        file.create_dataset("huge", shape=(2**40, 8), chunks=(8, 8), dtype="f4")
        file["gone"] = h5py.SoftLink("/nowhere")
    source = open_source(tmp_path / "x.h5")
    assert source["good"].shape == (3, WIDTH)
    for name, reason in [("two", r"flow, rgb"), ("refs", "type"), ("words", "type"), ("huge", "more than"), ("gone", "")]:
        with pytest.raises(ValueError, match=rf"x\.h5.*'{name}'.*{reason}"):
            source[name]


# -- ids ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "rule"),
    [
        (["p", "q"], ["p", "q"], "equal ids"),
        (["v_p", "v_q"], ["p", "q"], "ids, those of A without 'v_'"),
        (["p", "q"], ["p.mp4", "q.mp4"], "ids, those of B without '.mp4'"),
        (["p", "q"], ["p.mp4", "q.avi"], "ids, those of B without the ending of a video file"),
        (["p_i3d-rgb", "q_i3d-rgb"], ["v_p", "v_q"], "ids, those of A without '_i3d-rgb', those of B without 'v_'"),
        (["v_p.mp4_i3d", "v_q.mkv_i3d"], ["p", "q"], "A without '_i3d' and the ending of a video file and 'v_'"),
        (["v_p_x", "v_q_x"], ["p_x", "q_x"], "ids, those of A without 'v_'"),
    ],
)
def test_rules_for_ids(a, b, rule):
    for names in (a, [*a, a[0].replace("p", "only", 1)]):
        pairing = pair(names, b)
        assert rule in pairing.rule
        assert sorted(pairing.pairs.values()) == list(zip(a, b, strict=True))
        assert pairing.only_a == sorted(set(names) - set(a))
        assert pairing.only_b == []


def test_equal_ids_come_first():
    """Half of the ids are equal: no rule is looked for, though one would find more."""
    pairing = pair(["a", "b", "c.mp4"], ["a", "b", "c", "d"])
    assert list(pairing.pairs) == ["a", "b"]
    assert pairing.only_a == ["c.mp4"]


def test_ambiguous_ids_are_refused_by_name():
    with pytest.raises(ValueError, match=r"'p\.avi' and 'p\.mp4' of A would all be 'p'"):
        pair(["p.avi", "p.mp4", "q.mp4"], ["p", "q"])


def test_no_ids_in_common(tmp_path, caplog):
    a, b = npy(tmp_path / "a", {"one": rows_of(3)}), npy(tmp_path / "b", {"two": rows_of(3)})
    assert main(["compare", str(a), str(b)]) == 2
    assert "A has 'one'; B has 'two'" in caplog.text
    assert str(a) in caplog.text


def test_one_of_several_kinds_in_a_folder(tmp_path, capsys):
    """Folders with `_rgb` beside `_flow` and `_fps`: a suffix chooses."""
    other = npy(tmp_path / "b", {"p_rgb": rows_of(9), "p_flow": rows_of(9, seed=1), "p_fps": np.array(25.0)})
    ours = npy(tmp_path / "a", {"p": rows_of(9)})
    assert verdicts(capsys, ours, other, "--suffix-b", "_rgb") == {"p": "identical"}
    assert verdicts(capsys, ours, other, "--suffix-b", "_flow") == {"p": "different"}
    assert main(["compare", str(ours), str(other), "--suffix-b", "_depth"]) == 2


# -- what is shown ------------------------------------------------------------------------------------------------------


def test_the_table_shows_the_worst_and_says_how_many_are_not_shown(tmp_path, capsys):
    names = [f"x{i:02d}" for i in range(30)]
    a = npy(tmp_path / "a", {name: rows_of(9) for name in [*names, "mine"]})
    b = npy(tmp_path / "b", {name: rows_of(9, seed=name == "x17") for name in [*names, "yours"]})
    report = tmp_path / "out.json"
    assert main(["compare", str(a), str(b), "--show", "2", "--json", str(report)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "30 videos in both, matched by equal ids" in lines
    assert "1 only in A: mine" in lines
    assert "1 only in B: yours" in lines
    table = lines[next(i for i, line in enumerate(lines) if line.startswith("id")) + 1 :]
    assert table[0].startswith("x17")
    assert "different" in table[0]
    assert table[1].endswith("identical")
    assert table[2] == "28 more videos, less different, are not shown (--show)"
    assert lines[-1] == "For the most part: 29 of 30 videos have the same features; 1 different."
    value = json.loads(report.read_text())
    assert value["counts"] == {"identical": 29, "different": 1}
    assert len(value["videos"]) == 30
    assert value["videos"]["x17"]["likeness"]["cos_mean"] < 0.9


def test_json_is_strict(tmp_path, capsys):
    """What is not defined is null: all rows of B are zeros."""
    a, b = npy(tmp_path / "a", {"p": rows_of(9)}), npy(tmp_path / "b", {"p": np.zeros((9, WIDTH))})
    code, value = found(capsys, a, b)
    assert code == 0
    assert value["videos"]["p"]["verdict"] == "incomparable"
    assert value["videos"]["p"]["likeness"]["cos_mean"] is None


def test_a_report_without_a_folder_is_refused_before_the_work(tmp_path, caplog):
    a = npy(tmp_path / "a", {"p": rows_of(9)})
    assert main(["compare", str(a), str(a), "--json", str(tmp_path / "no" / "x.json")]) == 1
    assert "there is no folder" in caplog.text
