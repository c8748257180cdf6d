"""mAP, R@1 and saliency against a slow and literal version of what Moment-DETR's evaluator computes."""

from __future__ import annotations

import json
import random

import pytest
from chain_data import jsonl

from excl.workflows.cli import main

THRESHOLDS = [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]


def rounded(values):
    return float(f"{100 * sum(values) / len(values):.2f}")


def iou(a, b):
    """By the sum of the lengths, as mAP has it; the order of the operations decides where an IoU is just a threshold."""
    shared = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    return shared / ((a[1] - a[0]) + (b[1] - b[0]) - shared)


def hull_iou(a, b):
    """By the hull of both, as R@1 has it."""
    return max(0.0, min(a[1], b[1]) - max(a[0], b[0])) / (max(a[1], b[1]) - min(a[0], b[0]))


def average_precision(windows, moments, threshold):
    """The area under the precision that is reached at a recall or beyond: by definition, one window after another."""
    ranked = sorted(windows[:10], key=lambda window: -window[2])
    taken: set[int] = set()
    curve = []  # (recall, precision) after each window
    for rank, window in enumerate(ranked, start=1):
        fitting = [(iou(window, m), n) for n, m in enumerate(moments) if n not in taken and iou(window, m) >= threshold]
        if fitting:
            taken.add(max(fitting)[1])
        curve.append((len(taken) / len(moments), len(taken) / rank))
    area, reached = 0.0, 0.0
    for recall in sorted({r for r, _ in curve}):
        area += (recall - reached) * max(p for r, p in curve if r >= recall)
        reached = recall
    return area


def saliency_precision(is_highlight, scores):
    """The mean, over the recalls that some threshold on the scores reaches, of the best precision there or beyond."""
    if len(set(is_highlight)) == 1:
        return float(is_highlight[0])
    curve = []
    for threshold in sorted(set(scores)):
        chosen = [truth for truth, score in zip(is_highlight, scores, strict=True) if score >= threshold]
        curve.append((sum(chosen), sum(chosen) / len(chosen)))
    recalls = sorted({hits for hits, _ in curve if hits})
    return sum(max(p for hits, p in curve if hits >= recall) for recall in recalls) / len(recalls)


def literal(predictions, truth):
    found = {}
    answers = {line["qid"]: line for line in predictions}
    for group, low, high in (("short", 0, 10), ("middle", 10, 30), ("long", 30, 150), ("full", 0, 150)):
        in_group = {line["qid"]: [m for m in line["relevant_windows"] if low < m[1] - m[0] <= high] for line in truth}
        pairs = [(answers[qid]["pred_relevant_windows"], moments) for qid, moments in in_group.items() if moments]
        found[group] = {"num_queries": len(pairs), "MR-mAP": None, "MR-R1": None}
        if pairs:
            areas = {t: [average_precision(windows, moments, t) for windows, moments in pairs] for t in THRESHOLDS}
            first = [max(hull_iou(windows[0], moment) for moment in moments) for windows, moments in pairs]
            found[group]["MR-mAP"] = {str(t): rounded(values) for t, values in areas.items()}
            found[group]["MR-mAP"]["average"] = rounded([x for values in areas.values() for x in values])
            found[group]["MR-R1"] = {str(t): rounded([value >= t for value in first]) for t in THRESHOLDS}
    for level, least in (("Fair", 2), ("Good", 3), ("VeryGood", 4)):
        hits, areas = [], []
        for line in truth:
            clips = [[0, 0, 0] for _ in range(int(line["duration"] / 2))]
            for clip, scores in zip(line["relevant_clip_ids"], line["saliency_scores"], strict=True):
                clips[clip] = scores
            guesses = answers[line["qid"]]["pred_saliency_scores"]
            best = guesses.index(max(guesses))
            hits.append(best < len(clips) and max(clips[best]) >= least)
            guesses = (guesses + [0] * len(clips))[: len(clips)]
            areas += [saliency_precision([scores[who] >= least for scores in clips], guesses) for who in range(3)]
        found[f"HL-min-{level}"] = {"HL-mAP": rounded(areas), "HL-Hit1": rounded(hits)}
    return found


def guesses_for(lines, seed):
    """Twelve windows a query, some near and some far, and saliency of whatever length, with ties."""
    draw, guesses = random.Random(seed), []
    for line in lines:
        windows = []
        for _ in range(12):
            start, end = draw.choice(line["relevant_windows"])
            start_s = max(0.0, start + draw.gauss(0, 6))
            windows.append([round(start_s, 2), round(max(start_s + 1, end + draw.gauss(0, 6)), 2), round(draw.random(), 2)])
        saliency = [round(draw.random(), 1) for _ in range(draw.choice([60, 75, 90]))]
        guesses.append({"qid": line["qid"], "vid": line["vid"], "pred_relevant_windows": windows} |
                       {"query": line["query"], "pred_saliency_scores": saliency})  # fmt: skip
    return guesses


def scored(tmp_path, capsys, truth, predictions):
    arguments = ["score", str(jsonl(tmp_path / "p.jsonl", predictions)), "--against", str(truth), "--json"]
    assert main(arguments) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(("split", "seed"), [("val_release", 0), ("test_with_gt", 1)])
def test_figures_on_qvhighlights_are_those_of_the_definition_to_the_digit(shared, tmp_path, capsys, split, seed):
    truth = shared / "annotations" / "qvhighlights" / f"highlight_{split}.jsonl"
    lines = [json.loads(line) for line in truth.read_text().splitlines()]
    predictions = guesses_for(lines, seed)
    wanted = literal(predictions, lines)
    assert 0 < wanted["short"]["MR-mAP"]["average"] < wanted["full"]["MR-mAP"]["0.5"] < 100
    assert scored(tmp_path, capsys, truth, predictions)["moment_detr"] == wanted


SALIENCY = {"relevant_clip_ids": [1, 2], "saliency_scores": [[4, 2, 1], [3, 3, 0]]}
ONE = {"qid": 1, "query": "a cat", "vid": "v", "duration": 10, "relevant_windows": [[0, 4], [6, 8]], **SALIENCY}
TWO = {"qid": 2, "query": "a dog", "vid": "w", "duration": 100, "relevant_windows": [[0, 40]]}


def test_by_hand_with_empty_groups_and_missing_answers(tmp_path, capsys):
    """Query 1: a miss, then both moments; query 2 has no line. No moment is of 10 to 30 seconds."""
    truth = jsonl(tmp_path / "truth.jsonl", [ONE, TWO])
    windows = [[0, 4, 0.5], [6, 8, 0.4], [8, 10, 0.9]]  # by score the miss is first
    line = {"qid": 1, "query": "a cat", "vid": "v", "pred_relevant_windows": windows, "pred_saliency_scores": [0, 0.1, 0.9]}
    found = scored(tmp_path, capsys, truth, [line])["moment_detr"]
    assert found["middle"] == {"num_queries": 0, "MR-mAP": None, "MR-R1": None}
    assert found["short"]["MR-mAP"]["0.5"] == 66.67  # precision 2/3 at either recall
    assert found["full"]["MR-mAP"]["average"] == 33.33
    assert (found["full"]["MR-R1"]["0.7"], found["short"]["MR-R1"]["0.7"], found["long"]["MR-R1"]["0.7"]) == (50, 100, 0)
    # very good: annotator 1 alone, clip 1, which is second: 1/2. Good: clips 1 and 2 (1), clip 2 (1), none (0).
    assert found["HL-min-VeryGood"] == {"HL-mAP": 16.67, "HL-Hit1": 0.0}
    assert found["HL-min-Good"] == {"HL-mAP": 66.67, "HL-Hit1": 100.0}
    assert main(["score", str(tmp_path / "p.jsonl"), "--against", str(truth)]) == 0
    shown = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in shown[shown.index("by length of the moments, as Moment-DETR's evaluator measures") :]]
    assert [*["10", "to", "30", "s"], "0", "-", "-", "-", "-", "-"] in rows
    assert [*["up", "to", "10", "s"], "1", "100.00", "100.00", "66.67", "66.67", "66.67"] in rows
    assert ["VeryGood", "16.67", "0.00"] in rows


def test_without_saliency_there_is_none_and_a_broken_one_is_refused(tmp_path, capsys, caplog):
    truth = jsonl(tmp_path / "truth.jsonl", [ONE, TWO])
    line = {"qid": 1, "pred_relevant_windows": [[0, 4]]}
    assert set(scored(tmp_path, capsys, truth, [line])["moment_detr"]) == {"short", "middle", "long", "full"}
    arguments = ["score", str(tmp_path / "p.jsonl"), "--against", str(truth)]
    jsonl(tmp_path / "p.jsonl", [{**line, "pred_saliency_scores": ["high"]}])
    assert main(arguments) == 2
    assert 'p.jsonl:1: a saliency score is "high"' in caplog.text
    jsonl(tmp_path / "p.jsonl", [{**line, "pred_saliency_scores": [1.0]}])
    jsonl(truth, [{**ONE, "relevant_clip_ids": [1, 9]}])
    assert main(arguments) == 2
    assert "truth.jsonl:1: 'saliency_scores' and 'relevant_clip_ids' do not fit" in caplog.text
