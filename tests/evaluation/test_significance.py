"""Differences between methods against a literal bootstrap, in simulations, and by the command."""

from __future__ import annotations

import json
import math
import random
import statistics

import numpy as np
import pytest

from excl.pipeline.evaluation.paired_bootstrap import differences
from excl.pipeline.sweep.significance import SignificanceConfig
from excl.workflows.cli import main

FIGURES = 4


def videos_of(generator, num_videos, most=5):
    """The video of every query, of 1 to `most` queries a video, shuffled."""
    video = np.repeat(np.arange(num_videos), generator.integers(1, most + 1, num_videos))
    return generator.permutation([f"v{number}" for number in video])


def literal_draws(seeds, by_video, chosen):
    """The mean over seeds and over all queries of the chosen videos, query by query."""
    values = [seeds[s][q] for video in chosen for q in by_video[video] for s in range(len(seeds))]
    return sum(values) / len(values)


def literal_interval(a, b, videos, *, resamples=6000):
    """The 95 % interval of the difference of two methods [S, Q], one resample after another."""
    dice = random.Random(7)
    by_video = {video: [q for q, other in enumerate(videos) if other == video] for video in videos}
    names, between, draws = sorted(by_video), [], []
    samples = [[dice.choice(names) for _ in names[1:]] for _ in range(resamples)]
    for seeds in (a, b):
        # What chance in single videos does to a seed's distance from the others: how it varies between draws of videos.
        distances = [
            [literal_draws([seed], by_video, chosen) - literal_draws(seeds, by_video, chosen) for chosen in samples[:1500]]
            for seed in seeds
        ]
        by_chance = sum(map(statistics.variance, distances)) / (len(seeds) - 1)
        between.append(max(0.0, statistics.variance([sum(seed) / len(seed) for seed in seeds]) - by_chance))
    for chosen in samples:
        draw = literal_draws(a, by_video, chosen) - literal_draws(b, by_video, chosen)
        for seeds, variance in ((a, between[0]), (b, between[1])):
            chi = sum(dice.gauss(0, 1) ** 2 for _ in seeds[1:])
            draw += dice.gauss(0, 1) / math.sqrt(chi / (len(seeds) - 1)) * math.sqrt(variance / len(seeds))
        draws.append(draw)
    draws.sort()
    return draws[int(0.025 * resamples)], draws[int(0.975 * resamples)]


@pytest.mark.parametrize("spread", [0.0, 12.0])
def test_the_interval_is_that_of_a_literal_bootstrap(spread):
    """With and without a difference between seeds; the two agree but for the chance of some thousand draws."""
    generator = np.random.default_rng(3)
    videos = videos_of(generator, 12)
    easy = dict(zip(sorted(set(videos)), generator.normal(0, 30, 12), strict=True))

    def method(num_seeds, level):
        common = np.array([easy[video] for video in videos]) + generator.normal(level, 15, len(videos))
        return np.array(
            [common + generator.normal(0, spread) + generator.normal(0, 8, len(videos)) for _ in range(num_seeds)]
        )

    a, b = method(4, 60), method(5, 50)
    low, high = literal_interval(a.tolist(), b.tolist(), videos.tolist())
    [first, *_] = differences({"a": np.stack([a] * FIGURES, 2), "b": np.stack([b] * FIGURES, 2)}, videos)
    assert first.difference == pytest.approx(a.mean() - b.mean())
    assert first.low == pytest.approx(low, abs=0.05 * (high - low))
    assert first.high == pytest.approx(high, abs=0.05 * (high - low))


def simulated(generator, videos, num_seeds, *, sd_of_seed=0.0, better=0.0):
    """Two methods of hits [S, Q, F], whose chance depends on the query, the seed, and how good the method is."""
    names, video = np.unique(videos, return_inverse=True)
    query = 0.8 + generator.normal(0, 1, len(names))[video] + generator.normal(0, 1, len(video))
    methods = {}
    for name, level in (("a", better), ("b", 0.0)):
        seeds = generator.normal(0, sd_of_seed, (num_seeds, 1))
        chance = 1 / (1 + np.exp(-(query + level + seeds)))
        methods[name] = np.repeat(100.0 * (generator.random(chance.shape) < chance)[..., None], FIGURES, axis=2)
    return methods


@pytest.mark.parametrize(("num_seeds", "sd_of_seed"), [(1, 0.0), (2, 0.3), (5, 0.3)])
def test_equals_differ_in_at_most_one_of_twenty_tries(num_seeds, sd_of_seed):
    """Two trainings of one variant, or two halves of many: the rate of false alarms, within its binomial error (99 %)."""
    generator = np.random.default_rng(11)
    tries, alarms = 400, 0
    for _ in range(tries):
        videos = videos_of(generator, 40, most=6)
        methods = simulated(generator, videos, num_seeds, sd_of_seed=sd_of_seed)
        alarms += differences(methods, videos)[0].stands
    assert alarms / tries <= 0.05 + 2.33 * math.sqrt(0.05 * 0.95 / tries)


def test_a_difference_is_seen_where_there_is_one():
    generator = np.random.default_rng(5)
    videos = videos_of(generator, 150, most=6)
    stands = [differences(simulated(generator, videos, 5, sd_of_seed=0.1, better=0.7), videos)[0] for _ in range(20)]
    assert sum(one.stands and one.low > 0 for one in stands) >= 19


def test_how_many_are_needed_follows_from_what_varies():
    """Videos, seeds and chance of known variance, 1 query a video; the answers solve (1.96 + 0.84)² variance = 1 point²."""
    generator = np.random.default_rng(2)
    num_videos, num_seeds, of_video, of_seed, single = 4000, 60, 5.0, 1.0, 30.0
    videos = np.arange(num_videos).astype(str)
    common = generator.normal(50, 25, num_videos)

    def method():
        own = common + generator.normal(0, of_video, num_videos)
        seeds = generator.normal(0, of_seed, (num_seeds, 1))
        return np.repeat((own + seeds + generator.normal(0, single, (num_seeds, num_videos)))[..., None], FIGURES, axis=2)

    [first, *_] = differences({"a": method(), "b": method()}, videos)
    allowed = 1 / 2.8**2
    seeds = 2 * (of_seed**2 + single**2 / num_videos) / (allowed - 2 * of_video**2 / num_videos)
    more = 2 * (of_video**2 + single**2 / num_seeds) / (allowed - 2 * of_seed**2 / num_seeds)
    assert first.seeds_for_1_point == pytest.approx(seeds, rel=0.3)
    assert first.videos_for_1_point == pytest.approx(more, rel=0.1)
    [few, *_] = differences({name: values[:, :100] for name, values in (("a", method()), ("b", method()))}, videos[:100])
    assert few.seeds_for_1_point is None, "more seeds do not make 100 videos more"
    assert differences({"a": method()[:1], "b": method()}, videos)[0].seeds_for_1_point is None


@pytest.fixture
def answered(tmp_path):
    """Twelve queries, a good method of two trainings, a bad one in a single file."""
    lines = [
        {"video_id": f"v{n // 2}", "query": f"query {n}", "start_s": 0.0, "end_s": 10.0, "annotation_id": f"q{n}"}
        for n in range(12)
    ]
    truth = tmp_path / "test.jsonl"
    truth.write_text("".join(json.dumps({**line, "duration_s": 30.0}) + "\n" for line in lines))

    def predict(path, ends):
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"qid": line["annotation_id"], "pred_relevant_windows": [[0.0, end, 1.0]]} for line, end in
                zip(lines, ends, strict=True)]  # fmt: skip
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    predict(tmp_path / "good" / "first" / "predictions.jsonl", [10.0] * 12)
    predict(tmp_path / "good" / "second" / "predictions.jsonl", [8.0] * 11 + [1.0])
    predict(tmp_path / "bad.jsonl", [1.0] * 11 + [9.0])
    return tmp_path


def test_the_command(answered, capsys):
    methods = [str(answered / "good"), str(answered / "bad.jsonl")]
    against = ["--against", str(answered / "test.jsonl")]
    assert main(["significance", *methods, *against, "--out", str(answered / "out.json")]) == 0
    shown = capsys.readouterr().out
    assert "12 queries of 6 videos" in shown
    assert "With one seed a comparison is about these trainings" in shown
    result = json.loads((answered / "out.json").read_text())
    assert result["methods"]["good"] == pytest.approx(
        {"seeds": 2, "R1@0.3": 2300 / 24, "R1@0.5": 2300 / 24, "R1@0.7": 2300 / 24,
         "mIoU": (12 * 100 + 11 * 80 + 10) / 24}
    )  # fmt: skip
    by_figure = {one["figure"]: one for one in result["differences"]}
    assert by_figure["R1@0.5"]["difference"] == pytest.approx(2300 / 24 - 100 / 12)
    assert by_figure["R1@0.5"]["stands"]
    assert f"{2300 / 24 - 100 / 12:+.1f}*" in shown
    assert main(["significance", *methods, *against, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == result


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (["bad.jsonl", "nowhere"], "nowhere: there is no such file or folder"),
        (["bad.jsonl", "empty"], "neither a run nor an evaluation, and no predictions.jsonl in it or below it"),
    ],
)
def test_what_cannot_be_compared_is_refused(answered, methods, message, capsys, caplog):
    (answered / "empty").mkdir()
    paths = [str(answered / method) for method in methods]
    assert main(["significance", *paths, "--against", str(answered / "test.jsonl")]) in (1, 2)
    assert message in caplog.text + "".join(capsys.readouterr())


def test_a_method_is_compared_with_another():
    with pytest.raises(ValueError, match="expected two or more"):
        SignificanceConfig(methods=("one.jsonl", "./one.jsonl"))


def test_which_queries_files_answer_has_to_be_said(answered, capsys, caplog):
    assert main(["significance", str(answered / "good"), str(answered / "bad.jsonl")]) in (1, 2)
    assert "give a training store or annotations by --against" in caplog.text + "".join(capsys.readouterr())
