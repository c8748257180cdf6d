"""I3D against the public port's values, and against a second, literal implementation of the architecture."""

from __future__ import annotations

import functools
import json
from math import ceil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from excl.models.i3d import I3D
from excl.models.i3d.extractor import Extractor, choose_device
from excl.models.i3d.network import pool_pairs, same_pads
from excl.models.i3d.timemap import padded_frames
from excl.models.i3d.weights import load_weights


@functools.cache
def weights():
    return load_weights("random:0")


@functools.cache
def network():
    with torch.inference_mode(False):
        return weights().network()


@functools.cache
def extractor(chunk_frames):
    return Extractor(weights(), device=torch.device("cpu"), chunk_frames=chunk_frames)


def literal_features(state, x):
    """The architecture read out loud: explicit zero padding everywhere, nothing shared with the network's code."""

    def pad(x, kernel, stride):
        for axis in range(3):
            size = x.shape[2 + axis]
            outputs = ceil(size / stride[axis])
            total = max((outputs - 1) * stride[axis] + kernel[axis] - size, 0)
            widths = [0] * 6
            widths[2 * (2 - axis)], widths[2 * (2 - axis) + 1] = total // 2, total - total // 2
            x = F.pad(x, widths)
        return x

    def unit(name, x, kernel=1, stride=1):
        x = F.conv3d(pad(x, (kernel,) * 3, (stride,) * 3), state[f"{name}.conv3d.weight"], stride=stride)
        mean, var = state[f"{name}.bn.running_mean"], state[f"{name}.bn.running_var"]
        scale = state[f"{name}.bn.weight"] / (var + 1e-3).sqrt()
        shape = (1, -1, 1, 1, 1)
        return ((x - mean.reshape(shape)) * scale.reshape(shape) + state[f"{name}.bn.bias"].reshape(shape)).clamp(min=0)

    def pool(x, kernel, stride):
        return F.max_pool3d(pad(x, kernel, stride), kernel, stride)

    def mixed(name, x):
        return torch.cat(
            [
                unit(f"{name}.b0", x),
                unit(f"{name}.b1b", unit(f"{name}.b1a", x), 3),
                unit(f"{name}.b2b", unit(f"{name}.b2a", x), 3),
                unit(f"{name}.b3b", pool(x, (3, 3, 3), (1, 1, 1))),
            ],
            dim=1,
        )

    x = pool(unit("Conv3d_1a_7x7", x, 7, 2), (1, 3, 3), (1, 2, 2))
    x = pool(unit("Conv3d_2c_3x3", unit("Conv3d_2b_1x1", x), 3), (1, 3, 3), (1, 2, 2))
    x = pool(mixed("Mixed_3c", mixed("Mixed_3b", x)), (3, 3, 3), (2, 2, 2))
    for letter in "bcdef":
        x = mixed(f"Mixed_4{letter}", x)
    x = mixed("Mixed_5c", mixed("Mixed_5b", pool(x, (2, 2, 2), (2, 2, 2))))
    return F.avg_pool3d(x, (2, *x.shape[3:]), stride=1)[..., 0, 0].transpose(1, 2)


def relative_error(found, wanted):
    return np.abs(found - wanted).max() / np.abs(wanted).max()


@pytest.mark.parametrize(("frames", "size"), [(9, 64), (16, 32), (18, 61), (27, 90), (40, 112)])
def test_features_equal_a_literal_implementation(frames, size):
    x = torch.from_numpy(np.random.default_rng(frames).uniform(-1, 1, (2, 3, frames, size, size)).astype(np.float32))
    with torch.inference_mode():
        features = network().features(x)
        wanted = literal_features(weights().state_dict, x)
    assert features.shape == (2, ceil(frames / 8) - 1, 1024)
    assert relative_error(features.numpy(), wanted.numpy()) < 1e-5


def test_reference_values_of_the_public_port(shared):
    """Features and logits at full size; asked for is 1e-4."""
    reference = np.load(shared / "i3d" / "reference_features.npz")
    assert len(reference) >= 12
    for key in reference:
        kind, seed, frames = key.split("_")
        generator = np.random.RandomState(int(seed.removeprefix("seed")))
        pixels = generator.randint(0, 256, size=(int(frames[1:]), 224, 224, 3), dtype=np.uint8)
        x = torch.from_numpy(pixels.astype(np.float32) / 255 * 2 - 1).permute(3, 0, 1, 2)[None]
        with torch.inference_mode():
            found = getattr(network(), kind)(x)[0].numpy()
        assert found.shape == reference[key].shape
        assert relative_error(found, reference[key]) < 1e-5, key


def test_keys_and_shapes_are_the_ports(shared):
    wanted = json.loads((shared / "i3d" / "state_dict_shapes.json").read_text())
    assert {key: list(value.shape) for key, value in I3D().state_dict().items()} == wanted


def test_a_state_dict_without_counters_loads_strictly():
    """The published files are older than BatchNorm's `num_batches_tracked`: 287 keys of 344."""
    state = {key: value for key, value in weights().state_dict.items() if not key.endswith("num_batches_tracked")}
    assert len(state) == 287
    I3D(num_classes=400).load_state_dict(state, strict=True)
    assert sum(p.numel() for p in I3D().parameters()) == 12_697_264  # counted in the published file


@pytest.mark.parametrize("frames", [9, 16, 17, 24, 64, 65])
def test_row_counts_and_classes(frames):
    x = torch.zeros(1, 3, frames, 32, 32)
    with torch.inference_mode():
        assert I3D(num_classes=157).eval().logits(x).shape == (1, ceil(frames / 8) - 1, 157)


def test_too_short_is_refused():
    with pytest.raises(ValueError, match="at least 9 frames"):
        network().features(torch.zeros(1, 3, 8, 32, 32))


@given(st.integers(1, 300), st.integers(1, 7), st.integers(1, 3))
def test_same_padding_gives_ceil(size, kernel, stride):
    front, behind = same_pads(size, kernel, stride)
    assert 0 <= behind - front <= 1
    if kernel >= stride:
        assert (size + front + behind - kernel) // stride + 1 == ceil(size / stride)


def test_a_row_reads_the_frames_it_should():
    """Row k of T % 8 == 0 frames reads frames 8k - 44 to 8k + 62 and no other: what the time map and the chunks rest on."""
    frames, row = 192, 9
    x = torch.zeros(1, 3, frames, 32, 32).uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    x.requires_grad_()
    network().features(x)[0, row].sum().backward()
    assert x.grad is not None
    touched = x.grad.abs().amax(dim=(0, 1, 3, 4)).nonzero().flatten().tolist()
    assert (touched[0], touched[-1]) == (8 * row - 44, 8 * row + 62)


@settings(max_examples=30, deadline=None)
@given(frames=st.integers(1, 150), chunk=st.sampled_from([8, 16, 24, 40, 64]), seed=st.integers(0, 9))
def test_chunks_give_what_the_whole_video_gives(frames, chunk, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (frames, 32, 32, 3), dtype=np.uint8)
    found = extractor(chunk)(iter(pixels))
    padded = np.concatenate([pixels, np.repeat(pixels[-1:], padded_frames(frames) - frames, axis=0)])
    x = torch.from_numpy(padded).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    with torch.inference_mode():
        wanted = pool_pairs(network().steps(x))[0].numpy()
    assert found.shape == wanted.shape == (max(1, ceil(frames / 8) - 1), 1024)
    assert relative_error(found, wanted) < 2e-6


def test_a_long_video_is_never_held_whole():
    """The extractor lets go of frames: what it holds is a chunk and its context, whatever the length."""
    alive = {"now": 0, "most": 0}

    class Frame(np.ndarray):
        def __del__(self):
            alive["now"] -= 1

    def frames():
        for _ in range(600):
            alive["now"] += 1
            alive["most"] = max(alive["most"], alive["now"])
            yield np.zeros((32, 32, 3), np.uint8).view(Frame)

    assert len(extractor(64)(frames())) == 74
    assert alive["most"] <= 64 + 2 * 48 + 1


def test_devices():
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="device 'nonsense'"):
        choose_device("nonsense")
    if not torch.cuda.is_available():
        assert choose_device("auto") == torch.device("cpu")
        with pytest.raises(ValueError, match="device 'cuda'"):
            choose_device("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_what_the_cpu_gives():
    pixels = np.random.default_rng(0).integers(0, 256, (80, 112, 112, 3), dtype=np.uint8)
    on_gpu = Extractor(weights(), device=torch.device("cuda"), chunk_frames=32)(iter(pixels))
    assert relative_error(on_gpu, extractor(64)(iter(pixels))) < 1e-5
