"""What people take home: the description on PyPI, the files that a container is built from, what asks for a report."""

from __future__ import annotations

import configparser
import re
import runpy
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from excl.workflows.steps import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ADDRESS = "https://example.org/excl"
LINK = re.compile(r"(!?)\[[^]]*\]\(([^)#]*)[^)]*\)")


@pytest.fixture(scope="module")
def description():
    return runpy.run_path(str(ROOT / "setup.py"))["description"]


def test_every_link_of_the_description_leads_to_a_file_of_the_repository(description):
    before, after = LINK.findall(README), LINK.findall(description(README, ADDRESS))
    assert len(before) == len(after) > 10
    for (_, target), (picture, link) in zip(before, after, strict=True):
        if ":" in target:
            assert link == target
            continue
        kind = "raw" if picture else "blob"
        assert link == f"{ADDRESS}/{kind}/HEAD/{target}"
        assert (ROOT / target).is_file(), target


def test_without_an_address_the_description_has_no_link_that_leads_nowhere(description):
    text = description(README, "")
    assert all(":" in target for _, target in LINK.findall(text))
    assert "timeline.svg" not in text
    assert "the tutorial shows every step" in text


@pytest.mark.parametrize("path", sorted((ROOT / "docker").iterdir()), ids=lambda path: path.name)
def test_what_a_container_is_built_from_is_there_and_is_all_that_the_package_needs(path):
    text = path.read_text(encoding="utf-8")
    copied = [name for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE) for name in line.split()[:-1]]
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    allowed = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert ignored[0] == "*"
    assert all((ROOT / name).exists() for name in copied)
    assert set(copied) == allowed
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    folders = {package.split(".")[1] for package in settings["options"]["packages"].split() if "." in package}
    files = {"setup.cfg", "setup.py", "pyproject.toml", "__init__.py", settings["metadata"]["license_files"], "README.md"}
    assert set(copied) == folders | files | {"py.typed"}
    assert f"docker build -f docker/{path.name}" in text.splitlines()[0] + text.splitlines()[1]
    torch = re.search(r'"torch(>=[\d.]+)" "torchvision(>=[\d.]+)"', text)
    if torch:
        assert f"torch {torch[1][:2]} {torch[1][2:]}\n" in settings["options"]["install_requires"] + "\n"
        assert f"torchvision {torch[2][:2]} {torch[2][2:]}\n" in settings["options"]["install_requires"] + "\n"
    extras = re.findall(r"\.\[(\w+)\]", text)
    assert set(extras) <= set(settings["options.extras_require"])
    commands = re.findall(r"excl:\w+ (\w+)", text)
    assert set(commands) <= set(COMMANDS)


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == version("excl")
    title = citation["references"][0]["title"]
    assert title in README


def test_the_form_for_an_error_asks_for_what_doctor_says():
    templates = {path.name: yaml.safe_load(path.read_text()) for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")}
    assert set(templates) == {"bug.yml", "question.yml", "config.yml"}
    for name in ("bug.yml", "question.yml"):
        assert {"name", "description", "body"} <= templates[name].keys()
        assert any("excl doctor" in field["attributes"]["label"] for field in templates[name]["body"])
    named = re.findall(r"`excl (\w+)", str(templates))
    assert set(named) <= set(COMMANDS)


def test_what_is_checked_before_a_commit_is_what_make_lint_checks():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    lint = (ROOT / "Makefile").read_text()
    assert [f"{hook['entry']} ." for hook in hooks] == re.findall(r"\$\(BIN\)/(ruff .*)", lint)
