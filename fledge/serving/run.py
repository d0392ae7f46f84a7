"""The process of a server: its socket, its signals, its watch over the engines, its end.

first SIGTERM, SIGINT or SIGHUP    not ready, new answers refused, those under way brought to their end (or told an error), exit 0
second                             at once, exit 128 + signal
an engine dead or stuck            answers are told so, exit 5: whoever supervises the process starts it again
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import uvicorn
from anyio.to_thread import current_default_thread_limiter
from fastapi import FastAPI

from fledge.core import console
from fledge.core.errors import MachineError
from fledge.serving.errors import unavailable
from fledge.serving.health import not_live
from fledge.serving.protocol import GuardedProtocol
from fledge.serving.settings import WILDCARDS, ServerSettings, require_safe_address
from fledge.serving.state import state_of

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LOOK_SECONDS = 0.1
_LAST_WORDS_SECONDS = 5
"""For connections to be closed, after all answers have ended."""
_LARGEST_HEAD_BYTES = 64 << 10
"""The parser gives up beyond this; the gate's own limit is lower and has better words."""


def serve(application: FastAPI, settings: ServerSettings, on_ready: Callable[[str], None], on_end: Callable[[], None]) -> None:
    """Listen until a signal or a failure ends it; `on_ready` gets the address once connections are taken.

    `on_end` is called before the process may end, which it may do without returning from here.

    Raises ConfigError for an address that needs a key, and MachineError if the port is in use or an engine has ended.
    """
    service = Service(application, settings)
    service.on_end = on_end
    service.run(on_ready)


class Service:
    """A server that can be stopped from another thread."""

    on_end: Callable[[], None] = staticmethod(lambda: None)
    """Called once, before the process may end."""

    def __init__(self, application: FastAPI, settings: ServerSettings, bound: socket.socket | None = None) -> None:
        """`bound`: a socket that `bind` gave for these settings."""
        self._settings = settings
        self._state = state_of(application)
        require_safe_address(settings, bool(self._state.keys))
        self._socket = bound or bind(settings)
        with _told_errors(self._socket, settings):
            self._socket.listen(2048)
        protocol = cast("type[asyncio.Protocol]", functools.partial(GuardedProtocol, state=self._state))
        self._server = _Uvicorn(
            uvicorn.Config(
                application,
                http=protocol,
                ws="none",
                loop="asyncio",
                log_config=None,
                log_level="error",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=int(settings.idle_seconds),
                timeout_graceful_shutdown=_LAST_WORDS_SECONDS,
                h11_max_incomplete_event_size=_LARGEST_HEAD_BYTES,
            )
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """Where it listens, as a browser of this machine writes it."""
        host, port = self._socket.getsockname()[:2]
        host = WILDCARDS.get(host, host)
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def run(self, on_ready: Callable[[str], None]) -> None:
        """Serve until it is stopped."""
        asyncio.run(self._main(on_ready))
        if self._state.failure is not None:
            raise MachineError(f"the server cannot go on: {self._state.failure}", "look at what it said before, and start it again")

    def stop(self) -> None:
        """Drain and end, as the first signal does; from any thread."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended already
                self._loop.call_soon_threadsafe(self._begin_drain)

    async def _main(self, on_ready: Callable[[str], None]) -> None:
        self._loop = asyncio.get_running_loop()
        address = self.address
        self._server.on_started = lambda: on_ready(address)
        watch = asyncio.create_task(self._watch())
        with self._signals(self._loop):
            await self._server.serve(sockets=[self._socket])
        watch.cancel()

    @contextlib.contextmanager
    def _signals(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        taken = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]  # nohup ignores SIGHUP
        for number in taken:
            loop.add_signal_handler(number, self._take_signal, number)
        try:
            yield
        finally:
            for number in taken:
                loop.remove_signal_handler(number)

    def _take_signal(self, number: int) -> None:
        if self._state.draining:
            self.on_end()
            sys.stdout.flush()
            os._exit(128 + number)
        console.info(f"{signal.Signals(number).name}: ending the answers under way (another signal ends at once)")
        self._begin_drain()

    def _begin_drain(self) -> None:
        if not self._state.draining:
            self._state.draining = True
            self._draining = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        await self._requests_ended(self._settings.drain_seconds)
        self._state.end_answers(unavailable("The server is shutting down.", "shutting_down"))
        await self._requests_ended(_LAST_WORDS_SECONDS)
        self._end()

    def _end(self) -> None:
        """A thread that waits for a file or another process cannot be cancelled, and Python would wait for it: the process ends at once."""
        self.on_end()
        if busy := current_default_thread_limiter().borrowed_tokens:
            console.warn(f"requests that do not end, and are given up: {busy}")
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(MachineError.exit_code if self._state.failure is not None else 0)
        self._server.should_exit = True

    async def _requests_ended(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._state.open_requests:
                    await asyncio.sleep(_LOOK_SECONDS / 4)

    async def _watch(self) -> None:
        """Ends the server when an engine has: a process that cannot answer must not look as if it could."""
        while (reason := not_live(self._state)) is None:
            await asyncio.sleep(_LOOK_SECONDS)
        self._state.failure = reason
        self._state.end_answers(unavailable("The model has stopped working.", "engine_failed", seconds=30))
        await self._requests_ended(_LAST_WORDS_SECONDS)
        await asyncio.sleep(self._settings.stall_seconds)  # whoever asks for its health meanwhile is told
        self._end()


class _Uvicorn(uvicorn.Server):
    """uvicorn without its signal handlers, and with a word when it listens."""

    on_started: Callable[[], None] = staticmethod(lambda: None)

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.on_started()


def bind(settings: ServerSettings) -> socket.socket:
    """A socket of this address at which nobody is answered yet, so that a port in use is known before models are loaded.

    Raises MachineError.
    """
    bound = socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET)
    with _told_errors(bound, settings):
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((settings.host, settings.port))
    bound.setblocking(False)
    return bound


@contextlib.contextmanager
def _told_errors(used: socket.socket, settings: ServerSettings) -> Iterator[None]:
    """An error of a socket as MachineError; the socket is closed then."""
    host, port = settings.host, settings.port
    try:
        yield
    except OSError as error:
        used.close()
        if error.errno == errno.EADDRINUSE:
            raise MachineError(f"port {port} of {host} is in use", "stop what listens there, or give another --port") from error
        raise MachineError(f"cannot listen on {host}:{port}: {error.strerror or error}", "give another --host or --port") from error
