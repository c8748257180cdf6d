"""The shape of the house: folders, import arrows, one shape for every stage."""

from __future__ import annotations

import ast
import configparser
import dataclasses
import inspect
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from excl.workflows.steps import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("pipeline", "models", "datasets", "workflows")
MAY_IMPORT = {
    "workflows": {"workflows", "pipeline", "models", "datasets"},
    "pipeline": {"pipeline", "models", "datasets"},
    "models": {"models"},
    "datasets": {"datasets"},
}
DASK = ("dask_cluster.py", "dask_workers.py")  # which alone import dask.distributed
STAGES = ["decode", "extract", "tokenise", "pack", "train"]


def modules():
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def test_setup_cfg_names_every_package():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    listed = set(settings["options"]["packages"].split())
    found = {"excl." + ".".join(p.parent.relative_to(ROOT).parts) for p in modules() if p.name == "__init__.py"}
    assert listed == {"excl", *found}


def imported(path):
    """The dotted names that a module imports, wherever it does, and the modules that it names in strings."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module or ''}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and re.fullmatch(r"excl(\.\w+){2,}", str(node.value)):
            yield node.value


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_import_arrows_point_down(path):
    own = path.relative_to(ROOT).parts[0]
    for name in imported(path):
        assert name.split(".")[0] not in FOLDERS, f"{name}: say excl.{name}"
        if name.startswith("excl."):
            assert name.split(".")[1] in MAY_IMPORT[own], f"{path}: {own} imports {name}"
        assert not name.startswith(("dask.distributed", "distributed")) or path.name in DASK


def listed_rooms(text):
    """The rooms of CONTRIBUTING.md in their order, each with the rooms that it names."""
    rooms = {}
    for folder, room, rest in re.findall(r"^- `(\w+)/(\w+)`: (.*?)(?=^- |\n\n)", text, re.MULTILINE | re.DOTALL):
        uses = rest.partition("Uses ")[2]
        rooms[folder, room] = {(folder, used) for used in re.findall(r"`(\w+)`", uses)}
    return rooms


def imported_rooms(root):
    """The rooms of the source tree, each with the rooms of its own folder that its modules import."""
    rooms = {}
    for path in modules():
        folder, *rest = path.relative_to(root).with_suffix("").parts
        if rest[0] == "__init__":
            continue
        names = {tuple(name.split(".")[1:3]) for name in imported(path) if name.startswith(f"excl.{folder}.")}
        rooms.setdefault((folder, rest[0]), set()).update(names - {(folder, rest[0])})
    return rooms


def test_rooms_import_what_contributing_lists():
    listed = listed_rooms((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert listed == imported_rooms(ROOT)


def test_no_room_imports_one_that_stands_below_it():
    rooms = listed_rooms((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    order = list(rooms)
    for index, room in enumerate(order):
        assert rooms[room] <= set(order[:index])


@pytest.mark.parametrize("folder", FOLDERS)
def test_bare_names_are_refused(folder):
    result = subprocess.run(
        [sys.executable, "-c", f"import {folder}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode != 0
    assert f"excl.{folder}" in result.stderr


def test_the_links_for_static_tools_are_there():
    for name in (*FOLDERS, "__init__.py", "py.typed"):
        assert (ROOT / ".typing" / "excl" / name).resolve() == ROOT / name


@pytest.mark.parametrize("step", COMMANDS.values(), ids=lambda step: step.name)
def test_every_step_has_a_typed_documented_configuration(step):
    name, config = step.name, step.config
    assert dataclasses.is_dataclass(config)
    assert config.__dataclass_params__.frozen
    assert config.__doc__
    fields = 0
    for declaring in filter(dataclasses.is_dataclass, config.__mro__):
        body = ast.parse(inspect.getsource(declaring)).body[0].body
        for index, node in enumerate(body):
            if isinstance(node, ast.AnnAssign):
                fields += 1
                following = body[index + 1] if index + 1 < len(body) else None
                documented = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                assert documented, f"{name}: no docstring under {ast.unparse(node)}"
    assert fields == len(dataclasses.fields(config))
    assert next(iter(inspect.signature(step.run).parameters)) == "config"


@pytest.mark.parametrize("name", STAGES)
def test_stages_are_alike(name):
    tree = ast.parse((ROOT / "pipeline" / f"{name}.py").read_text(encoding="utf-8"))
    assert ast.get_docstring(tree).startswith(f"Stage {STAGES.index(name) + 1}, {name}:")
    classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    own = f"{name.title()}Config"
    assert classes[0] == own if classes else COMMANDS[name].config.__name__ == own
    assert functions[0] == "run"
    assert name == import_module(f"excl.pipeline.{name}").STAGE


def test_functions_fit_on_a_screen():
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 50, f"{path}: {node.name}"


def test_no_test_module_imports_another():
    """What several need is in a module of its own, so that each runs by itself, in any order and in any process."""
    imported = {
        (path.name, name)
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^\s*(?:from|import) (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert imported == set()
