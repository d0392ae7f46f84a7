"""The road in formats of conversations that have no tokens of their own for turns."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from fledge.core import artifact
from fledge.stages.run import Run


@pytest.mark.parametrize("template", ["instruct", "plain"])
def test_a_road_in_a_format_without_turn_tokens(make_run: Callable[..., Run], walk: Callable[..., None], template: str) -> None:
    """Answers end with the end of a text, and are measured and asked for as in ChatML."""
    run = make_run(f"tokenizer.template={template}")
    walk(run)
    results = json.loads((run.folder / "evaluate" / "results.json").read_text(encoding="utf-8"))
    measured = [{score["name"] for score in one["scores"]} for one in results["evaluations"]]
    assert ["stop_rate" in names for names in measured] == [False, True, True]
    assert isinstance(artifact.open_artifact(run.folder / "report").stats["answer"], str)
