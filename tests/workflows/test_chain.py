"""From annotations and features to answers: tokenise, pack, train, evaluate and localize, through the command."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys

import commands
import numpy as np
import pytest
import torch
from chain_data import KILLED_RUN, RECIPE, jsonl, make, make_from_raw_videos, pack, tokenise_arguments, train_arguments

from excl.datasets.text.vocabulary import Vocabulary
from excl.pipeline import train
from excl.pipeline.artifacts.header import RecipeMismatchError
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.evaluate import table
from excl.pipeline.store.feature_store import FeatureStore
from excl.pipeline.store.shard import VideoFeatures, write_shard
from excl.pipeline.store.training_store import TrainingStore
from excl.pipeline.training.examples import collate, load_examples
from excl.workflows.cli import main

pytestmark = pytest.mark.usefixtures("forked_decoders")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def packed(made, tmp_path_factory):
    return pack(made, tmp_path_factory.mktemp("packed"))


@pytest.fixture(scope="module")
def trained(packed):
    assert main(train_arguments(packed, packed / "run")) == 0
    return packed / "run"


def test_tokenised_queries(packed):
    rows = [json.loads(line) for line in (packed / "queries" / "moments.jsonl").read_text().splitlines()]
    vocabulary = Vocabulary.load(packed / "queries" / "vocabulary.txt")
    vectors = np.load(packed / "queries" / "vectors.npy")
    assert len(rows) == 48
    assert rows[0]["tokens"] == ["the", "cat", "jumps", "."]
    assert [vocabulary.words[i] for i in rows[0]["token_ids"]] == rows[0]["tokens"]
    assert vectors.shape == (len(vocabulary), 10)
    assert vectors.dtype == np.float32
    report = json.loads((packed / "queries" / "report.json").read_text())
    nothing = {"tokens": 0, "queries": 0, "words": {}}
    assert report["splits"]["test"] == {
        "videos": 6, "moments": 12, "tokens": 48,
        "unknown": nothing, "without_vector": nothing, "unseen_with_vector": nothing,
    }  # fmt: skip
    assert [row["annotation_id"] for row in report["cleaning"]["dropped"]] == ["train:train:29"]


def test_validation_is_carved_where_there_is_none(made, tmp_path):
    arguments = tokenise_arguments(made, tmp_path / "queries")
    at = arguments.index("--val")
    assert main([*arguments[:at], *arguments[at + 2 :], "--carve-val", "0.2"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "queries" / "moments.jsonl").read_text().splitlines()]
    videos = {split: {r["video_id"] for r in rows if r["split"] == split} for split in ("train", "val", "test")}
    assert [len(videos[split]) for split in ("train", "val", "test")] == [11, 3, 6]
    assert not videos["train"] & videos["val"]


def test_packing_counts_and_names_what_has_no_features(packed, caplog):
    coverage = json.loads((packed / "store" / "coverage.json").read_text())
    assert (coverage["dropped"], coverage["other_durations"], coverage["videos_without_queries"]) == ([], {}, [])
    coverage = coverage["splits"]
    assert coverage["train"] == {"queries": 28, "covered": 28, "missing": {}}
    assert coverage["test"] == {"queries": 12, "covered": 10, "missing": {"v23": 2}}
    store = TrainingStore(packed / "store")
    assert len(store) == 23
    assert len(list((packed / "store" / "shards").iterdir())) == 3
    queries = store.queries("test")
    assert [q.video_id for q in queries if q.video_id not in store] == ["v23", "v23"]
    assert store.vocabulary == Vocabulary.load(packed / "queries" / "vocabulary.txt")
    with pytest.raises(ValueError, match=r"no queries of a split 'dev'; it has \['test', 'train', 'val'\]"):
        store.queries("dev")


def test_packing_says_the_coverage_aloud(made, packed, tmp_path, caplog):
    arguments = ["--features", str(made / "features"), "--queries", str(packed / "queries"), "--out", str(tmp_path / "s")]
    caplog.set_level("INFO")
    assert main(["pack", *arguments]) == 0
    assert "test: 10 of 12 queries have features (83.3 %); 1 missing videos: v23" in caplog.text


def test_packing_features_of_other_videos_is_refused(made, packed, tmp_path, caplog):
    folder = tmp_path / "features"
    with Manifest.open(folder, stage="extract", identity=RECIPE, code_version=1) as manifest:
        video = FeatureStore(made / "features")["v00"]
        renamed = VideoFeatures("v00.avi", video.features, video.start_s, video.end_s, {})
        write_shard(folder / "all.h5", [renamed], recipe=RECIPE)
        manifest.add({"id": "shard/all.h5", "file": "all.h5", "videos": ["v00.avi"]})
    arguments = ["--features", str(folder), "--queries", str(packed / "queries"), "--out", str(tmp_path / "store")]
    assert main(["pack", *arguments]) == 2
    assert "the queries ask for 'v00'" in caplog.text
    assert "'v00.avi'" in caplog.text


def test_training_learns_and_is_evaluated(packed, trained, capsys):
    out = packed / "evaluation"
    arguments = ["evaluate", str(trained), "--store", str(packed / "store"), "--out", str(out), "--device", "cpu"]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["num_queries"] == 12
    assert metrics["num_covered"] == 10
    assert metrics["model"]["all"]["R1@0.5"] == pytest.approx(100 * 10 / 12)  # all that can be had; two have no video
    assert metrics["model_where_covered"]["R1@0.7"] == 100
    assert set(metrics["model"]["groups"]) == {"cat", "dog"}
    assert [group["num_queries"] for group in metrics["model"]["groups"].values()] == [6, 6]
    assert metrics["best_fixed_span"]["all"]["R1@0.7"] < metrics["model"]["all"]["R1@0.7"]
    assert "RANDOM weights" in shown
    assert str(out / "metrics.json") in shown
    assert shown.strip() == table(out)
    predictions = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert len(predictions) == 12
    by_video = {p["vid"]: p for p in predictions}
    assert by_video["v23"]["pred_relevant_windows"] == []
    assert set(predictions[0]) == {"qid", "query", "vid", "pred_relevant_windows"}
    windows = predictions[0]["pred_relevant_windows"]
    assert len(windows) == 10
    assert all(0 <= start_s < end_s <= 16 and 0 < score <= 1 for start_s, end_s, score in windows)
    assert [score for *_, score in windows] == sorted((score for *_, score in windows), reverse=True)


@pytest.mark.parametrize(
    ("flags", "label"),
    [
        (["--model.variant", "reg-2-b"], "ExCL-reg 2-b"),
        (
            ["--model.loss", "reg", "--model.video-encoder", "conv", "--model.reg-distance", "mse"],
            "ExCL-reg lstm+conv+tied-lstm",
        ),
    ],
)
def test_other_variants_are_trained_by_their_flags(packed, tmp_path, capsys, flags, label):
    assert main(train_arguments(packed, tmp_path / "run", *flags)) == 0
    arguments = ["evaluate", str(tmp_path / "run"), "--store", str(packed / "store"), "--device", "cpu"]
    assert main([*arguments, "--out", str(tmp_path / "e")]) == 0
    assert label in capsys.readouterr().out.splitlines()
    metrics = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert metrics["variant"] == label
    assert metrics["model_where_covered"]["R1@0.5"] == 100
    predictions = [json.loads(line) for line in (tmp_path / "e" / "predictions.jsonl").read_text().splitlines()]
    starts_s = [window[0] for one in predictions for window in one["pred_relevant_windows"][:1]]
    edges_s = TrainingStore(packed / "store")["v20"].start_s  # those of all videos
    assert len(starts_s) == 10
    assert not np.isin(starts_s, edges_s).all(), "expected times lie between the rows' edges"


def test_targets_are_shares_of_the_duration(packed):
    store = TrainingStore(packed / "store")
    batch = collate(load_examples(store, store.queries("test")))
    targets = batch.targets
    video = store["v20"]  # all have the same rows, 16 s
    for found, wanted_s in ((targets.row_starts, video.start_s), (targets.row_ends, video.end_s)):
        torch.testing.assert_close(found, torch.from_numpy(wanted_s).float().expand(10, 9) / 16)
    queries = [query for query in store.queries("test") if query.video_id in store]
    assert (16 * targets.starts).tolist() == pytest.approx([query.start_s for query in queries])
    assert (16 * targets.ends).tolist() == pytest.approx([query.end_s for query in queries])
    every = torch.arange(10)
    assert torch.equal(targets.row_starts[every, targets.start_rows], targets.starts)  # moments that are rows
    assert torch.equal(targets.row_ends[every, targets.end_rows], targets.ends)


def test_metrics_are_those_of_the_predictions_file(packed, trained):
    """R@1 and mIoU once more, from the predictions file and the annotations, by hand."""
    out = packed / "evaluation"
    if not out.exists():
        main(["evaluate", str(trained), "--store", str(packed / "store"), "--out", str(out), "--device", "cpu"])
    truth = {q.annotation_id: q for q in TrainingStore(packed / "store").queries("test")}
    ious = []
    for line in (out / "predictions.jsonl").read_text().splitlines():
        prediction = json.loads(line)
        query = truth[prediction["qid"]]
        iou = 0.0
        for start_s, end_s, _ in prediction["pred_relevant_windows"][:1]:
            shared = max(0.0, min(end_s, query.end_s) - max(start_s, query.start_s))
            iou = shared / (end_s - start_s + query.end_s - query.start_s - shared)
        ious.append(iou)
    metrics = json.loads((out / "metrics.json").read_text())["model"]["all"]
    assert metrics["mIoU"] == pytest.approx(100 * np.mean(ious), abs=1e-2)
    assert metrics["R1@0.7"] == pytest.approx(100 * np.mean([iou >= 0.7 for iou in ious]))


def test_a_checkpoint_carries_its_configuration(trained):
    saved = json.loads((trained / "best.json").read_text())
    assert saved["config"]["model"]["text_hidden"] == 16
    assert saved["recipe"] == RECIPE
    assert saved["words"][:2] == ["<pad>", "<unk>"]
    assert saved["best"]["metrics"]["val_R1@0.5"] == 100


def test_the_same_training_gives_the_same_run(packed, trained, tmp_path):
    assert main(train_arguments(packed, tmp_path / "run")) == 0
    assert (tmp_path / "run" / "best.safetensors").read_bytes() == (trained / "best.safetensors").read_bytes()
    assert Manifest.read(tmp_path / "run").fingerprint() == Manifest.read(trained).fingerprint()


def test_moments_beyond_a_video_whose_length_only_the_video_knows(made, tmp_path, caplog):
    rows = [{"video_id": "v00", "query": "the cat", "start_s": 1, "end_s": 99}]
    rows += [{"video_id": "v01", "query": "the dog", "start_s": 50, "end_s": 60}]
    jsonl(tmp_path / "train.jsonl", rows)
    arguments = ["--dataset", "jsonl", "--train", str(tmp_path / "train.jsonl"), "--glove", str(made / "vectors.txt")]
    assert main(["tokenise", *arguments, "--carve-val", "0", "--out", str(tmp_path / "q")]) == 0
    arguments = ["--features", str(made / "features"), "--queries", str(tmp_path / "q"), "--out", str(tmp_path / "s")]
    assert main(["pack", *arguments]) == 0
    assert "1 moments are dropped: it lies beyond the end of its video's file: train:train:2" in caplog.text
    [query] = TrainingStore(tmp_path / "s").queries("train")
    assert (query.start_s, query.end_s, query.duration_s) == (1, 16.0, 16.0)


def test_a_video_in_two_splits_is_said_aloud(made, tmp_path, caplog):
    arguments = ["--dataset", "jsonl", "--train", str(made / "train.jsonl"), "--val", str(made / "val.jsonl"),
                 "--glove", str(made / "vectors.txt")]  # fmt: skip
    shutil.copy(made / "val.jsonl", tmp_path / "again.jsonl")
    assert main(["tokenise", *arguments, "--test", str(tmp_path / "again.jsonl"), "--out", str(tmp_path / "q")]) == 0
    assert "4 videos are both in val and in test" in caplog.text


def test_a_stage_that_failed_before_it_made_anything_can_be_corrected(made, tmp_path, caplog):
    (tmp_path / "train.jsonl").write_text("{broken\n")
    arguments = ["--dataset", "jsonl", "--train", str(tmp_path / "train.jsonl"), "--val", str(made / "val.jsonl"),
                 "--glove", str(made / "vectors.txt"), "--out", str(tmp_path / "queries")]  # fmt: skip
    assert main(["tokenise", *arguments]) == 2
    assert "train.jsonl:1" in caplog.text
    shutil.copy(made / "train.jsonl", tmp_path / "train.jsonl")
    assert main(["tokenise", *arguments]) == 0


def test_early_stopping(packed, tmp_path):
    assert main(train_arguments(packed, tmp_path / "run", "--patience", "3", "--learning-rate", "1e-12")) == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    best = json.loads((tmp_path / "run" / "best.json").read_text())["best"]["epoch"]
    assert len(lines) == best + 3 < 25


def test_training_killed_at_any_step_ends_the_same(packed, trained, tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-c", KILLED_RUN, *train_arguments(packed, out)]
    for steps in (6, 30):
        process = commands.start(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert process.stdout is not None
        for _ in range(steps):
            assert process.stdout.readline() == "step\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not Manifest.read(out).is_complete
    with pytest.raises(ValueError, match="has not finished"):
        train.load_run(out, device="cpu")
    assert main(train_arguments(packed, out)) == 0
    assert (out / "metrics.jsonl").read_bytes() == (trained / "metrics.jsonl").read_bytes()
    assert (out / "last.json").read_bytes() == (trained / "last.json").read_bytes()  # which has the sha256 of all tensors


def test_a_finished_run_is_left_alone_and_another_recipe_refused(packed, trained):
    before = {path.name: path.stat().st_mtime_ns for path in trained.iterdir() if path.name != ".lock"}
    assert main(train_arguments(packed, trained)) == 0
    assert {path.name: path.stat().st_mtime_ns for path in trained.iterdir() if path.name != ".lock"} == before
    config = train.TrainConfig(store=packed / "store", out=trained, epochs=3)
    with pytest.raises(RecipeMismatchError, match=r"identity\.epochs: the folder has 25, asked for is 3"):
        train.run(config)


def test_results_that_are_gone_or_changed_are_said_to_be(made, packed, trained, tmp_path, caplog):
    copy = tmp_path / "run"
    shutil.copytree(trained, copy)
    arguments = ["evaluate", str(copy), "--store", str(packed / "store"), "--out", str(tmp_path / "e")]
    content = (copy / "best.safetensors").read_bytes()
    (copy / "best.safetensors").write_bytes(content[: len(content) // 2])
    assert main([*arguments, "--device", "cpu"]) == 2
    assert "best.safetensors: damaged" in caplog.text
    assert main(train_arguments(packed, copy)) == 2
    assert "best.safetensors has changed since it was made; remove the folder" in caplog.text
    (copy / "best.safetensors").unlink()
    assert main([*arguments, "--device", "cpu"]) == 2
    assert "best.safetensors is not there any more" in caplog.text
    store = tmp_path / "store"
    shutil.copytree(packed / "store", store)
    lost = next((store / "shards").iterdir())
    lost.unlink()
    again = ["pack", "--features", str(made / "features"), "--queries", str(packed / "queries"), "--out", str(store)]
    assert main([*again, "--shard-videos", "10"]) == 2
    assert f"{lost} is not there any more; remove the folder {store}" in caplog.text


def test_a_query_with_several_answers_counts_once_and_by_the_best(made, trained, packed, tmp_path):
    """Every test query gets a second, wrong answer: the figures stay what they were."""
    rows = [json.loads(line) for line in (made / "test.jsonl").read_text().splitlines()]
    answers = [{**row, "query_id": str(n), "start_s": s, "end_s": e} for n, row in enumerate(rows)
               for s, e in ((0.0, 0.01), (row["start_s"], row["end_s"]))]  # fmt: skip
    jsonl(tmp_path / "test.jsonl", answers)
    arguments = tokenise_arguments(made, tmp_path / "queries")
    arguments[arguments.index("--test") + 1] = str(tmp_path / "test.jsonl")
    assert main(arguments) == 0
    found = []
    for queries in (packed / "queries", tmp_path / "queries"):
        out = tmp_path / f"{len(found)}"
        pack = ["--features", str(made / "features"), "--queries", str(queries), "--out", str(out / "store")]
        assert main(["pack", *pack]) == 0
        evaluate = [str(trained), "--store", str(out / "store"), "--out", str(out / "e"), "--device", "cpu"]
        assert main(["evaluate", *evaluate]) == 0
        found.append(json.loads((out / "e" / "metrics.json").read_text()))
        assert len((out / "e" / "predictions.jsonl").read_text().splitlines()) == 12
    assert found[0]["model"]["all"] == found[1]["model"]["all"]
    assert found[1]["num_queries"] == 12
    assert found[1]["num_covered"] == 10


def test_a_run_refuses_a_store_of_another_vocabulary_or_recipe(made, packed, trained, tmp_path, caplog):
    assert main([*tokenise_arguments(made, tmp_path / "queries"), "--max-words", "2"]) == 0
    recipe = {**RECIPE, "short_side": 64}
    with Manifest.open(tmp_path / "features", stage="extract", identity=recipe, code_version=1) as manifest:
        store = FeatureStore(made / "features")
        write_shard(tmp_path / "features" / "all.h5", [store[v] for v in store], recipe=recipe)
        manifest.add({"id": "shard/all.h5", "file": "all.h5", "videos": list(store)})
    for features, queries, message in [
        (made / "features", tmp_path / "queries", "vocabulary is not that of"),
        (tmp_path / "features", packed / "queries", "features are of another recipe"),
    ]:
        out = tmp_path / f"store of {message.split()[0]}"
        assert main(["pack", "--features", str(features), "--queries", str(queries), "--out", str(out)]) == 0
        arguments = [str(trained), "--store", str(out), "--out", str(tmp_path / "e"), "--device", "cpu"]
        assert main(["evaluate", *arguments]) == 2
        assert message in caplog.text


@pytest.mark.parametrize("name", ["vocabulary.txt", "vectors.npy", "uncovered.jsonl"])
def test_a_training_store_refuses_what_is_not_its_own(packed, tmp_path, name):
    other = tmp_path / "store"
    shutil.copytree(packed / "store", other)
    content = bytearray((other / name).read_bytes())
    content[-2] ^= 1
    (other / name).write_bytes(content)
    store = TrainingStore(other)
    with pytest.raises(ValueError, match=f"{name}: not the file that was packed"):
        {"vocabulary.txt": lambda: store.vocabulary, "vectors.npy": lambda: store.vectors,
         "uncovered.jsonl": lambda: store.queries("test")}[name]()  # fmt: skip


@pytest.fixture(scope="module")
def real_run(tmp_path_factory):
    return make_from_raw_videos(tmp_path_factory.mktemp("raw"))


def test_a_recipe_run_again_does_nothing(real_run, caplog):
    def state():
        files = (p for p in real_run.rglob("*") if p.is_file() and not p.name.endswith(".lock"))
        return {p: p.stat().st_mtime_ns for p in files}

    before = state()
    caplog.set_level("INFO")
    assert main(["run", str(real_run / "mine.toml")]) == 0
    assert state() == before
    assert caplog.text.count("is complete, nothing to do") == 3


def test_an_input_that_changed_is_named_and_what_depends_on_it_made_again(real_run, tmp_path, caplog):
    folder = tmp_path / "copy"
    shutil.copytree(real_run, folder)
    with (folder / "train.jsonl").open("a") as file:
        file.write(json.dumps({"video_id": "r0", "query": "it ends", "start_s": 4, "end_s": 6}) + "\n")
    caplog.set_level("INFO")
    assert main(["run", str(folder / "mine.toml")]) == 0
    assert "because tokenise.train.0.sha256 is not the same content" in caplog.text
    assert sorted(path.name[:-9] for path in folder.glob("*-????????")) == ["queries", "run", "store"]


def test_decode_and_extract_of_a_recipe_must_agree(tmp_path, caplog):
    (tmp_path / "videos").mkdir()
    recipe = """
        [decode]
        videos = "videos"
        out = "frames"
        crop = 112
        [extract]
        frames = "frames"
        out = "features"
        weights = "random:0"
    """
    (tmp_path / "r.toml").write_text(recipe)
    assert main(["run", str(tmp_path / "r.toml")]) == 2
    assert "[extract]: crop: 224, but [decode] has 112" in caplog.text
    (tmp_path / "r.toml").write_text("")
    assert main(["run", str(tmp_path / "r.toml")]) == 2
    assert "has no steps" in caplog.text


def test_settings_are_refused_in_one_line(capsys):
    for arguments, message in [
        (
            ["train", "--store", "s", "--out", "o", "--epochs", "0"],
            "settings: epochs: Input should be greater than 0 (given: 0)",
        ),
        (["train", "--store", "s", "--out", "o", "--model.dropout", "2"], "settings: dropout: Input should be less than 1"),
        (["tokenise", "--dataset", "charades-sta", "--train", "x", "--glove", "g", "--out", "o"], "durations: needed for"),
    ]:
        try:
            code = main(arguments)
        except SystemExit as end:  # of newer versions of tyro, which show the error themselves
            code = end.code
        assert code == 2
        shown = " ".join("".join(capsys.readouterr()).replace("│", " ").split())
        assert message in shown
        assert "pydantic" not in shown
        assert "input_value" not in shown


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ('device = "gpu"\nvideos = "videos"', "[extract]: device 'gpu': not available"),
        ('videos = "nowhere"', "[extract]: videos: nowhere: not there, and no earlier step makes it"),
        ('fps = 0.0\nvideos = "videos"', "[extract]: fps: Input should be greater than 0"),
        ('fps = "5"\nvideos = "videos"', "[extract]: fps: Input should be a valid number"),
        ('frame_rate = 5\nvideos = "videos"', "[extract]: frame_rate: unknown"),
        ("", "give either --videos or --frames"),
    ],
)
def test_a_recipe_with_a_mistake_is_refused_before_any_work(tmp_path, caplog, change, message):
    (tmp_path / "r.toml").write_text(f'[extract]\nout = "x"\nweights = "random:0"\n{change}\n[extrct]\na = 1\n[pack]\n')
    assert main(["run", str(tmp_path / "r.toml")]) == 2
    assert message in caplog.text
    assert "[extrct]: unknown" in caplog.text
    assert "[pack]: features: missing" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.toml"]


def test_a_recipe_that_is_none_is_refused(tmp_path, caplog):
    assert main(["run", str(tmp_path / "nothing.toml")]) == 1
    assert "neither a file nor one of activitynet_captions, charades_sta, demo, tacos" in caplog.text
    (tmp_path / "broken.toml").write_text("[extract\n")
    assert main(["run", str(tmp_path / "broken.toml")]) == 2
    assert "not valid TOML" in caplog.text


def test_real_annotations_and_videos_up_to_pack(shared, tmp_path, caplog):
    """Two ActivityNet videos with their official queries (train and val_1), from raw files to a training store.

    Beside them are the queries of every 20th video that is not at hand.
    """
    caplog.set_level("INFO")
    official, counts = {}, {}
    for split, video_id in (("train", "v_ZNVhz7ctTq0"), ("val_1", "v_GGSY1Qvo990")):
        every = json.loads((shared / "annotations" / "activitynet" / f"{split}.json").read_text())
        official[split] = {name: every[name] for number, name in enumerate(every) if number % 20 == 0 or name == video_id}
        spans = [span for video in official[split].values() for span in video["timestamps"]]
        counts[split] = sum(start < end for start, end in spans), len(official[split]) - 1
        (tmp_path / f"{split}.json").write_text(json.dumps(official[split]))
    (tmp_path / "vectors.txt").write_text("the 0.1 0.2\ndog 0.3 0.4\n")
    assert main(["extract", "--videos", str(shared / "videos"), "--out", str(tmp_path / "features"), "--weights", "random:0",
                 "--short-side", "64", "--crop", "64"]) == 0  # fmt: skip
    assert main(["tokenise", "--dataset", "activitynet-captions", "--train", str(tmp_path / "train.json"), "--val",
                 str(tmp_path / "val_1.json"), "--glove", str(tmp_path / "vectors.txt"), "--tokeniser", "whitespace",
                 "--out", str(tmp_path / "queries")]) == 0  # fmt: skip
    assert main(["pack", "--features", str(tmp_path / "features"), "--queries", str(tmp_path / "queries"),
                 "--out", str(tmp_path / "store")]) == 0  # fmt: skip
    for split, num_covered, name in (("train", 2, "train"), ("val", 3, "val_1")):
        queries, missing = counts[name]
        assert f"{split}: {num_covered} of {queries:,} queries have features" in caplog.text
        assert f"%); {missing:,} missing videos" in caplog.text
    store = TrainingStore(tmp_path / "store")
    assert list(store) == ["v_GGSY1Qvo990", "v_ZNVhz7ctTq0"]  # the third video has no queries
    for split, name, video_id, duration_s, frames in [
        ("train", "train", "v_ZNVhz7ctTq0", 14.0, 70),
        ("val", "val_1", "v_GGSY1Qvo990", 18.093781855249745, 91),
    ]:
        found = [q for q in store.queries(split) if q.video_id in store]
        wanted = official[name][video_id]
        assert [[q.start_s, q.end_s] for q in found] == wanted["timestamps"]
        assert [q.query for q in found] == [sentence.strip() for sentence in wanted["sentences"]]
        assert {q.duration_s for q in found} == {wanted["duration"]}
        video = store[video_id]
        n = -(-frames // 8) - 1
        assert video.features.shape == (n, 1024)
        assert video.start_s.tolist() == [0.0] + [(8 * k + 4) / 5 for k in range(1, n)]
        assert video.end_s.tolist() == [(8 * k + 12) / 5 for k in range(n - 1)] + [duration_s]
