"""Care of a store: verify finds every flipped bit, repair takes out just what is damaged, merge makes what one run makes."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from shared_fixtures import write_video

from excl.pipeline import extract
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.store.feature_store import FeatureStore
from excl.pipeline.store.shard import VideoFeatures, write_shard
from excl.workflows.cli import main

pytestmark = pytest.mark.usefixtures("one_thread", "decoded_here")
IDS = ["a", "b", "c", "d", "e"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for number, video_id in enumerate(IDS):
        write_video(folder / f"{video_id}.mp4", [100 * i for i in range(40 + 10 * number)], rate=10, width=64, height=48)
    return folder


def arguments(videos, out):
    return ["extract", "--videos", str(videos), "--out", str(out), "--weights", "random:0", "--short-side", "32",
            "--crop", "32", "--shard-videos", "2"]  # fmt: skip


@pytest.fixture(scope="module")
def whole(videos, tmp_path_factory):
    """A finished store of five videos in three shards."""
    out = tmp_path_factory.mktemp("store") / "whole"
    assert main(arguments(videos, out)) == 0
    return out


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("records.jsonl", ".lock", "features.h5")  # HDF5 leaves gaps in the last
    }


def of_rows(store):
    return {video_id: store[video_id].features.tobytes() for video_id in store}


# verify


def test_a_whole_store_is_found_whole(whole, capsys):
    for more in ([], ["--read-data"]):
        assert main(["verify", str(whole), *more]) == 0
        assert "5 files" not in (shown := capsys.readouterr().out)
        assert "4 files, 5 videos" in shown  # three shards and the index
        assert "all as it was written" in shown


def test_100_flipped_bits_are_found(whole, tmp_path, capsys):
    store = tmp_path / "store"
    shutil.copytree(whole, store)
    files = [path for path in sorted(store.rglob("*")) if path.is_file() and path.stat().st_size]
    sizes = np.array([path.stat().st_size for path in files], dtype=np.float64)
    generator = np.random.default_rng(0)
    found = 0
    for flip in range(100):
        # Half of them anywhere, by size; half in a file by chance, so that small ones get their share.
        path = files[generator.choice(len(files), p=sizes / sizes.sum() if flip % 2 else None)]
        content = path.read_bytes()
        changed = bytearray(content)
        changed[generator.integers(len(content))] ^= 1 << int(generator.integers(8))
        path.write_bytes(changed)
        found += main(["verify", str(store), "--read-data", "--json"]) == 3
        path.write_bytes(content)
    capsys.readouterr()
    assert found == 100
    assert main(["verify", str(store), "--read-data"]) == 0


def test_structure_alone_finds_files_that_are_gone_or_cut_short(whole, tmp_path, capsys):
    for spoil in (lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-100])):
        store = tmp_path / "store"
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(whole, store)
        shard = sorted((store / "shards").iterdir())[1]
        spoil(shard)
        assert main(["verify", str(store)]) == 3
        assert f"DAMAGED  shards/{shard.name}: " in capsys.readouterr().out


def broken_store(folder, features, facts, recipe):
    """A store with a shard that was written so: its checksums are right, its content is not."""
    edges = np.arange(len(features) + 1) * 1.6
    video = VideoFeatures("v", features, edges[:-1], edges[1:], facts)
    with Manifest.open(folder, stage="extract", identity=recipe, code_version=1) as manifest:
        write_shard(folder / "0.h5", [video], recipe=recipe)
        manifest.add({"id": "video/v"})
        manifest.add({"id": "shard/0", "file": "0.h5", "videos": ["v"]})
    return folder


def test_content_that_no_extraction_gives_is_found(whole, tmp_path, capsys, monkeypatch):
    recipe = FeatureStore(whole).recipe
    random = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float16)
    facts = {"num_frames": 80, "fps": 5.0, "duration_s": 16.0}
    assert main(["verify", str(broken_store(tmp_path / "rows", random, facts, recipe))]) == 3
    assert "[v]: 4 rows; 80 frames give 9" in capsys.readouterr().out
    assert main(["verify", str(broken_store(tmp_path / "times", random, {**facts, "num_frames": 40}, recipe))]) == 3
    assert "the times of its rows are not those of the layout" in capsys.readouterr().out
    monkeypatch.setattr(VideoFeatures, "require_finite", lambda _: None)
    bad = random.copy()
    bad[2, 3] = np.nan
    assert main(["verify", "--read-data", str(broken_store(tmp_path / "nan", bad, {}, {}))]) == 3
    assert "1 rows have values that are not finite" in capsys.readouterr().out
    assert main(["verify", "--read-data", str(broken_store(tmp_path / "same", random[[0] * 4], {}, {}))]) == 0
    assert "remark   0.h5 [v]: 3 of 4 rows repeat the one before" in capsys.readouterr().out
    assert main(["verify", "--read-data", str(broken_store(tmp_path / "flat", np.ones_like(random), {}, {}))]) == 0
    assert "4 rows are constant" in capsys.readouterr().out


def test_what_is_no_store_is_refused(tmp_path, caplog):
    assert main(["verify", str(tmp_path)]) == 2
    assert "no stage of excl has written this folder" in caplog.text


# repair


def test_repair_takes_out_one_video_and_extract_makes_it_again(videos, whole, tmp_path, capsys, monkeypatch):
    store = tmp_path / "store"
    shutil.copytree(whole, store)
    [shard] = [path for path in (store / "shards").iterdir() if path.name.startswith("00001")]  # c and d
    content = bytearray(shard.read_bytes())
    rows = FeatureStore(store)["d"].features.tobytes()
    content[content.find(rows) + 10] ^= 1
    shard.write_bytes(content)
    assert main(["repair", str(store), "--dry-run"]) == 0
    assert "1 whole videos of it are kept" in capsys.readouterr().out
    assert shard.exists()
    assert main(["repair", str(store)]) == 0
    assert "now run the same `excl extract` again" in capsys.readouterr().out
    assert set(FeatureStore(store)) == set(IDS) - {"d"} or not shard.exists()
    made = []
    original = extract.extract_video
    monkeypatch.setattr(
        extract, "extract_video", lambda config, by, item: made.append(item.video_id) or original(config, by, item)
    )
    assert main(arguments(videos, store)) == 0
    assert made == ["d"]
    assert contents(store) == contents(whole)
    assert main(["verify", str(store), "--read-data"]) == 0


@pytest.mark.parametrize("damage", ["record of a video", "record of a shard", "cut shard", "index", "nothing"])
def test_whatever_is_damaged_repair_and_extract_bring_back(videos, whole, tmp_path, capsys, damage):
    store = tmp_path / "store"
    shutil.copytree(whole, store)
    records = (store / "records.jsonl").read_bytes()
    shard = sorted((store / "shards").iterdir())[0]
    match damage:
        case "record of a video":
            (store / "records.jsonl").write_bytes(records.replace(b'"num_rows": 4', b'"num_rows": 5', 1))
        case "record of a shard":
            (store / "records.jsonl").write_bytes(records.replace(b'"shard/00001"', b'"shard/00009"', 1))
        case "cut shard":
            shard.write_bytes(shard.read_bytes()[:1000])
        case "index":
            (store / "features.h5").write_bytes(b"x")
    assert main(["verify", str(store), "--read-data"]) == (0 if damage == "nothing" else 3)
    assert main(["repair", str(store)]) == 0
    assert ("nothing is damaged" in capsys.readouterr().out) == (damage == "nothing")
    assert main(arguments(videos, store)) == 0
    assert main(["verify", str(store), "--read-data"]) == 0
    assert contents(store) == contents(whole)


@pytest.mark.parametrize("record", ["shard/00000", "video/a"])
def test_a_record_that_is_lost_is_made_again_from_its_shard(videos, whole, tmp_path, record):
    """Also where the videos are gone: what is whole is never thrown away for want of a record."""
    store, left = tmp_path / "store", tmp_path / "videos"
    shutil.copytree(whole, store)
    left.mkdir()
    shutil.copy(videos / "e.mp4", left)
    content = (store / "records.jsonl").read_bytes()
    (store / "records.jsonl").write_bytes(content.replace(f'"id": "{record}"'.encode(), f'"iD": "{record}"'.encode(), 1))
    assert main(["verify", str(store)]) == 3
    assert main(["repair", str(store)]) == 0
    assert main(["verify", str(store), "--read-data"]) == 0
    assert main(arguments(left, store)) == 0
    assert contents(store) == contents(whole)
    assert Manifest.read(store).fingerprint() == Manifest.read(whole).fingerprint()


def test_a_shard_of_another_recipe_is_found_and_not_kept(videos, whole, tmp_path):
    store, other = tmp_path / "store", tmp_path / "other"
    shutil.copytree(whole, store)
    assert main([*arguments(videos, other)[:5], "--weights", "random:1", *arguments(videos, other)[7:]]) == 0
    names = [sorted((folder / "shards").iterdir())[0] for folder in (store, other)]
    shutil.copy(names[1], names[0])
    with pytest.raises(ValueError, match="of another recipe than the store"):
        _ = FeatureStore(store)["a"]
    assert main(["verify", str(store)]) == 3
    assert main(["repair", str(store)]) == 0
    assert main(arguments(videos, store)) == 0
    assert contents(store) == contents(whole)


def test_a_merge_of_stores_that_changed_since_is_refused(videos, tmp_path, caplog):
    mixed = tmp_path / "videos"
    mixed.mkdir()
    shutil.copy(videos / "a.mp4", mixed)
    (mixed / "b.mp4").write_bytes(b"no video")
    (tmp_path / "c.txt").write_text(f"{videos / 'c.mp4'}\n")
    assert main(arguments(mixed, tmp_path / "one")) == 3
    assert main(arguments(tmp_path / "c.txt", tmp_path / "two")) == 0
    merge = ["merge", str(tmp_path / "one"), str(tmp_path / "two"), "--out"]
    assert main([*merge, str(tmp_path / "m")]) == 0
    shutil.copy(videos / "b.mp4", mixed)
    assert main([*arguments(mixed, tmp_path / "one"), "--retry-failed"]) == 0
    assert main([*merge, str(tmp_path / "m")]) == 2
    assert "or from these before they changed" in caplog.text
    with pytest.raises(SystemExit):
        main([*merge, str(tmp_path / "one")])


def test_a_damaged_plan_or_header_is_beyond_repair_and_says_so(whole, tmp_path, caplog):
    store = tmp_path / "store"
    shutil.copytree(whole, store)
    records = (store / "records.jsonl").read_bytes()
    (store / "records.jsonl").write_bytes(records.replace(b'"planned"', b'"plannes"', 1))
    assert main(["repair", str(store)]) == 2
    assert "which videos make up which shard is damaged; remove the folder" in caplog.text
    header = (store / "manifest.json").read_bytes()
    (store / "manifest.json").write_bytes(header.replace(b"random", b"randon"))
    assert main(["repair", str(store)]) == 2
    assert "manifest.json: damaged" in caplog.text


# status, inspect


def test_status_counts_what_is_done_failed_and_to_do(videos, tmp_path, capsys):
    mixed = tmp_path / "videos"
    shutil.copytree(videos, mixed)
    (mixed / "zz.mp4").write_bytes(b"no video")
    assert main(arguments(mixed, tmp_path / "out")) == 3
    capsys.readouterr()
    assert main(["status", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "5 of 6 videos done" in shown
    assert "1 failed as not_a_video: zz" in shown
    assert "shards, " in shown
    assert main(["status", str(tmp_path / "out"), "--json"]) == 0
    state = json.loads(capsys.readouterr().out)
    assert (state["videos_done"], state["videos_to_do"], state["shards"], state["complete"]) == (5, 0, 3, True)
    with Manifest.repair(tmp_path / "out") as (manifest, _):
        manifest.rewrite({k: r for k, r in manifest.records.items() if k != "video/a"})
    assert main(["status", str(tmp_path / "out")]) == 0
    assert "1 videos still to do" in capsys.readouterr().out


def test_inspect_shows_a_store_and_a_video(whole, capsys, caplog):
    assert main(["inspect", str(whole), "--json"]) == 0
    state = json.loads(capsys.readouterr().out)
    store = FeatureStore(whole)
    rows = np.concatenate([store[v].features for v in store]).astype(np.float64)
    assert state["videos"] == 5
    assert state["rows"] == len(rows)
    assert (state["features"]["mean"], state["features"]["std"]) == pytest.approx((rows.mean(), rows.std()))
    assert main(["inspect", str(whole), "c"]) == 0
    shown = capsys.readouterr().out
    assert '"num_frames": 30' in shown
    assert len([line for line in shown.splitlines() if line.strip()[:1].isdigit()]) == len(store["c"].features)
    assert main(["inspect", str(whole), "nobody"]) == 2
    assert "no video 'nobody'; it has 'a', 'b'" in caplog.text


# merge


def test_two_halves_make_the_store_of_one_run(videos, whole, tmp_path):
    halves = []
    for name, ids in (("one", "ace"), ("two", "bd")):
        (tmp_path / f"{name}.txt").write_text("".join(f"{videos / video_id}.mp4\n" for video_id in ids))
        halves.append(tmp_path / name)
        assert main(arguments(tmp_path / f"{name}.txt", halves[-1])) == 0
    merged = tmp_path / "merged"
    assert main(["merge", *map(str, halves), "--out", str(merged)]) == 0
    assert contents(merged) == contents(whole)
    assert main(["verify", str(merged), "--read-data"]) == 0
    assert Manifest.read(merged).fingerprint() == Manifest.read(whole).fingerprint()
    assert main(["merge", *map(str, halves), "--out", str(merged)]) == 0  # again: nothing to do
    assert main(arguments(videos, merged)) == 0  # and extract goes on in it
    assert contents(merged) == contents(whole)


def test_stores_that_must_not_mix_are_refused(videos, whole, tmp_path, caplog):
    other = tmp_path / "other"
    assert main([*arguments(videos, other), "--stride", "4"]) == 0
    assert main(["merge", str(whole), str(other), "--out", str(tmp_path / "m")]) == 2
    assert "different recipes, which never mix: identity.rows.stride: 8 and 4" in caplog.text
    assert main(["merge", str(whole), str(whole), "--out", str(tmp_path / "m")]) == 2
    assert "'a' is both in" in caplog.text
