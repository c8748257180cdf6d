"""Look at videos before any work is done on them: reads headers and first frames, leaves nothing."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from dataclasses import field
from pathlib import Path

from pydantic.dataclasses import dataclass

from excl.datasets.parsing import printable
from excl.datasets.video.discovery import log_left_out, video_files
from excl.datasets.video.errors import Reason
from excl.datasets.video.probe import Probe
from excl.pipeline.config import STRICT, WithoutPrefix
from excl.pipeline.execution.progress import progress_bar
from excl.pipeline.execution.video_reading import ProbingSeveral, probe_all


@dataclass(frozen=True, config=STRICT)
class ProbeConfig:
    """Look at videos before any work is done on them: codec, size, rate, duration, and what is wrong with them."""

    videos: Path
    """A folder, searched recursively for videos, one video file, or a list: a .txt file with a path a line, from the
    list's own folder."""
    json: bool = False
    """Print one JSON object a file, for programs, in place of the table."""
    reading: WithoutPrefix[ProbingSeveral] = field(default_factory=ProbingSeveral)
    """How videos are read."""


@dataclasses.dataclass(frozen=True)
class ProbeFinding:
    """One file: its probe, or the reason and the sentence why there is none; `same_id` counts the files of its id."""

    video_id: str
    path: str
    probe: Probe | None
    reason: Reason | None
    message: str
    same_id: int


@dataclasses.dataclass(frozen=True)
class ProbeReport:
    """All files, and whether they are to be shown as JSON."""

    files: list[ProbeFinding]
    as_json: bool


def run(config: ProbeConfig) -> ProbeReport:
    """A finding for every file that has the name of a video, sorted by path."""
    left_out: Counter[str] = Counter()
    paths = video_files(config.videos, left_out=left_out)
    log_left_out(config.videos, left_out)
    same_id = Counter(path.stem for path in paths)

    probes = probe_all(config.reading, paths, at_once=config.reading.decoders)
    files = []
    for path, found in progress_bar(probes, total=len(paths), desc="probe", unit="video"):
        probe = found if isinstance(found, Probe) else None
        reason = None if isinstance(found, Probe) else found.reason
        message = "" if isinstance(found, Probe) else str(found)
        files.append(ProbeFinding(path.stem, str(path), probe, reason, message, same_id[path.stem]))
    return ProbeReport(files, config.json)


def num_bad(findings: ProbeReport) -> int:
    """How many files cannot be read, or share their id with another."""
    return sum(file.probe is None or file.same_id > 1 for file in findings.files)


def show(findings: ProbeReport) -> str:
    """A table with a line that counts, or JSON lines."""
    if findings.as_json:
        return "\n".join(json.dumps(dataclasses.asdict(file)) for file in findings.files)
    width = max(len(printable(file.video_id)) for file in findings.files)
    lines = [f"{'id':{width}}  {'codec':10}{'size':>11}{'rate':>8}{'seconds':>10}{'frames':>9}{'turned':>8}  notes"]
    lines += [_line(file, width) for file in findings.files]
    hours = sum(file.probe.duration_s or 0 for file in findings.files if file.probe) / 3600
    lines.append(f"{len(findings.files):,} files, {num_bad(findings):,} with problems, {hours:.2f} hours")
    return "\n".join(lines)


def _line(file: ProbeFinding, width: int) -> str:
    shared = [f"{file.same_id} files share this id"] if file.same_id > 1 else []
    if file.probe is None:
        return f"{printable(file.video_id):{width}}  {file.reason}: {'; '.join([printable(file.message), *shared])}"
    p = file.probe
    rate = "-" if p.rate is None else f"{p.rate:.3f}"
    seconds = "-" if p.duration_s is None else f"{p.duration_s:.2f}"
    return (
        f"{printable(file.video_id):{width}}  {p.codec:10}{f'{p.width}x{p.height}':>11}{rate:>8}{seconds:>10}"
        f"{p.frames or '-':>9}{p.rotation or '-':>8}  {'; '.join([*p.notes, *shared])}"
    ).rstrip()
