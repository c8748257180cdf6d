"""A repository of the Hugging Face hub that holds one folder of excl: a data set for stores, a model for runs."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from excl.models.lazy_module import LazyModule
from excl.pipeline.artifacts.manifest import HEADER, RECORDS, Manifest
from excl.pipeline.maintenance.verify import files_of, find

if TYPE_CHECKING:
    import huggingface_hub
else:
    huggingface_hub = LazyModule("huggingface_hub")

CARD = "README.md"
Kind = Literal["dataset", "model"]
KINDS: tuple[Kind, ...] = ("dataset", "model")


@dataclass(frozen=True)
class HubState:
    """A repository as it is: its kind, its latest commit, and the names of its files."""

    kind: Kind
    commit: str
    files: tuple[str, ...]


def client() -> huggingface_hub.HfApi:
    """Return the library's client; ValueError if the extra is not installed. Its bars are shown on a terminal alone."""
    try:
        api = huggingface_hub.HfApi(library_name="excl")
    except ModuleNotFoundError as error:
        raise ValueError(f"`pip install 'excl[hub]'` installs what push and pull need ({error})") from error
    if not sys.stderr.isatty():
        import_module("huggingface_hub.utils").disable_progress_bars()
    return api


@contextlib.contextmanager
def told_plainly(doing: str) -> Iterator[None]:
    """Raise OSError with what was being done for any error of the hub or of the network inside the block.

    A RuntimeError is one of them: the library raises it for a file whose upload failed.
    """
    from huggingface_hub import errors  # noqa: PLC0415  (an extra)

    try:
        yield
    except (errors.HTTPError, errors.LocalTokenNotFoundError, errors.LocalEntryNotFoundError, RuntimeError) as error:
        responses = (getattr(e, "response", None) for e in (error, error.__cause__))
        status = next((response.status_code for response in responses if response is not None), None)
        advice = "the same command continues where it stopped"
        if status in (401, 403) or isinstance(error, errors.LocalTokenNotFoundError):
            advice = "log in by `hf auth login`, or set HF_TOKEN"
        elif status == 404:
            advice = "look at the names of the repository and of the revision"
        text = f"{error} {error.__cause__ or ''}" if isinstance(error, RuntimeError) else str(error)
        reason = " ".join(text.split())
        raise OSError(f"{doing}: {reason or type(error).__name__}; {advice}") from error


def read_hub(api: huggingface_hub.HfApi, name: str, kinds: tuple[Kind, ...] = KINDS) -> HubState | None:
    """Return the state of the repository of the first kind that exists; None if there is none."""
    from huggingface_hub.errors import RepositoryNotFoundError  # noqa: PLC0415  (an extra)

    for kind in kinds:
        with contextlib.suppress(RepositoryNotFoundError):
            info = api.repo_info(name, repo_type=kind)
            return HubState(kind, info.sha or "", tuple(file.rfilename for file in getattr(info, "siblings", None) or ()))
    return None


def recorded_files(manifest: Manifest) -> list[str]:
    """Return the names of the files that make a folder what it is: the header, the records, and what these name."""
    return [HEADER, RECORDS, *sorted(files_of(manifest))]


def require_whole(folder: Path, *, so: str) -> Manifest:
    """Read every byte of a folder; return its manifest. ValueError, which ends with `so`, if anything is damaged."""
    manifest = Manifest.read(folder)
    damage = [finding for finding in find(manifest, read_data=True) if not finding.remark]
    if damage:
        raise ValueError(f"{folder}: damaged ({damage[0].file}: {damage[0].what}; {len(damage)} findings in all); {so}")
    return manifest
