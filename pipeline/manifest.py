"""What a stage leaves beside its artefacts: a header that says what made them, and one record for every item.

A stage folder holds `manifest.json` (stage, identity, code version; written once) and `records.jsonl` (one JSON object a
line, appended and fsynced). An artefact is written under a temporary name in its own folder, fsynced, moved into place,
and only then recorded: the record is the commit, and what no record names does not exist. Header and records end with a
crc32 of the rest, which is verified whenever they are read.

Opening a folder whose header differs from what is asked for is refused with the fields that differ, so two recipes never
mix. One process at a time works on a folder; the lock dies with its process.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import itertools
import json
import logging
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock

log = logging.getLogger(__name__)

HEADER = "manifest.json"
RECORDS = "records.jsonl"
LOCK = ".lock"
COMPLETE = "complete"
INDEX, SOURCES = "index", "joined from"  # ids of records that say nothing of the results
TRANSIENT_KEYS = frozenset({"wall_s", "stat", "device"})  # told in records for people, no part of what a folder is


class RecipeMismatchError(ValueError):
    """A folder holds the results of another recipe than the one asked for."""


class BusyError(RuntimeError):
    """Another process is working on the folder."""


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success its content is on disk and named `path`, on failure it is gone."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        move(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def move(source: Path, target: Path) -> None:
    """Give a file that is on disk its final name, durably."""
    os.replace(source, target)
    fsync_folder(target.parent)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 so that `path` holds either what it held before or all of it."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _flatten(value: Any, name: str = "") -> dict[str, Any]:
    """Nested mappings and lists as one mapping, with dotted keys."""
    if not isinstance(value, Mapping | list) or not value:
        return {name: value}
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
    return {k: v for key, item in pairs for k, v in _flatten(item, f"{name}.{key}" if name else str(key)).items()}


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The two values under every dotted key where nested mappings differ, `(nothing)` where one has no such key."""
    old, new = _flatten(one), _flatten(other)
    keys = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    return {key: (old.get(key, "(nothing)"), new.get(key, "(nothing)")) for key in keys}


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    return [_difference(key, old, new) for key, (old, new) in differing(found, wanted).items()]


def _difference(key: str, old: object, new: object) -> str:
    if isinstance(old, str) and isinstance(new, str) and len(old) == len(new) == 64:  # two sha256
        return f"{key}: not the same content as when the folder was made ({old[:8]}… then, {new[:8]}… now)"
    return f"{key}: the folder has {old!r}, asked for is {new!r}"


class Manifest:
    """The header and the records of one stage folder; `Manifest.open` to work on it, `Manifest.read` to look."""

    def __init__(self, folder: Path, header: dict[str, Any], records: dict[str, dict[str, Any]]) -> None:
        self.folder = folder
        self.header = header
        self.records = records

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
    ) -> Iterator[Manifest]:
        """Create the folder or resume it, under its lock.

        `identity` is everything that determines the results, as JSON values, `about` what else is known of them.
        Raises RecipeMismatchError when the folder was made from another identity, stage or code version, and BusyError when
        another process holds it.
        """
        header = json.loads(_canonical({"stage": stage, "code_version": code_version, "identity": identity}))
        if not (folder / HEADER).exists():
            _refuse_foreign_folder(folder)
        with _locked(folder):
            _remove_temporaries(folder)
            if not (folder / HEADER).exists() or _is_barren(folder):
                (folder / RECORDS).unlink(missing_ok=True)
                _write_header(folder, {**header, "excl": _package_version(), "about": dict(about or {})})
            _refuse_other_recipe(folder, header)
            yield cls(folder, header, _read_records(folder / RECORDS, repair=True))

    @classmethod
    def read(cls, folder: Path, *, stage: str | None = None) -> Manifest:
        """The manifest of a finished or unfinished folder, without a lock; ValueError if it is none of `stage`."""
        header = read_header(folder)
        for told in ("excl", "about"):  # by which version of the package, and more: no part of what it is
            header.pop(told, None)
        if stage is not None and header.get("stage") != stage:
            raise ValueError(f"{folder}: made by the stage {header.get('stage')!r}, wanted is one made by {stage!r}")
        return cls(folder, header, _read_records(folder / RECORDS, repair=False))

    @classmethod
    @contextlib.contextmanager
    def repair(cls, folder: Path) -> Iterator[tuple[Manifest, list[int]]]:
        """A folder under its lock, whatever made it, and the numbers of the lines of records that are damaged.

        Those are left out, and a last line that does not end is cut off.
        """
        header = read_header(folder)
        for told in ("excl", "about"):
            header.pop(told, None)
        with _locked(folder):
            records: dict[str, dict[str, Any]] = {}
            damaged = []
            content = (folder / RECORDS).read_bytes() if (folder / RECORDS).exists() else b""
            for number, line in enumerate(content.split(b"\n")[:-1], start=1):
                try:
                    record = parse_record(line)
                    records[record["id"]] = record
                except (ValueError, KeyError, TypeError):
                    damaged.append(number)
            yield cls(folder, header, records), damaged

    @staticmethod
    def version(folder: Path, *, stage: str, identity: Mapping[str, Any], code_version: int) -> Path:
        """The folder, or the first of `<folder>-2`, `<folder>-3`, … that is free or was made from the same."""
        header = json.loads(_canonical({"stage": stage, "code_version": code_version, "identity": identity}))
        for number in itertools.count(1):
            candidate = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
            if not (candidate / HEADER).exists() or not _differences(Manifest.read(candidate).header, header):
                return candidate
        raise AssertionError

    def add(self, record: dict[str, Any]) -> None:
        """Commit one record, a JSON object with an `id`; a later record of the same id replaces the earlier."""
        line = _line(record)
        new = not (self.folder / RECORDS).exists()
        with (self.folder / RECORDS).open("ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
        if new:
            fsync_folder(self.folder)
        self.records[record["id"]] = record

    def rewrite(self, records: Mapping[str, dict[str, Any]]) -> None:
        """Put other records in the place of all there are, at once."""
        write_text(self.folder / RECORDS, "".join(map(_line, records.values())))
        self.records = dict(records)

    def complete(self, summary: Mapping[str, Any] | None = None) -> None:
        """Commit the record that says the whole stage is done, with its summary."""
        self.add({"id": COMPLETE, **(summary or {})})

    @property
    def is_complete(self) -> bool:
        """Whether `complete` was committed."""
        return COMPLETE in self.records

    @property
    def failed(self) -> dict[str, dict[str, Any]]:
        """The records of items that failed, by id."""
        return {key: record for key, record in self.records.items() if "error" in record}

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
        return hashlib.sha256(_canonical([self.header, records]).encode()).hexdigest()


def single(
    folder: Path,
    *,
    stage: str,
    identity: Mapping[str, Any],
    code_version: int,
    work: Callable[[Manifest], Mapping[str, Any]],
) -> Path:
    """Run a stage whose result is one thing: `work(manifest)` unless it is complete; what it returns is the summary.

    Its key `sha256` names the files that were made. ValueError if a complete folder has lost or changed one of them.
    """
    with Manifest.open(folder, stage=stage, identity=identity, code_version=code_version) as manifest:
        if manifest.is_complete:
            _require_outputs(manifest)
            log.info("%s: %s is complete, nothing to do", stage, folder)
        else:
            manifest.complete(work(manifest))
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
def _locked(folder: Path) -> Iterator[None]:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: a file; wanted is a folder to write")
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise BusyError(f"{folder}: another process is working on it; wait for it, or choose another folder") from error
    try:
        yield
    finally:
        lock.release()


def read_header(folder: Path) -> dict[str, Any]:
    """The header of a stage folder; ValueError naming the folder if it has none."""
    path = folder / HEADER
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
        if header.pop("crc32", None) != _crc32(_canonical(header).encode()):
            raise ValueError("its checksum is not that of its content")
        return header
    except FileNotFoundError:
        raise ValueError(f"{folder}: no {HEADER} there, so no stage of excl has written this folder") from None
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path}: damaged ({error}); remove the folder and run the stage again") from error


def _refuse_other_recipe(folder: Path, wanted: dict[str, Any]) -> None:
    found = Manifest.read(folder).header
    if found.get("stage") != wanted["stage"]:
        raise ValueError(
            f"{folder} was made by the stage {found.get('stage')!r}; choose another folder for {wanted['stage']!r}"
        )
    differences = _differences(found, wanted)
    if differences:
        raise RecipeMismatchError(
            f"{folder} was made from another recipe:\n  " + "\n  ".join(differences) + "\n"
            "Results of two recipes are never mixed: choose another output folder, or remove this one."
        )


def _refuse_foreign_folder(folder: Path) -> None:
    ours = {LOCK, RECORDS}
    strangers = [p.name for p in folder.glob("*") if p.name not in ours and not p.name.endswith(".tmp")]
    if strangers:
        raise ValueError(f"{folder}: not empty ({strangers[0]!r}, …) and not written by excl; choose a new folder")


def _is_barren(folder: Path) -> bool:
    """Whether nothing was made in the folder yet: such a folder takes another recipe, no results can mix in it."""
    files = (path.name for path in folder.rglob("*") if path.is_file())
    made = [name for name in files if name not in {HEADER, RECORDS, LOCK}]
    recorded = [name for name in _read_records(folder / RECORDS, repair=False) if not name.startswith("plan/")]
    return not made and not recorded


def _package_version() -> str:
    try:
        return importlib.metadata.version("excl")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _remove_temporaries(folder: Path) -> None:
    for pattern in (".*.tmp", "*/.*.tmp"):
        for leftover in folder.glob(pattern):
            log.info("removing %s, left by a run that was interrupted", leftover)
            leftover.unlink()


def _read_records(path: Path, *, repair: bool) -> dict[str, dict[str, Any]]:
    """The committed records by id. A last line cut short by a kill was never committed: it is ignored, or cut off."""
    if not path.exists():
        return {}
    content = path.read_bytes()
    committed = content[: content.rfind(b"\n") + 1]
    if repair and len(committed) < len(content):
        os.truncate(path, len(committed))
    records: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(committed.split(b"\n")[:-1], start=1):
        try:
            record = parse_record(line)
            records[record["id"]] = record
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}:{number}: not a record ({error}); the file is damaged, see `excl repair`") from error
    return records


CRC = b', "crc32": "%08x"}'


def _line(record: Mapping[str, Any]) -> str:
    content = json.dumps(record).encode()  # ASCII: names of files need not be valid Unicode
    return (content[:-1] + CRC % zlib.crc32(content) + b"\n").decode()


def parse_record(line: bytes) -> dict[str, Any]:
    """The record in a line; ValueError if it is none, or its checksum is not that of its content."""
    content = line[: -len(CRC % 0)] + b"}"
    if line != content[:-1] + CRC % zlib.crc32(content):
        raise ValueError("its checksum is not that of its content")
    return json.loads(content)


def _write_header(folder: Path, header: Mapping[str, Any]) -> None:
    plain = json.loads(_canonical(header))
    write_json(folder / HEADER, {**plain, "crc32": _crc32(_canonical(plain).encode())})


def header_is_as_written(folder: Path) -> bool:
    """Whether the header's file holds what was written, byte for byte."""
    plain = read_header(folder)
    wanted = json.dumps({**plain, "crc32": _crc32(_canonical(plain).encode())}, indent=2) + "\n"
    return (folder / HEADER).read_bytes() == wanted.encode()


def _crc32(content: bytes) -> str:
    return f"{zlib.crc32(content):08x}"
