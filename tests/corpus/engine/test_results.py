from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from engine_assembly import TextUnit, text_units

from fledge.core import console
from fledge.corpus.engine.results import Results
from fledge.corpus.engine.telling import HowFar
from fledge.corpus.engine.units import Done


def done(number: int, read: int = 10, kept: int = 7) -> Done:
    return Done(TextUnit(number).key, f"id {number}", Path(), {"read": {"documents": read}, "kept": {"documents": kept}})


def read_so_far(results: Sequence[Done | None]) -> int:
    return sum(result.counts["read"]["documents"] for result in results if result is not None)


def test_results_come_out_in_the_order_of_the_units() -> None:
    for order in itertools.permutations(range(4)):
        results = Results(text_units(4))
        for position, index in enumerate(order):
            assert not results.are_complete
            assert results.missing() == sorted(order[position:])
            results.add(index, done(index), was_found=False)
        assert results.are_complete
        assert results.in_order() == [done(index) for index in range(4)]


def test_where_it_is_enough_does_not_depend_on_who_was_quicker() -> None:
    for order in itertools.permutations(range(4)):
        results = Results(text_units(4), lambda so_far: read_so_far(so_far) >= 20)
        for index in order:
            if not results.are_complete:
                results.add(index, done(index), was_found=False)
        assert results.in_order() == [done(0), done(1), None, None]
        assert results.missing() == []


def test_enough_is_asked_about_each_beginning_once() -> None:
    asked: list[list[int]] = []

    def enough(so_far: Sequence[Done | None]) -> bool:
        assert len(so_far) == 3
        asked.append([position for position, result in enumerate(so_far) if result is not None])
        return False

    results = Results(text_units(3), enough)
    for index in (2, 0, 1):
        results.add(index, done(index), was_found=False)
    assert asked == [[0], [0, 1], [0, 1, 2]]
    assert None not in results.in_order()


def test_where_a_few_may_be_enough_none_starts_far_ahead() -> None:
    results = Results(text_units(9), lambda so_far: False)
    results.add(0, done(0), was_found=False)
    results.add(2, done(2), was_found=False)
    assert [results.may_start(index, ahead=3) for index in range(1, 6)] == [True, True, True, False, False]
    assert Results(text_units(9)).may_start(8, ahead=3)


def test_nothing_to_do_is_complete() -> None:
    assert Results([]).are_complete
    assert Results([]).in_order() == []


@dataclass(frozen=True)
class Sizeless(TextUnit):
    @property
    def size_bytes(self) -> int:
        return 0


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def figures_of(units: list[Any], monkeypatch: pytest.MonkeyPatch, **counts: int) -> list[str]:
    """What a person sees if the first unit was found and the others take ten seconds each."""
    clock, seen = Clock(), []
    made = console.Progress
    monkeypatch.setattr(console, "Progress", lambda *given: made(*given, clock=clock))
    results = Results(units)
    results.add(0, done(0, **counts), was_found=True)
    with results.shown("clean"):
        assert results._progress is not None
        for index in range(1, len(units)):
            clock.seconds += 10
            results.add(index, done(index, **counts), was_found=False)
            seen.append(results._progress.figures())
    return seen


def test_progress_shows_rates_the_kept_share_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found counts as done, but not as speed."""
    seen = figures_of(text_units(4), monkeypatch, read=1000, kept=750)
    assert seen[0] == "20/40 MB, 1.0 MB/s, 20 s left, 100 documents/s, 75% kept"
    assert seen[-1] == "40/40 MB, 1.0 MB/s, 0.0 s left, 100 documents/s, 75% kept"


def test_units_without_documents_show_bytes_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert figures_of(text_units(3), monkeypatch, read=0, kept=0)[0] == "20/30 MB, 1.0 MB/s, 10 s left"


def test_units_that_run_count_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, made = Clock(), console.Progress
    monkeypatch.setattr(console, "Progress", lambda *given: made(*given, clock=clock))
    results = Results(text_units(4))
    with results.shown("clean"):
        assert results._progress is not None
        clock.seconds += 10
        results.hear(1, HowFar(0.5, read_documents=600, kept_documents=300))
        results.hear(2, HowFar(0.1, read_documents=200, kept_documents=100))
        assert results._progress.figures() == "6/40 MB, 600 kB/s, 57 s left, 80 documents/s, 50% kept"
        results.hear(2, None)
        assert results._progress.figures().startswith("5/40 MB"), "a unit that died begins anew"
        results.add(1, done(1, read=1000, kept=750), was_found=False)
        assert results._progress.figures() == "10/40 MB, 1.0 MB/s, 30 s left, 100 documents/s, 75% kept"


def test_units_without_a_size_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert figures_of([Sizeless(0), Sizeless(1), Sizeless(2)], monkeypatch, read=0, kept=0)[0] == "2/3 parts, 0.1/s, 10 s left"
