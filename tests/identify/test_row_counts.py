"""What row counts and durations alone say: thirty recipes on official durations, and what limits counts."""

from __future__ import annotations

import csv
import functools
import json
import re
from dataclasses import dataclass
from math import ceil, floor
from pathlib import Path

import h5py
import numpy as np
import pytest
from shared_fixtures import SHARED

from excl.pipeline.identify.row_fit import Counted, fit_rows
from excl.pipeline.identify.row_rules import row_rules
from excl.workflows.cli import main

ROOT = SHARED / "annotations"
needs_official_files = pytest.mark.skipif(not ROOT.is_dir(), reason=f"the official annotation files are not at {ROOT}")


@functools.cache
def official(name):
    """Durations in seconds by video."""
    if name == "charades":
        files = [ROOT / "charades" / f"Charades_v1_{split}.csv" for split in ("train", "test")]
        return {row["id"]: float(row["length"]) for file in files for row in csv.DictReader(file.open())}
    folder, files = {
        "activitynet": ("activitynet", ["train.json"]),
        "tacos": ("tacos", ["train.json", "val.json", "test.json"]),
    }[name]
    entries = {k: v for file in files for k, v in json.loads((ROOT / folder / file).read_text()).items()}
    return {k: v.get("duration") or v["num_frames"] / v["fps"] for k, v in entries.items()}


@dataclass(frozen=True)
class Made:
    """A recipe; `rows` counts what it makes of so many frames, by a loop."""

    data: str
    fps: float | None
    window: int
    hop: int
    end: str = "drop"
    each: int = 1
    counting: object = round
    limit: int = 0

    def rows(self, frames):
        if self.window == 0:
            return max(1, ceil(frames / 8) - 1)
        count = start = 0
        while start + self.window <= frames:
            count, start = count + 1, start + self.hop
        if (self.end == "cover" and (count == 0 or start - self.hop + self.window < frames)) or count == 0:
            count += 1
        elif self.end == "every":
            count = len(range(0, frames, self.hop))
        return count * self.each


RECIPES = [
    Made("charades", 5, 0, 8), Made("charades", 24, 0, 8), Made("charades", 25, 16, 16), Made("charades", 16, 0, 8),
    Made("charades", 24, 24, 24, each=2, end="every"), Made("charades", 24, 24, 24), Made("charades", 30, 16, 16),
    Made("charades", 25, 64, 64, end="cover"), Made("charades", 24, 16, 16, end="cover", counting=floor),
    Made("charades", 25, 16, 8), Made("charades", 30, 32, 16, end="cover"), Made("charades", 8, 16, 16, end="every"),
    Made("charades", 10, 16, 4), Made("charades", 25, 64, 8, counting=ceil),
    Made("activitynet", 5, 0, 8, counting=ceil), Made("activitynet", 25, 16, 16), Made("activitynet", 16, 16, 16),
    Made("activitynet", 30, 64, 64), Made("activitynet", 15, 32, 32, end="cover"), Made("activitynet", 25, 32, 16),
    Made("activitynet", 24, 48, 48), Made("activitynet", 12, 24, 24), Made("activitynet", 5, 16, 16, limit=40),
    Made("activitynet", None, 16, 16, end="every"), Made("activitynet", None, 64, 64),
    Made("tacos", 29.4, 16, 16, end="every"), Made("tacos", 5, 0, 8), Made("tacos", 25, 16, 16), Made("tacos", 30, 0, 8),
    Made("tacos", 29.4, 64, 32),
]  # fmt: skip


def write_features(path, counts):
    with h5py.File(path.with_suffix(".h5"), "w") as file:
        for name, rows in counts.items():
            file[name] = np.full((rows, 2), 0.5, np.float32)
    return path.with_suffix(".h5")


def made_counts(recipe, durations):
    rng = np.random.default_rng(7)
    natives = dict(
        zip(
            durations,
            rng.choice([30.0, 29.97, 25.0, 24.0, 15.0], len(durations), p=[0.4, 0.3, 0.2, 0.06, 0.04]),
            strict=True,
        )
    )
    counts = {}
    for name, seconds in durations.items():
        fps = recipe.fps or natives[name]
        counts[name] = recipe.rows(max(1, recipe.counting(seconds * fps + 1e-9)))
    return {name: min(rows, recipe.limit) if recipe.limit else rows for name, rows in counts.items()}


def table(path, durations):
    path.write_text(json.dumps(durations))
    return path


@needs_official_files
def test_rate_window_and_hop_are_among_the_first_three_by_counts_alone():
    """At least 25 of 30."""
    assert len(RECIPES) == 30
    missed = []
    for recipe in RECIPES:
        durations = dict(list(official(recipe.data).items())[:800])
        counts = np.array(list(made_counts(recipe, durations).values()))
        seconds, unknown = np.array(list(durations.values())), np.full(len(durations), np.nan)
        fit = fit_rows(Counted(tuple(durations), counts, seconds, unknown, np.full(len(durations), -1)))
        first = [(c.fps, c.rule.window, c.rule.hop, c.rule.rows) for c in fit.candidates[:3]]
        if (recipe.fps, recipe.window, recipe.hop, recipe.each) not in first:
            missed.append((recipe, first))
        if recipe.limit:
            assert (fit.kind, fit.limit) == ("capped", recipe.limit)
    assert len(RECIPES) - len(missed) >= 25, missed


@needs_official_files
def test_official_files_are_read_as_they_are(tmp_path, capsys):
    durations = official("tacos")
    counts = {name.removesuffix(".avi"): -(-round(seconds * 29.4) // 16) for name, seconds in durations.items()}
    features = write_features(tmp_path / "a.h5", counts)
    files = [str(ROOT / "tacos" / f"{split}.json") for split in ("train", "val", "test")]
    assert main(["identify", str(features), "--durations", *files]) == 0
    shown = capsys.readouterr().out
    assert "By the row counts: the video's own rate, windows of 16 every 16" in shown  # vslnet-tacos
    assert "preset vslnet-tacos" in shown


DURATIONS = {f"v{i}": 10 + 3.7 * i for i in range(12)}


def test_fixed_lengths_tails_of_zeros_and_traits(tmp_path, capsys):
    fixed = write_features(tmp_path / "fixed.h5", dict.fromkeys(DURATIONS, 64))
    report = tmp_path / "report.json"
    assert (
        main(["identify", str(fixed), "--durations", str(table(tmp_path / "d.json", DURATIONS)), "--json", str(report)]) == 0
    )
    assert "every video has 64 rows whatever its duration" in capsys.readouterr().out
    assert json.loads(report.read_text())["rows"]["kind"] == "fixed"

    rng = np.random.default_rng(0)
    arrays = {}
    for name, seconds in DURATIONS.items():
        rows = rng.standard_normal((floor(round(25 * seconds) / 16), 2048)).astype(np.float16).astype(np.float32)
        arrays[name] = np.concatenate([rows, np.zeros((100 - len(rows), 2048), np.float32)])
    np.savez(tmp_path / "padded.npz", **arrays)
    assert main(["identify", str(tmp_path / "padded.npz"), "--durations", str(tmp_path / "d.json")]) == 0
    shown = capsys.readouterr().out
    for sentence in (
        "RGB and flow side by side",
        "float32, all of them values of float16",
        "there are negative values",
        "100% of the videos end in rows of zeros",
        "12/12  25 frames a second, windows of 16 every 16, an unfinished last one dropped",
        "excl import",
    ):
        assert sentence in shown


def test_seconds_of_rows_follow_from_the_recipe(tmp_path):
    counts = {name: floor(round(25 * seconds) / 16) for name, seconds in DURATIONS.items()}
    features = write_features(tmp_path / "a.h5", counts)
    report = tmp_path / "report.json"
    flags = ["--durations", str(table(tmp_path / "d.json", DURATIONS)), "--json", str(report)]
    assert main(["identify", str(features), *flags]) == 0
    result = json.loads(report.read_text())
    assert {(c["fps"], c["window"], c["hop"]) for c in result["rows"]["candidates"][:3]} >= {(25, 16, 16)}
    if (result["rows"]["candidates"][0]["fps"], result["rows"]["candidates"][0]["hop"]) == (25, 16):
        np.testing.assert_allclose(result["row_seconds"]["v3"][2], [2 * 0.64, 3 * 0.64])
    assert [len(result["row_seconds"][name]) for name in DURATIONS] == list(counts.values())


@pytest.fixture
def few_files(tmp_path, monkeypatch):
    """A folder to work in, with features of one video, its duration, and the duration of another video."""
    monkeypatch.chdir(tmp_path)
    write_features(Path("a.h5"), {"v1": 3})
    table(Path("d.json"), {"v1": 10.0})
    table(Path("other.json"), {"w1": 10.0})


@pytest.mark.usefixtures("few_files")
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give --durations or --videos"),
        (["--durations", "d.json", "--weights", "random:0"], "give --videos, too"),
        (["--durations", "none.json"], "none.json"),
        (["--durations", "other.json"], "no video of A is in B"),
    ],
)
def test_bad_input_is_said_in_a_sentence(flags, message, capsys, caplog):
    try:
        code = main(["identify", "a.h5", *flags])
    except SystemExit as ended:  # of flags that do not go together
        code = ended.code
    assert code in (1, 2)
    assert message in re.sub(r"[\s│]+", " ", capsys.readouterr().err) + caplog.text


def test_no_count_is_farther_from_the_rows_a_frame_than_the_slack():
    """The fit leaves out rules by this bound, so a count beyond it would be a recipe that is never tried."""
    frames = np.unique(np.geomspace(1, 30_000, 400).astype(np.int64))
    for rule, _ in row_rules():
        assert np.abs(rule.num_rows(frames) - frames * rule.rows_a_frame).max() <= rule.slack, rule
