"""Is a folder still what its stage wrote? Reads it, leaves nothing.

Structure: header and records by their checksums, every recorded file there, every shard whole and of the videos that its
record says, with as many rows, and at the times, that the layout of rows gives for so many frames. With the data: the sha256
of every recorded file, every video's checksum, values that are not finite, constant rows, rows that repeat.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from pydantic.dataclasses import dataclass

from excl.models.i3d.presets import layout_from_json
from excl.pipeline.artifacts import journals
from excl.pipeline.artifacts.atomic_files import sha256_file
from excl.pipeline.artifacts.header import header_is_as_written
from excl.pipeline.artifacts.manifest import COMPLETE, RECORDS, Manifest
from excl.pipeline.comparison.similarity import repeats
from excl.pipeline.config import STRICT
from excl.pipeline.execution.progress import progress_bar
from excl.pipeline.store import virtual_index
from excl.pipeline.store.shard import Shard, VideoFeatures

TIMES_TOLERANCE_S = 1e-6
FEATURE_STAGES = ("extract", "pack", "import", "merge")


@dataclass(frozen=True, config=STRICT)
class VerifyConfig:
    """Verify a store, or the folder of any other stage: is it still what was written? Exit code 3 if not."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="STORE")]
    """The folder."""
    read_data: bool = False
    """Read every byte and compare checksums; without, structure and sizes alone."""
    json: bool = False
    """Print one JSON object for each finding, for programs."""


@dataclasses.dataclass(frozen=True)
class StoreFinding:
    """Something about a file, or about one video in it; `remark` where it is odd and may be right."""

    file: str
    what: str
    video_id: str = ""
    remark: bool = False

    def line(self) -> str:
        """For people."""
        place = f"{self.file} [{self.video_id}]" if self.video_id else self.file
        return f"{'remark ' if self.remark else 'DAMAGED'}  {place}: {self.what}"


@dataclasses.dataclass(frozen=True)
class VerifyReport:
    """All findings, and how much was looked at."""

    config: VerifyConfig
    findings: list[StoreFinding]
    num_files: int
    num_videos: int


def run(config: VerifyConfig) -> VerifyReport:
    """Every finding; ValueError only for a folder that no stage has written."""
    findings: list[StoreFinding] = []
    try:
        manifest = Manifest.read(config.folder)
        if not header_is_as_written(config.folder):
            findings.append(StoreFinding("manifest.json", "not as it was written"))
    except ValueError as error:
        if not (config.folder / "manifest.json").is_file():
            raise
        return VerifyReport(config, [StoreFinding(_named(error, config.folder), str(error))], 1, 0)
    found = find(manifest, read_data=config.read_data)
    names = set(files_of(manifest))
    videos = {v for record in manifest.records.values() if "file" in record for v in record.get("videos", ())}
    return VerifyReport(config, [*findings, *found], len(names), len(videos))


def find(manifest: Manifest, *, read_data: bool) -> list[StoreFinding]:
    """What is wrong with the files that a manifest records."""
    end = unfinished_line(manifest.folder)
    findings = [end] if end else []
    recorded = files_of(manifest)
    videos_of = {
        r[kind]: r["videos"] for r in manifest.records.values() for kind in ("file", "part") if {kind, "videos"} <= r.keys()
    }
    for name, sha256 in progress_bar(sorted(recorded.items()), desc="verify", unit="file"):
        path = manifest.folder / name
        if not path.is_file():
            findings.append(StoreFinding(name, "recorded, and not there"))
            continue
        if read_data and sha256 is not None and sha256_file(path) != sha256:
            findings.append(StoreFinding(name, "its sha256 is not the recorded one"))
        if path.suffix == ".h5" and manifest.header["stage"] in FEATURE_STAGES and name != virtual_index.INDEX:
            findings += _shard(manifest, name, videos_of[name], read_data=read_data)
    if manifest.header["stage"] in ("extract", "import"):
        lost = [v for videos in videos_of.values() for v in videos if f"video/{v}" not in manifest.records]
        findings += [StoreFinding(RECORDS, "no record of a video that a shard holds", video_id) for video_id in lost]
    return findings + _strangers(manifest.folder, recorded)


def files_of(manifest: Manifest) -> dict[str, str | None]:
    """Every file that the records name, with its sha256 where that is recorded."""
    files: dict[str, str | None] = {}
    joined = {v for r in manifest.records.values() if "file" in r for v in r.get("videos", ())}
    for record in manifest.records.values():
        if "file" in record and "error" not in record and not record["id"].startswith("video/"):
            files[record["file"]] = record.get("sha256")
        elif "part" in record and not joined.issuperset(record["videos"]):
            files[record["part"]] = record.get("part_sha256")
        elif "index" in record:
            files[record["index"]] = record["sha256"]
    return files | manifest.records.get(COMPLETE, {}).get("sha256", {})


def _named(error: ValueError, folder: Path) -> str:
    files = [folder / RECORDS, *journals.journals(folder)]
    return next((str(path.relative_to(folder)) for path in files if f"{path}:" in str(error)), "manifest.json")


def unfinished_line(folder: Path) -> StoreFinding | None:
    """That the last line of the records does not end, if it does not."""
    path = folder / RECORDS
    if path.is_file() and not path.read_bytes().endswith(b"\n"):
        return StoreFinding(RECORDS, "its last line does not end; what it said was never committed, or it was damaged")
    return None


def _strangers(folder: Path, recorded: Mapping[str, Any]) -> list[StoreFinding]:
    """Files that no record names: leftovers of a kill, or somebody's own."""
    told = {"manifest.json", RECORDS, *recorded, *(str(path.relative_to(folder)) for path in journals.journals(folder))}
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    strange = [name for name in names if name not in told and not name.startswith(journals.LOCK)]
    return [StoreFinding(name, "no record names it", remark=True) for name in strange]


def _shard(manifest: Manifest, name: str, expected: list[str], *, read_data: bool) -> list[StoreFinding]:
    """What is wrong with a shard."""
    try:
        shard = Shard(manifest.folder / name)
    except (ValueError, OSError) as error:
        return [StoreFinding(name, str(error))]
    findings = []
    identity = manifest.header["identity"]
    if shard.recipe != identity.get("recipe", identity):
        findings.append(StoreFinding(name, "of another recipe than the folder"))
    held = [video["id"] for video in shard.videos]
    if held != expected:
        findings.append(StoreFinding(name, f"holds the videos {held[:3]}…, recorded are {expected[:3]}…"))
    for position, video_id in enumerate(held):
        try:
            video = shard.video(position) if read_data else shard.unverified(position)
        except ValueError as error:
            findings.append(StoreFinding(name, str(error), video_id))
            continue
        findings += [StoreFinding(name, what, video_id) for what in _against_the_map(video, shard.recipe)]
        if read_data:
            findings += [StoreFinding(name, what, video_id, remark=remark) for what, remark in _oddities(video.features)]
    return findings


def _against_the_map(video: VideoFeatures, recipe: Mapping[str, Any]) -> Iterator[str]:
    """How the number of rows and their times differ from what the layout gives for so many frames."""
    facts = video.facts
    if not {"num_frames", "fps", "duration_s"} <= facts.keys() or "rows" not in recipe:
        return  # features that were imported, or made by hand
    layout = layout_from_json(recipe["rows"])
    wanted = layout.num_rows(facts["num_frames"])
    if len(video.features) != wanted:
        yield f"{len(video.features)} rows; {facts['num_frames']} frames give {wanted}"
        return
    start_s, end_s = layout.row_times(facts["num_frames"], fps=facts["fps"], duration_s=facts["duration_s"])
    if max(np.abs(start_s - video.start_s).max(), np.abs(end_s - video.end_s).max()) > TIMES_TOLERANCE_S:
        yield "the times of its rows are not those of the layout"


def _oddities(features: np.ndarray) -> Iterator[tuple[str, bool]]:
    """What is wrong or odd about the values: the sentence, and whether it is no more than a remark."""
    bad = int((~np.isfinite(features)).any(axis=1).sum())
    if bad:
        yield f"{bad} rows have values that are not finite", False
        return
    constant = int((features == features[:, :1]).all(axis=1).sum())
    if constant:
        yield f"{constant} rows are constant", True
    repeated = int(repeats(features)[0].sum())
    if repeated > len(features) // 2:
        yield f"{repeated} of {len(features)} rows repeat the one before", True


def num_damaged(verified: VerifyReport) -> int:
    """How much is not as it was written."""
    return sum(not finding.remark for finding in verified.findings)


def show(verified: VerifyReport) -> str:
    """A line for each finding, and one that counts."""
    if verified.config.json:
        return "\n".join(json.dumps(dataclasses.asdict(finding)) for finding in verified.findings)
    how = "every byte read" if verified.config.read_data else "structure alone; --read-data reads every byte"
    damaged = num_damaged(verified)
    end = f"{damaged:,} findings of damage; `excl repair` tells what to do" if damaged else "all as it was written"
    return "\n".join([
        *(finding.line() for finding in verified.findings),
        f"{verified.config.folder}: {verified.num_files:,} files, {verified.num_videos:,} videos, {how}: {end}",
    ])  # fmt: skip
