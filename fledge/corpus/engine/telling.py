"""How far a unit is while it runs. The unit tells, and whoever runs it may listen, in this process or over a connection: neither the
result nor its key knows of it, and where nobody listens nothing happens.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass

_EVERY_SECONDS = 0.5


@dataclass(frozen=True)
class HowFar:
    """Told by a unit about itself."""

    share: float
    """Of its work, 0 to 1; an estimate."""
    read_documents: int
    kept_documents: int


_listener: ContextVar[Callable[[HowFar], None] | None] = ContextVar("listener", default=None)


def tell(how_far: HowFar) -> None:
    """To whoever listens to the unit that runs here."""
    hear = _listener.get()
    if hear is not None:
        hear(how_far)


@contextlib.contextmanager
def listening(hear: Callable[[HowFar], None]) -> Iterator[None]:
    """While the block lasts, `hear` is called with what units tell here, twice a second at most."""
    last = time.monotonic()

    def hear_sometimes(how_far: HowFar) -> None:
        nonlocal last
        if time.monotonic() - last >= _EVERY_SECONDS:
            last = time.monotonic()
            hear(how_far)

    token = _listener.set(hear_sometimes)
    try:
        yield
    finally:
        _listener.reset(token)
