"""Commands with their output in Markdown: ```console blocks, run from the text itself and compared with what it shows.

A line `$ command` is run by a shell, in one folder for the whole file. The lines below it are what it prints on standard
output and standard error. A line of `…` stands for any number of lines. Numbers, sizes, times of day and spaces may differ.
"""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import commands

NUMBER = re.compile(r"\d[\d,.:]*")


@dataclass
class Command:
    """One command of a Markdown file: where it stands, and the lines that the text shows below it."""

    line_number: int
    text: str
    shown: list[str] = field(default_factory=list)
    last_line: int = 0


def console_commands(markdown: str) -> list[Command]:
    """Return the commands of every ```console block, in order."""
    commands: list[Command] = []
    inside = False
    for number, line in enumerate(markdown.split("\n"), 1):
        if line.startswith("```"):
            inside = line == "```console"
        elif inside and line.startswith("$ "):
            commands.append(Command(number, line[2:], last_line=number))
        elif inside and commands and commands[-1].text.endswith("\\"):
            commands[-1].text += "\n" + line
            commands[-1].last_line = number
        elif inside:
            commands[-1].shown.append(line)
            commands[-1].last_line = number
    return commands


def run(command: Command, folder: Path, *, path: str) -> tuple[int, list[str]]:
    """Run a command by a shell in `folder`, or `excl` without one; return its exit code and what it printed, by lines."""
    bin_folder = Path(sys.executable).parent
    environment = {
        **os.environ, "PATH": f"{bin_folder}:{path}", "COLUMNS": "100", "EXCL_CACHE": str(folder / "cache"),
        "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    words = shlex.split(command.text, comments=True)
    plain = words[0] == "excl" and not set(command.text) & set("|&;<>()$`*?~")
    arguments = [sys.executable, "-m", "excl.workflows.cli", *words[1:]] if plain else ["sh", "-c", command.text]
    result = (commands.run if plain else subprocess.run)(
        arguments, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    return result.returncode, result.stdout.replace(str(folder), "/home/you").splitlines()


def masked(line: str) -> str:
    """The line without what may differ from run to run: numbers, and how many spaces or rules there are."""
    return re.sub(r"[\s─-]+", " ", NUMBER.sub("0", line)).strip()


def matches(shown: list[str], printed: list[str]) -> bool:
    """True if the printed lines are those that are shown, `…` being any number of lines."""
    pattern = "".join(
        r"(?:.*\n)*?" if masked(line) == "…" else re.escape(masked(line)) + "\n" for line in shown if line.strip()
    )
    text = "".join(masked(line) + "\n" for line in printed if line.strip())
    return re.fullmatch(pattern, text) is not None
