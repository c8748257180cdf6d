"""Pull a store or a run from the Hugging Face hub: leave its folder, every byte of it verified."""

from __future__ import annotations

import logging
import os
import shutil
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Annotated

import tyro
from pydantic.dataclasses import dataclass

from excl.pipeline.artifacts.atomic_files import fsync_folder
from excl.pipeline.artifacts.header import HEADER
from excl.pipeline.artifacts.locks import LOCK, locked_new
from excl.pipeline.artifacts.manifest import RECORDS, Manifest
from excl.pipeline.config import STRICT, SaidInText
from excl.pipeline.maintenance.hub_repository import CARD, client, read_hub, recorded_files, require_whole, told_plainly

log = logging.getLogger(__name__)


@dataclass(frozen=True, config=STRICT)
class PullConfig:
    """Pull a store or a run from the Hugging Face hub, and verify every byte by the checksums in it.

    After an interruption the same command fetches the files that are missing. The folder appears when all of it is there
    and whole."""

    repository: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="USER/NAME")]
    """The repository to which `excl push` has pushed."""
    out: Path
    """The new folder."""
    revision: SaidInText[str | None] = None
    """The commit, branch or tag. Default: the latest."""


def run(config: PullConfig) -> Path:
    """Return the folder. Raises ValueError if what came is damaged, or if the folder exists and holds something else."""
    api, out = client(), config.out
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / HEADER).is_file())):
        raise ValueError(f"{out}: exists, and was not written by excl; choose a new folder")
    with told_plainly(f"{config.repository} from the hub"):
        state = read_hub(api, config.repository)
        if state is None:
            raise OSError(f"{config.repository}: not on the hub, or private; for a private one, `hf auth login` first")
        commit = api.repo_info(config.repository, repo_type=state.kind, revision=config.revision or state.commit).sha
        files = api.list_repo_files(config.repository, repo_type=state.kind, revision=commit)
    odd = [name for name in files if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts]
    if HEADER not in files or RECORDS not in files or odd:
        raise ValueError(f"{config.repository}: not pushed by excl (it has {', '.join((odd or sorted(files))[:3])}, …)")
    staging = out.with_name(f".{out.name}.pull")
    fetch = partial(
        api.snapshot_download, config.repository, repo_type=state.kind, revision=commit, local_dir=staging,
        ignore_patterns=[".*", CARD],
    )  # fmt: skip
    with locked_new(staging), told_plainly(f"{config.repository} from the hub"):
        if (out / HEADER).is_file():
            fetch(allow_patterns=[HEADER, RECORDS])
            same = Manifest.read(out).fingerprint() == Manifest.read(staging).fingerprint()
            shutil.rmtree(staging)
            if not same:
                raise ValueError(f"{out}: exists, and has other results than {config.repository}; choose a new folder")
            require_whole(out, so="delete it and pull again")
            log.info("%s: has all of %s already", out, config.repository)
            return out
        fetch()
        try:
            _remove_others(staging, {*recorded_files(Manifest.read(staging))} & set(files))
            require_whole(staging, so="`excl pull` again fetches what is damaged; if it stays so, it was pushed so")
        except ValueError:
            shutil.rmtree(staging)  # the library takes files of the right size for the right ones
            raise
        shutil.rmtree(staging / ".cache", ignore_errors=True)
        if out.exists():
            out.rmdir()
        os.replace(staging, out)
        fsync_folder(out.absolute().parent)
    return out


def show(folder: Path) -> str:
    """Return where the folder is."""
    return f"{folder}: here, and every byte verified; `excl inspect {folder}` shows what it holds"


def _remove_others(staging: Path, wanted: set[str]) -> None:
    """Remove what an earlier pull of something else has left, and files that no record names."""
    for path in staging.rglob("*"):
        name = path.relative_to(staging).as_posix()
        if path.is_file() and name not in wanted and not name.startswith((LOCK, ".cache/")):
            path.unlink()
