"""Join stores of one recipe: several machines' stores become the one that a single machine would have made of all videos.

The merged store has the header of the others, so `excl extract` can resume in it; its shards are, byte for byte, those of
one run over all videos.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro
from pydantic.dataclasses import dataclass

from excl.pipeline.artifacts.atomic_files import move, sha256_file
from excl.pipeline.artifacts.header import diff, read_header
from excl.pipeline.artifacts.manifest import SOURCES, Manifest
from excl.pipeline.artifacts.video_records import planned_ids, shard_key, video_key
from excl.pipeline.config import STRICT
from excl.pipeline.execution import pending_videos
from excl.pipeline.execution.sharded_stage import part_name
from excl.pipeline.extract import STAGE
from excl.pipeline.store.feature_store import FeatureStore
from excl.pipeline.store.shard import write_shard
from excl.pipeline.store.virtual_index import write_index


@dataclass(frozen=True, config=STRICT)
class MergeConfig:
    """Join feature stores of the same recipe and of different videos into one."""

    stores: Annotated[
        tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="STORE …", help_behavior_hint="(required)")
    ]
    """The stores, each finished."""
    out: Path
    """The store to write."""

    def __post_init__(self) -> None:
        if len(self.stores) < 2:
            raise ValueError("stores: give at least two to join")
        if self.out.resolve() in {path.resolve() for path in self.stores}:
            raise ValueError(f"out: {self.out} is one of the stores; choose a new folder")


def run(config: MergeConfig) -> Path:
    """Write the store, or resume it; ValueError where recipes differ or a video is in two stores."""
    stores = [FeatureStore(path) for path in config.stores]
    for store in stores:
        _require_same(stores[0], store)
    store_of = _store_by_video(stores)
    header = stores[0].manifest.header
    identity, version = header["identity"], header["code_version"]
    stores_about = read_header(config.stores[0]).get("about")
    with Manifest.open(config.out, stage=STAGE, identity=identity, code_version=version, about=stores_about) as manifest:
        (config.out / "shards").mkdir(exist_ok=True)
        (config.out / "parts").mkdir(exist_ok=True)
        if not planned_ids(manifest):
            manifest.add({"id": "plan/0", "planned": sorted(store_of)})
        sources = {"id": SOURCES, "of": sorted(store.manifest.fingerprint() for store in stores)}
        planned = planned_ids(manifest)
        if planned != sorted(store_of) or manifest.records.get(SOURCES, sources)["of"] != sources["of"]:
            raise ValueError(
                f"{config.out}: was made from other stores, or from these before they changed; choose another folder, or "
                "remove it"
            )
        manifest.add(sources)
        size = identity["shard_videos"]
        for shard, begin in enumerate(range(0, len(planned), size)):
            _write_shard(manifest, shard, planned[begin : begin + size], store_of, first_number=begin)
        write_index(manifest)
        pending_videos.report(manifest, what="merge")
    return config.out


def _require_same(reference: FeatureStore, store: FeatureStore) -> None:
    header = store.manifest.header
    if header["stage"] != STAGE:
        raise ValueError(f"{store.path}: made by {header['stage']}; only stores that `excl extract` wrote can be joined")
    if differences := diff(reference.manifest.header, header):
        text = "; ".join(f"{key}: {a!r} and {b!r}" for key, (a, b) in differences.items())
        raise ValueError(f"{reference.path} and {store.path} are of different recipes, which never mix: {text}")
    store.require_finished()


def _store_by_video(stores: list[FeatureStore]) -> dict[str, FeatureStore]:
    """The store of every planned video; one that failed in a store may be done in another."""
    by_video: dict[str, FeatureStore] = {}
    for store in stores:
        for video_id in planned_ids(store.manifest):
            if video_id in store and video_id in by_video.get(video_id, ()):
                raise ValueError(f"{video_id!r} is both in {by_video[video_id].path} and in {store.path}; give one of them")
            if video_id not in by_video or video_id in store:
                by_video[video_id] = store
    return by_video


def _write_shard(
    manifest: Manifest, shard: int, video_ids: list[str], store_of: dict[str, FeatureStore], *, first_number: int
) -> None:
    """Write one shard and the records of its videos, unless they are there."""
    for number, video_id in enumerate(video_ids, start=first_number):
        if video_key(video_id) not in manifest.records:
            record = dict(store_of[video_id].manifest.records[video_key(video_id)])
            if "part" in record:
                record["part"] = part_name(number)
            manifest.add(record)
    videos = [store_of[video_id][video_id] for video_id in video_ids if video_id in store_of[video_id]]
    if not videos or shard_key(shard) in manifest.records:
        return
    path = manifest.folder / "parts" / f"joined-{shard:05d}.h5"
    write_shard(path, videos, recipe=manifest.header["identity"])
    sha256 = sha256_file(path)
    name = f"shards/{shard:05d}-{sha256[:12]}.h5"
    move(path, manifest.folder / name)
    ids, num_rows = [video.video_id for video in videos], sum(len(video.features) for video in videos)
    manifest.add({"id": shard_key(shard), "file": name, "videos": ids, "num_rows": num_rows, "sha256": sha256})
