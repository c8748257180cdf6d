"""Every equation of Ghosh et al. (2019), (1) to (17), against a literal version: one video, one row, one pair at a time.

Equations 9 to 17 are checked through the whole model, with LSTMs written out gate by gate. Then all variants have to learn.
"""

import dataclasses
import functools
import math

import numpy as np
import pytest
import torch

from excl.models.excl import (
    VARIANTS,
    ExCL,
    ExCLConfig,
    RowTimes,
    Targets,
    best_span,
    decode,
    expected_times,
    span_cross_entropy,
    span_distance,
    span_loss,
    summary,
)

FEATURE_DIM, WORD_DIM, NUM_WORDS = 6, 5, 20
SIZES = {"text_hidden": 4, "video_hidden": 3, "predictor_hidden": 2, "mlp_hidden": 7}
LENGTHS = (37, 1, 2, 20)


pytestmark = pytest.mark.usefixtures("one_thread")


def random_logits(scale, lengths=LENGTHS, *, seed=0):
    """Start and end logits float32 [B, T] up to +-scale, -inf in the padding."""
    generator = torch.Generator().manual_seed(seed)
    start, end = scale * (2 * torch.rand(2, len(lengths), max(lengths), generator=generator) - 1)
    for item, length in enumerate(lengths):
        start[item, length:] = end[item, length:] = -math.inf
    return start, end


def random_times(lengths=LENGTHS, *, seed=0):
    """Starts and ends of the rows, float32 [B, T] in 0..1: rows of unequal length that tile, 9 in the padding."""
    rng = np.random.default_rng(seed)
    times = torch.full((2, len(lengths), max(lengths)), 9.0)
    for item, length in enumerate(lengths):
        inner = np.sort(rng.uniform(size=length - 1))
        times[:, item, :length] = torch.from_numpy(np.stack([np.r_[0.0, inner], np.r_[inner, 1.0]]))
    return times


# (1) to (4): classification.


@pytest.mark.parametrize("scale", [1, 30, 100])
def test_equation_1_is_the_loss_of_classification(scale):
    start, end = random_logits(scale)
    start_rows, end_rows = [30, 0, 1, 0], [36, 0, 1, 19]
    total = 0.0
    for item, length in enumerate(LENGTHS):
        for logits, target in ((start, start_rows[item]), (end, end_rows[item])):
            exponentials = [math.exp(value) for value in logits[item, :length].tolist()]
            total += math.log(exponentials[target] / sum(exponentials))
    loss = span_cross_entropy(start.requires_grad_(), end, torch.tensor(start_rows), torch.tensor(end_rows))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(-total / len(LENGTHS), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, start)
    assert gradient.isfinite().all()


def test_loss_of_uniform_logits_is_twice_the_log_of_the_rows():
    rows = torch.tensor([3, 1])
    loss = span_cross_entropy(torch.zeros(2, 8), torch.zeros(2, 8, dtype=torch.bfloat16), rows, rows)
    assert loss.item() == pytest.approx(2 * math.log(8))


@pytest.mark.parametrize("scale", [1, 30, 100])
def test_equations_2_to_4_are_the_inference_of_classification(scale):
    logits = random_logits(scale)
    start_rows, end_rows, found_p = best_span(*logits)
    for item, length in enumerate(LENGTHS):
        start, end = ([math.exp(value) for value in part[item, :length].tolist()] for part in logits)
        joint = {(s, e): start[s] / sum(start) * (end[e] / sum(end)) for s in range(length) for e in range(s, length)}
        best = max(joint, key=joint.__getitem__)
        assert (start_rows[item], end_rows[item]) == best
        assert found_p[item].item() == pytest.approx(joint[best], rel=1e-5)


# (5) to (8): regression.


def literal_expectations(start, end, row_starts, row_ends):
    """E[start] and E[end] of one video in float64 by the double sum; differentiable."""
    p_start = start.exp() / start.exp().sum()
    expected_end = torch.zeros((), dtype=torch.float64)
    for s in range(len(start)):
        allowed = end[s:] - end[s:].max()  # the same for all rows, so the softmax stays
        p_end = allowed.exp() / allowed.exp().sum()
        expected_end = expected_end + p_start[s] * (p_end * row_ends[s:]).sum()
    return (p_start * row_starts).sum(), expected_end


def literal_batch(start, end, times):
    pairs = [
        literal_expectations(*(part[item, :length] for part in (start, end, *times))) for item, length in enumerate(LENGTHS)
    ]
    return [torch.stack(expected) for expected in zip(*pairs, strict=True)]


def with_gradients(function, start, end, weights):
    """The two results of a function of logits, and the logits' gradients of their weighted sum."""
    start, end = start.clone().requires_grad_(), end.clone().requires_grad_()
    results = function(start, end)
    total = sum((weight * result).sum() for weight, result in zip(weights, results, strict=True))
    return results, torch.autograd.grad(total, (start, end))


@pytest.mark.parametrize("scale", [0, 1, 30, 100])
@pytest.mark.parametrize("seed", range(5))
def test_equations_5_to_8_are_the_expected_times(scale, seed):
    start, end = random_logits(scale, seed=seed)
    times = random_times(seed=seed)
    weights = torch.randn(2, len(LENGTHS), generator=torch.Generator().manual_seed(seed))
    wanted, wanted_gradients = with_gradients(
        lambda s, e: literal_batch(s, e, times.double()), start.double(), end.double(), weights.double()
    )
    for dtype, tolerance in ((torch.float32, 2e-5), (torch.float64, 1e-12)):
        found, gradients = with_gradients(
            functools.partial(expected_times, row_starts=times[0].to(dtype), row_ends=times[1].to(dtype)),
            *(values.to(dtype) for values in (start, end, weights)),
        )
        for one, other in zip((*found, *gradients), (*wanted, *wanted_gradients), strict=True):
            assert one.dtype == dtype
            torch.testing.assert_close(one.double(), other, rtol=0, atol=tolerance)
        assert (found[0] <= found[1] + tolerance).all()
        assert (gradients[0][1:, 20:] == 0).all()
        assert (gradients[1][1:, 20:] == 0).all()


def test_rows_may_be_left_out_anywhere():
    """Also before the first row that counts, where logcumsumexp of -inf would have gradients of NaN."""
    torch.manual_seed(0)
    logits, times = 5 * torch.randn(2, 1, 9), torch.arange(9.0)[None] / 9
    counts = torch.tensor([0, 0, 1, 1, 0, 1, 1, 0, 1], dtype=torch.bool)
    logits[:, :, ~counts] = -math.inf
    with torch.autograd.set_detect_anomaly(True):
        found, gradients = with_gradients(lambda s, e: expected_times(s, e, times, times + 1 / 9), *logits, torch.ones(2, 1))
    few = (logits[:, :, counts], times[:, counts])
    wanted, wanted_gradients = with_gradients(
        lambda s, e: expected_times(s, e, few[1], few[1] + 1 / 9), *few[0], torch.ones(2, 1)
    )
    torch.testing.assert_close(torch.stack(found), torch.stack(wanted))
    torch.testing.assert_close(torch.cat(gradients)[:, counts], torch.cat(wanted_gradients))
    assert (torch.cat(gradients)[:, ~counts] == 0).all()


def test_the_end_is_conditioned_on_the_start():
    """Worked by hand: rows [0, 1], [1, 2]; starts even, ends 1 : 3. E[end] = 1/2 (1/4 1 + 3/4 2) + 1/2 2, not 7/4."""
    start, end = torch.zeros(1, 2), torch.tensor([[0.0, math.log(3)]])
    expected = expected_times(start, end, torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 2.0]]))
    assert [value.item() for value in expected] == pytest.approx([0.5, 1.875])


def test_extreme_logits_leave_expected_times_finite():
    """Every end at or after the likely start is e^-200 as likely as one before it; the two that are left are even."""
    start, end = torch.tensor([[-100.0, -100.0, 100.0, -100.0]]), torch.tensor([[100.0, 100.0, -100.0, -100.0]])
    row_starts = torch.tensor([[0.0, 0.25, 0.5, 0.75]])
    (starts, ends), gradients = with_gradients(
        lambda s, e: expected_times(s, e, row_starts, row_starts + 0.25), start, end, torch.ones(2, 1)
    )
    assert (starts.item(), ends.item()) == pytest.approx((0.5, 0.875), abs=1e-5)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert gradients[1][0].tolist() == pytest.approx([0, 0, -1 / 16, 1 / 16], abs=1e-5)  # 1/4 s times sigmoid'(0)


@pytest.mark.parametrize(("distance", "power"), [("l1", 1), ("mse", 2)])
def test_the_loss_of_regression(distance, power):
    start, end = random_logits(3)
    times, moments = random_times(), torch.tensor([[0.1, 0.0, 0.3, 0.9], [0.5, 1.0, 0.35, 0.95]])
    rows = torch.zeros(4, dtype=torch.int64)
    targets = Targets(rows, rows, *moments, *times)
    wanted = 0.0
    for expected, annotated in zip(literal_batch(start.double(), end.double(), times.double()), moments, strict=True):
        differences = [abs(a - b) ** power for a, b in zip(expected.tolist(), annotated.tolist(), strict=True)]
        wanted += sum(differences) / 4
    loss = span_distance(start, end, targets, distance=distance)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(wanted, rel=1e-5)
    for variant, same in (("reg-1-a", True), ("clf-1-a", False)):
        config = ExCLConfig(variant=variant, reg_distance=distance)
        assert (span_loss(config, start, end, targets) == loss) == same
    half = start.bfloat16(), end.bfloat16()
    exact = span_distance(*(logits.float() for logits in half), targets, distance=distance)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert span_distance(*half, targets, distance=distance) == exact


def test_expected_times_are_the_answer_of_regression():
    start, end = random_logits(2)
    row_times = [RowTimes(*(30 * part[:length].double().numpy() for part in rows))
                 for rows, length in zip(random_times().unbind(1), LENGTHS, strict=True)]  # fmt: skip
    found = decode(start, end, row_times, loss="reg")
    for item, (length, times) in enumerate(zip(LENGTHS, row_times, strict=True)):
        logits = (part[item, :length].double() for part in (start, end))
        wanted = literal_expectations(*logits, *map(torch.from_numpy, times))
        np.testing.assert_allclose(found[item, 0, :2], torch.stack(wanted), rtol=1e-9)


# (9) to (17): the networks.


def lstm_by_hand(lstm, inputs, suffix):
    """The hidden state after each step of one direction; gates in torch's order i, f, g, o."""
    weights = {name: getattr(lstm, f"{name}_l0{suffix}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    hidden = cell = torch.zeros(lstm.hidden_size)
    states = []
    for step in inputs:
        gates = weights["weight_ih"] @ step + weights["bias_ih"] + weights["weight_hh"] @ hidden + weights["bias_hh"]
        i, f, g, o = gates.split(lstm.hidden_size)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        hidden = o.sigmoid() * cell.tanh()
        states.append(hidden)
    return states


def bilstm_by_hand(lstm, inputs):
    """The outputs at every step, and the final states of both directions, forward first."""
    forward = lstm_by_hand(lstm, inputs, "")
    backward = lstm_by_hand(lstm, list(inputs)[::-1], "_reverse")[::-1]
    return [torch.cat(pair) for pair in zip(forward, backward, strict=True)], torch.cat([forward[-1], backward[0]])


def mlp_by_hand(mlp, *parts):
    return mlp[2].weight[0] @ torch.tanh(mlp[0].weight @ torch.cat(parts) + mlp[0].bias) + mlp[2].bias[0]


def linear_by_hand(linear, *parts):
    return linear.weight[0] @ torch.cat(parts) + linear.bias[0]


def mlp_scores(predictor, video, query):  # (9), (10)
    return [(mlp_by_hand(predictor.start_mlp, v, query), mlp_by_hand(predictor.end_mlp, v, query)) for v in video]


def tied_scores(predictor, video, query):
    tied, _ = bilstm_by_hand(predictor.lstm, [torch.cat([v, query]) for v in video])  # (11)
    return [
        (mlp_by_hand(predictor.start_mlp, p, v, query), mlp_by_hand(predictor.end_mlp, p, v, query))  # (12), (13)
        for p, v in zip(tied, video, strict=True)
    ]


def conditioned_scores(predictor, video, query):
    first, _ = bilstm_by_hand(predictor.start_lstm, [torch.cat([v, query]) for v in video])  # (14)
    second, _ = bilstm_by_hand(predictor.end_lstm, first)  # (15)
    return [
        (linear_by_hand(predictor.start_linear, p0, v, query), linear_by_hand(predictor.end_linear, p1, v, query))
        for p0, p1, v in zip(first, second, video, strict=True)  # (16), (17)
    ]


SCORES = {"a": mlp_scores, "b": tied_scores, "c": conditioned_scores}


def logits_by_hand(model, features, tokens, *, number, letter):
    words = [model.text_encoder.embedding.weight[token] for token in tokens]
    _, query = bilstm_by_hand(model.text_encoder.lstm, words)
    video = [(row - model.feature_mean) / model.feature_std for row in features]
    if number == "2":
        video, _ = bilstm_by_hand(model.video_encoder.lstm, video)
    scores = SCORES[letter](model.predictor, video, query)
    return [torch.stack(part) for part in zip(*scores, strict=True)]


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_equations_9_to_17_are_the_scores(name):
    torch.manual_seed(0)
    model = ExCL(ExCLConfig(variant=name, **SIZES), vectors=torch.randn(NUM_WORDS, WORD_DIM), feature_dim=FEATURE_DIM)
    model.set_normalisation(torch.randn(FEATURE_DIM), torch.rand(FEATURE_DIM) + 0.5)
    num_rows, num_tokens = torch.tensor([5, 1, 3]), torch.tensor([2, 4, 1])
    features, token_ids = torch.randn(3, 5, FEATURE_DIM), torch.randint(1, NUM_WORDS, (3, 4))
    found = model.eval()(features, num_rows, token_ids, num_tokens)
    _, number, letter = name.split("-")
    for item, (rows, tokens) in enumerate(zip(num_rows, num_tokens, strict=True)):
        wanted = logits_by_hand(model, features[item, :rows], token_ids[item, :tokens], number=number, letter=letter)
        for logits, by_hand in zip(found, wanted, strict=True):
            torch.testing.assert_close(logits[item, :rows], by_hand, rtol=0, atol=1e-6)


# Learning.


def eight_queries():
    """A batch of 8 queries with random features and words, its targets, the rows' times, and the moments in seconds."""
    generator = torch.Generator().manual_seed(0)
    num_rows, num_tokens = torch.tensor([12, 9, 7, 12, 5, 10, 8, 11]), torch.tensor([4, 6, 3, 2, 5, 6, 1, 3])
    batch = (
        torch.randn(8, 12, FEATURE_DIM, generator=generator),
        num_rows,
        torch.randint(1, NUM_WORDS, (8, 6), generator=generator),
        num_tokens,
    )
    start_rows, end_rows = torch.tensor([0, 3, 6, 2, 1, 9, 0, 4]), torch.tensor([11, 3, 6, 8, 4, 9, 2, 7])
    row_times = [RowTimes(np.arange(n) * 2.0, np.arange(1, n + 1) * 2.0) for n in num_rows.tolist()]
    starts = torch.arange(12) / num_rows[:, None]  # [B, T], shares of the duration
    width = 1 / num_rows[:, None]
    at = torch.arange(8)
    targets = Targets(start_rows, end_rows, starts[at, start_rows], (starts + width)[at, end_rows], starts, starts + width)
    return batch, targets, row_times, torch.stack([2.0 * start_rows, 2.0 * end_rows + 2], dim=1).double().numpy()


OTHERS = [
    ExCLConfig(variant="clf-2-b", text_encoder="bag", video_encoder="conv"),
    ExCLConfig(variant="clf-2-b", text_encoder="attention", video_encoder="attention", predictor="attention"),
    ExCLConfig(variant="reg-2-b", reg_distance="mse"),
]


@pytest.mark.parametrize("config", [*map(ExCLConfig, VARIANTS), *OTHERS], ids=lambda config: str(config.parts))
def test_every_variant_overfits_eight_queries(config):
    torch.manual_seed(0)
    sizes = {"text_hidden": 16, "video_hidden": 16, "predictor_hidden": 16, "mlp_hidden": 32}
    model = ExCL(
        dataclasses.replace(config, **sizes, dropout=0.0), vectors=torch.randn(NUM_WORDS, 16), feature_dim=FEATURE_DIM
    )
    batch, targets, row_times, truth = eight_queries()
    optimiser = torch.optim.Adam([weight for weight in model.parameters() if weight.requires_grad], lr=0.01)
    recall, step = 0.0, 0
    while recall < 100 and step < 200:
        optimiser.zero_grad()
        logits = model(*batch)
        span_loss(model.config, *logits, targets).backward()
        optimiser.step()
        step += 1
        if step % 10 == 0:
            answers = decode(*(side.detach() for side in model(*batch)), row_times, loss=config.parts.loss)
            recall = summary(answers[:, :, :2], truth)["R1@0.7"]
    assert recall == 100
