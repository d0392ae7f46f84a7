"""One browser for all tests of a module: starting Chromium costs a second, a fresh profile in it almost nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serving.browser import Browser, open_browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened
