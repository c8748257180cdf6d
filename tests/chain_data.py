"""A small data set in whose features it is plain to see who does what when, up to a training store."""

from __future__ import annotations

import json

import numpy as np
from shared_fixtures import write_video

from excl.models.i3d.row_layout import Continuous
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.store.shard import VideoFeatures, write_shard
from excl.workflows.cli import main

RECIPE = {
    "fps": 5.0,
    "short_side": 32,
    "crop": 32,
    "dtype": "float16",
    "weights": {"source": "random:0", "sha256": "?", "random": True},
}
WORDS = ["the", "cat", "dog", "jumps", "sleeps", "eats"]
MODEL = ["--model.text-hidden", "16", "--model.video-hidden", "16", "--model.predictor-hidden", "16"]
MODEL += ["--model.mlp-hidden", "16", "--model.dropout", "0.1"]

# The command, with a line for every step of training, at which whoever reads it may kill it.
KILLED_RUN = """
import sys
from excl.pipeline.training import trainer
from excl.workflows.cli import main
original = trainer.span_loss
def counted(*arguments):
    print("step", flush=True)
    return original(*arguments)
trainer.span_loss = counted
sys.exit(main(sys.argv[1:]))
"""


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make(folder):
    """Features of 23 of 24 videos, the annotations, and word vectors."""
    generator = np.random.default_rng(0)
    rows: dict[str, list] = {"train": [], "val": [], "test": []}
    videos = []
    for number in range(24):
        split = "train" if number < 14 else "val" if number < 18 else "test"
        start_s, end_s = Continuous().row_times(80, fps=5.0, duration_s=16.0)  # 9 rows
        values = 0.1 * generator.standard_normal((9, 8))
        cut = int(generator.integers(2, 7))
        for animal, span in (("cat", slice(0, cut)), ("dog", slice(cut, 9))):
            values[span, WORDS.index(animal)] += 3
            where = {"start_s": float(start_s[span][0]), "end_s": float(end_s[span][-1])}
            row = {"video_id": f"v{number:02d}", "query": f"The {animal} jumps.", "group": animal, **where}
            rows[split].append({**row, "duration_s": 16.0})
        if number != 23:  # the last video could not be had
            videos.append(VideoFeatures(f"v{number:02d}", values.astype(np.float16), start_s, end_s, {}))
    rows["train"].append({"video_id": "v00", "query": "the cat", "start_s": 5, "end_s": 5, "duration_s": 16.0})
    for split, lines in rows.items():
        jsonl(folder / f"{split}.jsonl", lines)
    vectors = [word + " " + " ".join(f"{x:.4f}" for x in generator.standard_normal(10)) for word in (*WORDS, ".", "bird")]
    (folder / "vectors.txt").write_text("\n".join(vectors) + "\n")
    with Manifest.open(folder / "features", stage="extract", identity=RECIPE, code_version=1) as manifest:
        write_shard(folder / "features" / "all.h5", videos, recipe=RECIPE)
        manifest.add({"id": "shard/all.h5", "file": "all.h5", "videos": [v.video_id for v in videos]})
    return folder


def tokenise_arguments(made, out):
    files = [x for split in ("train", "val", "test") for x in (f"--{split}", str(made / f"{split}.jsonl"))]
    return ["tokenise", "--dataset", "jsonl", *files, "--glove", str(made / "vectors.txt"), "--out", str(out)]


def pack(made, folder):
    """The training store FOLDER/store of what was made."""
    assert main(tokenise_arguments(made, folder / "queries")) == 0
    arguments = ["--features", str(made / "features"), "--queries", str(folder / "queries"), "--out", str(folder / "store")]
    assert main(["pack", *arguments, "--shard-videos", "10"]) == 0
    return folder


def train_arguments(packed, out, *more):
    return ["train", "--store", str(packed / "store"), "--out", str(out), *MODEL, "--epochs", "25", "--patience", "25",
            "--batch-size", "8", "--learning-rate", "0.01", "--device", "cpu", *more]  # fmt: skip


def make_from_raw_videos(folder, *, more_vectors=""):
    """A tiny chain from raw videos on, for what needs features that can be made again: recipe mine.toml, run."""
    (folder / "videos").mkdir()
    for number in range(4):
        write_video(folder / "videos" / f"r{number}.mp4", [i * 40 for i in range(150)], rate=25, width=64, height=48)
    rows = [{"video_id": f"r{n}", "query": "it starts", "start_s": 0, "end_s": 2.4} for n in range(4)]
    jsonl(folder / "train.jsonl", rows[:2])
    jsonl(folder / "val.jsonl", rows[2:])
    (folder / "vectors.txt").write_text("it 0.1 0.2\nstarts 0.3 0.4\n" + more_vectors)
    recipe = """
        [extract]
        videos = "videos"
        out = "features"
        weights = "random:0"
        short_side = 32
        crop = 32
        device = "cpu"
        [tokenise]
        dataset = "jsonl"
        train = ["train.jsonl"]
        val = ["val.jsonl"]
        glove = "vectors.txt"
        out = "queries"
        [pack]
        features = "features"
        queries = "queries"
        out = "store"
        [train]
        store = "store"
        out = "run"
        epochs = 2
        device = "cpu"
        model = {text_hidden = 4, video_hidden = 4, predictor_hidden = 4, mlp_hidden = 4}
    """
    (folder / "mine.toml").write_text(recipe)
    assert main(["run", str(folder / "mine.toml")]) == 0
    return folder
