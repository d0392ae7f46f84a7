"""From what a recipe says to a plan: settings and sources -> [phases] -> plan, with steps, batches and weights as whole numbers.

A run without phases is a run of one. Steps, a budget and phases are three ways to say how many tokens the run trains on; a phase has
as many steps as reach its tokens. With the step of a checkpoint taken over, all of them count what was trained before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import lcm

from fledge.core.errors import ConfigError
from fledge.training.plan import FROM_THE_BEGINNING, Phase, Plan, Source, Start
from fledge.training.settings import PhaseSettings, TrainingSettings

MAXIMUM_CHUNK_ROWS = 64
"""Longest rows in a chunk. What is permuted are chunks, so long ones would leave the text in its order."""


def make_plan(sources: Sequence[Source], settings: TrainingSettings, parameters: int, start: Start = FROM_THE_BEGINNING) -> Plan:
    """The plan of a run of a model with so many parameters.

    Raises ConfigError if the lengths of rows are missing, do not fit the sources or each other, if a mixture names a source that is
    not there or leaves one out, or if no step is left to do.
    """
    phases, tokens = list[Phase](), start.tokens
    for number, asked in enumerate(_asked(sources, settings, parameters, start)):
        row_tokens = _row_tokens(sources, settings, asked, number)
        batch_rows = max(1, (asked.batch_tokens or _batch_tokens(sources, settings)) // row_tokens)
        steps = -(-(asked.until_tokens - tokens) // (batch_rows * row_tokens))
        if steps > 0:
            mixture = settings.mixture if asked.mixture is None else asked.mixture
            phases.append(Phase(steps, batch_rows, row_tokens, _weights(sources, mixture, row_tokens)))
            tokens += steps * phases[-1].batch_tokens
        elif asked.until_tokens > start.tokens:
            problem = f"phases.{number} has no step: its until_tokens is {asked.until_tokens:,}, the phase before ends at {tokens:,} tokens"
            raise ConfigError(problem, "raise its until_tokens, or leave it out")
    if not phases:
        problem = f"nothing is left to train: the checkpoint that this run starts from has {start.step:,} steps and {start.tokens:,} tokens"
        raise ConfigError(problem, "they count with keep: [step]; train longer than that, or leave step out of keep")
    plan = Plan(tuple(sources), tuple(phases), settings.seed, start)
    _require_short_chunks(plan)
    if settings.schedule.warmup_of(plan.steps) > plan.steps:
        raise ConfigError(f"schedule.warmup_steps ({settings.schedule.warmup_steps}) is more than the {plan.steps} steps", "shorten it")
    return plan


def described(plan: Plan) -> list[str]:
    """Lines that say what a plan will do, where it has more than one phase or source."""
    lines, step = list[str](), plan.start.step
    for number, phase in enumerate(plan.phases if len(plan.phases) > 1 else (), start=1):
        step += phase.steps
        shape = f"{phase.steps:,} steps of {phase.batch_rows:,} rows x {phase.row_tokens:,} tokens"
        lines.append(f"phase {number} of {len(plan.phases)}: {shape}, until step {step:,}, {plan.tokens(step):,} tokens")
    return [*lines, *used(plan, plan.steps)]


def used(plan: Plan, step: int) -> list[str]:
    """A line per source, if there are several: its share of the tokens after `step` steps, and how often it was read."""
    use = plan.use(step).items() if len(plan.sources) > 1 else ()
    return [f"{name}: {one.share:.2%} of the tokens ({one.tokens:,}), {one.epochs:.2f} epochs" for name, one in use]


def _asked(sources: Sequence[Source], settings: TrainingSettings, parameters: int, start: Start) -> tuple[PhaseSettings, ...]:
    """The phases; a run that has none is one, until its steps or its budget are reached."""
    if settings.phases:
        return settings.phases
    if settings.budget is not None:
        tokens = settings.budget.tokens or round((settings.budget.tokens_per_parameter or 0) * parameters)
        return (PhaseSettings(until_tokens=max(1, tokens)),)
    assert settings.steps is not None, "settings say how long a run is"
    steps = max(0, settings.steps - start.step)
    return (PhaseSettings(until_tokens=max(1, start.tokens + steps * _batch_tokens(sources, settings))),)


def _batch_tokens(sources: Sequence[Source], settings: TrainingSettings) -> int:
    """Tokens of a step of the stage; where only its phases have a length, the longest counts."""
    row_tokens = settings.sequence_length or sources[0].row_tokens or settings.longest_sequence_length
    return settings.batch_rows * (row_tokens or 1)


def _row_tokens(sources: Sequence[Source], settings: TrainingSettings, asked: PhaseSettings, number: int) -> int:
    packed = sources[0].row_tokens
    if packed is not None:
        if asked.sequence_length not in (None, packed):
            raise ConfigError(
                f"phases.{number}.sequence_length is {asked.sequence_length}, but the rows were packed with {packed} tokens each, "
                "whole texts that cannot be cut or joined",
                "leave it out: phases of packed rows differ in batch_tokens and mixture, and pack.sequence_length decides their length",
            )
        return packed
    row_tokens = asked.sequence_length or settings.sequence_length
    if row_tokens is None:
        raise ConfigError("sequence_length is not set, and documents have no row length of their own", "set it, for example to 256")
    return row_tokens


def _weights(sources: Sequence[Source], mixture: Mapping[str, float] | None, row_tokens: int) -> tuple[Fraction, ...]:
    """Without a mixture every source has the share that its rows are of all rows."""
    names = [source.name for source in sources]
    if mixture is None:
        return tuple(Fraction(source.rows(row_tokens)) for source in sources)
    if set(mixture) != set(names):
        odd = sorted(set(mixture) ^ set(names))[0]
        problem = "names no source" if odd in mixture else "has no weight for the source"
        raise ConfigError(f"mixture {problem} {odd!r}", f"give each of {', '.join(names)} a weight; 0 leaves a source out")
    return tuple(Fraction(mixture[name]) for name in names)


def _require_short_chunks(plan: Plan) -> None:
    if plan.chunk_tokens <= MAXIMUM_CHUNK_ROWS * plan.longest_row_tokens:
        return
    lengths = sorted({phase.row_tokens for phase in plan.phases})
    raise ConfigError(
        f"phases have sequence_length {', '.join(map(str, lengths))}, whose least common multiple is {lcm(*lengths):,} tokens: "
        "text is shuffled in pieces of that length",
        "choose lengths that divide each other, like powers of two",
    )
