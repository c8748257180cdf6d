"""The annotation files of each split, and the moments in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from excl.datasets.annotations.formats import FORMATS, OWN, read_moments
from excl.datasets.annotations.known_data_sets import KNOWN, Part
from excl.datasets.annotations.moments import Moment
from excl.pipeline.config import existing_file

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class AnnotationSources:
    """The files of a data set by split (under "" one whose rows name their own), those with durations, official facts."""

    format: str
    files: Mapping[str, tuple[Path, ...]]
    durations: tuple[Path, ...]
    parts: Mapping[Path, Part]

    def all_files(self) -> list[Path]:
        """The files that are read."""
        return [*(path for paths in self.files.values() for path in paths), *self.durations]

    def made_of(self, split: str) -> str:
        """The files of a split, in words."""
        paths = self.files.get(split) or self.files.get("", ())
        return f"{'rows of ' if '' in self.files else ''}{' + '.join(path.name for path in paths)}"


def find_sources(
    dataset: str, annotations: Path | None, chosen: Mapping[str, Sequence[str]], durations: Sequence[Path]
) -> AnnotationSources:
    """Return the files for the settings of `excl tokenise`; ValueError if these do not go together."""
    own_format = OWN.get(Path(dataset).suffix.lower())
    if own_format is not None:
        if annotations or durations or any(chosen.values()):
            raise ValueError(f"dataset: {dataset} names its splits itself: no annotations, train, val, test or durations")
        return AnnotationSources(own_format, {"": (Path(dataset),)}, (), {})
    if dataset not in FORMATS:
        raise ValueError(
            f"dataset: {dataset!r} is neither one of {', '.join(FORMATS)} nor a file that ends in {', '.join(OWN)}"
        )
    if annotations is None:
        files = {split: tuple(Path(value) for value in chosen[split]) for split in SPLITS}
        parts: dict[Path, Part] = {}
    else:
        files, parts = _parts(dataset, annotations, chosen)
    if not files["train"]:
        folder = " or annotations, the folder with the official files" if dataset in KNOWN else ""
        raise ValueError(f"train: needed{folder}: the vocabulary comes from the training split")
    return AnnotationSources(dataset, files, _durations(dataset, annotations, durations), parts)


def _parts(
    dataset: str, annotations: Path, chosen: Mapping[str, Sequence[str]]
) -> tuple[dict[str, tuple[Path, ...]], dict[Path, Part]]:
    """The official files in the folder, by the names of their parts, and what is known of them."""
    if dataset not in KNOWN:
        raise ValueError(f"annotations: only for {', '.join(KNOWN)}; for {dataset} give the files by train, val and test")
    official = KNOWN[dataset]
    if annotations.exists() and not annotations.is_dir():
        file_names = ", ".join(part.file for part in official.parts.values())
        raise ValueError(f"annotations: {annotations} is a file; expected the folder with {file_names}")
    files: dict[str, tuple[Path, ...]] = {}
    facts: dict[Path, Part] = {}
    for split in SPLITS:
        names = [name for value in chosen[split] or (official.splits.get(split, ""),) for name in value.split("+") if name]
        unknown = [name for name in names if name not in official.parts]
        if len(set(names)) < len(names):
            raise ValueError(f"{split}: {'+'.join(names)} has a part twice")
        if unknown:
            raise ValueError(
                f"{split}: {unknown[0]!r} is no part of {dataset}; those are {', '.join(official.parts)}, joined by +"
            )
        files[split] = tuple(annotations / official.parts[name].file for name in names)
        facts |= {annotations / official.parts[name].file: official.parts[name] for name in names}
    return files, facts


def _durations(dataset: str, annotations: Path | None, paths: Sequence[Path]) -> tuple[Path, ...]:
    """The files that hold the videos' durations, for the data sets that have them apart."""
    if dataset not in ("charades-sta", "charades-reannotated", "tacos-tall"):
        if paths:
            raise ValueError("durations: used by charades-sta, charades-reannotated and tacos-tall only; leave it out")
        return ()
    if paths or dataset == "tacos-tall":
        return tuple(paths)
    if annotations is None:
        raise ValueError(
            f"durations: needed for {dataset}: Charades_v1_train.csv and Charades_v1_test.csv, or charades.json"
        )
    choices = [tuple(annotations / name for name in names) for names in KNOWN[dataset].durations]
    return next((files for files in choices if all(file.is_file() for file in files)), choices[0])


def load_moments(sources: AnnotationSources) -> list[Moment]:
    """Return all moments of the files, every split under its name, nothing removed; ValueError names what is unreadable."""
    for path in sources.all_files():
        existing_file(path, what=f"annotations of {sources.format}")
    moments = [
        moment
        for split, paths in sources.files.items()
        for path in paths
        for moment in _in_groups(
            read_moments(sources.format, path, split=split, durations=sources.durations),
            group=path.stem if len(paths) > 1 and split in ("val", "test") else "",
        )
    ]
    unknown_splits = sorted({m.split for m in moments} - set(SPLITS))
    if unknown_splits:
        raise ValueError(f"{moments[0].source}: found the splits {unknown_splits}; they are called {', '.join(SPLITS)} here")
    for split in ("train", *(split for split in ("val", "test") if sources.files.get(split))):
        if not any(m.split == split for m in moments):
            file_names = ", ".join(path.name for path in sources.files.get(split) or sources.all_files())
            hint = "the vocabulary comes from it" if split == "train" else "leave the file out, if that is right"
            raise ValueError(f"{file_names}: no moments of the split {split}; {hint} (lines that begin with # are comments)")
    repeated = [i for i, count in Counter(m.annotation_id for m in moments).items() if count > 1]
    if repeated:
        raise ValueError(f"{len(repeated)} annotation ids stand more than once, {repeated[0]!r} for one")
    _require_one_query(moments)
    return moments


def _in_groups(moments: Iterable[Moment], *, group: str) -> list[Moment]:
    """Return moments with this group where they have none: results are then given for every file of a split."""
    return [replace(moment, group=group) if group and not moment.group else moment for moment in moments]


def _require_one_query(moments: Sequence[Moment]) -> None:
    """Raise ValueError if moments have one query id and are not answers to one query."""
    moment_by_query: dict[str, Moment] = {}
    for moment in moments:
        earlier = moment_by_query.setdefault(moment.query_id, moment) if moment.query_id else moment
        if (earlier.split, earlier.video_id, earlier.query, earlier.group) != (
            moment.split, moment.video_id, moment.query, moment.group
        ):  # fmt: skip
            raise ValueError(
                f"{earlier.source} and {moment.source} have the query_id {moment.query_id!r}, but are not of one split, "
                "video, query and group; only several answers to one query have one query_id"
            )
