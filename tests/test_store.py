"""The feature store: what goes in comes out, byte for byte, or not at all."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from excl.pipeline.manifest import Manifest
from excl.pipeline.store import FeatureStore, Query, Shard, TrainingStore, VideoFeatures, write_shard

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
        VideoFeatures("v", np.array([[1.0, np.nan], [1, 1]]), edges[:2], edges[1:], {})
    with pytest.raises(ValueError, match="v: features"):
        VideoFeatures("v", np.zeros((3, 4)), edges[:2], edges[1:], {})
    with pytest.raises(ValueError, match="v: features"):
        VideoFeatures("v", np.zeros((0, 4)), edges[:0], edges[:0], {})


def read_sum(job):
    store, video_id = job
    return float(store[video_id].features.astype(np.float64).sum())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes_read_the_same(tmp_path, method):
    store = make_store(tmp_path / "out", [features_of(name, 50, seed=i) for i, name in enumerate("abcdef")])
    wanted = [read_sum((store, name)) for name in store]  # files are open now
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(read_sum, [(store, name) for name in store]) == wanted


def test_queries_travel_with_their_videos(tmp_path):
    query = Query("train:1", "a", "a person\u2028 opens", 0.5, 2.0, None, "train", "", ("a", "person"), (2, 3))
    write_shard(tmp_path / "x.h5", [features_of("a", 3)], recipe=RECIPE, queries=[query.to_json()])
    with Shard(tmp_path / "x.h5") as shard:
        assert [Query.from_json(row) for row in shard.queries()] == [query]


def test_a_store_is_not_a_training_store(tmp_path):
    make_store(tmp_path / "out", [features_of("a", 3)])
    with pytest.raises(ValueError, match="not a finished training store"):
        TrainingStore(tmp_path / "out")
