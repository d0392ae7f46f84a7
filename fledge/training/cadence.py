"""When a run looks at its validation rows and benchmarks, and at how many rows: pure functions of the settings and the plan.

Looking every so many steps, every so many tokens, or every so much of an epoch differ where batches grow or phases change: tokens and
epochs then keep the distance even in what was learned from. It happens after the step that passes the mark, and always after the last one.
"""

from __future__ import annotations

from collections.abc import Sequence

from fledge.training.plan import Plan, Row
from fledge.training.settings import TrainingSettings


def is_due(step: int, every_steps: int | None, steps: int) -> bool:
    """Whether something that happens every so many steps, and at the end, happens after this step; None: at the end only."""
    return step == steps or (every_steps is not None and step % every_steps == 0)


def validation_is_due(step: int, settings: TrainingSettings, plan: Plan) -> bool:
    """Whether to validate after so many steps."""
    return _look_is_due(step, plan, settings.validate_every_steps, settings.validate_every_tokens, settings.validate_every_epochs)


def benchmarks_are_due(step: int, settings: TrainingSettings, plan: Plan) -> bool:
    """Whether to measure benchmarks after so many steps."""
    return _look_is_due(step, plan, settings.benchmark_every_steps, settings.benchmark_every_tokens, settings.benchmark_every_epochs)


def _look_is_due(step: int, plan: Plan, every_steps: int | None, every_tokens: int | None, every_epochs: float | None) -> bool:
    if every_tokens is not None and plan.tokens(step) // every_tokens > plan.tokens(step - 1) // every_tokens:
        return True
    return plan.ends_epochs(step, every_epochs) or is_due(step, every_steps, plan.steps)


def validated_rows(rows: int, settings: TrainingSettings) -> int:
    """How many of the validation rows are measured each time; of a share at least one."""
    if settings.validation_share is not None:
        return min(rows, max(1, round(settings.validation_share * rows)))
    return rows if settings.validation_rows is None else min(rows, settings.validation_rows)


def spread(rows: Sequence[Row], count: int) -> list[Row]:
    """`count` of the rows at even distances, or all of them."""
    return list(rows) if count >= len(rows) else [rows[number * len(rows) // count] for number in range(count)]
