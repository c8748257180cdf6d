"""The feature store: what goes in comes out, byte for byte, or not at all."""

from __future__ import annotations

import json
import multiprocessing
import operator
from pathlib import Path

import commands
import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.utils.data import DataLoader

from excl.pipeline.artifacts.atomic_files import sha256_file
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.store.feature_store import FeatureStore
from excl.pipeline.store.shard import Shard, VideoFeatures, write_shard
from excl.pipeline.store.training_store import Query, TrainingStore
from excl.pipeline.store.virtual_index import write_index
from excl.pipeline.training.samplers import BucketBatchSampler, QueryDataset, collate

RECIPE = {"fps": 5.0, "weights": {"source": "random:0"}}


def features_of(video_id, rows, *, dtype=np.float16, seed=0):
    generator = np.random.default_rng([seed, rows])
    edges = np.concatenate([[0.0], np.cumsum(generator.uniform(0.5, 2, rows))])
    values = generator.standard_normal((rows, 16)).astype(dtype)
    return VideoFeatures(video_id, values, edges[:-1], edges[1:], {"num_frames": rows * 8})


def make_store(folder: Path, videos, per_shard=2) -> FeatureStore:
    with Manifest.open(folder, stage="extract", identity=RECIPE, code_version=1) as manifest:
        for first in range(0, len(videos), per_shard):
            name, members = f"{first}.h5", videos[first : first + per_shard]
            write_shard(folder / name, members, recipe=RECIPE)
            manifest.add({"id": f"shard/{name}", "file": name, "videos": [v.video_id for v in members]})
    return FeatureStore(folder)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    ids=st.lists(st.text(min_size=1, max_size=300).filter(lambda s: s.isprintable()), min_size=1, max_size=5, unique=True),
    data=st.data(),
    dtype=st.sampled_from([np.float16, np.float32]),
)
def test_round_trip(tmp_path_factory, ids, data, dtype):
    """Any id, any number of rows, any finite value; ids never become names of files or HDF5 objects."""
    folder = tmp_path_factory.mktemp("store")
    width = 16 if dtype == np.float16 else 32
    finite = st.floats(width=width, allow_nan=False, allow_infinity=False)
    videos = []
    for video_id in ids:
        values = data.draw(hnp.arrays(dtype, (data.draw(st.integers(1, 4)), 3), elements=finite))
        edges = np.arange(len(values) + 1) * 1.6
        videos.append(VideoFeatures(video_id, values, edges[:-1], edges[1:], {"file": video_id + ".mp4"}))
    store = make_store(folder / "out", videos)
    assert list(store) == sorted(ids)
    assert len(store) == len(ids)
    for video in videos:
        found = store[video.video_id]
        assert found.features.dtype == dtype
        np.testing.assert_array_equal(found.features, video.features)
        np.testing.assert_array_equal(found.start_s, video.start_s)
        np.testing.assert_array_equal(found.end_s, video.end_s)
        assert found.facts == {"file": video.video_id + ".mp4"}
        assert found.duration_s == video.end_s[-1]
    assert store.recipe == RECIPE
    assert "nobody" not in store
    with pytest.raises(KeyError, match="nobody"):
        store["nobody"]


def test_the_same_input_gives_the_same_bytes(tmp_path):
    videos = [features_of(name, rows) for name, rows in [("a", 3), ("b", 1), ("c", 7)]]
    write_shard(tmp_path / "one.h5", videos, recipe=RECIPE, queries=[{"q": 1}])
    write_shard(tmp_path / "two.h5", videos, recipe=RECIPE, queries=[{"q": 1}])
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()


def test_readable_without_our_code(tmp_path):
    """The documented format, read with h5py and json alone."""
    videos = [features_of("a", 3), features_of("b/../c", 5)]
    write_shard(tmp_path / "shard.h5", videos, recipe=RECIPE)
    with h5py.File(tmp_path / "shard.h5") as file:
        about = json.loads(file["videos"][:].tobytes())
        assert [video["id"] for video in about] == ["a", "b/../c"]
        assert file["offsets"][:].tolist() == [0, 3, 8]
        assert file["features"].chunks is None
        assert file["features"].compression is None
        np.testing.assert_array_equal(file["features"][3:8], videos[1].features)
        np.testing.assert_array_equal(file["row_start_s"][:3], videos[0].start_s)
        assert json.loads(file.attrs["recipe"]) == RECIPE


def test_a_flipped_bit_in_the_features_is_found(tmp_path):
    store = make_store(tmp_path / "out", [features_of("a", 4), features_of("b", 4)])
    with h5py.File(tmp_path / "out" / "0.h5") as file:
        at = file["features"].id.get_offset() + 4 * 16 * 2 + 7  # in the second video
    content = bytearray((tmp_path / "out" / "0.h5").read_bytes())
    content[at] ^= 1
    (tmp_path / "out" / "0.h5").write_bytes(content)
    store = FeatureStore(tmp_path / "out")
    assert store["a"].features.shape == (4, 16)
    with pytest.raises(ValueError, match=r"0\.h5.*'b' are damaged"):
        store["b"]


def test_what_is_no_shard_is_refused(tmp_path):
    (tmp_path / "text.h5").write_text("no HDF5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["features"] = np.zeros((3, 3))
    for name, reason in [("text.h5", "not a readable HDF5"), ("other.h5", "not a shard"), ("none.h5", "not there")]:
        with pytest.raises((ValueError, FileNotFoundError), match=f"{name}.*{reason}"):
            Shard(tmp_path / name)


def test_values_that_make_no_sense_are_refused():
    edges = np.arange(3.0)
    with pytest.raises(ValueError, match="v: 1 feature values are not finite"):
        VideoFeatures("v", np.array([[1.0, np.nan], [1, 1]]), edges[:2], edges[1:], {}).require_finite()
    with pytest.raises(ValueError, match="v: features"):
        VideoFeatures("v", np.zeros((3, 4)), edges[:2], edges[1:], {})
    with pytest.raises(ValueError, match="v: features"):
        VideoFeatures("v", np.zeros((0, 4)), edges[:0], edges[:0], {})


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes_read_the_same(tmp_path, method):
    store = make_store(tmp_path / "out", [features_of(name, 50, seed=i) for i, name in enumerate("abcdef")])
    wanted = [store[name].features.tobytes() for name in store]  # files are open now
    with multiprocessing.get_context(method).Pool(2) as pool:
        found = pool.starmap(operator.getitem, [(store, name) for name in store], chunksize=1)
    assert [video.features.tobytes() for video in found] == wanted


def test_queries_travel_with_their_videos(tmp_path):
    query = Query("train:1", "a", "a person\u2028 opens", 0.5, 2.0, None, "train", "", ("a", "person"), (2, 3))
    write_shard(tmp_path / "x.h5", [features_of("a", 3)], recipe=RECIPE, queries=[query.to_json()])
    assert [Query.from_json(row) for row in Shard(tmp_path / "x.h5").queries()] == [query]


def test_a_store_is_not_a_training_store(tmp_path):
    make_store(tmp_path / "out", [features_of("a", 3)])
    with pytest.raises(ValueError, match="not a finished training store"):
        TrainingStore(tmp_path / "out")


# Speed and comfort: mapped rows, batches, one file for other code, dask


def test_rows_are_mapped_and_cannot_be_written_to(tmp_path):
    store = make_store(tmp_path / "out", [features_of("a", 3)])
    with pytest.raises(ValueError, match="read-only"):
        store["a"].features[0] = 1
    held = FeatureStore(tmp_path / "out", in_memory=True)
    for path in tmp_path.rglob("*.h5"):
        path.unlink()
    np.testing.assert_array_equal(held["a"].features, features_of("a", 3).features)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_batch_is_padded_with_zeros(tmp_path, dtype):
    videos = [features_of(name, rows, dtype=dtype) for name, rows in [("a", 3), ("b", 7), ("c", 1)]]
    store = make_store(tmp_path / "out", videos)
    batch, num_rows = store.read_batch(["c", "b", "c"])
    assert batch.dtype == torch.float32
    assert num_rows.tolist() == [1, 7, 1]
    wanted = np.zeros((3, 7, 16), np.float32)
    for index, video in enumerate([videos[2], videos[1], videos[2]]):
        wanted[index, : len(video.features)] = video.features
    np.testing.assert_array_equal(batch.numpy(), wanted)


def test_the_rows_of_all_videos_as_one_dask_array(tmp_path):
    videos = [features_of(name, rows) for name, rows in [("a", 3), ("b", 7), ("c", 1)]]
    array = make_store(tmp_path / "out", videos).to_dask()
    rows = np.concatenate([video.features for video in videos])
    assert array.shape == rows.shape
    assert array.numblocks[0] == 2  # shards
    np.testing.assert_array_equal(array.compute(), rows)
    np.testing.assert_allclose(array.astype(np.float64).mean(axis=0).compute(), rows.astype(np.float64).mean(axis=0))


def test_one_file_reads_as_other_code_reads_it(tmp_path, monkeypatch):
    videos = [features_of(name, rows) for name, rows in [("a", 3), ("b é", 7), ("..", 1), ("x/y", 2)]]
    make_store(tmp_path / "out", videos)
    with Manifest.open(tmp_path / "out", stage="extract", identity=RECIPE, code_version=1) as manifest:
        write_index(manifest)
        (tmp_path / "out" / "features.h5").unlink()
        before = manifest.fingerprint()
        write_index(manifest)  # it is made again
        assert manifest.fingerprint() == before
    (tmp_path / "moved").mkdir()
    (tmp_path / "out").rename(tmp_path / "moved" / "store")
    monkeypatch.chdir(tmp_path)
    with h5py.File("moved/store/features.h5") as file:
        assert sorted(file) == ["..", "a", "b é"]  # a slash would make groups
        for video in videos[:3]:
            np.testing.assert_array_equal(file[video.video_id][:], video.features)


def training_store(folder, num_videos=9):
    """Two queries a video, in one split."""
    videos = [features_of(f"v{n}", 2 + n, seed=n) for n in range(num_videos)]
    rows = [
        Query(f"{v.video_id}:{k}", v.video_id, "x", 0.0, 1.0 + k, None, "train", "", ("x",), (2,)).to_json()
        for v in videos
        for k in range(2)
    ]
    with Manifest.open(folder, stage="pack", identity={"recipe": RECIPE}, code_version=1) as manifest:
        write_shard(folder / "0.h5", videos, recipe=RECIPE, queries=rows)
        manifest.add({"id": "shard/0.h5", "file": "0.h5", "videos": [v.video_id for v in videos]})
        (folder / "uncovered.jsonl").write_text("")
        manifest.complete({"sha256": {"uncovered.jsonl": sha256_file(folder / "uncovered.jsonl")}})
    return TrainingStore(folder)


def read_all(loader):
    return [(batch.features.numpy().tobytes(), batch.num_rows.tolist(), batch.token_ids.tolist()) for batch in loader]


@pytest.mark.parametrize(("workers", "method"), [(0, None), (2, "fork"), (1, "spawn"), (4, "fork"), (3, "forkserver")])
def test_a_loader_with_any_workers_reads_the_same(tmp_path, workers, method):
    dataset = QueryDataset(training_store(tmp_path / "store"), "train")
    batches = BucketBatchSampler(dataset.num_rows, batch_size=4, seed=3)
    wanted = read_all([collate([dataset[i] for i in indices]) for indices in batches])  # shards are mapped now
    if method == "forkserver":
        commands.warm_forkserver()
    loader = DataLoader(
        dataset, batch_sampler=batches, collate_fn=collate, num_workers=workers, multiprocessing_context=method
    )
    assert read_all(loader) == wanted


@given(
    lengths=st.lists(st.integers(1, 500), max_size=700),
    batch_size=st.integers(1, 40),
    seed=st.integers(0, 5),
)
def test_bucketed_batches_have_every_item_once(lengths, batch_size, seed):
    batches = BucketBatchSampler(lengths, batch_size=batch_size, seed=seed)
    found = list(batches)
    assert len(found) == len(batches)
    assert sorted(index for batch in found for index in batch) == list(range(len(lengths)))
    assert all(len(batch) <= batch_size for batch in found)
    assert list(batches) == found
    if len(lengths) > 50:
        batches.set_epoch(1)
        assert list(batches) != found


def test_bucketed_batches_pad_little():
    lengths = np.random.default_rng(0).integers(1, 500, 2_000).tolist()
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in BucketBatchSampler(lengths, batch_size=32, seed=0))
    assert padded < 1.1 * sum(lengths)  # 1.9 in a random order


# Hostile files


def hostile(path, kind):
    """A shard of one video of which one part is not what it should be."""
    write_shard(path, [features_of("a", 3)], recipe=RECIPE)
    secret = path.with_name("secret.bin")
    secret.write_bytes(b"s" * 96)
    other = path.with_name("other.h5")
    with h5py.File(other, "w") as file:
        file["features"] = np.zeros((3, 16), np.float16)
    with h5py.File(path, "r+") as file:
        del file["features"]
        match kind:
            case "external storage":
                file.create_dataset("features", (3, 16), np.float16, external=[(str(secret), 0, 96)])
            case "external link":
                file["features"] = h5py.ExternalLink(str(other), "features")
            case "soft link":
                file["features"] = h5py.SoftLink("/row_start_s")
            case "virtual":
                layout = h5py.VirtualLayout((3, 16), np.float16)
                layout[:] = h5py.VirtualSource(str(other), "features", (3, 16))
                file.create_virtual_dataset("features", layout)
            case "4 TB":
                file.create_dataset("features", (10**6, 10**6), np.float32)
            case "4 TB in chunks":
                file.create_dataset("features", (10**6, 10**6), np.float32, chunks=(16, 16))
            case "objects":
                file.create_dataset("features", (3,), h5py.string_dtype())
            case "a group":
                file.create_group("features")
            case "more than a shard has":
                file["features"], file["extra"] = np.zeros((3, 16), np.float16), 1


@pytest.mark.parametrize("kind", ["external storage", "external link", "soft link", "virtual", "4 TB", "4 TB in chunks",
                                  "objects", "a group", "more than a shard has"])  # fmt: skip
def test_hostile_files_are_refused(tmp_path, kind):
    hostile(tmp_path / "shard.h5", kind)
    with pytest.raises(ValueError, match=r"shard\.h5: "):
        Shard(tmp_path / "shard.h5")
