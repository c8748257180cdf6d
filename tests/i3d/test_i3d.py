"""I3D against the public port's values, and against a second, literal implementation of the architecture."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from math import ceil

import commands
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from literal_i3d import literal_features
from torch.utils.flop_counter import FlopCounterMode

from excl.models.i3d import I3D
from excl.models.i3d.extractor import MAX_BATCH_FRAMES, MAX_SIZE, Extractor, choose_device, choose_devices
from excl.models.i3d.network import same_pads
from excl.models.i3d.published_layouts import PortChunks, ShiftedWindows, StacksWithOneMore
from excl.models.i3d.row_layout import Continuous, NoRowsError, Windows
from excl.models.i3d.runner import TOLERANCE, Runner, _normalise, flops_of_clip
from excl.models.i3d.weights import load_weights


@functools.cache
def weights():
    return load_weights("random:0")


@functools.cache
def network():
    with torch.inference_mode(False):
        return weights().network()


@functools.cache
def exact_network():
    """In float64, whose rounding is nothing next to that of float32: sums of other orders then cannot be told apart."""
    with torch.inference_mode(False):
        return weights().network().double()


@functools.cache
def extractor_of(layout):
    return Extractor(weights(), device=torch.device("cpu"), layout=layout)


def extractor(chunk_frames, layout):
    found = extractor_of(layout)
    found.chunk_frames = chunk_frames
    return found


def noise(frames, *, size=16, seed=0):
    return np.random.default_rng([seed, frames]).integers(0, 256, (frames, size, size, 3), dtype=np.uint8)


def relative_error(found, wanted):
    return np.abs(found - wanted).max() / np.abs(wanted).max()


@pytest.mark.parametrize(("frames", "size"), [(9, 64), (16, 32), (18, 61), (27, 42), (12, 112), (100, 32)])
def test_features_equal_a_literal_implementation(frames, size):
    x = torch.from_numpy(np.random.default_rng(frames).uniform(-1, 1, (2, 3, frames, size, size)).astype(np.float32))
    with torch.inference_mode():
        features = network().features(x)
        wanted = literal_features(weights().state_dict, x)
    assert features.shape == (2, ceil(frames / 8) - 1, 1024)
    assert relative_error(features.numpy(), wanted.numpy()) < 1e-5


def test_reference_values_of_the_public_port(shared, monkeypatch):
    """Features and logits of 9 frames at full size; asked for is 1e-4. The logits are those of the features, computed once.

    Features of the other clips are compared as a CPU computes them for users (test_onednn).
    """
    reference = np.load(shared / "i3d" / "reference_features.npz")
    assert len(reference) >= 12
    computed: dict[bytes, torch.Tensor] = {}
    compute = network().features

    def features(x):
        key = hashlib.sha256(x.numpy().tobytes()).digest()
        return computed[key] if key in computed else computed.setdefault(key, compute(x))

    monkeypatch.setattr(network(), "features", features)
    for kind, seed, frames in ((*key.split("_")[:2], int(key.split("_t")[1])) for key in reference):
        key = f"{kind}_{seed}_t{frames}"
        if frames != 9:
            rows = torch.from_numpy(reference[f"features_{seed}_t{frames}"])[None]
            with torch.inference_mode():
                logits = network()._modules["logits"](rows)[0].numpy()
            assert relative_error(logits, reference[f"logits_{seed}_t{frames}"]) < 1e-5
            continue
        generator = np.random.RandomState(int(seed.removeprefix("seed")))
        pixels = generator.randint(0, 256, size=(frames, 224, 224, 3), dtype=np.uint8)
        x = torch.from_numpy(pixels.astype(np.float32) / 255 * 2 - 1).permute(3, 0, 1, 2)[None]
        with torch.inference_mode():
            found = getattr(network(), kind)(x)[0].numpy()
        assert found.shape == reference[key].shape
        assert relative_error(found, reference[key]) < 1e-5, key
    assert len(computed) == 1


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


def by_definition(pixels, stride, pool, i3d):
    """Rows of the whole video at once, its padding written out: copies of the first frame in front, of the last behind."""
    lead = 8 - stride if pool == "2x7x7" else 4 - stride // 2
    wanted = ceil(len(pixels) / stride)
    if pool == "2x7x7":
        wanted = max(1, wanted - 1)
    steps = ceil(wanted * stride / 8) + (pool == "2x7x7")
    behind = 8 * steps + 8 - stride - lead - len(pixels)
    padded = np.concatenate([np.repeat(pixels[:1], lead, axis=0), pixels, np.repeat(pixels[-1:], behind, axis=0)])
    x = torch.from_numpy(padded).permute(3, 0, 1, 2)[None].to(next(i3d.parameters()).dtype) / 127.5 - 1
    with torch.inference_mode():
        rows = i3d.steps(x, stride=stride)[0]
    if pool == "2x7x7":
        rows = (rows[: -8 // stride] + rows[8 // stride :]) / 2
    return rows[:wanted].numpy()


@settings(max_examples=15)
@given(
    frames=st.integers(1, 120),
    chunk=st.sampled_from([8, 16, 24, 40, 64, 96]),
    stride=st.sampled_from([8, 8, 8, 4, 2, 1]),
    pool=st.sampled_from(["2x7x7", "2x7x7", "1x7x7"]),
)
def test_chunks_give_what_the_whole_video_gives(frames, chunk, stride, pool):
    pixels = noise(frames, size=16)
    found = extractor(chunk, Continuous(stride, pool))(iter(pixels))
    wanted = by_definition(pixels, stride, pool, exact_network())
    assert found.shape == wanted.shape == (Continuous(stride, pool).num_rows(frames), 1024)
    assert relative_error(found, wanted) < 2e-6


@pytest.mark.parametrize(("frames", "chunk", "stride", "size"), [(12, 8, 8, 224), (20, 16, 2, 112)])
def test_chunks_of_large_pictures(frames, chunk, stride, size):
    """At full size, and with a small stride, which costs four times as much, at half of it."""
    pixels = noise(frames, size=size)
    found = extractor(chunk, Continuous(stride))(iter(pixels))
    assert relative_error(found, by_definition(pixels, stride, "2x7x7", network())) < 2e-6


@pytest.mark.parametrize("stride", [4, 2, 1])
def test_rows_in_between_are_those_of_videos_that_start_later(stride):
    """Away from the borders, row j of a small stride is a row of the network on the frames from some frame on."""
    pixels = noise(232)
    found = extractor(64, Continuous(stride))(iter(pixels))
    compared = 0
    for offset in range(0, 8, stride):
        x = torch.from_numpy(pixels[offset : offset + 224]).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        with torch.inference_mode():
            shifted = network().features(x)[0].numpy()
        for k in range(7, 20):  # its centre is frame offset + 8k + 8, that of row j is stride * (j + 1)
            row = (offset + 8 * k + 8) // stride - 1
            assert np.abs(found[row] - shifted[k]).max() < 2e-6 * np.abs(shifted).max()
            compared += 1
    assert compared == 13 * 8 // stride


CLIP_LAYOUTS = [
    Windows(window=16, hop=16),
    Windows(window=24, hop=24, last="drop"),
    Windows(window=16, hop=4),
    Windows(window=20, hop=7, mean=True),
    Windows(window=16, hop=40, pool="1x7x7"),
    Windows(window=64, hop=64, mean=True, last="drop"),
    ShiftedWindows(window=16),
    StacksWithOneMore(),
]


@pytest.mark.parametrize("layout", CLIP_LAYOUTS, ids=str)
@pytest.mark.parametrize("frames", [1, 9, 16, 17, 25, 63, 64, 65, 100, 131])
def test_clips_are_seen_by_themselves(layout, frames):
    pixels = noise(frames)
    try:
        rows = layout.num_rows(frames)
    except NoRowsError as error:
        with pytest.raises(NoRowsError, match=re.escape(str(error))):
            extractor(32, layout)(iter(pixels))
        return
    wanted = []
    for begin, end in layout.clips(frames):
        clip = pixels[np.minimum(np.arange(begin, end), frames - 1)]
        x = torch.from_numpy(clip).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        with torch.inference_mode():
            steps = network().steps(x)[0].numpy()
        of_clip = (steps[:-1] + steps[1:]) / 2 if layout.pool == "2x7x7" else steps
        wanted += [of_clip.mean(axis=0)] if layout.mean else list(of_clip)
    found = extractor(32, layout)(iter(pixels))
    assert found.shape == (rows, 1024)
    assert relative_error(found, np.stack(wanted)[:rows]) < 2e-6


@pytest.mark.parametrize("frames", [1603, 1605, 1700])
def test_clips_longer_than_a_chunk(frames):
    """The chunks of a clip of any length, even or odd, give what the clip gives: the remainder of its length is kept."""
    pixels = noise(frames)
    found = extractor(256, PortChunks())(iter(pixels))
    wanted = []
    for start in range(1, frames - 56, 1600):
        clip = pixels[max(1, start - 48) : min(frames - 1, start + 1656)]
        with torch.inference_mode():
            x = torch.from_numpy(clip).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
            wanted.append(network().features(x)[0].numpy())
    assert relative_error(found, np.concatenate(wanted)) < 2e-6


@pytest.mark.parametrize("layout", [Continuous(), Continuous(stride=1), Windows(), Windows(window=24, hop=300)], ids=str)
def test_a_long_video_is_never_held_whole(layout):
    """The extractor lets go of frames: what it holds is a chunk and its context, whatever the length."""
    alive = {"now": 0, "most": 0}

    class Frame(np.ndarray):
        def __del__(self):
            alive["now"] -= 1

    def frames():
        for _ in range(400):
            alive["now"] += 1
            alive["most"] = max(alive["most"], alive["now"])
            yield np.zeros((16, 16, 3), np.uint8).view(Frame)

    assert len(extractor(64, layout)(frames())) == layout.num_rows(400)
    assert alive["most"] <= 64 + 2 * 48 + 16


def test_videos_at_the_same_time_give_what_single_ones_give():
    """Threads that share the network, on which clips of equal shape are computed together."""
    videos = [noise(frames, seed=seed) for seed, frames in enumerate([40, 90, 40, 128, 90, 40, 9, 64])]
    alone = [extractor(32, Continuous())(iter(pixels)) for pixels in videos]
    shared = Extractor(weights(), device=torch.device("cpu"), chunk_frames=32)
    shared.runner.batch_frames = 4096
    shapes = []
    compute = shared.runner._compute
    shared.runner._compute = lambda x, **more: shapes.append(x.shape) or compute(x, **more)
    gate = threading.Event()
    shared.runner._thread.submit(gate.wait)  # until all are waiting
    with ThreadPoolExecutor(len(videos)) as pool:
        futures = [pool.submit(shared, iter(pixels)) for pixels in videos]
        while len(shared.runner._jobs) < len(videos):
            time.sleep(0.01)
        gate.set()
        together = [future.result() for future in futures]
    assert max(shape[0] for shape in shapes) >= 3
    for one, other in zip(alone, together, strict=True):
        assert relative_error(other, one) < 2e-6


def test_an_error_of_the_network_comes_to_those_who_asked():
    broken = Extractor(weights(), device=torch.device("cpu"), chunk_frames=32)
    compute = broken.runner._compute

    def fail_once(*_, **__):
        broken.runner._compute = compute
        raise RuntimeError("out of something")

    broken.runner._compute = fail_once
    with pytest.raises(RuntimeError, match="out of something"):
        broken(iter(noise(40)))
    assert len(broken(iter(noise(40)))) == 4


@pytest.mark.parametrize("most", [1, 0])
def test_a_device_without_enough_memory(most):
    """Fewer clips at once are tried; what does not fit by itself either is refused with what to do."""
    small = Extractor(weights(), device=torch.device("cpu"), layout=Windows(window=16, hop=16), chunk_frames=16)
    runner, compute = small.runner, small.runner._compute
    runner.batch_frames = 4096

    def little_memory(x, **more):
        if len(x) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate a lot")
        return compute(x, **more)

    runner._compute = little_memory
    gate = threading.Event()
    runner._thread.submit(gate.wait)
    futures = [runner.submit(noise(16, seed=seed)[None]) for seed in range(3)]
    gate.set()
    if most:
        alone = [compute(torch.from_numpy(noise(16, seed=seed)[None]), tuned=False).detach() for seed in range(3)]
        for future, wanted in zip(futures, alone, strict=True):
            assert torch.allclose(future.result(), wanted, rtol=1e-5, atol=1e-5)
        return
    for future in futures:
        with pytest.raises(ValueError, match=r"not enough memory for 16 frames at once; give a smaller --chunk-frames"):
            future.result()


def test_no_tensor_has_two_to_the_31_elements():
    """Of the largest pictures and strides that are allowed, and of the largest batch; shapes alone, on the meta device."""
    largest = 0

    def note(_module, _inputs, output):
        nonlocal largest
        largest = max(largest, output.numel())

    with torch.device("meta"):
        net = I3D().eval()
    for module in net.modules():
        module.register_forward_hook(note)
    cpu = torch.device("cpu")
    for stride in (8, 1):
        extractor_of_stride = Extractor(weights(), device=cpu, layout=Continuous(stride))
        for size in (224, 256, 448, 700, MAX_SIZE):
            frames = extractor_of_stride._chunk_frames(size)
            with torch.no_grad():
                net.steps(torch.empty(1, 3, frames + 96 + 8 - stride, size, size, device="meta"), stride=stride)
    with torch.no_grad():
        net.steps(torch.empty(1, 3, MAX_BATCH_FRAMES, 224, 224, device="meta"))
    assert 2**30 < largest < 2**31


def test_precisions():
    pixels = noise(9, size=32)
    exact = extractor(32, Continuous())(iter(pixels))
    rounded = Extractor(weights(), device=torch.device("cpu"), precision="bfloat16")(iter(pixels))
    assert rounded.dtype == np.float32
    assert 1e-4 < relative_error(rounded, exact) < TOLERANCE["bfloat16"] / 2
    with pytest.raises(ValueError, match="tf32 exists on NVIDIA's GPUs only, not on cpu"):
        Extractor(weights(), device=torch.device("cpu"), precision="tf32")


def test_settings_of_the_process_stay_as_they_are():
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda seed: extractor(32, Continuous())(iter(noise(40, seed=seed))), range(8)))
    assert before == (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark)


def test_wrong_arithmetic_is_noticed_at_the_start(monkeypatch):
    monkeypatch.setattr(Runner, "_compute", lambda _, x, **__: network().steps(_normalise(x, torch.float32)) * 1.1)
    with pytest.raises(ValueError, match=r"I3D on cpu in bfloat16 is off by .*another version of PyTorch"):
        Runner(weights(), device=torch.device("cpu"), precision="bfloat16")


def test_what_was_done_is_told():
    """Frames with their context, floating-point operations by the published count of 111.15 G multiply-adds a clip."""
    assert flops_of_clip(64, 224) == pytest.approx(2 * 111.1503e9, rel=1e-3)
    assert flops_of_clip(64 + 7, 224, 1) / flops_of_clip(64, 224) == pytest.approx(2.44 * 71 / 64, rel=0.05)
    for frames, size, stride in ((41, 61, 8), (31, 90, 1), (14, 32, 2)):
        with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
            I3D().eval().steps(torch.empty(1, 3, frames, size, size), stride=stride)
        assert flops_of_clip(frames, size, stride) == counter.get_total_flops()
    shared = Extractor(weights(), device=torch.device("cpu"), chunk_frames=32)
    shared(iter(noise(100)))
    usage = shared.runner.take_usage()
    assert usage.frames == 80 + 104  # of 104 frames: [0, 32 + 48) for the first 32, and all of them for the others
    assert "frames in" in usage.summary()
    assert shared.runner.take_usage().summary() == "I3D had nothing to do"


def test_freed_memory_is_kept_without_harm():
    code = (
        "from excl.models.i3d.runner import keep_freed_memory; keep_freed_memory(); import numpy as np;"
        "print(sum(np.ones(10_000_000)[::1_000_000].sum() for _ in range(5)))"
    )
    shown = commands.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown == "50.0\n"


def test_devices():
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="device 'nonsense'"):
        choose_device("nonsense")
    assert choose_devices("cpu") == [torch.device("cpu")]
    with pytest.raises(ValueError, match="names one device twice"):
        choose_devices("cpu,cpu")
    if not torch.cuda.is_available():
        assert choose_device("auto") == torch.device("cpu")
        with pytest.raises(ValueError, match="device 'cuda'"):
            choose_device("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_what_the_cpu_gives():
    pixels = np.random.default_rng(0).integers(0, 256, (80, 112, 112, 3), dtype=np.uint8)
    wanted = extractor(64, Continuous())(iter(pixels))
    for precision, tolerance in TOLERANCE.items():
        found = Extractor(weights(), device=torch.device("cuda"), precision=precision, chunk_frames=32)(iter(pixels))
        assert relative_error(found, wanted) < tolerance
