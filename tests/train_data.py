"""Small training stores, in which it is plain to see who does what when, for the tests of training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from excl.models.i3d.row_layout import Continuous
from excl.pipeline import pack, tokenise
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.config import parse_section
from excl.pipeline.store.shard import VideoFeatures, write_shard

RECIPE = {"fps": 5.0, "dtype": "float16", "weights": {"source": "random:0", "sha256": "?", "random": True}}
WORDS = ("the", "cat", "dog", "jumps", "sleeps", "bird", ".")
SIZE = 8
SIZES = [f"--model.{part}" for part in ("text-hidden", "video-hidden", "predictor-hidden", "mlp-hidden")]
SMALL = [argument for flag in SIZES for argument in (flag, "8")]


def make_store(
    folder: Path,
    *,
    verb: str = "jumps",
    animals: tuple[str, str] = ("cat", "dog"),
    num_videos: int = 14,
    seed: int = 0,
    recipe: dict | None = None,
    vectors: dict[str, list[float]] | None = None,
    tokeniser: str = "nltk",
) -> Path:
    """A store of videos of 5 to 12 rows in which one animal is followed by the other; half are for training."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    rows: dict[str, list] = {"train": [], "val": [], "test": []}
    videos = []
    for number in range(num_videos):
        num_rows = int(generator.integers(5, 13))
        duration_s = (8 * num_rows + 8) / 5
        start_s, end_s = Continuous().row_times(8 * num_rows + 8, fps=5.0, duration_s=duration_s)
        values = 0.1 * generator.standard_normal((len(start_s), SIZE))
        cut = int(generator.integers(2, len(start_s) - 1))
        split = ("train", "val", "train", "test")[number % 4]
        for animal, span in zip(animals, (slice(0, cut), slice(cut, None)), strict=True):
            values[span, WORDS.index(animal)] += 3
            where = {"start_s": float(start_s[span][0]), "end_s": float(end_s[span][-1]), "duration_s": duration_s}
            rows[split].append({"video_id": f"v{number:02d}", "query": f"The {animal} {verb}.", **where})
        videos.append(VideoFeatures(f"v{number:02d}", values.astype(np.float16), start_s, end_s, {}))
    for split, lines in rows.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "vectors.txt").write_text(vector_lines(vectors or {}))
    with Manifest.open(folder / "features", stage="extract", identity=recipe or RECIPE, code_version=1) as manifest:
        write_shard(folder / "features" / "all.h5", videos, recipe=recipe or RECIPE)
        manifest.add({"id": "shard/all.h5", "file": "all.h5", "videos": [v.video_id for v in videos]})
    settings = {split: [str(folder / f"{split}.jsonl")] for split in rows} | {
        "dataset": "jsonl",
        "glove": str(folder / "vectors.txt"),
        "out": str(folder / "queries"),
        "tokeniser": tokeniser,
    }
    tokenise.run(parse_section(tokenise.TokeniseConfig, settings, where="settings"))
    return pack.run(pack.PackConfig(features=folder / "features", queries=folder / "queries", out=folder / "store"))


def vector_lines(others: dict[str, list[float]]) -> str:
    """Word vectors in GloVe's format, the same for every word every time but for the others."""
    vectors = {word: np.random.default_rng(n).standard_normal(6).round(3).tolist() for n, word in enumerate(WORDS)} | others
    return "".join(f"{word} {' '.join(map(str, vector))}\n" for word, vector in vectors.items())


def arguments(store: Path, out: Path, *more: str) -> list[str]:
    """A short training of a small model by the command."""
    return ["train", "--store", str(store), "--out", str(out), *SMALL, "--epochs", "10", "--patience", "10",
            "--batch-size", "4", "--learning-rate", "0.01", "--device", "cpu", *more]  # fmt: skip
