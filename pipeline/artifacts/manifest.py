"""The records of a stage folder and its header: what made the folder, and one record for every item.

A stage folder holds `manifest.json` (stage, identity, code version; written once) and `records.jsonl` (one JSON object a
line, appended and fsynced). An artefact is written under a temporary name in its own folder, fsynced, moved into place,
and only then recorded: the record is the commit, and what no record names does not exist. Header and records end with a
crc32 of the rest, which is verified whenever they are read.

A folder whose header differs from the one asked for is refused, with the fields that differ, so two recipes never mix. One
process at a time works on a folder, or several that each have a share of it (locks.py, journals.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import filelock

from excl.pipeline.artifacts import header as headers
from excl.pipeline.artifacts import journals, locks
from excl.pipeline.artifacts.atomic_files import fsync_folder, write_bytes
from excl.pipeline.artifacts.header import HEADER
from excl.pipeline.artifacts.locks import LOCK, BusyError
from excl.pipeline.artifacts.record_log import Record, RecordLog, encode, parse_record
from excl.pipeline.artifacts.shard_range import ShardRange

log = logging.getLogger(__name__)

RECORDS = "records.jsonl"
COMPLETE = "complete"
PLAN = "plan/"  # begins the ids of records that say what is to be made, and not what was made
INDEX, SOURCES = "index", "joined from"  # ids of records that say nothing of the results
TRANSIENT_KEYS = frozenset(
    {"wall_s", "timing", "stat", "device", "made_with"}
)  # in records for people, no part of what a folder is


class Manifest:
    """The header and the records of one stage folder; `Manifest.open` to work on it, `Manifest.read` to read it."""

    def __init__(
        self, folder: Path, header: dict[str, Any], records: Mapping[str, Record], *, share: ShardRange | None = None
    ) -> None:
        self.folder, self.header, self.share = folder, header, share
        self.records = records if isinstance(records, RecordLog) else RecordLog(records)
        self._log = folder / (RECORDS if share is None else f"{journals.FOLDER}/share-{share.name}.jsonl")
        self._share_lock: filelock.BaseFileLock | None = None

    @classmethod
    @contextlib.contextmanager
    def open(
        cls,
        folder: Path,
        *,
        stage: str,
        identity: Mapping[str, Any],
        code_version: int,
        about: Mapping[str, Any] | None = None,
        share: ShardRange | None = None,
    ) -> Iterator[Manifest]:
        """Create the folder or resume it, under its lock; or under a share's, at the same time as other shares of the same
        number.

        `identity` is everything that determines the results, as JSON values, `about` any other known facts. Raises
        RecipeMismatchError when the folder was made from another identity, stage or code version, and BusyError when another
        process holds it.
        """
        header = headers.plain(stage=stage, identity=identity, code_version=code_version)
        if not (folder / HEADER).exists():
            _refuse_foreign_folder(folder)
        with contextlib.ExitStack() as stack:
            folder_lock = stack.enter_context(locks.locked_new(folder, wait_s=0.0 if share is None else locks.WAIT_S))
            is_alone = locks.refuse_other_work(folder, share)
            if not is_alone and not (folder / HEADER).exists():
                raise BusyError(
                    f"{folder}: another process is working on it, and its {HEADER} cannot be seen here; wait for it"
                )
            if is_alone:
                _remove_temporaries(folder)
            if not (folder / HEADER).exists() or (is_alone and has_no_results(folder)):
                (folder / RECORDS).unlink(missing_ok=True)
                headers.write_header(folder, header, about or {})
            headers.refuse_other_recipe(folder, header)
            records = RecordLog()
            records.read(folder / RECORDS, repair=True)
            manifest = cls(folder, header, records, share=share)
            if is_alone:
                manifest._merge_journals(records)
            if share is not None:
                own_lock = locks.locked(folder, locks.share_lock(share), wait_s=locks.WAIT_FOR_OWN_S)
                manifest._share_lock = stack.enter_context(own_lock)
                RecordLog().read(manifest._log, repair=True)
                folder_lock.release()
            yield manifest

    @classmethod
    def read(cls, folder: Path, *, stage: str | None = None) -> Self:
        """Return the manifest of a finished or unfinished folder, without a lock; ValueError if it is not one of `stage`."""
        header = headers.comparable_header(folder)
        if stage is not None and header.get("stage") != stage:
            raise ValueError(f"{folder}: made by the stage {header.get('stage')!r}, expected one made by {stage!r}")
        while True:
            paths = journals.journals(folder)  # before the records: a journal that is merged meanwhile is in them
            records = RecordLog()
            records.read(folder / RECORDS)
            try:
                for path in paths:
                    journals.merge_journal(records, path)
            except FileNotFoundError:
                continue
            return cls(folder, header, records)

    @classmethod
    @contextlib.contextmanager
    def repair(cls, folder: Path) -> Iterator[tuple[Manifest, list[int]]]:
        """Yield a folder under its lock, whatever stage made it, and the numbers of the damaged lines of its records.

        Those are left out, and a last line that does not end is cut off. Journals count as records; `rewrite` merges them.
        """
        header = headers.comparable_header(folder)
        with locks.exclusive_folder(folder):
            for path in journals.journals(folder):
                _leave_out_damaged(path)  # what the lines lack was never among the records, and is done again
            content = (folder / RECORDS).read_bytes() if (folder / RECORDS).exists() else b""
            sound, damaged_lines = _sound_records(content)
            records = RecordLog({record["id"]: record for record in sound})
            for path in journals.journals(folder):
                journals.merge_journal(records, path)
            yield cls(folder, header, records), damaged_lines

    @property
    def recipe(self) -> dict[str, Any]:
        """The recipe of the folder's features: sampling, geometry, weights, precision."""
        identity = self.header["identity"]
        return identity.get("recipe", identity)

    def add(self, record: Record) -> None:
        """Commit one record, a JSON object with an `id`; a later record of the same id replaces the earlier."""
        self.add_all([record])

    def add_all(self, records: Iterable[Record]) -> None:
        """Commit several records at once: a kill leaves all of them, or the first of them."""
        self._append([encode(record) for record in records])

    def rewrite(self, records: Mapping[str, Record]) -> None:
        """Replace all records with others, at once."""
        write_bytes(self.folder / RECORDS, b"".join(map(encode, records.values())))
        journals.remove(journals.journals(self.folder))
        self.records = RecordLog()
        self.records.read(self.folder / RECORDS)

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the folder's lock, so that no other share plans or finishes.

        Inside, this process sees all shares' records, and writes to the common log.
        """
        if self.share is None:
            yield
            return
        with locks.locked_new(self.folder, wait_s=locks.WAIT_S):
            self.records.read(self.folder / RECORDS, repair=True)
            for path in journals.journals(self.folder):
                journals.merge_journal(self.records, path)
            journal, self._log = self._log, self.folder / RECORDS
            try:
                yield
            finally:
                self._log = journal

    @contextlib.contextmanager
    def finishing(self) -> Iterator[bool]:
        """Hold the folder's lock and yield whether no other share is still working; release the share's lock."""
        with self.exclusive():
            is_last = not locks.busy_shares(self.folder, but=self.share)
            if is_last:
                records = RecordLog()  # those in memory have what journals have
                records.read(self.folder / RECORDS)
                self._merge_journals(records)
            yield is_last
            if self._share_lock is not None:
                self._share_lock.release()

    def _merge_journals(self, records: RecordLog) -> None:
        """Append the records in journals to `records`, which are those of records.jsonl, and remove the journals."""
        if paths := journals.journals(self.folder):
            if lines := [line for path in paths for line in journals.merge_journal(records, path)]:
                self._append(lines, log=self.folder / RECORDS)
            journals.remove(paths)
        for leftover in (self.folder / journals.FOLDER).glob("*/"):
            with contextlib.suppress(OSError):  # not empty
                leftover.rmdir()

    def _append(self, lines: list[bytes], *, log: Path | None = None) -> None:
        path = log or self._log
        is_new = not path.exists()
        if is_new and not path.parent.exists():
            path.parent.mkdir()
            fsync_folder(path.parent.parent)
        self.records.append(path, lines)
        if is_new:
            fsync_folder(path.parent)

    def complete(self, summary: Mapping[str, Any] | None = None) -> None:
        """Commit the record that says the whole stage is done, with its summary."""
        self.add({"id": COMPLETE, **(summary or {})})

    @property
    def is_complete(self) -> bool:
        """Return whether `complete` was committed."""
        return COMPLETE in self.records

    def ids(self, prefix: str) -> list[str]:
        """Return the ids of records that begin with `prefix`, in order."""
        return [key for key in self.records if key.startswith(prefix)]

    def has_failed(self, key: str) -> bool:
        """Return whether the record of an item says that it failed; parse no record."""
        return key in self.records.noted["error"]

    @property
    def failed(self) -> dict[str, Record]:
        """Return the records of items that failed, by id."""
        return self.records_with("error")

    def records_with(self, name: str) -> dict[str, Record]:
        """Return the records that have "error" or "damage", by id, in order; only these are parsed."""
        noted = self.records.noted[name]
        return {key: self.records[key] for key in self.records if key in noted} if noted else {}

    def fingerprint(self) -> str:
        """Return the hex sha256 over the header and all records: equal exactly when the folders hold the same results.

        It leaves out the record of an index, which is made from the rest and has different bytes every time, and the record
        of the stores that were joined in this one.
        """
        records = [
            {name: value for name, value in self.records[key].items() if name not in TRANSIENT_KEYS}
            for key in sorted(self.records)
            if key not in (INDEX, SOURCES)
        ]
        return hashlib.sha256(headers.canonical([self.header, records]).encode()).hexdigest()


class ManifestSnapshot(Manifest):
    """The records of a folder in memory, for looking ahead: an added record is written nowhere."""

    def add_all(self, records: Iterable[Record]) -> None:
        """Take in several records."""
        self.records.update((record["id"], record) for record in records)


def has_no_results(folder: Path) -> bool:
    """Return whether nothing was made in the folder yet: it accepts another recipe then, since no results can mix."""
    files = (path.name for path in folder.rglob("*") if path.is_file())
    if any(name not in {HEADER, RECORDS} and not name.startswith(LOCK) for name in files):
        return False
    records = RecordLog()
    records.read(folder / RECORDS)
    return all(key.startswith(PLAN) for key in records)


def _sound_records(content: bytes) -> tuple[list[Record], list[int]]:
    """Return the records of all complete and undamaged lines, and the numbers of the damaged ones."""
    records: list[Record] = []
    damaged_lines = []
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            record = parse_record(line)
            record["id"]
            records.append(record)
        except (ValueError, KeyError, TypeError):
            damaged_lines.append(number)
    return records, damaged_lines


def _leave_out_damaged(path: Path) -> None:
    """Rewrite a journal without lines that are damaged or incomplete."""
    content = path.read_bytes()
    sound = b"".join(map(encode, _sound_records(content)[0]))
    if sound != content:
        log.warning("%s: had damaged lines; what they recorded is rebuilt", path)
        write_bytes(path, sound)


def _refuse_foreign_folder(folder: Path) -> None:
    names = [path.name for path in folder.glob("*")]
    foreign = [name for name in names if name != RECORDS and not name.startswith(LOCK) and not name.endswith(".tmp")]
    if foreign and not (folder / HEADER).exists():  # which another process may have written meanwhile
        raise ValueError(f"{folder}: not empty ({foreign[0]!r}, …) and not written by excl; choose a new folder")


def _remove_temporaries(folder: Path) -> None:
    for pattern in (".*.tmp", "*/.*.tmp"):
        for leftover in folder.glob(pattern):
            log.info("removing %s, left by a run that was interrupted", leftover)
            leftover.unlink()
