"""Typed configuration: one frozen dataclass a stage is the source of the flags, the TOML keys and the manifest's header.

Every stage declares its configuration with `pydantic.dataclasses.dataclass(frozen=True, config=STRICT)` and a docstring
under each field. `tyro` makes the flags and their help of it (`workflows/cli.py`), `parse_section` reads it from a
recipe, `identity` says what of it goes into the header. Unknown keys, wrong types and impossible values are refused by
name in both ways.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import tyro
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction01 = Annotated[float, Field(ge=0, lt=1)]

# What pydantic adds to the place of an error to say which kind of a setting of several kinds it was tried as.
BRANCH = re.compile(r"(constrained-)?(int|float|str)|literal\[.*\]")


def _one_or_more(value: Any) -> Any:
    """Return one path or several as a tuple of strings, which pydantic's reader of JSON takes."""
    paths = [value] if isinstance(value, str | Path) else value
    is_list = isinstance(paths, list | tuple) and all(isinstance(path, str | Path) for path in paths)
    return tuple(map(str, paths)) if is_list else value


OneOrMorePaths = Annotated[tuple[Path, ...], Field(min_length=1), BeforeValidator(_one_or_more)]

C = TypeVar("C")
WithoutPrefix = Annotated[C, tyro.conf.arg(name="")]  # flags of a nested configuration under their own names
SaidInText = Annotated[C, tyro.conf.arg(help_behavior_hint="")]  # its docstring says what its absence means
_RUN_ONLY = "says where and how to run, and changes no result"
RunOnly = Annotated[C, _RUN_ONLY]  # a field that is no part of the identity


def subcommand(config: type[Any], name: str) -> Any:
    """Return the annotation that makes a configuration a subcommand, with its docstring as its help."""
    return tyro.conf.subcommand(name, description=" ".join((config.__doc__ or "").split()), prefix_name=False)


def parse_section(config_type: type[C], section: Mapping[str, Any], *, where: str) -> C:
    """Return a configuration from a table of a TOML file; ValueError names every key that is unknown, missing or wrong."""
    try:
        # JSON is the detour by which strict typing still takes a string for a path and a list for a tuple.
        return TypeAdapter(config_type).validate_json(json.dumps(section, default=str), strict=True)
    except ValidationError as error:
        raise ValueError(describe(error, where=where)) from error


def describe(error: ValidationError, *, where: str) -> str:
    """Return a ValidationError as one line a field: `where: key: what is wrong (given: value)`."""
    lines: dict[str, str] = {}
    for item in error.errors(include_url=False):
        key = ".".join(str(part) for part in item["loc"] if not BRANCH.fullmatch(str(part)))
        if key in lines:  # a setting of several kinds, of which each has its own reason
            lines[key] += f", or {item['msg'].removeprefix('Input should be ')}"
            continue
        reason = item["msg"].removeprefix("Value error, ")
        message = {
            "unexpected_keyword_argument": "unknown",
            "missing": "missing, and it has no default",
            "value_error": reason,
        }.get(item["type"], f"{reason} (given: {item['input']!r})")
        lines[key] = f"{where}: {key}: {message}" if key else f"{where}: {reason}"
    return "\n".join(lines.values())


def dump(config: object) -> dict[str, Any]:
    """Return a configuration as JSON values."""
    return TypeAdapter(type(config)).dump_python(config, mode="json")


def identity(config: object) -> dict[str, Any]:
    """The settings that determine the results, as JSON values: all fields but those that are marked as RunOnly."""
    hints = get_type_hints(type(config), include_extras=True)
    return {name: value for name, value in dump(config).items() if _RUN_ONLY not in get_args(hints[name])}


def existing_file(path: Path, *, what: str) -> Path:
    """Return `path` if it is a file; FileNotFoundError, or ValueError for a folder, says what was looked for and where."""
    if path.is_dir():
        raise ValueError(f"{path}: a folder; expected a file ({what})")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file ({what})")
    return path
