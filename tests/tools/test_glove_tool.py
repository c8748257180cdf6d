"""excl glove: published word vectors by name, and what a file is."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import zipfile

import pytest
from file_server import Server

from excl.datasets.text.vocabulary import PAD_TOKEN, UNK_TOKEN, Vocabulary
from excl.pipeline.queries import published_glove
from excl.pipeline.queries.published_glove import PUBLISHED, PublishedGlove
from excl.pipeline.queries.word_vectors import identify, vectors_for
from excl.workflows.cli import main

LINES = b"the 0.1 0.2 -0.3\ncat 1 2e0 3\n"
WORDS = Vocabulary((PAD_TOKEN, UNK_TOKEN, "cat", "emu"))
TEXT = "glove.6B.300d.txt"


def zipped(comment=b"", **members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.comment = comment
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


ZIP = zipped(**{"glove.6B.50d.txt": b"cat 7\n", TEXT: LINES})
AGAIN = zipped(b"made again", **{"glove.6B.50d.txt": b"cat 7\n", TEXT: LINES})


def damaged(archive):
    """A zip with other bytes in the middle of its last text."""
    at = archive.index(TEXT.encode()) + len(TEXT) + 10
    return archive[:at] + b"????" + archive[at + 4 :]


@pytest.fixture(autouse=True)
def published(monkeypatch, tmp_path):
    """A small zip counts as the published one of 6B."""
    sums = hashlib.sha1(ZIP).hexdigest(), hashlib.sha1(LINES).hexdigest()
    monkeypatch.setitem(PUBLISHED, "6B", PublishedGlove("6B", "glove.6B.zip", sums[0], TEXT, sums[1]))
    monkeypatch.setenv("EXCL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def server(monkeypatch):
    one = Server()
    one.content = ZIP
    monkeypatch.setattr(published_glove, "BASE_URL", one.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield one
    one.stall.set()
    one.http.shutdown()


def test_a_name_is_fetched_on_first_use_and_means_300_numbers(server):
    vectors, file = vectors_for("6B", WORDS)
    assert vectors.matrix[2].tolist() == [1, 2, 3]
    assert (file.file, file.known, file.sha1) == ("glove.6B.zip", "glove.6B.zip", hashlib.sha1(ZIP).hexdigest())
    assert vectors_for("6B", WORDS, member="glove.6B.50d.txt")[0].dim == 1
    assert identify("6B") == file
    assert len(server.asked) == 1


def test_fetch_goes_on_from_where_it_stopped(server, capsys, caplog):
    server.cuts = [50]
    assert main(["glove", "fetch", "6B"]) == 1
    assert "glove.6B.zip: cannot be downloaded" in caplog.text
    assert "give its path in place of 6B, or put it at" in caplog.text
    part = PUBLISHED["6B"].cached_path.with_name("glove.6B.zip.part")
    part.write_bytes(ZIP[:50])
    assert main(["glove", "fetch", "6B"]) == 0
    assert server.asked[1] == ("bytes=50-", '"first"')
    assert capsys.readouterr().out == f"6B: verified, in {PUBLISHED['6B'].cached_path}\n"
    assert PUBLISHED["6B"].cached_path.read_bytes() == ZIP
    assert not part.exists()


def test_a_zip_that_was_made_again_is_taken_for_its_text(server, capsys, caplog):
    server.content = AGAIN
    assert main(["glove", "fetch", "6B"]) == 0
    assert f"the zip was rebuilt since its checksum was published; {TEXT} in it is the published one" in caplog.text
    caplog.clear()
    assert main(["glove", "fetch", "6B"]) == 0
    assert caplog.text == ""
    assert main(["glove", "verify", "6B", str(PUBLISHED["6B"].cached_path)]) == 0
    told = (
        "ok: a zip that was rebuilt, glove.6B.50d.txt has 1 numbers a word, the first word is 'cat', "
        f"in it the published {TEXT}, 3 numbers a word; sha1 {hashlib.sha1(AGAIN).hexdigest()}\n"
    )
    assert capsys.readouterr().out.count(told) == 2
    assert identify("6B").known == TEXT
    assert vectors_for("6B", WORDS)[0].matrix[2].tolist() == [1, 2, 3]
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (zipped(**{TEXT: LINES + b"more 1 2 3\n"}), f"{TEXT} in it: sha1"),
        (zipped(**{"other.txt": LINES}), f"{TEXT} in it: expected '{TEXT}' in it, found 1 .txt: other.txt"),
        (damaged(AGAIN), f"{TEXT} in it: cannot be unpacked"),
        (AGAIN[:-30], f"{TEXT} in it: cannot be unpacked"),
        (b"no zip", f"{TEXT} in it: is no .zip"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a git LFS pointer"),
        (b"", "it is an empty file"),
    ],
)
def test_something_else_is_refused_and_removed(server, caplog, content, message):
    server.content = content
    assert main(["glove", "fetch", "6B"]) == 2
    assert "the download is not the published file" in caplog.text
    assert message in caplog.text
    assert "it was removed" in caplog.text
    assert [p for p in PUBLISHED["6B"].cached_path.parent.iterdir() if p.name.startswith("glove.")] == []


def test_a_page_is_refused(server, caplog):
    server.content_type = "text/html"
    assert main(["glove", "fetch", "6B"]) == 2
    assert "an HTML page and not the file; fetch it by hand and give its path in place of 6B, or put it at" in caplog.text


def test_damage_in_the_cache_is_told_and_mended(server, capsys, caplog):
    assert main(["glove", "fetch", "6B"]) == 0
    PUBLISHED["6B"].cached_path.write_bytes(damaged(ZIP))
    capsys.readouterr()
    assert main(["glove", "list"]) == 0
    first, second = capsys.readouterr().out.splitlines()[1:]
    assert first.startswith("6B") and "(WRONG: " in first  # noqa: PT018
    assert second.startswith("840B") and second.endswith("not fetched")  # noqa: PT018
    assert main(["glove", "verify", "6B"]) == 3
    assert vectors_for("6B", WORDS)[0].found[2]
    assert "damaged (sha1" in caplog.text
    assert main(["glove", "verify", "6B"]) == 0
    assert "6B: ok: the published glove.6B.zip, 1 and 3 numbers a word; sha1" in capsys.readouterr().out


def test_list_tells_programs_too(server, capsys):
    assert main(["glove", "fetch", "6B"]) == 0
    capsys.readouterr()
    assert main(["glove", "list", "--json"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["published"], first["size"], first["wrong"]) == ("glove.6B.zip", len(ZIP), None)
    assert first["texts"][1] == {"name": TEXT, "dim": 3, "first_word": "the", "published": TEXT}
    assert (second["name"], second["path"]) == ("840B", None)


GOOD = {
    "mine.txt": (LINES * 2, "mine.txt has 3 numbers a word, the first word is 'the'; not a published file; sha1 "),
    "word2vec.txt": (b"4 3\n" + LINES * 2, "word2vec.txt has 3 numbers a word, the first word is 'the'; not a published"),
    "mine.zip": (zipped(a=b"x", **{"v.txt": LINES * 2}), "v.txt has 3 numbers a word, the first word is 'the'; not a"),
    "readme.zip": (zipped(**{"readme.txt": b"see below", "v.txt": LINES}), "a zip that was rebuilt, in it the published"),
    "no_suffix": (ZIP, "the published glove.6B.zip, 1 and 3 numbers a word"),
}


@pytest.mark.parametrize("name", GOOD)
def test_verify_says_what_a_file_is(tmp_path, capsys, name):
    content, told = GOOD[name]
    (tmp_path / name).write_bytes(content)
    assert main(["glove", "verify", str(tmp_path / name)]) == 0
    assert f"{name}: ok: {told}" in capsys.readouterr().out


def test_a_published_text_is_known_wherever_it_is(tmp_path, capsys):
    (tmp_path / "renamed.txt").write_bytes(LINES)
    assert main(["glove", "verify", str(tmp_path / "renamed.txt")]) == 0
    assert f"renamed.txt: ok: the published {TEXT}, 3 numbers a word" in capsys.readouterr().out
    assert identify(tmp_path / "renamed.txt").known == TEXT


WRONG = {
    "empty.txt": (b"", "an empty file"),
    "zeros.txt": (bytes(5000), "it begins with zeros"),
    "page.txt": (b"\n<!DOCTYPE html><html>", "an HTML page and not the file"),
    "page.zip": (b"<html>", "an HTML page and not the file"),
    "pointer.txt": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a git LFS pointer"),
    "packed.txt": (gzip.compress(LINES), "packed with gzip"),
    "prose.txt": (b"once upon a time\n", "found b'once upon a time"),
    "cut.txt": (LINES[:-4], "the last line lacks numbers: the file is cut short"),
    "cut.zip": (zipped(**{"v.txt": LINES * 2})[:-30], "cannot be unpacked"),
    "damaged.zip": (damaged(AGAIN), "cannot be unpacked"),
    "none.zip": (zipped(a=b"x"), "a zip without a .txt in it"),
    "prose.zip": (zipped(**{"readme.txt": b"see below"}), "found b'see below'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_verify_says_what_is_wrong(tmp_path, capsys, name):
    content, told = WRONG[name]
    (tmp_path / name).write_bytes(content)
    assert main(["glove", "verify", str(tmp_path / name)]) == 3
    assert told in capsys.readouterr().out.partition("WRONG: ")[2]


def test_verify_counts_over_all_files(tmp_path, capsys):
    (tmp_path / "mine.txt").write_bytes(LINES + b"emu 1 2 3\n")
    files = [str(tmp_path / "mine.txt"), str(tmp_path / "none.txt"), "840B"]
    assert main(["glove", "verify", *files, "--json"]) == 3
    mine, none, name = map(json.loads, capsys.readouterr().out.splitlines())
    assert mine["wrong"] is None
    assert mine["sha256"] == hashlib.sha256(LINES + b"emu 1 2 3\n").hexdigest()
    assert none["wrong"] == "there is no such file"
    assert name["wrong"] == "not in the cache; `excl glove fetch 840B` downloads it"
    assert main(["glove", "verify", files[0]]) == 0


@pytest.mark.parametrize("arguments", [["fetch"], ["verify"], ["fetch", "42B"], []])
def test_what_cannot_be_asked_for(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["glove", *arguments])
    assert ended.value.code == 2
