"""All that decides the figures of a sweep, as its protocol states it (protocol.py has the form)."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from excl.models.lazy_module import LazyModule
from excl.pipeline.artifacts.made_with import package_versions
from excl.pipeline.artifacts.manifest import COMPLETE
from excl.pipeline.execution.video_reading import num_cores
from excl.pipeline.store.training_store import TrainingStore
from excl.pipeline.training.distributed import training_devices

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

OF_FILES = ("train", "val", "test", "durations", "rows_name_their_split")
NOT_RECORDED = "not recorded"
COMPUTING = ("excl", "torch", "numpy", "safetensors")


def stores_by_name(stores: Sequence[TrainingStore]) -> dict[str, TrainingStore]:
    """Return stores by their data sets, which are numbered where they repeat."""
    names: dict[str, TrainingStore] = {}
    for store in stores:
        dataset = store.about_queries["dataset"]
        same = sum(name == dataset or name.startswith(f"{dataset} (") for name in names)
        names[f"{dataset} ({same + 1})" if same else dataset] = store
    return names


def store_facts(store: TrainingStore) -> dict[str, Any]:
    """Return the facts of a training store: annotations, cleaning, words, features and videos.

    A store that an earlier version packed does not say which annotation files, word vectors and decoders it came from.
    """
    identity = store.manifest.header["identity"]
    tokenisation = dict(identity.get("tokenised", {"hygiene": store.about_queries["hygiene"], "glove": NOT_RECORDED}))
    files = {split: tokenisation.pop(split) for split in OF_FILES if split in tokenisation}
    complete = store.manifest.records[COMPLETE]
    videos = {video["id"]: _video_facts(video) for shard in store.shards() for video in shard.videos}
    return {
        "annotations": {split: _hashes(named) for split, named in files.items()},
        "word vectors": tokenisation.pop("glove"),
        "hygiene": tokenisation.pop("hygiene"),
        "queries": tokenisation,
        "packing": {key: identity[key] for key in ("missing_video", "other_duration", "duration_tolerance_s")},
        "vocabulary": {"words": len(store.vocabulary), "sha256": store.vocabulary.fingerprint},
        "features": store.recipe,
        "decoders": complete.get("made_with", NOT_RECORDED),
        "videos": videos,
        "missing videos": {split: counts["missing"] for split, counts in _coverage(store).items()},
        "content": {"sha256": store.manifest.fingerprint()},
    }


def _hashes(named: dict[str, str] | list[dict[str, str]]) -> dict[str, str]:
    return {each["file"]: each["sha256"] for each in ([named] if isinstance(named, dict) else named)}


def _video_facts(video: dict[str, Any]) -> dict[str, Any]:
    """Return the checksum of a video's rows, and name and sha256 of its file, where they are known."""
    source = video.get("source") or {}
    return {"crc32_of_rows": video["crc32"], **{key: source[key] for key in ("file", "sha256") if key in source}}


def _coverage(store: TrainingStore) -> dict[str, Any]:
    return json.loads((store.path / "coverage.json").read_text(encoding="utf-8"))["splits"]


def versions(code_versions: dict[str, int]) -> dict[str, Any]:
    """Return the versions of what computes a training and its evaluation."""
    return {"python": platform.python_version(), **package_versions(COMPUTING), "code": code_versions}


def hardware(device: str, *, parallel: int) -> dict[str, Any]:
    """Return what the last bits of a training depend on: processor, devices, and threads of each training."""
    devices = [torch.cuda.get_device_name(d) if d.type == "cuda" else d.type for d in training_devices(device)]
    threads = torch.get_num_threads() if parallel == 1 else max(1, num_cores() // parallel)
    return {
        "processor": _processor(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "devices": devices,
        "threads_of_a_training": threads,
    }


def _processor() -> str:
    """Return the processor's name, as the system says it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if sys.platform == "linux" and cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
