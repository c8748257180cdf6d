"""Verify that a folder is still what its stage wrote: read it, leave nothing.

Structure: header and records by their checksums, every recorded file there, every shard whole and of the videos that its
record says, with as many rows, and at the times, that the layout of rows gives for so many frames. With the data: the sha256
of every recorded file, every video's checksum, values that are not finite, constant rows, rows that repeat.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from pydantic.dataclasses import dataclass

from excl.models.i3d.presets import layout_from_json
from excl.models.progress.bars import tracked
from excl.pipeline.artifacts import journals
from excl.pipeline.artifacts.atomic_files import sha256_file
from excl.pipeline.artifacts.header import HEADER, header_is_as_written
from excl.pipeline.artifacts.locks import LOCK
from excl.pipeline.artifacts.manifest import COMPLETE, RECORDS, Manifest
from excl.pipeline.artifacts.record_log import DamagedRecordsError
from excl.pipeline.artifacts.video_records import video_key, video_keys
from excl.pipeline.comparison.similarity import repeats
from excl.pipeline.config import STRICT
from excl.pipeline.store import virtual_index
from excl.pipeline.store.shard import Shard, VideoFeatures

TIMES_TOLERANCE_S = 1e-6
FEATURE_STAGES = ("extract", "pack", "import", "merge")


@dataclass(frozen=True, config=STRICT)
class VerifyConfig:
    """Verify a store, or the folder of any other stage: is it still what was written? Exit code 3 if not."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="STORE")]
    """The folder to verify."""
    read_data: bool = False
    """Read every byte and compare checksums; without, structure and sizes alone."""
    json: bool = False
    """Print one JSON object for each finding, for programs."""


@dataclasses.dataclass(frozen=True)
class StoreFinding:
    """A sentence about a file, or about one video in it; `remark` if it is odd and may be right."""

    file: str
    what: str
    video_id: str = ""
    remark: bool = False


@dataclasses.dataclass(frozen=True)
class VerifyReport:
    """The findings, and the numbers of files and videos that were looked at."""

    findings: list[StoreFinding]
    num_files: int
    num_videos: int


def run(config: VerifyConfig) -> VerifyReport:
    """Report every finding; ValueError only for a folder that no stage has written."""
    try:
        manifest = Manifest.read(config.folder)
        is_as_written = header_is_as_written(config.folder)
    except DamagedRecordsError as error:
        return VerifyReport([StoreFinding(str(error.path.relative_to(config.folder)), error.reason)], 1, 0)
    except ValueError as error:
        if not (config.folder / HEADER).is_file():
            raise
        return VerifyReport([StoreFinding(HEADER, str(error))], 1, 0)
    findings = [] if is_as_written else [StoreFinding(HEADER, "not as it was written")]
    videos = {v for record in manifest.records.values() if "file" in record for v in record.get("videos", ())}
    findings += find(manifest, read_data=config.read_data)
    return VerifyReport(findings, len(files_of(manifest)), len(videos))


def find(manifest: Manifest, *, read_data: bool) -> list[StoreFinding]:
    """The findings about the files that a manifest records."""
    stage, findings = manifest.header["stage"], []
    if has_unfinished_line(manifest.folder):
        text = "its last line does not end; what it said was never committed, or it was damaged"
        findings.append(StoreFinding(RECORDS, text))
    files = files_of(manifest)
    videos_of = {
        r[kind]: r["videos"] for r in manifest.records.values() for kind in ("file", "part") if {kind, "videos"} <= r.keys()
    }
    for name, sha256 in tracked(sorted(files.items()), "verify", total=len(files), unit="file"):
        path = manifest.folder / name
        if not path.is_file():
            findings.append(StoreFinding(name, "recorded, and not there"))
            continue
        if read_data and sha256 is not None and sha256_file(path) != sha256:
            findings.append(StoreFinding(name, "its sha256 is not the recorded one"))
        if path.suffix == ".h5" and stage in FEATURE_STAGES and name != virtual_index.INDEX:
            findings += _check_shard(manifest, name, videos_of[name], read_data=read_data)
    if stage in ("extract", "import"):
        findings += [
            StoreFinding(RECORDS, "no record of a video that a shard holds", video_id)
            for videos in videos_of.values()
            for video_id in videos
            if video_key(video_id) not in manifest.records
        ]
    return findings + _strangers(manifest.folder, files)


def files_of(manifest: Manifest) -> dict[str, str | None]:
    """Return every file that the records name, with its sha256 if that is recorded."""
    files: dict[str, str | None] = {}
    joined = {v for r in manifest.records.values() if "file" in r for v in r.get("videos", ())}
    videos = set(video_keys(manifest))
    for key, record in manifest.records.items():
        if "file" in record and "error" not in record and key not in videos:
            files[record["file"]] = record.get("sha256")
        elif "part" in record and not joined.issuperset(record["videos"]):
            files[record["part"]] = record.get("part_sha256")
        elif "index" in record:
            files[record["index"]] = record["sha256"]
    return files | manifest.records.get(COMPLETE, {}).get("sha256", {})


def has_unfinished_line(folder: Path) -> bool:
    """Return whether the last line of the records does not end."""
    path = folder / RECORDS
    return path.is_file() and not path.read_bytes().endswith(b"\n")


def _strangers(folder: Path, recorded: Iterable[str]) -> list[StoreFinding]:
    """The files that no record names: leftovers of a kill, or a user's."""
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    names -= {HEADER, RECORDS, *recorded, *(str(path.relative_to(folder)) for path in journals.journals(folder))}
    return [StoreFinding(name, "no record names it", remark=True) for name in sorted(names) if not name.startswith(LOCK)]


def _check_shard(manifest: Manifest, name: str, recorded_ids: list[str], *, read_data: bool) -> list[StoreFinding]:
    try:
        shard = Shard(manifest.folder / name)
    except (ValueError, OSError) as error:
        return [StoreFinding(name, str(error))]
    findings = []
    if shard.recipe != manifest.recipe:
        findings.append(StoreFinding(name, "of another recipe than the folder"))
    video_ids = [video["id"] for video in shard.videos]
    if video_ids != recorded_ids:
        findings.append(StoreFinding(name, f"holds the videos {video_ids[:3]}…, recorded are {recorded_ids[:3]}…"))
    for position, video_id in enumerate(video_ids):
        try:
            video = shard.video(position) if read_data else shard.unverified(position)
        except ValueError as error:
            findings.append(StoreFinding(name, str(error), video_id))
            continue
        findings += [StoreFinding(name, text, video_id) for text in _layout_errors(video, shard.recipe)]
        if read_data:
            findings += [StoreFinding(name, text, video_id, remark=remark) for text, remark in _oddities(video.features)]
    return findings


def _layout_errors(video: VideoFeatures, recipe: Mapping[str, Any]) -> Iterator[str]:
    """The ways in which the rows and their times differ from the layout for this number of frames."""
    facts = video.facts
    if not {"num_frames", "fps", "duration_s"} <= facts.keys() or "rows" not in recipe:
        return  # features that were imported, or made by hand
    layout = layout_from_json(recipe["rows"])
    num_rows = layout.num_rows(facts["num_frames"])
    if len(video.features) != num_rows:
        yield f"{len(video.features)} rows; {facts['num_frames']} frames give {num_rows}"
        return
    start_s, end_s = layout.row_times(facts["num_frames"], fps=facts["fps"], duration_s=facts["duration_s"])
    if max(np.abs(start_s - video.start_s).max(), np.abs(end_s - video.end_s).max()) > TIMES_TOLERANCE_S:
        yield "the times of its rows are not those of the layout"


def _oddities(features: np.ndarray) -> Iterator[tuple[str, bool]]:
    """The damage to the values and what is odd about them: a sentence, and True if it is only a remark."""
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


def num_damaged(report: VerifyReport) -> int:
    """The number of findings of damage."""
    return sum(not finding.remark for finding in report.findings)


def show(config: VerifyConfig, report: VerifyReport) -> str:
    """Return a line for each finding, and one that counts them."""
    if config.json:
        return "\n".join(json.dumps(dataclasses.asdict(finding)) for finding in report.findings)
    depth = "every byte read" if config.read_data else "structure alone; --read-data reads every byte"
    damaged = num_damaged(report)
    verdict = f"{damaged:,} findings of damage; see `excl repair`" if damaged else "all as it was written"
    counts = f"{config.folder}: {report.num_files:,} files, {report.num_videos:,} videos, {depth}: {verdict}"
    lines = []
    for finding in report.findings:
        place = f"{finding.file} [{finding.video_id}]" if finding.video_id else finding.file
        lines.append(f"{'remark ' if finding.remark else 'DAMAGED'}  {place}: {finding.what}")
    return "\n".join([*lines, counts])
