"""Tokens and vocabularies."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nltk.tokenize import NLTKWordTokenizer

from excl.datasets.text.vocabulary import MAX_QUERY_CHARS, PAD, PAD_TOKEN, UNK, UNK_TOKEN, Vocabulary, tokenise

CHARADES = Path(__file__).resolve().parents[3] / "shared" / "data" / "annotations" / "charades"

# tokenise


@pytest.mark.parametrize(
    ("query", "tokens"),
    [
        ("A person opens the door.", ["a", "person", "opens", "the", "door", "."]),
        ("Person opens it. Person walks away.", ["person", "opens", "it", ".", "person", "walks", "away", "."]),
        ("He stops!  Why?\nShe left.", ["he", "stops", "!", "why", "?", "she", "left", "."]),
        ('He said "go." Then left.', ["he", "said", "``", "go", ".", "''", "then", "left", "."]),
        ("(It falls.) He left", ["(", "it", "falls", ".", ")", "he", "left"]),
        ("He doesn't, she's 3.5 m away", ["he", "does", "n't", ",", "she", "'s", "3.5", "m", "away"]),
        ("He took out a pan", ["he", "took", "out", "a", "pan"]),
        ("CAFÉ", ["café"]),
        ("", []),
        (" \t\n\u2028", []),
    ],
)
def test_queries_become_words_and_marks(query, tokens):
    assert tokenise(query) == tokens


@given(st.text(max_size=200) | st.text(alphabet=".!?\"' )(\u00a0\n\u2028\x1cAb-,<>`", max_size=60))
def test_tokens_are_lower_case_and_without_whitespace(query):
    for token in tokenise(query):
        assert token
        assert not any(char.isspace() for char in token)
        assert token == token.lower()


@given(st.lists(st.sampled_from(["a", "Bus", "dog", "x1"]), min_size=1), st.sampled_from(".!?"), st.integers(1, 4))
def test_no_stop_stays_glued_to_a_word(words, stop, num_sentences):
    sentence = " ".join(words) + stop
    expected = [*(word.lower() for word in words), stop] * num_sentences
    assert tokenise(" ".join([sentence] * num_sentences)) == expected


APART = [
    "cannot",
    "gimme",
    "gonna",
    "gotta",
    "lemme",
    "wanna",
    "more'n",
    "d'ye",
    "'tis",
    "he's",
    "wannabe",
    "3.5",
    "1,000",
    "a-b",
]


@given(
    st.lists(
        st.tuples(st.sampled_from([*APART, "a", "Dog", "x1", "CAFÉ"]), st.sampled_from([" ", ", ", ",", "  ", ",\u2028"]))
    ),
    st.sampled_from(["", ".", " .", ". ", ",", "..", "!", ".\n"]),
)
def test_a_sentence_has_the_tokens_of_nltk(words, end):
    sentence = "".join(text for pair in words for text in pair) + "end" + end
    assert tokenise(sentence) == NLTKWordTokenizer().tokenize(sentence.lower())


def test_a_query_of_the_greatest_length_is_taken_and_a_longer_one_refused():
    assert tokenise("a" * MAX_QUERY_CHARS) == ["a" * MAX_QUERY_CHARS]
    with pytest.raises(ValueError, match=r"begins 'bbb.* has 2,001 characters; at most 2,000"):
        tokenise("b" * (MAX_QUERY_CHARS + 1))


def test_tokenising_needs_no_data_of_nltk():
    program = "from excl.datasets.text.vocabulary import tokenise; print(tokenise('He runs. Stop.'))"
    environment = {**os.environ, "NLTK_DATA": "/nonexistent", "HOME": "/nonexistent"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['he', 'runs', '.', 'stop', '.']"


@pytest.mark.skipif(not CHARADES.is_dir(), reason=f"the official annotation files are not at {CHARADES}")
def test_the_official_queries_of_charades_have_the_known_vocabulary():
    queries = [line.split("##")[1] for line in (CHARADES / "charades_sta_train.txt").read_text().splitlines()]
    words = Vocabulary.build([tokenise(query) for query in queries]).words[2:]
    by_nltk = {token for query in set(queries) for token in NLTKWordTokenizer().tokenize(query.lower())}
    assert len(by_nltk) == 1_132  # counted by others
    glued = {"bedroom.they", "box.the", "clothes.the", "cup.the", "door.the", "doorway.the", "food.the", "laughing.the",
             "pillow.the", "smiling.the", "sneezing.the"}  # fmt: skip
    assert set(words) == by_nltk - glued


@pytest.mark.skipif(not CHARADES.is_dir(), reason=f"the official annotation files are not at {CHARADES}")
@pytest.mark.parametrize(
    ("tokeniser", "num_words"),
    [("whitespace", 1_456), ("no-punctuation", 1_136), ("words", 1_101)],
)
def test_other_tokenisers_give_the_vocabularies_that_others_counted(tokeniser, num_words):
    lines = (CHARADES / "charades_sta_train.txt").read_text().splitlines()
    assert len({token for line in lines for token in tokenise(line.split("##")[1], tokeniser)}) == num_words


@pytest.mark.parametrize(
    ("query", "tokens"),
    [
        ("he leaves the bedroom.they sit.", ["he", "leaves", "the", "bedroom", ".", "they", "sit", "."]),
        ("at 3.5 m, e.g. the U.S. flag", ["at", "3.5", "m", ",", "e.g", ".", "the", "u.s", ".", "flag"]),
    ],
)
def test_a_stop_without_a_space_ends_a_sentence_between_words_alone(query, tokens):
    assert tokenise(query) == tokens


@given(st.text(max_size=200), st.sampled_from(["nltk", "whitespace", "words", "no-punctuation"]))
def test_no_query_breaks_a_tokeniser_and_order_is_kept(query, tokeniser):
    tokens = tokenise(query, tokeniser)
    assert all(token and token.split() == [token] for token in tokens)
    position, lower = 0, query.lower()
    if tokeniser == "words":  # the others rewrite quotes, or take marks out of the middle of words
        for token in tokens:
            position = lower.index(token, position) + len(token)
    elif tokeniser == "whitespace":
        assert " ".join(tokens) == " ".join(lower.split())


# Vocabulary

TOKENS = [["b", "a", "c"], ["c", "b"], ["c", "d"]]


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({}, ["c", "b", "a", "d"]),
        ({"min_count": 2}, ["c", "b"]),
        ({"min_count": 4}, []),
        ({"max_size": 3}, ["c", "b", "a"]),
        ({"max_size": 99}, ["c", "b", "a", "d"]),
        ({"min_count": 2, "max_size": 1}, ["c"]),
    ],
)
def test_words_go_by_frequency_and_then_by_alphabet(limits, words):
    vocabulary = Vocabulary.build(TOKENS, **limits)
    assert vocabulary.words == (PAD_TOKEN, UNK_TOKEN, *words)
    assert len(vocabulary) == 2 + len(words)


@pytest.mark.parametrize("limits", [{"min_count": 0}, {"max_size": 0}, {"max_size": -1}])
def test_limits_below_one_are_refused(limits):
    with pytest.raises(ValueError, match="both must be at least 1"):
        Vocabulary.build(TOKENS, **limits)


def test_ids_are_indices_and_other_words_are_unknown():
    vocabulary = Vocabulary.build(TOKENS)
    assert vocabulary.ids(["d", "c", "zebra", "C"]) == [5, 2, UNK, UNK]
    assert vocabulary.ids([]) == []


def test_the_names_of_the_specials_are_no_words():
    vocabulary = Vocabulary.build([[PAD_TOKEN, UNK_TOKEN, "a", PAD_TOKEN]])
    assert vocabulary.words == (PAD_TOKEN, UNK_TOKEN, "a")
    assert vocabulary.ids([PAD_TOKEN, UNK_TOKEN]) == [UNK, UNK]
    assert PAD not in vocabulary.ids(tokenise(f"{PAD_TOKEN} a {PAD_TOKEN}"))


@given(st.lists(st.text(max_size=30).map(tokenise), max_size=8))
def test_every_word_of_the_text_has_an_index_of_its_own(token_lists):
    if any("\0" in token for tokens in token_lists for token in tokens):
        return  # refused where the annotations are read
    vocabulary = Vocabulary.build(token_lists)
    for tokens in token_lists:
        assert [vocabulary.words[index] for index in vocabulary.ids(tokens)] == tokens


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("a", "b", "c"), "begins with <pad> and <unk>"),
        ((PAD_TOKEN,), "begins with <pad> and <unk>"),
        ((UNK_TOKEN, PAD_TOKEN), "begins with <pad> and <unk>"),
        ((PAD_TOKEN, UNK_TOKEN, "a", "a"), "word 3 .*'a', is in it before"),
        ((PAD_TOKEN, UNK_TOKEN, PAD_TOKEN), "word 2 .* is in it before"),
        ((PAD_TOKEN, UNK_TOKEN, "a b"), "word 2 .* without whitespace"),
        ((PAD_TOKEN, UNK_TOKEN, ""), "word 2 .* without whitespace"),
        ((PAD_TOKEN, UNK_TOKEN, "a\x85"), "word 2 .* without whitespace"),
        ((PAD_TOKEN, UNK_TOKEN, "\ud800"), "word 2 "),
    ],
)
def test_what_is_no_vocabulary_is_refused(words, message):
    with pytest.raises(ValueError, match=message):
        Vocabulary(words)


def test_a_vocabulary_is_saved_one_word_a_line_and_comes_back(tmp_path):
    path = tmp_path / "vocabulary.txt"
    vocabulary = Vocabulary.build([["naïve", "日本", "a"]])
    vocabulary.save(path)
    assert path.read_bytes() == "<pad>\n<unk>\na\nnaïve\n日本\n".encode()
    assert Vocabulary.load(path) == vocabulary


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\nb\nc\n", "begins with <pad> and <unk>"),
        (b"", "begins with <pad> and <unk>"),
        (b"<pad>\n<unk>\nelephan", "'elephan', does not end; the file may be cut short"),
        (b"<pad>\r\n<unk>\r\na\r\n", "begins with <pad> and <unk>"),
        (b"<pad>\n<unk>\na\n\nb\n", "word 3 "),
        (b"<pad>\n<unk>\n\xff\n", ":3: byte 0xff is not UTF-8"),
    ],
)
def test_a_file_that_is_no_vocabulary_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "vocabulary.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"vocabulary\.txt.*" + message):
        Vocabulary.load(path)
