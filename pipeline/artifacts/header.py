"""The header of a stage folder, `manifest.json`: the stage, its code version and identity, with a crc32 of the rest.

Two folders hold results of the same recipe exactly if their headers say the same.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from excl.pipeline.artifacts.atomic_files import write_text

HEADER = "manifest.json"


class RecipeMismatchError(ValueError):
    """A folder holds the results of another recipe than the one asked for."""


def read_header(folder: Path) -> dict[str, Any]:
    """Return the header of a stage folder; ValueError names the folder if it has none."""
    path = folder / HEADER
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
        if header.pop("crc32", None) != _crc32(canonical(header).encode()):
            raise ValueError("its checksum is not that of its content")
        return header
    except FileNotFoundError:
        raise ValueError(f"{folder}: no {HEADER} there, so no stage of excl has written this folder") from None
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path}: damaged ({error}); remove the folder and run the stage again") from error


def comparable_header(folder: Path) -> dict[str, Any]:
    """Return the header without the parts that do not affect the results, such as the version of the package."""
    return {key: value for key, value in read_header(folder).items() if key not in ("excl", "about")}


def plain(*, stage: str, identity: Mapping[str, Any], code_version: int) -> dict[str, Any]:
    """Return the comparable header of a new folder, as reading it back would give it."""
    return json.loads(canonical({"stage": stage, "code_version": code_version, "identity": identity}))


def refuse_other_recipe(folder: Path, expected: Mapping[str, Any]) -> None:
    """Raise RecipeMismatchError, which says what differs; ValueError if another stage made the folder."""
    header = comparable_header(folder)
    if header.get("stage") != expected["stage"]:
        raise ValueError(
            f"{folder} was made by the stage {header.get('stage')!r}; choose another folder for {expected['stage']!r}"
        )
    if differences := diff_lines(header, expected):
        raise RecipeMismatchError(
            f"{folder} was made from another recipe:\n  " + "\n  ".join(differences) + "\n"
            "Results of two recipes are never mixed: choose another output folder, or remove this one."
        )


def matching_folder(folder: Path, *, stage: str, identity: Mapping[str, Any], code_version: int) -> Path:
    """Return the folder, or the first of `<folder>-2`, `<folder>-3`, … that is free or was made from the same recipe."""
    header = plain(stage=stage, identity=identity, code_version=code_version)
    candidates = itertools.chain([folder], (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2)))
    return next(path for path in candidates if not (path / HEADER).exists() or not diff(comparable_header(path), header))


def write_header(folder: Path, header: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write a comparable header and other known facts: the version of the package, and `about`."""
    write_text(folder / HEADER, _text({**header, "excl": _package_version(), "about": dict(about)}))


def header_is_as_written(folder: Path) -> bool:
    """Return whether the header's file holds what was written, byte for byte."""
    return (folder / HEADER).read_bytes() == _text(read_header(folder)).encode()


def _text(header: Mapping[str, Any]) -> str:
    plain = json.loads(canonical(header))
    return json.dumps({**plain, "crc32": _crc32(canonical(plain).encode())}, indent=2) + "\n"


def diff(header: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the two values under every dotted key where nested mappings differ, `(nothing)` for a key that one lacks."""
    values, expected_values = _flatten(header), _flatten(expected)
    keys = [key for key in sorted(values.keys() | expected_values.keys()) if values.get(key) != expected_values.get(key)]
    return {key: (values.get(key, "(nothing)"), expected_values.get(key, "(nothing)")) for key in keys}


def diff_lines(header: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Return the differences, a line each, for people."""
    return [_diff_line(key, *values) for key, values in diff(header, expected).items()]


def _diff_line(key: str, value: object, expected: object) -> str:
    if isinstance(value, str) and isinstance(expected, str) and len(value) == len(expected) == 64:  # two sha256
        return f"{key}: not the same content as when the folder was made ({value[:8]}… then, {expected[:8]}… now)"
    return f"{key}: the folder has {value!r}, asked for is {expected!r}"


def _flatten(value: Any, name: str = "") -> dict[str, Any]:
    """Return nested mappings and lists as one mapping, with dotted keys."""
    if not isinstance(value, Mapping | list) or not value:
        return {name: value}
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
    return {k: v for key, item in pairs for k, v in _flatten(item, f"{name}.{key}" if name else str(key)).items()}


def canonical(value: object) -> str:
    """Return JSON that is the same text for the same value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _package_version() -> str:
    try:
        return importlib.metadata.version("excl")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _crc32(content: bytes) -> str:
    return f"{zlib.crc32(content):08x}"
