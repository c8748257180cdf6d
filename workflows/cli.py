"""The `excl` command: one subcommand a step, nothing but arguments in and calls out.

Exit codes: 0 all done, 1 stopped by an error, 2 arguments or settings refused, 3 finished, but some videos failed,
130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import functools
import logging
import os
import re
import shutil
import sys
import textwrap
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from excl.workflows.steps import COMMANDS, GROUPS, Step, run_step

log = logging.getLogger("excl")

DESCRIPTION = """Text-to-clip localisation from raw videos: I3D features with exact times, and
ExCL trained on them."""
MORE = """`excl COMMAND --help` tells more about a command. You can interrupt every
command and run it again. With EXCL_DEBUG=1 in the environment, an error shows
where it was raised."""
INTERRUPTED = 130
DEBUG = bool(os.environ.get("EXCL_DEBUG"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code. Arguments that cannot be parsed exit with 2 from within."""
    arguments = sys.argv[1:] if arguments is None else arguments
    step = COMMANDS[_command_name(arguments)]
    try:
        with _plain_errors(step.config):
            config = _parsed(step, arguments[1:])
    except ValueError as error:  # of a nested configuration, which tyro lets pass
        print(f"excl: {error}", file=sys.stderr)
        return 2
    from excl.pipeline.execution.progress import for_terminal  # noqa: PLC0415  (so `excl --help` answers at once)

    for level, word in ((logging.INFO, ""), (logging.WARNING, "warning: "), (logging.ERROR, "error: ")):
        logging.addLevelName(level, word)
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(for_terminal)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s%(message)s", handlers=[handler])
    try:
        failed = run_step(step, config)
    except KeyboardInterrupt:
        log.error("interrupted; what was recorded is kept, and the same command continues from there")
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001  (the boundary of the process)
        return _told(error)
    return 3 if failed else 0


def _told(error: Exception) -> int:
    """Say in one message what has ended the command; return the exit code."""
    from excl.datasets.video.errors import InternalError  # noqa: PLC0415
    from excl.pipeline.artifacts.locks import BusyError  # noqa: PLC0415
    from excl.pipeline.execution.circuit_breaker import SystemicError  # noqa: PLC0415

    if isinstance(error, BusyError | OSError | ValueError | SystemicError | InternalError):
        log.error("%s", error, exc_info=DEBUG)
        return 2 if isinstance(error, ValueError) else 1
    log.error(
        "%s: %s: an error in excl or in a library, or a device that failed; what was recorded is kept, and the same command "
        "continues from there (with EXCL_DEBUG=1 in the environment it shows where the error was raised)",
        type(error).__name__, error, exc_info=DEBUG,
    )  # fmt: skip
    return 1


def _command_name(arguments: Sequence[str]) -> str:
    """The command that the first argument names. Exits after an option that is answered, and with 2 for no command."""
    parser = argparse.ArgumentParser(
        prog="excl",
        usage="excl COMMAND ...",
        description=f"{DESCRIPTION}\n\n{_command_list()}",
        epilog=MORE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.add_argument("--print-completion", choices=("bash", "zsh"), help="print a script for the shell's completion")
    if not arguments or arguments[0].startswith("-"):
        _answer(parser.parse_args(arguments))
        parser.error("expected a command; `excl --help` lists them")
    if arguments[0] not in COMMANDS:
        near = difflib.get_close_matches(arguments[0], COMMANDS, n=1)
        meant = f"did you mean {near[0]!r}?" if near else "`excl --help` lists the commands"
        parser.error(f"there is no command {arguments[0]!r}; {meant}")
    return arguments[0]


def _answer(options: argparse.Namespace) -> None:
    """Print what an option without a command asks for, and exit."""
    if options.version:
        from importlib.metadata import version  # noqa: PLC0415

        print(version("excl"))
        sys.exit(0)
    if options.print_completion:
        from excl.workflows.completion import script  # noqa: PLC0415

        print(script(options.print_completion))
        sys.exit(0)


def _command_list() -> str:
    """The text that lists the commands by groups, one line for each."""
    lines = []
    for group, steps in GROUPS.items():
        lines += [f"{group}:", *(f"  {step.name:16}{step.summary}" for step in steps), ""]
    return "\n".join(lines).rstrip()


def _parsed(step: Step, arguments: Sequence[str]) -> Any:
    """The configuration of a command that the arguments describe. Exits with 2 where they describe none."""
    from unittest import mock  # noqa: PLC0415  (which imports asyncio)

    import tyro  # noqa: PLC0415

    width = shutil.get_terminal_size().columns
    paragraphs = _paragraphs(step.config.__doc__ or "")
    description = "\n\n".join(textwrap.fill(paragraph, width) for paragraph in paragraphs)

    def joined(text: str) -> str:
        return text if text == description else "\n\n".join(_paragraphs(text))

    strings = tyro._strings
    join_kinds = getattr(strings, "join_union_metavars", None)
    # tyro breaks the lines of an indented docstring where its source does, does not wrap the description, and says
    # `{None}|PATH` of a path that may be absent. A version without these functions shows its own help.
    better: dict[str, Any] = {"remove_single_line_breaks": joined}
    if join_kinds is not None:
        better["join_union_metavars"] = lambda kinds: join_kinds([kind for kind in kinds if kind != "{None}"])
    with mock.patch.multiple(strings, **{name: function for name, function in better.items() if hasattr(strings, name)}):
        return tyro.cli(step.config, args=arguments, prog=f"excl {step.name}", description=description)


def _paragraphs(text: str) -> list[str]:
    """Return the paragraphs of a docstring, each as one line."""
    return [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text.strip())]


@contextlib.contextmanager
def _plain_errors(config: type[Any]) -> Iterator[None]:
    """Make a configuration and those in it report a wrong value in one line inside the block, as recipes do.

    tyro shows the user what a constructor raises, and pydantic's own text is for programmers.
    """
    originals = {kind: kind.__init__ for kind in _configurations(config)}
    for kind, original in originals.items():
        kind.__init__ = _with_plain_errors(original)
    try:
        yield
    finally:
        for kind, original in originals.items():
            kind.__init__ = original


def _configurations(kind: Any) -> Iterator[Any]:
    """Yield a configuration and those in its fields, also in unions: the dataclasses in a type, at any depth."""
    if dataclasses.is_dataclass(kind):
        yield kind
        inner: Iterable[Any] = typing.get_type_hints(kind).values()
    else:
        inner = typing.get_args(kind)
    for part in inner:
        yield from _configurations(part)


def _with_plain_errors(original: Callable[..., None]) -> Callable[..., None]:
    from pydantic import ValidationError  # noqa: PLC0415

    from excl.pipeline.config import describe  # noqa: PLC0415

    @functools.wraps(original)
    def plain(*arguments: Any, **keywords: Any) -> None:
        try:
            original(*arguments, **keywords)
        except ValidationError as error:
            raise ValueError(describe(error, where="settings")) from None

    return plain


def entry() -> None:
    """The command's entry: `main` as a process, which when interrupted ends without waiting for its threads."""
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read what is printed wants no more of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.stderr.flush()
    if code == INTERRUPTED:
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    entry()
