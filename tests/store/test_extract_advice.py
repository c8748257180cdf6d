"""What `extract` says at its end about what was short: the decoders or I3D."""

from __future__ import annotations

import logging

import pytest

from excl.models.i3d.runner import Runner, Usage
from excl.pipeline import extract
from excl.pipeline.execution import video_reading
from excl.pipeline.execution.video_reading import ReadingSeveral


@pytest.fixture
def config(tmp_path, monkeypatch):
    """`config(…)` returns settings on a machine with eight cores."""
    monkeypatch.setattr(video_reading, "_cores_in_job", [8])
    fixed = {"out": tmp_path, "videos": tmp_path, "weights": "random:0", "device": "cpu"}
    return lambda **settings: extract.ExtractConfig(**fixed, **settings)


def test_a_device_that_waits_wants_decoders(config):
    few = config(reading=ReadingSeveral(decoders=3))
    assert extract.advice(few, "cuda", waited=0.4) == (
        "extract: decoding was the bottleneck, I3D waited; what helps: more than 3 --decoders (there are 8 cores) or "
        "the GPU's own decoder (--backend torchcodec-cuda: other pixels, so another store); a faster device does not"
    )
    said = extract.advice(config(reading=ReadingSeveral(decoders=8)), "cpu", waited=0.1)
    assert "decoding was the bottleneck" in said
    assert "what helps: more cores;" in said


def test_a_device_that_is_busy_wants_another(config):
    assert extract.advice(config(), "cuda", waited=0.09) == (
        "extract: I3D was the bottleneck, decoding waited; what helps: another GPU (--device cuda:0,cuda:1) or "
        "--precision bfloat16 (other features, so another store); more decoders do not"
    )
    said = extract.advice(config(precision="bfloat16"), "cpu", waited=0.0)
    assert "what helps: a GPU; more decoders do not" in said


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_bfloat16_helps_a_cpu_only_with_instructions_for_it(config, monkeypatch, has_bfloat16):
    monkeypatch.setattr("excl.models.i3d.network.has_onednn", lambda _: has_bfloat16)
    assert ("--precision bfloat16" in extract.advice(config(), "cpu", waited=0.0)) is has_bfloat16


def test_the_run_says_it_unless_it_was_too_short_to_tell(config, five_videos, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "excl")
    usages = [Usage(frames=100, flops=10**9, busy_s=9.5, first_s=1.0, last_s=11.0),
              Usage(frames=100, flops=10**9, busy_s=0.5, first_s=1.0, last_s=2.0)]  # fmt: skip
    monkeypatch.setattr(Runner, "take_usage", lambda _: usages.pop(0))
    shown = []
    for name in ("long", "short"):
        caplog.clear()
        small = {"weights": "random:0", "device": "cpu", "short_side": 32, "crop": 32}
        extract.run(extract.ExtractConfig(out=tmp_path / name, videos=five_videos, **small))
        shown.append([message for message in caplog.messages if "was the bottleneck" in message])
    assert ["I3D was the bottleneck" in message for message in shown[0]] == [True]
    assert shown[1] == []
