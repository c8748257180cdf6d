"""A command's settings as the keywords of a Python function: signature, help, and the configuration that they make."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import itertools
import json
import re
import textwrap
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro

from excl.pipeline.config import dump, parse_section

FLAG = re.compile(r"`[^`]*`|(?<!=)--(?P<flag>[a-z-]+)")  # or code in backticks, whose flags may be of other programs


@dataclasses.dataclass(frozen=True)
class Setting:
    """One keyword: its name, its type, its default (`inspect.Parameter.empty` for none) and its help."""

    name: str
    kind: Any
    default: Any
    text: str
    hint: str
    """The meaning of the default, if the command's help says it in brackets."""
    positional: bool
    group: str | None = None
    """The nested configuration that has the setting, if its flags have no prefix."""


def settings_of(config: type[Any], *, without: Sequence[str] = ()) -> list[Setting]:
    """The settings of a configuration, those that must be given first; `without` names fields and settings to leave out."""
    settings = [setting for setting in _settings(config) if not {setting.name, setting.group} & set(without)]
    return sorted(settings, key=lambda setting: (not setting.positional, setting.default is not inspect.Parameter.empty))


def _settings(config: type[Any]) -> Iterator[Setting]:
    kinds, annotated = typing.get_type_hints(config), typing.get_type_hints(config, include_extras=True)
    texts = _field_docstrings(config)
    for field in dataclasses.fields(config):
        marks = getattr(annotated[field.name], "__metadata__", ())
        kind = kinds[field.name]
        if any(getattr(mark, "name", None) == "" for mark in marks):  # WithoutPrefix
            nested = kind if isinstance(kind, type) else None  # or commands in a command, which are no settings
            for setting in _settings(nested) if nested else ():
                yield dataclasses.replace(setting, group=field.name)
            continue
        default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        hints = [hint for mark in marks if isinstance(hint := getattr(mark, "help_behavior_hint", None), str)]
        yield Setting(field.name, kind, default, texts.get(field.name, ""), "".join(hints), tyro.conf.Positional in marks)


def _field_docstrings(config: type[Any]) -> dict[str, str]:
    """The docstrings under the fields of a dataclass and of its bases, with keywords in place of flags."""
    texts: dict[str, str] = {}
    for kind in reversed([kind for kind in config.__mro__ if dataclasses.is_dataclass(kind)]):
        try:
            source = inspect.getsource(kind)
        except OSError:  # a class that was built by a call
            continue
        body = ast.parse(textwrap.dedent(source)).body[0].body  # type: ignore[attr-defined]
        for node, following in itertools.pairwise(body):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(following, ast.Expr):
                text = " ".join(str(ast.literal_eval(following.value)).split())
                texts[node.target.id] = FLAG.sub(_keyword, text)
    return texts


def _keyword(match: re.Match[str]) -> str:
    return match[0] if match["flag"] is None else f"`{match['flag'].replace('-', '_')}`"


def signature(own: Sequence[inspect.Parameter], settings: Sequence[Setting], returns: Any) -> inspect.Signature:
    """Return a signature of a function's own parameters and of settings: those without a flag by place, others by name."""
    kinds = {True: inspect.Parameter.POSITIONAL_OR_KEYWORD, False: inspect.Parameter.KEYWORD_ONLY}
    parameters = [
        inspect.Parameter(setting.name, kinds[setting.positional], default=setting.default, annotation=setting.kind)
        for setting in settings
    ]
    return inspect.Signature([*own, *parameters], return_annotation=returns)


def describe_settings(settings: Sequence[Setting]) -> str:
    """The settings with their defaults and their help, and below a nested configuration those of its fields."""
    return "\n".join(line for setting in settings for line in _setting_lines(setting))


def _setting_lines(setting: Setting) -> Iterator[str]:
    nested = dataclasses.is_dataclass(setting.default)
    if setting.default is inspect.Parameter.empty:
        yield setting.name
    elif nested:
        yield f"{setting.name}: a dict or {type(setting.default).__name__} with"
    else:
        yield f"{setting.name} = {setting.default!r} {setting.hint}".rstrip()
    yield textwrap.fill(setting.text, 100, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)
    if nested:
        for field in _settings(type(setting.default)):
            yield from (textwrap.indent(line, "    ") for line in _setting_lines(field))


def configuration(
    config: type[Any], settings: Sequence[Setting], values: Mapping[str, Any], fixed: Mapping[str, Any], *, where: str
) -> Any:
    """The configuration that values of settings and `fixed` ones of others make; ValueError says what is wrong with them."""
    section = {**values, **fixed}
    for setting in settings:
        value = section.get(setting.name)
        if isinstance(value, str | Path) and typing.get_origin(setting.kind) is tuple:
            section[setting.name] = [value]
        if setting.group and setting.name in section:
            section.setdefault(setting.group, {})[setting.name] = section.pop(setting.name)
    names = {setting.name for setting in settings}
    for name in values:
        if name not in names:
            similar = difflib.get_close_matches(name, names, n=1)
            hint = f"; did you mean {similar[0]!r}?" if similar else ""
            raise ValueError(f"{where}: there is no setting {name!r}{hint}")
    return parse_section(config, json.loads(json.dumps(section, default=_json_value)), where=where)


def _json_value(value: Any) -> Any:
    """Return a configuration as a dict, a number of NumPy as Python's, and anything else, such as a path, as text."""
    if dataclasses.is_dataclass(value):
        return dump(value)
    return value.item() if hasattr(value, "item") else str(value)
