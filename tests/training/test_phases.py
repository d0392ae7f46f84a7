"""What a recipe says becomes whole steps, batches and weights; what does not fit is refused by name."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from training_assembly import training_settings

from fledge.core.errors import ConfigError
from fledge.training.phases import described, make_plan, used
from fledge.training.plan import FROM_THE_BEGINNING, Phase, Plan, Source, Start
from fledge.training.settings import BudgetSettings, PhaseSettings, ScheduleSettings

SOURCES = (Source("manual", 160_000, ""), Source("letters", 40_000, ""))
PACKED = (Source("questions", 24_000, "", row_tokens=24),)
CURRICULUM = (8, 16, 32, 64, 128, 256, 512, 768, 1_536, 2_048)


def plan_of(start: Start = FROM_THE_BEGINNING, sources: tuple[Source, ...] = SOURCES, parameters: int = 1_000, **changes: Any) -> Plan:
    return make_plan(sources, training_settings(**{"schedule": ScheduleSettings(), **changes}), parameters, start)


def phase(until_tokens: int, **changes: Any) -> PhaseSettings:
    return PhaseSettings(until_tokens=until_tokens, **changes)


def shapes(plan: Plan) -> list[tuple[int, int, int]]:
    return [(one.steps, one.batch_rows, one.row_tokens) for one in plan.phases]


def test_a_run_without_phases_is_one_phase() -> None:
    plan = plan_of(steps=20)
    assert plan.phases == (Phase(20, 8, 16, (Fraction(10_000), Fraction(2_500))),)
    assert plan == plan_of(phases=(phase(20 * 8 * 16),))
    assert described(plan_of(steps=3, sources=SOURCES[:1])) == []


@pytest.mark.parametrize(
    ("budget", "steps"),
    [
        ({"tokens": 128}, 1),
        ({"tokens": 129}, 2),
        ({"tokens": 1_280}, 10),
        ({"tokens_per_parameter": 20.0}, 157),
        ({"tokens_per_parameter": 0.0001}, 1),
    ],
)
def test_a_budget_ends_with_the_step_that_reaches_it(budget: dict[str, Any], steps: int) -> None:
    assert plan_of(budget=BudgetSettings(**budget)).steps == steps


def test_a_phase_ends_with_the_step_that_reaches_its_tokens_and_the_next_counts_from_there() -> None:
    plan = plan_of(phases=(phase(1_000), phase(2_000, sequence_length=32), phase(4_096, batch_tokens=1_000, sequence_length=32)))
    # 8 steps of 128 tokens reach 1,024, 8 more 2,048, and 3 of 31 rows of 32 tokens 5,024.
    assert shapes(plan) == [(8, 8, 16), (8, 4, 32), (3, 31, 32)]
    assert [plan.tokens(step) for step in (8, 16, 19)] == [1_024, 2_048, 5_024]


def test_batches_have_at_least_a_row() -> None:
    assert shapes(plan_of(phases=(phase(1, batch_tokens=5, sequence_length=64),))) == [(1, 1, 64)]


def test_the_curriculum_from_8_to_2048_adapts_its_rows() -> None:
    plan = plan_of(
        batch_rows=4, sequence_length=2_048, phases=tuple(phase(100_000 * n, sequence_length=t) for n, t in enumerate(CURRICULUM, 1))
    )
    assert [one.batch_rows for one in plan.phases] == [1_024, 512, 256, 128, 64, 32, 16, 10, 5, 4]
    assert plan.chunk_tokens == 6_144
    assert plan.tokens(plan.steps) == pytest.approx(1_000_000, rel=0.01)


def test_without_a_length_of_the_stage_the_longest_of_the_phases_makes_the_batch() -> None:
    assert shapes(plan_of(sequence_length=None, phases=(phase(500, sequence_length=8), phase(2_000, sequence_length=64)))) == [
        (1, 64, 8),
        (3, 8, 64),
    ]
    with pytest.raises(ConfigError, match="sequence_length is not set"):
        plan_of(sequence_length=None, phases=(phase(500, sequence_length=8), phase(2_000)))


def test_a_mixture_of_a_phase_takes_the_place_of_the_stage_s() -> None:
    even, odd = {"manual": 1.0, "letters": 1.0}, {"manual": 0.0, "letters": 0.25}
    plan = plan_of(mixture=even, phases=(phase(1_000), phase(2_000, mixture=odd)))
    assert [one.weights for one in plan.phases] == [(Fraction(1), Fraction(1)), (Fraction(0), Fraction(1, 4))]


@pytest.mark.parametrize("where", ["stage", "phase"])
def test_a_mixture_must_name_the_sources(where: str) -> None:
    def with_mixture(mixture: dict[str, float]) -> Plan:
        return plan_of(steps=3, mixture=mixture) if where == "stage" else plan_of(phases=(phase(1_000), phase(2_000, mixture=mixture)))

    with_mixture({"manual": 1.0, "letters": 0.0})
    with pytest.raises(ConfigError, match="names no source 'wiki'"):
        with_mixture({"manual": 1.0, "letters": 1.0, "wiki": 1.0})
    with pytest.raises(ConfigError, match="has no weight for the source 'letters'"):
        with_mixture({"manual": 1.0})


def test_packed_rows_keep_their_length() -> None:
    plan = plan_of(sources=PACKED, sequence_length=None, phases=(phase(1_000, sequence_length=24), phase(3_000, batch_tokens=480)))
    assert shapes(plan) == [(6, 8, 24), (4, 20, 24)]
    with pytest.raises(ConfigError, match=r"phases\.1\.sequence_length is 48, but the rows were packed with 24 tokens each"):
        plan_of(sources=PACKED, sequence_length=None, phases=(phase(1_000), phase(2_000, sequence_length=48)))


def test_a_phase_without_a_step_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"phases\.1 has no step: its until_tokens is 1,020, the phase before ends at 1,024 tokens"):
        plan_of(phases=(phase(1_000), phase(1_020), phase(2_000)))


def test_lengths_without_a_short_common_multiple_are_refused() -> None:
    assert plan_of(phases=(phase(1_000, sequence_length=63), phase(90_000, sequence_length=64))).chunk_tokens == 63 * 64
    with pytest.raises(ConfigError, match="have sequence_length 127, 128, whose least common multiple is 16,256 tokens"):
        plan_of(phases=(phase(1_000, sequence_length=127), phase(90_000, sequence_length=128)))


def test_a_warm_up_must_end_before_the_run_does() -> None:
    assert plan_of(budget=BudgetSettings(tokens=640), schedule=ScheduleSettings(warmup_steps=5)).steps == 5
    assert plan_of(budget=BudgetSettings(tokens=640), schedule=ScheduleSettings(warmup_fraction=1.0)).steps == 5
    with pytest.raises(ConfigError, match=r"schedule\.warmup_steps \(6\) is more than the 5 steps"):
        plan_of(budget=BudgetSettings(tokens=640), schedule=ScheduleSettings(warmup_steps=6))


def test_what_a_checkpoint_had_counts_where_its_step_is_kept() -> None:
    start = Start(step=10, tokens=1_280)
    assert (plan_of(start, steps=15).steps, plan_of(start, steps=15).tokens(15)) == (15, 1_920)
    assert plan_of(start, budget=BudgetSettings(tokens=1_500)).steps == 12
    later = plan_of(start, phases=(phase(1_280), phase(2_000, sequence_length=32)))
    assert (shapes(later), later.steps) == ([(6, 4, 32)], 16)
    for over in ({"steps": 10}, {"budget": BudgetSettings(tokens=1_280)}, {"phases": (phase(1_000),)}):
        with pytest.raises(ConfigError, match=r"nothing is left to train: .* has 10 steps and 1,280 tokens"):
            plan_of(start, **over)


def test_a_plan_is_told() -> None:
    plan = plan_of(mixture={"manual": 3.0, "letters": 1.0}, phases=(phase(1_280), phase(2_560, sequence_length=32, batch_tokens=256)))
    assert described(plan) == [
        "phase 1 of 2: 10 steps of 8 rows x 16 tokens, until step 10, 1,280 tokens",
        "phase 2 of 2: 5 steps of 8 rows x 32 tokens, until step 15, 2,560 tokens",
        "manual: 75.00% of the tokens (1,920), 0.01 epochs",
        "letters: 25.00% of the tokens (640), 0.02 epochs",
    ]
    assert used(plan, 0)[0] == "manual: 0.00% of the tokens (0), 0.00 epochs"
    assert used(plan_of(steps=3, sources=SOURCES[:1]), 3) == []
