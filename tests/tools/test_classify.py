"""What I3D sees in a video, and the published check of its weights, by numbers computed otherwise."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from shared_fixtures import write_video

from excl.datasets.video.geometry import Geometry
from excl.datasets.video.pyav_backend import PyAVVideo
from excl.datasets.video.sampling import Sampling
from excl.models.i3d.weight_catalogue import class_names, git_blob_id
from excl.models.i3d.weights import load_weights
from excl.pipeline.tools import verify_weights
from excl.workflows.cli import main

pytestmark = pytest.mark.usefixtures("one_thread", "decoded_here")
SMALL = ["--weights", "random:0", "--short-side", "32", "--crop", "32"]


@pytest.fixture
def video(tmp_path):
    return write_video(tmp_path / "v.mp4", [i * 40 for i in range(64)], rate=25, width=64, height=48)


def mean_logits(x):
    with torch.inference_mode():
        return load_weights("random:0").network().logits(x)[0].mean(dim=0).numpy()


def test_the_most_probable_classes(video, capsys):
    assert main(["classify", str(video), *SMALL, "--top", "3", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    frames = np.stack(list(PyAVVideo(video, Sampling(25, Geometry(32, 32)))))
    assert shown["num_frames"] == len(frames) == 64  # no padding
    logits = mean_logits(torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1)
    best = np.argsort(-logits)[:3]
    assert [one["number"] for one in shown["top"]] == best.tolist()
    np.testing.assert_allclose([one["logit"] for one in shown["top"]], logits[best], rtol=1e-4)
    probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    np.testing.assert_allclose([one["probability"] for one in shown["top"]], probabilities[best], rtol=1e-3)
    assert shown["random"] is True
    assert main(["classify", str(video), *SMALL]) == 0
    text = capsys.readouterr().out
    assert "64 frames, 25 a second over 2.6 s, weights random:0" in text
    assert "RANDOM" in text
    assert main(["classify", str(video.with_name("none.mp4")), *SMALL]) == 2


@pytest.fixture
def clip(tmp_path, monkeypatch):
    """A clip of noise in the place of the published one, with the scores that random:0 has for it."""
    frames = np.random.default_rng(0).uniform(-1, 1, (1, 31, 32, 32, 3)).astype(np.float32)
    path = tmp_path / "clip.npy"
    np.save(path, frames)
    logits = mean_logits(torch.from_numpy(frames[0]).permute(3, 0, 1, 2)[None])
    best = np.argsort(-logits)[:20]
    names = class_names("kinetics")
    monkeypatch.setattr(verify_weights, "CLIP_SHAPE", frames.shape[1:])
    monkeypatch.setattr(verify_weights, "CLIP_BLOB_ID", git_blob_id(path))
    monkeypatch.setattr(verify_weights, "LOGITS", {names[i]: float(logits[i]) for i in best})
    monkeypatch.setattr(verify_weights, "LOGITS_NORM", float(np.linalg.norm(logits)))
    return path


def test_weights_that_give_the_published_scores_pass_and_others_do_not(clip, capsys):
    assert main(["verify-weights", "--weights", "random:0", "--clip", str(clip)]) == 0
    assert "largest difference of the twenty 0.0000: as published" in capsys.readouterr().out
    assert main(["verify-weights", "--weights", "random:1", "--clip", str(clip)]) == 3
    assert "NOT as published" in capsys.readouterr().out


def test_what_cannot_be_checked_is_said(clip, tmp_path, capsys, caplog):
    assert main(["verify-weights", "--weights", "random:0"]) == 0
    assert "The clip is not at hand: https://" in capsys.readouterr().out
    np.save(tmp_path / "other.npy", np.zeros((31, 32, 32, 3), np.float32))
    assert main(["verify-weights", "--weights", "random:0", "--clip", str(tmp_path / "other.npy")]) == 2
    assert "other.npy: not the published clip" in caplog.text
    state = dict(load_weights("random:0").state_dict)
    state["logits.conv3d.weight"], state["logits.conv3d.bias"] = torch.zeros(51, 1024, 1, 1, 1), torch.zeros(51)
    torch.save(state, tmp_path / "c51.pt")
    assert main(["verify-weights", "--weights", str(tmp_path / "c51.pt"), "--clip", str(clip)]) == 2
    assert "has 51 classes" in caplog.text


def test_the_published_scores_are_of_kinetics_classes():
    assert set(verify_weights.LOGITS) < set(class_names("kinetics"))
    assert list(verify_weights.LOGITS.values()) == sorted(verify_weights.LOGITS.values(), reverse=True)
    # Their softmax, in which the other 380 classes weigh nothing, is what was published for the first one.
    logits = np.array(list(verify_weights.LOGITS.values()))
    assert 1 / np.exp(logits - logits[0]).sum() == pytest.approx(0.9999968, abs=1e-6)


def test_a_clip_as_a_video(make_video, capsys):
    clip = make_video("clip.mp4", [i * 40 for i in range(12)], rate=25, width=64, height=48)
    code = main(["verify-weights", "--weights", "random:0", "--clip", str(clip)])
    assert code == 3
    assert "is NOT 'playing cricket'" in capsys.readouterr().out
