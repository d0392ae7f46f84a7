"""A client that leaves, or does not read, costs nothing from the next step on; threat 18 of docs/serving.md."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from fledge.inference.requests import Drawn, Request
from fledge.inference.settings import GenerationSettings
from fledge.serving.answer import Answer, Job
from fledge.serving.keys import ApiKeys
from fledge.serving.settings import ServerSettings
from fledge.serving.state import ServerState
from tests.serving.running import NAME, SLOTS, Running, read_all, running
from tests.waiting import until

LONG: dict[str, Any] = {"max_tokens": 200, "ignore_eos": True, "temperature": 1.0}
SMALL_BUFFER_BYTES = 8_192


@pytest.fixture
def server() -> Iterator[Running]:
    with running() as server:
        yield server


def ask(server: Running, path: str = "/v1/completions", **fields: Any) -> socket.socket:
    """A connection over which a request has been sent and nothing read."""
    connection = server.connect()
    body = json.dumps({"model": NAME, "prompt": "row 3", **fields}).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", f"Content-Length: {len(body)}", "", ""]
    connection.sendall("\r\n".join(lines).encode() + body)
    return connection


def is_idle(server: Running) -> bool:
    return server.busy_choices() == 0 and server.state.open_requests == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("count", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_18_whoever_leaves_frees_the_slot(server: Running, stream: bool, count: int) -> None:
    """At a random moment: in the queue, while the prompt is read, while the answer is drawn."""
    server.engine.step_seconds = 0.002
    chosen = random.Random(count)
    for _ in range(count):
        with contextlib.ExitStack() as others:
            for _ in range(chosen.choice([0, 0, 0, SLOTS])):
                others.enter_context(ask(server, stream=stream, **LONG))
            with ask(server, stream=stream, n=chosen.choice([1, 2]), prompt=[5] * chosen.choice([1, 40]), **LONG):
                time.sleep(chosen.random() * 0.02)
        steps = server.engine.steps
        until(lambda: is_idle(server))
        assert server.engine.steps - steps < 100  # an answer would take 200 more
    begun, cancelled = f'fledge_choices_total{{model="{NAME}"}}', f'fledge_choices_finished_total{{finish="cancelled",model="{NAME}"}}'
    # The last one may only now be read. Whether all is quiet is looked at first: the metrics are a request, too.
    until(lambda: is_idle(server) and (found := server.counters())[begun] == found[cancelled])
    assert server.counters()[cancelled] > count / 2
    assert server.golden()


def test_18_a_slot_is_free_within_a_step(server: Running) -> None:
    with ask(server, stream=True, **LONG):
        until(lambda: server.engine.steps > 5)
        server.engine.may_step.clear()
    until(lambda: server.state.open_requests == 0)
    before = server.engine.steps
    server.engine.may_step.set()
    until(lambda: server.thread.load.running == 0)
    assert server.engine.steps - before <= 2  # the one that was held up, and the one that tells the end


def test_18_a_client_that_does_not_read_is_let_go() -> None:
    with running(ServerSettings(unread_bytes=SMALL_BUFFER_BYTES)) as server:
        server.service._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER_BYTES)
        server.engine.step_seconds = 0.02
        with ask(server, stream=True, n=SLOTS, logprobs=20, **LONG) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER_BYTES)
            until(lambda: server.thread.load.running == SLOTS)
            until(lambda: is_idle(server))
            assert server.engine.steps < 200
            received = read_all(connection)
        assert b"[DONE]" not in received
        assert server.counters()[f'fledge_choices_finished_total{{finish="cancelled",model="{NAME}"}}'] == SLOTS


class SilentEngine:
    """Takes requests and says nothing of itself."""

    load = SimpleNamespace(slots=1, running=0, waiting=0)
    is_alive, seconds_since_step = True, 0.0

    def submit(self, request: Request, listener: Callable[[Drawn], None]) -> int:
        return 1

    def cancel(self, ticket: int) -> None:
        pass


@pytest.mark.parametrize(("top", "token_bytes"), [(None, 256), (20, 1_735)])
def test_18_what_waits_for_a_client_is_counted_with_its_alternatives(top: int | None, token_bytes: int) -> None:
    """`token_bytes`: as an event of a chat was measured."""
    model: Any = SimpleNamespace(name=NAME, engine=SilentEngine())
    job = Job(Request((5,), GenerationSettings(), top), SimpleNamespace(drawn_tokens=0))  # type: ignore[arg-type]

    async def waiting_tokens() -> int:
        answer = Answer(ServerState(ServerSettings(), [model], ApiKeys()), model, "client", "id", 1)
        answer.submit([job], 1)
        answer._taken -= 10
        tokens = 0
        while not answer.too_slow.is_set():
            answer._hear(0, Drawn(1, 5))
            tokens += 1
        answer.close()
        return tokens

    assert 0.8 < asyncio.run(waiting_tokens()) * token_bytes / ServerSettings().unread_bytes < 1.2


def test_18_an_answer_at_once_that_nobody_reads_is_dropped() -> None:
    with running(ServerSettings(idle_seconds=1)) as server:
        server.service._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER_BYTES)
        with ask(server, n=SLOTS, logprobs=20, **LONG):
            until(lambda: server.thread.load.running == SLOTS)
            until(lambda: is_idle(server))
            assert any(one.transport.get_write_buffer_size() for one in server.service._server.server_state.connections)
            until(lambda: not server.service._server.server_state.connections)


def test_18_a_client_that_reads_late_but_in_time_gets_all(server: Running) -> None:
    with ask(server, stream=True, **LONG) as connection:
        time.sleep(0.5)
        received = b""
        while b"data: [DONE]" not in received:
            received += connection.recv(65_536)
    assert received.count(b'"finish_reason":"length"') == 1


def test_a_request_has_its_time() -> None:
    with running(ServerSettings(request_seconds=0.3)) as server:
        server.engine.step_seconds = 0.05
        answer = server.complete(**LONG)
        assert (answer.status_code, answer.json()["error"]["code"]) == (408, "request_timeout")
        streamed = server.complete(stream=True, **LONG).text.split("\n\n")
        assert json.loads(streamed[-3].removeprefix("data: "))["error"]["code"] == "request_timeout" and streamed[-2] == "data: [DONE]"
        until(lambda: is_idle(server))
