"""Who may wait for a slot: a bounded queue, of which no client gets more than half, and refusals that cost nothing.

Counted are choices (an answer to one prompt): `begun` ones hold a slot, the others wait. The engine serves them in their order. A
choice that finds a slot free does not wait; so a lone client fills all slots and half of the queue, and finds the other half closed.
"""

from __future__ import annotations

from collections import Counter


class Admission:
    """The count of one model's choices. Used from the event loop only."""

    def __init__(self, slots: int, queued: int) -> None:
        self._slots = slots
        self._queued = queued
        self._begun = 0
        self._waiting: Counter[str] = Counter()

    def admits(self, client: str, choices: int) -> bool:
        """Whether so many more choices of this client may wait."""
        own = self._waiting[client]
        free = max(0, self._slots - self._begun)
        free_for_client = max(0, free - (self.waiting - own))  # those who wait already come first
        return self.waiting + choices <= free + self._queued and own + choices <= free_for_client + self._queued // 2

    def enter(self, client: str, choices: int) -> None:
        """They wait from now on."""
        self._waiting[client] += choices

    def begin(self, client: str) -> None:
        """One of them has a slot."""
        self._leave_queue(client)
        self._begun += 1

    def leave(self, client: str, begun: bool) -> None:
        """One of them has ended."""
        if begun:
            self._begun -= 1
        else:
            self._leave_queue(client)

    @property
    def begun(self) -> int:
        """Choices in a slot."""
        return self._begun

    @property
    def waiting(self) -> int:
        """Choices without one."""
        return self._waiting.total()

    def _leave_queue(self, client: str) -> None:
        assert self._waiting[client] > 0, "it entered before"
        self._waiting[client] -= 1
        if not self._waiting[client]:
            del self._waiting[client]  # clients come and go for months
