"""A thread that shares an engine: every request hears its own tokens and its end, whatever happens to others and to the engine."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from fledge.core.errors import DataError, MachineError
from fledge.inference.engine import Engine
from fledge.inference.requests import Drawn, Failure, Request
from fledge.inference.settings import EngineSettings, GenerationSettings
from fledge.inference.worker import EngineThread
from fledge.model.llama import Llama
from tests.waiting import WAIT_SECONDS, until

ENDLESS = GenerationSettings(temperature=0, maximum_new_tokens=90)


class Listener:
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[Drawn] = []
        self.ended = threading.Event()

    def __call__(self, drawn: Drawn) -> None:
        self.heard.append(drawn)
        if drawn.finish:
            self.ended.set()

    def wait(self) -> Drawn:
        assert self.ended.wait(WAIT_SECONDS)
        return self.heard[-1]


@pytest.fixture
def engine(tiny_model: Llama) -> Engine:
    return Engine(tiny_model, 500, (), settings=EngineSettings(slots=2))


@pytest.fixture
def worker(engine: Engine) -> Iterator[EngineThread]:
    worker = EngineThread(engine)
    worker.start()
    yield worker
    worker.stop(WAIT_SECONDS)
    assert not worker.is_alive


def held(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """The engine's steps wait for the second event; the first tells that one does."""
    is_in_step, go_on, whole = threading.Event(), threading.Event(), engine.step

    def hold() -> list[Drawn]:
        is_in_step.set()
        assert go_on.wait(WAIT_SECONDS)
        return whole()

    monkeypatch.setattr(engine, "step", hold)
    return is_in_step, go_on


def test_each_listener_hears_its_own(engine: Engine, worker: EngineThread) -> None:
    settings = GenerationSettings(temperature=0, maximum_new_tokens=5)
    listeners = [Listener() for _ in range(12)]
    tickets = [worker.submit(Request((index,), settings), listener) for index, listener in enumerate(listeners)]
    for listener in listeners:
        listener.wait()
    expected = engine.generate([[index] for index in range(12)], settings)
    assert [[drawn.token for drawn in listener.heard] for listener in listeners] == [completion.ids for completion in expected]
    assert all({drawn.ticket for drawn in listener.heard} == {ticket} for ticket, listener in zip(tickets, listeners, strict=True))
    until(lambda: worker.load.running == worker.load.waiting == 0 and worker.seconds_since_step == 0)


def test_a_cancel_ends_a_request_and_frees_its_place(engine: Engine, worker: EngineThread, monkeypatch: pytest.MonkeyPatch) -> None:
    _, go_on = held(engine, monkeypatch)
    listeners = [Listener() for _ in range(3)]
    tickets = [worker.submit(Request((index,), ENDLESS), listener) for index, listener in enumerate(listeners)]
    for ticket in tickets:
        worker.cancel(ticket)
        worker.cancel(ticket)
    worker.cancel(999)
    go_on.set()
    assert [listener.wait().finish for listener in listeners] == ["cancelled"] * 3
    until(lambda: worker.load.running == 0)


def test_requests_that_cannot_be_answered_are_refused_where_they_are_made(worker: EngineThread) -> None:
    with pytest.raises(DataError):
        worker.submit(Request((), ENDLESS), Listener())
    assert worker.load.waiting == 0


@pytest.mark.parametrize("fails_at", [1, 90])
def test_a_listener_that_fails_loses_its_request_only(worker: EngineThread, fails_at: int, capsys: pytest.CaptureFixture[str]) -> None:
    """At its first token, or at its end; it is not called again, and a warning is told once."""
    heard: list[Drawn] = []

    def fail(drawn: Drawn) -> None:
        heard.append(drawn)
        if len(heard) >= fails_at:
            raise RuntimeError("gone")

    good = Listener()
    worker.submit(Request((1,), ENDLESS), fail)
    worker.submit(Request((2,), ENDLESS), good)
    assert good.wait().finish == "length"
    assert worker.is_alive
    until(lambda: worker.load.running == worker.load.waiting == 0)
    assert len(heard) == fails_at
    assert capsys.readouterr().err.count("RuntimeError: gone") == 1


def test_a_thread_that_was_not_started_can_be_stopped(engine: Engine) -> None:
    worker = EngineThread(engine)
    worker.stop(0)
    assert not worker.is_alive


def test_when_the_engine_dies_all_hear_of_it(engine: Engine, worker: EngineThread, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = Listener()

    def die() -> list[Drawn]:
        raise RuntimeError("no memory")

    monkeypatch.setattr(engine, "step", die)
    worker.submit(Request((1,), ENDLESS), listener)
    end = listener.wait()
    assert (end.finish, end.failure) == ("failed", Failure("other", "RuntimeError: no memory"))
    until(lambda: not worker.is_alive)
    with pytest.raises(MachineError, match="has ended"):
        worker.submit(Request((1,), ENDLESS), listener)


def test_a_step_that_takes_long_shows(engine: Engine, worker: EngineThread, monkeypatch: pytest.MonkeyPatch) -> None:
    _, go_on = held(engine, monkeypatch)
    assert worker.seconds_since_step == 0
    listener = Listener()
    worker.submit(Request((1,), ENDLESS), listener)
    until(lambda: worker.seconds_since_step > 0.02)
    go_on.set()
    listener.wait()


def test_stopping_cancels_what_is_left(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    worker, listener, waiting = EngineThread(engine), Listener(), Listener()
    is_in_step, go_on = held(engine, monkeypatch)
    worker.start()
    worker.submit(Request((1,), ENDLESS), listener)
    assert is_in_step.wait(WAIT_SECONDS)
    worker.submit(Request((2,), ENDLESS), waiting)
    worker.stop(0)
    go_on.set()
    worker.stop(WAIT_SECONDS)
    assert [listener.wait().finish, waiting.wait().finish] == ["cancelled", "cancelled"]
    assert len(listener.heard) == 2, "one token, which was being drawn, and the end"
    assert not worker.is_alive
