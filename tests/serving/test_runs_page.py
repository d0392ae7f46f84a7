"""The Runs page in a real browser: live charts, comparison, hostile texts, forms, keys; nothing leaves the machine, nothing fails."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fledge.core import process
from fledge.core.errors import ConfigError
from fledge.core.form import form_fields
from fledge.recipe import find_recipe, load_recipe
from fledge.serving.application import create_application
from fledge.serving.board.launching import AskedRun
from fledge.serving.board.routes import board_router
from fledge.serving.keys import ApiKeys
from fledge.serving.pages import pages_router
from fledge.serving.settings import ServerSettings
from tests.serving.board_runs import SCORE, STAGES, append, begun, evaluated, finished, record, recorded, sampled
from tests.serving.browser import NARROW, WIDE, Browser, nameless_controls
from tests.serving.payloads import PAYLOADS
from tests.serving.running import listening
from tests.waiting import WAIT_SECONDS

PLAN: dict[str, Any] = {
    "parameters": 12_345,
    "vocabulary_size": 512,
    "stages": [
        {
            "stage": "pretrain",
            "length": {"steps": 100, "tokens": 51_200, "batch_rows": 8, "row_tokens": 64},
            "epochs": 1.5,
            "batch": {"rows": 8},
            "fits": True,
            "available_bytes": 8e9,
            "is_measured": True,
            "seconds": 75.0,
            "tokens_per_second": 700.0,
            "peak_bytes": 4e8,
        }
    ],
    "disk": [{"what": "checkpoints", "size_bytes": 1e6, "how": "computed"}, {"what": "text", "size_bytes": None, "how": "not known"}],
    "devices": [{"device": "RTX 4090", "precision": "bf16", "fits": True, "tokens_per_second": 1e5, "seconds": 3.0}],
    "warnings": ["the text is read 1.5 times"],
}


class FormLauncher:
    """A real form; what it starts is a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked, self.stopped = folder, list[AskedRun](), list[str]()
        self.may_answer, self.is_planned = threading.Event(), threading.Event()
        """The first tells the form of a whole run, which is waited for."""
        self.may_answer.set()

    def recipes(self) -> list[dict[str, Any]]:
        return [{"name": "quickstart", "origin": "comes with Fledge", "about": PAYLOADS[0]}]

    def form(self, asked: AskedRun) -> dict[str, Any]:
        if not asked.smoke:
            assert self.may_answer.wait(WAIT_SECONDS)
        recipe, tree = load_recipe(find_recipe(asked.recipe), [f"{name}={value}" for name, value in asked.changes.items()])
        command = " ".join(["fledge run", asked.recipe, *(f"{name}={value}" for name, value in asked.changes.items())])
        fields = [vars(field) for field in form_fields(recipe, tree)]
        return {"fields": fields, "shrunk": {}, "stages": list(STAGES), "name": "fresh", "command": command, "exists": False}

    def plan(self, asked: AskedRun) -> dict[str, Any]:
        if asked.changes.get("pretrain.steps") == "55":
            self.is_planned.wait(20)
        if asked.changes.get("pretrain.steps") == "77":
            raise ConfigError(PAYLOADS[17], PAYLOADS[0])
        return PLAN

    def start(self, asked: AskedRun) -> dict[str, Any]:
        self.asked.append(asked)
        begun(self.folder / str(asked.name))
        return {"run": asked.name, "command": "fledge run quickstart"}

    def started(self) -> list[dict[str, Any]]:
        return [{"run": one.name, "command": "fledge run quickstart", "exit_code": None, "lines": [PAYLOADS[1]]} for one in self.asked]

    def stop(self, run: str) -> None:
        self.stopped.append(run)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    folder.mkdir()
    return folder


@pytest.fixture
def launcher(folder: Path) -> FormLauncher:
    return FormLauncher(folder)


@pytest.fixture
def address(folder: Path, launcher: FormLauncher) -> Iterator[str]:
    application = create_application(
        ServerSettings(),
        routers=[board_router(folder, STAGES, launcher)],
        public_routers=[pages_router(["runs"])],
        keys=ApiKeys(["secret"]),
    )
    with listening(application) as opened:
        yield opened


def opened(address: str, view: str = "") -> str:
    """With the key, which the page takes out of the address."""
    return f"{address}/runs#key=secret{f'&then={view}' if view else ''}"


def go(page: Any, view: str) -> None:
    page.evaluate("view => { location.hash = view; }", view)


def test_28_the_key_is_taken_out_of_the_address_or_asked_for(browser: Browser, address: str) -> None:
    with browser.page(opened(address)) as page:
        page.get_by_text("No run yet").wait_for()
        assert page.url == f"{address}/runs"
        assert page.evaluate("Object.values(sessionStorage).join() + '|' + Object.values(localStorage).join()") == "secret|"
    with browser.page(f"{address}/runs", allowed_errors=("401",)) as page:
        page.get_by_role("textbox", name="Key").fill("wrong")
        page.get_by_role("button", name="Use it").click()
        page.get_by_text("That key was not accepted.").wait_for()
        page.get_by_role("textbox", name="Key").fill("secret")
        page.keyboard.press("Enter")
        page.get_by_text("No run yet").wait_for()


def test_a_live_chart_gains_points_and_the_end_is_told(browser: Browser, address: str, folder: Path) -> None:
    stage = begun(folder / "live", steps=range(1, 11))
    sampled(stage, (10, "The bird", "sings in the morning"))
    recorded(folder / "live", None)
    with process.run_lock(folder / "live"), browser.page(opened(address)) as page:
        page.get_by_role("link", name="live").click()
        page.locator("main .badge.running").wait_for()
        chart = page.get_by_label("Loss: ")
        chart.wait_for()
        points = "document.querySelector('.plot').data[0].x.length"
        assert page.evaluate(points) == 10
        page.get_by_text("sings in the morning").wait_for()
        page.get_by_text("Curriculum: 2 phases, 2 sources").click()
        page.get_by_role("cell", name="75.0 %").wait_for()
        append(stage, record(11), record(12, **{"validation/loss": 5.0}), torn='{"step": 13, "ti')
        page.get_by_text("at step 12").first.wait_for()
        assert page.evaluate(points) == 12
        assert page.evaluate("document.querySelector('.plot').data[1].y.at(-1)") == 5.0
        assert "at step 12" in chart.get_attribute("aria-label")
        assert page.evaluate("document.querySelector('.plot').layout.shapes.length") == 2
        requests = [line for line in page.noted.addresses if "cursor=" in line]
        assert requests, "new points are read from where the last look ended"
        recorded(folder / "live", "failed", problem="no space left", remedy="free some")
    with browser.page(opened(address)) as page:
        page.get_by_text("no space left").wait_for()


def test_the_only_line_of_a_chart_is_not_faint_and_a_step_names_its_stage(browser: Browser, address: str, folder: Path) -> None:
    speeds = {"train/tokens_per_second": 400.0, "train/tokens_per_second_smoothed": None}
    append(begun(folder / "one", steps=()), record(1, **speeds), record(2, **speeds))
    begun(folder / "two", steps=())
    append(folder / "two" / "pretrain", *(record(step, **{"train/tokens_per_second": 400.0}) for step in (1, 2)))
    recorded(folder / "one", "failed", stages=["pretrain", "report"])
    recorded(folder / "two", "failed", stages=["pretrain"])
    opacity = "document.querySelector('.plot[aria-label^=\"Tokens per second\"]').data.map((line) => line.opacity)"
    with browser.page(opened(address)) as page:
        for name, expected in (("one", [1]), ("two", [1, 0.45])):
            go(page, f"#/run/{name}")
            page.get_by_role("heading", name=name).wait_for()
            page.get_by_label("Tokens per second: ").wait_for()
            assert page.evaluate(opacity) == expected


READ_TWICE = """async (run) => {
    const { Curves } = await import("/static/curves.js");
    const curves = new Curves(run, "pretrain");
    await Promise.all([curves.refresh(), curves.refresh()]);
    return curves.points("train/loss").map(([step]) => step);
}"""
SHARES = """async (series) => {
    const { Curves, SOURCE_TOKENS } = await import("/static/curves.js");
    const curves = new Curves("one", "pretrain");
    for (const [name, points] of Object.entries(series)) curves.series.set(SOURCE_TOKENS + name, points);
    return curves.shares();
}"""


def test_two_looks_at_once_read_a_curve_once(browser: Browser, address: str, folder: Path) -> None:
    begun(folder / "one", steps=range(1, 4))
    with browser.page(opened(address)) as page:
        page.get_by_role("link", name="one").wait_for()
        assert page.evaluate(READ_TWICE, "one") == [1, 2, 3]


def test_shares_are_of_points_of_the_same_step(browser: Browser, address: str) -> None:
    with browser.page(opened(address)) as page:
        shares = page.evaluate(SHARES, {"web": [[1, 8], [2, 16], [3, 24]], "books": [[1, 0], [3, 8]]})
    assert shares == [{"name": "web", "points": [[1, 1], [3, 16 / 24]]}, {"name": "books", "points": [[1, 0], [3, 8 / 24]]}]


def test_two_runs_are_compared(browser: Browser, address: str, folder: Path) -> None:
    for name, rate in (("one", 0.1), ("two", 0.2)):
        finished(folder / name, steps=range(1, 21))
        recorded(folder / name, "finished", config=[["pretrain.learning_rate", rate, "own.yaml:3"], ["pretrain.seed", 0, "default"]])
    with browser.page(opened(address)) as page:
        compare = page.get_by_role("button", name="Compare")
        assert compare.is_disabled()
        page.get_by_label("Compare one").check()
        assert compare.is_disabled()
        page.get_by_label("Compare two").press("Space")
        page.get_by_role("button", name="Compare 2").click()
        page.get_by_label("Loss: ").first.wait_for()
        assert page.evaluate("document.querySelector('.plot').data.map((line) => line.x.length)") == [20, 20]
        row = page.get_by_role("row", name="pretrain.learning_rate")
        assert row.get_by_role("cell").all_inner_texts() == ["0.1", "0.2"]
        assert page.get_by_role("row", name="pretrain.seed").count() == 0
        page.go_back()
        page.get_by_role("heading", name="Runs").wait_for()


def test_26_27_sixty_payloads_are_shown_and_none_runs(browser: Browser, address: str, folder: Path) -> None:
    # As far as a name of a folder can hold it: no slash.
    names = [f"{number} {payload}".replace("/", "\u2215") for number, payload in enumerate(PAYLOADS)]
    for name, payload in zip(names, PAYLOADS, strict=True):
        recorded(folder / name, "failed", problem=payload, remedy=payload)
    hostile = folder / "hostile"
    metrics = dict.fromkeys(PAYLOADS, 1.0) | {f"train/source_tokens/{payload}": 5 for payload in PAYLOADS[:3]}
    stage = begun(hostile, steps=())
    append(stage, record(1, **metrics), record(2, **metrics))
    sampled(stage, *((number, payload, payload) for number, payload in enumerate(PAYLOADS)))
    answers = [{"question": payload, "text": payload, "reference": payload, "stopped": True} for payload in PAYLOADS]
    evaluated(hostile, [{**SCORE, "name": payload, "note": payload} for payload in PAYLOADS], answers)
    recorded(
        hostile,
        "failed",
        config=[[payload, payload, payload] for payload in PAYLOADS],
        problem=PAYLOADS[0],
        stages=["pack", "pretrain", *PAYLOADS],
    )
    with browser.page(opened(address)) as page:
        page.get_by_role("link", name="hostile").wait_for()
        assert set(page.locator("tbody th").all_text_contents()) == {"hostile", *names}
        assert set(PAYLOADS) <= set(page.locator("tbody .problem").all_text_contents())
        page.get_by_role("link", name="hostile").click()
        page.locator(".samples li").first.wait_for()
        page.locator("table.config tbody tr").nth(59).wait_for(state="attached")
        page.locator("table.scores tbody tr").nth(59).wait_for()
        page.locator("details").evaluate_all("all => all.forEach((one) => { one.open = true; })")
        assert page.locator(".samples .text").count() == 60 + 6
        for payload in PAYLOADS:
            page.get_by_label("Another figure").select_option(payload)
        page.locator(".plot").last.hover()
        shown = page.locator("main").text_content()
        assert [payload for payload in PAYLOADS if payload not in shown] == []
        assert page.locator("main").locator("img, iframe, script, object, embed, form, style, base, meta").count() == 0
        links = page.locator("main a").evaluate_all("all => all.map((link) => link.getAttribute('href'))")
        assert all(link.startswith("#/") for link in links)
        page.evaluate("names => { location.hash = `/compare/${names.map(encodeURIComponent).join('/')}`; }", ["hostile", names[0]])
        page.get_by_role("heading", name="Compare").wait_for()
        page.get_by_label("Loss: ").wait_for()
        page.locator(".plot").first.hover()


def test_a_run_is_changed_planned_and_started(browser: Browser, address: str, folder: Path, launcher: FormLauncher) -> None:
    launcher.may_answer.clear()
    with browser.page(opened(address), allowed_errors=("400",)) as page:
        page.get_by_role("link", name="New run").click()
        page.get_by_text("window.executed").first.wait_for()
        # A second question before the first answer: the fields are shown with the second.
        page.get_by_label("Shrink everything").check()
        page.locator('[id="field-pretrain.steps"]').wait_for(state="attached")
        launcher.may_answer.set()
        page.get_by_label("Shrink everything").uncheck()
        page.get_by_label("Find a value").fill("pretrain.steps")
        steps = page.locator('[id="field-pretrain.steps"]')
        assert steps.input_value() == "100"
        page.get_by_text("Optimizer steps of the whole run").first.wait_for()
        steps.fill("many")
        page.get_by_role("alert").get_by_text("pretrain.steps: Input").wait_for()
        assert page.get_by_role("button", name="Start").is_disabled()
        assert steps.get_attribute("aria-invalid") == "true"
        steps.fill("77")
        page.get_by_text("fledge run quickstart pretrain.steps=77").wait_for()
        assert steps.get_attribute("aria-invalid") is None
        page.get_by_role("button", name="Show plan").click()
        page.get_by_role("alert").get_by_text(PAYLOADS[17]).wait_for()
        steps.fill("20")
        page.get_by_text("fledge run quickstart pretrain.steps=20").wait_for()
        page.get_by_role("button", name="Show plan").click()
        page.get_by_text("the text is read 1.5 times").wait_for()
        assert page.get_by_text("1 min 15 s").count() == 2
        page.get_by_label("Find a value").fill("pretrain.optimizer")
        page.locator('[id="field-pretrain.optimizer.kind"]').select_option("adamw")
        page.locator('[id="field-pretrain.optimizer.momentum"]').wait_for(state="detached")
        page.get_by_label("Name of the run").fill("mine")
        page.get_by_role("button", name="Start").click()
        page.get_by_role("heading", name="mine").wait_for()
        page.get_by_role("button", name="Stop").click()
        page.get_by_text("Stopping: it saves first").wait_for()
    assert launcher.stopped == ["mine"]
    assert launcher.asked == [AskedRun("quickstart", {"pretrain.steps": "20", "pretrain.optimizer.kind": "adamw"}, "mine")]


def test_what_is_said_of_former_values_is_void(browser: Browser, address: str, launcher: FormLauncher) -> None:
    with browser.page(opened(address), allowed_errors=("400",)) as page:
        page.get_by_role("link", name="New run").click()
        start, plan = page.get_by_role("button", name="Start"), page.get_by_role("button", name="Show plan")
        page.get_by_label("Find a value").fill("pretrain.steps")
        steps = page.locator('[id="field-pretrain.steps"]')
        steps.fill("55")
        page.get_by_text("fledge run quickstart pretrain.steps=55").wait_for()
        with page.expect_response("**/board/plan"):
            plan.click()
            steps.fill("many")
            assert start.is_disabled(), "not before it is checked"
            page.get_by_role("alert").get_by_text("pretrain.steps: Input").wait_for()
            launcher.is_planned.set()
        assert page.get_by_role("heading", name="Plan").count() == 0
        assert start.is_disabled() and plan.is_disabled()
        steps.fill("20")
        page.get_by_text("fledge run quickstart pretrain.steps=20").wait_for()
        plan.click()
        page.get_by_text("Disk at least").wait_for()
        page.get_by_text("without text, not known yet").wait_for()


def test_a_dialog_that_is_cancelled_does_not_come_back(browser: Browser, address: str) -> None:
    for way in ("Cancel", "Escape"):
        with browser.page(f"{address}/runs", allowed_errors=("401",)) as page:
            page.get_by_role("textbox", name="Key").fill("half")
            if way == "Cancel":
                page.get_by_role("button", name="Cancel").click()
            else:
                page.keyboard.press("Escape")
            page.get_by_role("alert").get_by_text("Give an API key").wait_for()
            again = 'async () => (await import("/static/common.js")).load("/board/runs").then(() => "", (error) => error.message)'
            assert "Give an API key" in page.evaluate(again)
            assert page.get_by_role("dialog").count() == 0 and page.evaluate("sessionStorage.length") == 0


def test_nothing_is_wider_than_the_page_and_all_controls_have_names(browser: Browser, address: str, folder: Path) -> None:
    long = "a-run-with-a-very-long-name-" * 6
    for name in ("one", long):
        sampled(finished(folder / name), (10, "", "word" * 200))
        evaluated(folder / name)
    for size in (WIDE, NARROW):
        with browser.page(opened(address), size, dark=size is NARROW) as page:
            page.get_by_role("link", name="one", exact=True).wait_for()
            for view, heading in ((f"#/run/{long}", long), (f"#/compare/one/{long}", "Compare"), ("#/start", "New run"), ("#/", "Runs")):
                go(page, view)
                page.get_by_role("heading", name=heading).wait_for()
                page.wait_for_load_state("networkidle")
                assert page.evaluate("document.documentElement.scrollWidth") <= size["width"], view
                assert nameless_controls(page) == [], view
            page.keyboard.press("Tab")
            assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"


def test_what_is_not_there_is_said(browser: Browser, address: str) -> None:
    with browser.page(opened(address), allowed_errors=("404",)) as page:
        page.get_by_text("No run yet").wait_for()
        go(page, "#/run/%3Cimg%20src=x%20onerror=window.executed=1%3E")
        page.get_by_role("alert").get_by_text("There is no such run.").wait_for()
        go(page, "#/run/%E0%A4%A")
        page.get_by_role("alert").wait_for()
        page.get_by_role("link", name="All runs").click()
        page.get_by_text("No run yet").wait_for()
