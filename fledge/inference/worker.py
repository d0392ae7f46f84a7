"""One thread steps an engine for whoever asks: [requests, cancels] -> inbox -> the thread -> listeners.

An engine is not locked: this thread alone changes it. Others read of it what never changes (its context and its vocabulary) and how many
requests it is busy with, which may be a moment old; what they want they leave in an inbox, which is emptied before every pass, so a cancel
takes effect within one step. Listeners are called in this thread and must not block: a server hands on to its event loop.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count

from fledge.core import console
from fledge.core.errors import MachineError
from fledge.inference.engine import Engine
from fledge.inference.requests import Drawn, Failure, Finish, Request, failure_of
from fledge.inference.scheduling import Load

Listener = Callable[[Drawn], None]
"""Called with all that happens to a request, its end last."""


class EngineThread:
    """Shares an engine among threads. Every method may be called from any thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._tickets = count()
        self._listeners: dict[int, Listener] = {}
        """By our tickets, which are known before the engine has given its own."""
        self._own_tickets: dict[int, int] = {}
        self._engine_tickets: dict[int, int] = {}
        self._lock = threading.Lock()
        """Held where a request is accepted and where the thread ends, so that none is accepted that nobody will answer."""
        self._is_open, self._is_stopping = False, False
        self._step_began: float | None = None
        self._slots = engine.load.slots
        self._thread = threading.Thread(target=self._run, name="fledge-engine", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._is_open = True
        self._thread.start()

    def submit(self, request: Request, listener: Listener) -> int:
        """A ticket. Raises DataError for a request that cannot be answered, MachineError if the engine has ended."""
        self._engine.require_possible(request)
        with self._lock:
            if not self._is_open:
                raise MachineError("the engine has ended and answers no more", "start the server again; its log tells why")
            ticket = next(self._tickets)
            self._listeners[ticket] = listener
        self._inbox.put(lambda: self._take_up(ticket, request))
        return ticket

    def cancel(self, ticket: int) -> None:
        """End a request before the next pass; nothing happens if it has ended."""
        self._inbox.put(lambda: self._cancel(ticket))

    @property
    def load(self) -> Load:
        """How many requests are being answered and how many wait, those in the inbox among them."""
        running, accepted = self._engine.load.running, len(self._listeners)
        return Load(min(running, accepted), max(accepted - running, 0), self._slots)

    @property
    def is_alive(self) -> bool:
        """Whether requests are answered."""
        return self._is_open and self._thread.is_alive()

    @property
    def seconds_since_step(self) -> float:
        """For how long the present pass has been computed; 0 while there is nothing to do."""
        began = self._step_began
        return 0.0 if began is None else time.monotonic() - began

    def stop(self, seconds: float) -> None:
        """Cancel what is left and end; waits at most so long for the pass that is being computed."""
        self._is_stopping = True
        self._inbox.put(lambda: None)
        if self._thread.ident is not None:  # it has been started
            self._thread.join(seconds)

    def _run(self) -> None:
        finish: Finish = "cancelled"
        failure: Failure | None = None
        try:
            while not self._is_stopping:
                self._work()
        except BaseException as raised:  # whatever it is, those who wait must hear of it
            finish, failure = "failed", failure_of(raised)
            console.warn(f"the engine has ended: {failure.problem}")
        with self._lock:
            self._is_open, self._step_began = False, None
        for ticket in list(self._listeners):
            self._tell(Drawn(ticket, finish=finish, failure=failure))

    def _work(self) -> None:
        """One step, after whatever lies in the inbox; waits for it if there is nothing else to do."""
        if not self._engine.has_work:
            self._step_began = None
            self._inbox.get()()
        self._step_began = time.monotonic()
        while not self._inbox.empty():
            self._inbox.get()()
        for drawn in self._engine.step():
            ticket = self._own_tickets[drawn.ticket]
            if drawn.finish is not None:
                del self._own_tickets[drawn.ticket], self._engine_tickets[ticket]
            self._tell(replace(drawn, ticket=ticket))

    def _take_up(self, ticket: int, request: Request) -> None:
        theirs = self._engine.submit(request)
        self._own_tickets[theirs], self._engine_tickets[ticket] = ticket, theirs

    def _cancel(self, ticket: int) -> None:
        if ticket in self._engine_tickets:
            self._engine.cancel(self._engine_tickets[ticket])

    def _tell(self, drawn: Drawn) -> None:
        """A listener that fails hears no more, loses its request and harms nobody else."""
        listener = self._listeners.pop(drawn.ticket) if drawn.finish else self._listeners[drawn.ticket]
        try:
            listener(drawn)
        except Exception as error:  # code of whoever listens
            console.warn(f"the listener of request {drawn.ticket} failed and hears no more: {type(error).__name__}: {error}")
            if not drawn.finish:
                self._listeners[drawn.ticket] = _hear_nothing
                self._cancel(drawn.ticket)


def _hear_nothing(drawn: Drawn) -> None:
    """Until the end of a request that nobody listens to."""
