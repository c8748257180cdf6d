"""Where each trainer looks for what: a function a format that writes features, and annotations if there are queries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from excl.pipeline.exchange import annotation_files, feature_writers, lgi_cache, naming_rules
from excl.pipeline.exchange.export_view import ExportView, Task

C3D = "sub_activitynet_v1-3.c3d.hdf5"  # readers of ActivityNet's published features ask for this file and …
C3D_DATASET = "c3d_features"  # … for this dataset in each video's group, whatever the features are
AS_SPLITS = {split: f"{split}.json" for split in ("train", "val", "test")}


@dataclass(frozen=True)
class FormatSettings:
    """What a writer needs to know beside the content: the free part of its names, the length of tar shards."""

    name: str
    shard_videos: int


Write = Callable[[Path, ExportView, FormatSettings], None]


@dataclass(frozen=True)
class Format:
    """How a format is written for one task: what an id must be, and the defaults of what can be chosen.

    `dtype` None is the store's own. `name` is the default of --name, empty where names are fixed. `avi` says whether ids end
    in .avi (None: as they are). `lines` says that ids stand in lines of Charades-STA. `casts` says whether the trainer makes
    float32 of what it reads. `least_rows` is 2 where the trainer's `squeeze` would take away the axis of a single row.
    """

    write: Write
    rule: naming_rules.Rule = naming_rules.file_name
    dtype: str | None = "float32"
    name: str = ""
    avi: bool | None = None
    lines: bool = False
    casts: bool = True
    least_rows: int = 1
    shards: bool = False


def write_ms_2d_tan(out: Path, content: ExportView, settings: FormatSettings) -> None:
    """The folder that its DATA_DIR names; `settings.name` is its VIS_INPUT_TYPE."""
    feature_writers.write_hdf5(out / f"{settings.name}.hdf5", content.videos())
    _tan_annotations(out, content)


def write_2d_tan(out: Path, content: ExportView, settings: FormatSettings) -> None:
    """The folder that its DATA_DIR names; for Charades-STA `settings.name` is its VIS_INPUT_TYPE."""
    match content.task:
        case "charades":
            feature_writers.write_hdf5(out / f"{settings.name}_features.hdf5", content.videos())
        case "tacos":
            feature_writers.write_hdf5(out / "tall_c3d_features.hdf5", content.videos())
        case _:
            feature_writers.write_hdf5(out / C3D, content.videos(), dataset=C3D_DATASET)
    _tan_annotations(out, content)


def _tan_annotations(out: Path, content: ExportView) -> None:
    match content.task:
        case "charades":
            annotation_files.charades(out, content)
        case "tacos":
            annotation_files.tacos(out, content)
        case _:
            annotation_files.activitynet(out, content, AS_SPLITS)


def write_vslnet(out: Path, content: ExportView, settings: FormatSettings) -> None:
    """The folder `data` of its working directory; `settings.name` is its --fv."""
    features = out / "features" / content.task / settings.name
    feature_writers.write_npy(features, content.videos())
    shapes = {name: video["rows"] for name, video in content.written.items()}
    annotation_files.write_json(features / "feature_shapes.json", shapes)
    if not content.queries:
        return
    folder = out / "dataset" / content.task
    match content.task:
        case "charades":
            annotation_files.charades(folder, content)
            annotation_files.charades_json(folder, content)
        case "tacos":
            annotation_files.tacos(folder, content)
        case _:  # it tests on val_1 and validates on val_2
            annotation_files.activitynet(folder, content, {**AS_SPLITS, "val": "val_2.json", "test": "val_1.json"})


def write_lgi(out: Path, content: ExportView, settings: FormatSettings) -> None:  # noqa: ARG001
    """The folder `data` of its working directory, with the caches that it would make itself."""
    if content.task == "charades":
        root, kind, max_words = out / "charades", "I3D", 10
        feature_writers.write_npy(root / "features" / "i3d_finetuned", content.videos())
        splits = {split: split for split in content.queries}
        if content.queries:
            annotation_files.charades(root / "annotations", content)
    else:  # it tests on val_1 and val_2 together, as its split val
        root, kind, max_words = out / "ActivityNet", "C3D", 25
        feature_writers.write_hdf5(root / "feats" / C3D, content.videos(), dataset=C3D_DATASET)
        splits = {"train": "train", "test": "val"}
        if content.queries:
            folder = root / "captions" / "annotations"
            annotation_files.activitynet(folder, content, {**AS_SPLITS, "test": "val_1.json"})
            annotation_files.write_json(folder / "val_2.json", {})
    if content.queries:
        lgi_cache.write_caches(root / "preprocess", content, splits, max_words=max_words, kind=kind)


def write_tmlga(out: Path, content: ExportView, settings: FormatSettings) -> None:  # noqa: ARG001
    """The folder ~/data/TMLGA, and in it `preprocessing`, which is to go into its working directory."""
    if content.task == "charades":
        feature_writers.write_npy(out / "i3d_charades_sta" / "rgb", content.videos())
        found = {split: f"charades-sta/charades_sta_{split}_tokens.json" for split in AS_SPLITS}
    else:
        training = {query.video_id for query in content.queries.get("train", ())}
        for folder, wanted in (("training", True), ("validation", False)):
            chosen = {video_id for video_id in content.store if (video_id in training) is wanted}
            feature_writers.write_npy(out / "ANet_240" / folder, content.videos(chosen))
        found = {"train": "training", "val": "val", "test": "validation"}
        found = {split: f"anet-cap/ANetCap_{name}_tokens.json" for split, name in found.items()}
    annotation_files.tmlga(out / "preprocessing", content, found)


def write_moment_detr(out: Path, content: ExportView, settings: FormatSettings) -> None:
    """The folders `data` and `features` of the working directory of Moment-DETR, QD-DETR or lighthouse."""
    features = out / "features" / content.task
    feature_writers.write_npz(features / settings.name, content.videos(), times=False)
    if content.queries:
        data, texts = out / "data" / content.task, features / "word_vectors"
        annotation_files.moment_detr(data, texts, content, qid_in_name="" if content.task == "tacos" else "qid")


def write_webdataset(out: Path, content: ExportView, settings: FormatSettings) -> None:
    """Tar shards: of each split the videos that it asks about with its queries, or of all videos of a plain store."""
    if not content.queries:
        feature_writers.write_tars(out, "features", content.videos(), queries={}, shard_videos=settings.shard_videos)
    for split, queries in content.queries.items():
        asked: dict[str, list[dict[str, Any]]] = {}
        for query in queries:
            asked.setdefault(query.video_id, []).append(query.to_json())
        feature_writers.write_tars(out, split, content.videos(set(asked)), queries=asked, shard_videos=settings.shard_videos)


def _in_own(
    write: Write, rule: naming_rules.Rule = naming_rules.file_name, *, shards: bool = False
) -> dict[Task | None, Format]:
    """A format that is no trainer's: one form for all tasks, the values as stored."""
    return {None: Format(write, rule, dtype=None, shards=shards)}


FORMATS: dict[str, dict[Task | None, Format]] = {
    "ms-2d-tan": {
        "charades": Format(write_ms_2d_tan, naming_rules.hdf5_key, name="i3d_rgb", lines=True),
        "activitynet": Format(write_ms_2d_tan, naming_rules.hdf5_key, name="i3d_rgb"),
        "tacos": Format(write_ms_2d_tan, naming_rules.hdf5_key, name="i3d_rgb", avi=False),
    },
    "2d-tan": {
        "charades": Format(write_2d_tan, naming_rules.hdf5_key, name="i3d_rgb", lines=True),
        "activitynet": Format(write_2d_tan, naming_rules.hdf5_key, casts=False),
        "tacos": Format(write_2d_tan, naming_rules.hdf5_key, avi=True, casts=False),
    },
    "vslnet": {
        "charades": Format(write_vslnet, naming_rules.file_name_without_dots, name="new", lines=True),
        "activitynet": Format(write_vslnet, naming_rules.file_name_without_dots, name="new"),
        "tacos": Format(write_vslnet, naming_rules.file_name_without_dots, name="new", avi=False),
    },
    "lgi": {
        "charades": Format(write_lgi, lines=True, least_rows=2),
        "activitynet": Format(write_lgi, naming_rules.hdf5_key),
    },
    "tmlga": {
        "charades": Format(write_tmlga, casts=False, least_rows=2),
        "activitynet": Format(write_tmlga, casts=False, least_rows=2),
    },
    "moment-detr": {
        "charades": Format(write_moment_detr, name="i3d"),
        "activitynet": Format(write_moment_detr, name="i3d"),
        "tacos": Format(write_moment_detr, name="i3d", avi=False),
    },
    "npy": _in_own(lambda out, content, _: feature_writers.write_npy(out, content.videos())),
    "npz": _in_own(lambda out, content, _: feature_writers.write_npz(out, content.videos(), times=True)),
    "safetensors": _in_own(lambda out, content, _: feature_writers.write_safetensors(out, content.videos())),
    "webdataset": _in_own(write_webdataset, naming_rules.any_name, shards=True),
}
