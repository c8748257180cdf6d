"""Stage 3, tokenise: reads annotations and word vectors, leaves moments with tokens and ids, vocabulary and matrix.

moments.jsonl   one moment a line: ids, query, seconds, split, group, source, tokens, token_ids
vocabulary.txt  one word a line; the line's number from 0 is the word's index (0 padding, 1 unknown)
vectors.npy     float32 [V, D], a row for every word of the vocabulary
unseen_words.txt, unseen_vectors.npy
                words of the queries that the vocabulary lacks and the vectors' file has, after the two specials, and their
                vectors, float32 [U, D]: for answers, never for training; not with --unseen-words unk
report.json     what was wrong with the annotations and what became of it, words without a vector, by split
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from excl.datasets.annotations.moments import Moment
from excl.datasets.text.vocabulary import Vocabulary
from excl.pipeline.artifacts.atomic_files import atomic_write, sha256_file, write_json, write_text
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.artifacts.run_once import run_once
from excl.pipeline.config import identity
from excl.pipeline.queries import tokenise_report
from excl.pipeline.queries.config import TokeniseConfig
from excl.pipeline.queries.preparation import QueryPreparation
from excl.pipeline.queries.word_vectors import identify, text_of

log = logging.getLogger(__name__)

STAGE, CODE_VERSION = "tokenise", 2
UNSEEN_WORDS, UNSEEN_VECTORS = "unseen_words.txt", "unseen_vectors.npy"
MAX_SHARE_WITHOUT_VECTOR = 0.5


def run(config: TokeniseConfig) -> Path | list[str]:
    """Tokenise everything, unless it is done. Return the folder; with `report`, the lines of the report and no folder."""
    queries = QueryPreparation(config)
    if config.report:
        return tokenise_report.lines(queries.report)
    assert config.out is not None
    assert config.glove is not None
    return run_once(
        config.out,
        stage=STAGE,
        identity=made_by(config),
        code_version=CODE_VERSION,
        build=lambda manifest: _work(config, queries, manifest),
    )


def made_by(config: TokeniseConfig) -> dict[str, Any]:
    """Return what determines the results in the folder."""
    assert config.glove is not None
    sources = config.sources()
    values = identity(config)
    values["dataset"] = sources.format
    for split in ("train", "val", "test"):
        values[split] = [_named(path) for path in sources.files.get(split, ())]
    if "" in sources.files:
        values["rows_name_their_split"] = _named(sources.files[""][0])
    values["durations"] = [_named(path) for path in sources.durations]
    if config.tokeniser == "nltk":
        values["nltk"] = importlib.metadata.version("nltk")
    glove = identify(config.glove)
    values["glove"] = {"file": glove.file, "sha256": glove.sha256}
    return values


def _named(path: Path) -> dict[str, str]:
    return {"file": path.name, "sha256": sha256_file(path)}


def _work(config: TokeniseConfig, queries: QueryPreparation, manifest: Manifest) -> dict[str, Any]:
    assert config.glove is not None
    folder, vocabulary, vectors = manifest.folder, queries.vocabulary, queries.vectors_and_file[0]
    write_text(
        folder / "moments.jsonl",
        "".join(_line(m, t, vocabulary) for m, t in zip(queries.moments, queries.tokens, strict=True)),
    )
    with atomic_write(folder / "vocabulary.txt") as temporary:
        vocabulary.save(temporary)
    with atomic_write(folder / "vectors.npy") as temporary, temporary.open("wb") as file:
        np.save(file, vectors.matrix)
    names = ["moments.jsonl", "vocabulary.txt", "vectors.npy", "report.json"]
    if config.unseen_words == "vector":
        unseen, unseen_vectors = queries.unseen
        with atomic_write(folder / UNSEEN_WORDS) as temporary:
            unseen.save(temporary)
        with atomic_write(folder / UNSEEN_VECTORS) as temporary, temporary.open("wb") as file:
            np.save(file, unseen_vectors)
        names += [UNSEEN_WORDS, UNSEEN_VECTORS]
    write_json(folder / "report.json", queries.report)
    without = queries.report["vectors"]["words_without_vector"]
    if without > MAX_SHARE_WITHOUT_VECTOR * len(vocabulary):
        log.warning("most words have no vector; is %s the right file for this language?", config.glove)
    for line in queries.report["shared_videos"]:
        log.warning("%s", line)
    outputs = {name: sha256_file(folder / name) for name in names}
    summary = {
        "dataset": queries.sources.format,
        "splits": queries.made_of,
        "tokeniser": config.tokeniser,
        "hygiene": tokenise_report.policies(config.hygiene),
        "unseen_words": config.unseen_words,
        "glove": {
            **{name: queries.report["vectors"][name] for name in ("file", "sha256", "known")},
            "member": text_of(config.glove, config.glove_member),
            "cased_fallback": config.glove_cased_fallback,
        },
    }
    return {"about": summary, "words": len(vocabulary), "sha256": outputs}


def _line(moment: Moment, tokens: Sequence[str], vocabulary: Vocabulary) -> str:
    value = {**vars(moment), "tokens": tokens, "token_ids": vocabulary.ids(tokens)}
    return json.dumps(value, ensure_ascii=False) + "\n"


def show(result: Path | list[str]) -> str:
    """Return the report for people."""
    if isinstance(result, Path):
        result = tokenise_report.lines(json.loads((result / "report.json").read_text(encoding="utf-8")))
    return "\n".join(result)
