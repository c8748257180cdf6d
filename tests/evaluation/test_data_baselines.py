"""The baselines that know the query, its verb or the video alone, and the kinds of queries, against slow versions."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest
from chain_data import jsonl

from excl.models.i3d.row_layout import Continuous
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.evaluation.data_baselines import MIN_MOMENTS, Verbs, predictions
from excl.pipeline.store.feature_store import FeatureStore
from excl.pipeline.store.shard import VideoFeatures, write_shard
from excl.pipeline.store.training_store import Query
from excl.workflows.cli import main

WORDS = ["a", "person", "man", "opens", "closes", "opening", "closing", "holds", "door", "window", "box", "the", "slowly"]


def query(number, words, start_s, end_s, *, video_id=None, duration_s=20.0, split="train"):
    rest = {"duration_s": duration_s, "split": split, "group": "", "query_id": "", "token_ids": []}
    names = {"annotation_id": f"{split}{number}", "video_id": video_id or f"{split}-v{number}", "query": " ".join(words)}
    return Query.from_json({**names, "tokens": words, "start_s": start_s, "end_s": end_s, **rest})


def random_queries(num, split, seed):
    draw = random.Random(seed)
    made = []
    for number in range(num):
        duration_s = draw.uniform(10, 60)
        start_s = draw.uniform(0, 0.8 * duration_s)
        words = draw.sample(WORDS, draw.randint(2, 6))
        end_s = draw.uniform(start_s + 0.1, duration_s)
        made.append(query(number, words, start_s, end_s, video_id=f"v{number % 40}", duration_s=duration_s, split=split))
    return made


def iou(a, b):
    shared = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    return shared / (a[1] - a[0] + b[1] - b[0] - shared)


def literal_query_only(training, asked):
    """By the definition, one training query after another."""
    counts = {word: sum(word in q.tokens for q in training) for word in WORDS}
    idf = {word: math.log((1 + len(training)) / (1 + count)) + 1 for word, count in counts.items()}

    def cosine(a, b):
        norm = math.sqrt(sum(idf[w] ** 2 for w in set(a)) * sum(idf[w] ** 2 for w in set(b)))
        return sum(idf[w] ** 2 for w in set(a) & set(b)) / norm

    weighted = []
    for other in training:
        if other.video_id != asked.video_id:
            likeness = math.exp(-2 * abs(math.log(asked.duration_s / other.duration_s)))
            part = (other.start_s / other.duration_s, other.end_s / other.duration_s)
            weighted.append((cosine(other.tokens, asked.tokens) ** 2 * likeness, part))
    weighted = sorted(weighted, reverse=True)[:100]
    grid, chosen = [(a / 20, b / 20) for a in range(20) for b in range(a + 1, 21)], []
    for _ in range(5):
        gains = [sum(w * max(iou(span, m) for span in [*chosen, new]) for w, m in weighted) for new in grid]
        chosen.append(grid[gains.index(max(gains))])
    return [[a * asked.duration_s, b * asked.duration_s] for a, b in chosen]


def test_query_only_is_what_the_definition_says():
    training, asked = random_queries(150, "train", 0), random_queries(6, "test", 1)
    found = predictions(training, asked, None)
    assert set(found) == {"verb_prior", "query_only"}
    for answers, one in zip(found["query_only"], asked, strict=True):
        assert answers == pytest.approx(np.array(literal_query_only(training, one)))
    [alone] = predictions(training, asked[2:3], None)["query_only"]
    assert alone.tolist() == found["query_only"][2].tolist(), "what else is asked has no influence"


def test_where_nothing_is_similar_videos_of_such_a_duration_answer():
    """And nothing does where the training split has no other video: without this, all answers were the first 5 %."""
    training = [query(n, ["he", "opens"], 6, 12, duration_s=20.0 if n else 400.0) for n in range(5)]
    strange = query(9, ["xyzzy"], 0, 1, split="test")
    assert predictions(training, [strange], None)["query_only"][0, 0].tolist() == [6, 12]
    own = [query(n, ["he", "opens"], 6, 12, video_id="v") for n in range(5)]
    assert np.isnan(predictions(own, own[:1], None)["query_only"]).all()


def test_the_verb_is_the_first_word_that_is_bent_like_one():
    sentences = ["a person opens the thing", "he is opening doors", "one opened two things", "the door", "she sat sitting"]
    verbs = Verbs([query(n, text.split(), 0, 1) for n, text in enumerate([*sentences, "they sit", "running"])])
    found = [
        verbs.of(query(0, text.split(), 0, 1)) for text in ("the things opened", "doors open", "who sits", "a running man")
    ]
    assert found == ["open", "open", "sit", ""], "running has no other form here, and things are no verb"


def test_a_verb_has_its_own_prior_and_a_rare_one_that_of_all():
    training = [query(n, ["he", "opens" if n % 2 else "opening"], 0, 5) for n in range(MIN_MOMENTS)]
    training += [query(n + 100, ["he", "closes" if n % 2 else "closing"], 15, 20) for n in range(MIN_MOMENTS + 20)]
    training += [query(n + 300, ["he", "sits" if n % 2 else "sitting"], 5, 15) for n in range(4)]
    asked = [query(n, ["he", verb], 0, 1, split="test") for n, verb in enumerate(("open", "closes", "sits", "jumps"))]
    first = predictions(training, asked, None)["verb_prior"][:, 0].tolist()
    assert first == [[0, 5], [15, 20], [15, 20], [15, 20]]


@pytest.fixture
def store(tmp_path):
    """Ten dark videos, whose moments are early, and ten bright ones, whose moments are late; one of each to ask about."""
    start_s, end_s = Continuous().row_times(80, fps=5.0, duration_s=20.0)
    generator = np.random.default_rng(0)
    names = [f"train-v{n}" for n in range(20)] + ["test-v0", "test-v1"]
    videos = [
        VideoFeatures(name, (generator.normal(n % 2, 0.1, (len(start_s), 8))).astype(np.float16), start_s, end_s, {})
        for n, name in enumerate(names)
    ]
    recipe = {"dtype": "float16"}
    with Manifest.open(tmp_path / "features", stage="extract", identity=recipe, code_version=1) as manifest:
        write_shard(tmp_path / "features" / "all.h5", videos, recipe=recipe)
        manifest.add({"id": "shard/all.h5", "file": "all.h5", "videos": names})
    return FeatureStore(tmp_path / "features")


def test_video_only_knows_what_happens_in_such_videos(store):
    training = [query(n, ["same", "words"], 15 * (n % 2), 15 * (n % 2) + 5) for n in range(20)]
    asked = [query(n, ["same", "words"], 0, 1, split="test") for n in range(3)]  # the third has no features
    found = predictions(training, asked, store)["video_only"]
    assert found[:2, 0].tolist() == [[0, 5], [15, 20]]
    assert np.isnan(found[2]).all()
    # Asked about a training video, its own moment does not answer: the others of its kind are early.
    odd = [query(0, ["same", "words"], 10, 15), *training[1:]]
    assert predictions(odd, odd[:1], store)["video_only"][0, 0].tolist() == [0, 5]


def test_figures_by_kind_are_those_of_the_queries_of_a_kind(tmp_path, capsys):
    rows = [
        {"video_id": "a", "query": "he opens the door", "start_s": 0, "end_s": 5},
        {"video_id": "a", "query": "he opens the door", "start_s": 25, "end_s": 29},
        {"video_id": "a", "query": "she sleeps", "start_s": 8, "end_s": 28},
        {"video_id": "b", "query": "he opens the fridge", "start_s": 20, "end_s": 90},
    ]
    duration = {"a": 30.0, "b": 100.0}
    test = [
        {**r, "duration_s": duration[r["video_id"]], "split": "test", "annotation_id": str(n)} for n, r in enumerate(rows)
    ]
    train = [{**row, "split": "train", "annotation_id": f"t{row['annotation_id']}", "video_id": "t"} for row in test[:3]]
    jsonl(tmp_path / "own.jsonl", [*test, *train])
    windows = [[0, 5], [0, 5], [8, 28], [0, 1]]
    lines = [{"qid": str(n), "pred_relevant_windows": [window]} for n, window in enumerate(windows)]
    asked = ["score", str(jsonl(tmp_path / "p.jsonl", lines)), "--against", str(tmp_path / "own.jsonl")]
    assert main([*asked, "--json"]) == 0
    kinds = json.loads(capsys.readouterr().out)["kinds"]
    figures = {
        name: {kind: (of["model"]["num_queries"], of["model"]["R1@0.5"]) for kind, of in by_kind.items()}
        for name, by_kind in kinds.items()
    }
    assert figures == {
        "length": {"up to 10 s": (2, 50.0), "10 to 30 s": (1, 100.0), "over 30 s": (1, 0.0)},
        "place in the video": {"first third": (1, 100.0), "middle third": (2, 50.0), "last third": (1, 0.0)},
        "similar moments in the video": {"none": (2, 50.0), "1": (2, 50.0)},
        "words": {"all in training": (3, 200 / 3), "some unseen": (1, 0.0)},
    }
    assert {approach for by_kind in kinds.values() for of in by_kind.values() for approach in of} == {
        "model", "best_fixed_span", "time_prior", "verb_prior", "query_only"
    }  # fmt: skip
    assert main(asked) == 0
    shown = capsys.readouterr().out.splitlines()
    row = next(line.split() for line in shown if line.strip().startswith("10 to 30 s"))
    assert row[4:6] == ["1", "100.0"]
    assert next(line for line in shown if line.startswith("query only"))
