"""What a stage leaves beside its artefacts: a header that says what made them, and one record for every item.

A stage folder holds `manifest.json` (stage, identity, code version; written once) and `records.jsonl` (one JSON object a
line, appended and fsynced). An artefact is written under a temporary name in its own folder, fsynced, moved into place,
and only then recorded: the record is the commit, and what no record names does not exist. Header and records end with a
crc32 of the rest, which is verified whenever they are read.

Opening a folder whose header differs from what is asked for is refused with the fields that differ, so two recipes never
mix. One process at a time works on a folder, or several that each have a share of it (journals.py); locks die with their
process.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Set
from pathlib import Path
from typing import Any, Self

import filelock

from excl.pipeline.artifacts import header as headers
from excl.pipeline.artifacts import journals
from excl.pipeline.artifacts.atomic_files import fsync_folder, sha256_file, write_bytes
from excl.pipeline.artifacts.header import HEADER
from excl.pipeline.artifacts.journals import LOCK, BusyError, ShardRange
from excl.pipeline.artifacts.record_log import Record, RecordLog, encode, parse_record

__all__ = ["HEADER", "BusyError", "Manifest", "ManifestSnapshot", "ShardRange"]

log = logging.getLogger(__name__)

RECORDS = "records.jsonl"
COMPLETE = "complete"
INDEX, SOURCES = "index", "joined from"  # ids of records that say nothing of the results
TRANSIENT_KEYS = frozenset({"wall_s", "timing", "stat", "device"})  # told in records for people, no part of what a folder is


class Manifest:
    """The header and the records of one stage folder; `Manifest.open` to work on it, `Manifest.read` to look."""

    def __init__(
        self, folder: Path, header: dict[str, Any], records: MutableMapping[str, Record], *, share: ShardRange | None = None
    ) -> None:
        self.folder, self.header, self.records, self.share = folder, header, records, share
        self._is_whole = share is None
        self._lock: filelock.BaseFileLock | None = None

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
        """Create the folder or resume it, under its lock; or under that of a share, beside other shares of the same number.

        `identity` is everything that determines the results, as JSON values, `about` what else is known of them.
        Raises RecipeMismatchError when the folder was made from another identity, stage or code version, and BusyError when
        another process holds it.
        """
        header = headers.plain(stage=stage, identity=identity, code_version=code_version)
        if not (folder / HEADER).exists():
            _refuse_foreign_folder(folder)
        with contextlib.ExitStack() as held:
            whole = held.enter_context(_locked(folder, wait_s=0.0 if share is None else journals.WAIT_S))
            alone = _refuse_other_work(folder, share)
            if not alone and not (folder / HEADER).exists():
                raise BusyError(
                    f"{folder}: another process is working on it, and its {HEADER} cannot be seen here; wait for it"
                )
            if alone:
                _remove_temporaries(folder)
            if not (folder / HEADER).exists() or (alone and has_no_results(folder)):
                (folder / RECORDS).unlink(missing_ok=True)
                headers.write_header(folder, header, about or {})
            headers.refuse_other_recipe(folder, header)
            records = RecordLog()
            records.read(folder / RECORDS, repair=True)
            manifest = cls(folder, header, records, share=share)
            if alone:
                manifest.merge_journals(known=records)
            if share is not None:
                lock = journals.locked(folder, journals.share_lock(share), wait_s=journals.WAIT_FOR_OWN_S)
                manifest._lock = held.enter_context(lock)
                RecordLog().read(manifest._journal, repair=True)
                whole.release()
            yield manifest

    @classmethod
    def read(cls, folder: Path, *, stage: str | None = None) -> Self:
        """The manifest of a finished or unfinished folder, without a lock; ValueError if it is none of `stage`."""
        header = headers.comparable_header(folder)
        if stage is not None and header.get("stage") != stage:
            raise ValueError(f"{folder}: made by the stage {header.get('stage')!r}, wanted is one made by {stage!r}")
        while True:
            paths = journals.journals(
                folder
            )  # first: those that are folded meanwhile are missed then, and not their records
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
        """A folder under its lock, whatever made it, and the numbers of the lines of records that are damaged.

        Those are left out, and a last line that does not end is cut off. Journals count as records; `rewrite` folds them.
        """
        header = headers.comparable_header(folder)
        with _locked(folder):
            _refuse_other_work(folder, None)
            for path in journals.journals(folder):
                _leave_out_damaged(path)  # what they lack was never among the records, and is done again
            records: dict[str, Record] = {}
            damaged = []
            content = (folder / RECORDS).read_bytes() if (folder / RECORDS).exists() else b""
            for number, line in enumerate(content.split(b"\n")[:-1], start=1):
                try:
                    record = parse_record(line)
                    records[record["id"]] = record
                except (ValueError, KeyError, TypeError):
                    damaged.append(number)
            for path in journals.journals(folder):
                journals.merge_journal(records, path)
            yield cls(folder, header, records), damaged

    @staticmethod
    def version(folder: Path, *, stage: str, identity: Mapping[str, Any], code_version: int) -> Path:
        """The folder, or the first of `<folder>-2`, `<folder>-3`, … that is free or was made from the same."""
        header = headers.plain(stage=stage, identity=identity, code_version=code_version)
        for number in itertools.count(1):
            candidate = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
            if not (candidate / HEADER).exists() or not headers.diff_lines(headers.comparable_header(candidate), header):
                return candidate
        raise AssertionError

    def add(self, record: Record) -> None:
        """Commit one record, a JSON object with an `id`; a later record of the same id replaces the earlier."""
        self.add_all([record])

    def add_all(self, records: Iterable[Record]) -> None:
        """Commit several records at once: after a kill there are all, or the first of them."""
        self._append(self.folder / RECORDS if self._is_whole else self._journal, [encode(record) for record in records])

    def rewrite(self, records: Mapping[str, Record]) -> None:
        """Put other records in the place of all there are, at once."""
        write_bytes(self.folder / RECORDS, b"".join(map(encode, records.values())))
        journals.remove(journals.journals(self.folder))
        self.records = RecordLog()
        self.records.read(self.folder / RECORDS)

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Meanwhile no other share plans or ends: what it has committed is seen, and what is added all of them see."""
        if self.share is None:
            yield
            return
        with _locked(self.folder, wait_s=journals.WAIT_S):
            assert isinstance(self.records, RecordLog)
            self.records.read(self.folder / RECORDS, repair=True)
            for path in journals.journals(self.folder):
                journals.merge_journal(self.records, path)
            self._is_whole = True
            try:
                yield
            finally:
                self._is_whole = False

    @contextlib.contextmanager
    def finishing(self) -> Iterator[bool]:
        """The last thing to do: whether this is the whole folder, or the last of its shares at which somebody works."""
        with self.exclusive():
            last = not journals.is_being_worked_on(self.folder, but=self.share)
            if last:
                self.merge_journals()
            yield last
            if self._lock is not None:
                self._lock.release()

    def merge_journals(self, *, known: RecordLog | None = None) -> None:
        """Append what journals have to the records, and remove them; `known` are those if they were just read."""
        paths = journals.journals(self.folder)
        if paths:
            if known is None:  # what is in memory has what journals have
                known = RecordLog()
                known.read(self.folder / RECORDS)
            lines = [line for path in paths for line in journals.merge_journal(known, path)]
            if lines:
                self._append(self.folder / RECORDS, lines)
            journals.remove(paths)
        for empty in (self.folder / journals.FOLDER).glob("*/"):
            with contextlib.suppress(OSError):
                empty.rmdir()

    @property
    def _journal(self) -> Path:
        assert self.share is not None
        return self.folder / journals.FOLDER / f"share-{self.share.name}.jsonl"

    def _append(self, path: Path, lines: list[bytes]) -> None:
        assert isinstance(self.records, RecordLog)
        new = not path.exists()
        if new and not path.parent.exists():
            path.parent.mkdir()
            fsync_folder(path.parent.parent)
        self.records.append(path, lines)
        if new:
            fsync_folder(path.parent)

    def complete(self, summary: Mapping[str, Any] | None = None) -> None:
        """Commit the record that says the whole stage is done, with its summary."""
        self.add({"id": COMPLETE, **(summary or {})})

    @property
    def is_complete(self) -> bool:
        """Whether `complete` was committed."""
        return COMPLETE in self.records

    def ids(self, prefix: str) -> list[str]:
        """The ids of records that begin with `prefix`, in order."""
        return [key for key in self.records if key.startswith(prefix)]

    def has_failed(self, key: str) -> bool:
        """Whether the record of an item says that it failed; none is parsed to know it."""
        return key in self._noted("error")

    def says(self, key: str, fragment: str) -> bool:
        """Whether a record has a fragment like `"stat": [1, 2]` of it as JSON; none is parsed to know it."""
        return key in self.records and fragment.encode() in (
            self.records.line(key) if isinstance(self.records, RecordLog) else encode(self.records[key])
        )

    @property
    def failed(self) -> dict[str, dict[str, Any]]:
        """The records of items that failed, by id."""
        return self.records_with("error")

    def records_with(self, name: str) -> dict[str, Record]:
        """The records that have "error" or "damage", by id, in order; only these are parsed."""
        noted = self._noted(name)
        return {key: self.records[key] for key in self.records if key in noted} if noted else {}

    def _noted(self, name: str) -> Set[str]:
        if isinstance(self.records, RecordLog):
            return self.records.noted[name]
        return {key for key, record in self.records.items() if name in record}

    def fingerprint(self) -> str:
        """Hex sha256 over the header and all records: equal exactly when the folders hold the same results.

        But for the record of an index, which is made of the rest, and not of the same bytes every time, and that of the
        stores that were joined in it.
        """
        records = [
            {name: value for name, value in self.records[key].items() if name not in TRANSIENT_KEYS}
            for key in sorted(self.records)
            if key not in (INDEX, SOURCES)
        ]
        return hashlib.sha256(headers.canonical([self.header, records]).encode()).hexdigest()


class ManifestSnapshot(Manifest):
    """The records of a folder in memory, for looking ahead: a record that is added is written nowhere."""

    def add_all(self, records: Iterable[Record]) -> None:
        """Take in several records."""
        self.records.update((record["id"], record) for record in records)


def run_once(
    folder: Path,
    *,
    stage: str,
    identity: Mapping[str, Any],
    code_version: int,
    build: Callable[[Manifest], Mapping[str, Any]],
) -> Path:
    """Run a stage whose result is one thing: `build(manifest)` unless it is complete; what it returns is the summary.

    Its key `sha256` names the files that were made. ValueError if a complete folder has lost or changed one of them.
    """
    with Manifest.open(folder, stage=stage, identity=identity, code_version=code_version) as manifest:
        if manifest.is_complete:
            _require_outputs(manifest)
            log.info("%s: %s is complete, nothing to do", stage, folder)
        else:
            manifest.complete(build(manifest))
    return folder


def _require_outputs(manifest: Manifest) -> None:
    made = dict(manifest.records[COMPLETE].get("sha256", {}))
    made |= {r["file"]: None for r in manifest.records.values() if "file" in r}  # large ones are checked when they are read
    for name, sha256 in made.items():
        path = manifest.folder / name
        if not path.is_file() or (sha256 is not None and sha256_file(path) != sha256):
            state = "has changed since it was made" if path.is_file() else "is not there any more"
            raise ValueError(f"{path} {state}; remove the folder {manifest.folder} and run the same command again")


@contextlib.contextmanager
def _locked(folder: Path, *, wait_s: float = 0.0) -> Iterator[Any]:
    """Hold the lock of a folder, which is made if it is not there."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: a file; wanted is a folder to write")
    folder.mkdir(parents=True, exist_ok=True)
    with journals.locked(folder, wait_s=wait_s) as lock:
        yield lock


def _refuse_other_work(folder: Path, share: ShardRange | None) -> bool:
    """Whether nobody works on a share of the folder. BusyError if somebody does beside whom this one cannot."""
    others = journals.is_being_worked_on(folder)
    wrong = [name for name in others if share is None or name == share.name or not name.endswith(f"-of-{share.of}")]
    if wrong:
        raise BusyError(
            f"{folder}: another process is working on it, at the share {wrong[0].replace('-of-', '/')}; wait for it, or "
            "choose another folder"
        )
    return not others


def _leave_out_damaged(path: Path) -> None:
    """Write a journal anew without lines that are damaged, or do not end."""
    good = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            parse_record(line)["id"]
            good.append(line + b"\n")
    if b"".join(good) != path.read_bytes():
        log.warning("%s: had damaged lines; what they recorded is made again", path)
        write_bytes(path, b"".join(good))


def _refuse_foreign_folder(folder: Path) -> None:
    ours = {LOCK, RECORDS}
    strangers = [
        p.name
        for p in folder.glob("*")
        if p.name not in ours and not p.name.startswith(f"{LOCK}-") and not p.name.endswith(".tmp")
    ]
    if strangers and not (folder / HEADER).exists():  # which another process may have written meanwhile
        raise ValueError(f"{folder}: not empty ({strangers[0]!r}, …) and not written by excl; choose a new folder")


def has_no_results(folder: Path) -> bool:
    """Whether nothing was made in the folder yet: such a folder takes another recipe, no results can mix in it."""
    files = (path.name for path in folder.rglob("*") if path.is_file())
    if any(name not in {HEADER, RECORDS, LOCK} and not name.startswith(f"{LOCK}-") for name in files):
        return False
    records = RecordLog()
    records.read(folder / RECORDS)
    return all(name.startswith("plan/") for name in records)


def _remove_temporaries(folder: Path) -> None:
    for pattern in (".*.tmp", "*/.*.tmp"):
        for leftover in folder.glob(pattern):
            log.info("removing %s, left by a run that was interrupted", leftover)
            leftover.unlink()
