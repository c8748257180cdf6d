"""Hooks of pytest. Where several processes run the tests, the one that shows their results imports nothing else."""

from __future__ import annotations

import gc
import os

import pytest

# Both count from the import of torch on. Several test processes share the cores: threads that wait must not spin. On some
# processors the last bit of a feature depends on the number of threads, which is the same here in all processes.
os.environ["OMP_WAIT_POLICY"] = "passive"
os.environ["OMP_NUM_THREADS"] = "2"


def pytest_configure(config: pytest.Config) -> None:
    """Load what the tests share, in a process that runs tests."""
    if config.getoption("dist", "no") == "no":
        config.pluginmanager.import_plugin("shared_fixtures")


def pytest_collection_finish() -> None:
    """Let the garbage collector leave alone what is there when the tests begin: most of it stays to their end."""
    gc.collect()
    gc.freeze()


CONFORMANCE = pytest.StashKey[dict[str, dict[str, str]]]()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where several processes run the tests, each sends its part of the conformance table."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["conformance"] = session.config.stash.get(CONFORMANCE, {})


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node) -> None:
    """The process that shows the results takes the parts together."""
    table = node.config.stash.setdefault(CONFORMANCE, {})
    for kind, found in getattr(node, "workeroutput", {}).get("conformance", {}).items():
        table.setdefault(kind, {}).update(found)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the conformance table."""
    table = config.stash.get(CONFORMANCE, {})
    if table:
        columns = sorted({name for found in table.values() for name in found})
        terminalreporter.section("frames by kind of video and decoder")
        terminalreporter.write_line(f"{'':40}" + "".join(f"{name:18}" for name in columns))
        for kind, found in table.items():
            terminalreporter.write_line(f"{kind:40}" + "".join(f"{found.get(name, '-'):18}" for name in columns))
