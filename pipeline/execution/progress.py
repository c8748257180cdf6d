"""The progress of a stage, by the records that it commits: a bar in the live view; plain lines elsewhere and in files."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator

from excl.models.progress.bars import LINE_EVERY_S, Bar, format_duration, progress_bar
from excl.pipeline.artifacts.video_records import VideoRecord, video_id_of

log = logging.getLogger(__name__)

LINES = 10  # of a run, or one a minute of a long one
ONLY_FILES = "only_files"  # what a message has that a terminal does not show, since it has the view


def for_terminal(record: logging.LogRecord) -> bool:
    """Return whether the handler that writes to a terminal is to show a record."""
    return not getattr(record, ONLY_FILES, False)


class Progress:
    """The counts of committed records, for the log. Rates are those of this run, since it began to work."""

    def __init__(self, stage: str, total: int, bar: Bar) -> None:
        self.stage, self.total, self.bar = stage, total, bar
        self.done, self.failed, self.frames, self.video_s = 0, 0, 0, 0.0
        self.spent_s: dict[str, float] = {}
        self._began = self._logged_at = time.monotonic()

    def count(self, record: VideoRecord) -> None:
        """Count one more record of a video."""
        self.done += 1
        self.failed += "error" in record
        self.frames += record.get("num_frames", 0)
        self.video_s += record.get("duration_s", 0.0)
        for name, seconds in record.get("timing", {}).items():
            self.spent_s[name] = self.spent_s.get(name, 0.0) + seconds
        self.bar.advance(note=self._rates())
        time_s = time.monotonic()
        if self.done % max(1, self.total // LINES) == 0 or time_s - self._logged_at > LINE_EVERY_S:
            self._logged_at = time_s
            left_s = (time_s - self._began) / self.done * (self.total - self.done)
            log.info(
                "%s: %d of %d videos, %s, %s left",
                self.stage, self.done, self.total, self._rates(), format_duration(left_s),
                extra={ONLY_FILES: self.bar.is_live},
            )  # fmt: skip

    def end(self) -> None:
        """Log the whole run in one line, and how its time was spent."""
        wall_s = time.monotonic() - self._began
        if not self.frames:
            return
        log.info(
            "%s: %.0f s of video in %.1f s, %.1f times real time%s",
            self.stage, self.video_s, wall_s, self.video_s / wall_s, self._time_shares(),
        )  # fmt: skip

    def _rates(self) -> str:
        rate = f"{self.frames / max(1e-9, time.monotonic() - self._began):,.0f} frames/s"
        return rate + (f", {self.failed} failed" if self.failed else "")

    def _time_shares(self) -> str:
        total_s = sum(self.spent_s.values())
        if not total_s:
            return ""
        shares = ", ".join(f"{name} {seconds / total_s:.0%}" for name, seconds in self.spent_s.items())
        return f"; of the time for each video: {shares}"


@contextlib.contextmanager
def progress(stage: str, total: int) -> Iterator[Progress]:
    """Show the progress of a run over so many videos; messages logged inside leave the view whole."""
    with progress_bar(stage, total, unit="video", logged=False) as bar:
        run_progress = Progress(stage, total, bar)
        yield run_progress
        run_progress.end()


def log_problem(record: VideoRecord) -> None:
    """Log at once that a video failed, or was damaged and kept."""
    video_id = video_id_of(record["id"])
    if "error" in record:
        log.warning("%s: %s", video_id, record["message"])
    elif "damage" in record:
        log.warning("%s: damaged, and kept: %s", video_id, record["damage"])
