"""Queries become tokens, tokens a vocabulary and its ids: text only, without any of NLTK's data.

Index 0 is padding and index 1 every word outside the vocabulary; a query that spells the name of one of them holds an
unknown word.
"""

from __future__ import annotations

import hashlib
import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from nltk.tokenize import NLTKWordTokenizer

from excl.datasets.parsing import read_text, storable

MAX_QUERY_CHARS = 2000  # the longest of 108,000 official queries has 451; what is longer is no query
PAD, UNK = 0, 1
PAD_TOKEN, UNK_TOKEN = "<pad>", "<unk>"

Tokeniser = Literal["nltk", "whitespace", "words", "no-punctuation"]
UnseenWords = Literal["vector", "unk"]

_TOKENIZER = NLTKWordTokenizer()  # regular expressions only: needs no download
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)
# NLTK splits the full stop off the end of its input alone, so each sentence goes in by itself. A sentence may end in a
# quote or a bracket after its stop: he said "go." then left. Some annotators left out the space (the bedroom.they leave): a
# stop between two words of two letters or more ends a sentence too, unlike those of e.g. and 3.5.
_BETWEEN_SENTENCES = re.compile(
    r"""(?:(?<=[.!?])|(?<=[.!?]["')\]\u201d\u2019\u00bb]))\s+|(?<=[^\W\d_]{2}\.)(?=[^\W\d_]{2})"""
)
# In most sentences only a comma or the stop at the end is to be split off; NLTK's thirty substitutions take twenty times as
# long to find that. It takes some words apart, too: can not, gim me.
_PLAIN = re.compile(r"\s*[a-z0-9]+(?:,?\s+[a-z0-9]+)*\s*\.?\s*")
_TAKEN_APART = frozenset({"cannot", "gimme", "gonna", "gotta", "lemme", "wanna"})


def tokenise(query: str, tokeniser: Tokeniser = "nltk") -> list[str]:
    """Return the tokens of a query, lower-case and without whitespace; [] for a query without any.

    `nltk`: words and punctuation marks by NLTK's word tokeniser after a split into sentences; its double quotes come out as
    `` and ''. `whitespace`: the runs between whitespace, with their punctuation, as in 2D-TAN. `words`: runs of
    letters, digits and underscores. `no-punctuation`: ASCII's punctuation marks are taken out, then as `whitespace`; LGI's
    vocabularies come out of it. ValueError for more than MAX_QUERY_CHARS characters.
    """
    if reason := too_long(query):
        raise ValueError(reason)
    lower = query.lower()
    match tokeniser:
        case "nltk":
            sentences = [lower] if _PLAIN.fullmatch(lower) else _BETWEEN_SENTENCES.split(lower)
            return [token for sentence in sentences for token in _tokens_of_sentence(sentence)]
        case "whitespace":
            return lower.split()
        case "words":
            return re.findall(r"\w+", lower)
        case "no-punctuation":
            return lower.translate(_WITHOUT_PUNCTUATION).split()


def _tokens_of_sentence(sentence: str) -> list[str]:
    if _PLAIN.fullmatch(sentence):
        tokens = sentence.replace(",", " ,").replace(".", " .").split()
        if _TAKEN_APART.isdisjoint(tokens):
            return tokens
    return _TOKENIZER.tokenize(sentence)


def too_long(query: str) -> str:
    """Return what is wrong with a query of more than MAX_QUERY_CHARS characters; empty for a shorter one."""
    if len(query) <= MAX_QUERY_CHARS:
        return ""
    return (
        f"the query that begins {query[:40]!r} has {len(query):,} characters; at most {MAX_QUERY_CHARS:,} are "
        "allowed: is it one sentence, or a whole file?"
    )


@dataclass(frozen=True)
class Vocabulary:
    """Words by index, the two specials first; ValueError where a word is empty, repeated, or no line of a text file."""

    words: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.words[:2] != (PAD_TOKEN, UNK_TOKEN):
            raise ValueError(f"a vocabulary begins with {PAD_TOKEN} and {UNK_TOKEN}; found {self.words[:2]}")
        seen: set[str] = set()
        for index, word in enumerate(self.words):
            if word.split() != [word] or not storable(word):
                raise ValueError(f"word {index} of the vocabulary is {word!r}; expected text without whitespace")
            if word in seen:
                raise ValueError(f"word {index} of the vocabulary, {word!r}, is in it before")
            seen.add(word)

    @classmethod
    def build(cls, token_lists: Iterable[Sequence[str]], *, min_count: int = 1, max_size: int | None = None) -> Vocabulary:
        """Return the words that occur at least `min_count` times, frequent ones first, equals by alphabet (code points).

        `max_size` keeps the first so many, the two specials not counted. A token spelt like a special is no word.
        """
        if min_count < 1 or (max_size is not None and max_size < 1):
            raise ValueError(f"min_count is {min_count} and max_size {max_size}; both must be at least 1")
        counts = Counter(token for tokens in token_lists for token in tokens)
        del counts[PAD_TOKEN], counts[UNK_TOKEN]
        ranked = sorted((-count, word) for word, count in counts.items() if count >= min_count)
        return cls((PAD_TOKEN, UNK_TOKEN, *(word for _, word in ranked[:max_size])))

    def __len__(self) -> int:
        return len(self.words)

    @cached_property
    def _index_by_word(self) -> dict[str, int]:
        """The specials are left out: a query with `<pad>` in it holds an unknown word, not padding."""
        return {word: index for index, word in enumerate(self.words) if index not in (PAD, UNK)}

    def ids(self, tokens: Sequence[str]) -> list[int]:
        """Return the index of every token, UNK for a token outside the vocabulary."""
        return [self._index_by_word.get(token, UNK) for token in tokens]

    @property
    def fingerprint(self) -> str:
        """The hex sha256 of the file that `save` writes."""
        return hashlib.sha256(("\n".join(self.words) + "\n").encode()).hexdigest()

    def save(self, path: Path) -> None:
        """Write one word a line, UTF-8: the line's number, from 0, is the index."""
        path.write_bytes(("\n".join(self.words) + "\n").encode())

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        """Read a file written by `save`; ValueError names the file and what is wrong with it."""
        *words, remainder = read_text(path).split("\n")
        if remainder:
            raise ValueError(f"{path}: the last line, {remainder[:60]!r}, does not end; the file may be cut short")
        try:
            return cls(tuple(words))
        except ValueError as error:
            raise ValueError(f"{path}: {error}; write it again with `excl tokenise`") from error
