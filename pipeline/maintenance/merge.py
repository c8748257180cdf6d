"""Join stores of one recipe: what several machines extracted becomes the store that one of them would have made of all.

The merged store has the header of the others, so `excl extract` goes on in it; its shards are, byte for byte, those of one
run over all videos.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import tyro
from pydantic.dataclasses import dataclass

from excl.pipeline.artifacts.atomic_files import move, sha256_file
from excl.pipeline.artifacts.header import diff, read_header
from excl.pipeline.artifacts.manifest import SOURCES, Manifest
from excl.pipeline.artifacts.video_records import add_to_plan, planned_ids, shard_key, video_key
from excl.pipeline.config import STRICT
from excl.pipeline.execution import work_items
from excl.pipeline.execution.sharded_stage import part_name
from excl.pipeline.extract import STAGE
from excl.pipeline.store.feature_store import FeatureStore
from excl.pipeline.store.shard import write_shard
from excl.pipeline.store.virtual_index import write_index

log = logging.getLogger(__name__)


@dataclass(frozen=True, config=STRICT)
class MergeConfig:
    """Join feature stores of the same recipe and of different videos into one."""

    stores: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="STORE …")]
    """The stores, each finished."""
    out: Path
    """The store to write."""

    def __post_init__(self) -> None:
        if len(self.stores) < 2:
            raise ValueError("stores: give at least two to join")
        if self.out.resolve() in {path.resolve() for path in self.stores}:
            raise ValueError(f"out: {self.out} is one of the stores; choose a new folder")


def run(config: MergeConfig) -> Path:
    """Write the store, or go on with it; ValueError where recipes differ or a video is in two stores."""
    stores = [FeatureStore(path) for path in config.stores]
    first = stores[0].manifest.header
    for store in stores:
        _require_same(stores[0], store)
    where = _whereabouts(stores)
    identity, version = first["identity"], first["code_version"]
    about = read_header(config.stores[0]).get("about")
    with Manifest.open(config.out, stage=STAGE, identity=identity, code_version=version, about=about) as manifest:
        (config.out / "shards").mkdir(exist_ok=True)
        (config.out / "parts").mkdir(exist_ok=True)
        if not planned_ids(manifest):
            add_to_plan(manifest, sorted(where), first_number=0)
        sources = sorted(store.manifest.fingerprint() for store in stores)
        known = manifest.records.get(SOURCES, {"of": sources})
        if planned_ids(manifest) != sorted(where) or known["of"] != sources:
            raise ValueError(
                f"{config.out}: was made from other stores, or from these before they changed; choose another folder, or "
                "remove it"
            )
        manifest.add({"id": SOURCES, "of": sources})
        size = identity["shard_videos"]
        planned = planned_ids(manifest)
        for shard, begin in enumerate(range(0, len(planned), size)):
            _shard(manifest, shard, planned[begin : begin + size], where, first_number=begin)
        write_index(manifest)
        work_items.report(manifest, what="merge")
    return config.out


def _require_same(first: FeatureStore, other: FeatureStore) -> None:
    header = other.manifest.header
    if header["stage"] != STAGE:
        raise ValueError(f"{other.path}: made by {header['stage']}; only stores that `excl extract` wrote can be joined")
    differences = diff(first.manifest.header, header)
    if differences:
        named = "; ".join(f"{key}: {one!r} and {two!r}" for key, (one, two) in differences.items())
        raise ValueError(f"{first.path} and {other.path} are of different recipes, which never mix: {named}")
    other.require_finished()


def _whereabouts(stores: list[FeatureStore]) -> dict[str, FeatureStore]:
    """The store of every planned video; one that failed in a store may be done in another."""
    found: dict[str, FeatureStore] = {}
    for store in stores:
        for video_id in planned_ids(store.manifest):
            if video_id in found and video_id in found[video_id] and video_id in store:
                raise ValueError(f"{video_id!r} is both in {found[video_id].path} and in {store.path}; whose is it to be?")
            if video_id not in found or video_id in store:
                found[video_id] = store
    return found


def _shard(manifest: Manifest, shard: int, members: list[str], where: dict[str, FeatureStore], *, first_number: int) -> None:
    """Write one shard and the records of its videos, unless they are there."""
    done = [video_id for video_id in members if video_id in where[video_id]]
    for number, video_id in enumerate(members, start=first_number):
        if video_key(video_id) not in manifest.records:
            record = dict(where[video_id].manifest.records[video_key(video_id)])
            if "part" in record:
                record["part"] = part_name(number)
            manifest.add(record)
    if not done or shard_key(shard) in manifest.records:
        return
    written = manifest.folder / "parts" / f"joined-{shard:05d}.h5"
    videos = [where[video_id][video_id] for video_id in done]
    write_shard(written, videos, recipe=manifest.header["identity"])
    sha256 = sha256_file(written)
    name = f"shards/{shard:05d}-{sha256[:12]}.h5"
    move(written, manifest.folder / name)
    num_rows = sum(len(video.features) for video in videos)
    manifest.add({"id": shard_key(shard), "file": name, "videos": done, "num_rows": num_rows, "sha256": sha256})
