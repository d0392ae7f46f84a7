"""How a model is drawn from, as `generation_config.json` says it: written, read back, and taken from others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fledge.core.errors import CheckpointError
from fledge.inference.settings import GenerationSettings
from fledge.publish.generation import read_generation, sampling_json


@pytest.mark.parametrize(
    "settings",
    [
        GenerationSettings(),
        GenerationSettings(temperature=0, maximum_new_tokens=7),
        GenerationSettings(temperature=0, repetition_penalty=1.3),
        GenerationSettings(temperature=1.5, top_k=0, top_p=1, min_p=0.05, repetition_penalty=1.2, maximum_new_tokens=1000),
    ],
)
def test_what_is_written_is_read_back(settings: GenerationSettings, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, **sampling_json(settings)}))
    assert read_generation(tmp_path) == settings


def test_what_changes_nothing_is_left_out() -> None:
    assert sampling_json(GenerationSettings()) == {
        "do_sample": True,
        "temperature": 0.8,
        "top_k": 50,
        "top_p": 0.95,
        "maximum_new_tokens": 200,
    }
    assert sampling_json(GenerationSettings(temperature=0, top_k=7, min_p=0.1)) == {"do_sample": False, "maximum_new_tokens": 200}


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [
        ({}, GenerationSettings()),
        ({"do_sample": False, "temperature": 0.6}, GenerationSettings(temperature=0)),
        ({"temperature": 1, "top_k": None, "max_new_tokens": 64}, GenerationSettings(temperature=1, maximum_new_tokens=64)),
        ({"max_new_tokens": 64, "maximum_new_tokens": 32}, GenerationSettings(maximum_new_tokens=32)),
    ],
)
def test_the_words_of_others_are_understood(theirs: dict[str, Any], expected: GenerationSettings, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(theirs))
    assert read_generation(tmp_path) == expected


def test_a_value_out_of_range_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"top_p": 0}')
    with pytest.raises(CheckpointError, match=r"generation_config\.json: top_p must be above 0"):
        read_generation(tmp_path)
