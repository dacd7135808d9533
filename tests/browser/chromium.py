"""Headless Chromium for the tests of pages. Where it is missing they are skipped, in CI they fail."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, CDPSession, Page, sync_playwright

PATH = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
FLAGS += ["--disable-sync", "--disable-dev-shm-usage"]
needs_chromium = pytest.mark.skipif(
    PATH is None and not os.environ.get("CI"), reason="Chromium is not installed: apt-get install chromium"
)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser. Open one per module: while it runs, this thread has an event loop."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=PATH, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, url: str, **settings: Any) -> Iterator[Page]:
    """A page in a context of its own; what it asks of another server, and every error, fails the test."""
    context = browser.new_context(
        **{"locale": "ko-KR", "viewport": {"width": 1200, "height": 800}} | settings
    )
    page = context.new_page()
    page.set_default_timeout(60_000)  # a loaded machine
    foreign: list[str] = []
    errors: list[str] = []
    page.on(
        "request",
        lambda request: None if request.url.startswith((url, "data:")) else foreign.append(request.url),
    )
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(url)
    yield page
    context.close()
    assert foreign == [] and errors == []


def violations(page: Page) -> list[str]:
    """What axe-core finds wrong for people who cannot see, hear or point: rule, and where."""
    found = Axe().run(page).response["violations"]
    return [f"{rule['id']}: {[node['target'] for node in rule['nodes']]}" for rule in found]


class InputMethod:
    """An input method as Korean keyboards have it: a syllable is shown while it grows, then committed."""

    def __init__(self, page: Page) -> None:
        self._session: CDPSession = page.context.new_cdp_session(page)

    def compose(self, text: str) -> None:
        """Show an unfinished text."""
        end = len(text)
        self._session.send(
            "Input.imeSetComposition", {"text": text, "selectionStart": end, "selectionEnd": end}
        )

    def commit(self, text: str) -> None:
        """Finish the text."""
        self._session.send("Input.insertText", {"text": text})

    def press_enter(self, key_code: int = 13) -> None:
        """Press Enter; 229 is what browsers report while the input method handles the key."""
        key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": key_code}
        self._session.send("Input.dispatchKeyEvent", {"type": "rawKeyDown", **key})
        self._session.send("Input.dispatchKeyEvent", {"type": "keyUp", **key})
