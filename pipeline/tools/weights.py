"""I3D's weights: list what there is, fetch the published ones, verify files, import files that you have already."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from pydantic.dataclasses import dataclass

from excl.models.i3d.weight_catalogue import PUBLISHED, published_name
from excl.models.i3d.weights import check_name, convert, import_published, imported_names, imported_path, read_weights
from excl.pipeline.config import STRICT, PositiveFloat, WithoutPrefix, subcommand
from excl.pipeline.tools.assets import AssetKind, AssetReport, ListAssets, VerifyAssets, num_wrong, show

__all__ = ["WeightsConfig", "num_wrong", "run", "show"]

Name = Literal["kinetics", "charades"]


@dataclass(frozen=True, config=STRICT)
class FetchWeights:
    """Download published weights into the cache (EXCL_CACHE, or the platform's cache folder), and verify them.

    A download that was interrupted resumes."""

    names: Annotated[tyro.conf.Positional[tuple[Name, ...]], tyro.conf.arg(metavar="NAME …")]
    """Weights to download: kinetics (400 classes), charades (157 classes, fine-tuned from it)."""

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError(f"say which weights to fetch: {', '.join(PUBLISHED)}")


@dataclass(frozen=True, config=STRICT)
class VerifyWeightFiles(VerifyAssets):
    """Say what files are, or what is wrong with them. The exit code is 3 if something is wrong with one."""

    is_: Annotated[Name | None, tyro.conf.arg(name="is")] = None
    """The published weights that the files have to be, byte for byte."""


@dataclass(frozen=True, config=STRICT)
class ImportWeights:
    """Import a weight file that you have. A published file goes into the cache, and its name then works offline.

    Your own weights are converted to safetensors: into the cache under --name, which is then a value of --weights, or to a
    file with --to."""

    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    """A weight file: torch's format or safetensors, with the keys of the public PyTorch port."""
    name: str | None = None
    """The name for your own weights: letters, digits, - and _."""
    to: Path | None = None
    """A file to write, FILE.safetensors."""
    trained_on: str | None = None
    """Data that the weights were trained on, for the record."""
    licence: str | None = None
    """The licence of the weights, for the record."""
    fps: PositiveFloat | None = None
    """Frames a second of the videos they were trained on, for the record."""

    def __post_init__(self) -> None:
        if self.name is not None:
            check_name(self.name)
        if self.to is not None and self.to.suffix != ".safetensors":
            raise ValueError(f"--to {self.to}: the name has to end in .safetensors")


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
    """The action to take."""


class _WeightFiles(AssetKind):
    command, published = "weights", PUBLISHED

    def paths(self) -> dict[str, Path]:
        published = {name: weights.cached_path for name, weights in PUBLISHED.items()}
        return published | {name: imported_path(name) for name in imported_names()}

    def defaults(self, name: str) -> dict[str, Any]:
        facts = {"classes": None, "sha256": None, "facts": None}
        if name not in PUBLISHED:
            return facts
        weights = PUBLISHED[name]
        return {**facts, "file": weights.file_name, "classes": weights.num_classes, "size": weights.size}

    def inspect(self, path: Path, published: str | None) -> tuple[str, dict[str, Any]]:
        weights = read_weights(path, source=path.name)
        if published is not None and (difference := PUBLISHED[published].mismatch(path)) is not None:
            raise ValueError(f"weights of RGB I3D, and not the published {published}: {difference}")
        name = published_name(weights.facts.git_blob_id)
        converted = ", converted" if name and path.suffix == ".safetensors" else ""
        origin = f"the published {name}{converted}" if name else "none of the published files"
        return f"weights of RGB I3D, {weights.num_classes} classes, {origin}, tensors {weights.sha256[:12]}", {
            "classes": weights.num_classes,
            "published": name,
            "sha256": weights.sha256,
            "facts": weights.facts.to_json(),
        }


def run(config: WeightsConfig) -> AssetReport:
    """Do what the subcommand says."""
    action = config.action
    match action:
        case ListAssets():
            return _WeightFiles().list_files(action)
        case VerifyWeightFiles():
            return _WeightFiles().verify(action, action.is_)
        case FetchWeights():
            return _WeightFiles().fetch(action.names)
        case ImportWeights():
            return AssetReport("\n".join(_import(action)))


def _import(action: ImportWeights) -> list[str]:
    if action.name is None and action.to is None:
        published_path = import_published(action.file)
        if published_path is not None:
            return [f"{action.file} is a published file; it is now {published_path}"]
        read_weights(action.file, source=action.file.name)  # a wrong file is reported before a missing flag
        raise ValueError(f"{action.file}: none of the published files; say with --name under which name to import it")
    targets = [imported_path(action.name)] if action.name is not None else []
    targets += [action.to] if action.to is not None else []
    lines = []
    for target in targets:
        convert(action.file, target, trained_on=action.trained_on, licence=action.licence, fps=action.fps)
        lines.append(f"{action.file} was converted to {target}")
    if action.name is not None:
        lines.append(f"from now on it can be used as --weights {action.name}")
    return lines
