"""Features that others made: into a store, with the seconds stated for their rows, and on to a trained run."""

from __future__ import annotations

import json
import os

import h5py
import numpy as np
import pytest
import torch
from exchange_data import DIM, FPS, FRAMES, annotate, features, packed, video
from shared_fixtures import write_video

from excl.datasets.annotations.durations import read_durations
from excl.pipeline.artifacts.header import RecipeMismatchError
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.comparison.array_sources import open_source
from excl.pipeline.store.feature_store import FeatureStore
from excl.pipeline.store.training_store import TrainingStore
from excl.workflows.cli import main

RATE = ["--fps", "5", "--stride", "8"]
MODEL = [x for size in ("text", "video", "predictor", "mlp") for x in (f"--model.{size}-hidden", "8")]


def arrays(count=4, *, rows=(5, 9, 12, 7), dim=DIM, dtype=np.float32):
    return {f"v{n}": np.random.default_rng(n).standard_normal((rows[n], dim)).astype(dtype) for n in range(count)}


def save(folder, found, *, kind="npy"):
    folder.mkdir(exist_ok=True)
    for name, rows in found.items():
        if kind == "npy":
            np.save(folder / f"{name}.npy", rows)
        elif kind == "npz":
            np.savez(folder / f"{name}.npz", features=rows, other=np.zeros(3))
        else:
            torch.save(torch.from_numpy(rows), folder / f"{name}.pt")
    return folder


def failures(out):
    return {name.removeprefix("video/"): r["message"] for name, r in Manifest.read(out).failed.items()}


def put(source, out, *more, code=0):
    assert main(["import", str(source), "--out", str(out), *more]) == code
    return FeatureStore(out) if code in (0, 3) else None


def as_hdf5(path, found, *, group=False):
    with h5py.File(path, "w") as file:
        for name, rows in found.items():
            file[f"{name}/c3d_features" if group else name] = rows
    return path


def sources(tmp_path, found):
    np.savez(tmp_path / "all.npz", **found)
    torch.save({name: torch.from_numpy(rows) for name, rows in found.items()}, tmp_path / "all.pt")
    return {
        **{kind: save(tmp_path / kind, found, kind=kind) for kind in ("npy", "npz", "pt")},
        "hdf5": as_hdf5(tmp_path / "x.hdf5", found),
        "groups": as_hdf5(tmp_path / "g.h5", found, group=True),
        "all.npz": tmp_path / "all.npz",
        "all.pt": tmp_path / "all.pt",
    }


@pytest.mark.parametrize("kind", ["npy", "npz", "pt", "hdf5", "groups", "all.npz", "all.pt"])
def test_every_kind_of_source(tmp_path, kind):
    found = arrays()
    store = put(sources(tmp_path, found)[kind], tmp_path / "out", *RATE, "--offset-s", "0.5")
    assert list(store) == sorted(found)
    for name, rows in found.items():
        video_features = store[name]
        np.testing.assert_array_equal(video_features.features, rows)
        assert video_features.features.dtype == np.float32
        np.testing.assert_allclose(video_features.start_s, [0.5 + k * 8 / 5 for k in range(len(rows))])
        np.testing.assert_allclose(video_features.end_s, [0.5 + (k + 1) * 8 / 5 for k in range(len(rows))])
    assert main(["compare", str(tmp_path / "out"), str(sources(tmp_path, found)[kind])]) == 0


def test_what_the_store_says_of_them(tmp_path):
    import hashlib

    found = arrays()
    store = put(save(tmp_path / "f", found), tmp_path / "out", *RATE)
    store.require_finished()
    recipe = store.recipe
    assert recipe["fps"] == 5.0
    assert recipe["rows"] == {"kind": "even", "seconds_per_row": 1.6, "offset_s": 0.0}
    assert recipe["weights"]["source"] == "imported"
    assert recipe["weights"]["random"] is False
    assert len(recipe["weights"]["sha256"]) == 64
    assert store.manifest.header["stage"] == "import"
    for name in found:
        sha256 = hashlib.sha256((tmp_path / "f" / f"{name}.npy").read_bytes()).hexdigest()
        assert store[name].facts["source"] == {"file": f"{name}.npy", "array": name, "sha256": sha256}
        assert store.manifest.records[f"video/{name}"]["source"]["sha256"] == sha256


def test_rows_spread_over_durations(tmp_path):
    found = arrays()
    (tmp_path / "d.json").write_text(json.dumps({"v0": 10, "v1": {"duration": 4.5}, "v2": 7.25}))
    store = put(save(tmp_path / "f", found), tmp_path / "out", "--spread", "--durations", str(tmp_path / "d.json"), code=3)
    assert failures(tmp_path / "out") == {"v3": "v3: nothing says how long the video is, over which its rows are spread"}
    for name, duration_s in {"v0": 10, "v1": 4.5, "v2": 7.25}.items():
        rows = len(found[name])
        np.testing.assert_allclose(store[name].start_s, [k * duration_s / rows for k in range(rows)])
        np.testing.assert_allclose(store[name].end_s, [(k + 1) * duration_s / rows for k in range(rows)])
        assert store.duration_s(name) == duration_s


def test_durations_from_the_videos(tmp_path):
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "v0.mp4", list(range(0, 4000, 100)))  # 40 frames, a tenth of a second each
    (tmp_path / "videos" / "v1.mp4").write_bytes(b"no video")
    source = save(tmp_path / "f", arrays(2))
    store = put(source, tmp_path / "out", "--spread", "--videos", str(tmp_path / "videos"), code=3)
    assert store["v0"].end_s[-1] == pytest.approx(4.0, abs=0.11)
    assert list(failures(tmp_path / "out")) == ["v1"]
    assert "v1.mp4" in failures(tmp_path / "out")["v1"]


def test_tables_of_durations(tmp_path):
    (tmp_path / "a.csv").write_text("id,subject,length\nAO8RW,x,33.67\n46GP8,y,24.83\n")
    assert read_durations([tmp_path / "a.csv"]) == {"AO8RW": 33.67, "46GP8": 24.83}
    (tmp_path / "b.tsv").write_text("video_id\tduration_s\nv\t3\n")
    assert read_durations([tmp_path / "b.tsv"]) == {"v": 3.0}
    for name, text, reason in [
        ("c.csv", "name,length\nv,3\n", r"c\.csv:1: the columns are \['name', 'length'\]"),
        ("d.csv", "id,length\nv,long\n", r"d\.csv:2: the duration is 'long'"),
        ("e.csv", "id,length\nv\n", r"e\.csv:2: the duration is ''"),
        ("f.json", '{"v": -1}', r"f\.json: v: the duration is -1"),
        ("g.json", '{"v": {"fps": 3}}', r"g\.json: v: no 'duration'; found the keys 'fps'"),
        ("h.json", "[1]", r"h\.json:1"),
    ]:
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=reason):
            read_durations([tmp_path / name])


def test_a_rate_that_is_not_theirs_is_refused_video_by_video(tmp_path):
    """Stated 1.6 s a row, truly 0.8: half of each video would have no rows."""
    found = {name: np.zeros((50, DIM), np.float32) + n for n, name in enumerate("abc", 1)}
    (tmp_path / "d.json").write_text(json.dumps({"a": 40.0, "b": 79.0, "c": 81.5}))
    store = put(save(tmp_path / "f", found), tmp_path / "out", *RATE, "--durations", str(tmp_path / "d.json"), code=3)
    assert list(store) == ["b", "c"]
    assert failures(tmp_path / "out")["a"].endswith("40.00 s long: 0.8 s a row would fit")
    assert store["b"].end_s[-1] == 79.0  # the last row ends with its video
    assert store["c"].end_s[-1] == 80.0  # and is not made longer
    assert store.duration_s("c") == 81.5


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.array([[1.0] * DIM, [np.nan] * DIM]), f"{DIM} feature values are not finite"),
        (np.full((3, DIM), np.inf), "feature values are not finite"),
        (np.full((3, DIM), 1e300), "do not fit float32"),
        (np.zeros((3, DIM + 1)), rf"shape \(3, {DIM + 1}\); expected rows of {DIM} values"),
        (np.zeros((2, 3, DIM)), r"shape \(2, 3, 16\)"),
        (np.zeros((0, DIM)), "shape"),
        (np.zeros(DIM), "shape"),
        (np.array([["a"] * DIM]), "expected numbers"),
        (np.zeros((3, DIM), complex), "expected numbers"),
    ],
)
def test_arrays_that_are_no_features_cost_their_video_alone(tmp_path, array, reason):
    folder = save(tmp_path / "f", arrays())
    np.save(folder / "bad.npy", array)
    store = put(folder, tmp_path / "out", *RATE, code=3)
    assert list(store) == ["v0", "v1", "v2", "v3"]
    [(name, message)] = failures(tmp_path / "out").items()
    assert name == "bad"
    assert "bad" in message
    import re

    assert re.search(reason, message), message


def test_damaged_and_pickled_files_cost_their_video_alone(tmp_path):
    folder = save(tmp_path / "f", arrays())
    whole = (folder / "v0.npy").read_bytes()
    (folder / "cut.npy").write_bytes(whole[:-7])
    (folder / "empty.npy").write_bytes(b"")
    np.save(folder / "pickled.npy", np.array([{}], object), allow_pickle=True)
    (folder / "zip.npz").write_bytes(b"PK\3\4nothing")
    put(folder, tmp_path / "out", *RATE, code=3)
    assert set(failures(tmp_path / "out")) == {"cut", "empty", "pickled", "zip"}
    assert all(str(folder) in message for message in failures(tmp_path / "out").values())


@pytest.mark.parametrize("shape", ["n11d", "1nd", "transposed", "one of them transposed", "float64", "float16"])
def test_shapes_and_types_that_mean_the_same(tmp_path, shape):
    found = arrays()
    change = {
        "n11d": lambda x: x[:, None, None],
        "1nd": lambda x: x[None],
        "transposed": lambda x: x.T,
        "one of them transposed": lambda x: x.T if len(x) == 9 else x,
        "float64": lambda x: x.astype(np.float64),
        "float16": lambda x: x.astype(np.float16),
    }[shape]
    changed = {name: change(rows) for name, rows in found.items()}
    store = put(save(tmp_path / "f", changed), tmp_path / "out", *RATE)
    for name, rows in found.items():
        wanted = rows.astype(np.float16) if shape == "float16" else rows
        np.testing.assert_array_equal(store[name].features, wanted)
        assert store[name].features.dtype == np.float32
        assert store[name].facts["transposed"] == (changed[name].shape[0] == DIM)


def test_a_shape_that_says_nothing_asks_for_the_length_of_a_row(tmp_path, caplog):
    rows = np.random.default_rng(0).standard_normal((256, 37)).astype(np.float32)
    folder = save(tmp_path / "f", {"v": rows})
    put(folder, tmp_path / "out", *RATE, code=2)
    assert "look like [D, n]; --dim 256 says that they are" in caplog.text
    assert put(folder, tmp_path / "out", *RATE, "--dim", "256")["v"].features.shape == (37, 256)
    assert put(folder, tmp_path / "other", *RATE, "--dim", "37")["v"].features.shape == (256, 37)


def test_rows_of_no_common_length_are_refused(tmp_path, caplog):
    folder = save(tmp_path / "f", {f"v{n}": np.zeros((n + 1, 20 - n), np.float32) for n in range(4)})
    put(folder, tmp_path / "out", *RATE, code=2)
    assert "--dim says how long they are" in caplog.text


def test_resumed_extended_and_changed(tmp_path, caplog):
    caplog.set_level("INFO")
    found = arrays()
    folder = save(tmp_path / "f", dict(list(found.items())[:2]))
    named = [*RATE, "--name", "test features"]
    put(folder, tmp_path / "out", *named)
    shards = {p: p.read_bytes() for p in (tmp_path / "out" / "shards").iterdir()}
    put(folder, tmp_path / "out", *named)
    assert {p: p.read_bytes() for p in (tmp_path / "out" / "shards").iterdir()} == shards
    np.save(folder / "v3.npy", np.full((3, DIM), np.nan))
    put(save(folder, {"v2": found["v2"]}), tmp_path / "out", *named, code=3)
    assert list(FeatureStore(tmp_path / "out")) == ["v0", "v1", "v2"]
    save(folder, found)
    put(folder, tmp_path / "out", *named, code=3)  # a failure stays until it is asked for again
    assert list(put(folder, tmp_path / "out", *named, "--retry-failed")) == list(found)
    put(folder, tmp_path / "out", *RATE, "--name", "others", code=2)
    assert "recipe.weights.name: the folder has 'test features', asked for is 'others'" in caplog.text
    np.save(folder / "v0.npy", found["v0"] + 1)
    os.utime(folder / "v0.npy", ns=(0, 0))
    put(folder, tmp_path / "out", *named, code=2)
    assert "v0.npy has changed since" in caplog.text
    whole = put(save(tmp_path / "g", found), tmp_path / "all", *named)
    assert whole.recipe == FeatureStore(tmp_path / "out").recipe  # another import of the same kind
    [one], [other] = ([*(tmp_path / name / "shards").iterdir()] for name in ("all", "out"))
    assert one.read_bytes() == other.read_bytes()


def test_an_imported_store_is_verified_repaired_and_indexed_like_any_other(tmp_path, capsys):
    found = arrays()
    folder = save(tmp_path / "f", found)
    put(folder, tmp_path / "out", *RATE)
    with h5py.File(tmp_path / "out" / "features.h5") as file:
        np.testing.assert_array_equal(file["v2"][:], found["v2"])
    check = ["verify", str(tmp_path / "out"), "--read-data"]
    assert main(check) == 0
    [shard] = (tmp_path / "out" / "shards").iterdir()
    whole = shard.read_bytes()
    at = whole.index(found["v1"].tobytes()) + 9
    shard.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    assert main(check) == 3
    assert "[v1]" in capsys.readouterr().out
    assert main(["repair", str(tmp_path / "out")]) == 0
    assert "3 whole videos of it are kept" in capsys.readouterr().out
    put(folder, tmp_path / "out", *RATE)
    assert main(check) == 0
    assert shard.read_bytes() == whole


def test_another_rate_or_other_files_are_another_store(tmp_path, caplog):
    folder = save(tmp_path / "f", arrays(2))
    put(folder, tmp_path / "out", *RATE)
    put(folder, tmp_path / "out", "--fps", "5", "--stride", "16", code=2)
    assert "recipe.rows.seconds_per_row: the folder has 1.6, asked for is 3.2" in caplog.text
    save(folder, arrays(3))
    put(folder, tmp_path / "out", *RATE, code=2)
    assert "recipe.weights.sha256: not the same content" in caplog.text


def test_ids_may_have_endings_that_are_taken_off(tmp_path):
    found = {f"{name}_rgb": rows for name, rows in arrays().items()} | {"v0_flow": np.zeros((3, DIM), np.float32)}
    assert list(put(save(tmp_path / "f", found), tmp_path / "out", *RATE, "--suffix", "_rgb")) == ["v0", "v1", "v2", "v3"]
    store = put(as_hdf5(tmp_path / "t.hdf5", {"s17-d69.avi": arrays()["v1"]}), tmp_path / "t", *RATE, "--suffix", ".avi")
    assert list(store) == ["s17-d69"]


@pytest.mark.parametrize("more", [
    [], ["--fps", "5"], ["--stride", "8"], [*RATE, "--seconds-per-row", "1"], [*RATE, "--spread"], ["--spread"],
    ["--spread", "--durations", "x", "--offset-s", "1"], [*RATE, "--durations", "x", "--videos", "y"],
    ["--seconds-per-row", "0"], ["--seconds-per-row", "inf"], [*RATE, "--offset-s", "-1"],
])  # fmt: skip
def test_what_does_not_say_when_rows_are_is_refused(tmp_path, more):
    with pytest.raises(SystemExit, match="2"):
        main(["import", str(save(tmp_path / "f", arrays())), "--out", str(tmp_path / "out"), *more])
    assert not (tmp_path / "out").exists()


def test_a_store_needs_no_import(tmp_path, caplog):
    put(features(tmp_path / "f", [video("a", 80)]), tmp_path / "out", *RATE, code=2)
    assert "give it to `excl pack` as it is" in caplog.text


def test_hostile_hdf5_opens_no_other_file(tmp_path):
    """Links, virtual datasets and external storage would read whatever file they name; a shape may be of 4 TB."""
    secret = np.arange(4 * DIM, dtype=np.float32).reshape(4, DIM)
    secret.tofile(tmp_path / "secret")
    as_hdf5(tmp_path / "other.hdf5", {"v": secret})
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file["good"] = secret
        file["better"] = secret[:2]
        file["soft"] = h5py.SoftLink("/good")
        file["elsewhere"] = h5py.ExternalLink(str(tmp_path / "other.hdf5"), "v")
        file["group/inside"] = h5py.ExternalLink(str(tmp_path / "other.hdf5"), "v")
        file.create_dataset("raw", (4, DIM), "f4", external=[(str(tmp_path / "secret"), 0, h5py.h5f.UNLIMITED)])
        layout = h5py.VirtualLayout((4, DIM), "f4")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.hdf5"), "v", (4, DIM))
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("huge", (10**6, 10**6), "f4", chunks=(1, 1000))
        file["loop/back"] = h5py.SoftLink("/")
    store = put(tmp_path / "x.hdf5", tmp_path / "out", *RATE, code=3)
    assert list(store) == ["better", "good"]
    found = failures(tmp_path / "out")
    assert set(found) == {"soft", "elsewhere", "group", "raw", "virtual", "huge", "loop"}
    assert all("link" in found[name] for name in ("soft", "elsewhere", "group"))
    assert all("in other files" in found[name] for name in ("raw", "virtual"))
    with pytest.raises(ValueError, match="link"):
        open_source(tmp_path / "x.hdf5")["elsewhere"]


@pytest.mark.parametrize("to", ["ms-2d-tan", "2d-tan", "vslnet", "lgi", "tmlga", "moment-detr", "npy", "npz"])
def test_export_then_import_gives_the_same_features(tmp_path, to, capsys):
    store = features(tmp_path / "f", [video(f"V{n}", frames) for n, frames in enumerate(FRAMES)])
    assert main(["export", str(store), "--to", to, "--out", str(tmp_path / "out")]) == 0
    where = {
        "ms-2d-tan": "i3d_rgb.hdf5", "2d-tan": "i3d_rgb_features.hdf5", "vslnet": "features/charades/new",
        "lgi": "charades/features/i3d_finetuned", "tmlga": "i3d_charades_sta/rgb", "moment-detr": "features/charades/i3d",
    }.get(to, "")  # fmt: skip
    back = put(tmp_path / "out" / where, tmp_path / "back", *RATE, "--dtype", "float16")
    original = FeatureStore(store)
    assert list(back) == list(original)
    for name in original:
        np.testing.assert_array_equal(back[name].features, original[name].features)
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "back"), str(store), "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {video["verdict"] for video in found["videos"].values()} == {"identical"}
    assert all(video["likeness"]["cos_min"] == pytest.approx(1) for video in found["videos"].values())


def test_a_run_is_trained_and_evaluated_on_imported_features(tmp_path, caplog):
    """The whole way through the command; localize says why it cannot."""
    store = packed(tmp_path / "own", "charades-sta")
    assert main(["export", str(store.parent / "features"), "--to", "npy", "--out", str(tmp_path / "npy")]) == 0
    durations = {f"{name}": FRAMES[n] / FPS - 0.05 for n, name in enumerate(["AO8RW", "0IH69", "3MSZA", "46GP8", "N11GT"])}
    (tmp_path / "d.json").write_text(json.dumps(durations))
    put(tmp_path / "npy", tmp_path / "features", *RATE, "--durations", str(tmp_path / "d.json"))
    queries = str(tmp_path / "own" / "queries")
    assert main(["pack", "--features", str(tmp_path / "features"), "--queries", queries, "--out", str(tmp_path / "s")]) == 0
    assert len(TrainingStore(tmp_path / "s").queries("train")) == 6
    training = ["train", "--store", str(tmp_path / "s"), "--out", str(tmp_path / "run"), *MODEL, "--epochs", "1"]
    assert main([*training, "--device", "cpu"]) == 0
    asked = [str(tmp_path / "run"), "--device", "cpu"]
    assert main(["evaluate", *asked, "--store", str(tmp_path / "s"), "--out", str(tmp_path / "e")]) == 0
    assert json.loads((tmp_path / "e" / "metrics.json").read_text())["num_queries"] == 2
    assert main(["evaluate", *asked, "--store", str(store), "--out", str(tmp_path / "e2")]) == 2
    assert "of another recipe" in caplog.text
    write_video(tmp_path / "x.mp4", list(range(0, 3000, 100)))
    assert main(["localize", "--run", *asked, "--video", str(tmp_path / "x.mp4"), "--query", "a person sits"]) == 2
    assert "trained on imported features, and nobody here knows how those were made" in caplog.text


def test_an_imported_store_is_exported_for_tmlga_too(tmp_path):
    """Its rows are the only frames that are known."""
    ids = ["A", "B", "C", "D", "E"]
    arguments = annotate(tmp_path / "annotations", "charades-sta", ids)
    (tmp_path / "words.txt").write_text("a 1 2\n")
    assert main(["tokenise", *arguments, "--glove", str(tmp_path / "words.txt"), "--out", str(tmp_path / "q")]) == 0
    rows = {name: np.random.default_rng(n).standard_normal((FRAMES[n] // 4, DIM)) for n, name in enumerate(ids)}
    put(
        save(tmp_path / "f", rows),
        tmp_path / "features",
        "--spread",
        "--durations",
        str(tmp_path / "annotations" / "all.csv"),
    )
    packing = ["--features", str(tmp_path / "features"), "--queries", str(tmp_path / "q"), "--out", str(tmp_path / "s")]
    assert main(["pack", *packing]) == 0
    assert main(["export", str(tmp_path / "s"), "--to", "tmlga", "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out/preprocessing/charades-sta/charades_sta_train_tokens.json").read_text())
    for row in found:
        duration_s = FRAMES[ids.index(row["video"])] / FPS - 0.05
        assert row["number_frames"] / row["fps"] == pytest.approx(duration_s)
        assert row["feature_end"] == pytest.approx(row["time_end"] / duration_s * len(rows[row["video"]]))


def test_a_recipe_of_an_import_is_never_that_of_extract(tmp_path):
    put(save(tmp_path / "f", arrays()), tmp_path / "out", *RATE)
    with (
        pytest.raises(ValueError, match="made by the stage 'import'"),
        Manifest.open(tmp_path / "out", stage="extract", identity={}, code_version=1),
    ):
        pass
    with (
        pytest.raises(RecipeMismatchError),
        Manifest.open(tmp_path / "out", stage="import", identity={}, code_version=1),
    ):
        pass
