"""Look at videos before any work is done on them: read headers and first frames, and write nothing."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from dataclasses import field
from pathlib import Path

from pydantic.dataclasses import dataclass
from tabulate import tabulate

from excl.datasets.parsing import printable
from excl.datasets.video.discovery import video_files
from excl.datasets.video.errors import Reason
from excl.datasets.video.probe import Probe
from excl.models.progress.bars import tracked
from excl.pipeline.config import STRICT, WithoutPrefix
from excl.pipeline.execution.video_reading import ProbingSeveral, probe_all

COLUMNS = ("id", "codec", "size", "rate", "seconds", "frames", "turned", "notes")


@dataclass(frozen=True, config=STRICT)
class ProbeConfig:
    """Look at videos before any work is done on them: codec, size, rate, duration, and what is wrong with them."""

    videos: Path
    """A folder, searched recursively for videos, one video file, or a list: a .txt file with a path a line, from the
    list's own folder."""
    json: bool = False
    """Print one JSON object a file, for programs, in place of the table."""
    reading: WithoutPrefix[ProbingSeveral] = field(default_factory=ProbingSeveral)
    """The settings for reading videos."""


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
    """The findings on all files, and whether to show them as JSON."""

    files: list[ProbeFinding]
    as_json: bool


def run(config: ProbeConfig) -> ProbeReport:
    """Return a finding for every file that has the name of a video, sorted by path."""
    paths = video_files(config.videos, warn=True)
    same_id = Counter(path.stem for path in paths)

    probes = probe_all(config.reading, paths, at_once=config.reading.decoders)
    files = []
    for path, outcome in tracked(probes, "probe", total=len(paths), unit="video"):
        if isinstance(outcome, Probe):
            files.append(ProbeFinding(path.stem, str(path), outcome, None, "", same_id[path.stem]))
        else:
            files.append(ProbeFinding(path.stem, str(path), None, outcome.reason, str(outcome), same_id[path.stem]))
    return ProbeReport(files, config.json)


def num_bad(findings: ProbeReport) -> int:
    """Return how many files cannot be read, or share their id with another."""
    return sum(file.probe is None or file.same_id > 1 for file in findings.files)


def show(findings: ProbeReport) -> str:
    """Return a table with a line that counts, or JSON lines."""
    if findings.as_json:
        return "\n".join(json.dumps(dataclasses.asdict(file)) for file in findings.files)
    rows = [_row(file) for file in findings.files]
    align = ("left", "left", "right", "right", "right", "right", "right", "left")
    table = tabulate(rows, COLUMNS, tablefmt="plain", disable_numparse=True, colalign=align, missingval="-")
    hours = sum(file.probe.duration_s or 0 for file in findings.files if file.probe) / 3600
    return f"{table}\n{len(findings.files):,} files, {num_bad(findings):,} with problems, {hours:.2f} hours"


def _row(file: ProbeFinding) -> list[str | int | None]:
    """Return the cells of a file, None where there is nothing to say; the reason why there is no probe is a note."""
    cells: list[str | int | None] = [None] * 6
    notes = [f"{file.reason}: {printable(file.message)}"]
    if (probe := file.probe) is not None:
        rate = None if probe.rate is None else f"{probe.rate:.3f}"
        seconds = None if probe.duration_s is None else f"{probe.duration_s:.2f}"
        cells = [probe.codec, f"{probe.width}x{probe.height}", rate, seconds, probe.frames or None, probe.rotation or None]
        notes = list(probe.notes)
    if file.same_id > 1:
        notes.append(f"{file.same_id} files share this id")
    return [printable(file.video_id), *cells, "; ".join(notes)]
