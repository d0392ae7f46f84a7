"""The board over HTTP: behind the key on every route, closed without a launcher, deaf to names and bodies that are none."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from fledge.core.errors import ConfigError
from fledge.serving.application import create_application
from fledge.serving.board import details, status
from fledge.serving.board.folders import RunFolder
from fledge.serving.board.launching import AskedRun
from fledge.serving.board.routes import board_router
from fledge.serving.keys import ApiKeys
from fledge.serving.pages import pages_router
from fledge.serving.settings import ServerSettings
from tests.serving.board_runs import STAGES, begun, evaluated, finished, made, recorded

KEY = {"Authorization": "Bearer secret"}


class NotedLauncher:
    """Starts nothing, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[AskedRun] = []
        self.stopped: list[str] = []

    def recipes(self) -> list[dict[str, Any]]:
        return [{"name": "own.yaml", "origin": "in the working folder", "about": ""}]

    def form(self, asked: AskedRun) -> dict[str, Any]:
        return {"command": f"fledge run {asked.recipe}"}

    def plan(self, asked: AskedRun) -> dict[str, Any]:
        raise ConfigError("pretrain.steps is -1", "give a number above 0")

    def start(self, asked: AskedRun) -> dict[str, Any]:
        self.asked.append(asked)
        return {"run": asked.name, "command": "fledge run own.yaml"}

    def started(self) -> list[dict[str, Any]]:
        return []

    def stop(self, run: str) -> None:
        self.stopped.append(run)


def client_of(folder: Path, launcher: NotedLauncher | None) -> TestClient:
    application = create_application(
        ServerSettings(),
        routers=[board_router(folder, STAGES, launcher)],
        public_routers=[pages_router(["runs"])],
        keys=ApiKeys(["secret"]),
    )
    return TestClient(application, base_url="http://127.0.0.1:8001")


@pytest.fixture
def launcher() -> NotedLauncher:
    return NotedLauncher()


@pytest.fixture
def client(tmp_path: Path, launcher: NotedLauncher) -> Iterator[TestClient]:
    finished(tmp_path / "runs" / "one")
    begun(tmp_path / "runs" / "two", settings={"learning_rate": 0.5})
    with client_of(tmp_path / "runs", launcher) as opened:
        yield opened


def test_every_route_of_the_board_needs_the_key(client: TestClient, tmp_path: Path, launcher: NotedLauncher) -> None:
    routes = board_router(tmp_path / "runs", STAGES, launcher).routes
    assert len(routes) >= 17
    for route in routes:
        path = route.path.format(name="one", stage="pretrain")  # type: ignore[attr-defined]
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
            for method in route.methods:  # type: ignore[attr-defined]
                answer = client.request(method, path, headers=headers, json={} if method == "POST" else None)
                assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key"), path
        assert client.get(f"{path}?key=secret").status_code == 401
    assert client.get("/runs").status_code == 200 and client.get("/static/runs.js").status_code == 200


def test_what_lies_there_is_told(client: TestClient) -> None:
    listed = client.get("/board/runs", headers=KEY).json()
    assert [(run["name"], run["state"]) for run in listed["runs"]] == [("one", "finished"), ("two", "stopped")] and listed["can_start"]
    run = client.get("/board/runs/one", headers=KEY).json()
    assert [stage["name"] for stage in run["training"]] == ["pretrain"] and run["other"][0]["place"] == "pack/documents"
    curves = client.get("/board/runs/one/stages/pretrain/curves", headers=KEY).json()
    assert curves["series"]["train/loss"][-1][0] == 50 and curves["last_step"] == 50
    again = client.get("/board/runs/one/stages/pretrain/curves", headers=KEY, params={"cursor": curves["cursor"]}).json()
    assert again["series"] == {} and not again["is_new_file"]
    compared = client.get("/board/compare?run=one&run=two", headers=KEY).json()
    assert compared["differing"] == [{"name": "pretrain.training.learning_rate", "values": [0.01, 0.5]}]
    for part in ("status", "evaluations", "lineage", "cards", "config", "stages/pretrain/samples", "stages/pretrain/facts"):
        assert client.get(f"/board/runs/two/{part}", headers=KEY).status_code == 200, part


DEEP = b"[" * 100_000
"""More brackets than a parser follows."""
STAGE_PARTS = ("curves", "facts", "samples")
PARTS = ("", "/status", "/evaluations", "/lineage", "/cards", "/config", *(f"/stages/pretrain/{part}" for part in STAGE_PARTS))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", DEEP),
        ("run.json", {"started_unix_seconds": "x", "ended_unix_seconds": None}),
        ("run.json", {"started_unix_seconds": float("nan")}),
        ("run.json", {"ended_unix_seconds": 10**400}),
        ("run.json", {"problem": {"a": 1}, "outcome": {"x": 1}}),
        ("run.json", {"problem": "\ud800", "stages": ["\ud800"], "config": [["\ud800", "\ud800", "\ud800"]]}),
        ("run.json", {"config": [["a", json.loads("[" * 300 + "]" * 300), "b"]]}),
        ("pretrain/metrics.jsonl", DEEP),
        ("pretrain/metrics.jsonl", b'{"step": 3, "time": 1, "train/loss": 1, "\\ud800": 2}'),
        ("pretrain/samples.jsonl", DEEP),
        ("pretrain/samples.jsonl", b'{"step": 1, "prompt": "\\ud800", "text": "\\ud800"}'),
        ("pretrain/plan.json", DEEP),
        ("pretrain/started.json", DEEP),
        ("evaluate/results.json", DEEP),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_damaged_file_hides_neither_its_run_nor_others(client: TestClient, tmp_path: Path, name: str, content: Any) -> None:
    folder = tmp_path / "runs" / "bad"
    stage = begun(folder, steps=range(1, 3))
    evaluated(folder)
    recorded(folder, "failed")
    if isinstance(content, dict):
        content = json.dumps({**json.loads((folder / name).read_bytes()), **content}).encode()
    before = (stage / "metrics.jsonl").read_bytes() if name.endswith("metrics.jsonl") else b""
    (folder / name).write_bytes(before + content + b"\n")
    listed = client.get("/board/runs", headers=KEY)
    assert [run["name"] for run in listed.json()["runs"]] == ["bad", "one", "two"]
    assert [client.get(f"/board/runs/bad{part}", headers=KEY).status_code for part in PARTS] == [200] * len(PARTS)


def test_a_name_that_is_no_text_hides_no_other(client: TestClient, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / os.fsdecode(b"bad\xff")
    (folder / "pretrain").mkdir(parents=True)
    assert {run["name"] for run in client.get("/board/runs", headers=KEY).json()["runs"]} == {"bad?", "one", "two"}


def test_a_run_that_nobody_foresaw_is_a_row(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(run: RunFolder) -> Any:
        raise ArithmeticError if run.name == "one" else ConfigError("", "")

    monkeypatch.setattr(status, "status_of", read)
    listed = client.get("/board/runs", headers=KEY).json()["runs"]
    assert [(run["name"], run["state"], run["problem"]) for run in listed] == [
        ("one", "failed", f"{status.UNREADABLE}: ArithmeticError."),
        ("two", "failed", f"{status.UNREADABLE}: ConfigError."),
    ]


def test_a_file_that_waits_for_a_writer_holds_up_nothing(tmp_path: Path) -> None:
    """A named pipe in a copied run: whoever opens it waits without end."""
    corpus = made(tmp_path / "fifo" / "corpus" / "documents", "corpus").path
    os.mkfifo(corpus / "stats.json")
    opened: list[Any] = []
    reading = threading.Thread(target=lambda: opened.append(details.cards(RunFolder(tmp_path / "fifo", STAGES))), daemon=True)
    reading.start()
    reading.join(20)
    assert opened == [[]]


@pytest.mark.parametrize(
    "path",
    [
        *("none", "..", "..%2f..%2fetc", "%2e%2e/secret", "one%00", "a" * 300),
        *("one/stages/..%2f..", "one/stages/none/curves", "one/stages/%00/samples"),
    ],
)
def test_names_that_are_none_are_not_found(client: TestClient, path: str) -> None:
    answer = client.get(f"/board/runs/{path}", headers=KEY)
    assert answer.status_code == 404 and "root:" not in answer.text


@pytest.mark.parametrize("query", ["", "run=one", "run=one&run=none", "&".join(["run=one"] * 7), "run=one&run=..%2fsecret"])
def test_a_comparison_of_what_is_not_there_is_refused(client: TestClient, query: str) -> None:
    assert client.get(f"/board/compare?{query}", headers=KEY).status_code in (400, 404)


def test_a_run_is_started_and_stopped_by_its_launcher(client: TestClient, launcher: NotedLauncher) -> None:
    body = {"recipe": "own.yaml", "changes": {"pretrain.steps": "5"}, "name": "new", "smoke": True, "last_stage": "corpus"}
    assert client.post("/board/start", headers=KEY, json=body).json()["run"] == "new"
    assert launcher.asked == [AskedRun("own.yaml", {"pretrain.steps": "5"}, "new", True, "corpus")]
    assert client.post("/board/stop", headers=KEY, json={"run": "new"}).status_code == 200 and launcher.stopped == ["new"]
    refused = client.post("/board/plan", headers=KEY, json={"recipe": "own.yaml"})
    told = refused.json()["error"]
    assert (refused.status_code, told["message"], told["remedy"]) == (400, "pretrain.steps is -1", "give a number above 0")


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        "x",
        {"recipe": 3},
        {"recipe": None},
        {"recipe": "a" * 300},
        {"recipe": "own.yaml", "changes": {"a": 3}},
        {"recipe": "own.yaml", "changes": ["a=b"]},
        {"recipe": "own.yaml", "smoke": "yes"},
        {"recipe": "own.yaml", "command": ["rm"]},
        {"recipe": "own.yaml", "changes": {"a": "x" * 30_000}},
    ],
)
def test_a_body_of_another_form_starts_nothing(client: TestClient, launcher: NotedLauncher, body: Any) -> None:
    assert client.post("/board/start", headers=KEY, json=body).status_code == 400
    assert launcher.asked == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:9999"}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
    ],
)
def test_another_site_starts_nothing(client: TestClient, launcher: NotedLauncher, headers: dict[str, str], status: int) -> None:
    content = b'{"recipe": "own.yaml"}'
    answer = client.post("/board/start", headers={**KEY, "Content-Type": "application/json", **headers}, content=content)
    assert answer.status_code == status and launcher.asked == []
    own = {**KEY, "Content-Type": "application/json", "Origin": "http://127.0.0.1:8001"}
    assert client.post("/board/start", headers=own, content=content).status_code == 200 and len(launcher.asked) == 1


def test_without_a_launcher_nothing_can_be_started(tmp_path: Path) -> None:
    with client_of(tmp_path, None) as closed:
        assert closed.get("/board/runs", headers=KEY).json() == {"folder": str(tmp_path), "can_start": False, "runs": []}
        for path in ("form", "plan", "start", "stop"):
            assert closed.post(f"/board/{path}", headers=KEY, json={"recipe": "quickstart"}).status_code == 404
        assert closed.get("/board/recipes", headers=KEY).status_code == 404
