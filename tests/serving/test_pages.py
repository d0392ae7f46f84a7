"""The shell of the pages: files by exact names only, under a policy that allows nothing from elsewhere; colours that can be read."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from fledge.serving import pages
from fledge.serving.application import create_application
from fledge.serving.keys import ApiKeys
from fledge.serving.settings import ServerSettings
from tests.contrast import contrast
from tests.serving.browser import NARROW, Browser
from tests.serving.running import listening

TEXTS = ("ink", "muted", "accent", "danger", "warning", "info")
LEAST_CONTRAST = {**dict.fromkeys(TEXTS, 4.5), "control": 3.0, **{f"series-{number}": 3.0 for number in range(6)}}
TINTED = (("accent", "accent-soft"), ("danger", "danger-soft"), ("warning", "warning-soft"), ("info", "info-soft"), ("on-accent", "accent"))


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    application = create_application(ServerSettings(), public_routers=[pages.pages_router(["runs"])], keys=ApiKeys())
    with TestClient(application, base_url="http://127.0.0.1") as opened:
        yield opened


@pytest.mark.parametrize("path", ["/", "/runs", "/static/common.js", "/static/style.css", "/static/icon.svg", "/static/plotly.min.js"])
def test_what_is_listed_is_served_under_the_policy(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200 and answer.content
    policy = answer.headers["content-security-policy"]
    assert "script-src 'self';" in policy and "object-src 'none'" in policy and "frame-ancestors 'none'" in policy


@pytest.mark.parametrize(
    "path",
    [
        "/chat",
        "/static/runs.html",
        "/static/nothing.js",
        "/static/../pages.py",
        "/static/..%2fpages.py",
        "/static/%2e%2e/pages.py",
        "/static/%00",
        "/static/style.css%00.js",
        "/static//etc/passwd",
        "/static/STYLE.CSS",
    ],
)
def test_nothing_else_is(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_a_page_names_its_siblings(client: TestClient) -> None:
    assert client.get("/static/site.json").json()["pages"] == ["runs"]


def test_no_file_of_ours_names_another_machine_or_makes_markup_of_text() -> None:
    for path in pages.WEB.iterdir():
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|//cdn|@import", text), path
        if path.suffix == ".js":
            assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|DOMParser", text), path


def test_text_and_controls_can_be_read_in_light_and_dark() -> None:
    sheet = (pages.WEB / "style.css").read_text(encoding="utf-8")
    themes = [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block)) for block in re.findall(r":root \{(.*?)\n\s*\}", sheet, re.DOTALL)]
    assert len(themes) == 2
    for colours in themes:
        for name, least in LEAST_CONTRAST.items():
            for ground in ("paper", "card"):
                assert contrast(colours[name], colours[ground]) >= least, (name, ground, colours[name])
        for name, ground in TINTED:
            assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
        assert contrast(colours["muted"], colours["sunken"]) >= 4.5


def test_a_page_opens_without_a_word_to_anyone_else(browser: Browser, client: TestClient) -> None:
    # No board answers here, which the page says.
    with listening(client.app) as address, browser.page(f"{address}/", NARROW, allowed_errors=("404",)) as page:
        page.get_by_role("link", name="Runs", exact=True).wait_for()
        page.get_by_role("alert").wait_for()
        assert page.evaluate("typeof Plotly") == "object"
        assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]
