"""After any mixture of requests the counters add up exactly and the gauges are 0 (V10); texts do not depend on company (V1, V12)."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from fledge.serving.settings import ServerSettings
from tests.serving.running import NAME, Running, running
from tests.waiting import until

WORKERS = 12


def ask(server: Running, seed: int) -> tuple[str, int, str]:
    """One request that the seed decides: (its kind, status, text)."""
    chosen = random.Random(seed)
    kind = chosen.choice(["whole", "whole", "stream", "chat", "left", "left", "wrong", "unknown"])
    fields: dict[str, Any] = {
        "prompt": [5 + chosen.randrange(200) for _ in range(chosen.randint(1, 60))],
        "max_tokens": chosen.randint(1, 30),
        "temperature": chosen.choice([0, 1.0]),
        "seed": seed,
        "n": chosen.choice([1, 1, 2]),
    }
    if kind in ("stream", "left"):
        body = {"model": NAME, **fields, "stream": True, "ignore_eos": kind == "left"}
        with server.client.stream("POST", "/v1/completions", json=body) as answer:
            if kind == "left":
                next(answer.iter_lines())
                return kind, answer.status_code, ""
            return kind, answer.status_code, answer.read().decode()
    if kind == "chat":
        messages = [{"role": "user", "content": "row " * chosen.randint(1, 10)}]
        answer = server.chat(messages=messages, **{name: fields[name] for name in ("max_tokens", "temperature", "seed", "n")})
        return kind, answer.status_code, str([choice["message"] for choice in answer.json()["choices"]])
    answer = server.complete(**{**fields, **({"temperature": -1} if kind == "wrong" else {"model": "no"} if kind == "unknown" else {})})
    return kind, answer.status_code, str(answer.json().get("choices"))


@pytest.mark.parametrize("count", [200, pytest.param(1_000, marks=pytest.mark.slow)])
def test_counters_add_up_and_texts_do_not_depend_on_company(count: int) -> None:
    with running(ServerSettings(queued_choices=200)) as server:
        with ThreadPoolExecutor(WORKERS) as pool:
            together = list(pool.map(lambda seed: ask(server, seed), range(count)))
        until(lambda: server.busy_choices() == 0 and server.state.open_requests == 0)
        found = server.counters()

        def total(name: str) -> float:
            return sum(value for key, value in found.items() if key.partition("{")[0] == name)

        statuses = [status for _, status, _ in together]
        kinds = [kind for kind, _, _ in together]
        assert set(statuses) == {200, 400, 404}
        label = 'endpoint="/v1/completions",status'
        assert found[f'fledge_requests_total{{{label}="400"}}'] == kinds.count("wrong") == statuses.count(400)
        assert found[f'fledge_requests_total{{{label}="404"}}'] == kinds.count("unknown") == statuses.count(404)
        assert total("fledge_requests_total") == total("fledge_request_seconds_count") == count
        assert total("fledge_choices_total") == total("fledge_choices_finished_total") > 0
        for gauge in ("fledge_choices_running", "fledge_choices_waiting", "fledge_open_requests", "fledge_internal_errors_total"):
            assert total(gauge) == 0, gauge
        for seed in range(0, count, 4):
            kind, status, text = together[seed]
            if kind in ("whole", "chat"):
                assert ask(server, seed) == (kind, status, text), seed
