"""What is told of a run's pace is what plain division gives, and what is smoothed fades at its half-life."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from training_assembly import MODEL

from fledge.model.cost import flops_per_token
from fledge.training.figures import HALF_LIFE_STEPS, Figures, Gauge, Pace, training_flops
from fledge.training.observers import progress_line
from fledge.training.plan import Phase, Plan, Source, Start
from fledge.training.trainer import StepReport

PLAN = Plan((Source("text", 1_000, "digest"),), (Phase(1_000, 4, 16, (Fraction(1),)),), seed=0)
STEP_FLOPS = 64 * flops_per_token(MODEL, 16)


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def report(step: int, seconds: float, wait_seconds: float = 0.0) -> StepReport:
    return StepReport(
        step=step,
        learning_rate=1e-3,
        gradient_norm=torch.tensor(1.0),
        measures={},
        tokens=64 * step,
        epochs=0.0,
        seconds=seconds,
        wait_seconds=wait_seconds,
        stop_signal=None,
    )


def gauge(start_step: int = 0, peak: float | None = None, clock: Clock | None = None) -> Gauge:
    return Gauge(MODEL, PLAN, start_step, torch.device("cpu"), peak, clock or Clock())


def read(meter: Gauge, seconds_per_step: Sequence[tuple[int, float]], start_step: int = 0) -> list[Figures]:
    """Readings after so many steps, each of so many seconds."""
    step, seconds, found = start_step, 0.0, []
    for steps, each in seconds_per_step:
        step, seconds = step + steps, seconds + steps * each
        found.append(meter.read(report(step, seconds)))
    return found


def test_the_flops_of_steps_are_those_of_their_tokens() -> None:
    assert training_flops(MODEL, PLAN, 10) == 10 * STEP_FLOPS
    phases = (Phase(10, 4, 16, (Fraction(1),)), Phase(5, 2, 64, (Fraction(1),)))
    longer = replace(PLAN, phases=phases, start=Start(step=100, tokens=9_999))
    assert training_flops(MODEL, longer, 100) == 0
    assert training_flops(MODEL, longer, 113) == 10 * STEP_FLOPS + 3 * 128 * flops_per_token(MODEL, 64)


def test_a_raw_figure_is_of_the_steps_since_the_last_line() -> None:
    first, second = read(gauge(peak=STEP_FLOPS * 8.0), [(1, 2.0), (10, 0.25)])
    assert first.raw.tokens_per_second == pytest.approx(32)
    assert second.raw.tokens_per_second == pytest.approx(256)
    assert second.raw.mfu == pytest.approx(0.5)
    assert second.raw.seconds_left == pytest.approx((1_000 - 11) * 0.25)


def test_steps_of_an_earlier_process_are_not_counted() -> None:
    [only] = read(gauge(start_step=500), [(10, 0.5)], start_step=500)
    assert only.raw.tokens_per_second == pytest.approx(128)
    assert only.raw.seconds_left == pytest.approx(490 * 0.5)


def test_what_is_smoothed_fades_by_half_in_the_half_life_and_the_first_reading_at_once() -> None:
    figures = read(gauge(), [(1, 60.0), (HALF_LIFE_STEPS, 1.0), (HALF_LIFE_STEPS, 3.0)])
    assert figures[0].smoothed == figures[0].raw
    assert figures[1].smoothed.tokens_per_second == pytest.approx(64), "a first step that compiles is forgotten"
    assert figures[2].raw.tokens_per_second == pytest.approx(64 / 3)
    assert figures[2].smoothed.tokens_per_second == pytest.approx(64 * 1.5 / (3 + 0.5))


def test_how_often_one_looks_does_not_change_a_steady_figure() -> None:
    for steps in (1, 7, 200):
        assert read(gauge(), [(steps, 0.5)] * 4)[-1].smoothed.tokens_per_second == pytest.approx(128)


def test_waiting_is_a_share_of_the_steps() -> None:
    meter = gauge()
    meter.read(report(1, 10.0, wait_seconds=5.0))
    found = meter.read(report(11, 20.0, wait_seconds=5.5))
    assert (found.raw.data_wait_share, found.smoothed.data_wait_share) == (pytest.approx(0.05), pytest.approx(0.05))


def test_time_left_holds_what_is_done_between_steps() -> None:
    clock = Clock()
    meter = gauge(clock=clock)
    meter.read(report(1, 5.0))
    clock.seconds = 20.0  # ten of them in steps
    assert meter.read(report(11, 15.0)).raw.seconds_left == pytest.approx(2 * 989 * 1.0)


def test_the_record_has_every_figure_raw_and_smoothed() -> None:
    names = ["tokens_per_second", "mfu", "data_wait_share", "seconds_left"]
    record = read(gauge(peak=1e12), [(1, 1.0)])[0].record()
    assert record.keys() == {f"train/{name}{end}" for name in names for end in ("", "_smoothed")} | {"train/peak_memory_bytes"}
    assert record["train/peak_memory_bytes"] > 50e6
    without_peak = read(gauge(), [(1, 1.0)])[0].record()
    assert record.keys() - without_peak.keys() == {"train/mfu", "train/mfu_smoothed"}


RECORD = {"train/loss": 4.12345, "train/learning_rate": 1.2e-3, "train/gradient_norm": 0.8123}
WHOLE = "step 9/10  loss 4.1235  lr 1.20e-03  gradient norm 0.812  12,345 tokens/s  MFU 41%  data wait 3%  3.1 GB  3 min 05 s left"


def line(columns: int | None, wait_share: float = 0.03, mfu: float | None = 0.41, seconds_left: float = 185.0) -> str:
    smoothed, raw = Pace(12_345.0, mfu, wait_share, seconds_left), Pace(1.0, 0.01, 1.0, 1.0)
    return progress_line("9/10", RECORD, Figures(raw, smoothed, 3_100_000_000), columns)


def test_the_line_shows_what_is_smoothed() -> None:
    assert line(None) == line(len(WHOLE)) == WHOLE
    assert line(None, wait_share=0.0099) == WHOLE.replace("  data wait 3%", "")
    assert line(None, mfu=None) == WHOLE.replace("  MFU 41%", "")
    assert line(None, seconds_left=0.0) == WHOLE.replace("  3 min 05 s left", ""), "the last line"


def test_a_line_gives_up_what_matters_least_where_it_does_not_fit() -> None:
    gone = ["  3.1 GB", "  lr 1.20e-03", "  gradient norm 0.812", "  MFU 41%", "  data wait 3%"]
    shorter = WHOLE
    for part in gone:
        assert line(len(shorter) - 1) == (shorter := shorter.replace(part, ""))
    assert line(80) == "step 9/10  loss 4.1235  12,345 tokens/s  MFU 41%  data wait 3%  3 min 05 s left"
    assert line(10) == "step 9/10  loss 4.1235  12,345 tokens/s  3 min 05 s left"
