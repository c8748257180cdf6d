"""GloVe's published zips: in the cache, recognised by their checksums or by that of the text in them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from excl.datasets.text.glove_files import GloveFileError, find_text, unzip_errors
from excl.models.download import PublishedFile
from excl.pipeline.artifacts.file_cache import checksums

log = logging.getLogger(__name__)

BASE_URL = "https://nlp.stanford.edu/data/"
TEXT_FORMAT = "GloVe's text format"


@dataclass(frozen=True)
class PublishedGlove(PublishedFile):
    """A zip as Stanford publishes it. A zip that was packed again since is accepted if its text is the published one."""

    name: str
    file_name: str
    sha1: str
    text: str
    """The member with 300 numbers a word."""
    text_sha1: str

    @property
    def url(self) -> str:
        """The address from which the zip is fetched."""
        return BASE_URL + self.file_name

    @property
    def manual_hint(self) -> str:
        """The instructions for a zip that was fetched by hand."""
        return (
            f"give its path in place of {self.name}, or put it at {self.cached_path}. To try the steps without it: the few "
            "words of vectors.txt, which `excl demo DIR` writes"
        )

    def mismatch(self, path: Path) -> str | None:
        """Return in what a file differs from the published zip and from one with the same text in it, or None."""
        if (sha1 := checksums(path).sha1) == self.sha1:
            return None
        try:
            text_sha1 = sha1_of_text(path, self.text)
        except GloveFileError as error:
            reason = error.reason
        else:
            if text_sha1 == self.text_sha1:
                return None
            reason = f"sha1 {text_sha1}, published is {self.text_sha1}"
        return f"sha1 {sha1}, published is {self.sha1}; {self.text} in it: {reason}"

    def fetch(self) -> Path:
        """Return the zip in the cache, downloaded if it is not there; warn of one that was packed again."""
        is_cached = self.cached_path.is_file()
        path = super().fetch()
        if not is_cached and checksums(path).sha1 != self.sha1:
            log.warning(
                "%s: the zip was rebuilt since its checksum was published; %s in it is the published one", path, self.text
            )
        return path


# The sha1s are those of Apache MXNet's contrib.text, which others repeat.
PUBLISHED = {
    "6B": PublishedGlove(
        "6B",
        "glove.6B.zip",
        "b64e54f1877d2f735bdd000c1d7d771e25c7dfdc",
        "glove.6B.300d.txt",
        "646443dd885090927f8215ecf7a677e9f703858d",
    ),
    "840B": PublishedGlove(
        "840B",
        "glove.840B.300d.zip",
        "8084fbacc2dee3b1fd1ca4cc534cbfff3519ed0d",
        "glove.840B.300d.txt",
        "294b9f37fa64cce31f9ebb409c266fc379527708",
    ),
}


def published_file(sha1: str) -> str | None:
    """Return the name of the published file, zip or text, that has this sha1, or None."""
    names = {published.sha1: published.file_name for published in PUBLISHED.values()}
    names |= {published.text_sha1: published.text for published in PUBLISHED.values()}
    return names.get(sha1)


def sha1_of_text(path: Path, member: str) -> str:
    """Return the sha1 of a text in a zip, which is read to its end unless its checksum is remembered."""
    find_text(path, member)
    with unzip_errors(path):
        return checksums(path, member).sha1
