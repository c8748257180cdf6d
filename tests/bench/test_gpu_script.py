"""The script that measures a GPU runs on a machine without one, and its list of wheels has what excl needs."""

from __future__ import annotations

import configparser
import importlib.metadata
import json
import sys
from pathlib import Path

import commands
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from excl.models.i3d.network import has_onednn

ROOT = Path(__file__).resolve().parents[2]
# torch brings filelock, fsspec, jinja2, MarkupSafe and typing_extensions
ON_THE_MACHINE = {"torch", "torchvision", "numpy", "h5py", "filelock", "fsspec", "jinja2", "markupsafe", "typing-extensions"}
NOT_USED = {"decord", "requests", "starlette", "uvicorn"}  # another decoder, downloads, `excl serve`


def with_what_they_require(names: set[str]) -> set[str]:
    """Return the packages, those that they require as installed here, and so on, without those that need no wheel."""
    needed: set[str] = set()
    new = names - ON_THE_MACHINE - NOT_USED
    while new:
        needed |= new
        lines = [line for name in new for line in importlib.metadata.requires(name) or []]
        requirements = [requirement for requirement in map(Requirement, lines) if applies(requirement)]
        new = {str(canonicalize_name(requirement.name)) for requirement in requirements} - needed - ON_THE_MACHINE - NOT_USED
    return needed


def applies(requirement: Requirement) -> bool:
    environment = {"extra": "", "platform_machine": "x86_64", "python_version": "3.12", "python_full_version": "3.12.1"}
    return requirement.marker is None or requirement.marker.evaluate(environment)


def test_the_list_of_wheels_has_every_dependency():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = settings["options"]["install_requires"].strip().split("\n")
    listed = {canonicalize_name(line) for line in (ROOT / "bench" / "gpu_wheels.txt").read_text(encoding="utf-8").split()}
    required = with_what_they_require({canonicalize_name(Requirement(line).name) for line in lines})
    assert listed >= required | {"torchcodec"}


def test_a_part_runs_without_a_gpu_and_without_excl_installed(tmp_path):
    script, out = str(ROOT / "bench" / "gpu.py"), tmp_path / "gpu.json"
    command = [sys.executable, "-c", f"import runpy; runpy.run_path({script!r}, run_name='__main__')", "--device", "cpu"]
    shown = commands.run(
        [*command, "--small", "--parts", "parity", "--out", str(out)], capture_output=True, text=True, cwd=tmp_path
    )
    assert shown.returncode == 0, shown.stdout + shown.stderr
    part = json.loads(out.read_text())["parts"]["parity"]
    assert part["finished"] is True
    compared = [row for row in part["rows"] if "right" in row]
    precisions = 1 + has_onednn(torch.bfloat16)
    assert len(compared) == 3 * precisions + 2  # each in three ways, and the port in two
    assert all(row["right"] and row["error_is"] <= row["allowed"] for row in compared)
