"""One or more training stores as the data of one model: one vocabulary, one recipe of features, one tokeniser."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from excl.datasets.text.vocabulary import PAD, UNK, UnseenWords, Vocabulary
from excl.pipeline.artifacts.header import diff
from excl.pipeline.store.training_store import Query, TrainingStore
from excl.pipeline.training.examples import Example, load_examples


class MultiStore:
    """Training stores by the names of their data sets, which are numbered if they repeat (`jsonl`, `jsonl-2`).

    The words are those of the first store, then the new ones of the second, and so on. Raises ValueError if recipes of
    features, tokenisers, or the vectors of a word differ.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.stores: dict[str, TrainingStore] = {}
        for store in map(TrainingStore, paths):
            self.stores[self._new_name(store.about_queries["dataset"])] = store
        self.first = next(iter(self.stores.values()))
        fingerprints = [store.manifest.fingerprint() for store in self.stores.values()]
        if len(set(fingerprints)) < len(fingerprints):
            raise ValueError(f"--store: one store is named twice: {', '.join(map(str, paths))}")
        for store in self.stores.values():
            self._require_like_first(store)
        self.identity = {
            "stores": dict(zip(self.stores, fingerprints, strict=True)),
            "recipe": self.first.recipe,
        }
        self.recipe = self.first.recipe
        self.paths = {name: store.path for name, store in self.stores.items()}

    def _new_name(self, dataset: str) -> str:
        number, name = 1, dataset
        while name in self.stores:
            number += 1
            name = f"{dataset}-{number}"
        return name

    def _require_like_first(self, store: TrainingStore) -> None:
        first, other = (
            {"tokeniser": s.about_queries["tokeniser"], "unseen_words": s.unseen_words} for s in (self.first, store)
        )
        differences = [*_lines(self.first.recipe, store.recipe, "features"), *_lines(first, other, "queries")]
        if differences:
            raise ValueError(
                f"{store.path} and {self.first.path} cannot be trained on together, since they were made in two ways:\n  "
                + "\n  ".join(differences)
            )

    @property
    def about_queries(self) -> dict[str, Any]:
        """Return what the store says about its queries; for several stores, all of this by name."""
        if len(self.stores) == 1:
            return self.first.about_queries
        sets = {name: store.about_queries for name, store in self.stores.items()}
        first: Mapping[str, Any] = self.first.about_queries
        alike = {name: first[name] for name in ("tokeniser", "glove") if name in first}
        return {"dataset": " + ".join(sets), **alike, "sets": sets}

    @cached_property
    def _words_and_vectors(self) -> tuple[Vocabulary, np.ndarray]:
        words, vectors = list(self.first.vocabulary.words), self.first.vectors
        for store in list(self.stores.values())[1:]:
            more_words, more = store.vocabulary.words, store.vectors
            if more.shape[1] != vectors.shape[1]:
                raise ValueError(f"{store.path}: its word vectors have {more.shape[1]} numbers, not {vectors.shape[1]}")
            index = {word: number for number, word in enumerate(words)}
            both = [number for number, word in enumerate(more_words) if word in index]
            _require_equal_vectors(
                store.path, [more_words[n] for n in both], vectors[[index[more_words[n]] for n in both]], more[both]
            )
            new = [number for number, word in enumerate(more_words) if word not in index]
            words += [more_words[number] for number in new]
            vectors = np.concatenate([vectors, more[new]])
        return Vocabulary(tuple(words)), vectors

    @property
    def vocabulary(self) -> Vocabulary:
        """The words of all stores."""
        return self._words_and_vectors[0]

    @property
    def vectors(self) -> np.ndarray:
        """The vectors of these words, float32 [V, D]."""
        return self._words_and_vectors[1]

    def examples(self, split: str) -> dict[str, list[Example]]:
        """Return the examples of a split by store, in order, without those whose videos have no features."""
        examples = {}
        for name, store in self.stores.items():
            queries = remap_token_ids(store.queries(split), store.vocabulary, self.vocabulary)
            examples[name] = load_examples(store, queries)
        return examples

    def validation_examples(self, split: str, *, unseen_words: UnseenWords) -> tuple[dict[str, list[Example]], np.ndarray]:
        """Return the examples of a split, and the vectors [U, D] of its unseen words, whose ids follow the vocabulary's.

        With "unk" there are none. Words of other splits are not looked at: who validates knows nothing of the test split.
        """
        if unseen_words == "unk":
            return self.examples(split), np.empty((0, self.vectors.shape[1]), dtype=np.float32)
        queries = {name: store.queries(split) for name, store in self.stores.items()}
        words = {word for rows in queries.values() for query in rows for word in query.tokens} - set(self.vocabulary.words)
        vectors: dict[str, np.ndarray] = {}
        for store in self.stores.values():
            vectors |= {word: vector for word, vector in store.unseen_vectors.items() if word in words}
        opened = {name: open_token_ids(rows, self.vocabulary, list(vectors)) for name, rows in queries.items()}
        examples = {name: load_examples(self.stores[name], rows) for name, rows in opened.items()}
        return examples, np.array([*vectors.values()], dtype=np.float32).reshape(len(vectors), self.vectors.shape[1])


def open_token_ids(queries: Sequence[Query], vocabulary: Vocabulary, unseen: Sequence[str]) -> list[Query]:
    """Return the queries with the ids of their words in a vocabulary that the unseen words continue."""
    whole = Vocabulary((*vocabulary.words, *unseen))
    return [dataclasses.replace(query, token_ids=tuple(whole.ids(query.tokens))) for query in queries]


def remap_token_ids(queries: Sequence[Query], own: Vocabulary, wanted: Vocabulary) -> list[Query]:
    """Return the queries with the ids of their words in another vocabulary; a word unknown in their own stays unknown."""
    if own == wanted:
        return list(queries)
    to = [PAD, UNK, *wanted.ids(own.words[2:])]
    return [dataclasses.replace(query, token_ids=tuple(to[index] for index in query.token_ids)) for query in queries]


def _lines(one: dict[str, Any], other: dict[str, Any], what: str) -> list[str]:
    return [f"{what}: {key}: {a} there, {b} here" for key, (b, a) in diff(one, other).items()]


def _require_equal_vectors(path: Path, words: list[str], vectors: np.ndarray, other: np.ndarray) -> None:
    """Raise ValueError if words [n] have other vectors in `other` [n, D] than in `vectors` [n, D].

    The file of vectors has none for some words and for the unknown one. Theirs are drawn by the word and scaled to the
    spread of the others in the vocabulary, so they may differ by one factor, the same for all, and count as equal.
    """
    equal = (vectors == other).all(axis=1)
    norm = np.linalg.norm(vectors[UNK])
    factor = np.linalg.norm(other[UNK]) / norm if norm else 1.0
    drawn = np.isclose(other, factor * vectors, rtol=1e-4, atol=1e-6).all(axis=1)
    differing = [word for word, same in zip(words, equal | drawn, strict=True) if not same]
    if not differing and len(words) > 2 and not equal[2:].any():
        differing = words[2:]
    if differing:
        raise ValueError(
            f"{path}: {len(differing)} words have other vectors than in the stores before it: {', '.join(differing[:5])}; "
            "tokenise both with the same file of word vectors and the same seed"
        )
