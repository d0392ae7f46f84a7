"""The road in other formats of conversations than ChatML, which have no tokens of their own for turns."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from fledge.core import artifact
from fledge.model.folder import load_model
from fledge.stages.checkpoint_names import find_checkpoint
from fledge.stages.run import Run
from fledge.tokens.tokenizer import open_tokenizer


@pytest.mark.parametrize("template", ["instruct", "plain"])
def test_a_road_in_a_format_without_turn_tokens(make_run: Callable[..., Run], walk: Callable[..., None], template: str) -> None:
    """Answers end with the end of a text, and are measured and asked for as in ChatML."""
    run = make_run(f"tokenizer.template={template}")
    walk(run)
    results = json.loads((run.folder / "evaluate" / "results.json").read_text(encoding="utf-8"))
    measured = [{score["name"] for score in one["scores"]} for one in results["evaluations"]]
    assert ["stop_rate" in names for names in measured] == [False, True, True]
    assert isinstance(artifact.open_artifact(run.folder / "report").stats["answer"], str)


def test_a_finished_base_is_fine_tuned_in_another_format(make_run: Callable[..., Run], walk: Callable[..., None]) -> None:
    """Its tokenizer is imported with that format; the checkpoint then speaks it, and ends as it ends."""
    base = make_run("sft=null", "dpo=null", name="base")
    walk(base, "pretrain")
    imported = f"tokenizer={{kind: import, path: {base.folder / 'tokenizer'}, template: instruct}}"
    other = make_run(imported, "pretrain=null", "dpo=null", f"sft.start_from={base.folder}", name="other")
    walk(other, "sft")
    checkpoint = find_checkpoint(f"{other.folder}@final")
    tokenizer = open_tokenizer(checkpoint)
    assert tokenizer.meta.template == "instruct"
    assert load_model(checkpoint).config.end_token_ids == (tokenizer.end_of_text,)
    assert "### Response:" in (checkpoint / "chat_template.jinja").read_text(encoding="utf-8")
