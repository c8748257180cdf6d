"""Word vectors from GloVe's text format and its zip."""

import zipfile

import numpy as np
import pytest

from excl.datasets.glove import load_vectors
from excl.datasets.text import PAD, PAD_TOKEN, UNK, UNK_TOKEN, Vocabulary

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
    with pytest.raises(ValueError, match=r"glove\.txt:[12]: found b.*wanted a word and its numbers"):
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
    with pytest.raises(ValueError, match=r"found 2 \.txt: small\.txt, large\.txt; name the member"):
        row(path, "cat")
    with pytest.raises(ValueError, match=r"wanted 'huge\.txt' in it, found 2"):
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
