"""The progress of a run, by the records that it commits: a bar on a terminal, plain lines elsewhere and in log files."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from excl.pipeline.artifacts.video_records import VideoRecord, video_id_of

log = logging.getLogger(__name__)

# By default bars share a lock with forked processes, and one of these that is killed holding it stops all for good.
tqdm.set_lock(threading.RLock())

LINES, LINE_EVERY_S = 10, 60.0  # ten lines of a run, or one a minute of a long one
ONLY_FILES = "only_files"  # what a message has that a terminal does not show, since it has the bar


def for_terminal(record: logging.LogRecord) -> bool:
    """Return whether the handler that writes to a terminal is to show a record."""
    return not getattr(record, ONLY_FILES, False)


def progress_bar(items: Iterable[Any] | None = None, *, disable: bool | None = None, **settings: Any) -> tqdm:
    """Return tqdm's bar on a terminal and in a notebook, and no bar elsewhere; `disable` True never shows one."""
    ipython = sys.modules.get("IPython")
    if disable is None and ipython is not None and "IPKernelApp" in getattr(ipython.get_ipython(), "config", ()):
        from tqdm.auto import tqdm as notebook_tqdm  # noqa: PLC0415  (slow to import)

        return notebook_tqdm(items, **settings)
    return tqdm(items, disable=disable, **settings)


class Progress:
    """The counts of committed records, for the log. Rates are those of this run, since it began to work."""

    def __init__(self, stage: str, total: int, bar: tqdm) -> None:
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
        self.bar.set_postfix_str(self._rates(), refresh=False)
        self.bar.update()
        time_s = time.monotonic()
        if self.done % max(1, self.total // LINES) == 0 or time_s - self._logged_at > LINE_EVERY_S:
            self._logged_at = time_s
            left_s = (time_s - self._began) / self.done * (self.total - self.done)
            log.info(
                "%s: %d of %d videos, %s, %s left",
                self.stage, self.done, self.total, self._rates(), format_duration(left_s),
                extra={ONLY_FILES: not self.bar.disable},
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


def format_duration(seconds: float) -> str:
    """Return seconds as text for people."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


@contextlib.contextmanager
def progress(stage: str, total: int) -> Iterator[Progress]:
    """Show the progress of a run over so many videos; messages logged inside leave the bar whole."""
    with logging_redirect_tqdm(), progress_bar(total=total, desc=stage, unit="video") as bar:
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
