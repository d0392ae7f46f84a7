"""A form knows what the classes of a recipe know, and what is typed into it is what an override takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from fledge.core.config import override_value, plain
from fledge.core.form import FormField, form_fields, written_as
from fledge.recipe import find_recipe, load_recipe

QUICKSTART = find_recipe("quickstart")


@pytest.fixture(scope="module")
def fields() -> dict[str, FormField]:
    overrides = ["pretrain.mixture={python-docs: 1}", "sft.learning_rate=3e-4", "tokenizer.kind=superbpe", "tokenizer.transition=700"]
    recipe, tree = load_recipe(QUICKSTART, overrides)
    return {field.name: field for field in form_fields(recipe, tree)}


@pytest.mark.parametrize(
    ("name", "kind", "value", "optional"),
    [
        ("pretrain.steps", "integer", "100", True),
        ("pretrain.batch_rows", "integer", "16", False),
        ("pretrain.learning_rate", "number", "0.012", False),
        ("tokenizer.transition", "number", "700", True),
        ("pretrain.isolate_documents", "switch", "true", False),
        ("pretrain.schedule.kind", "choice", "warmup_stable_decay", False),
        ("pretrain.optimizer.kind", "choice", "muon", False),
        ("pretrain.mixture", "data", '{"python-docs": 1.0}', True),
        ("pretrain.lora", "data", "null", True),
        ("corpus.sources.0.name", "text", "python-docs", False),
        ("question", "text", "What does `textwrap.dedent` do?", True),
    ],
)
def test_a_field_has_its_kind_and_value(fields: dict[str, FormField], name: str, kind: str, value: str, optional: bool) -> None:
    assert (fields[name].kind, fields[name].value, fields[name].optional) == (kind, value, optional)


def test_a_field_has_help_choices_origin_and_weight(fields: dict[str, FormField]) -> None:
    assert fields["pretrain.batch_rows"].help.startswith("Rows per optimizer step")
    assert fields["pretrain.optimizer.kind"].choices == ("adamw", "muon")
    assert set(fields["corpus.sources.0.kind"].choices) >= {"text", "jsonl", "python_docs"}
    assert fields["pretrain.steps"].origin.startswith(f"{QUICKSTART}:")
    assert (fields["sft.learning_rate"].origin, fields["sft.weight_decay"].value) == ("override sft.learning_rate=3e-4", "0.0")
    assert fields["pretrain.seed"].origin == "default"
    assert fields["pretrain.seed"].decides_result and not fields["pretrain.save_every_steps"].decides_result
    assert not fields["pretrain.metrics.wandb"].decides_result


@pytest.mark.parametrize("name", ["quickstart", "own-text"])
def test_every_field_written_back_is_the_same_recipe(name: str, tmp_path: Path) -> None:
    recipe, tree = load_recipe(find_recipe(name), [])
    written = [f"{field.name}={field.value}" for field in form_fields(recipe, tree)]
    assert plain(load_recipe(find_recipe(name), written)[0]) == plain(recipe)


@pytest.mark.parametrize(
    "value",
    [
        *("text", "", " ", "null", "true", "12", "3e-4", "a: b", "- a", "{a: 1}", "a #b", "*x", "line\nline", "\u202e", "'", '"q"'),
        *(12, 3e-05, 1e22, True, None, [], [1, "a"], {"a": [None]}),
    ],
)
def test_what_is_written_is_read_as_the_same(value: object) -> None:
    assert override_value(written_as(value)) == value
