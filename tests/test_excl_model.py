"""The ExCL model against the paper's equations written out one step at a time, and what training relies on."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from excl.models.excl import ExCL, ExCLConfig, best_span, span_cross_entropy

FEATURE_DIM, WORD_DIM, NUM_WORDS = 6, 5, 20
SMALL = ExCLConfig(text_hidden=4, video_hidden=3, predictor_hidden=2, mlp_hidden=7, dropout=0.5)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small_model(config=SMALL, *, seed=0):
    torch.manual_seed(seed)
    model = ExCL(config, vectors=torch.randn(NUM_WORDS, WORD_DIM), feature_dim=FEATURE_DIM)
    model.set_normalisation(torch.randn(FEATURE_DIM), torch.rand(FEATURE_DIM) + 0.5)
    return model.eval()


def random_batch(num_rows, num_tokens, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(len(num_rows), max(num_rows), FEATURE_DIM, generator=generator)
    token_ids = torch.randint(1, NUM_WORDS, (len(num_rows), max(num_tokens)), generator=generator)
    for item, length in enumerate(num_tokens):
        token_ids[item, length:] = 0
    return features, torch.tensor(num_rows), token_ids, torch.tensor(num_tokens)


# The paper's equations, one video, one step at a time.


def lstm_by_hand(lstm, inputs, suffix):
    """Return the hidden state after each step of one direction; gates in torch's order i, f, g, o."""
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
    forward = lstm_by_hand(lstm, inputs, "")
    backward = lstm_by_hand(lstm, list(inputs)[::-1], "_reverse")[::-1]
    return [torch.cat(pair) for pair in zip(forward, backward, strict=True)], torch.cat([forward[-1], backward[0]])


def mlp_by_hand(mlp, vector):
    return mlp[2].weight[0] @ torch.tanh(mlp[0].weight @ vector + mlp[0].bias) + mlp[2].bias[0]


def logits_by_hand(model, features, tokens):
    words = [model.text_encoder.embedding.weight[token] for token in tokens]
    _, query = bilstm_by_hand(model.text_encoder.lstm, words)
    rows = [(row - model.feature_mean) / model.feature_std for row in features]
    video, _ = bilstm_by_hand(model.video_encoder.lstm, rows)
    predictor = model.predictor
    tied, _ = bilstm_by_hand(predictor.lstm, [torch.cat([v, query]) for v in video])
    joint = [torch.cat([p, v, query]) for p, v in zip(tied, video, strict=True)]
    start = torch.stack([mlp_by_hand(predictor.start_mlp, vector) for vector in joint])
    end = torch.stack([mlp_by_hand(predictor.end_mlp, vector) for vector in joint])
    return start, end


@torch.no_grad()
def test_logits_follow_the_equations():
    model, (features, num_rows, token_ids, num_tokens) = small_model(), random_batch([5, 1, 3], [2, 4, 1])
    start, end = model(features, num_rows, token_ids, num_tokens)
    for item, (rows, tokens) in enumerate(zip(num_rows, num_tokens, strict=True)):
        wanted_start, wanted_end = logits_by_hand(model, features[item, :rows], token_ids[item, :tokens])
        torch.testing.assert_close(start[item, :rows], wanted_start, rtol=0, atol=1e-6)
        torch.testing.assert_close(end[item, :rows], wanted_end, rtol=0, atol=1e-6)


def test_default_sizes_are_those_of_the_paper():
    model = ExCL(ExCLConfig(), vectors=torch.zeros(10, 300), feature_dim=1024)
    lstms = (model.text_encoder.lstm, model.video_encoder.lstm, model.predictor.lstm)
    assert [(lstm.input_size, lstm.hidden_size) for lstm in lstms] == [(300, 256), (1024, 256), (1024, 128)]
    assert all(lstm.bidirectional and lstm.num_layers == 1 for lstm in lstms)
    for mlp in (model.predictor.start_mlp, model.predictor.end_mlp):
        assert (mlp[0].in_features, mlp[0].out_features, mlp[2].out_features) == (256 + 512 + 512, 256, 1)


@pytest.mark.parametrize(
    "wrong", [{"dropout": 1.0}, {"dropout": math.nan}, {"text_hidden": 0}, {"variant": "clf-9"}, {"nonsense": 1}]
)
def test_config_refuses(wrong):
    with pytest.raises(ValidationError):
        ExCLConfig(**wrong)


# Padding.

lengths = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 6)), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(lengths=lengths, extra_rows=st.integers(0, 3), extra_tokens=st.integers(0, 3), seed=st.integers(0, 99))
@torch.no_grad()
def test_a_padded_batch_gives_what_its_items_give(lengths, extra_rows, extra_tokens, seed):
    model = small_model()
    features, num_rows, token_ids, num_tokens = random_batch(*zip(*lengths, strict=True), seed=seed)
    features = nn.functional.pad(features, (0, 0, 0, extra_rows))
    token_ids = nn.functional.pad(token_ids, (0, extra_tokens))
    batched = model(features, num_rows, token_ids, num_tokens)
    for item, (rows, tokens) in enumerate(lengths):
        one = slice(item, item + 1)
        single = model(features[one, :rows], num_rows[one], token_ids[one, :tokens], num_tokens[one])
        for together, alone in zip(batched, single, strict=True):
            assert together.dtype == torch.float32
            torch.testing.assert_close(together[item, :rows], alone[0], rtol=0, atol=1e-6)
            assert (together[item, rows:] == -math.inf).all()


def test_padding_leaks_neither_values_nor_gradients():
    model = small_model().train()
    features, num_rows, token_ids, num_tokens = random_batch([5, 2], [3, 1])
    torch.manual_seed(1)
    clean = model(features, num_rows, token_ids, num_tokens)
    features[1, 2:] = math.nan
    token_ids[1, 1:] = 7
    features.requires_grad_()
    torch.manual_seed(1)  # the same dropout
    start, end = model(features, num_rows, token_ids, num_tokens)
    assert torch.equal(start, clean[0])
    assert torch.equal(end, clean[1])
    span_cross_entropy(start, end, torch.tensor([0, 0]), torch.tensor([4, 1])).backward()
    assert (features.grad[1, 2:] == 0).all()
    assert (features.grad[1, :2] != 0).any()
    gradients = [weight.grad for weight in model.parameters()]
    assert all(gradient.isfinite().all() for gradient in gradients if gradient is not None)


def test_what_cannot_be_located_is_refused_by_name():
    model = small_model()
    features, num_rows, token_ids, num_tokens = random_batch([5, 2], [3, 1])
    with pytest.raises(ValueError, match="query 1 of the batch has 0 tokens"):
        model(features, num_rows, token_ids, torch.tensor([3, 0]))
    with pytest.raises(ValueError, match="video 0 of the batch has 0 feature rows"):
        model(features[:, :0], torch.tensor([0, 0]), token_ids, num_tokens)
    with pytest.raises(ValueError, match="video 0 of the batch has 6 feature rows; the batch holds 5"):
        model(features, torch.tensor([6, 2]), token_ids, num_tokens)
    with pytest.raises(ValueError, match="feature rows have 4 values; this model takes 6"):
        model(features[:, :, :4], num_rows, token_ids, num_tokens)
    with pytest.raises(ValueError, match="word vectors have shape"):
        ExCL(SMALL, vectors=torch.zeros(0, 5), feature_dim=FEATURE_DIM)


@torch.no_grad()
def test_logits_are_float32_whatever_the_features_and_the_precision():
    model, (features, *rest) = small_model(), random_batch([5, 2], [3, 1])
    exact, _ = model(features, *rest)
    half, _ = model(features.half(), *rest)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed, _ = model(features, *rest)
    assert exact.dtype == half.dtype == mixed.dtype == torch.float32
    torch.testing.assert_close(half, exact, rtol=0, atol=1e-3)
    torch.testing.assert_close(mixed, exact, rtol=0, atol=3e-2)


# Normalisation, word vectors, dropout, checkpoints.


@torch.no_grad()
def test_normalisation_is_applied_and_travels_in_the_state_dict():
    model, (features, *rest) = small_model(), random_batch([5, 2], [3, 1])
    normalised = model(features, *rest)
    other = small_model(seed=5)
    other.load_state_dict(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(other(features, *rest), normalised, strict=True))
    scaled = (features - model.feature_mean) / model.feature_std
    other.set_normalisation(torch.zeros(FEATURE_DIM), torch.ones(FEATURE_DIM))
    assert all(torch.equal(a, b) for a, b in zip(other(scaled, *rest), normalised, strict=True))


def test_normalisation_leaves_constant_columns_undivided_and_refuses_nonsense():
    model, zeros = small_model(), torch.zeros(FEATURE_DIM)
    std = torch.tensor([0.0, 1e-9, 2.0, 3.0, 4.0, 5.0], dtype=torch.float64)
    model.set_normalisation(zeros, std)
    assert model.feature_std.tolist() == [1, 1, 2, 3, 4, 5]
    for wrong, message in ((zeros - 1, "negative"), (zeros + math.nan, "not finite"), (torch.ones(3), "shape")):
        with pytest.raises(ValueError, match=message):
            model.set_normalisation(zeros, wrong)


@pytest.mark.parametrize("train_vectors", [False, True])
def test_word_vectors_train_only_when_asked_and_padding_stays_zero(train_vectors):
    vectors = torch.randn(NUM_WORDS, WORD_DIM)
    given_vectors = vectors.clone()
    config = ExCLConfig(text_hidden=4, video_hidden=3, predictor_hidden=2, mlp_hidden=7, train_vectors=train_vectors)
    model = ExCL(config, vectors=vectors, feature_dim=FEATURE_DIM)
    optimiser = torch.optim.Adam([weight for weight in model.parameters() if weight.requires_grad], lr=0.1)
    batch = random_batch([5, 2], [3, 1])
    batch[2][0, 1] = 0  # even where it stands within a query
    start, end = model(*batch)
    span_cross_entropy(start, end, torch.tensor([0, 0]), torch.tensor([4, 1])).backward()
    optimiser.step()
    assert torch.equal(vectors, given_vectors)
    weight = model.text_encoder.embedding.weight.detach()
    assert (weight[0] == 0).all()
    assert torch.equal(weight[1:], vectors[1:]) is not train_vectors


def test_dropout_acts_in_training_only():
    model, batch = small_model(), random_batch([5, 2], [3, 1])
    assert torch.equal(model(*batch)[0], model(*batch)[0])
    model.train()
    assert not torch.equal(model(*batch)[0], model(*batch)[0])
    without = small_model(ExCLConfig(text_hidden=4, video_hidden=3, predictor_hidden=2, mlp_hidden=7, dropout=0.0))
    assert torch.equal(without.train()(*batch)[0], without.eval()(*batch)[0])


@pytest.mark.parametrize("place", range(5))
def test_dropout_acts_at_each_of_its_places_once(place):
    model, batch = small_model().train(), random_batch([5, 2], [3, 1])
    dropouts = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    assert len(dropouts) == 5  # words, h^T, features, h^V, h^P
    calls = []
    for index, dropout in enumerate(dropouts):
        dropout.p = 0.5 if index == place else 0.0
    dropouts[place].register_forward_hook(lambda *_: calls.append(1))
    torch.manual_seed(0)
    first, second = model(*batch), model(*batch)
    assert len(calls) == 2
    assert not torch.equal(first[0], second[0])
    assert not torch.equal(first[1], second[1])


# The loss, and learning with it.


def test_loss_is_equation_1():
    torch.manual_seed(0)
    start, end = torch.randn(3, 6), torch.randn(3, 6)
    num_rows, start_rows, end_rows = [6, 4, 1], [2, 0, 0], [5, 3, 0]
    total = 0.0
    for item, rows in enumerate(num_rows):
        start[item, rows:] = end[item, rows:] = -math.inf
        for logits, target in ((start, start_rows[item]), (end, end_rows[item])):
            exponentials = [math.exp(value) for value in logits[item, :rows].tolist()]
            total += math.log(exponentials[target] / sum(exponentials))
    loss = span_cross_entropy(start.requires_grad_(), end, torch.tensor(start_rows), torch.tensor(end_rows))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(-total / 3, rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, start)
    assert gradient.isfinite().all()


def test_loss_of_uniform_logits_is_twice_the_log_of_the_rows():
    rows = torch.tensor([3, 1])
    loss = span_cross_entropy(torch.zeros(2, 8), torch.zeros(2, 8, dtype=torch.bfloat16), rows, rows)
    assert loss.item() == pytest.approx(2 * math.log(8))


def test_overfits_eight_random_queries():
    config = ExCLConfig(text_hidden=16, video_hidden=16, predictor_hidden=8, mlp_hidden=16, dropout=0.0)
    model = small_model(config).train()
    num_rows, num_tokens = [12, 9, 7, 12, 5, 10, 8, 11], [4, 6, 3, 2, 5, 6, 1, 3]
    batch = random_batch(num_rows, num_tokens)
    start_rows = torch.tensor([0, 3, 6, 2, 1, 9, 0, 4])
    end_rows = torch.tensor([11, 3, 6, 8, 4, 9, 2, 7])
    optimiser = torch.optim.Adam([weight for weight in model.parameters() if weight.requires_grad], lr=0.01)
    for _ in range(120):
        optimiser.zero_grad()
        start, end = model(*batch)
        span_cross_entropy(start, end, start_rows, end_rows).backward()
        optimiser.step()
    found_starts, found_ends, score = best_span(*model.eval()(*batch))
    assert found_starts.tolist() == start_rows.tolist()
    assert found_ends.tolist() == end_rows.tolist()
    assert (score > 0.5).all()
