"""Training stores: feature stores that also have queries about their videos, a vocabulary and word vectors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from excl.datasets.text.vocabulary import UnseenWords, Vocabulary
from excl.pipeline.artifacts.atomic_files import sha256_file
from excl.pipeline.artifacts.manifest import COMPLETE
from excl.pipeline.store.feature_store import FeatureStore


@dataclass(frozen=True)
class Query:
    """A moment as training stores keep it: `duration_s` is the video's by its annotations, None if it is unknown."""

    annotation_id: str
    video_id: str
    query: str
    start_s: float
    end_s: float
    duration_s: float | None
    split: str
    group: str
    tokens: tuple[str, ...]
    token_ids: tuple[int, ...]
    query_id: str = ""
    """The id that alternative answers to one query share; empty if the query has one answer."""

    @property
    def key(self) -> str:
        """The key that all answers to one query share, and those to no other query."""
        return self.query_id or f"annotation {self.annotation_id}"

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Query:
        """Return the query in a JSON object with these keys; others are ignored."""
        values = {name: row[name] for name in cls.__dataclass_fields__}
        return cls(**{**values, "tokens": tuple(values["tokens"]), "token_ids": tuple(values["token_ids"])})

    def to_json(self) -> dict[str, Any]:
        """Return the query as JSON values."""
        return {**vars(self)}  # whose values are plain: `asdict` takes a hundred times as long to copy them


class TrainingStore(FeatureStore):
    """A store that `excl pack` wrote: features, and the queries about them with their vocabulary and word vectors."""

    def __init__(self, path: Path | str) -> None:
        super().__init__(path)
        if self.manifest.header["stage"] != "pack" or not self.manifest.is_complete:
            raise ValueError(f"{self.path}: not a finished training store; `excl pack` writes one")

    def queries(self, split: str) -> list[Query]:
        """Return the queries of a split, those without features last; ValueError, which names the splits, if it is empty."""
        queries = self.all_queries()
        chosen = [query for query in queries if query.split == split]
        if not chosen:
            raise ValueError(f"{self.path}: no queries of a split {split!r}; it has {sorted({q.split for q in queries})}")
        return chosen

    def all_queries(self) -> list[Query]:
        """Return the queries of all splits, those without features last."""
        rows = [row for shard in self.shards() for row in shard.queries()]
        with self._own("uncovered.jsonl").open(encoding="utf-8") as file:
            rows += [json.loads(line) for line in file]
        return [Query.from_json(row) for row in rows]

    def queries_about(self, video_id: str) -> list[Query]:
        """Return the queries about one video, of all splits, by their starts; reads no other shard. KeyError without it."""
        shard, _ = self._find(video_id)
        queries = (Query.from_json(row) for row in shard.queries() if row["video_id"] == video_id)
        return sorted(queries, key=lambda query: query.start_s)

    @property
    def about_queries(self) -> dict[str, Any]:
        """The facts about the queries: their data set, the files of its splits, the tokeniser, the cleaning policies."""
        return self.manifest.header["identity"]["about_queries"]

    @property
    def vocabulary(self) -> Vocabulary:
        """The words of the token ids."""
        return Vocabulary.load(self._own("vocabulary.txt"))

    @property
    def vectors(self) -> np.ndarray:
        """The word vectors, float32 [V, D]."""
        return np.load(self._own("vectors.npy"), allow_pickle=False)

    @property
    def unseen_words(self) -> UnseenWords:
        """The treatment of words outside the vocabulary, as the queries were tokenised; "unk" in older stores."""
        return self.about_queries.get("unseen_words", "unk")

    @property
    def unseen_vectors(self) -> dict[str, np.ndarray]:
        """The vectors, float32 [D], of words of the queries that the vocabulary lacks: for answers, never for training.

        ValueError for a store whose queries were tokenised with `--unseen-words unk`.
        """
        if self.unseen_words != "vector":
            raise ValueError(
                f"{self.path}: it has no vectors for words outside its vocabulary; tokenise and pack again with "
                "--unseen-words vector, or take --unseen-words unk"
            )
        words = Vocabulary.load(self._own("unseen_words.txt")).words[2:]
        return dict(zip(words, np.load(self._own("unseen_vectors.npy"), allow_pickle=False), strict=True))

    def _own(self, name: str) -> Path:
        """Return the path of a file of the store; ValueError if it is not the one that was packed."""
        path = self.path / name
        if sha256_file(path) != self.manifest.records[COMPLETE]["sha256"][name]:
            raise ValueError(f"{path}: not the file that was packed; remove the folder and run `excl pack` again")
        return path
