"""The queue is bounded, and no client gets more than half of it."""

from __future__ import annotations

import random

from fledge.serving.admission import Admission


def fill(admission: Admission, client: str) -> int:
    count = 0
    while admission.admits(client, 1):
        admission.enter(client, 1)
        count += 1
    return count


def test_a_lone_client_gets_the_slots_and_half_of_the_queue() -> None:
    admission = Admission(slots=4, queued=10)
    assert fill(admission, "a") == 4 + 5
    assert fill(admission, "b") == 5
    assert fill(admission, "c") == 0


def test_with_all_slots_taken_a_client_gets_half_of_the_queue() -> None:
    admission = Admission(slots=2, queued=10)
    for _ in range(2):
        admission.enter("a", 1)
        admission.begin("a")
    assert fill(admission, "b") == 5
    assert fill(admission, "a") == 5


def test_a_request_of_several_choices_is_admitted_as_a_whole() -> None:
    admission = Admission(slots=1, queued=4)
    assert admission.admits("a", 3) and not admission.admits("a", 4)


def test_who_leaves_makes_room() -> None:
    admission = Admission(slots=1, queued=2)
    assert fill(admission, "a") == 2
    admission.leave("a", begun=False)
    assert admission.admits("a", 1)
    admission.begin("a")
    admission.leave("a", begun=True)
    assert (admission.begun, admission.waiting) == (0, 0)


def test_counts_are_exact_over_any_history() -> None:
    chosen = random.Random(3)
    admission, waiting, begun = Admission(slots=3, queued=8), [], []
    for _ in range(3_000):
        client = chosen.choice("abc")
        if admission.admits(client, 1) and chosen.random() < 0.5:
            admission.enter(client, 1)
            waiting.append(client)
            others = len(waiting) - waiting.count(client)
            assert waiting.count(client) <= 4 + max(0, 3 - len(begun) - others)
        elif waiting and len(begun) < 3:
            begun.append(waiting.pop(0))
            admission.begin(begun[-1])
        elif begun:
            admission.leave(begun.pop(chosen.randrange(len(begun))), begun=True)
        assert (admission.begun, admission.waiting) == (len(begun), len(waiting))
        assert len(waiting) <= 8 + 3 - len(begun)
