"""`kogpt demo` in a real browser, without any network but this machine's."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from chromium import InputMethod, chromium, needs_chromium, opened, violations
from playwright.sync_api import Browser, Page, expect

from kogpt.examples import EXAMPLES

pytestmark = needs_chromium
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def demo() -> Iterator[str]:
    """The address of `kogpt demo`, a process of its own: Gradio keeps threads."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", "kogpt", "demo", "--port", str(port)], cwd=ROOT)
    url = f"http://127.0.0.1:{port}/"
    try:
        for _ in range(600):
            try:
                httpx.get(url)
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield url
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def page(browser: Browser, demo: str) -> Iterator[Page]:
    with opened(browser, demo) as shown:
        expect(shown.get_by_role("button", name="이어 쓰기")).to_be_visible(timeout=60_000)
        yield shown


def test_it_writes_and_an_input_method_is_left_alone(page: Page) -> None:
    page.locator("#prompt textarea").click()
    keyboard = InputMethod(page)
    keyboard.compose("한")
    keyboard.press_enter(229)
    keyboard.commit("한")
    text = page.locator("#text textarea")
    assert text.input_value() == ""
    page.locator("#length input[type=number]").fill("12")
    page.get_by_role("button", name="이어 쓰기").click()
    expect(text).not_to_have_value("", timeout=60_000)


def test_the_seven_examples_fill_in_the_form(page: Page) -> None:
    page.get_by_text(EXAMPLES[5].name_ko).click()
    expect(page.locator("#prompt textarea")).to_have_value(EXAMPLES[5].prompt, timeout=60_000)
    expect(page.locator("#length input[type=number]")).to_have_value("10", timeout=60_000)


def test_it_speaks_english(browser: Browser, demo: str) -> None:
    with opened(browser, demo, locale="en-US") as page:
        expect(page.get_by_role("button", name="Continue")).to_be_visible(timeout=60_000)


@pytest.mark.parametrize("path", ["file=/etc/passwd", "gradio_api/file=/etc/passwd", "static//etc/passwd"])
def test_no_file_can_be_read(demo: str, path: str) -> None:
    assert httpx.get(demo + path).status_code in (403, 404)


# Rules of axe-core that pages of Gradio 6 break by themselves: docs/server.md names them.
GRADIOS = {"aria-prohibited-attr", "scrollable-region-focusable"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nobody_is_kept_out_by_what_is_ours(browser: Browser, demo: str, scheme: str) -> None:
    with opened(browser, demo, color_scheme=scheme) as page:
        expect(page.get_by_role("button", name="이어 쓰기")).to_be_visible(timeout=60_000)
        page.locator("#prompt textarea").fill("옛날 옛적에")
        assert {rule.partition(":")[0] for rule in violations(page)} <= GRADIOS
