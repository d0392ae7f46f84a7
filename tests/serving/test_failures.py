"""What breaks inside: one request fails alone, and an engine that has ended or stands still is seen at once.

Threats 22 to 24 of docs/serving.md.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from fledge.core.errors import MachineError
from fledge.serving.choice import Choice
from fledge.serving.settings import ServerSettings
from tests.serving.running import Running, error_of, running
from tests.waiting import until

POISON = 77


class PoisonedForward:
    """Fails in every pass that reads a certain token."""

    def __init__(self, forward: Any, error: Exception) -> None:
        self._forward, self._error = forward, error

    def run(self, chunks: Sequence[Any]) -> Any:
        if any(POISON in chunk.ids for chunk in chunks):
            raise self._error
        return self._forward.run(chunks)

    def release(self, slot: int) -> None:
        self._forward.release(slot)


@pytest.fixture
def server() -> Iterator[Running]:
    with running(ServerSettings(stall_seconds=0.3)) as server:
        yield server


def poison(server: Running, error: Exception) -> None:
    scheduler = server.engine._scheduler
    scheduler.forward = PoisonedForward(scheduler.forward, error)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ValueError("secret detail"), 500, "internal_error"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), 503, "out_of_memory"),
        (MemoryError(), 503, "out_of_memory"),
    ],
)
def test_22_23_a_request_fails_alone(server: Running, error: Exception, status: int, code: str, capsys: pytest.CaptureFixture[str]) -> None:
    golden = server.golden()
    poison(server, error)
    server.engine.step_seconds = 0.01
    others: list[str] = []
    threads = [threading.Thread(target=lambda: others.append(server.golden())) for _ in range(3)]
    for thread in threads:
        thread.start()
    failed = server.complete(prompt=[POISON], max_tokens=5)
    for thread in threads:
        thread.join()
    assert error_of(failed) == (status, None, code) and "secret" not in failed.text
    assert others == [golden] * 3 == [server.golden()] * 3
    assert (failed.headers["X-Request-Id"] in failed.text) is (status == 500)
    assert failed.headers["X-Request-Id"] in capsys.readouterr().err
    assert server.counters()["fledge_internal_errors_total"] == 1
    streamed = server.complete(prompt=[POISON], max_tokens=5, stream=True).text.split("\n\n")
    assert json.loads(streamed[0].removeprefix("data: "))["error"]["code"] == code and streamed[1:] == ["data: [DONE]", ""]
    assert server.busy_choices() == 0


@pytest.mark.parametrize("stream", [False, True])
def test_22_a_bug_of_ours_ends_one_request(server: Running, stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = server.golden()
    with monkeypatch.context() as patched:
        patched.setattr(Choice, "take", lambda *_: 1 / 0)
        answer = server.complete(stream=stream)
    text = answer.text.split("\n\n")[0].removeprefix("data: ")
    assert json.loads(text)["error"]["code"] == "internal_error" and "division" not in text
    assert answer.status_code == (200 if stream else 500)
    assert server.golden() == golden and server.busy_choices() == 0
    assert server.counters()["fledge_internal_errors_total"] == 1


def test_24_an_engine_that_stands_still_is_not_ready_but_lives(server: Running) -> None:
    assert server.client.get("/health/ready").json() == {"status": "ok"}
    server.engine.may_step.clear()
    waiting = threading.Thread(target=server.golden)
    waiting.start()
    try:
        until(lambda: server.client.get("/health/ready").status_code == 503)
        assert "at one step" in server.client.get("/health/ready").json()["reason"]
        assert server.client.get("/health/live").status_code == 200
    finally:
        server.engine.may_step.set()
        waiting.join()
    until(lambda: server.client.get("/health/ready").status_code == 200)


def test_24_an_engine_that_has_ended_ends_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits is told, whoever comes is refused at once, and the process ends with an error."""
    with running(ServerSettings(stall_seconds=1.0)) as server:

        def fall_over() -> Any:
            raise SystemError("gone")

        server.golden()
        server.engine.may_step.clear()
        answers: list[Any] = []
        waiting = threading.Thread(target=lambda: answers.append(server.complete(stream=True).text))
        waiting.start()
        until(lambda: server.thread.load.running + server.thread.load.waiting > 0)
        monkeypatch.setattr(server.engine._scheduler, "step", fall_over)
        server.engine.may_step.set()
        waiting.join()
        assert '"code":"engine_failed"' in answers[0] and answers[0].endswith("data: [DONE]\n\n")
        for path in ("/health/live", "/health/ready"):
            assert server.client.get(path).status_code == 503
        assert error_of(server.complete()) == (503, None, "engine_failed")
    [ended] = server.ended
    assert isinstance(ended, MachineError) and "the engine of tiny has ended" in str(ended) and ended.exit_code == 5


def test_24_an_engine_that_is_stuck_ends_the_server() -> None:
    with running(ServerSettings(stall_seconds=0.2, stuck_seconds=0.5)) as server:
        server.engine.may_step.clear()
        answer = server.complete()
        server.engine.may_step.set()
        assert error_of(answer) == (503, None, "engine_failed") and answer.headers["Retry-After"] == "30"
        until(lambda: server.state.failure is not None)
