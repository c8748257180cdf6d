"""The command's front: what it lists, what it answers at once, and what it says of a command that there is not."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import itertools
import subprocess
import sys

import pytest

from excl.workflows.cli import main
from excl.workflows.steps import COMMANDS, GROUPS, STEPS


def test_help_lists_every_command_in_its_group_on_80_columns(capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["--help"])
    shown = capsys.readouterr().out
    begun = [line for line in shown.splitlines() if line.startswith("  ")]
    assert [line.split()[0] for line in begun if line[2] not in " -"] == list(COMMANDS)
    assert all(f"{group}:" in shown for group in GROUPS)
    assert all(len(f"  {step.name:16}{step.summary}") <= 80 for step in COMMANDS.values())


def test_what_a_recipe_does_are_commands():
    assert set(STEPS) < set(COMMANDS)


def test_version(capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["--version"])
    assert capsys.readouterr().out == importlib.metadata.version("excl") + "\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["extrat", "--out", "x"], "there is no command 'extrat'; did you mean 'extract'?"),
        (["xyz"], "there is no command 'xyz'; `excl --help` lists the commands"),
        ([], "expected a command; `excl --help` lists them"),
        (["--verbose"], "unrecognized arguments: --verbose"),
    ],
)
def test_a_command_that_there_is_not(arguments, message, capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_of_its_own(name, capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        main([name, "--help"])
    assert f"excl {name}" in capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fills_the_lines_of_a_narrow_terminal(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match=r"^0$"):
        main([name, "--help"])
    lines = [line.strip("│").rstrip() for line in capsys.readouterr().out.splitlines() if not line.startswith("usage:")]
    assert max(map(len, lines)) <= 80
    assert not any("None}" in line or "{None" in line for line in lines)
    for line, following in itertools.pairwise(lines):
        indents = [len(text) - len(text.lstrip()) for text in (line, following)]
        if indents[0] == indents[1] > 4 and not following.lstrip().startswith("•"):  # two lines of one text
            assert len(f"{line} {following.split()[0]}") > 76, line


def imported_by(code):
    """The modules that a new Python has imported once it has run the code."""
    command = [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def test_no_command_imports_pytorch_to_show_its_flags():
    code = (
        "import contextlib, io\n"
        "from excl.workflows.cli import main\n"
        "from excl.workflows.steps import COMMANDS\n"
        "for name, command in COMMANDS.items():\n"
        "    command.run\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as shown:\n"
        "        main([name, '--help'])\n"
        "    assert 'usage: excl ' + name in shown.getvalue(), name\n"
        "    assert 'torch' not in sys.modules, name"
    )
    assert {"excl.pipeline.train", "excl.pipeline.sweep.reproduce"} <= imported_by(code)


def test_the_front_imports_no_large_library():
    assert not {"torch", "numpy", "av", "h5py", "tyro", "pydantic"} & imported_by("import excl.workflows.cli")


@pytest.fixture(scope="module")
def completion_script():
    with contextlib.redirect_stdout(io.StringIO()) as printed, pytest.raises(SystemExit, match=r"^0$"):
        main(["--print-completion", "bash"])
    return printed.getvalue()


@pytest.mark.parametrize(
    ("words", "proposals"),
    [
        (["ext"], ["extract"]),
        (["extract", "--short"], ["--short-side"]),
        (["extract", "--timeout"], ["--timeout-s"]),
        (["extract", "--precision", "b"], ["bfloat16"]),
        (["train", "--model.var"], ["--model.variant"]),
        (["train", "--no-b"], ["--no-buckets"]),
        (["train", "--model.variant", "reg-1"], ["reg-1-a", "reg-1-b", "reg-1-c"]),
        (["extract", "--videos", "some"], []),
    ],
)
def test_bash_completes_commands_flags_and_choices(completion_script, words, proposals):
    call = f"COMP_WORDS=(excl {' '.join(words)}); COMP_CWORD={len(words)}; _excl; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    shown = subprocess.run(["bash", "-c", f"{completion_script}\n{call}"], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == proposals
    assert shown.stderr == ""


def test_zsh_loads_bash_s_completion(capsys, completion_script):
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["--print-completion", "zsh"])
    assert capsys.readouterr().out == f"autoload -U +X bashcompinit && bashcompinit\n{completion_script}"


def test_extract_says_what_is_wrong_before_it_imports_pytorch(tmp_path):
    missing = ["--videos", str(tmp_path / "none"), "--out", str(tmp_path / "out"), "--weights", "random:0"]
    tried = [["extract", *arguments] for arguments in (["--help"], ["--vidoes", "x"], missing)]
    program = (
        "import sys\n"
        "from excl.workflows.cli import main\n"
        f"for arguments in {tried}:\n"
        "    try: status = main(arguments)\n"
        "    except SystemExit as stop: status = stop.code\n"
        "    print(status, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    told = [line for line in done.stdout.splitlines() if line.endswith(("True", "False"))]
    assert told == ["0 False", "2 False", "1 False"]
