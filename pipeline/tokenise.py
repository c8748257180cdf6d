"""Stage 3, tokenise: reads annotations and word vectors, leaves moments with tokens and ids, vocabulary and matrix.

moments.jsonl   one moment a line: ids, query, seconds, split, group, source, tokens, token_ids
vocabulary.txt  one word a line; the line's number from 0 is the word's index (0 padding, 1 unknown)
vectors.npy     float32 [V, D], a row for every word of the vocabulary
report.json     what was wrong with the annotations and what became of it, words without a vector, by split
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import logging
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic.dataclasses import dataclass

from excl.datasets.hygiene import Hygiene
from excl.datasets.moments import Moment
from excl.datasets.text import Tokeniser, Vocabulary
from excl.pipeline import annotation_report as reports
from excl.pipeline.annotations import Sources, find_sources
from excl.pipeline.config import STRICT, Fraction01, NonNegativeInt, PositiveInt, identity
from excl.pipeline.durable import atomic, sha256_file, write_json, write_text
from excl.pipeline.manifest import Manifest, single
from excl.pipeline.queries import Queries
from excl.pipeline.word_vectors import identify_known, local_file

log = logging.getLogger(__name__)

STAGE, CODE_VERSION = "tokenise", 2
MAX_SHARE_WITHOUT_VECTOR = 0.5
RUN_ONLY = ("out", "report", "annotations")


@dataclass(frozen=True, config=STRICT)
class Config:
    """Turn annotations into moments with tokens, a vocabulary of the training split, and its word vectors."""

    dataset: str
    """A data set of your own: a file of JSON lines (.jsonl) or a table (.csv, .tsv) with video_id, query, start_s, end_s
    and, if you like, split, duration_s, annotation_id, query_id, group. Or the name of a data set or a format:
    charades-sta, activitynet-captions, tacos (JSON, in frames), tacos-tall, qvhighlights, moment-detr, jsonl, csv."""
    annotations: Path | None = None
    """The folder with the official files of a named data set, under their own names."""
    train: tuple[str, ...] = ()
    """The training split: annotation files; with --annotations parts of the data set, several joined by + (default: the
    official ones)."""
    val: tuple[str, ...] = ()
    """The validation split, likewise. Without any, --carve-val takes one from the training split."""
    test: tuple[str, ...] = ()
    """The test split, likewise: for activitynet-captions val_1 (the default), val_2 or val_1+val_2."""
    durations: tuple[Path, ...] = ()
    """The files with the videos' durations where the annotations have none: Charades_v1_train.csv and Charades_v1_test.csv
    or charades.json for charades-sta, the numbers of frames for tacos-tall (JSON or TALL's pickle)."""
    glove: str | None = None
    """Word vectors: a file in GloVe's text format, a zip with one in it, or 6B or 840B for the published ones, which are
    downloaded on first use."""
    out: Path | None = None
    """The folder to write."""
    report: bool = False
    """Print what is found in the annotations, and write nothing: needs no --out, and without --glove says nothing of it."""
    glove_member: str | None = None
    """Which file of the zip to read, if it has several: glove.6B.300d.txt, for one."""
    glove_cased_fallback: bool = False
    """Where a word has no vector, take that of the same word in other case (glove.840B is cased, queries are not)."""
    hygiene: Hygiene = field(default_factory=Hygiene)
    """What becomes of annotations that are wrong."""
    tokeniser: Tokeniser = "nltk"
    """How queries become words: nltk (words and marks), whitespace, words (letters and digits), no-punctuation."""
    carve_val: Fraction01 = 0.1
    """Where there is no validation split: the share of training videos, chosen by --seed, that becomes it."""
    seed: NonNegativeInt = 0
    """Of the validation split, and of the rows of words that have no vector."""
    min_count: PositiveInt = 1
    """Words of the training split rarer than this are unknown."""
    max_words: PositiveInt | None = None
    """At most so many words, the most frequent; the paper has 10000 on ActivityNet Captions."""

    def __post_init__(self) -> None:
        self.sources()
        if not self.report:
            for name in ("glove", "out"):
                if getattr(self, name) is None:
                    raise ValueError(f"{name}: missing; only --report goes without it")

    def sources(self) -> Sources:
        """The files to read, and as which split."""
        chosen = {"train": self.train, "val": self.val, "test": self.test}
        return find_sources(self.dataset, self.annotations, chosen, self.durations)

    def inputs(self) -> list[Path]:
        """All files that are read, but word vectors that are downloaded."""
        glove = None if self.glove is None else local_file(self.glove)
        return [*self.sources().all_files(), *([] if glove is None else [glove])]


def run(config: Config) -> Path | list[str]:
    """Tokenise everything, unless it is done. Returns the folder; with `report`, the lines of the report and no folder."""
    queries = Queries(config)
    if config.report:
        return reports.lines(queries.report)
    assert config.out is not None
    assert config.glove is not None
    return single(
        config.out,
        stage=STAGE,
        identity=made_by(config, queries),
        code_version=CODE_VERSION,
        work=lambda manifest: _work(config, queries, manifest),
    )


def made_by(config: Config, queries: Queries | None = None) -> dict[str, Any]:
    """What determines the folder."""
    assert config.glove is not None
    sources = config.sources()
    made = identity(config, run_only=RUN_ONLY)
    made["dataset"] = sources.format
    for split in ("train", "val", "test"):
        made[split] = [_named(path) for path in sources.files.get(split, ())]
    if "" in sources.files:
        made["rows_name_their_split"] = _named(sources.files[""][0])
    made["durations"] = [_named(path) for path in sources.durations]
    if config.tokeniser == "nltk":
        made["nltk"] = importlib.metadata.version("nltk")
    known = identify_known(config.glove)
    if known is None:  # then the file is read to its end, once, for this and for the vectors
        known = (queries or Queries(config)).vectors_and_file[1]
    made["glove"] = {"file": known.file, "sha256": known.sha256}
    return made


def _named(path: Path) -> dict[str, str]:
    return {"file": path.name, "sha256": sha256_file(path)}


def _work(config: Config, queries: Queries, manifest: Manifest) -> dict[str, Any]:
    folder, vocabulary, vectors = manifest.folder, queries.vocabulary, queries.vectors_and_file[0]
    write_text(
        folder / "moments.jsonl",
        "".join(_line(m, t, vocabulary) for m, t in zip(queries.moments, queries.tokens, strict=True)),
    )
    with atomic(folder / "vocabulary.txt") as temporary:
        vocabulary.save(temporary)
    with atomic(folder / "vectors.npy") as temporary, temporary.open("wb") as file:
        np.save(file, vectors.matrix)
    write_json(folder / "report.json", queries.report)
    without = queries.report["vectors"]["words_without_vector"]
    if without > MAX_SHARE_WITHOUT_VECTOR * len(vocabulary):
        log.warning("most words have no vector; is %s the right file for this language?", config.glove)
    for line in queries.report["shared_videos"]:
        log.warning("%s", line)
    outputs = {
        name: sha256_file(folder / name) for name in ("moments.jsonl", "vocabulary.txt", "vectors.npy", "report.json")
    }
    about = {
        "dataset": queries.sources.format,
        "splits": queries.made_of,
        "tokeniser": config.tokeniser,
        "hygiene": reports.policies(config.hygiene),
    }
    return {"about": about, "words": len(vocabulary), "sha256": outputs}


def _line(moment: Moment, tokens: Sequence[str], vocabulary: Vocabulary) -> str:
    value = {**dataclasses.asdict(moment), "tokens": tokens, "token_ids": vocabulary.ids(tokens)}
    return json.dumps(value, ensure_ascii=False) + "\n"


def show(result: Path | list[str]) -> str:
    """The report for people."""
    if isinstance(result, Path):
        result = reports.lines(json.loads((result / "report.json").read_text(encoding="utf-8")))
    return "\n".join(result)
