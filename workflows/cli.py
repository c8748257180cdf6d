"""The `excl` command: one subcommand a step, nothing but arguments in and calls out.

Exit codes: 0 all done, 1 stopped by an error, 2 arguments or settings refused, 3 finished, but some videos failed,
130 interrupted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import inspect
import logging
import os
import sys
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import reduce
from typing import Annotated, Any

import tyro
from pydantic import ValidationError

from excl.datasets.video_errors import InternalError
from excl.pipeline.breaker import SystemicError
from excl.pipeline.config import describe
from excl.pipeline.manifest import BusyError
from excl.pipeline.progress import for_terminal
from excl.workflows import check
from excl.workflows import run as recipe
from excl.workflows.steps import STEPS, TOOLS, Step

log = logging.getLogger("excl")

DESCRIPTION = """Text-to-clip localisation from raw videos: I3D features with exact times, and ExCL trained on them.

`init` begins a data set of your own and `check` says whether everything is in place. `probe` looks at videos, `weights` at
I3D's weights, which verify-weights and classify try out, `glove` at word vectors. For a data set: decode
(optional), extract, tokenise, pack, train, evaluate, each a command that leaves one folder and can be interrupted and run
again; or all of them in one recipe with run. Then localize answers queries about any video, reproduce makes the paper's
table of twelve variants, and score tells what anybody's predictions are worth. compare tells whether two sets of features
are the same. import makes a store of features that others made, export writes a store as other trainers read it.
`excl COMMAND --help` tells more, `excl --version` which one this is. With EXCL_DEBUG=1 in
the environment an error shows where it was raised."""

COMMANDS = (
    *TOOLS.values(),
    *STEPS.values(),
    Step("check", check.Config, check.run, show=check.show, failed=check.num_problems),
    Step("run", recipe.Config, recipe.run, show=recipe.show, failed=recipe.num_failed),
)
INTERRUPTED = 130
DEBUG = bool(os.environ.get("EXCL_DEBUG"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code. Arguments that cannot be parsed exit with 2 from within."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if list(arguments) == ["--version"]:
        print(importlib.metadata.version("excl"))
        return 0
    try:
        with _plain_errors():
            command = tyro.cli(_commands(), args=arguments, prog="excl", description=DESCRIPTION)
    except ValueError as error:  # of a nested configuration, which tyro lets pass
        print(f"excl: {error}", file=sys.stderr)
        return 2
    for level, word in ((logging.INFO, ""), (logging.WARNING, "warning: "), (logging.ERROR, "error: ")):
        logging.addLevelName(level, word)
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(for_terminal)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s%(message)s", handlers=[handler])
    try:
        failed = recipe.run_step(_step_of(command), command)
    except KeyboardInterrupt:
        log.error("interrupted; what was recorded is kept, and the same command goes on from there")
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001  (the boundary of the process)
        return _told(error)
    return 3 if failed else 0


def _told(error: Exception) -> int:
    """Say in one message what has ended the command; returns the exit code."""
    if isinstance(error, BusyError | OSError | ValueError | SystemicError | InternalError):
        log.error("%s", error, exc_info=DEBUG)
        return 2 if isinstance(error, ValueError) else 1
    log.error(
        "%s: %s: an error in excl or in a library, or a device that failed; what was recorded is kept, and the same command "
        "goes on from there (with EXCL_DEBUG=1 in the environment it shows where the error was raised)",
        type(error).__name__, error, exc_info=DEBUG,
    )  # fmt: skip
    return 1


def _commands() -> Any:
    """The union of all configurations, each a subcommand under its step's name."""
    choices = [(step.name, step.config) for step in COMMANDS]
    annotated = [
        Annotated[config, tyro.conf.subcommand(name, description=inspect.cleandoc(config.__doc__ or ""), prefix_name=False)]
        for name, config in choices
    ]
    return reduce(lambda left, right: left | right, annotated)


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """Meanwhile the configurations say what is wrong with a value in one line, as recipes do.

    tyro shows the user what a constructor raises, and pydantic's own text is for programmers.
    """
    configs = {config for step in COMMANDS for config in _configurations(step.config)}
    originals = {config: config.__init__ for config in configs}
    for config, original in originals.items():
        config.__init__ = _with_plain_errors(original)
    try:
        yield
    finally:
        for config, original in originals.items():
            config.__init__ = original


def _configurations(kind: Any) -> Iterator[Any]:
    """A configuration and all that are in its fields, also those in unions: the dataclasses in a type, at any depth."""
    if dataclasses.is_dataclass(kind):
        yield kind
        inner: Iterable[Any] = typing.get_type_hints(kind).values()
    else:
        inner = typing.get_args(kind)
    for part in inner:
        yield from _configurations(part)


def _with_plain_errors(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def plain(*arguments: Any, **keywords: Any) -> None:
        try:
            original(*arguments, **keywords)
        except ValidationError as error:
            raise ValueError(describe(error, where="settings")) from None

    return plain


def _step_of(config: object) -> Step:
    return next(step for step in COMMANDS if isinstance(config, step.config))


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
