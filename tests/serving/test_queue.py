"""More requests than a server can answer: a short queue, quick refusals, no client alone; threats 19 and 20 of docs/serving.md."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fledge.core.process import resident_bytes
from fledge.serving.settings import ServerSettings
from tests.serving.running import NAME, SLOTS, Running, error_of, running, until

QUEUED = 8
SETTINGS = ServerSettings(queued_choices=QUEUED, choices_per_request=4)
ANSWER_TOKENS = 10
STEP_SECONDS = 0.04


def ask_in_threads(server: Running, count: int, key: str) -> tuple[list[threading.Thread], list[Any]]:
    answers: list[Any] = []

    def ask() -> None:
        headers = {"Authorization": f"Bearer {key}"}
        body = {"model": NAME, "prompt": "row 3", "max_tokens": 5, "temperature": 0, "ignore_eos": True}
        answers.append(server.client.post("/v1/completions", json=body, headers=headers))

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads, answers


def test_19_a_full_queue_refuses_and_no_key_gets_more_than_half() -> None:
    with running(SETTINGS, keys=("a", "b", "c")) as server:
        server.engine.may_step.clear()
        first, of_a = ask_in_threads(server, 20, "a")
        until(lambda: len(of_a) == 20 - SLOTS - QUEUED // 2)
        assert {error_of(answer) for answer in of_a} == {(429, None, "queue_full")}
        assert {answer.headers["Retry-After"] for answer in of_a} == {"1"}
        second, of_b = ask_in_threads(server, 20, "b")
        until(lambda: len(of_b) == 20 - QUEUED // 2)
        third, of_c = ask_in_threads(server, 3, "c")
        until(lambda: len(of_c) == 3)
        assert {answer.status_code for answer in [*of_a, *of_b, *of_c]} == {429}
        assert server.client.get("/health/ready").status_code == 200
        server.engine.may_step.set()
        for thread in (*first, *second, *third):
            thread.join()
        assert Counter(answer.status_code for answer in of_a) == {429: 20 - SLOTS - QUEUED // 2, 200: SLOTS + QUEUED // 2}
        assert Counter(answer.status_code for answer in of_b) == {429: 20 - QUEUED // 2, 200: QUEUED // 2}
        refusals = server.counters()['fledge_refusals_total{reason="queue_full"}']
        assert refusals == 20 - SLOTS - QUEUED // 2 + 20 - QUEUED // 2 + 3
        assert server.busy_choices() == 0


def test_20_a_long_prompt_does_not_hold_up_a_stream() -> None:
    """It is read in pieces (64 tokens a step here), so another stream goes on with every step."""
    with running() as server:
        server.engine.step_seconds = 0.005
        steps_at: list[int] = []
        reading = {"model": NAME, "prompt": "row 3", "max_tokens": 60, "ignore_eos": True, "temperature": 0, "stream": True}
        with server.client.stream("POST", "/v1/completions", json=reading) as stream:
            events = stream.iter_lines()
            for _ in range(4):
                next(events)
            long = threading.Thread(target=lambda: server.complete(prompt=[5] * 250, max_tokens=2))
            long.start()
            for line in events:
                if line.startswith("data: {"):
                    steps_at.append(server.engine.steps)
            long.join()
        tokens = len(steps_at)
        assert steps_at[-1] - steps_at[0] <= tokens + 8  # text of several tokens comes at once where they make one character


@pytest.mark.parametrize(
    ("seconds", "least_share", "most_seconds"), [(10.0, 0.7, 2.0), pytest.param(60.0, 0.95, 0.05, marks=pytest.mark.slow)]
)
def test_19_ten_times_what_it_can(seconds: float, least_share: float, most_seconds: float) -> None:
    """Refusals are quick, and what is answered is as much as ever. The bars of the short run leave room for a busy machine."""
    with running() as server:
        server.engine.step_seconds = STEP_SECONDS
        peak = throughput(overload(server, SLOTS / (STEP_SECONDS * ANSWER_TOKENS) * 1.5, 3.0))
        before = resident_bytes()
        found = overload(server, 10 * peak, seconds)
        assert set(found["statuses"]) == {"200", "429 with Retry-After"}, found
        assert found["refusal_p99_seconds"] <= most_seconds
        assert throughput(found) >= least_share * peak, (found, peak)
        assert resident_bytes() - before <= 0.05 * before
        assert server.busy_choices() == 0
        assert server.golden()


def overload(server: Running, per_second: float, seconds: float) -> dict[str, Any]:
    """By another process, on another core."""
    program = str(Path(__file__).parent / "overload.py")
    arguments = [server.url, str(per_second), str(seconds), str(ANSWER_TOKENS)]
    found = subprocess.run([sys.executable, program, *arguments], capture_output=True, text=True, check=True, timeout=seconds + 150)
    until(lambda: server.busy_choices() == 0)
    return json.loads(found.stdout)  # type: ignore[no-any-return]


def throughput(found: dict[str, Any]) -> float:
    """Answers a second."""
    return float(found["statuses"].get("200", 0) / found["seconds"])


def test_health_is_quick_while_everything_is_busy() -> None:
    with running(SETTINGS) as server:
        server.engine.step_seconds = STEP_SECONDS
        threads, _ = ask_in_threads(server, 30, "any")
        seconds = []
        for _ in range(20):
            began = time.monotonic()
            assert server.client.get("/health/live").status_code == 200
            seconds.append(time.monotonic() - began)
        for thread in threads:
            thread.join()
        assert sorted(seconds)[10] < 0.5
