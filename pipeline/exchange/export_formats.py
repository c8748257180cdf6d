"""The places where each trainer looks for its files: one function a format writes features, and annotations of queries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from excl.pipeline.exchange import annotation_writers, lgi_cache, naming_rules
from excl.pipeline.exchange.export_view import ExportReport, ExportView, Task
from excl.pipeline.exchange.feature_writers import Kind, write_arrays, write_hdf5, write_tars

C3D = "sub_activitynet_v1-3.c3d.hdf5"  # readers of ActivityNet's published features ask for this file and …
C3D_DATASET = "c3d_features"  # … for this dataset in each video's group, whatever the features are
AS_SPLITS = {split: f"{split}.json" for split in ("train", "val", "test")}


@dataclass(frozen=True)
class FormatSettings:
    """The settings of a writer: the free part of its names, the length of tar shards."""

    name: str
    shard_videos: int


Write = Callable[[Path, ExportView, FormatSettings], ExportReport]


@dataclass(frozen=True)
class Format:
    """A format for one task: its writer, its rule for ids, and the defaults of the options.

    `dtype` None is the store's own. `name` is the default of --name, empty where names are fixed. `avi` says whether ids end
    in .avi (None: as they are). `lines` says that ids stand in lines of Charades-STA. `casts` says whether the trainer makes
    float32 of what it reads. `least_rows` is 2 where the trainer's `squeeze` would take away the axis of a single row.
    """

    write: Write
    rule: naming_rules.Rule = naming_rules.file_name
    dtype: str | None = "float32"
    name: str = ""
    avi: bool | None = None
    ids_in_lines: bool = False
    casts: bool = True
    least_rows: int = 1


def write_ms_2d_tan(out: Path, view: ExportView, settings: FormatSettings) -> ExportReport:
    """Write the folder that DATA_DIR of MS-2D-TAN names; `settings.name` is its VIS_INPUT_TYPE."""
    _tan_annotations(out, view)
    return view.report(write_hdf5(out / f"{settings.name}.hdf5", view.videos()))


def write_2d_tan(out: Path, view: ExportView, settings: FormatSettings) -> ExportReport:
    """Write the folder that DATA_DIR of 2D-TAN names; for Charades-STA `settings.name` is its VIS_INPUT_TYPE."""
    _tan_annotations(out, view)
    if view.task == "activitynet":
        return view.report(write_hdf5(out / C3D, view.videos(), dataset=C3D_DATASET))
    name = f"{settings.name}_features.hdf5" if view.task == "charades" else "tall_c3d_features.hdf5"
    return view.report(write_hdf5(out / name, view.videos()))


def _tan_annotations(out: Path, view: ExportView) -> None:
    match view.task:
        case "charades":
            annotation_writers.charades(out, view)
        case "tacos":
            annotation_writers.tacos(out, view)
        case _:
            annotation_writers.activitynet(out, view, AS_SPLITS)


def write_vslnet(out: Path, view: ExportView, settings: FormatSettings) -> ExportReport:
    """Write the folder `data` of VSLNet's working directory; `settings.name` is its --fv."""
    features = out / "features" / view.task / settings.name
    report = view.report(write_arrays(features, view.videos(), "npy"))
    shapes = {name: video["rows"] for name, video in report.videos.items()}
    annotation_writers.write_json(features / "feature_shapes.json", shapes)
    folder = out / "dataset" / view.task
    if view.queries:
        match view.task:
            case "charades":
                annotation_writers.charades(folder, view)
                annotation_writers.charades_json(folder, view)
            case "tacos":
                annotation_writers.tacos(folder, view)
            case _:  # it tests on val_1 and validates on val_2
                annotation_writers.activitynet(folder, view, {**AS_SPLITS, "val": "val_2.json", "test": "val_1.json"})
    return report


def write_lgi(out: Path, view: ExportView, _: FormatSettings) -> ExportReport:
    """Write the folder `data` of LGI's working directory, with the caches that LGI would make itself."""
    if view.task == "charades":
        root, kind, max_words = out / "charades", "I3D", 10
        report = view.report(write_arrays(root / "features" / "i3d_finetuned", view.videos(), "npy"))
        splits = {split: split for split in view.queries}
        if view.queries:
            annotation_writers.charades(root / "annotations", view)
    else:  # it tests on val_1 and val_2 together, as its split val
        root, kind, max_words = out / "ActivityNet", "C3D", 25
        report = view.report(write_hdf5(root / "feats" / C3D, view.videos(), dataset=C3D_DATASET))
        splits = {"train": "train", "test": "val"}
        if view.queries:
            folder = root / "captions" / "annotations"
            annotation_writers.activitynet(folder, view, {**AS_SPLITS, "test": "val_1.json"})
            annotation_writers.write_json(folder / "val_2.json", {})
    if view.queries:
        lgi_cache.write_caches(root / "preprocess", view, report.videos, splits, max_words=max_words, kind=kind)
    return report


def write_tmlga(out: Path, view: ExportView, _: FormatSettings) -> ExportReport:
    """Write the folder ~/data/TMLGA, and in it `preprocessing`, which belongs in TMLGA's working directory."""
    if view.task == "charades":
        report = view.report(write_arrays(out / "i3d_charades_sta" / "rgb", view.videos(), "npy"))
        files = {split: f"charades-sta/charades_sta_{split}_tokens.json" for split in AS_SPLITS}
    else:
        training = {query.video_id for query in view.queries.get("train", ())}
        folders = {"training": training, "validation": set(view.store) - training}
        videos = (write_arrays(out / "ANet_240" / name, view.videos(ids), "npy") for name, ids in folders.items())
        report = view.report(chain.from_iterable(videos))
        files = {"train": "training", "val": "val", "test": "validation"}
        files = {split: f"anet-cap/ANetCap_{name}_tokens.json" for split, name in files.items()}
    remarks = annotation_writers.tmlga(out / "preprocessing", view, report.videos, files)
    return replace(report, remarks=report.remarks | remarks)


def write_moment_detr(out: Path, view: ExportView, settings: FormatSettings) -> ExportReport:
    """Write the folders `data` and `features` of the working directory of Moment-DETR, QD-DETR or lighthouse."""
    features = out / "features" / view.task
    if view.queries:
        data, texts = out / "data" / view.task, features / "word_vectors"
        annotation_writers.moment_detr(data, texts, view, qid_in_name="" if view.task == "tacos" else "qid")
    return view.report(write_arrays(features / settings.name, view.videos(), "npz", times=False))


def write_webdataset(out: Path, view: ExportView, settings: FormatSettings) -> ExportReport:
    """Write tar shards: for each split the videos that it asks about, with its queries, or all videos of a plain store."""
    if not view.queries:
        return view.report(write_tars(out, "features", view.videos(), queries={}, shard_videos=settings.shard_videos))
    shards = []
    for split, queries in view.queries.items():
        by_video: dict[str, list[dict[str, Any]]] = {}
        for query in queries:
            by_video.setdefault(query.video_id, []).append(query.to_json())
        videos = view.videos(set(by_video))
        shards.append(write_tars(out, split, videos, queries=by_video, shard_videos=settings.shard_videos))
    return view.report(chain.from_iterable(shards))


def _array_format(kind: Kind) -> dict[Task | None, Format]:
    """Return the format of a folder of array files for anybody: one form for all tasks, the values as stored."""
    return {None: Format(lambda out, view, _: view.report(write_arrays(out, view.videos(), kind)), dtype=None)}


FORMATS: dict[str, dict[Task | None, Format]] = {
    "ms-2d-tan": {
        "charades": Format(write_ms_2d_tan, naming_rules.hdf5_key, name="i3d_rgb", ids_in_lines=True),
        "activitynet": Format(write_ms_2d_tan, naming_rules.hdf5_key, name="i3d_rgb"),
        "tacos": Format(write_ms_2d_tan, naming_rules.hdf5_key, name="i3d_rgb", avi=False),
    },
    "2d-tan": {
        "charades": Format(write_2d_tan, naming_rules.hdf5_key, name="i3d_rgb", ids_in_lines=True),
        "activitynet": Format(write_2d_tan, naming_rules.hdf5_key, casts=False),
        "tacos": Format(write_2d_tan, naming_rules.hdf5_key, avi=True, casts=False),
    },
    "vslnet": {
        "charades": Format(write_vslnet, naming_rules.file_name_without_dots, name="new", ids_in_lines=True),
        "activitynet": Format(write_vslnet, naming_rules.file_name_without_dots, name="new"),
        "tacos": Format(write_vslnet, naming_rules.file_name_without_dots, name="new", avi=False),
    },
    "lgi": {
        "charades": Format(write_lgi, ids_in_lines=True, least_rows=2),
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
    "npy": _array_format("npy"),
    "npz": _array_format("npz"),
    "safetensors": _array_format("safetensors"),
    "webdataset": {None: Format(write_webdataset, rule=lambda _: "", dtype=None)},
}
