"""Locks of stage folders: one process at a time works on a folder, or several that each have a share of it.

    .lock         held by the one process, or by each share's while it begins, plans and ends
    .lock-0-of-2  held by the process of one share of a job array (`--shard-range 0/2`)

A lock dies with its process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import filelock

from excl.pipeline.artifacts.shard_range import ShardRange

LOCK = ".lock"
WAIT_S, WAIT_FOR_OWN_S = 600.0, 5.0  # for other shares, which hold the folder while they read its records; and for a look


class BusyError(RuntimeError):
    """The error that another process is working on the folder."""


@contextlib.contextmanager
def locked(folder: Path, name: str = LOCK, *, wait_s: float = 0.0) -> Iterator[filelock.BaseFileLock]:
    """Hold a lock of a folder. BusyError if another process holds it for longer."""
    lock = filelock.FileLock(folder / name)
    try:
        lock.acquire(timeout=wait_s)
    except filelock.Timeout as error:
        raise BusyError(f"{folder}: another process is working on it; wait for it, or choose another folder") from error
    try:
        yield lock
    finally:
        lock.release()


@contextlib.contextmanager
def locked_new(folder: Path, *, wait_s: float = 0.0) -> Iterator[filelock.BaseFileLock]:
    """Hold the lock of a folder, which is made if it does not exist."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: a file; expected a folder to write")
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, wait_s=wait_s) as lock:
        yield lock


@contextlib.contextmanager
def exclusive_folder(folder: Path) -> Iterator[None]:
    """Keep all others from working in a folder; BusyError if somebody does."""
    with locked_new(folder):
        refuse_other_work(folder, None)
        yield


def share_lock(share: ShardRange) -> str:
    """Return the name of a share's lock."""
    return f"{LOCK}-{share.name}"


def busy_shares(folder: Path, *, but: ShardRange | None = None) -> list[str]:
    """Return the names of the shares that a process is working on now, without the share `but`."""
    names = []
    for path in sorted(folder.glob(f"{LOCK}-*-of-*")):
        if but is not None and path.name == share_lock(but):
            continue
        lock = filelock.FileLock(path)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            names.append(path.name.removeprefix(f"{LOCK}-"))
        else:
            lock.release()
    return names


def refuse_other_work(folder: Path, share: ShardRange | None) -> bool:
    """Return whether no share is being worked on; BusyError if one is that cannot run at the same time as `share`."""
    names = busy_shares(folder)
    refused = [name for name in names if share is None or name == share.name or not name.endswith(f"-of-{share.of}")]
    if refused:
        raise BusyError(
            f"{folder}: another process is working on it, at the share {refused[0].replace('-of-', '/')}; wait for it, or "
            "choose another folder"
        )
    return not names
