"""I3D's weights: list what there is, fetch the published ones, verify files, import files that you have already."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from pydantic.dataclasses import dataclass

from excl.models.i3d.published import PUBLISHED, published_name
from excl.models.i3d.weights import (
    check_free,
    check_name,
    convert,
    import_published,
    imported_names,
    imported_path,
    read_weights,
)
from excl.pipeline.config import STRICT, PositiveFloat, WithoutPrefix, subcommand
from excl.pipeline.tools.assets import (
    AssetFinding,
    AssetKind,
    AssetReport,
    ListAssets,
    VerifyAssets,
    fetch_assets,
    list_assets,
    num_wrong,
    show,
    verify_assets,
)

__all__ = ["WeightsConfig", "num_wrong", "run", "show"]

Name = Literal["kinetics", "charades"]


@dataclass(frozen=True, config=STRICT)
class FetchWeights:
    """Download published weights into the cache (EXCL_CACHE, or the platform's cache folder), and verify them.

    A download that was interrupted resumes."""

    names: Annotated[tyro.conf.Positional[tuple[Name, ...]], tyro.conf.arg(metavar="NAME …")]
    """Which: kinetics (400 classes), charades (157 classes, fine-tuned from it)."""

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError(f"say which weights to fetch: {', '.join(PUBLISHED)}")


@dataclass(frozen=True, config=STRICT)
class VerifyWeightFiles(VerifyAssets):
    """Say of files what they are, or what is wrong with them. The exit code is 3 if something is wrong with one."""

    is_: Annotated[Name | None, tyro.conf.arg(name="is")] = None
    """The published weights that the files have to be, byte for byte."""


@dataclass(frozen=True, config=STRICT)
class ImportWeights:
    """Take a weight file that was got by hand. A published file goes into the cache, and its name then works offline.

    Weights of one's own are converted to safetensors: into the cache under --name, from then on a value of --weights, or to
    a file with --to."""

    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    """A weight file: torch's format or safetensors, with the keys of the public PyTorch port."""
    name: str | None = None
    """The name for weights of one's own: letters, digits, - and _."""
    to: Path | None = None
    """A file to write, FILE.safetensors."""
    trained_on: str | None = None
    """What the weights were trained on, for the record."""
    licence: str | None = None
    """Under which licence they are, for the record."""
    fps: PositiveFloat | None = None
    """Frames a second of the videos they were trained on, for the record."""

    def __post_init__(self) -> None:
        if self.name is not None:
            check_name(self.name)
        if self.to is not None and self.to.suffix != ".safetensors":
            raise ValueError(f"--to {self.to}: wanted is a name that ends in .safetensors")


Action = (
    Annotated[ListAssets, subcommand(ListAssets, "list")]
    | Annotated[FetchWeights, subcommand(FetchWeights, "fetch")]
    | Annotated[VerifyWeightFiles, subcommand(VerifyWeightFiles, "verify")]
    | Annotated[ImportWeights, subcommand(ImportWeights, "import")]
)


@dataclass(frozen=True, config=STRICT)
class WeightsConfig:
    """I3D's weights: list what there is, fetch the published ones, verify files, import files that you have already."""

    action: WithoutPrefix[Action]
    """What to do."""


@dataclasses.dataclass(frozen=True)
class WeightsFinding(AssetFinding):
    """A weight file."""

    classes: int | None = None
    facts: dict[str, Any] | None = None

    def describe(self) -> str:
        """Return the number of classes, the origin of the weights and the beginning of their checksum."""
        converted = ", converted" if self.published and self.file.endswith(".safetensors") else ""
        origin = f"the published {self.published}{converted}" if self.published else "none of the published files"
        return f"weights of RGB I3D, {self.classes} classes, {origin}, tensors {(self.sha256 or '')[:12]}"

    def columns(self) -> dict[str, Any]:
        """Return the number of classes."""
        return {"classes": self.classes or "-"}


def _paths() -> dict[str, Path]:
    published = {name: weights.cached_path for name, weights in PUBLISHED.items()}
    return published | {name: imported_path(name) for name in imported_names()}


def _blank(name: str, path: Path) -> WeightsFinding:
    """Return what is known of a published name before it is fetched, or the name of any other file."""
    if name not in PUBLISHED or path != PUBLISHED[name].cached_path:
        return WeightsFinding(name, path.name)
    published = PUBLISHED[name]
    return WeightsFinding(name, published.file_name, classes=published.num_classes, size=published.size)


def _inspect(finding: WeightsFinding, path: Path, published: str | None) -> WeightsFinding:
    weights = read_weights(path, source=finding.name)
    difference = PUBLISHED[published].mismatch(path) if published else None
    return dataclasses.replace(
        finding,
        file=path.name,
        classes=weights.num_classes,
        wrong=f"weights of RGB I3D, and not the published {published}: {difference}" if difference else None,
        published=published_name(weights.facts.git_blob_id),
        sha256=weights.sha256,
        facts=weights.facts.to_json(),
    )


KIND = AssetKind("weights", PUBLISHED, _paths, _blank, _inspect)


def run(config: WeightsConfig) -> AssetReport:
    """Do what the subcommand says."""
    action = config.action
    match action:
        case ListAssets():
            return list_assets(KIND, action)
        case VerifyWeightFiles():
            return verify_assets(KIND, action, action.is_)
        case FetchWeights():
            return fetch_assets(KIND, action.names)
        case ImportWeights():
            return AssetReport("\n".join(_import(action)))


def _import(action: ImportWeights) -> list[str]:
    if action.name is None and action.to is None:
        published_path = import_published(action.file)
        if published_path is not None:
            return [f"{action.file} is a published file; it is now {published_path}"]
        read_weights(action.file, source=action.file.name)  # a wrong file is reported before a missing flag
        raise ValueError(f"{action.file}: none of the published files; say with --name under which name to import it")
    if action.name is not None:
        check_free(action.name, action.file)
    targets = [imported_path(action.name)] if action.name is not None else []
    targets += [action.to] if action.to is not None else []
    lines = []
    for target in targets:
        convert(action.file, target, trained_on=action.trained_on, licence=action.licence, fps=action.fps)
        lines.append(f"{action.file} was converted to {target}")
    if action.name is not None:
        lines.append(f"from now on it can be used as --weights {action.name}")
    return lines
