"""Stage 3, tokenise: reads annotations and word vectors, leaves moments with tokens and ids, vocabulary and matrix.

moments.jsonl   one moment a line: ids, query, seconds, split, group, source, tokens, token_ids
vocabulary.txt  one word a line; the line's number from 0 is the word's index (0 padding, 1 unknown)
vectors.npy     float32 [V, D], a row for every word of the vocabulary
report.json     counts a split, what was clipped or dropped, words without a vector
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic.dataclasses import dataclass

from excl.datasets import activitynet_captions, charades_sta, jsonl, tacos
from excl.datasets.glove import WordVectors, load_vectors
from excl.datasets.moments import Cleaning, Moment, carve_validation, clean
from excl.datasets.text import UNK, Vocabulary, tokenise
from excl.pipeline.config import STRICT, Fraction01, NonNegativeInt, PositiveInt, existing_file, identity
from excl.pipeline.manifest import Manifest, atomic, sha256_file, single, write_json, write_text

log = logging.getLogger(__name__)

STAGE, CODE_VERSION = "tokenise", 1
MAX_SHARE_WITHOUT_VECTOR = 0.5


@dataclass(frozen=True, config=STRICT)
class Config:
    """Turn annotations into moments with tokens, a vocabulary of the training split, and its word vectors."""

    dataset: Literal["jsonl", "charades-sta", "activitynet-captions", "tacos"]
    """The format of the annotation files. jsonl is for a data set of one's own: one object a line with video_id, query,
    start_s, end_s and, if you like, duration_s, annotation_id, group."""
    train: tuple[Path, ...]
    """Annotation files of the training split."""
    glove: Path
    """Word vectors in GloVe's text format, or a zip with one such file in it."""
    out: Path
    """The folder to write."""
    glove_member: str | None = None
    """Which file of the zip to read, if it has several: glove.6B.300d.txt, for one."""
    val: tuple[Path, ...] = ()
    """Annotation files of the validation split. Without any, --carve-val takes one from the training split."""
    test: tuple[Path, ...] = ()
    """Annotation files of the test split."""
    durations: tuple[Path, ...] = ()
    """Charades-STA only: the files Charades_v1_train.csv and Charades_v1_test.csv, which hold the videos' durations."""
    carve_val: Fraction01 = 0.1
    """Where there is no validation split: the share of training videos, chosen by --seed, that becomes it."""
    seed: NonNegativeInt = 0
    """Of the validation split, and of the rows of words that have no vector."""
    min_count: PositiveInt = 1
    """Words of the training split rarer than this are unknown."""
    max_words: PositiveInt | None = None
    """At most so many words, the most frequent; the paper has 10000 on ActivityNet Captions."""

    def __post_init__(self) -> None:
        if (self.dataset == "charades-sta") != bool(self.durations):
            raise ValueError("durations: needed for charades-sta, and for nothing else")
        if not self.train:
            raise ValueError("train: at least one annotation file is needed, the vocabulary comes from it")


def run(config: Config) -> Path:
    """Tokenise everything, unless it is done. Returns the folder."""
    files = [*config.train, *config.val, *config.test, *config.durations]
    for path in files:
        existing_file(path, what="annotations")
    existing_file(config.glove, what="word vectors")
    made_by = identity(config, run_only=("out",))
    for name in ("train", "val", "test", "durations"):
        made_by[name] = [_named(path) for path in getattr(config, name)]
    made_by["glove"] = _named(config.glove)
    return single(
        config.out,
        stage=STAGE,
        identity=made_by,
        code_version=CODE_VERSION,
        work=lambda manifest: _work(config, manifest),
    )


def _named(path: Path) -> dict[str, str]:
    return {"file": path.name, "sha256": sha256_file(path)}


def load_moments(config: Config) -> list[Moment]:
    """All moments of the files, every split under its name, nothing removed."""
    moments: list[Moment] = []
    for split in ("train", "val", "test"):
        for path in getattr(config, split):
            match config.dataset:
                case "charades-sta":
                    moments += charades_sta.load(path, split=split, durations=config.durations)
                case "activitynet-captions":
                    moments += activitynet_captions.load(path, split=split)
                case "tacos":
                    moments += tacos.load(path, split=split)
                case "jsonl":
                    moments += jsonl.load(path, split=split)
    repeated = [i for i, count in Counter(m.annotation_id for m in moments).items() if count > 1]
    if repeated:
        raise ValueError(f"{len(repeated)} annotation ids stand more than once, {repeated[0]!r} for one")
    return moments


def _work(config: Config, manifest: Manifest) -> dict[str, Any]:
    cleaning = clean(load_moments(config))
    for line in cleaning.lines():
        log.info("%s", line)
    moments = _with_validation(config, cleaning.kept)
    for line in _shared_videos(moments):
        log.warning("%s", line)
    tokens = [_tokens(moment) for moment in moments]
    training = [t for moment, t in zip(moments, tokens, strict=True) if moment.split == "train"]
    vocabulary = Vocabulary.build(training, min_count=config.min_count, max_size=config.max_words)
    vectors = load_vectors(config.glove, vocabulary, seed=config.seed, member=config.glove_member)

    write_text(
        manifest.folder / "moments.jsonl",
        "".join(_line(m, t, vocabulary) for m, t in zip(moments, tokens, strict=True)),
    )
    with atomic(manifest.folder / "vocabulary.txt") as temporary:
        vocabulary.save(temporary)
    with atomic(manifest.folder / "vectors.npy") as temporary, temporary.open("wb") as file:
        np.save(file, vectors.matrix)
    report = _report(moments, tokens, vocabulary, vectors, cleaning)
    write_json(manifest.folder / "report.json", report)
    log.info("%d words, %d of them without a vector in %s", len(vocabulary), report["words_without_vector"], config.glove)
    if report["words_without_vector"] > MAX_SHARE_WITHOUT_VECTOR * len(vocabulary):
        log.warning("most words have no vector; is %s the right file for this language?", config.glove)
    outputs = {name: sha256_file(manifest.folder / name) for name in ("moments.jsonl", "vocabulary.txt", "vectors.npy")}
    return {"splits": report["splits"], "words": len(vocabulary), "sha256": outputs}


def _shared_videos(moments: Sequence[Moment]) -> list[str]:
    """A line for every two splits that have videos in common: what is chosen on one is then not new to the other."""
    videos = {split: {m.video_id for m in moments if m.split == split} for split in ("train", "val", "test")}
    pairs = [(a, b, len(videos[a] & videos[b])) for a, b in itertools.combinations(videos, 2)]
    return [
        f"{count:,} videos are both in {a} and in {b}: what is chosen on the one is not new to the other"
        for a, b, count in pairs
        if count
    ]


def _tokens(moment: Moment) -> list[str]:
    try:
        return tokenise(moment.query)
    except ValueError as error:
        raise ValueError(f"{moment.source}: {error}") from error


def _with_validation(config: Config, moments: Sequence[Moment]) -> list[Moment]:
    if config.val or not config.carve_val:
        return list(moments)
    training = [moment for moment in moments if moment.split == "train"]
    carved = carve_validation(training, fraction=config.carve_val, seed=config.seed)
    log.info("no validation split given: %d of %d training moments moved to one, by whole videos (seed %d)",
             sum(m.split == "val" for m in carved), len(carved), config.seed)  # fmt: skip
    return [*carved, *(moment for moment in moments if moment.split != "train")]


def _line(moment: Moment, tokens: list[str], vocabulary: Vocabulary) -> str:
    value = {**dataclasses.asdict(moment), "tokens": tokens, "token_ids": vocabulary.ids(tokens)}
    return json.dumps(value, ensure_ascii=False) + "\n"


def _report(
    moments: Sequence[Moment],
    tokens: Sequence[Sequence[str]],
    vocabulary: Vocabulary,
    vectors: WordVectors,
    cleaning: Cleaning,
) -> dict[str, Any]:
    splits: dict[str, dict[str, int]] = {}
    for split in dict.fromkeys(moment.split for moment in moments):
        chosen = [(m, vocabulary.ids(t)) for m, t in zip(moments, tokens, strict=True) if m.split == split]
        splits[split] = {
            "videos": len({m.video_id for m, _ in chosen}),
            "moments": len(chosen),
            "tokens": sum(len(ids) for _, ids in chosen),
            "unknown_tokens": sum(ids.count(UNK) for _, ids in chosen),
        }
    without = [word for word, found in zip(vocabulary.words[2:], vectors.found[2:], strict=True) if not found]
    return {
        "splits": splits,
        "clipped": len(cleaning.clipped),
        "dropped": [{"annotation_id": m.annotation_id, "source": m.source, "why": why} for m, why in cleaning.dropped],
        "words": len(vocabulary),
        "words_without_vector": len(without),
        "without_vector": without,
    }
