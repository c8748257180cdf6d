"""Decoding against a literal greedy search over all spans, at all lengths, and for hours of video in bounded memory."""

import math
import tracemalloc
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from excl.models.excl import MAX_IOU, RowTimes, answers, best_span, decode, temporal_iou, top_spans


def iou_of(a, b):
    shared = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = a[1] - a[0] + b[1] - b[0] - shared
    return shared / union if union > 0 else 0.0


def greedy_over_all(start, end, times, *, k, max_iou, apart_from=()):
    """The rule of top_spans, literally."""
    spans = [(s, e) for e in range(len(end)) for s in range(e + 1)]  # by end, then by start
    moments, chosen = list(apart_from), []
    for s, e in sorted(spans, key=lambda span: -(start[span[0]] + end[span[1]])):  # stable: equal ones stay in order
        moment = (times.start_s[s], times.end_s[e])
        if len(chosen) < k and all(iou_of(moment, other) <= max_iou for other in moments):
            moments.append(moment)
            chosen.append((s, e))
    return chosen


def rows(edges_s):
    edges_s = np.asarray(edges_s, dtype=np.float64)
    return RowTimes(edges_s[:-1], edges_s[1:])


eighths = st.integers(0, 160).map(lambda n: n / 8)
few_values = st.integers(-1, 1).map(float)  # many ties
many_values = st.integers(-50_000, 50_000).map(lambda n: n / 1024)  # sums are exact: ties are ties
scores = st.sampled_from([few_values, many_values]).flatmap(
    lambda value: st.lists(st.tuples(value, value, eighths), min_size=1, max_size=12)
)


@settings(deadline=None, max_examples=200)
@given(
    scores,
    st.integers(1, 6),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    st.lists(st.tuples(eighths, eighths).map(sorted), max_size=2),
)
def test_top_spans_are_those_of_a_search_of_all(scores, k, max_iou, apart_from):
    start, end, edges_s = np.array(scores).T
    times = rows(np.sort(np.append(edges_s, 20.0)))  # rows that tile; some may have no length
    found = top_spans(start, end, times, k=k, max_iou=max_iou, apart_from=apart_from)
    with mock.patch.object(answers, "_BLOCK_ROWS", 2):  # many blocks, so that the best and its equals are in several
        assert top_spans(start, end, times, k=k, max_iou=max_iou, apart_from=apart_from) == found
    assert found == greedy_over_all(start, end, times, k=k, max_iou=max_iou, apart_from=apart_from)
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("ties", [True, False])
def test_top_spans_of_more_rows_than_a_block(ties):
    rng = np.random.default_rng(0)
    start, end = rng.integers(-2, 3, size=(2, 150)).astype(float) if ties else rng.normal(size=(2, 150))
    times = rows(np.sort(rng.uniform(0, 100, size=151)))
    found = top_spans(start, end, times, k=8, max_iou=0.3)
    assert found == greedy_over_all(start, end, times, k=8, max_iou=0.3)
    assert len(found) == 8


def test_no_two_moments_overlap_more_than_allowed_and_a_video_may_have_too_few():
    times = rows([0, 1, 2, 3])
    scores = np.zeros(3)
    assert top_spans(scores, scores, times, k=5, max_iou=0.0) == [(0, 0), (1, 1), (2, 2)]
    assert top_spans(scores, scores, times, k=9, max_iou=1.0) == [(0, 0), (0, 1), (1, 1), (0, 2), (1, 2), (2, 2)]
    assert top_spans(scores, scores, times, k=2, max_iou=0.5, apart_from=[(0, 3), (0, 1)]) == [(1, 1), (2, 2)]
    assert top_spans(scores[:1], scores[:1], rows([0, 1]), k=1, apart_from=[(0, 1)]) == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"k": 0}, "0 spans"), ({"max_iou": 1.1}, "IoU at most 1.1"), ({"start_scores": np.array([0, math.nan])}, "finite")],
)
def test_top_spans_refuses(wrong, message):
    given_arguments = {"start_scores": np.zeros(2), "end_scores": np.zeros(2), "row_times": rows([0, 1, 2]), "k": 1}
    with pytest.raises(ValueError, match=message):
        top_spans(**{**given_arguments, **wrong})


def test_the_best_five_moments_of_an_hour_in_bounded_memory():
    """6,000 rows have 18 million spans; a matrix of them would be 288 MB. Flat scores spare no block the search."""
    num_rows = 6000
    rng = np.random.default_rng(0)
    start, end = rng.uniform(size=(2, num_rows))
    times = rows(np.arange(num_rows + 1) * 0.6)
    tracemalloc.start()
    found = top_spans(start, end, times, k=5)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 32 * 2**20
    moments = np.array([(times.start_s[s], times.end_s[e]) for s, e in found])
    for index, moment in enumerate(moments):
        assert (temporal_iou(moments[:index], np.tile(moment, (index, 1))) <= MAX_IOU).all()
    logits = (torch.from_numpy(part)[None] for part in (start, end))
    best_start, best_end, _ = best_span(*logits)
    assert found[0] == (best_start.item(), best_end.item())


# decode


def batch_of_logits(lengths, *, scale=2.0, seed=0):
    logits = scale * torch.randn(2, len(lengths), max(lengths), generator=torch.Generator().manual_seed(seed))
    for item, length in enumerate(lengths):
        logits[:, item, length:] = -math.inf
    return logits, [rows(np.cumsum(np.random.default_rng(length).uniform(0.5, 2, size=length + 1))) for length in lengths]


@pytest.mark.parametrize("k", [1, 2, 5])
def test_classification_answers_with_the_best_spans_in_seconds(k):
    lengths = [9, 1, 30]
    (start, end), row_times = batch_of_logits(lengths)
    found = decode(start, end, row_times, loss="clf", k=k, max_iou=0.4)
    assert found.shape == (3, k, 3)
    for item, (length, times) in enumerate(zip(lengths, row_times, strict=True)):
        s, e = (part[item, :length].double().numpy() for part in (start, end))
        p_start, p_end = (np.exp(part) / np.exp(part).sum() for part in (s, e))
        wanted = [
            (times.start_s[i], times.end_s[j], p_start[i] * p_end[j])
            for i, j in greedy_over_all(s, e, times, k=k, max_iou=0.4)
        ]
        np.testing.assert_allclose(found[item, : len(wanted)], wanted, rtol=1e-9)
        assert np.isnan(found[item, len(wanted) :]).all()
    assert np.isfinite(found[1]).all(axis=1).sum() == 1  # one row, one span


@pytest.mark.parametrize("k", [1, 5])
def test_regression_answers_with_the_expected_moment_and_then_with_spans_apart_from_it(k):
    lengths = [9, 1, 30]
    (start, end), row_times = batch_of_logits(lengths, scale=0.5)
    found = decode(start, end, row_times, loss="reg", k=k, max_iou=0.4)
    for item, (length, times) in enumerate(zip(lengths, row_times, strict=True)):
        s, e = (part[item, :length].double().numpy() for part in (start, end))
        p = np.array([[np.exp(s[i]) / np.exp(s).sum() * np.exp(e[j]) / np.exp(e[i:]).sum() * (i <= j)
                       for j in range(length)] for i in range(length)])  # fmt: skip
        assert p.sum() == pytest.approx(1)
        expected = ((p.sum(1) * times.start_s).sum(), (p.sum(0) * times.end_s).sum())
        np.testing.assert_allclose(found[item, 0, :2], expected, rtol=1e-9)
        nearest = tuple(np.abs(part - time).argmin() for part, time in zip(times, expected, strict=True))
        assert nearest[0] <= nearest[1]
        assert found[item, 0, 2] == pytest.approx(p[nearest])
        moments = [tuple(found[item, 0, :2])]
        for start_s, end_s, found_p in found[item, 1:][~np.isnan(found[item, 1:, 0])]:
            free = [
                p[i, j]
                for i in range(length)
                for j in range(i, length)
                if all(iou_of((times.start_s[i], times.end_s[j]), moment) <= 0.4 for moment in moments)
            ]
            assert found_p == pytest.approx(max(free))
            moments.append((start_s, end_s))
        assert len(moments) == (1 if length == 1 else k)
        assert all(iou_of(a, b) <= 0.4 for n, a in enumerate(moments) for b in moments[:n])


@pytest.mark.parametrize("loss", ["clf", "reg"])
def test_what_stands_beside_in_a_batch_changes_no_answer(loss):
    lengths = [9, 1, 30]
    (start, end), row_times = batch_of_logits(lengths)
    together = decode(start, end, row_times, loss=loss, k=3)
    for item, length in enumerate(lengths):
        alone = decode(start[item : item + 1, :length], end[item : item + 1, :length], [row_times[item]], loss=loss, k=3)
        np.testing.assert_allclose(alone[0], together[item], rtol=1e-12)


@pytest.mark.parametrize("loss", ["clf", "reg"])
def test_logits_that_are_not_finite_are_refused(loss):
    (start, end), row_times = batch_of_logits([3, 3])
    start[1] = math.nan
    with pytest.raises(ValueError, match="query 1 of the batch"):
        decode(start, end, row_times, loss=loss)
