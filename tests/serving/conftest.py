"""One browser and one server for all tests of a module: starting Chromium costs a second, a fresh profile in it almost nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serving.browser import Browser, open_browser
from tests.serving.running import Running, running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """Without a key, and with the settings of a server but for its port."""
    with running() as server:
        yield server
