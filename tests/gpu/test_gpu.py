"""What must be true on a CUDA device; `pytest -m gpu` runs just these, and elsewhere they are skipped."""

from __future__ import annotations

import gc
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from train_data import make_store

from excl.models.excl import ExCLConfig
from excl.models.i3d.device_checks import check_precision
from excl.models.i3d.extractor import Extractor
from excl.models.i3d.row_layout import Continuous, Windows
from excl.models.i3d.runner import TOLERANCE, Runner
from excl.models.i3d.weights import load_weights
from excl.pipeline import extract, train
from excl.pipeline.store.feature_store import FeatureStore
from excl.pipeline.training import trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device here"),
]
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(scope="module")
def weights():
    return load_weights("random:0")


@pytest.fixture(params=list(TOLERANCE))
def precision(request):
    """A precision that the card has."""
    try:
        check_precision(request.param, GPU)
    except ValueError as error:
        pytest.skip(str(error))
    return request.param


def noise(*shape):
    return np.random.default_rng(shape).integers(0, 256, (*shape, 3), dtype=np.uint8)


def relative_error(computed, expected):
    assert computed.shape == expected.shape
    return np.abs(computed - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize(
    "layout",
    [Continuous(8), Continuous(4), Continuous(2), Continuous(1), Windows(window=16, hop=16), Windows(window=64, hop=8)],
    ids=str,
)
def test_features_are_those_of_the_cpu(weights, precision, layout):
    frames = noise(150, 112, 112)
    expected = Extractor(weights, device=CPU, layout=layout)(iter(frames))
    extractor = Extractor(weights, device=GPU, layout=layout, precision=precision, chunk_frames=64)
    for _ in range(5):  # from the fourth time on cuDNN has chosen its algorithms by trying them
        assert relative_error(extractor(iter(frames)), expected) < TOLERANCE[precision]


@pytest.mark.parametrize("length", [9, 16, 33, 64, 304, 600])
def test_every_length_at_full_size(weights, precision, length):
    frames = noise(length, 224, 224)
    expected = Extractor(weights, device=CPU)(iter(frames))
    computed = Extractor(weights, device=GPU, precision=precision)(iter(frames))
    assert relative_error(computed, expected) < TOLERANCE[precision]


def test_videos_of_mixed_lengths_at_once_do_not_meet(weights, precision):
    lengths = [9, 24, 40, 40, 40, 64, 64, 150] * 3
    videos = {length: noise(length, 112, 112) for length in lengths}
    expected = {length: Extractor(weights, device=CPU)(iter(frames)) for length, frames in videos.items()}
    extractor = Extractor(weights, device=GPU, precision=precision)
    with ThreadPoolExecutor(8) as pool:
        for length, rows in zip(lengths, pool.map(lambda length: extractor(iter(videos[length])), lengths), strict=True):
            assert relative_error(rows, expected[length]) < TOLERANCE[precision]


def test_settings_of_the_process_stay_as_they_are(weights):
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    Extractor(weights, device=GPU)(iter(noise(40, 64, 64)))
    assert before == (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark)


def test_out_of_memory_is_taken_back(weights):
    clips = [noise(1, 128, 224, 224) for _ in range(16)]
    runner = Runner(weights, device=GPU, batch_frames=16 * 128)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(GPU)
    runner.submit(clips[0]).result()
    alone = torch.cuda.max_memory_reserved(GPU)
    expected = [runner.submit(clip).result().numpy() for clip in clips]
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(GPU).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, 4 * alone / total), GPU)  # too little for all sixteen together
    try:
        begin = threading.Event()
        runner._thread.submit(begin.wait)
        futures = [runner.submit(clip) for clip in clips]
        begin.set()
        for future, rows in zip(futures, expected, strict=True):
            assert relative_error(future.result().numpy(), rows) < TOLERANCE["float32"]
        assert runner.batch_frames < 16 * 128
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, GPU)


def test_memory_does_not_grow(weights):
    runner = Runner(weights, device=GPU, batch_frames=1024)
    clips, used = noise(1, 16, 112, 112), []
    for _ in range(3):
        for future in [runner.submit(clips) for _ in range(200)]:
            future.result()
        gc.collect()
        used.append(torch.cuda.memory_allocated(GPU))
    assert used[2] - used[1] < 2**20


def test_extract_from_files(five_videos, tmp_path):
    settings = {"videos": five_videos, "weights": "random:0", "short_side": 64, "crop": 64, "dtype": "float32"}
    stores = [
        FeatureStore(extract.run(extract.ExtractConfig(out=tmp_path / device, device=device, **settings)))
        for device in ("cpu", "cuda")
    ]
    for video_id in stores[0]:
        assert relative_error(stores[1][video_id].features, stores[0][video_id].features) < TOLERANCE["float32"]


def config_of(store, out, **settings):
    return train.TrainConfig(store=(store,), out=out, epochs=3, batch_size=4, device="cuda", checkpoint_steps=2, **settings)


def trained(config):
    return train.load_run(train.run(config), device=GPU).model.state_dict()


@pytest.mark.parametrize("variant", ["clf-2-b", "reg-2-c"])
@pytest.mark.parametrize("precision_of_training", ["float32", "bfloat16"])
def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path, monkeypatch, variant, precision_of_training):
    store = make_store(tmp_path / "data")
    settings = {"model": ExCLConfig(variant=variant), "precision": precision_of_training}
    expected = trained(config_of(store, tmp_path / "whole", **settings))
    stopped = config_of(store, tmp_path / "stopped", **settings)
    step, num_steps = trainer.Trainer._step, iter(range(7))

    def step_or_stop(self, *arguments):
        if next(num_steps, None) is None:
            raise KeyboardInterrupt
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_step", step_or_stop)
        with pytest.raises(KeyboardInterrupt):
            train.run(stopped)
    assert (tmp_path / "stopped" / "last.json").exists()
    assert len(json.loads((tmp_path / "stopped" / "last.json").read_text()))
    resumed = trained(stopped)
    differing = [name for name, value in expected.items() if not torch.equal(value, resumed[name])]
    assert not differing


def test_a_precision_that_the_card_lacks_is_refused(weights):
    if torch.cuda.get_device_capability(GPU) >= (8, 0):
        pytest.skip("this card has every precision")
    with pytest.raises(ValueError, match="choose float32"):
        Extractor(weights, device=GPU, precision="bfloat16")
