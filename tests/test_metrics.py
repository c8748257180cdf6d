"""Metrics against one-moment-at-a-time references and cases with known answers."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from excl.models.excl import THRESHOLDS, best_fixed_span, summary, temporal_iou

moment = st.tuples(st.floats(0, 100), st.floats(0, 100)).map(sorted)
moments = st.lists(st.tuples(moment, moment), min_size=1, max_size=20)


def iou_of_one(a, b):
    shared = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = (a[1] - a[0]) + (b[1] - b[0]) - shared
    return shared / union if union > 0 else 0.0


@given(moments)
def test_temporal_iou_is_that_of_each_pair(pairs):
    predicted, truth = np.array(pairs).transpose(1, 0, 2)
    iou = temporal_iou(predicted, truth)
    assert iou.dtype == np.float64
    np.testing.assert_allclose(iou, [iou_of_one(a, b) for a, b in pairs], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(iou, temporal_iou(truth, predicted), rtol=1e-12, atol=1e-12)
    assert ((iou >= 0) & (iou <= 1 + 1e-12)).all()


@pytest.mark.parametrize(
    ("predicted", "truth", "iou"),
    [
        ([0, 10], [0, 10], 1.0),
        ([0, 5], [0, 10], 0.5),
        ([0, 6], [4, 10], 0.2),
        ([0, 1], [9, 10], 0.0),
        ([0, 5], [5, 10], 0.0),
        ([3, 3], [3, 3], 0.0),
        ([3, 3], [0, 10], 0.0),
        ([math.nan, math.nan], [0, 10], 0.0),
    ],
)
def test_known_ious(predicted, truth, iou):
    assert temporal_iou(np.array([predicted]), np.array([truth])).tolist() == [iou]


def test_summary_counts_in_percent_of_all_queries():
    truth = np.array([[0.0, 10.0]] * 5)
    predicted = np.array([[0.0, 10.0], [0.0, 5.0], [0.0, 4.99], [0.0, 3.0], [math.nan, math.nan]])
    found = summary(predicted, truth)
    assert list(found) == ["num_queries", "R1@0.3", "R1@0.5", "R1@0.7", "mIoU"]
    assert found["num_queries"] == 5
    assert [type(value) for value in found.values()] == [int, float, float, float, float]
    assert (found["R1@0.3"], found["R1@0.5"], found["R1@0.7"]) == (80.0, 40.0, 20.0)  # 0.499 is not 0.5
    assert found["mIoU"] == pytest.approx(100 * (1 + 0.5 + 0.499 + 0.3) / 5)


@given(moments)
def test_summary_is_that_of_a_loop(pairs):
    predicted, truth = np.array(pairs).transpose(1, 0, 2)
    ious = [iou_of_one(a, b) for a, b in pairs]
    found = summary(predicted, truth)
    assert found["mIoU"] == pytest.approx(100 * sum(ious) / len(ious), abs=1e-9)
    if all(abs(iou - threshold) > 1e-9 for iou in ious for threshold in THRESHOLDS):
        for threshold in THRESHOLDS:
            assert found[f"R1@{threshold}"] == 100.0 * sum(iou >= threshold for iou in ious) / len(ious)


@pytest.mark.parametrize(
    ("predicted", "truth", "message"),
    [
        (np.zeros((0, 2)), np.zeros((0, 2)), "no queries"),
        (np.zeros((3, 2)), np.zeros((2, 2)), "3 predicted moments for 2"),
        (np.zeros((3, 3)), np.zeros((3, 3)), "shape"),
        (np.array([[5.0, 4.0]]), np.array([[0.0, 1.0]]), "predicted moment 0"),
        (np.array([[5.0, math.nan]]), np.array([[0.0, 1.0]]), "predicted moment 0"),
        (np.array([[0.0, 1.0]]), np.array([[0.0, math.inf]]), "annotated moment 0"),
        (np.array([[0.0, 1.0]]), np.array([[math.nan, math.nan]]), "annotated moment 0"),
    ],
)
def test_summary_refuses(predicted, truth, message):
    with pytest.raises(ValueError, match=message):
        summary(predicted, truth)


def fixed_span_by_trying_all(starts_s, ends_s, durations_s, steps, threshold):
    def score(span):
        ious = [
            iou_of_one((span[0] * d, span[1] * d), (s, e)) for s, e, d in zip(starts_s, ends_s, durations_s, strict=True)
        ]
        return sum(iou >= threshold for iou in ious), np.mean(ious)

    return max(((a / steps, b / steps) for a in range(steps) for b in range(a + 1, steps + 1)), key=score)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 8), st.sampled_from(THRESHOLDS))
def test_fixed_span_is_the_best_of_all(seed, steps, threshold):
    rng = np.random.default_rng(seed)
    durations_s = rng.uniform(5, 60, size=12)
    starts_s, ends_s = np.sort(rng.uniform(0, durations_s[:, None], size=(12, 2)), axis=1).T
    found = best_fixed_span(starts_s, ends_s, durations_s, steps=steps, threshold=threshold)
    assert found == fixed_span_by_trying_all(starts_s, ends_s, durations_s, steps, threshold)


def test_fixed_span_finds_the_part_that_all_moments_share():
    durations_s = np.array([10.0, 20.0, 40.0])
    assert best_fixed_span(0.25 * durations_s, 0.6 * durations_s, durations_s) == (0.25, 0.6)


def test_of_equally_good_fixed_spans_the_first_wins():
    starts_s, ends_s, durations_s = np.array([0.0, 5.0]), np.array([5.0, 10.0]), np.array([10.0, 10.0])
    assert best_fixed_span(starts_s, ends_s, durations_s, steps=2, threshold=0.7) == (0.0, 0.5)


def test_fixed_span_refuses_what_has_no_parts():
    with pytest.raises(ValueError, match="durations"):
        best_fixed_span(np.zeros(0), np.zeros(0), np.zeros(0))
    with pytest.raises(ValueError, match="durations"):
        best_fixed_span(np.zeros(1), np.ones(1), np.zeros(1))
