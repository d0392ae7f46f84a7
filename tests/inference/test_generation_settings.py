"""Generation settings: what is refused and what is not."""

from __future__ import annotations

from typing import Any

import pytest

from fledge.core.config import Tree, parse
from fledge.core.errors import ConfigError
from fledge.inference.settings import EngineSettings, GenerationSettings


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": 0},
        {"temperature": 1.5, "top_k": 0, "top_p": 1},
        {"top_p": 1e-6},
        {"seed": 0},
        {"maximum_new_tokens": 1},
        {"min_p": 1},
        {"repetition_penalty": 0.1},
    ],
)
def test_borders_are_accepted(values: dict[str, Any]) -> None:
    settings = parse(GenerationSettings, Tree(values, {}))
    assert all(getattr(settings, name) == value for name, value in values.items())


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -0.1},
        {"top_k": -1},
        {"top_p": 0},
        {"top_p": 1.01},
        {"seed": -1},
        {"maximum_new_tokens": 0},
        {"temprature": 1},
        {"min_p": 1.1},
        {"min_p": -0.1},
        {"repetition_penalty": 0},
    ],
)
def test_beyond_the_borders_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        parse(GenerationSettings, Tree(values, {}))


@pytest.mark.parametrize("values", [{"slots": 0}, {"context_tokens": 1}, {"prefill_tokens": 0}, {"weights": "int4"}])
def test_impossible_engines_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        parse(EngineSettings, Tree(values, {}))
