"""Evaluations and scores against slow and obvious computations, on hand-made files and on a small run."""

from __future__ import annotations

import json
import random
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from chain_data import jsonl, make, pack, train_arguments

from excl.pipeline import evaluate, train
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.evaluation import score
from excl.pipeline.evaluation.predictions import match, read_predictions
from excl.pipeline.evaluation.query_blind import permutation
from excl.pipeline.evaluation.split_metrics import GroundTruth, metrics_by_group
from excl.pipeline.store.training_store import Query, TrainingStore
from excl.pipeline.training.examples import load_examples
from excl.workflows.cli import main


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return pack(make(tmp_path_factory.mktemp("made")), tmp_path_factory.mktemp("packed"))


@pytest.fixture(scope="module")
def evaluated(packed):
    """A run that has learnt something but not all, and its evaluation."""
    assert main(train_arguments(packed, packed / "run", "--epochs", "8", "--model.variant", "clf-1-a")) == 0
    assert main([*evaluate_arguments(packed), "--out", str(packed / "e")]) == 0
    return packed / "e"


def evaluate_arguments(packed):
    return ["evaluate", str(packed / "run"), "--store", str(packed / "store"), "--device", "cpu"]


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


def iou_of(a, b):
    shared = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    return shared / (a[1] - a[0] + b[1] - b[0] - shared)


def slow_figures(answers, moments):
    """R@k and mIoU in percent, one query after another: lists of windows and the moment of each query."""
    found = {}
    ious = [[iou_of(window, moment) for window in windows] for windows, moment in zip(answers, moments, strict=True)]
    for threshold in (0.3, 0.5, 0.7):
        for k in (1, 5):
            hits = [any(iou >= threshold for iou in one[:k]) for one in ious]
            strict = [any(iou > threshold for iou in one[:k]) for one in ious]
            found[f"R{k}@{threshold}"] = 100 * sum(hits) / len(hits)
            found[f"R{k}@{threshold} strict"] = 100 * sum(strict) / len(strict)
    found["mIoU"] = 100 * sum(one[0] if one else 0 for one in ious) / len(ious)
    return found


def close(found, wanted):
    return {name: found[name] for name in wanted} == pytest.approx(wanted)


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_figures_of_an_evaluation_are_those_of_its_predictions(packed, evaluated):
    queries = {q.annotation_id: q for q in TrainingStore(packed / "store").queries("test")}
    found, answers = metrics_of(evaluated), {}
    for line in lines_of(evaluated / "predictions.jsonl"):
        answers[line["qid"]] = [window[:2] for window in line["pred_relevant_windows"]]
    assert set(answers) == set(queries)
    assert {len(windows) for name, windows in answers.items() if queries[name].video_id != "v23"} == {10}
    for group in (None, "cat", "dog"):
        names = [name for name, query in queries.items() if group in (None, query.group)]
        wanted = slow_figures([answers[n] for n in names], [(queries[n].start_s, queries[n].end_s) for n in names])
        assert 0 < wanted["mIoU"] < 100
        assert close(found["model"]["groups"][group] if group else found["model"]["all"], wanted)
    covered = [name for name, query in queries.items() if query.video_id != "v23"]
    wanted = slow_figures([answers[n] for n in covered], [(queries[n].start_s, queries[n].end_s) for n in covered])
    assert close(found["model_where_covered"], wanted)
    assert wanted["mIoU"] > found["model"]["all"]["mIoU"]


def test_the_fixed_span_scores_what_a_loop_says(packed, evaluated):
    store, found = TrainingStore(packed / "store"), metrics_of(evaluated)["best_fixed_span"]
    best, wanted = None, (-1, -1.0)
    for first in range(20):
        for last in range(first + 1, 21):
            ious = [iou_of((first * 0.8, last * 0.8), (q.start_s, q.end_s)) for q in store.queries("train")]
            reached = sum(iou >= 0.5 for iou in ious), round(sum(ious) / len(ious), 9)
            if reached > wanted:
                best, wanted = [first / 20, last / 20], reached
    assert found["of_duration"] == best
    test = store.queries("test")
    figures = slow_figures([[(best[0] * 16, best[1] * 16)]] * len(test), [(q.start_s, q.end_s) for q in test])
    assert close(found["all"], {name: value for name, value in figures.items() if not name.startswith("R5")})
    assert "R5@0.5" not in found["all"]


def test_the_query_blind_model_is_the_model_that_is_asked_something_else(packed, evaluated):
    """Every video's query of the other animal or the same one, as the permutation has it, one at a time."""
    store, trained = TrainingStore(packed / "store"), train.load_run(packed / "run", device="cpu")
    queries = [query for query in store.queries("test") if query.video_id in store]
    given = permutation(queries, seed=0)
    answers = []
    for query, other in zip(queries, given, strict=True):
        asked = Query.from_json({**query.to_json(), "token_ids": queries[other].token_ids})
        [windows] = train.predict(trained.model, load_examples(store, [asked]), batch_size=1, k=5)
        answers.append(windows[:, :2].tolist())
    moments = [(query.start_s, query.end_s) for query in store.queries("test")]
    found = metrics_of(evaluated)["query_blind"]
    assert close(found["all"], slow_figures([*answers, [], []], moments))
    assert found["own_queries"] == len(queries), "all videos have the same two sentences here"
    assert found["all"]["mIoU"] != metrics_of(evaluated)["model"]["all"]["mIoU"]


def test_intervals_are_those_of_drawn_videos(evaluated):
    """The bootstrap once more, by drawing videos with their queries and counting."""
    answers = {line["qid"]: line for line in lines_of(evaluated / "predictions.jsonl")}
    queries = TrainingStore(evaluated.parent / "store").queries("test")
    hits: dict[str, list[bool]] = {}
    for query in queries:
        windows = answers[query.annotation_id]["pred_relevant_windows"][:1]
        hits.setdefault(query.video_id, []).append(any(iou_of(w, (query.start_s, query.end_s)) >= 0.3 for w in windows))
    draw = random.Random(7)
    means = []
    for _ in range(4000):
        drawn = [hit for _ in hits for hit in hits[draw.choice([*hits])]]
        means.append(100 * sum(drawn) / len(drawn))
    low, high = metrics_of(evaluated)["model"]["all"]["interval_95"]["R1@0.3"]
    assert low < high
    step = 100 / len(queries)
    assert [low, high] == pytest.approx(np.quantile(means, [0.025, 0.975]).tolist(), abs=step)


def test_the_table_has_every_baseline_and_strict_figures_on_request(packed, evaluated, capsys):
    arguments = [*evaluate_arguments(packed), "--out", str(evaluated)]
    assert main(arguments) == 0
    plain = capsys.readouterr().out
    found = metrics_of(evaluated)
    for name, key in (("ExCL-clf 1-a", "model"), ("time prior", "time_prior"), ("query-blind", "query_blind")):
        lines = plain.splitlines()
        line = lines[lines.index(name) + 1]
        assert line.split()[0] == "all"
        assert line.split()[-1] == f"{found[key]['all']['mIoU']:.1f}"
        assert line.split()[-7] == f"{found[key]['all']['R1@0.3']:.1f}"
    ends = found["model"]["all"]["interval_95"]["mIoU"]
    below = [line for line in plain.splitlines() if line.startswith(("  95 % from", "  to"))][:2]
    assert [line.split()[-1] for line in below] == [f"{end:.1f}" for end in ends]
    assert max(map(len, [line for line in plain.splitlines() if line.startswith(" ")])) <= 80
    assert "those with features" in plain
    assert main([*arguments, "--strict"]) == 0
    shown = capsys.readouterr().out
    shown = shown[: shown.index("R1@0.5 by kind of query")]
    assert "R1>0.5" in shown
    assert "R1@0.5" not in shown


def test_predictions_are_written_where_they_are_wanted(packed, evaluated, tmp_path, caplog):
    """Also of an evaluation that is done, and never over what is somebody's."""
    wanted = (evaluated / "predictions.jsonl").read_bytes()
    done = [*evaluate_arguments(packed), "--out", str(evaluated)]
    anew = [*evaluate_arguments(packed), "--out", str(tmp_path / "e")]
    for number, arguments in enumerate((done, anew, done)):
        path = tmp_path / f"{min(number, 1)}.jsonl"  # the third time there it is already
        assert main([*arguments, "--predictions", str(path)]) == 0
        assert path.read_bytes() == wanted
    theirs = jsonl(tmp_path / "theirs.jsonl", [{"qid": "1", "pred_relevant_windows": [[0, 1]]}])
    before = theirs.read_bytes()
    assert main([*done, "--predictions", str(theirs)]) == 2
    assert "theirs.jsonl exists already; `excl score" in caplog.text
    assert theirs.read_bytes() == before


def test_store_and_folder_of_an_evaluation_may_be_left_out(packed, evaluated, tmp_path, caplog):
    """The store is that of the training, if it is there and the same; the folder is beside the run's."""
    run, store = tmp_path / "a" / "run", packed / "store"
    shutil.copytree(packed / "run", run)
    assert main(["evaluate", str(run), "--device", "cpu"]) == 0
    assert metrics_of(tmp_path / "a" / "run-evaluation-test") == metrics_of(evaluated)
    (run / "stores.json").write_text(json.dumps({"jsonl": str(tmp_path / "gone")}))
    asked = ["evaluate", str(run), "--split", "val", "--device", "cpu"]
    assert main(asked) == 2
    assert "its training store was not found" in caplog.text
    (run / "stores.json").unlink()
    assert main(asked) == 2
    assert "say where it is with --store" in caplog.text
    shutil.copytree(store, tmp_path / "other")
    header = json.loads((tmp_path / "other" / "manifest.json").read_text())
    with Manifest.open(
        tmp_path / "other", stage="pack", identity=header["identity"], code_version=header["code_version"]
    ) as m:
        m.add({"id": "more"})
    (run / "stores.json").write_text(json.dumps({"jsonl": str(tmp_path / "other")}))
    assert main(asked) == 2
    assert "not any more what" in caplog.text
    assert main([*asked, "--store", str(store)]) == 0
    assert (tmp_path / "a" / "run-evaluation-val" / "metrics.json").is_file()


def test_our_own_predictions_score_what_evaluation_says(packed, evaluated, tmp_path, capsys):
    """Against the store, against its queries, and against the annotations that they were made of."""
    wanted = metrics_of(evaluated)
    made = tmp_path / "test.jsonl"
    queries = TrainingStore(packed / "store").queries("test")
    jsonl(made, [{k: getattr(q, k) for k in ("video_id", "query", "start_s", "end_s", "duration_s", "group")} for q in
                 sorted(queries, key=lambda q: int(q.annotation_id.split(":")[2]))])  # fmt: skip
    for against in (packed / "store", packed / "queries" / "moments.jsonl", made):
        arguments = ["score", str(evaluated / "predictions.jsonl"), "--against", str(against)]
        capsys.readouterr()
        assert main([*arguments, "--json", "--out", str(tmp_path / "scores.json")]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found == json.loads((tmp_path / "scores.json").read_text())
        without = [name for name in wanted["model"]["all"] if name != "interval_95"]
        assert {name: found["model"]["all"][name] for name in without} == {
            name: wanted["model"]["all"][name] for name in without
        }
        assert {kind: misfit["number"] for kind, misfit in found["misfits"].items()} == dict.fromkeys(found["misfits"], 0)
        if against != made:
            assert found["time_prior"] == wanted["time_prior"]
    assert main([*arguments, "--split", "test"]) == 0
    assert (
        "There are no baselines, for want of training moments of known duration; give some with --train."
        in capsys.readouterr().out
    )


DETR = [
    {"qid": 7, "query": "a man cooks", "vid": "a", "duration": 20, "relevant_windows": [[0, 10]]},
    {"qid": 8, "query": "a man eats", "vid": "a", "duration": 20, "relevant_windows": [[2, 4], [10, 20]]},
    {"qid": 9, "query": "a cat", "vid": "b", "duration": 30, "relevant_windows": [[0, 30]]},
    {"qid": "x", "query": "a dog", "vid": "c", "duration": 30, "relevant_windows": [[5, 15]]},
]


def test_a_file_by_hand_is_scored_and_what_does_not_fit_is_told(tmp_path, caplog, capsys):
    jsonl(tmp_path / "truth.jsonl", DETR)
    answers = [
        {
            "qid": 7,
            "query": "?",
            "vid": "a",
            "pred_relevant_windows": [[10, 20, 0.9], [0, 5, 0.8]],
        },  # IoU 0, then 0.5
        {"qid": "8", "pred_relevant_windows": [[10, 17]]},  # a number or a name; the better of two windows: 0.7
        {"qid": 7, "pred_relevant_windows": [[0, 10, 1.0]]},  # again: does not count
        {"qid": 9, "vid": "elsewhere", "pred_relevant_windows": [[0, 30, 1.0]]},
        {"qid": 10, "pred_relevant_windows": []},
    ]
    jsonl(tmp_path / "p.jsonl", answers)
    arguments = ["score", str(tmp_path / "p.jsonl"), "--against", str(tmp_path / "truth.jsonl")]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    figures = found["model"]["all"]
    assert figures["num_queries"] == 4
    assert (figures["R1@0.3"], figures["R1@0.7"], figures["R1@0.7 strict"]) == (25.0, 25.0, 0.0)
    assert (figures["R5@0.5"], figures["R5@0.5 strict"], figures["R5@0.7"]) == (50.0, 25.0, 25.0)
    assert figures["mIoU"] == pytest.approx(100 * 0.7 / 4)
    assert found["num_covered"] == 2
    assert found["model_where_covered"]["R1@0.3"] == 50.0
    counts = {kind: (misfit["number"], misfit["first"]) for kind, misfit in found["misfits"].items()}
    assert counts == {
        "missing": (1, ["x"]),
        "unknown": (1, ["10"]),
        "duplicate": (1, ["7"]),
        "about_another_video": (1, ["9"]),
        "with_broken_windows": (0, []),
    }
    assert "1 queries have no line and count as misses: x" in caplog.text
    assert "1 lines answer no query of this split and are not counted: 10" in caplog.text
    assert "1 lines have the qid of an earlier one, which counts: 7" in caplog.text


def test_baselines_are_fitted_to_the_training_annotations_that_are_given(tmp_path, capsys):
    jsonl(tmp_path / "truth.jsonl", DETR[:1])
    jsonl(tmp_path / "train.jsonl", [{**DETR[0], "relevant_windows": [[5, 10]]}])
    jsonl(tmp_path / "p.jsonl", [{"qid": 7, "pred_relevant_windows": [[0, 10]]}])
    arguments = ["score", str(tmp_path / "p.jsonl"), "--against", str(tmp_path / "truth.jsonl")]
    assert main([*arguments, "--train", str(tmp_path / "train.jsonl"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["best_fixed_span"]["of_duration"] == [0.25, 0.5]
    assert found["best_fixed_span"]["all"]["mIoU"] == found["time_prior"]["all"]["mIoU"] == 50.0
    assert main([*arguments, "--train", str(tmp_path / "train.jsonl")]) == 0
    assert "best fixed span (25% to 50%)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"qid": 1}', "p.jsonl:1: no 'pred_relevant_windows'"),
        ('{"qid": null, "pred_relevant_windows": []}', "p.jsonl:1: 'qid' is null"),
        ('{"qid": 7, "pred_relevant_windows": [[1]]}', "p.jsonl:1: a predicted window is [1]; expected [start, end, score]"),
        ('{"qid": 7, "pred_relevant_windows": [["a", 2]]}', 'a window\'s time is "a"; expected a number'),
        ('{"qid": 5, "pred_relevant_windows": []}', "answers none of the 4 queries: its qids are like '5', theirs like '7'"),
        ('{"qid": 7, "vid": "z", "pred_relevant_windows": []}', "of the same name but about other videos"),
        ("", "no predictions in it"),
    ],
)
def test_files_that_are_no_predictions_are_refused(tmp_path, caplog, line, message):
    jsonl(tmp_path / "truth.jsonl", DETR)
    (tmp_path / "p.jsonl").write_text(line + "\n")
    assert main(["score", str(tmp_path / "p.jsonl"), "--against", str(tmp_path / "truth.jsonl")]) == 2
    assert message in caplog.text


def test_a_split_that_is_not_there_and_one_that_cannot_be_asked_for(packed, tmp_path, caplog):
    jsonl(tmp_path / "p.jsonl", [{"qid": 7, "pred_relevant_windows": []}])
    jsonl(tmp_path / "truth.jsonl", DETR)
    arguments = ["score", str(tmp_path / "p.jsonl"), "--against"]
    assert main([*arguments, str(tmp_path / "truth.jsonl"), "--split", "val"]) == 2
    assert "is one split, and says nothing of others" in caplog.text
    row = {"video_id": "a", "query": "q", "start_s": 0, "end_s": 1, "split": "train"}
    assert main([*arguments, str(jsonl(tmp_path / "own.jsonl", [row]))]) == 2
    assert "no queries of a split 'test'; it has ['train']" in caplog.text
    with pytest.raises(ValueError, match="has training annotations of its own"):
        score.ScoreConfig(file=tmp_path / "p.jsonl", against=packed / "store", train=tmp_path / "truth.jsonl")


def query(name, video_id="a", words="a man cooks", **more):
    rest = {"start_s": 0.0, "end_s": 1.0, "duration_s": 2.0, "split": "test", "group": "", "query_id": "", **more}
    return Query.from_json({"annotation_id": name, "video_id": video_id, "query": words, "tokens": words.split(),
                            "token_ids": [], **rest})  # fmt: skip


def test_numbers_of_a_file_are_ids_only_with_the_same_video_and_sentence(tmp_path):
    queries = [query("test:file:1"), query("test:file:2", "b")]
    line = {"qid": 1, "vid": "a", "query": " a man cooks", "pred_relevant_windows": [[0, 1]]}
    windows, misfits = match(read_predictions(jsonl(tmp_path / "p.jsonl", [line])), queries)
    assert windows[0].tolist() == [[0, 1, 0]]
    assert misfits["missing"]["first"] == ["test:file:2"]
    for change in ({"vid": "b"}, {"query": "a man eats"}, {"vid": None}):
        with pytest.raises(ValueError, match="answers none of the 2 queries"):
            match(read_predictions(jsonl(tmp_path / "p.jsonl", [{**line, **change}])), queries)


def test_windows_that_are_no_intervals_are_misses_at_their_rank(tmp_path):
    line = {"qid": "q", "pred_relevant_windows": [[5, 2, 0.9], [0, 1, 0.8], [0, 1e400]]}
    predictions = read_predictions(jsonl(tmp_path / "p.jsonl", [line]))
    windows, misfits = match(predictions, [query("q")])
    assert misfits["with_broken_windows"] == {"number": 1, "first": ["q"]}
    found = metrics_by_group(windows[:, :5, :2], GroundTruth.from_queries([query("q")]))["all"]
    assert (found["R1@0.3"], found["R5@0.7"], found["mIoU"]) == (0.0, 100.0, 0.0)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_permutation_gives_no_video_its_own_words_where_that_can_be(seed):
    draw = random.Random(seed)
    queries = [query(str(n), f"v{n // 7 if n < 21 else n}", f"words {draw.randrange(12)}") for n in range(40)]
    given = permutation(queries, seed=seed)
    assert sorted(given.tolist()) == [*range(40)]
    texts: dict[str, set] = {}
    for one in queries:
        texts.setdefault(one.video_id, set()).add(one.tokens)
    assert not any(queries[other].tokens in texts[one.video_id] for one, other in zip(queries, given, strict=True))
    assert permutation(queries, seed=seed).tolist() == given.tolist()
    assert permutation(queries, seed=seed + 1).tolist() != given.tolist()


def test_a_video_with_most_of_the_queries_keeps_as_few_of_its_own_as_possible():
    queries = [query(str(n), "a" if n < 7 else f"v{n}", f"words {n}") for n in range(10)]
    given = permutation(queries, seed=0)
    own = [n for n in range(10) if queries[given[n]].video_id == queries[n].video_id]
    assert len(own) == 4, "seven queries about a video, three that are not"


def test_a_query_id_that_is_anothers_annotation_id_is_refused(packed, tmp_path, caplog):
    rows = [{"video_id": "a", "query": "q", "start_s": 0, "end_s": 1, "annotation_id": "same"},
            {"video_id": "b", "query": "q", "start_s": 0, "end_s": 1, "annotation_id": "x", "query_id": "same"}]  # fmt: skip
    jsonl(tmp_path / "own.jsonl", rows)
    jsonl(tmp_path / "p.jsonl", [{"qid": "same", "pred_relevant_windows": []}])
    assert main(["score", str(tmp_path / "p.jsonl"), "--against", str(tmp_path / "own.jsonl")]) == 2
    assert "the qid 'same' stands for 2 queries" in caplog.text


def test_where_nothing_has_features_all_are_misses(packed, monkeypatch):
    """No example, no prediction: figures of misses, and no table of those that are covered."""
    store = TrainingStore(packed / "store")
    queries = [q for q in store.queries("test") if q.video_id not in store]
    trained = SimpleNamespace(model=torch.nn.Identity())
    unlooked = SimpleNamespace(with_token_ids=lambda _, queries, **_treatment: queries)
    assert evaluate._examples(unlooked, store, queries, unseen_words="unk") == []
    windows, _ = evaluate._predict_windows(trained, queries, [[], []], batch_size=4)
    assert windows.shape == (2, 10, 3)
    assert np.isnan(windows).all()
