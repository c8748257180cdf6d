"""Scripts by which bash and zsh complete commands, flags, and the values of flags that have few."""

from __future__ import annotations

import dataclasses
import inspect
import shlex
import typing
from collections.abc import Iterator
from typing import Any, Literal

from excl.workflows.keywords import Setting, settings_of
from excl.workflows.steps import COMMANDS

ZSH = "autoload -U +X bashcompinit && bashcompinit"
BASH = """_excl() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" flag="${{COMP_WORDS[COMP_CWORD - 1]}}" flags="" values=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{commands} --help --version --print-completion" -- "$current"))
        return
    fi
    case "${{COMP_WORDS[1]}}" in
{cases}
    esac
    case "$current" in -*) values="$flags" ;; esac
    COMPREPLY=($(compgen -W "$values" -- "$current"))
}}
complete -o default -F _excl excl"""


def script(shell: Literal["bash", "zsh"]) -> str:
    """The script of a shell; where it proposes nothing, the shell completes file names."""
    cases = []
    for name, step in COMMANDS.items():
        flags = dict(flag for setting in settings_of(step.config) for flag in _flags(setting))
        choices = [f"{flag}) values={shlex.quote(' '.join(values))} ;;" for flag, values in flags.items() if values]
        by_flag = f' case "$flag" in {" ".join(choices)} esac;' if choices else ""
        cases.append(f"        {name}) flags={shlex.quote(' '.join([*flags, '--help']))};{by_flag} ;;")
    completion = BASH.format(commands=" ".join(COMMANDS), cases="\n".join(cases))
    return completion if shell == "bash" else f"{ZSH}\n{completion}"


def _flags(setting: Setting, prefix: str = "") -> Iterator[tuple[str, list[str]]]:
    """The flags of a setting, each with its possible values, if these are few."""
    name = prefix + setting.name.replace("_", "-")
    if dataclasses.is_dataclass(setting.kind):
        for nested in settings_of(setting.kind):  # type: ignore[arg-type]
            yield from _flags(nested, f"{name}.")
    elif not setting.positional and not any(dataclasses.is_dataclass(kind) for kind in typing.get_args(setting.kind)):
        flagless = setting.kind is bool and setting.default is not inspect.Parameter.empty
        yield f"--{name}", ([] if flagless else list(_choices(setting.kind)))
        if setting.kind is bool:
            yield f"--{prefix}no-{setting.name.replace('_', '-')}", []


def _choices(kind: Any) -> Iterator[str]:
    if typing.get_origin(kind) is Literal:
        yield from map(str, typing.get_args(kind))
    else:
        for part in typing.get_args(kind):
            yield from _choices(part)
