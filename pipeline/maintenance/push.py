"""Push a store or a run to the Hugging Face hub: read its folder, leave one commit in a repository."""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from pydantic.dataclasses import dataclass

from excl.models.lazy_module import LazyModule
from excl.pipeline.artifacts.header import HEADER, comparable_header, read_header, refuse_other_recipe
from excl.pipeline.artifacts.journals import journals
from excl.pipeline.artifacts.locks import exclusive_folder
from excl.pipeline.artifacts.manifest import RECORDS, Manifest
from excl.pipeline.config import STRICT
from excl.pipeline.maintenance.hub_repository import (
    CARD,
    Kind,
    client,
    read_hub,
    recorded_files,
    require_whole,
    told_plainly,
)
from excl.pipeline.maintenance.status import read_state

if TYPE_CHECKING:
    import huggingface_hub
else:
    huggingface_hub = LazyModule("huggingface_hub")

log = logging.getLogger(__name__)

GIT = ".gitattributes"  # which the hub makes itself


@dataclass(frozen=True, config=STRICT)
class PushConfig:
    """Push a finished store or run to the Hugging Face hub: one commit, with a card that says how it was made.

    Stores become data sets and runs models. A push that was interrupted does not send again what has arrived. A repository
    with anything else than this folder's recipe is left as it is. Log in by `hf auth login`, or set HF_TOKEN."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """The folder of a stage; nobody may be working on it, and every byte of it is verified first."""
    repository: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="USER/NAME")]
    """The repository, which is made if it does not exist."""
    public: bool = False
    """Make a new repository public; otherwise only you see it, until you change that on the hub."""


def run(config: PushConfig) -> str:
    """Return the address of the commit. ValueError for a folder that is not finished or damaged, or of another recipe."""
    Manifest.read(config.folder)
    api = client()
    with exclusive_folder(config.folder), told_plainly(f"{config.folder} to {config.repository}"):
        _require_finished(config.folder)
        manifest = require_whole(config.folder, so="`excl repair` takes out what is damaged; nothing was pushed")
        kind: Kind = "model" if manifest.header["stage"] == "train" else "dataset"
        state = read_hub(api, config.repository, (kind,))
        if state is None:
            api.create_repo(config.repository, repo_type=kind, private=not config.public)
            state = read_hub(api, config.repository, (kind,))
            assert state is not None
        elif set(state.files) - {GIT, CARD}:
            _require_same_recipe(api, config, kind, state.files)
        _warn_of_home(config.folder)
        files = recorded_files(manifest)
        operations: list[object] = [huggingface_hub.CommitOperationAdd(name, config.folder / name) for name in files]
        operations.append(huggingface_hub.CommitOperationAdd(CARD, card(config.folder, config.repository).encode()))
        gone = sorted(set(state.files) - {*files, CARD, GIT})
        operations += [huggingface_hub.CommitOperationDelete(name) for name in gone]
        commit = api.create_commit(
            config.repository,
            operations,  # type: ignore[arg-type]
            commit_message=f"{manifest.header['stage']}, {manifest.fingerprint()[:12]}, by excl push",
            repo_type=kind,
            parent_commit=state.commit or None,  # refused if somebody else has pushed meanwhile
        )
        return commit.commit_url


def show(address: str) -> str:
    """Return what was pushed and where it is."""
    return f"pushed: {address}"


def _require_finished(folder: Path) -> None:
    state = read_state(folder)
    if not state["complete"] or journals(folder):
        raise ValueError(f"{folder}: not finished; run its command again, and push it then. Nothing was pushed")


def _require_same_recipe(api: huggingface_hub.HfApi, config: PushConfig, kind: str, files: tuple[str, ...]) -> None:
    """Raise ValueError if the repository holds other things than a folder of this recipe."""
    place = f"{config.repository} on the hub"
    if HEADER not in files:
        raise ValueError(f"{place}: holds {sorted(files)[0]!r} and more, and was not pushed by excl; choose another name")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "there"
        api.hf_hub_download(config.repository, HEADER, repo_type=kind, local_dir=folder)
        try:
            refuse_other_recipe(folder, comparable_header(config.folder))
        except ValueError as error:
            raise type(error)(str(error).replace(str(folder), place)) from None


def _warn_of_home(folder: Path) -> None:
    """Warn that the records name places of this machine, as messages about failed videos do."""
    home = str(Path.home())
    named = sum(line.count(home) for name in (HEADER, RECORDS) for line in (folder / name).read_text().splitlines())
    if named and home != "/":
        log.warning("%s: its records name your home folder %d times, and are pushed as they are", folder, named)


def card(folder: Path, repository: str) -> str:
    """Return the repository's page: what this is, how it was made, and how to get it."""
    header, state = read_header(folder), read_state(folder)
    stage, counts = header["stage"], []
    if state["videos_planned"] or state["videos_done"]:
        failed = sum(map(len, state["videos_failed"].values()))
        counts = [f"{state['videos_done']:,} videos" + (f", {failed:,} more failed" if failed else "")]
    counts += [f"{state['rows']:,} feature rows"] if state["rows"] else []
    counts += [f"{state['epochs_done']:,} epochs"] if state["epochs_planned"] else []
    counts.append(f"{state['bytes'] / 1e6:,.1f} MB")
    return "\n".join(
        [
            "---",
            "tags:",
            "- excl",
            "- temporal-grounding",
            "---",
            "",
            f"# {repository}",
            "",
            f"The result of the stage `{stage}` of excl {header.get('excl')}: {', '.join(counts)}.",
            "",
            "```",
            f"excl pull {repository} --out {stage}",
            "```",
            "",
            "copies it and verifies every byte by the checksums in it.",
            "",
            "## How it was made",
            "",
            "The settings and the checksums of the inputs that determine it:",
            "",
            "```json",
            json.dumps({key: header[key] for key in ("stage", "code_version", "identity")}, indent=2),
            "```",
            "",
            "## Rights",
            "",
            "Videos, annotations, word vectors and the published I3D weights have licences of their own, and so may have",
            "what is made of them.",
            "",
        ]
    )
