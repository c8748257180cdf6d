"""The script that measures a GPU runs on a machine without one, and its list of wheels has what excl needs."""

from __future__ import annotations

import configparser
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ON_THE_MACHINE = {"torch", "torchvision", "numpy", "h5py", "filelock"}  # filelock comes with torch
NOT_USED = {"decord", "requests"}  # another decoder; downloads


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_list_of_wheels_has_every_dependency():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = settings["options"]["install_requires"].split("\n")
    needed = {normal(re.split(r"[ ><=;\[]", line)[0]) for line in lines if line}
    listed = {normal(line) for line in (ROOT / "bench" / "gpu_wheels.txt").read_text(encoding="utf-8").split()}
    assert needed - listed - ON_THE_MACHINE - NOT_USED == set()


def test_a_part_runs_without_a_gpu_and_without_excl_installed(tmp_path):
    command = [sys.executable, str(ROOT / "bench" / "gpu.py"), "--device", "cpu", "--small", "--parts", "parity"]
    shown = subprocess.run([*command, "--out", str(tmp_path / "gpu.json")], capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    part = json.loads((tmp_path / "gpu.json").read_text())["parts"]["parity"]
    assert part["finished"] is True
    compared = [row for row in part["rows"] if "right" in row]
    assert len(compared) == 8  # two precisions in three ways, and the port in two
    assert all(row["right"] and row["error_is"] <= row["allowed"] for row in compared)
