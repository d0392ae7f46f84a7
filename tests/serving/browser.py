"""A real Chromium for the tests of pages, which notes everything that must not happen: requests that leave, errors, scripts in texts.

    def test_a_page(browser):                    # the fixture of conftest.py: one browser for a module
        with browser.page(url) as page:          # a fresh profile; at the end everything noted is judged
            page.get_by_role("button", name="Start").click()

A payload that runs calls `alert`, or sets `window.executed`; both are noted too.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest

NARROW, WIDE = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
LOCAL = {"127.0.0.1", "localhost"}


@dataclass
class Noted:
    """What a page did."""

    addresses: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    """Of the console and of scripts."""
    dialogs: list[str] = field(default_factory=list)

    @property
    def foreign(self) -> list[str]:
        """Requests that would have left this machine."""
        schemes = ("http", "https", "ws", "wss")
        parts = [(address, urlsplit(address)) for address in self.addresses]
        return [address for address, split in parts if split.scheme in schemes and split.hostname not in LOCAL]


def nameless_controls(page: Any) -> list[str]:
    """The markup of whatever can be pressed, chosen or written in and has no name for those who do not see it."""
    found: list[str] = page.evaluate("""[...document.querySelectorAll("button, a, input, select, textarea, summary")]
        .filter((one) => !(one.textContent.trim() || one.labels?.length || one.ariaLabel)).map((one) => one.outerHTML)""")
    return found


class Browser:
    """Chromium, and pages in it."""

    def __init__(self, chromium: Any) -> None:
        self._chromium = chromium

    @contextlib.contextmanager
    def page(self, address: str, size: dict[str, int] = WIDE, dark: bool = False, allowed_errors: tuple[str, ...] = ()) -> Iterator[Any]:
        """A page in a profile of its own; fails at the end unless it stayed on this machine without an error or a dialog.

        `allowed_errors`: parts of console lines that the test provokes, such as "401".
        """
        context = self._chromium.new_context(viewport=size, color_scheme="dark" if dark else "light")
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.noted = noted = Noted()
        page.on("request", lambda request: noted.addresses.append(request.url))
        page.on("console", lambda message: noted.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: noted.errors.append(str(error)))
        page.on("dialog", lambda dialog: (noted.dialogs.append(dialog.message), dialog.dismiss()))
        try:
            page.goto(address)
            yield page
            executed = page.evaluate("window.executed ?? null")
        finally:
            context.close()
        unexpected = [line for line in noted.errors if not any(part in line for part in allowed_errors)]
        assert noted.foreign == []
        assert unexpected == []
        assert noted.dialogs == []
        assert executed is None


@contextlib.contextmanager
def open_browser() -> Iterator[Browser]:
    """Skips the test where Chromium or playwright is not installed."""
    playwright = pytest.importorskip("playwright.sync_api")
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("Chromium is not installed")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield Browser(chromium)
        finally:
            chromium.close()
