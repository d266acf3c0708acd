"""Where a Chromium is, and how it is started where nothing but this machine can be reached."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome")
MISSING = "no Chromium on this machine: `apt-get install chromium`, or name one in EXPUNGE_TEST_CHROMIUM"
_QUIET = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def path() -> str | None:
    """The browser's program, if there is one."""
    return os.environ.get("EXPUNGE_TEST_CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)


@contextmanager
def browser() -> Iterator[Browser]:
    """A headless browser, where :func:`path` names one."""
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path(), args=list(_QUIET))
        yield found
        found.close()
