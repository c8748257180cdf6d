"""Baselines that know less than a model: the query alone, its verb alone, or the video alone.

They explain a good part of many published results. All are fitted on the training split, without chance, and answer with the
spans of a grid, as parts of the duration, that fit certain training moments best:

verb prior   the moments whose query has the same verb, as in `TimePrior`; for a rare verb all moments
query only   the moments of the 100 most similar queries and durations; the similarity is that of tf-idf vectors of words
video only   the moments of the 100 most similar videos and durations; the similarity is that of the mean features of the
             first, second and third third of a video

A video's own moments never answer for it. Where no other query or video is similar, the moments of videos of about the same
duration answer; where there is no other video, nothing does.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cache
from itertools import pairwise

import numpy as np
from nltk.stem.snowball import EnglishStemmer

from excl.models.excl import NeighbourPrior, TimePrior
from excl.pipeline.store.feature_store import FeatureStore
from excl.pipeline.store.training_store import Query

MIN_MOMENTS = 50
"""The training moments that a verb needs for a prior of its own."""
MAX_VIDEOS = 1000
"""The training videos that video only looks at; of more, so many evenly spaced ones by id."""
MANY = 30
"""A word of more than one in so many queries counts as frequent (`TextSimilarity`)."""
VERB_RULE = (
    "the verb of a query is its first word whose stem (Snowball) has in the training queries a form in -ing and another one"
)

_stem = cache(EnglishStemmer().stem)


class Verbs:
    """The verbs of queries, by VERB_RULE, as stems."""

    def __init__(self, training: Sequence[Query]) -> None:
        forms: dict[str, set[str]] = defaultdict(set)
        for word in {word for query in training for word in query.tokens}:
            forms[_stem(word)].add(word)
        self._stems = {
            stem for stem, words in forms.items() if len(words) > 1 and any(w.endswith("ing") and w != stem for w in words)
        }

    def of(self, query: Query) -> str:
        """Return the stem of the verb; empty if the query has none."""
        return next((stem for word in query.tokens if (stem := _stem(word)) in self._stems), "")


class TextSimilarity:
    """The cosine of tf-idf vectors of words, to each of certain queries; every word of a query counts once."""

    def __init__(self, queries: Sequence[Query]) -> None:
        documents = [set(query.tokens) for query in queries]
        counts = Counter(word for words in documents for word in words)
        self._num = len(documents)
        self._squares = {word: self._square(count) for word, count in counts.items()}
        rows: dict[str, list[int]] = defaultdict(list)
        for index, words in enumerate(documents):
            for word in words:
                rows[word].append(index)
        # A word of many queries has a row of what it adds to each: that is added much faster than by their numbers.
        self._rows = {word: np.array(of) for word, of in rows.items() if len(of) <= self._num / MANY}
        self._whole_rows = {}
        for word in rows.keys() - self._rows.keys():
            self._whole_rows[word] = np.zeros(self._num)
            self._whole_rows[word][rows[word]] = self._squares[word]
        self._norms = np.array([self._norm(words) for words in documents])

    def _square(self, count: int) -> float:
        return (math.log((1 + self._num) / (1 + count)) + 1) ** 2

    def _norm(self, words: set[str]) -> float:
        return math.sqrt(sum(self._squares.get(word, self._square(0)) for word in sorted(words))) or 1.0

    def to(self, query: Query) -> np.ndarray:
        """Return the similarity of a query to every one of them, float64 [Q], 0 to 1."""
        words = set(query.tokens)
        shared = np.zeros(self._num)
        for word in sorted(words):
            if word in self._whole_rows:
                shared += self._whole_rows[word]
            elif word in self._rows:
                shared[self._rows[word]] += self._squares[word]
        return shared / (self._norms * self._norm(words))

    def among(self, queries: Sequence[Query]) -> np.ndarray:
        """Return the similarity of queries, of whatever kind, to each other, float64 [n, n]."""
        documents = [set(query.tokens) for query in queries]
        words = sorted(set().union(*documents))
        column = {word: index for index, word in enumerate(words)}
        weights = np.zeros((len(queries), len(words)))
        for row, document in zip(weights, documents, strict=True):
            row[[column[word] for word in document]] = 1.0
        shared = weights * [self._squares.get(word, self._square(0)) for word in words] @ weights.T
        norms = [self._norm(document) for document in documents]
        return shared / np.outer(norms, norms)


def predictions(training: Sequence[Query], queries: Sequence[Query], store: FeatureStore | None) -> dict[str, np.ndarray]:
    """Return the answers of each baseline, float64 [N, 5, 2] in seconds, NaN for a query whose duration is not known.

    Of `training` those of known duration count, at least one. Without features there is no `video_only`.
    """
    training = [query for query in training if query.duration_s is not None]
    starts_s, ends_s, durations_s = np.array([(q.start_s, q.end_s, q.duration_s) for q in training], dtype=np.float64).T
    prior = NeighbourPrior(starts_s, ends_s, durations_s)
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, query in enumerate(training):
        rows_of[query.video_id].append(row)

    def answer(similar_to: Callable[[Query], np.ndarray], asked: Sequence[Hashable]) -> np.ndarray:
        """Return the answers; queries with an equal entry in `asked` share one."""
        answers: dict[Hashable, np.ndarray] = {}
        for query, key in zip(queries, asked, strict=True):
            if key not in answers:
                own = rows_of.get(query.video_id, [])
                similarity = similar_to(query)
                similarity[own] = 0.0
                if not similarity.any():
                    similarity = np.ones(len(training))
                    similarity[own] = 0.0
                answers[key] = prior.predict(similarity, query.duration_s or math.nan)
        return np.array([answers[key] for key in asked])

    baselines = {
        "verb_prior": _verb_prior(training, queries),
        "query_only": answer(TextSimilarity(training).to, [query.key for query in queries]),
    }
    if store is not None and (videos := _video_similarity(training, queries, store)):
        video_only = answer(
            lambda query: videos.get(query.video_id, np.zeros(len(training))).copy(),
            [(query.video_id, query.duration_s) for query in queries],
        )
        video_only[[query.video_id not in videos for query in queries]] = np.nan
        baselines["video_only"] = video_only
    return baselines


def _verb_prior(training: Sequence[Query], queries: Sequence[Query]) -> np.ndarray:
    verbs = Verbs(training)
    groups: dict[str, list[Query]] = defaultdict(list)
    for query in training:
        groups[verbs.of(query)].append(query)
    priors: dict[str, TimePrior] = {verb: _prior(rows) for verb, rows in groups.items() if len(rows) >= MIN_MOMENTS}
    general = _prior(training)
    durations_s = np.array([query.duration_s or math.nan for query in queries])
    answers = np.empty((len(queries), 5, 2))
    of_queries = np.array([verbs.of(query) for query in queries])
    for verb in set(of_queries):
        answers[of_queries == verb] = priors.get(verb, general).predict(durations_s[of_queries == verb])
    return answers


def _prior(queries: Sequence[Query]) -> TimePrior:
    return TimePrior.fit(*np.array([(q.start_s, q.end_s, q.duration_s) for q in queries], dtype=np.float64).T)


def _video_similarity(training: Sequence[Query], queries: Sequence[Query], store: FeatureStore) -> Mapping[str, np.ndarray]:
    """Return for every video of the queries its similarity to the videos of the training queries, float64 [N], by id."""
    in_store = sorted({query.video_id for query in training if query.video_id in store})
    asked = sorted({query.video_id for query in queries if query.video_id in store})
    if not in_store or not asked:
        return {}
    chosen = [
        in_store[i] for i in np.unique(np.linspace(0, len(in_store) - 1, min(len(in_store), MAX_VIDEOS)).round().astype(int))
    ]
    vectors = np.stack([_thirds(store, video_id) for video_id in chosen])  # [videos, 3 F]
    mean, std = vectors.mean(axis=0), vectors.std(axis=0)
    scale = np.where(std > 0, std, 1.0)
    unit = _unit((vectors - mean) / scale)
    index_of = {video_id: index for index, video_id in enumerate(chosen)}
    of_moment = np.array([index_of.get(query.video_id, -1) for query in training])
    similar = {}
    for video_id in asked:
        cosine = unit @ _unit((_thirds(store, video_id) - mean) / scale)
        similar[video_id] = np.where(of_moment >= 0, np.maximum((1 + cosine[of_moment]) / 2, 0.0), 0.0)
    return similar


def _thirds(store: FeatureStore, video_id: str) -> np.ndarray:
    """Return the mean features of the three thirds of a video, float64 [3 F]; short videos repeat rows."""
    rows = store[video_id].features.astype(np.float64)
    borders = np.linspace(0, len(rows), 4).round().astype(int).tolist()
    parts = [rows[min(start, len(rows) - 1) : max(end, start + 1)] for start, end in pairwise(borders)]
    return np.concatenate([part.mean(axis=0) for part in parts])


def _unit(vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1.0)
