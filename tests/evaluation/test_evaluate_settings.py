"""Evaluation settings: what is refused and what is not."""

from __future__ import annotations

from typing import Any

import pytest

from fledge.core.config import Tree, identity, parse
from fledge.core.errors import ConfigError
from fledge.evaluation.settings import EvaluateSettings


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"questions": 0, "preference_pairs": 0},
        {"window_tokens": 2},
        {"precision": "bf16"},
        {"benchmark_samples": 1, "stride_tokens": 1},
    ],
)
def test_borders_are_accepted(values: dict[str, Any]) -> None:
    settings = parse(EvaluateSettings, Tree(values, {}))
    assert all(getattr(settings, name) == value for name, value in values.items())


@pytest.mark.parametrize(
    "values",
    [
        {"questions": -1},
        {"window_tokens": 1},
        {"batch_tokens": 0},
        {"maximum_answer_tokens": 0},
        {"precision": "fp16"},
        {"benchmark_samples": 0},
        {"benchmark_samples": "most"},
        {"stride_tokens": 0},
    ],
)
def test_beyond_the_borders_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        parse(EvaluateSettings, Tree(values, {}))


def test_how_it_is_computed_is_not_what_is_computed() -> None:
    kept = identity(EvaluateSettings())
    assert not {"batch_tokens", "checkpoints"} & kept.keys()
    assert {"seed", "questions", "window_tokens"} <= kept.keys()
