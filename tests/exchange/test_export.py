"""Every export is opened as its trainer opens it: these few lines of access are written from the trainers' code."""

from __future__ import annotations

import csv
import glob
import json
import math
import os
import signal
import string
import sys
import tarfile

import commands
import h5py
import numpy as np
import pytest
import safetensors
import torch
from exchange_data import DIM, FRAMES, IDS, TACOS_FPS, features, packed, video

from excl.pipeline.exchange.export import ExportConfig
from excl.pipeline.exchange.resampling import error_if_even_s, resample
from excl.pipeline.store.feature_store import FeatureStore
from excl.pipeline.store.shard import VideoFeatures
from excl.pipeline.store.training_store import TrainingStore
from excl.workflows.cli import main

SPLITS = ("train", "val", "test")
ROWS = {37: 4, 80: 9, 122: 15, 201: 25, 19: 2}


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """A training store of each data set."""
    return {dataset: packed(tmp_path_factory.mktemp("data"), dataset) for dataset in IDS}


def export(store, to, out, *more):
    assert main(["export", str(store), "--to", to, "--out", str(out), *more]) == 0
    return json.loads((out / "export.json").read_text())


def expected(store, dtype=np.float32):
    opened = FeatureStore(store)
    return {video_id: opened[video_id].features.astype(dtype) for video_id in opened}


def charades_lines(folder, split):
    """How 2D-TAN, MS-2D-TAN and LGI read Charades-STA."""
    with (folder / f"Charades_v1_{split}.csv").open() as file:
        durations = {row["id"]: float(row["length"]) for row in csv.DictReader(file)}
    found = []
    for line in (folder / f"charades_sta_{split}.txt").open():
        place, sentence = line.split("##")
        name, start, end = place.split(" ")
        found.append(
            (name, float(start), min(float(end), durations[name]), sentence.split(".\n")[0].strip(), durations[name])
        )
    return found


def of_store(store, split):
    queries = sorted(TrainingStore(store).queries(split), key=lambda q: (q.video_id, q.start_s))
    return [(q.video_id, q.start_s, q.end_s, q.query, q.duration_s) for q in queries]


def same_moments(found, wanted, *, without_stop=False):
    found = sorted(found, key=lambda m: (m[0], m[1]))
    assert len(found) == len(wanted) > 0
    for (name, start, end, sentence, duration), (video_id, start_s, end_s, query, duration_s) in zip(
        found, wanted, strict=True
    ):
        assert (name, sentence) == (video_id, query.removesuffix(".") if without_stop else query)
        np.testing.assert_allclose((start, end, duration), (start_s, end_s, duration_s), rtol=1e-6)


def tacos_moments(path):
    """How the 2D-TANs and VSLNet read TACoS, ids as in the file."""
    found = []
    for name, about in json.loads(path.read_text()).items():
        duration = about["num_frames"] / about["fps"]
        for (first, last), sentence in zip(about["timestamps"], about["sentences"], strict=True):
            found.append((name, first / about["fps"], last / about["fps"], sentence, duration))
    return found


def activitynet_moments(path):
    return [
        (name, start, end, sentence, about["duration"])
        for name, about in json.loads(path.read_text()).items()
        for (start, end), sentence in zip(about["timestamps"], about["sentences"], strict=True)
    ]


def test_ms_2d_tan(stores, tmp_path):
    """`{DATA_DIR}/{VIS_INPUT_TYPE}.hdf5`, `file[video][:]`, ids of TACoS by splitext."""
    for dataset, store in stores.items():
        out = tmp_path / dataset
        export(store, "ms-2d-tan", out)
        for split in SPLITS:
            match dataset:
                case "charades-sta":
                    found = charades_lines(out, split)
                case "tacos":
                    found = [(os.path.splitext(name)[0], *rest) for name, *rest in tacos_moments(out / f"{split}.json")]
                case _:
                    found = activitynet_moments(out / f"{split}.json")
            same_moments(found, of_store(store, split), without_stop=dataset == "charades-sta")
            for name in {name for name, *_ in found}:
                with h5py.File(out / "i3d_rgb.hdf5", "r") as file:
                    rows = torch.from_numpy(file[name][:]).float()
                torch.testing.assert_close(rows, torch.from_numpy(expected(store)[name]), rtol=0, atol=0)
                assert torch.nn.functional.normalize(rows, dim=1).shape == (len(rows), DIM)


def test_tacos_goes_out_as_it_came(stores, tmp_path):
    """Frames, rate and sentences are those of the annotation file that was read."""
    export(stores["tacos"], "ms-2d-tan", tmp_path / "out")
    for split in SPLITS:
        original = json.loads((stores["tacos"].parent / "annotations" / f"{split}.json").read_text())
        assert json.loads((tmp_path / "out" / f"{split}.json").read_text()) == original


def test_charades_goes_out_as_it_came(stores, tmp_path):
    """Line by line, in the annotations' order, which is not that of the shards."""
    export(stores["charades-sta"], "ms-2d-tan", tmp_path / "out")
    for split in SPLITS:
        name = f"charades_sta_{split}.txt"
        original = (stores["charades-sta"].parent / "annotations" / name).read_text()
        assert (tmp_path / "out" / name).read_text() == original


def test_the_official_tacos_goes_out_as_it_came(shared, tmp_path):
    original = json.loads((shared / "annotations" / "tacos" / "val.json").read_text())
    names = [name.removesuffix(".avi") for name in original]
    features(tmp_path / "features", [video(name, 80, dim=2) for name in names])
    (tmp_path / "words.txt").write_text("the 1 2\na 3 4\n")
    files = [x for split in SPLITS for x in (f"--{split}", str(shared / "annotations" / "tacos" / "val.json"))]
    arguments = ["--dataset", "tacos", *files, "--glove", str(tmp_path / "words.txt"), "--hygiene.unordered", "drop"]
    assert main(["tokenise", *arguments, "--out", str(tmp_path / "q")]) == 0
    assert main(["pack", "--features", str(tmp_path / "features"), "--queries", str(tmp_path / "q"), "--out",
                 str(tmp_path / "store")]) == 0  # fmt: skip
    export(tmp_path / "store", "ms-2d-tan", tmp_path / "out")
    found = json.loads((tmp_path / "out" / "val.json").read_text())
    assert set(found) == set(original)
    for name, about in original.items():
        pairs = [
            (t, " ".join(s.split())) for t, s in zip(about["timestamps"], about["sentences"], strict=True) if t[0] < t[1]
        ]
        written = [
            (t, " ".join(s.split())) for t, s in zip(*(found[name][k] for k in ("timestamps", "sentences")), strict=True)
        ]
        assert len(written) == len(pairs)
        assert [t for t, _ in written if t[1] < about["num_frames"]] == [t for t, _ in pairs if t[1] < about["num_frames"]]
        assert [s for _, s in written] == [s for _, s in pairs]
        assert (found[name]["fps"], found[name]["num_frames"]) == (about["fps"], about["num_frames"])


def test_2d_tan(stores, tmp_path):
    """Charades `{VIS}_features.hdf5`, TACoS with .avi, ActivityNet in groups; the last two are not cast to float32."""
    about = export(stores["charades-sta"], "2d-tan", tmp_path / "c", "--name", "vgg_rgb")
    with h5py.File(tmp_path / "c" / "vgg_rgb_features.hdf5", "r") as file:
        assert torch.from_numpy(file["AO8RW"][:]).float().shape == (4, DIM)
    same_moments(charades_lines(tmp_path / "c", "train"), of_store(stores["charades-sta"], "train"), without_stop=True)
    assert about["fps"] == 5.0
    export(stores["tacos"], "2d-tan", tmp_path / "t")
    with h5py.File(tmp_path / "t" / "tall_c3d_features.hdf5", "r") as file:
        for name, *_ in tacos_moments(tmp_path / "t" / "test.json"):
            assert torch.from_numpy(file[name][:]).dtype == torch.float32
            np.testing.assert_array_equal(file[name][:], expected(stores["tacos"])[name.removesuffix(".avi")])
    export(stores["activitynet-captions"], "2d-tan", tmp_path / "a")
    with h5py.File(tmp_path / "a" / "sub_activitynet_v1-3.c3d.hdf5", "r") as file:
        for name, *_ in activitynet_moments(tmp_path / "a" / "val.json"):
            assert torch.from_numpy(file[name]["c3d_features"][:]).dtype == torch.float32
            np.testing.assert_array_equal(file[name]["c3d_features"][:], expected(stores["activitynet-captions"])[name])


@pytest.mark.parametrize("dataset", IDS)
def test_vslnet(stores, tmp_path, dataset):
    """All .npy by glob, ids before the first dot; a video that feature_shapes.json does not name would be dropped."""
    store, task = stores[dataset], {"charades-sta": "charades", "tacos": "tacos"}.get(dataset, "activitynet")
    export(store, "vslnet", tmp_path / "data")
    root = tmp_path / "data" / "features" / task / "new"
    loaded = {path.split("/")[-1].split(".")[0]: np.load(path) for path in glob.glob(os.path.join(root, "*.npy"))}
    lengths = json.loads((root / "feature_shapes.json").read_text())
    assert lengths == {name: len(rows) for name, rows in loaded.items()}
    assert set(lengths) == set(IDS[dataset])
    for name, rows in expected(store).items():
        assert loaded[name].dtype == np.float32
        np.testing.assert_array_equal(loaded[name], rows)
    folder = tmp_path / "data" / "dataset" / task
    if task == "charades":
        durations = json.loads((folder / "charades.json").read_text())
        lines = (folder / "charades_sta_test.txt").read_text().splitlines()
        assert [float(durations[line.split("##")[0].split(" ")[0]]["duration"]) for line in lines] == [19 / 5 - 0.05] * 2
    elif task == "tacos":
        found = [(name[0:-4], *rest) for name, *rest in tacos_moments(folder / "test.json") if name.endswith(".avi")]
        same_moments(found, of_store(store, "test"))
    else:  # it validates on val_2 and tests on val_1
        for split, file in {"train": "train", "val": "val_2", "test": "val_1"}.items():
            same_moments(activitynet_moments(folder / f"{file}.json"), of_store(store, split))


def words(sentence):
    return sentence.lower().translate(str.maketrans("", "", string.punctuation)).strip().split()


def check_lgi_caches(folder, kind, length, *, splits, annotations, num_rows):
    """The caches against what LGI makes of the same annotations: {split: [(video, start, end, sentence, duration)]}."""
    vocabulary = sorted({word for *_, sentence, _ in annotations["train"] for word in words(sentence)})
    index = {"<PAD>": 0, "<UNK>": 1, "<S>": 2, "<E>": 3} | {word: number + 4 for number, word in enumerate(vocabulary)}
    for split in splits:
        info = json.loads((folder / "query_info" / f"{split}_info_F1_L{length}_{kind}.json").read_text())
        assert info["wtoi"] == index
        assert info["itow"] == {str(number): word for word, number in index.items()}
        with (
            h5py.File(folder / "query_info" / f"{split}_label_F1_L{length}_{kind}.hdf5") as labels,
            h5py.File(folder / "grounding_info" / f"{split}_labels_S128_{kind}.hdf5") as places,
        ):
            assert len(labels) == len(annotations[split]) > 0
            for number, (name, start, end, sentence, duration) in enumerate(annotations[split]):
                key = str(number)
                found = labels[key][:]
                assert found.shape == (length,)
                ids = [index.get(word, 1) for word in words(sentence)][:length]
                assert found.tolist() == ids + [0] * (length - len(ids))
                assert info["query_lengths"][key] == len(ids)
                rows = min(num_rows[name], 128)
                first = min(round(start / duration * rows), rows - 1)
                last = max(round(end / duration * rows), first + 1)
                assert np.flatnonzero(places["att_mask/" + key][()]).tolist() == list(range(first, last + 1))
                assert places["start_pos/" + key][()] == pytest.approx(start / duration)
                assert places["end_pos/" + key][()] == pytest.approx(end / duration)


def test_lgi(stores, tmp_path):
    """Charades: `np.load(…).squeeze()` and `.shape[0]` before it, and caches by line number. ActivityNet: groups of HDF5."""
    store = stores["charades-sta"]
    export(store, "lgi", tmp_path / "data")
    root = tmp_path / "data" / "charades"
    for name, rows in expected(store).items():
        found = np.load(f"{root}/features/i3d_finetuned/{name}.npy")
        assert found.shape[0] == len(rows)
        np.testing.assert_array_equal(found.squeeze(), rows)
    annotations = {}
    for split in SPLITS:
        with (root / "annotations" / f"Charades_v1_{split}.csv").open() as file:
            lengths = {row["id"]: float(row["length"]) for row in csv.DictReader(file)}
        lines = [line.strip().split("##") for line in (root / "annotations" / f"charades_sta_{split}.txt").open()]
        fields = [(*place.split(" "), sentence) for place, sentence in lines]
        annotations[split] = [(v, float(s), float(e), sentence, lengths[v]) for v, s, e, sentence in fields]
    num_rows = {name: len(rows) for name, rows in expected(store).items()}
    check_lgi_caches(root / "preprocess", "I3D", 10, splits=SPLITS, annotations=annotations, num_rows=num_rows)

    store = stores["activitynet-captions"]
    export(store, "lgi", tmp_path / "anet")
    root = tmp_path / "anet" / "ActivityNet"
    with h5py.File(root / "feats" / "sub_activitynet_v1-3.c3d.hdf5") as file:
        num_rows = {name: file[name]["c3d_features"][:].shape[0] for name in IDS["activitynet-captions"]}
    captions = root / "captions" / "annotations"
    tested = activitynet_moments(captions / "val_1.json") + activitynet_moments(captions / "val_2.json")  # as one
    same_moments(tested, of_store(store, "test"))
    annotations = {"train": activitynet_moments(captions / "train.json"), "val": tested}
    check_lgi_caches(root / "preprocess", "C3D", 25, splits=("train", "val"), annotations=annotations, num_rows=num_rows)


@pytest.mark.parametrize("dataset", ["charades-sta", "activitynet-captions"])
def test_tmlga(stores, tmp_path, dataset):
    """Places in rows are computed from our rows: every one of them is in the array that is loaded."""
    store = stores[dataset]
    export(store, "tmlga", tmp_path / "TMLGA")
    if dataset == "charades-sta":
        parts = {split: ("i3d_charades_sta/rgb", f"charades-sta/charades_sta_{split}_tokens.json") for split in SPLITS}
    else:
        parts = {
            "train": ("ANet_240/training", "anet-cap/ANetCap_training_tokens.json"),
            "test": ("ANet_240/validation", "anet-cap/ANetCap_validation_tokens.json"),
        }
    for split, (folder, file) in parts.items():
        queries = {(q.video_id, q.start_s): q for q in TrainingStore(store).queries(split)}
        found = json.loads((tmp_path / "TMLGA" / "preprocessing" / file).read_text())
        assert len(found) == len(queries) > 0
        for row in found:
            rows = torch.from_numpy(np.squeeze(np.load(f"{tmp_path}/TMLGA/{folder}/{row['video']}.npy")))
            np.testing.assert_array_equal(rows, expected(store)[row["video"]])
            assert rows.dtype == torch.float32
            assert row["number_features"] == len(rows)
            query = queries[row["video"], row["time_start"]]
            assert row["tokens"] == list(query.tokens)
            assert row["description"] == query.query
            assert row["frame_end"] == pytest.approx(row["time_end"] * row["fps"])
            scale = row["number_features"] / row["number_frames"]
            assert row["feature_start"] == pytest.approx(row["time_start"] * row["fps"] * scale)
            assert row["feature_end"] == pytest.approx(row["time_end"] * row["fps"] * scale)
            assert 0 <= math.floor(row["feature_start"]) <= math.floor(row["feature_end"]) <= len(rows)
            seconds = row["feature_end"] * (row["number_frames"] / row["number_features"]) / row["fps"]  # its way back
            assert seconds == pytest.approx(query.end_s)


@pytest.mark.parametrize("dataset", IDS)
def test_moment_detr(stores, tmp_path, dataset):
    """`np.load(…)["features"]`, `qid{qid}.npz` (TACoS `{qid}.npz`), JSON lines with windows."""
    store, task = stores[dataset], {"charades-sta": "charades", "tacos": "tacos"}.get(dataset, "activitynet")
    export(store, "moment-detr", tmp_path / "out")
    opened = TrainingStore(store)
    seen = set()
    for split in SPLITS:
        lines = (tmp_path / "out" / "data" / task / f"{task}_{split}_release.jsonl").read_text().split("\n")
        queries = {q.annotation_id: q for q in opened.queries(split)}
        rows = [json.loads(line) for line in lines if line]
        assert len(rows) == len(queries) > 0
        for row in rows:
            query = queries[row["id"]]
            assert (row["vid"], row["query"], row["duration"]) == (query.video_id, query.query, query.duration_s)
            assert row["relevant_windows"] == [[query.start_s, query.end_s]]
            video_features = np.load(tmp_path / "out" / "features" / task / "i3d" / f"{row['vid']}.npz")["features"]
            np.testing.assert_array_equal(video_features.astype(np.float32), expected(store)[query.video_id])
            name = f"{row['qid']}.npz" if task == "tacos" else f"qid{row['qid']}.npz"
            texts = np.load(tmp_path / "out" / "features" / task / "word_vectors" / name)
            np.testing.assert_array_equal(texts["last_hidden_state"], opened.vectors[list(query.token_ids)])
            np.testing.assert_allclose(texts["pooler_output"], texts["last_hidden_state"].mean(0), rtol=1e-6)
            assert "glove" not in str(name)  # in whose path lighthouse would look for no files
            seen.add(row["qid"])
    assert seen == set(range(len(seen)))


def test_several_answers_to_a_query_are_one_line_with_several_windows(tmp_path):
    rows = [
        {"video_id": "a", "query": "one", "start_s": s, "end_s": s + 1, "split": split, "query_id": split if s < 5 else ""}
        for split in SPLITS
        for s in (1.0, 3.0, 6.0)
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "words.txt").write_text("one 1 2\n")
    features(tmp_path / "f", [video("a", 80)])
    tokenised = ["tokenise", "--dataset", str(tmp_path / "m.jsonl"), "--glove", str(tmp_path / "words.txt")]
    assert main([*tokenised, "--out", str(tmp_path / "q")]) == 0
    assert (
        main(["pack", "--features", str(tmp_path / "f"), "--queries", str(tmp_path / "q"), "--out", str(tmp_path / "s")])
        == 0
    )
    export(tmp_path / "s", "moment-detr", tmp_path / "out")
    lines = (tmp_path / "out" / "data" / "charades" / "charades_test_release.jsonl").read_text().splitlines()
    assert [json.loads(line)["relevant_windows"] for line in lines] == [[[1.0, 2.0], [3.0, 4.0]], [[6.0, 7.0]]]


def test_npy_npz_and_safetensors(stores, tmp_path):
    store = stores["charades-sta"]
    opened = FeatureStore(store)
    for to in ("npy", "npz", "safetensors"):
        export(store, to, tmp_path / to)
        assert {p.stem for p in (tmp_path / to).glob(f"*.{to}")} == set(opened)
    for name in opened:
        video_features = opened[name]
        np.testing.assert_array_equal(np.load(tmp_path / "npy" / f"{name}.npy"), video_features.features)
        assert np.load(tmp_path / "npy" / f"{name}.npy").dtype == np.float16
        arrays = np.load(tmp_path / "npz" / f"{name}.npz")
        for key in ("features", "start_s", "end_s"):
            np.testing.assert_array_equal(arrays[key], getattr(video_features, key))
        with safetensors.safe_open(tmp_path / "safetensors" / f"{name}.safetensors", "pt") as file:
            assert file.metadata() == {"id": name}
            assert torch.equal(file.get_tensor("features"), opened.tensor(name))
            assert file.get_tensor("end_s").tolist() == video_features.end_s.tolist()


def samples(path):
    """As WebDataset groups them: by what is before the first dot, files of one sample next to each other."""
    found = {}
    with tarfile.open(path) as tar:
        for entry in tar:
            key, _, kind = entry.name.partition(".")
            if key not in found:
                found[key] = {"__key__": key}
            assert key == list(found)[-1]
            found[key][kind] = tar.extractfile(entry).read()
    return list(found.values())


def test_webdataset(stores, tmp_path):
    store = TrainingStore(stores["charades-sta"])
    export(store.path, "webdataset", tmp_path / "out", "--shard-videos", "2")
    assert sorted(p.name for p in (tmp_path / "out").glob("*.tar")) == [
        "test-000000.tar", "train-000000.tar", "train-000001.tar", "val-000000.tar",
    ]  # fmt: skip
    train = samples(tmp_path / "out" / "train-000000.tar") + samples(tmp_path / "out" / "train-000001.tar")
    assert len({sample["__key__"] for sample in train}) == 3
    for sample in train:
        about = json.loads(sample["json"])
        stored = store[about["id"]]
        (tmp_path / "x.npy").write_bytes(sample["npy"])
        np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), stored.features)
        (tmp_path / "x.npy").write_bytes(sample["times.npy"])
        np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), np.stack([stored.start_s, stored.end_s], axis=1))
        assert [q["query"] for q in about["queries"]] == [
            q.query for q in store.queries("train") if q.video_id == about["id"]
        ]
    export(store.path.parent / "features", "webdataset", tmp_path / "plain")
    assert [p.name for p in (tmp_path / "plain").glob("*.tar")] == ["features-000000.tar"]
    assert len(samples(tmp_path / "plain" / "features-000000.tar")) == 5


@pytest.mark.parametrize("to", ["ms-2d-tan", "2d-tan", "vslnet", "lgi", "tmlga", "moment-detr", "npy", "webdataset"])
def test_a_plain_store_gives_features_only(stores, tmp_path, to):
    about = export(stores["charades-sta"].parent / "features", to, tmp_path / "out")
    assert about["queries"] == {}
    assert {name: v["rows"] for name, v in about["videos"].items()} == dict(
        zip(IDS["charades-sta"], (ROWS[f] for f in FRAMES), strict=True)
    )
    assert not any(word in name for name in about["files"] for word in ("_sta_", "json", "preprocess", "release")
                   if name != "features/charades/new/feature_shapes.json")  # fmt: skip


def test_what_export_json_says(stores, tmp_path):
    about = export(stores["charades-sta"], "ms-2d-tan", tmp_path / "out")
    store = FeatureStore(stores["charades-sta"])
    assert about["recipe"] == store.recipe
    assert about["fps"] == 5.0
    assert '"stride": 8' in about["row_times"]
    assert about["queries"] == {"train": 6, "val": 2, "test": 2}
    for name, said in about["videos"].items():
        found = store[name]
        duration_s = said["duration_s"]
        n = len(found.features)
        assert (said["rows"], said["seconds_per_row"]) == (n, pytest.approx(duration_s / n))
        worst = max(abs(t - k * duration_s / n) for k, t in enumerate([*found.start_s, found.end_s[-1]]))
        assert said["error_if_even_s"] == pytest.approx(worst)
        assert worst <= 0.8 + 1e-9  # half a row of 8 frames at 5 a second, as the documentation says
    assert set(about["files"]) == {
        str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()
    } - {"export.json"}  # fmt: skip


def test_rows_of_a_chosen_length(stores, tmp_path):
    """Each is the mean of the stored rows over its time: against sums over a fine grid of moments."""
    store = FeatureStore(stores["charades-sta"])
    about = export(store.path, "moment-detr", tmp_path / "out", "--seconds-per-row", "2")
    for name in store:
        found = store[name]
        rows = np.load(tmp_path / "out" / "features" / "charades" / "i3d" / f"{name}.npz")["features"]
        assert len(rows) == math.ceil(found.duration_s / 2) == about["videos"][name]["rows"]
        grid = np.arange(0.0005, found.duration_s, 0.001)
        at = np.searchsorted(found.end_s, grid)
        for k, row in enumerate(rows):
            inside = (grid >= 2 * k) & (grid < 2 * k + 2)
            np.testing.assert_allclose(row, found.features[at[inside]].astype(np.float64).mean(0), atol=2e-2)


def test_resampling_over_gaps_and_overlaps():
    rows = VideoFeatures("v", np.array([[1.0], [3.0], [5.0]]), np.array([0.0, 1.0, 6.0]), np.array([2.0, 3.0, 7.0]), {})
    found = resample(rows, 1.0)
    assert found.features[:, 0].tolist() == [1.0, 2.0, 3.0, 3.0, 3.0, 5.0, 5.0]
    assert found.end_s[-1] == 7.0
    assert error_if_even_s(found, 7.0) == 0.0


def test_a_video_of_one_row_keeps_its_axis(tmp_path):
    """LGI and TMLGA squeeze what they load, and would lose it; two equal rows say the same of the same time."""
    store = packed(tmp_path, "charades-sta", ids=[f"V{n}" for n in range(5)], videos=[video(f"V{n}", 10) for n in range(5)])
    for to, path in (("lgi", "charades/features/i3d_finetuned"), ("tmlga", "i3d_charades_sta/rgb")):
        about = export(store, to, tmp_path / to)
        assert np.load(tmp_path / to / path / "V0.npy").squeeze().shape == (2, DIM)
        assert about["videos"]["V0"]["rows"] == 2
        assert about["remarks"]["videos of one row, which was written twice"] == [f"V{n}" for n in range(5)]


def test_moments_behind_the_rows_do_not_stop_tmlga(tmp_path):
    """The videos' files are shorter than annotated: `loc_start[start]` would be out of bounds."""
    ids = [f"V{n}" for n in range(5)]
    store = packed(tmp_path, "charades-sta", ids=ids, videos=[video(name, 20) for name in ids])
    about = export(store, "tmlga", tmp_path / "out")
    [left] = [which for what, which in about["remarks"].items() if "left out" in what]
    total = 0
    for split in SPLITS:
        found = json.loads((tmp_path / f"out/preprocessing/charades-sta/charades_sta_{split}_tokens.json").read_text())
        assert all(math.floor(row["feature_start"]) < row["number_features"] for row in found)
        total += len(found)
    assert total + len(left) == 10
    assert len(left) > 0


def test_queries_without_features_are_left_out_and_said(tmp_path, caplog):
    ids = IDS["charades-sta"]
    store = packed(tmp_path, "charades-sta", videos=[video(name, FRAMES[n]) for n, name in enumerate(ids) if n != 1])
    about = export(store, "ms-2d-tan", tmp_path / "out")
    assert about["queries"]["train"] == 4
    assert about["queries_without_features"]["train"] == 2
    assert {name for name, *_ in charades_lines(tmp_path / "out", "train")} == {ids[0], ids[2]}
    assert "2 queries have no features" in caplog.text


HOSTILE = ["../x", "/etc/x", "a/b", "..", ".hidden", "a\nb", "x" * 300, "a\\b", "", "con:1"]


@pytest.mark.parametrize("to", ["vslnet", "lgi", "tmlga", "moment-detr", "npy", "npz", "safetensors"])
@pytest.mark.parametrize("name", HOSTILE)
def test_ids_that_cannot_be_files_are_refused_before_anything_is_written(tmp_path, caplog, to, name):
    features(tmp_path / "f", [video("fine", 80), video(name, 37)])
    assert main(["export", str(tmp_path / "f"), "--to", to, "--out", str(tmp_path / "here" / "out")]) == 2
    assert repr(name) in caplog.text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f"]


@pytest.mark.parametrize("name", ["a/b", "/x", ".", "..", "", "a\0b", "\udc80"])
def test_ids_that_cannot_be_keys_are_refused(tmp_path, caplog, name):
    features(tmp_path / "f", [video("fine", 80), video(name, 37)])
    assert main(["export", str(tmp_path / "f"), "--to", "ms-2d-tan", "--out", str(tmp_path / "out")]) == 2
    assert "1 ids cannot be names there" in caplog.text
    assert not (tmp_path / "out").exists()


def test_any_id_goes_into_webdataset_and_odd_ones_into_hdf5(tmp_path):
    names = ["../x", "a/b", "Ünïcode", "a.b c"]
    features(tmp_path / "f", [video(name, 80 + n) for n, name in enumerate(names)])
    export(tmp_path / "f", "webdataset", tmp_path / "w")
    assert {json.loads(s["json"])["id"] for s in samples(tmp_path / "w" / "features-000000.tar")} == set(names)
    features(tmp_path / "g", [video(name, 80 + n) for n, name in enumerate(names[2:])])
    export(tmp_path / "g", "ms-2d-tan", tmp_path / "h")
    with h5py.File(tmp_path / "h" / "i3d_rgb.hdf5") as file:
        assert set(file) == set(names[2:])


def test_ids_that_a_trainer_would_cut_or_confuse_are_refused(tmp_path, caplog):
    features(tmp_path / "f", [video("a.b", 80)])
    assert main(["export", str(tmp_path / "f"), "--to", "vslnet", "--out", str(tmp_path / "out")]) == 2
    assert "'a.b' has a dot in it" in caplog.text
    features(tmp_path / "g", [video("a", 80), video("a.avi", 37)])
    assert main(["export", str(tmp_path / "g"), "--to", "ms-2d-tan", "--task", "tacos", "--out", str(tmp_path / "out")]) == 2
    assert "'a' and 'a.avi' would both be 'a'" in caplog.text
    export(tmp_path / "f", "ms-2d-tan", tmp_path / "fine")


def test_sentences_that_a_line_cannot_hold_are_refused(tmp_path, caplog):
    rows = [{"video_id": "a", "query": "one ## two", "start_s": 1, "end_s": 2, "split": s} for s in SPLITS]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "words.txt").write_text("one 1 2\n")
    features(tmp_path / "f", [video("a", 80)])
    tokenised = ["tokenise", "--dataset", str(tmp_path / "m.jsonl"), "--glove", str(tmp_path / "words.txt")]
    assert main([*tokenised, "--out", str(tmp_path / "q")]) == 0
    assert (
        main(["pack", "--features", str(tmp_path / "f"), "--queries", str(tmp_path / "q"), "--out", str(tmp_path / "s")])
        == 0
    )
    assert main(["export", str(tmp_path / "s"), "--to", "ms-2d-tan", "--out", str(tmp_path / "out")]) == 2
    assert "--task activitynet" in caplog.text
    assert not [p for p in tmp_path.iterdir() if "out" in p.name]
    export(tmp_path / "s", "ms-2d-tan", tmp_path / "out", "--task", "activitynet")
    assert activitynet_moments(tmp_path / "out" / "val.json")[0][3] == "one ## two"


def test_avi_may_be_chosen(stores, tmp_path):
    export(stores["tacos"], "ms-2d-tan", tmp_path / "with", "--avi", "with", "--dtype", "float16")
    with h5py.File(tmp_path / "with" / "i3d_rgb.hdf5") as file:
        assert set(file) == {f"{name}.avi" for name in IDS["tacos"]}
        assert file["s17-d69.avi"].dtype == np.float16
    same_moments(
        [(name.removesuffix(".avi"), *rest) for name, *rest in tacos_moments(tmp_path / "with" / "val.json")],
        of_store(stores["tacos"], "val"),
    )


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--to", "npy", "--task", "tacos"], "one form for all"),
        (["--to", "lgi", "--task", "tacos"], "knows charades, activitynet"),
        (["--to", "npz", "--avi", "with"], "TACoS"),
        (["--to", "npy", "--shard-videos", "3"], "no shards"),
        (["--to", "ms-2d-tan", "--name", "x/y"], "has / in it"),
    ],
)
def test_settings_that_a_format_does_not_have_are_refused(stores, tmp_path, more, reason, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["export", str(stores["charades-sta"]), "--out", str(tmp_path / "out"), *more])
    assert reason in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--to", "npy", "--name", "x"], "fixed names"),
        (["--to", "vslnet", "--avi", "with"], "only for TACoS"),
        (["--to", "tmlga", "--dtype", "float16"], "float32"),
        (["--to", "2d-tan", "--task", "tacos", "--name", "x"], "fixed names"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(stores, tmp_path, more, reason, caplog):
    assert main(["export", str(stores["charades-sta"]), "--out", str(tmp_path / "out"), *more]) == 2
    assert reason in caplog.text
    assert not (tmp_path / "out").exists()


def test_a_data_set_that_a_trainer_does_not_know(stores, tmp_path, caplog):
    assert main(["export", str(stores["tacos"]), "--to", "lgi", "--out", str(tmp_path / "out")]) == 2
    assert "lgi has no form for tacos; give --task charades or activitynet" in caplog.text


def test_values_that_do_not_fit_are_refused(tmp_path, caplog):
    large = video("big", 80, dtype=np.float32)
    features(tmp_path / "f", [VideoFeatures("big", large.features * 1e6, large.start_s, large.end_s, {})])
    assert main(["export", str(tmp_path / "f"), "--to", "npy", "--dtype", "float16", "--out", str(tmp_path / "out")]) == 2
    assert "big: features up to" in caplog.text
    assert not [p for p in tmp_path.iterdir() if "out" in p.name]


def test_again_is_done_and_other_things_are_refused(stores, tmp_path, caplog):
    caplog.set_level("INFO")
    store = stores["charades-sta"]
    export(store, "npy", tmp_path / "out")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()}
    export(store, "npy", tmp_path / "out")
    assert "is complete, nothing to do" in caplog.text
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()} == before
    again = ["export", str(store), "--to", "npy", "--out", str(tmp_path / "out")]
    assert main([*again, "--dtype", "float32"]) == 2
    assert "dtype: there None, asked for is 'float32'" in caplog.text
    assert main(["export", str(stores["tacos"]), "--to", "npy", "--out", str(tmp_path / "out")]) == 2
    (tmp_path / "out" / "AO8RW.npy").write_bytes(b"")
    assert main(again) == 2
    assert "AO8RW.npy: not there any more, or of another size" in caplog.text
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    assert main(["export", str(store), "--to", "npy", "--out", str(tmp_path / "mine")]) == 2
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    (tmp_path / "empty").mkdir()
    export(store, "npy", tmp_path / "empty")


def test_the_same_store_gives_the_same_bytes(stores, tmp_path):
    for to in ("ms-2d-tan", "lgi", "webdataset", "safetensors", "vslnet"):
        first, second = tmp_path / to / "1", tmp_path / to / "2"
        about = export(stores["charades-sta"], to, first)
        export(stores["charades-sta"], to, second)
        for name in [*about["files"], "export.json"]:
            assert (first / name).read_bytes() == (second / name).read_bytes(), name


KILLED = """
import os, signal, sys
from excl.pipeline.exchange import export, feature_writers
from excl.workflows.cli import main

left = int(sys.argv[1])
def dying(function):
    def call(*arguments, **keywords):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **keywords)
    return call

feature_writers.np.save, export.write_json = dying(feature_writers.np.save), dying(export.write_json)
os.rename = dying(os.rename)
main(sys.argv[2:])
"""


@pytest.mark.parametrize("at", [0, 1, 4, 5, 6], ids=["first video", "second", "last", "export.json", "rename"])
def test_a_killed_export_is_no_export(tmp_path, at):
    """Killed at any point there is no folder of that name; the next export removes what is left, and is whole."""
    features(tmp_path / "f", [video(f"v{n}", 80) for n in range(5)])
    arguments = ["export", str(tmp_path / "f"), "--to", "npy", "--out", str(tmp_path / "out")]
    process = commands.run([sys.executable, "-c", KILLED, str(at), *arguments], capture_output=True, check=False)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert len(list(tmp_path.glob(".out.*.tmp"))) == 1
    export(tmp_path / "f", "npy", tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.npy"))) == 5
    assert not list(tmp_path.glob(".out.*"))


def test_an_export_beside_a_running_one_leaves_it_alone(tmp_path):
    """The folder of another process that lives is no remainder."""
    features(tmp_path / "f", [video("a", 80)])
    import socket

    running = tmp_path / f".out.{socket.gethostname()}-{os.getppid()}.tmp"
    running.mkdir()
    export(tmp_path / "f", "npy", tmp_path / "out")
    assert running.exists()


def test_an_unfinished_store_is_refused(tmp_path):
    from excl.pipeline.artifacts.manifest import Manifest
    from excl.pipeline.exchange.export import run

    features(tmp_path / "f", [video("a", 80)])
    with Manifest.open(tmp_path / "f", stage="extract", identity=FeatureStore(tmp_path / "f").recipe, code_version=1) as m:
        m.add({"id": "plan/0", "planned": ["a", "b"]})
    with pytest.raises(ValueError, match="still to be done"):
        run(ExportConfig(store=tmp_path / "f", to="npy", out=tmp_path / "out"))


def test_tacos_rate_is_the_data_sets():
    from excl.pipeline.exchange import annotation_writers

    assert annotation_writers.TACOS_FPS == TACOS_FPS
