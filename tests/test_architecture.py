"""The shape of the house: folders, import arrows, one shape for every stage."""

from __future__ import annotations

import ast
import configparser
import dataclasses
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from excl.workflows.steps import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("pipeline", "models", "datasets", "workflows")
MAY_IMPORT = {
    "workflows": {"workflows", "pipeline", "models", "datasets"},
    "pipeline": {"pipeline", "models", "datasets"},
    "models": {"models"},
    "datasets": {"datasets"},
}
DASK = ("cluster.py", "workers.py")  # which alone import dask.distributed
STAGES = ["decode", "extract", "tokenise", "pack", "train"]


def modules():
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def test_setup_cfg_names_every_package():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    listed = set(settings["options"]["packages"].split())
    found = {"excl." + ".".join(p.parent.relative_to(ROOT).parts) for p in modules() if p.name == "__init__.py"}
    assert listed == found


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_import_arrows_point_down(path):
    own = path.relative_to(ROOT).parts[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            assert name.split(".")[0] not in FOLDERS, f"{name}: say excl.{name}"
            if name.startswith("excl."):
                assert name.split(".")[1] in MAY_IMPORT[own], f"{path}: {own} imports {name}"
            assert not name.startswith(("dask.distributed", "distributed")) or path.name in DASK


@pytest.mark.parametrize("folder", FOLDERS)
def test_bare_names_are_refused(folder):
    result = subprocess.run(
        [sys.executable, "-c", f"import {folder}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode != 0
    assert f"excl.{folder}" in result.stderr


def test_the_links_for_static_tools_are_there():
    for folder in FOLDERS:
        assert (ROOT / ".typing" / "excl" / folder).resolve() == ROOT / folder


@pytest.mark.parametrize("step", COMMANDS.values(), ids=lambda step: step.name)
def test_every_step_has_a_typed_documented_configuration(step):
    name, config = step.name, step.config
    assert dataclasses.is_dataclass(config)
    assert config.__dataclass_params__.frozen
    assert config.__doc__
    body = ast.parse(inspect.getsource(config)).body[0].body
    fields = [i for i, node in enumerate(body) if isinstance(node, ast.AnnAssign)]
    assert len(fields) == len(dataclasses.fields(config))
    for index in fields:
        following = body[index + 1] if index + 1 < len(body) else None
        documented = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
        assert documented, f"{name}: no docstring under {ast.unparse(body[index])}"
    assert next(iter(inspect.signature(step.run).parameters)) == "config"


@pytest.mark.parametrize("name", STAGES)
def test_stages_are_alike(name):
    source = (ROOT / "pipeline" / f"{name}.py").read_text(encoding="utf-8")
    tree = ast.parse(source)
    assert ast.get_docstring(tree).startswith(f"Stage {STAGES.index(name) + 1}, {name}:")
    classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert classes[0] == "Config"
    assert functions[0] == "run"
    assert 'STAGE, CODE_VERSION = "' + name in source


def test_functions_fit_on_a_screen():
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 50, f"{path}: {node.name}"


def test_no_test_module_imports_another():
    """What several need is in a module of its own, so that each runs by itself, in any order and in any process."""
    imported = {
        (path.name, name)
        for path in (ROOT / "tests").glob("test_*.py")
        for name in re.findall(r"^\s*(?:from|import) (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert imported == set()
