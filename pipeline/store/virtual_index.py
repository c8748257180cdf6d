"""One HDF5 file over all shards of a store: `h5py.File("features.h5")[video_id][:]` reads a video, as other code expects it.

The file holds no numbers but a virtual dataset [n, D] a video, which points into the shards next to it by relative names. It
is made from the shards and can be rebuilt; nothing in excl reads it.
"""

from __future__ import annotations

import hashlib
import logging

import h5py

from excl.datasets.parsing import storable
from excl.pipeline.artifacts.atomic_files import atomic_write, sha256_file
from excl.pipeline.artifacts.manifest import INDEX as RECORD
from excl.pipeline.artifacts.manifest import Manifest
from excl.pipeline.store.shard import Shard, h5_file

log = logging.getLogger(__name__)

INDEX = "features.h5"


def write_index(manifest: Manifest) -> None:
    """Write the index of a folder's shards and record it, unless the existing one is of the same shards.

    Videos whose id cannot be the name of a dataset are left out and named.
    """
    files = sorted(r["file"] for r in manifest.records.values() if "file" in r and "videos" in r)
    if not files:
        return
    of = hashlib.sha256("\n".join(files).encode()).hexdigest()  # the names have the shards' content in them
    path, record = manifest.folder / INDEX, manifest.records.get(RECORD, {})
    if record.get("of") == of and path.is_file():
        return
    left_out = []
    with atomic_write(path) as temporary, h5_file(temporary) as file:
        for name in files:
            shard = Shard(manifest.folder / name)
            for position, video in enumerate(shard.videos):
                if can_be_name(video["id"]):
                    file.create_virtual_dataset(video["id"], _layout(shard, position, name))
                else:
                    left_out.append(video["id"])
    if left_out:
        log.warning("%s: %d videos are not in it, since HDF5 has no such names: %r", path, len(left_out), left_out[:5])
    manifest.add({"id": RECORD, "index": INDEX, "of": of, "sha256": sha256_file(path)})


def can_be_name(video_id: str) -> bool:
    """Return whether a dataset can have the id as its name: a slash would put it in a group, and names are UTF-8."""
    return "/" not in video_id and video_id != "." and storable(video_id)


def _layout(shard: Shard, position: int, name: str) -> h5py.VirtualLayout:
    begin, end = (int(row) for row in shard.offsets[position : position + 2])
    size = shard.mapped.shape[1]
    layout = h5py.VirtualLayout((end - begin, size), shard.mapped.dtype)
    layout[:] = h5py.VirtualSource(name, "features", shard.mapped.shape)[begin:end]
    return layout
