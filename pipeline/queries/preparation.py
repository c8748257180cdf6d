"""Annotations become queries to learn from: cleaned, split, tokenised, with a vocabulary and word vectors."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import Any

import numpy as np

from excl.datasets.annotations.cleaning import Cleaning, clean
from excl.datasets.annotations.known_data_sets import KNOWN
from excl.datasets.annotations.moments import Moment, carve_validation
from excl.datasets.text.glove import WordVectors
from excl.datasets.text.vocabulary import MAX_QUERY_CHARS, PAD_TOKEN, UNK_TOKEN, Vocabulary, tokenise, too_long
from excl.pipeline.queries import tokenise_report as reports
from excl.pipeline.queries.annotation_sources import SPLITS, load_moments
from excl.pipeline.queries.config import TokeniseConfig
from excl.pipeline.queries.word_vectors import GloveFile, vectors_for


class QueryPreparation:
    """The results of the annotations, each computed when it is first used."""

    def __init__(self, config: TokeniseConfig) -> None:
        self.config, self.sources = config, config.sources()

    @cached_property
    def raw(self) -> list[Moment]:
        """The rows of the files."""
        return load_moments(self.sources)

    @cached_property
    def tokens_of(self) -> dict[str, list[str]]:
        """The tokens of every query that is not too long."""
        queries = {m.query for m in self.raw if not too_long(m.query)}
        return {query: tokenise(query, self.config.tokeniser) for query in queries}

    def why_unusable(self, moment: Moment) -> str:
        """Return why a query cannot be used; empty if it can."""
        if moment.query not in self.tokens_of:
            return f"its query has more than {MAX_QUERY_CHARS:,} characters"
        return "" if self.tokens_of[moment.query] else "its query has no word"

    @cached_property
    def cleaning(self) -> Cleaning:
        """The rows after the policies were applied."""
        return clean(self.raw, self.config.hygiene, why_unusable=self.why_unusable)

    @cached_property
    def moments(self) -> list[Moment]:
        """The moments to use, a validation split among them."""
        moments, config = self.cleaning.usable, self.config
        for split in sorted({m.split for m in self.raw} - {m.split for m in moments}):
            raise ValueError(
                f"no moment of the split {split} can be used; the reason for the first: {self.cleaning.dropped[0][1]}"
            )
        if not self.carves:
            return moments
        training = [moment for moment in moments if moment.split == "train"]
        carved = carve_validation(training, fraction=config.carve_val, seed=config.seed)
        return [*carved, *(moment for moment in moments if moment.split != "train")]

    @property
    def carves(self) -> bool:
        """Return whether the validation split is carved out of train."""
        return self.config.carve_val > 0 and not any(m.split == "val" for m in self.raw)

    @property
    def made_of(self) -> dict[str, str]:
        """The origin of every split."""
        splits = {moment.split for moment in self.moments}
        origins = {split: self.sources.made_of(split) for split in SPLITS if split in splits}
        if self.carves:
            share, seed = self.config.carve_val, self.config.seed
            origins["val"] = f"{share:.0%} of the videos of {origins['train']}, by seed {seed}"
            origins["train"] += ", the rest"
        return origins

    @cached_property
    def tokens(self) -> list[list[str]]:
        """The tokens of `moments`."""
        return [self.tokens_of[moment.query] for moment in self.moments]

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The words of the training split."""
        training = [t for moment, t in zip(self.moments, self.tokens, strict=True) if moment.split == "train"]
        return Vocabulary.build(training, min_count=self.config.min_count, max_size=self.config.max_words)

    @cached_property
    def vectors_and_file(self) -> tuple[WordVectors, GloveFile]:
        """The vectors of the vocabulary, and the file they came from."""
        return self._vectors_of(self.vocabulary)

    @cached_property
    def unseen(self) -> tuple[Vocabulary, np.ndarray]:
        """The words of all queries that have a vector and are not in the vocabulary, and their vectors, float32 [U, D].

        The file is read a second time for them: in one reading their numbers would enter the scale of the rows that are
        drawn for words without a vector, and so the training.
        """
        words = sorted({word for tokens in self.tokens for word in tokens} - set(self.vocabulary.words))
        vectors, _ = self._vectors_of(Vocabulary((PAD_TOKEN, UNK_TOKEN, *words)))
        has_vector = vectors.found[2:]
        kept = [word for word, has_row in zip(words, has_vector, strict=True) if has_row]
        return Vocabulary((PAD_TOKEN, UNK_TOKEN, *kept)), vectors.matrix[2:][has_vector]

    def _vectors_of(self, vocabulary: Vocabulary) -> tuple[WordVectors, GloveFile]:
        config = self.config
        assert config.glove is not None
        return vectors_for(
            config.glove,
            vocabulary,
            seed=config.seed,
            member=config.glove_member,
            cased_fallback=config.glove_cased_fallback,
        )

    @property
    def _unseen_with_vector(self) -> set[str]:
        """The unseen words that keep their vector."""
        with_vector = self.config.glove is not None and self.config.unseen_words == "vector"
        return set(self.unseen[0].words[2:]) if with_vector else set()

    @cached_property
    def report(self) -> dict[str, Any]:
        """The report about annotations, splits, vocabulary and vectors, as JSON values."""
        vectors, file = (None, None) if self.config.glove is None else self.vectors_and_file
        official = KNOWN.get(self.sources.format)
        report = {
            "dataset": self.sources.format,
            "made_of": self.made_of,
            "tokeniser": self.config.tokeniser,
            "annotations": reports.annotations_report(
                self.sources, self.raw, self.config.hygiene, why_unusable=self.why_unusable
            ),
            "cleaning": reports.cleaning_report(self.cleaning),
            "splits": reports.splits_report(self.moments, self.tokens, self.vocabulary, vectors, self._unseen_with_vector),
            "vocabulary": {
                "words": len(self.vocabulary) - 2,
                "paper": official.paper_words if official else None,
                "fingerprint": self.vocabulary.fingerprint,
            },
            "shared_videos": reports.shared_videos(self.moments),
        }
        if vectors is not None and file is not None:
            report["vectors"] = reports.vectors_report(self.vocabulary, vectors, dataclasses.asdict(file))
        return report
