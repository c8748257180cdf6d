"""Word vectors from GloVe's text format and its zip."""

import contextlib
import os
import random
import tempfile
import tracemalloc
import zipfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from excl.datasets.text import glove_files
from excl.datasets.text.glove import is_truncated, load_vectors, peek
from excl.datasets.text.glove_files import texts_in
from excl.datasets.text.vocabulary import PAD, PAD_TOKEN, UNK, UNK_TOKEN, Vocabulary

LINES = b"the 0.1 0.2 -0.3\ncat 1 2e0 3\nsat 4 5 6\n"


def vocabulary(*words):
    return Vocabulary((PAD_TOKEN, UNK_TOKEN, *words))


def write(tmp_path, content=LINES, name="glove.txt"):
    path = tmp_path / name
    path.write_bytes(content)
    return path


def write_zip(tmp_path, **members):
    path = tmp_path / "glove.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("_", "."), content)
    return path


def row(path, word, **kwargs):
    """The vector of one word, None where the file has none."""
    vectors = load_vectors(path, vocabulary(word), **kwargs)
    return vectors.matrix[2].tolist() if vectors.found[2] else None


def test_words_get_their_vectors(tmp_path):
    vectors = load_vectors(write(tmp_path), vocabulary("sat", "dog", "the"))
    assert (vectors.matrix.dtype, vectors.matrix.shape, vectors.dim) == (np.float32, (5, 3), 3)
    assert vectors.found.dtype == np.bool_
    assert vectors.found.tolist() == [False, False, True, False, True]
    assert vectors.matrix[2].tolist() == [4, 5, 6]
    np.testing.assert_array_equal(vectors.matrix[4], np.array([0.1, 0.2, -0.3], np.float32))
    assert not vectors.matrix[PAD].any()
    assert vectors.matrix[UNK].all()
    assert vectors.matrix[3].all()


def test_a_vocabulary_of_specials_alone_has_two_rows(tmp_path):
    vectors = load_vectors(write(tmp_path), vocabulary())
    assert vectors.matrix.shape == (2, 3)
    assert not vectors.found.any()


def test_a_line_for_the_name_of_a_special_is_not_used(tmp_path):
    content = LINES + b"<unk> 7 7 7\n<pad> 8 8 8\n"
    vectors = load_vectors(write(tmp_path, content), vocabulary("cat"))
    assert not vectors.found[[PAD, UNK]].any()
    assert not vectors.matrix[PAD].any()
    assert 7.0 not in vectors.matrix[UNK]


def test_the_first_of_several_lines_counts(tmp_path):
    assert row(write(tmp_path, LINES + b"cat 7 8 9\n"), "cat") == [1, 2, 3]


def test_words_of_the_file_with_spaces_are_not_taken_for_their_beginnings(tmp_path):
    content = LINES + b". . . 7 7 7\nat name@domain.com 8 8 8\n. 1 1 1\nat 2 2 2\n"
    path = write(tmp_path, content)
    assert row(path, ".") == [1, 1, 1]
    assert row(path, "at") == [2, 2, 2]
    assert row(write(tmp_path, LINES + b". . . 7 7 7\n"), ".") is None


def test_bytes_that_are_not_utf8_and_odd_spaces_do_no_harm(tmp_path):
    content = LINES + b"\xff\xfe 1 1 1\n\xc2\xa0 2 2 2\n\xc2\x85 3 3 3\n 4 4 4\n\ncaf\xc3\xa9 9 9 9\n"
    assert row(write(tmp_path, content), "café") == [9, 9, 9]


@pytest.mark.parametrize("content", [LINES.replace(b"\n", b"\r\n"), LINES.replace(b"\n", b" \n"), LINES[:-1]])
def test_line_ends_of_other_makers_are_read(tmp_path, content):
    path = write(tmp_path, content)
    assert row(path, "the") == pytest.approx([0.1, 0.2, -0.3])
    assert row(path, "sat") == [4, 5, 6]


def test_the_header_of_word2vec_is_skipped(tmp_path):
    path = write(tmp_path, b"3 3\n" + LINES)
    assert row(path, "the") == pytest.approx([0.1, 0.2, -0.3])
    assert row(path, "3") is None
    with pytest.raises(ValueError, match=r"glove\.txt: the header promises 4 numbers a word, line 2 has 3"):
        row(write(tmp_path, b"3 4\n" + LINES), "the")


def test_lines_of_other_words_and_lines_after_the_last_word_are_not_looked_at(tmp_path):
    content = b"the 1 2 3\njunk nan x\nmore 1\ncat 4 5 6\ncat nonsense\nthe\n"
    vectors = load_vectors(write(tmp_path, content), vocabulary("the", "cat"))
    assert vectors.found[2:].all()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"dog 1 2", r":4: 2 numbers for b'dog'; the first line has 3"),
        (b"dog 1 2 3 4", r":4: 4 numbers for b'dog'; the first line has 3"),
        (b"dog", r":4: 0 numbers for b'dog'"),
        (b"dog 1 2 x", r":4: the vector of b'dog' holds something that is no finite number"),
        (b"dog 1  3", r":4: the vector of b'dog' holds"),
        (b"dog nan 2 3", r":4: the vector of b'dog' holds"),
        (b"dog 1 -inf 3", r":4: the vector of b'dog' holds"),
        (b"dog 1 1e39 3", r":4: the vector of b'dog' holds"),  # finite, but not as float32
    ],
)
def test_a_damaged_line_of_a_wanted_word_is_refused_by_number(tmp_path, line, message):
    path = write(tmp_path, LINES + line + b"\n")
    with pytest.raises(ValueError, match=r"glove\.txt" + message):
        row(path, "dog")
    assert row(path, "cat") == [1, 2, 3]


@pytest.mark.parametrize("content", [b"", b"\n", b"the\n", b"the 1 two\n", b"\x1f\x8b\x08 \x00\n", b"the\t1\t2\n", b"3 3\n"])
def test_a_file_that_does_not_begin_with_a_vector_is_refused(tmp_path, content):
    with pytest.raises(ValueError, match=r"glove\.txt:[12]: found b.*expected a word and its numbers"):
        row(write(tmp_path, content), "the")


def test_a_file_cut_short_within_a_wanted_line_is_refused(tmp_path):
    for rest in (b"dog", b"dog 1", b"dog 1 2 "):
        with pytest.raises(ValueError, match=r"glove\.txt:4: \d numbers for b'dog'"):
            row(write(tmp_path, LINES + rest), "dog")


# Words without a vector


def test_a_drawn_row_does_not_depend_on_the_other_words(tmp_path):
    path = write(tmp_path)
    one = load_vectors(path, vocabulary("cat", "zebra"))
    other = load_vectors(path, vocabulary("zebra", "yak", "xerus", "cat"))
    np.testing.assert_array_equal(one.matrix[3], other.matrix[2])
    np.testing.assert_array_equal(one.matrix[UNK], other.matrix[UNK])
    assert len({tuple(r) for r in other.matrix[1:].tolist()}) == 5


def test_drawn_rows_depend_on_the_seed_alone(tmp_path):
    path = write(tmp_path)
    first, again, other = (load_vectors(path, vocabulary("cat", "zebra"), seed=seed).matrix for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first[3] != other[3]).all()
    np.testing.assert_array_equal(first[2], other[2])


def test_drawn_rows_are_spread_as_the_vectors_found(tmp_path):
    values = np.random.default_rng(0).normal(0.5, 0.25, (20, 300))
    lines = [f"w{i} " + " ".join(f"{value:.5f}" for value in vector) for i, vector in enumerate(values)]
    path = write(tmp_path, "\n".join(lines).encode())
    missing = [f"m{i}" for i in range(20)]
    drawn = load_vectors(path, vocabulary(*(f"w{i}" for i in range(20)), *missing)).matrix[22:]
    assert drawn.std() == pytest.approx(0.25, rel=0.05)
    assert drawn.mean() == pytest.approx(0, abs=0.02)
    assert load_vectors(path, vocabulary(*missing)).matrix[2:].std() == pytest.approx(0.1, rel=0.05)


# Zip


def test_the_one_text_of_a_zip_is_read(tmp_path):
    path = write_zip(tmp_path, glove_txt=LINES, README="not vectors")
    assert row(path, "cat") == [1, 2, 3]


def test_one_of_several_texts_is_read_by_name(tmp_path):
    path = write_zip(tmp_path, small_txt=LINES, large_txt=b"cat 1 2 3 4 5\n")
    assert row(path, "cat", member="large.txt") == [1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match=r"found 2 \.txt: small\.txt, large\.txt; say which with --glove-member NAME"):
        row(path, "cat")
    with pytest.raises(ValueError, match=r"expected 'huge\.txt' in it, found 2"):
        row(path, "cat", member="huge.txt")


def test_a_zip_without_a_text_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"found 0 \.txt.*is it a GloVe archive"):
        row(write_zip(tmp_path, README="x"), "cat")


def test_errors_in_a_zip_name_the_member_and_line(tmp_path):
    path = write_zip(tmp_path, glove_txt=LINES + b"dog 1\n")
    with pytest.raises(ValueError, match=r"glove\.zip\[glove\.txt\]:4: 1 numbers for b'dog'"):
        row(path, "dog")


def test_a_member_of_a_plain_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"is no \.zip"):
        row(write(tmp_path), "cat", member="glove.txt")


def test_a_damaged_zip_is_refused(tmp_path):
    lines = b"".join(b"w%d %.6f %.6f\n" % (i, x, y) for i, (x, y) in enumerate(np.random.default_rng(0).random((999, 2))))
    whole = write_zip(tmp_path, glove_txt=lines).read_bytes()
    for damaged in (whole[: len(whole) // 2], b"no zip at all", whole[:5000] + bytes(64) + whole[5064:]):
        with pytest.raises(ValueError, match=r"glove\.zip: cannot be unpacked"):
            row(write(tmp_path, damaged, "glove.zip"), "missing")


def test_reading_stops_at_the_last_wanted_word(tmp_path):
    path = tmp_path / "glove.zip"
    with zipfile.ZipFile(path, "w") as archive:  # stored, not deflated: damage shows at the end of the member only
        archive.writestr("glove.txt", LINES + b"other 1 2 3\n" * 300_000)
    path.write_bytes(path.read_bytes().replace(b"other", b"OTHER", 1))
    assert row(path, "sat") == [4, 5, 6]
    with pytest.raises(ValueError, match=r"glove\.zip: cannot be unpacked \(Bad CRC"):
        row(path, "missing")


# The same word in other case


def test_a_word_without_a_vector_takes_that_of_other_case_when_asked(tmp_path):
    path = write(tmp_path, LINES + b"Dog 7 7 7\nDOG 8 8 8\ndog 9 9 9\nYak 5 5 5\nYAK 6 6 6\n")
    words = vocabulary("dog", "yak", "cat", "emu")
    vectors = load_vectors(path, words, cased_fallback=True)
    assert vectors.matrix[2:5].tolist() == [[9, 9, 9], [5, 5, 5], [1, 2, 3]]
    assert vectors.found.tolist() == [False, False, True, True, True, False]
    assert vectors.other_case.tolist() == [False, False, False, True, False, False]
    without = load_vectors(path, words)
    assert without.found.tolist() == [False, False, True, False, True, False]
    assert not without.other_case.any()


def test_a_damaged_line_in_other_case_matters_only_if_it_is_used(tmp_path):
    path = write(tmp_path, LINES + b"Dog nan 7 7\nDog dog 1 2 3\ndog 9 9 9\nYak 1\n")
    assert row(path, "dog", cased_fallback=True) == [9, 9, 9]
    with pytest.raises(ValueError, match=r"glove\.txt:7: 1 numbers for b'Yak'"):
        row(path, "yak", cased_fallback=True)


# Any file


WORDS = st.lists(st.text("aAbBéÉß.", min_size=1, max_size=3), min_size=1, max_size=3).map(" ".join)
NUMBERS = st.lists(st.integers(-99, 99), min_size=2, max_size=2)


def slowly(lines, words, cased_fallback):
    """What a vocabulary's words have in lines (word, numbers), one after another."""
    found = {}
    for word in words:
        same = [numbers for other, numbers in lines if other == word]
        similar = [numbers for other, numbers in lines if other.lower() == word.lower()]
        found[word] = next(iter(same or (similar if cased_fallback else [])), None)
    return found


@given(
    lines=st.lists(st.tuples(WORDS, NUMBERS), max_size=30),
    words=st.sets(st.text("aAbBéÉß.", min_size=1, max_size=2), max_size=8),
    block_bytes=st.integers(1, 200),
    cased_fallback=st.booleans(),
    packed=st.booleans(),
)
def test_whatever_the_file_the_words_have_what_a_slow_reader_finds(lines, words, block_bytes, cased_fallback, packed):
    lines = [("first", [0, 0]), *lines]
    content = "".join(f"{word} {x} {y}\n" for word, (x, y) in lines).encode()
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(glove_files, "BLOCK_BYTES", block_bytes):
        path = write_zip(Path(folder), glove_txt=content) if packed else write(Path(folder), content)
        vectors = load_vectors(path, vocabulary(*words), cased_fallback=cased_fallback)
    wanted = slowly(lines, words, cased_fallback)
    found = {
        word: r.tolist() if f else None for word, r, f in zip(words, vectors.matrix[2:], vectors.found[2:], strict=True)
    }
    assert found == wanted


@given(st.integers(1, 400), st.integers(1, 5000), st.booleans())
def test_a_damaged_line_is_named_by_its_number_wherever_blocks_end(at, block_bytes, header):
    lines = [b"w%d %s 2" % (number, b"1" * (number % 7 + 1)) for number in range(401)]
    lines[at] = b"dog 1"
    content = b"\n".join([b"401 2"] * header + lines)
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(glove_files, "BLOCK_BYTES", block_bytes):
        path = write(Path(folder), content)
        with pytest.raises(ValueError, match=rf"glove\.txt:{at + 1 + header}: 1 numbers for b'dog'"):
            load_vectors(path, vocabulary("dog"))


@pytest.mark.parametrize("beginning", [b"", LINES, LINES * 100_000])
@pytest.mark.parametrize("packed", [False, True])
def test_a_large_file_without_a_line_feed_is_refused_and_not_read_into_memory(tmp_path, beginning, packed):
    path = write(tmp_path, beginning)
    if packed:
        path = write_zip(tmp_path, glove_txt=beginning + bytes(100 << 20))
    else:
        os.truncate(path, 5 << 30)
    tracemalloc.start()
    try:
        message = (
            rf"no line feed in 1,048,576 bytes from byte {len(beginning):,} on, b'\\x00.*expected a line for every word"
        )
        with pytest.raises(ValueError, match=r"glove\.(txt|zip\[glove\.txt\]): " + message):
            load_vectors(path, vocabulary("missing"))
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


def test_a_first_line_of_absurd_length_asks_for_no_memory(tmp_path):
    with pytest.raises(ValueError, match=r"glove\.txt:1: 20,000 numbers for b'the'; at most 10,000"):
        row(write(tmp_path, b"the" + b" 1" * 20_000), "the")
    with pytest.raises(ValueError, match=r"glove\.txt:2: 3 numbers for b'the'; the first line has 1"):
        row(write(tmp_path, b"9" * 5000 + b" 3\n" + LINES), "the")


def test_a_byte_order_mark_is_no_part_of_the_first_word(tmp_path):
    assert row(write(tmp_path, b"\xef\xbb\xbf" + LINES), "the") == pytest.approx([0.1, 0.2, -0.3])
    assert peek(write(tmp_path, b"\xef\xbb\xbf3 3\n" + LINES)) == ("the", 3)


@pytest.mark.parametrize("seed", range(30))
def test_damage_of_a_zip_is_told_whatever_it_hits(tmp_path, seed):
    draw = random.Random(seed)
    content = bytearray(write_zip(tmp_path, glove_txt=b"".join(b"w%d 0.5 %d\n" % (i, i) for i in range(3000))).read_bytes())
    for _ in range(draw.choice([1, 3, 20])):
        at = draw.randrange(len(content)) if seed % 2 else len(content) - 1 - draw.randrange(120)  # where the directory is
        content[at] = draw.randrange(256)
    path = write(tmp_path, bytes(content), "glove.zip")
    with contextlib.suppress(ValueError):  # nothing else
        assert row(path, "w2999") == [0.5, 2999]


def test_a_zip_is_known_by_its_content_too_and_shadows_of_macos_are_no_texts(tmp_path):
    path = write_zip(tmp_path, glove_txt=LINES).rename(tmp_path / "blob")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("__MACOSX/._glove.txt", b"\0")
    assert row(path, "cat") == [1, 2, 3]
    assert texts_in(path) == ["glove.txt"]


@pytest.mark.parametrize(
    ("rest", "cut"),
    [(b"", False), (b"dog 1 2 3", False), (b"dog 1 2", True), (b"dog 1 2 -", True), (b"d", True), (b"\n\n", False)],
)
def test_a_text_that_ends_within_a_line_is_known(tmp_path, rest, cut):
    assert is_truncated(write(tmp_path, LINES + rest)) is cut
