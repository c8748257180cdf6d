"""Word vectors by path or name: read once, remembered by what made them, and never of another file than they say."""

from __future__ import annotations

import hashlib
import os
import pathlib
import subprocess
import sys
import zipfile

import commands
import numpy as np
import pytest

from excl.datasets.text.glove import load_vectors
from excl.datasets.text.vocabulary import PAD_TOKEN, UNK_TOKEN, Vocabulary
from excl.pipeline.queries import word_vectors
from excl.pipeline.queries.word_vectors import GloveFile, identify, local_file, vectors_for

LINES = b"the 0.1 0.2 -0.3\ncat 1 2e0 3\nSat 4 5 6\n"
WORDS = Vocabulary((PAD_TOKEN, UNK_TOKEN, "cat", "sat", "emu"))


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("EXCL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def path(tmp_path):
    made = tmp_path / "glove.txt"
    made.write_bytes(LINES)
    return made


@pytest.fixture
def opened(monkeypatch):
    """The files that were opened for reading, in their order."""
    names, original = [], pathlib.Path.open

    def recording(self, *arguments, **keywords):
        names.append(self.name)
        return original(self, *arguments, **keywords)

    monkeypatch.setattr(pathlib.Path, "open", recording)
    return names


def same(one, other):
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("matrix", "found", "other_case"))


def entries(cache, kind="vectors"):
    folder = cache / "checksums" if kind == "checksums" else cache / "glove" / kind
    return sorted(p for p in folder.iterdir() if not p.name.startswith(".")) if folder.is_dir() else []


def test_a_fingerprint_is_that_of_the_saved_file(tmp_path):
    WORDS.save(tmp_path / "vocabulary.txt")
    assert WORDS.fingerprint == hashlib.sha256((tmp_path / "vocabulary.txt").read_bytes()).hexdigest()


def test_vectors_are_those_of_the_loader_with_what_the_file_is(path):
    vectors, file = vectors_for(path, WORDS, seed=3)
    assert same(vectors, load_vectors(path, WORDS, seed=3))
    sums = hashlib.sha256(LINES).hexdigest(), hashlib.sha1(LINES).hexdigest()
    assert file == GloveFile("glove.txt", *sums, known=None) == identify(path)


def test_the_second_time_the_file_is_not_opened(path, opened):
    first, file = vectors_for(str(path), WORDS)
    assert "glove.txt" in opened
    opened.clear()
    again, same_file = vectors_for(path, WORDS)
    assert "glove.txt" not in opened
    assert same(first, again)
    assert file == same_file


def test_checksums_are_computed_once(path, opened):
    file = identify(path)
    assert "glove.txt" in opened
    opened.clear()
    assert identify(path) == file
    assert "glove.txt" not in opened


@pytest.mark.parametrize("num_bytes", [0, 1, 1 << 20, (3 << 20) + 17])
def test_checksums_are_those_of_all_bytes_even_where_reading_stops_early(tmp_path, num_bytes):
    path = tmp_path / "long.txt"
    content = LINES + b"dog 1 2 3\n" + os.urandom(num_bytes)
    path.write_bytes(content)
    vectors, file = vectors_for(path, Vocabulary((PAD_TOKEN, UNK_TOKEN, "dog")))
    assert vectors.found[2]
    assert (file.sha256, file.sha1) == (hashlib.sha256(content).hexdigest(), hashlib.sha1(content).hexdigest())


def test_what_matters_is_told_apart(path, tmp_path, cache):
    other_file = tmp_path / "other.txt"
    other_file.write_bytes(LINES.replace(b"1 2e0", b"7 8"))
    words = Vocabulary((*WORDS.words, "yak"))
    asked = [
        (path, WORDS, {}),
        (path, WORDS, {"seed": 1}),
        (path, WORDS, {"cased_fallback": True}),
        (path, words, {}),
        (other_file, WORDS, {}),
    ]
    for _ in range(2):
        for file, vocabulary, settings in asked:
            assert same(vectors_for(file, vocabulary, **settings)[0], load_vectors(file, vocabulary, **settings))
    assert len(entries(cache)) == len(asked)


def test_members_of_a_zip_are_told_apart(tmp_path):
    path = tmp_path / "glove.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", LINES)
        archive.writestr("b.txt", b"cat 1 2\n")
    for _ in range(2):
        assert [vectors_for(path, WORDS, member=member)[0].dim for member in ("a.txt", "b.txt")] == [3, 2]
    with pytest.raises(ValueError, match=r"found 2 \.txt: a\.txt, b\.txt; say which with --glove-member NAME"):
        vectors_for(path, WORDS)


def test_the_same_file_elsewhere_is_known_by_its_content(path, tmp_path, cache):
    vectors_for(path, WORDS)
    copy = tmp_path / "copy.txt"
    copy.write_bytes(LINES)
    assert identify(copy).sha256 == identify(path).sha256
    vectors_for(copy, WORDS)
    assert len(entries(cache)) == 1


def test_another_version_of_the_loader_reads_again(path, cache, monkeypatch):
    vectors_for(path, WORDS)
    monkeypatch.setattr(word_vectors, "LOADER_VERSION", 999)
    vectors_for(path, WORDS)
    assert len(entries(cache)) == 2


def test_a_file_that_changed_is_noticed(path):
    before, file = vectors_for(path, WORDS)
    stat = path.stat()
    path.write_bytes(LINES.replace(b"1 2e0", b"7 8e0"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    after, changed = vectors_for(path, WORDS)
    assert after.matrix[2].tolist() == [7, 8, 3]
    assert before.matrix[2].tolist() == [1, 2, 3]
    assert file.sha256 != changed.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("known", [False, True])
def test_a_file_that_changes_while_it_is_read_is_refused(path, cache, monkeypatch, known):
    if known:
        identify(path)

    def loading(*arguments, **keywords):
        vectors = load_vectors(*arguments, **keywords)
        path.write_bytes(LINES + b"more 1 2 3\n")
        return vectors

    monkeypatch.setattr(word_vectors, "load_vectors", loading)
    with pytest.raises(ValueError, match=r"glove\.txt: it was changed while it was read; run the same command again"):
        vectors_for(path, WORDS)
    assert entries(cache) == []
    assert identify(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("at", [0, 40, -1])
def test_a_damaged_entry_is_made_again(path, cache, caplog, at):
    first, _ = vectors_for(path, WORDS)
    (entry,) = entries(cache)
    whole = entry.read_bytes()
    damaged = bytearray(whole)
    damaged[at] ^= 1
    for content in (bytes(damaged), whole[: len(whole) // 2], b""):
        caplog.clear()
        entry.write_bytes(content)
        assert same(vectors_for(path, WORDS)[0], first)
        assert "damaged; the word vectors are read from their file again" in caplog.text
        assert entry.read_bytes() == whole


def test_an_entry_under_another_name_is_not_taken(path, cache):
    vectors_for(path, WORDS, seed=1)
    (first,) = entries(cache)
    vectors_for(path, WORDS, seed=2)
    (second,) = set(entries(cache)) - {first}
    first.write_bytes(second.read_bytes())
    assert same(vectors_for(path, WORDS, seed=1)[0], load_vectors(path, WORDS, seed=1))


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff", b'{"stamp": 1, "what": 2, "facts": 3}'])
def test_damaged_checksums_are_computed_again(path, cache, content):
    file = identify(path)
    (entry,) = entries(cache, "checksums")
    entry.write_bytes(content)
    assert identify(path) == file
    assert entry.read_bytes() != content


@pytest.mark.parametrize("seed", [0, 1])
def test_a_cache_that_cannot_be_written_costs_a_warning(path, cache, caplog, seed):
    if seed:
        cache.write_text("a file")
    else:
        cache.mkdir()
        (cache / "glove").write_text("a file")
    for _ in range(2):
        vectors, file = vectors_for(path, WORDS, seed=seed)
        assert same(vectors, load_vectors(path, WORDS, seed=seed))
        assert file.sha256 == hashlib.sha256(LINES).hexdigest()
    assert "the cache cannot be written" in caplog.text


def test_a_full_disk_costs_a_warning_and_leaves_nothing_behind(path, cache, caplog, monkeypatch):
    def full(self, content):
        with self.open("wb") as file:
            file.write(content[:5])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    assert vectors_for(path, WORDS)[0].found[2]
    assert "No space left on device" in caplog.text
    assert [p.name for p in cache.rglob("*") if p.is_file() and p.name != ".lock"] == []


def test_the_most_recently_used_are_kept(path, cache):
    made = []
    for seed in range(16):
        vectors_for(path, WORDS, seed=seed)
        (new,) = set(entries(cache)) - set(made)
        os.utime(new, ns=(seed, seed))
        made.append(new)
    vectors_for(path, WORDS, seed=0)  # from now on the last used
    vectors_for(path, WORDS, seed=16)
    kept = entries(cache)
    assert len(kept) == 16
    assert made[0] in kept
    assert made[1] not in kept


def test_what_a_killed_process_left_is_removed(path, cache):
    vectors_for(path, WORDS)
    leftover = cache / "glove" / "vectors" / ".x.vectors.999.tmp"
    leftover.write_bytes(b"half")
    vectors_for(path, WORDS, seed=1)
    assert not leftover.exists()


def test_processes_at_once_do_not_disturb_each_other(path, cache):
    code = (
        "import sys; from pathlib import Path; from excl.pipeline.queries.word_vectors import vectors_for\n"
        "from excl.datasets.text.vocabulary import Vocabulary\n"
        "for seed in range(20): vectors_for(Path(sys.argv[1]), Vocabulary(('<pad>', '<unk>', 'cat')), seed=seed)\n"
    )
    processes = [
        commands.start([sys.executable, "-c", code, str(path)], stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    assert [(process.communicate()[1], process.returncode) for process in processes] == [("", 0)] * 3
    assert len(entries(cache)) == 16


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html>", "glove.txt: an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n", "glove.txt: a git LFS pointer"),
        (b"", "glove.txt: an empty file"),
        (b"\x1f\x8b123", "glove.txt: a file packed with gzip"),
        (LINES + b"emu 1\n", "glove.txt:4: 1 numbers for b'emu'"),
    ],
)
def test_a_wrong_file_is_refused_and_nothing_of_it_kept(path, cache, content, message):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        vectors_for(path, WORDS)
    assert entries(cache) == []


def test_a_missing_file_is_told(tmp_path):
    for ask in (identify, lambda path: vectors_for(path, WORDS)):
        with pytest.raises(FileNotFoundError, match=r"none\.txt: there is no such file \(word vectors\)"):
            ask(tmp_path / "none.txt")


def test_names_are_no_local_files(tmp_path):
    assert [local_file(name) for name in ("6B", "840B")] == [None, None]
    assert local_file("./6B") == pathlib.Path("6B")
    assert local_file(tmp_path) == tmp_path
