"""The convolutions on a CPU: the port's values, and no slow ones for short clips."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from excl.models.i3d.extractor import Extractor
from excl.models.i3d.network import pool_pairs, prepare
from excl.models.i3d.row_layout import Windows
from excl.models.i3d.runner import Runner
from excl.models.i3d.weights import load_weights

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")


@functools.cache
def weights():
    return load_weights("random:0")


def clips(batch, frames, *, size=32):
    return np.random.default_rng([batch, frames]).integers(0, 256, (batch, frames, size, size, 3), dtype=np.uint8)


def steps(runner, pixels):
    return runner.submit(pixels).result().numpy()


def relative_error(values, expected):
    return np.abs(values - expected).max() / np.abs(expected).max()


def test_a_runner_gives_the_ports_values(shared):
    """The features of the public port for clips of full size, 9 to 64 frames; the published tolerance is 1e-4.

    Of 100 frames, which take nearly as long as all others, the plain network's are compared, at less than full size.
    """
    reference = np.load(shared / "i3d" / "reference_features.npz")
    runner, clips_seen = Runner(weights(), device=CPU), set()
    for key in (key for key in reference if key.startswith("features")):
        seed, frames = int(key.split("_")[1].removeprefix("seed")), int(key.split("_t")[1])
        if frames > 64:
            continue
        pixels = np.random.RandomState(seed).randint(0, 256, size=(1, frames, 224, 224, 3), dtype=np.uint8)
        features = pool_pairs(torch.from_numpy(steps(runner, pixels)))[0].numpy()
        assert features.shape == reference[key].shape
        assert relative_error(features, reference[key]) < 2e-6
        clips_seen.add(frames)
    assert clips_seen >= {9, 16, 23, 24, 64}


@pytest.mark.parametrize("stride", [8, 2])
def test_they_give_what_the_plain_network_gives(stride):
    runner, plain = Runner(weights(), device=CPU, stride=stride), weights().network()
    for batch, frames in ((1, 24 - stride), (3, 24 - stride), (1, {8: 100, 2: 62}[stride])):
        pixels = clips(batch, frames, size=61)
        x = torch.from_numpy(pixels).permute(0, 4, 1, 2, 3).float() / 255 * 2 - 1
        with torch.inference_mode():
            expected = plain.steps(x, stride=stride).numpy()
        assert relative_error(steps(runner, pixels), expected) < 5e-6


def test_values_do_not_depend_on_what_was_computed_before():
    """To the bit: after 9 frames or after 8 clips of 64."""
    short, long = clips(1, 9), clips(8, 64)
    first, second = Runner(weights(), device=CPU), Runner(weights(), device=CPU)
    of_short, of_long = steps(first, short), steps(first, long)
    np.testing.assert_array_equal(steps(second, long), of_long)
    np.testing.assert_array_equal(steps(second, short), of_short)
    np.testing.assert_array_equal(steps(first, short), of_short)


def test_windows_together_give_what_single_ones_give():
    pixels = clips(1, 70)[0]
    together = Extractor(weights(), device=CPU, layout=Windows(window=16, hop=16))(iter(pixels))
    runner = Runner(weights(), device=CPU)
    for number in range(4):
        alone = pool_pairs(torch.from_numpy(steps(runner, pixels[None, 16 * number : 16 * number + 16])))[0].numpy()
        assert relative_error(together[number : number + 1], alone) < 2e-6


@pytest.mark.parametrize(("batch", "frames"), [(1, 9), (1, 64), (4, 16)])
def test_no_layer_takes_the_slow_convolution(batch, frames):
    """Left to itself PyTorch takes `slow_conv3d` for small layers of a single clip."""
    names = operations(Runner(weights(), device=CPU), clips(batch, frames))
    assert names.count("mkldnn::_convolution_pointwise") == 57
    assert not any("slow_conv" in name or name == "aten::conv3d" for name in names)


def test_a_batch_norm_that_makes_weights_nan_is_refused():
    """oneDNN's ReLU makes 0 of NaN, so such features would look right."""
    network = weights().network()
    network.Mixed_5c.b0.bn.running_var = network.Mixed_5c.b0.bn.running_var.clone().index_fill_(0, torch.tensor([3]), -1.0)
    with pytest.raises(ValueError, match="not finite numbers"):
        prepare(network, CPU, torch.float32)


def test_weights_are_packed_once_for_clips_of_one_shape():
    """Also after clips of another shape, for which another layout of the weights may be the best."""
    runner, short, long = Runner(weights(), device=CPU), clips(1, 9), clips(1, 64)
    for pixels, packed in ((short, 57), (short, 0), (long, 57), (long, 0), (short, 57)):
        assert operations(runner, pixels).count("mkldnn::_reorder_convolution_weight") == packed


def operations(runner, pixels):
    """Return the names of PyTorch's operations in the order in which the runner computes them."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded, torch.no_grad():
        runner._compute(torch.from_numpy(pixels), tuned=False)
    return [event.name for event in recorded.events()]


def test_a_cpu_without_bfloat16_says_that_it_takes_long(caplog, monkeypatch):
    monkeypatch.setattr(Runner, "check", lambda *_: None)
    for has_bfloat16 in (True, False):
        caplog.clear()
        monkeypatch.setattr("excl.models.i3d.network.has_onednn", lambda _, has=has_bfloat16: has)
        Runner(weights(), device=CPU, precision="bfloat16")
        assert ("bfloat16 takes far longer than float32 on this CPU" in caplog.text) is not has_bfloat16
