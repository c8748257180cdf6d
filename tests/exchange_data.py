"""Small training stores of known content, in the form of each data set that other trainers know."""

from __future__ import annotations

import json

import numpy as np

from excl.models.i3d.row_layout import Continuous
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.store.shard import VideoFeatures, write_shard
from excl.workflows.cli import main

DIM = 16
FPS = 5.0
RECIPE = {
    "fps": FPS,
    "rows": Continuous().to_json(),
    "dtype": "float16",
    "weights": {"source": "random:0", "sha256": "?", "random": True},
    "code_versions": {},
}
IDS = {
    "charades-sta": ["AO8RW", "0IH69", "3MSZA", "46GP8", "N11GT"],
    "activitynet-captions": ["v_QOlSCBRmfWY", "v_-abc_DEF", "v_a1", "v_b2", "v_c3"],
    "tacos": ["s17-d69", "s13-d21", "s27-d50", "s14-d27", "s30-d41"],
}
SENTENCES = ["a person is putting a book on a shelf.", "The person, then, sits; down", "someone opens the door", "a cat."]
FRAMES = (37, 80, 122, 201, 19)  # of the videos: 4, 9, 15, 25 and 2 rows
TACOS_FPS = 29.4


def video(video_id, num_frames, *, dim=DIM, dtype=np.float16, fps=FPS) -> VideoFeatures:
    """Rows of a video of so many frames, with the times that `extract` would give them, and random values."""
    duration_s = num_frames / fps - 0.05
    start_s, end_s = Continuous().row_times(num_frames, fps=fps, duration_s=duration_s)
    values = np.random.default_rng(num_frames).standard_normal((len(start_s), dim)).astype(dtype)
    facts = {"num_frames": num_frames, "fps": fps, "duration_s": duration_s}
    return VideoFeatures(video_id, values, start_s, end_s, facts)


def features(folder, videos, *, recipe=RECIPE):
    """A feature store as `extract` leaves it."""
    with Manifest.open(folder, stage="extract", identity=recipe, code_version=1) as manifest:
        write_shard(folder / "all.h5", videos, recipe=recipe)
        manifest.add({"id": "shard/all.h5", "file": "all.h5", "videos": [v.video_id for v in videos]})
    return folder


def moments(number, num_frames):
    """Two moments of the video with that number, in seconds (whole frames of TACoS)."""
    length = int((num_frames / FPS - 0.05) * TACOS_FPS)
    spans = [(0, length // 3), (length // 4 + number, length - 1)]
    return [(start / TACOS_FPS, end / TACOS_FPS) for start, end in spans]


def annotate(folder, dataset, ids):
    """The official files of a data set, for the arguments of `tokenise`: three videos train, one val (if any), one test."""
    folder.mkdir(parents=True)
    splits = {"train": ids[:3], "val": ids[3:4], "test": ids[4:]}
    number_of = {video_id: number for number, video_id in enumerate(ids)}
    for split, members in splits.items():
        found = {}
        for video_id in members:
            number = number_of[video_id]
            frames = FRAMES[number % len(FRAMES)]
            spans = moments(number, frames)
            said = [SENTENCES[(number + k) % len(SENTENCES)] for k in range(2)]
            found[video_id] = (frames / FPS - 0.05, spans, said)
        _write(folder, dataset, split, found)
    durations = ["--durations", str(folder / "all.csv")] if dataset == "charades-sta" else []
    if durations:
        lines = [f"{i},{FRAMES[n % len(FRAMES)] / FPS - 0.05!r}" for i, n in number_of.items()]
        (folder / "all.csv").write_text("\n".join(["id,length", *lines]) + "\n")
    files = [x for split in splits for x in (f"--{split}", str(folder / _file(dataset, split)))]
    return ["--dataset", dataset, *files, *durations]


def _file(dataset, split):
    return f"charades_sta_{split}.txt" if dataset == "charades-sta" else f"{split}.json"


def _write(folder, dataset, split, found):
    path = folder / _file(dataset, split)
    match dataset:
        case "charades-sta":
            lines = [
                f"{i} {s!r} {e!r}##{q}\n"
                for i, (_, spans, said) in found.items()
                for (s, e), q in zip(spans, said, strict=True)
            ]
            path.write_text("".join(lines))
        case "tacos":
            value = {
                f"{i}.avi": {
                    "timestamps": [[round(s * TACOS_FPS), round(e * TACOS_FPS)] for s, e in spans],
                    "fps": TACOS_FPS,
                    "num_frames": round(duration_s * TACOS_FPS),
                    "sentences": said,
                }
                for i, (duration_s, spans, said) in found.items()
            }
            path.write_text(json.dumps(value))
        case _:
            value = {
                i: {"duration": duration_s, "timestamps": [list(span) for span in spans], "sentences": said}
                for i, (duration_s, spans, said) in found.items()
            }
            path.write_text(json.dumps(value))


def packed(folder, dataset, *, ids=None, videos=None):
    """A training store of that data set; `videos` are those with features (default: all)."""
    ids = ids or IDS[dataset]
    videos = videos or [video(video_id, FRAMES[n % len(FRAMES)]) for n, video_id in enumerate(ids)]
    arguments = annotate(folder / "annotations", dataset, ids)
    words = sorted({"a", "the", "person", "book", "cat", "door", "opens", ".", "shelf"})
    generator = np.random.default_rng(1)
    lines = [word + " " + " ".join(f"{x:.4f}" for x in generator.standard_normal(12)) for word in words]
    (folder / "words.txt").write_text("\n".join(lines) + "\n")
    features(folder / "features", videos)
    assert main(["tokenise", *arguments, "--glove", str(folder / "words.txt"), "--out", str(folder / "queries")]) == 0
    packing = ["--features", str(folder / "features"), "--queries", str(folder / "queries"), "--out", str(folder / "store")]
    assert main(["pack", *packing]) == 0
    return folder / "store"
