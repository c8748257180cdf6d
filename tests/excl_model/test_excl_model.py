"""What training relies on in every ExCL model: names, padding, dropout, normalisation. test_equations.py has the rest."""

import csv
import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from excl.models.excl import (
    VARIANTS,
    ExCL,
    ExCLConfig,
    encoders,
    layers,
    predictors,
    recurrence,
    span_cross_entropy,
    variant_config,
    variant_label,
    variant_name,
)
from excl.models.excl.config import PredictorName, TextEncoderName, VideoEncoderName
from excl.models.excl.encoders import IdentityVideo
from excl.models.excl.predictors import ConditionedPredictor

TABLE_1 = Path(__file__).resolve().parents[3] / "shared" / "data" / "paper" / "excl_table1.csv"
FEATURE_DIM, WORD_DIM, NUM_WORDS = 6, 5, 20
SMALL = ExCLConfig(text_hidden=4, video_hidden=3, predictor_hidden=2, mlp_hidden=7, heads=2, dropout=0.5)
COMBINATIONS = [
    dataclasses.replace(SMALL, text_encoder=text, video_encoder=video, predictor=predictor)
    for text, video, predictor in itertools.product(*map(get_args, (TextEncoderName, VideoEncoderName, PredictorName)))
]
every_combination = pytest.mark.parametrize("config", COMBINATIONS, ids=variant_name)


pytestmark = pytest.mark.usefixtures("one_thread")


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


def test_default_sizes_are_those_of_the_paper():
    model = ExCL(ExCLConfig(), vectors=torch.zeros(10, 300), feature_dim=1024)
    lstms = (model.text_encoder.lstm, model.video_encoder.lstm, model.predictor.lstm)
    assert [(lstm.input_size, lstm.hidden_size) for lstm in lstms] == [(300, 256), (1024, 256), (1024, 128)]
    assert all(lstm.bidirectional and lstm.num_layers == 1 for lstm in lstms)
    for mlp in (model.predictor.start_mlp, model.predictor.end_mlp):
        assert (mlp[0].in_features, mlp[0].out_features, mlp[2].out_features) == (256 + 512 + 512, 256, 1)


# Names.


def test_variants_have_the_parts_that_their_names_say():
    assert len(VARIANTS) == 12
    model = small_model(variant_config("reg-1-c", SMALL))
    assert model.config.parts == ("reg", "identity", "conditioned-lstm")
    assert isinstance(model.predictor, ConditionedPredictor)
    assert isinstance(model.video_encoder, IdentityVideo)
    assert ExCLConfig().parts == VARIANTS["clf-2-b"] == ("clf", "lstm", "tied-lstm")
    assert {parts.loss for name, parts in VARIANTS.items() if name.startswith("reg")} == {"reg"}


@pytest.mark.skipif(not TABLE_1.is_file(), reason=f"needs {TABLE_1}")
def test_labels_are_the_rows_of_the_papers_table():
    with TABLE_1.open(newline="") as file:
        rows = list(dict.fromkeys(row["variant"] for row in csv.DictReader(file) if row["variant"].startswith("ExCL")))
    assert [variant_label(variant_config(name)) for name in VARIANTS] == rows


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_keeps_its_name_however_it_is_spelled(name):
    odd = dataclasses.replace(SMALL, loss="reg", video_encoder="conv", predictor="attention", text_encoder="bag")
    assert variant_name(odd) == "reg bag+conv+attention"
    assert variant_label(odd) == "ExCL-reg bag+conv+attention"
    config = variant_config(name, odd)
    assert config == dataclasses.replace(SMALL, variant=name)
    assert variant_name(config) == name
    assert variant_name(ExCLConfig(**VARIANTS[name]._asdict())) == name
    assert variant_name(dataclasses.replace(config, text_encoder="bag")) not in VARIANTS


def test_configurations_of_earlier_checkpoints_are_valid():
    saved = """{"variant": "clf-2-b", "text_hidden": 16, "video_hidden": 256, "predictor_hidden": 128,
                "mlp_hidden": 256, "dropout": 0.5, "train_vectors": false}"""
    assert ExCLConfig(**json.loads(saved)) == ExCLConfig(text_hidden=16)


def test_parameters_of_earlier_checkpoints_have_their_names():
    names = {name.rsplit(".", 1)[0] for name in small_model().state_dict() if "." in name}
    mlps = {f"predictor.{which}_mlp.{layer}" for which in ("start", "end") for layer in (0, 2)}
    assert names == {"text_encoder.embedding", "text_encoder.lstm", "video_encoder.lstm", "predictor.lstm"} | mlps


@pytest.mark.parametrize(
    "wrong",
    [
        {"dropout": 1.0},
        {"dropout": math.nan},
        {"text_hidden": 0},
        {"variant": "clf-9"},
        {"nonsense": 1},
        {"video_encoder": "none"},
        {"text_encoder": "attention", "text_hidden": 3},
        {"video_encoder": "attention", "heads": 3},
        {"predictor": "attention", "predictor_hidden": 5},
    ],
)
def test_config_refuses(wrong):
    with pytest.raises(ValidationError):
        ExCLConfig(**wrong)


# Padding.

lengths = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 6)), min_size=1, max_size=4)


@every_combination
@settings(max_examples=8, deadline=None)
@given(lengths=lengths, extra_rows=st.integers(0, 3), extra_tokens=st.integers(0, 3), seed=st.integers(0, 99))
@example(lengths=[(1, 1), (9, 6), (2, 1)], extra_rows=1, extra_tokens=1, seed=0)
@torch.no_grad()
def test_a_padded_batch_gives_what_its_items_give(config, lengths, extra_rows, extra_tokens, seed):
    model = small_model(config)
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


@every_combination
def test_padding_leaks_neither_values_nor_gradients(config):
    model = small_model(dataclasses.replace(config, dropout=0.1)).train()  # so little that nothing is dropped as a whole
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
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}
    assert all(gradient.isfinite().all() for gradient in gradients.values()), "NaN of the padding"
    unused = {name for name, gradient in gradients.items() if not gradient.any()}
    assert all(name.endswith((".weigh.bias", "linear.bias", "mlp.2.bias")) for name in unused), "only softmax is blind to it"


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


@every_combination
@torch.no_grad()
def test_every_row_may_depend_on_every_word_and_what_the_parts_can_see(config):
    """A change of a word or of a far row is felt where the parts carry it, and only there."""
    model, (features, *rest) = small_model(config), random_batch([7], [3])
    before = torch.stack(model(features, *rest))[:, 0]
    other = features.clone()
    other[0, 0] += 3
    far = torch.stack(model(other, *rest))[:, 0] != before
    _, video, predictor = config.parts
    sees_far = video in ("lstm", "attention") or predictor != "mlp"
    reach = 6 if sees_far else 4 if video == "conv" else 0
    assert far[:, : reach + 1].any(1).all()
    assert far[:, reach].all()
    assert not far[:, reach + 1 :].any()
    rest[1][0, 1] += 1
    assert (torch.stack(model(features, *rest))[:, 0] != before).any(1).all()


def test_only_a_bag_of_words_has_no_order():
    for text_encoder, differs in (("lstm", True), ("attention", True), ("bag", False)):
        model = small_model(dataclasses.replace(SMALL, text_encoder=text_encoder))
        features, num_rows, _, _ = random_batch([5], [3])
        one, other = (model(features, num_rows, torch.tensor([ids]), torch.tensor([3]))[0] for ids in ([1, 2, 3], [3, 1, 2]))
        assert torch.allclose(one, other, rtol=0, atol=1e-6) is not differs


@torch.no_grad()
def test_logits_are_float32_whatever_the_features_and_the_precision():
    model, (features, *rest) = small_model(), random_batch([5, 2], [3, 1])
    exact, _ = model(features, *rest)
    half, _ = model(features.half(), *rest)
    assert exact.dtype == half.dtype == torch.float32
    torch.testing.assert_close(half, exact, rtol=0, atol=1e-3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed, _ = model(features, *rest)
    assert mixed.dtype == torch.float32
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


DROPOUTS = {"1-a": 2, "1-b": 4, "1-c": 5, "2-a": 4, "2-b": 5, "2-c": 6}  # words, h^T; rows; h^V; h^P or h^P0 and h^P1


@pytest.mark.parametrize(("name", "place"), [(name, place) for name, places in DROPOUTS.items() for place in range(places)])
def test_dropout_acts_at_each_of_its_places_once(name, place):
    model, batch = small_model(variant_config(f"clf-{name}", SMALL)).train(), random_batch([5, 2], [3, 1])
    dropouts = [module for module in model.modules() if isinstance(module, nn.Dropout) and module.p]
    assert len(dropouts) == DROPOUTS[name]
    calls = []
    for index, dropout in enumerate(dropouts):
        dropout.p = 0.5 if index == place else 0.0
    dropouts[place].register_forward_hook(lambda *_: calls.append(1))
    torch.manual_seed(0)
    first, second = model(*batch), model(*batch)
    assert len(calls) == 2
    end_only = name.endswith("c") and place == DROPOUTS[name] - 1  # h^P1
    assert torch.equal(first[0], second[0]) is end_only
    assert not torch.equal(first[1], second[1])


@pytest.mark.parametrize("name", VARIANTS)
def test_half_of_what_lstms_read_is_dropped(name, monkeypatch):
    config = dataclasses.replace(SMALL, variant=name, text_hidden=100)  # h^T is dropped once, and read at every row
    model, batch = small_model(config).train(), random_batch([400], [400])
    shares = []
    lstms = [module for module in model.modules() if isinstance(module, nn.LSTM)]
    assert all(lstm.dropout == 0 for lstm in lstms)  # which would do nothing with one layer
    original = recurrence.run_bilstm

    def look(lstm, inputs, lengths, constant=None):
        shares.extend((part == 0).float().mean().item() for part in (inputs, constant) if part is not None)
        return original(lstm, inputs, lengths, constant)

    monkeypatch.setattr(encoders, "run_bilstm", look)
    monkeypatch.setattr(predictors, "run_bilstm", look)
    model(*batch)
    assert len(shares) == len(lstms) + (name[-1] in "bc"), "every LSTM's steps, and h^T where the predictor has one"
    assert all(0.4 < share < 0.65 for share in shares), shares


@pytest.mark.parametrize("constant_size", [None, 4])
@settings(deadline=None, max_examples=30)
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4), more=st.integers(0, 2))
def test_a_bilstm_is_that_of_torch(constant_size, lengths, more):
    """Values and all gradients, of any lengths, with NaN in the padding, and with what is the same at every step."""
    torch.manual_seed(0)
    count, longest = len(lengths), max(lengths) + more
    lstm, lengths = recurrence.bilstm(3 + (constant_size or 0), 5).double(), torch.tensor(lengths)
    inputs = torch.randn(count, longest, 3, dtype=torch.float64).masked_fill(
        torch.arange(longest)[:, None] >= lengths[:, None, None], math.nan
    )
    leaves = [inputs.requires_grad_()]
    if constant_size is not None:
        leaves.append(torch.randn(count, constant_size, dtype=torch.float64, requires_grad=True))
    joint = torch.cat([leaves[0], *(leaf[:, None].expand(-1, longest, -1) for leaf in leaves[1:])], dim=2)
    packed, (last, _) = lstm(pack_padded_sequence(joint, lengths, batch_first=True, enforce_sorted=False))
    torchs = pad_packed_sequence(packed, batch_first=True, total_length=longest)[0], torch.cat([last[0], last[1]], 1)
    found = []
    for outputs, final in (torchs, recurrence.run_bilstm(lstm, inputs, lengths, *leaves[1:])):
        loss = outputs.square().sum() + final.sin().sum()
        found.append([outputs, final, *torch.autograd.grad(loss, [*leaves, *lstm.parameters()])])
    torch.testing.assert_close(found[1], found[0])
    with torch.inference_mode():  # as on a GPU
        found.append(list(recurrence.run_bilstm(lstm, inputs, lengths, *leaves[1:])))
    torch.testing.assert_close(found[2], [side.detach() for side in torchs])


def test_gradients_of_a_bilstm_can_be_taken_again_but_have_none_themselves():
    lstm, inputs = recurrence.bilstm(3, 5), torch.randn(2, 4, 3, requires_grad=True)
    both = recurrence.run_bilstm(lstm, inputs, torch.tensor([4, 2]))
    given = [torch.randn_like(side).requires_grad_() for side in both]
    kept = [side.detach().clone() for side in given]
    leaves = [inputs, *lstm.parameters()]
    first, second = (torch.autograd.grad(both, leaves, given, retain_graph=True) for _ in range(2))
    torch.testing.assert_close(second, first, rtol=0, atol=0)
    torch.testing.assert_close([side.detach() for side in given], kept, rtol=0, atol=0)
    differentiable = torch.autograd.grad(both, leaves, given, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        differentiable[0].sum().backward()


def test_under_autocast_only_products_are_in_bfloat16(monkeypatch):
    torch.manual_seed(0)
    lstm, inputs, lengths = recurrence.bilstm(8, 16), torch.randn(3, 5, 8, requires_grad=True), torch.tensor([5, 2, 4])
    types, original = set(), recurrence._product

    def look(left, right, precision):
        types.add(precision)
        return original(left, right, precision)

    monkeypatch.setattr(recurrence, "_product", look)
    found = []
    for enabled in (False, True):
        types.clear()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            both = recurrence.run_bilstm(lstm, inputs, lengths)
        gradients = torch.autograd.grad([side.square().sum() for side in both], [inputs, *lstm.parameters()])
        assert types == {torch.bfloat16 if enabled else torch.float32}
        assert {side.dtype for side in (*both, *gradients)} == {torch.float32}
        found.append([*both, *gradients])
    assert not torch.equal(found[1][0], found[0][0])
    torch.testing.assert_close(found[1], found[0], rtol=0.05, atol=0.02)


def test_no_two_gradients_share_memory():
    """Else clipping, which scales them in place, would scale such a pair twice."""
    lstm = recurrence.bilstm(3, 5)
    recurrence.run_bilstm(lstm, torch.randn(2, 4, 3), torch.tensor([4, 2]))[0].sum().backward()
    places = [parameter.grad.data_ptr() for parameter in lstm.parameters()]
    assert len(set(places)) == len(places) == 8


def test_no_gradient_of_inputs_that_need_none_is_computed(monkeypatch):
    """The rows of a video need none."""
    shapes, original = [], recurrence._product

    def look(left, right, precision):
        product = original(left, right, precision)
        shapes.append(tuple(product.shape))
        return product

    monkeypatch.setattr(recurrence, "_product", look)
    for needs_gradient in (False, True):
        shapes.clear()
        inputs = torch.randn(2, 3, 7, requires_grad=needs_gradient)
        recurrence.run_bilstm(recurrence.bilstm(7, 5), inputs, torch.tensor([3, 2]))[0].sum().backward()
        assert ((5, 7) in shapes) is needs_gradient, "5 steps of 7 values"


def test_a_layer_of_joint_parts_is_that_of_their_concatenation():
    torch.manual_seed(0)
    layer = nn.Linear(9, 2).double()
    rows, video, text = (torch.randn(2, t, size, dtype=torch.float64) for t, size in ((5, 2), (5, 3), (1, 4)))
    found = []
    for outputs in (
        layers.linear_of_joint(layer, rows, video, text),
        layer(torch.cat([rows, video, text.expand(-1, 5, -1)], 2)),
    ):
        found.append([outputs, *torch.autograd.grad(outputs.square().sum(), layer.parameters())])
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5])
def test_dropout_leaves_its_share_and_scales_it(p):
    dropout, inputs = layers.Dropout(p), torch.ones(400, 500, requires_grad=True)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        found.append(dropout(inputs))
    torch.set_num_threads(1)
    assert torch.equal(*found), "what is dropped is a matter of the seed alone"
    kept = found[0] != 0
    deviations = (kept.double().mean() - (1 - p)).abs() / math.sqrt(max(p * (1 - p), 1e-9) / kept.numel())
    assert deviations < 4
    assert torch.equal(found[0], kept * torch.tensor(1 / (1 - p)))
    assert torch.equal(torch.autograd.grad(found[0].sum(), inputs)[0], found[0]), "gradients take the same way"
    assert dropout.eval()(inputs) is inputs
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert dropout.train()(inputs.bfloat16()).dtype == torch.bfloat16
