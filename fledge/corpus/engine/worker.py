"""A worker process of `pool.py`: takes one unit after another from its connection and sends back how far each is and what came of it.

    python -m fledge.corpus.engine.worker DESCRIPTOR PARENT

It imports nothing of its own but what unpickling the units asks for, and ends with the process that started it.
"""

from __future__ import annotations

import os
import signal
import sys
from multiprocessing.connection import Connection

from fledge.core import process
from fledge.corpus.engine.telling import listening
from fledge.corpus.engine.units import Attempt, attempt


def main(descriptor: int, parent: int) -> None:
    """Work until the other end of the connection is closed."""
    # Ctrl-C reaches every process of a terminal; what to do about it is for the one that started us to decide.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    process.end_with_parent(parent)
    # Nothing that a unit starts may hold our end open: the pool goes by its closing to know that we are dead.
    os.set_inheritable(descriptor, False)
    with Connection(descriptor) as pool, listening(pool.send):
        while True:
            try:
                work, unit = pool.recv()
            except EOFError:
                return
            except Exception as error:
                # The unit is of a class that this process cannot import.
                pool.send(Attempt(trace=f"it cannot be unpickled: {type(error).__name__}: {error}"))
                continue
            pool.send(attempt(work, unit))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
