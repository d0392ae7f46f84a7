"""More requests than a server can answer: a short queue, quick refusals, no client alone; threats 19 and 20 of docs/serving.md."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from fledge.core.process import resident_bytes
from fledge.inference.forward import Chunk
from fledge.inference.kernel_forward import KernelForward
from fledge.serving.settings import ServerSettings
from tests.serving.running import NAME, PREFILL_TOKENS, SLOTS, Running, error_of, running
from tests.waiting import until

QUEUED = 8
SETTINGS = ServerSettings(queued_choices=QUEUED, choices_per_request=4)
ANSWER_TOKENS = 10
STEP_SECONDS = 0.04
PEAK_PER_SECOND = SLOTS / (STEP_SECONDS * ANSWER_TOKENS)
"""Answers, if a step took no longer than that."""


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


def test_20_a_long_prompt_does_not_hold_up_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read in pieces (64 tokens a step here), so another stream goes on with every step."""
    whole, chunk_sizes = KernelForward.run, list[int]()

    def run(self: KernelForward, chunks: Sequence[Chunk]) -> list[Tensor]:
        chunk_sizes.extend(len(chunk.ids) for chunk in chunks)
        return whole(self, chunks)

    monkeypatch.setattr(KernelForward, "run", run)
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
        assert max(chunk_sizes) == PREFILL_TOKENS
        tokens = len(steps_at)
        assert steps_at[-1] - steps_at[0] <= tokens + 8  # text of several tokens comes at once where they make one character


def test_19_ten_times_what_it_can() -> None:
    """What is not answered is refused, and told when to come back."""
    with running() as server:
        server.engine.step_seconds = STEP_SECONDS
        found = overload(server, 10 * PEAK_PER_SECOND, 2.0)
        assert set(found["statuses"]) == {"200", "429 with Retry-After"}, found
        assert server.busy_choices() == 0
        assert server.golden()


@pytest.mark.slow
def test_19_ten_times_what_it_can_for_a_minute() -> None:
    """Refusals are quick, and what is answered is as much as ever."""
    with running() as server:
        server.engine.step_seconds = STEP_SECONDS
        peak = throughput(overload(server, 1.5 * PEAK_PER_SECOND, 3.0))
        before = resident_bytes()
        found = overload(server, 10 * peak, 60.0)
        assert set(found["statuses"]) == {"200", "429 with Retry-After"}, found
        assert found["refusal_p99_seconds"] <= 0.05
        assert throughput(found) >= 0.95 * peak, (found, peak)
        assert resident_bytes() - before <= 0.05 * before


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


def test_health_is_told_while_everything_is_busy() -> None:
    with running(SETTINGS) as server:
        server.engine.may_step.clear()
        threads, answers = ask_in_threads(server, 30, "any")
        until(lambda: len(answers) == 30 - SLOTS - QUEUED // 2)
        assert server.busy_choices() > 0
        assert server.client.get("/health/live").status_code == 200
        server.engine.may_step.set()
        for thread in threads:
            thread.join()
