"""Headless Chromium for the tests of pages: the system's own, driven by playwright. Without it tests are skipped.

Chromium's headless shell comes first, which takes two thirds of the whole browser's processor time.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """Yield a browser of playwright's."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"there is no browser here: none of {', '.join(NAMES)}")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def wait_until(page: Any, expression: str, *, seconds: float = 120) -> None:
    """Wait until an expression is true. (playwright's own waiting needs `eval`, which the policy of pages forbids.)"""
    for _ in range(round(seconds * 20)):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    pytest.fail(f"never true: {expression}")


@contextlib.contextmanager
def opened(browser: Any, path: Path, **settings: Any) -> Iterator[Any]:
    """Yield the page of a file; AssertionError at the end if the browser reported an error or asked for anything online."""
    context = browser.new_context(**settings)
    page = context.new_page()
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith(("file:", "data:")) else errors.append(request.url))
    page.goto(path.as_uri())
    yield page
    context.close()
    assert errors == []
