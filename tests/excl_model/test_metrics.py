"""Metrics against one-moment-at-a-time references and cases with known answers."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from excl.models.excl import THRESHOLDS, TimePrior, best_fixed_span, confidence_intervals, query_ious, summary, temporal_iou

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
    recall = ["R1@0.3", "R1@0.5", "R1@0.7"]
    assert list(found) == ["num_queries", *recall, *(f"{name} strict" for name in recall), "mIoU"]
    assert found["num_queries"] == 5
    assert [type(value) for value in found.values()] == [int] + 7 * [float]
    assert (found["R1@0.3"], found["R1@0.5"], found["R1@0.7"]) == (80.0, 40.0, 20.0)  # 0.499 is not 0.5
    assert (found["R1@0.3 strict"], found["R1@0.5 strict"], found["R1@0.7 strict"]) == (60.0, 20.0, 20.0)
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


def test_of_five_predictions_one_has_to_hit():
    truth = np.array([[0.0, 10.0]] * 3)
    predicted = np.full((3, 6, 2), math.nan)
    predicted[0, :2] = [[20, 30], [0, 6]]
    predicted[1, 0], predicted[1, 4], predicted[1, 5] = [0, 4], [0, 5], [0, 10]  # the sixth does not count
    found = summary(predicted, truth)
    assert {name: found[name] for name in ("R1@0.3", "R5@0.3", "R5@0.5", "R5@0.5 strict", "R5@0.7")} == pytest.approx(
        {"R1@0.3": 100 / 3, "R5@0.3": 200 / 3, "R5@0.5": 200 / 3, "R5@0.5 strict": 100 / 3, "R5@0.7": 0}
    )
    assert found["mIoU"] == pytest.approx(40 / 3)
    assert "R5@0.3" not in summary(predicted[:, :4], truth)
    first = summary(predicted[:, 0], truth)
    assert first.items() <= found.items()


def test_of_several_annotated_moments_of_a_query_the_best_counts():
    truth = np.array([[0.0, 10.0], [50, 60], [0, 10], [20, 30]])
    predicted = np.array([[20.0, 30.0], [50.0, 58.0], [20.0, 30.0], [20.0, 30.0]])
    ids = np.array(["b", "a", "b", "b"])
    assert query_ious(predicted, truth, ids).tolist() == [[1.0], [0.8]]  # in the order of first appearance
    found = summary(predicted, truth, ids)
    assert (found["num_queries"], found["R1@0.7"], found["mIoU"]) == (2, 100.0, 90.0)
    assert summary(predicted, truth)["R1@0.7"] == 50.0
    missing = np.full((4, 5, 2), math.nan)
    assert summary(missing, truth, ids)["R5@0.3"] == 0.0
    with pytest.raises(ValueError, match="query b: its annotated moments come with different predictions"):
        summary(truth, truth, ids)
    with pytest.raises(ValueError, match="3 query ids for 4"):
        summary(predicted, truth, ids[:3])


@given(st.lists(st.tuples(st.integers(0, 3), moment), min_size=1, max_size=12), moment)
def test_alternatives_are_those_of_a_loop(rows, predicted):
    ids, truth = np.array([id_ for id_, _ in rows]), np.array([one for _, one in rows])
    shifted = np.array([np.array(predicted) + id_ for id_ in ids])  # queries have different predictions
    wanted = {}
    for id_, one, answer in zip(ids, truth, shifted, strict=True):
        wanted[id_] = max(wanted.get(id_, 0.0), iou_of_one(answer, one))
    np.testing.assert_allclose(query_ious(shifted, truth, ids)[:, 0], list(wanted.values()), atol=1e-12)


# confidence_intervals


def videos_of_queries(num_videos, queries, *, seed=0):
    """Predictions that all hit or all miss in a video, so that its queries tell no more than one."""
    rng = np.random.default_rng(seed)
    hit = np.repeat(rng.uniform(size=num_videos) < 0.5, queries)
    truth = np.tile([0.0, 10.0], (len(hit), 1))
    return np.where(hit[:, None], truth, truth + 10), truth, np.repeat(np.arange(num_videos), queries)


def test_intervals_are_those_of_videos_not_of_queries():
    predicted, truth, video_ids = videos_of_queries(100, 20)
    found = confidence_intervals(predicted, truth, video_ids)
    assert list(found) == [name for name in summary(predicted, truth) if name != "num_queries"]
    p = summary(predicted, truth)["R1@0.5"] / 100
    low, high = found["R1@0.5"]
    assert low < 100 * p < high
    assert (high - low) / 2 == pytest.approx(196 * math.sqrt(p * (1 - p) / 100), rel=0.15)  # the binomial's of 100 videos
    as_if_alone = confidence_intervals(predicted, truth, np.arange(len(truth)))["R1@0.5"]
    assert as_if_alone[1] - as_if_alone[0] < (high - low) / 3
    narrower = confidence_intervals(predicted, truth, video_ids, confidence=0.5)["R1@0.5"]
    assert low < narrower[0] < narrower[1] < high


def test_intervals_depend_on_the_seed_alone():
    data = videos_of_queries(30, 3)
    one, again, other = (confidence_intervals(*data, seed=seed, resamples=11) for seed in (1, 1, 2))
    assert one == again != other


def test_intervals_of_alternatives_and_of_one_video():
    predicted, truth, video_ids = videos_of_queries(40, 1)
    twice = [np.repeat(part, 2, axis=0) for part in (predicted, truth, video_ids)]
    same = confidence_intervals(*twice, query_ids=np.repeat(np.arange(40), 2))
    assert same == confidence_intervals(predicted, truth, video_ids)
    one = confidence_intervals(predicted, truth, np.zeros(40))
    assert all(low == high == pytest.approx(summary(predicted, truth)[name]) for name, (low, high) in one.items())
    with pytest.raises(ValueError, match="39 video ids for 40"):
        confidence_intervals(predicted, truth, video_ids[:39])


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


# TimePrior


def expected_best_iou(spans, truth):
    """The mean over moments (parts of the duration) of the IoU with the best of some spans."""
    return np.mean([max(iou_of_one(span, one) for span in spans) for one in truth])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6))
def test_each_span_of_the_prior_adds_most_to_the_expected_iou(seed, steps):
    rng = np.random.default_rng(seed)
    durations_s = rng.uniform(5, 60, size=20)
    truth = np.sort(rng.uniform(0, 1, size=(20, 2)), axis=1)
    prior = TimePrior.fit(*(durations_s * truth.T), durations_s, k=3, steps=steps)
    assert prior.spans.shape == (1, 3, 2)  # 20 moments are too few to tell videos apart
    grid = [(a / steps, b / steps) for a in range(steps) for b in range(a + 1, steps + 1)]
    taken = []
    for span in prior.spans[0]:
        best = max(expected_best_iou([*taken, other], truth) for other in grid)
        assert expected_best_iou([*taken, tuple(span)], truth) == pytest.approx(best)
        taken.append(tuple(span))


def test_the_prior_tells_short_videos_from_long_ones():
    short, long = np.linspace(9, 11, 100), np.linspace(90, 110, 100)
    durations_s = np.concatenate([short, long])
    starts_s, ends_s = np.concatenate([0 * short, 0.5 * long]), np.concatenate([0.5 * short, 0.75 * long])
    prior = TimePrior.fit(starts_s, ends_s, durations_s, k=2, max_bins=2)
    found = prior.predict(np.array([1.0, 10.0, 100.0, 1000.0, math.nan]))
    assert found.shape == (5, 2, 2)
    np.testing.assert_allclose(found[:4, 0], [[0, 0.5], [0, 5], [50, 75], [500, 750]])
    assert np.isnan(found[4]).all()
    assert summary(prior.predict(durations_s), np.stack([starts_s, ends_s], axis=1))["mIoU"] == pytest.approx(100)
    alike = TimePrior.fit(starts_s, ends_s, np.full(200, 120.0), k=2)
    assert alike.spans.shape == (1, 2, 2)


def test_the_prior_refuses_what_has_no_parts():
    with pytest.raises(ValueError, match="durations"):
        TimePrior.fit(np.zeros(0), np.zeros(0), np.zeros(0))
    with pytest.raises(ValueError, match=r"annotated moment 0 goes from 2\.0 s to 1\.0 s"):
        TimePrior.fit(np.array([2.0]), np.array([1.0]), np.array([4.0]))
