"""Recipes: those that lie in recipes/ parse, `--smoke` keeps every stage, and every option there is is known to a golden file."""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from fledge.core import config
from fledge.core.errors import ConfigError
from fledge.recipe import Recipe, find_recipe, load_recipe, smoke, without_wandb
from fledge.stages import STAGES
from fledge.training.settings import BudgetSettings

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))
GOLDEN = Path(__file__).parent / "golden_options.txt"
QUICKSTART = find_recipe("quickstart")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_parses(path: Path) -> None:
    recipe, _ = load_recipe(path, [])
    assert recipe.corpus is not None or (recipe.pack is not None and recipe.pack.import_bin is not None)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_smoke_keeps_every_stage_and_shrinks_it(path: Path) -> None:
    recipe, _ = load_recipe(path, [])
    small = smoke(recipe)
    for name in ("corpus", "tokenizer", "pack", "pretrain", "sft", "dpo", "evaluate"):
        assert (getattr(small, name) is None) == (getattr(recipe, name) is None), name
    for name in ("pretrain", "sft", "dpo"):
        if getattr(recipe, name) is not None:
            assert (getattr(small, name).steps or 0) <= 12
            assert getattr(small, name).objective == getattr(recipe, name).objective
    if recipe.corpus is not None:
        assert [source.name for source in small.corpus.sources] == [source.name for source in recipe.corpus.sources]
        assert all(source.kind == "python_docs" for source in small.corpus.sources)


def test_smoke_is_pure_and_settles() -> None:
    recipe, _ = load_recipe(QUICKSTART, [])
    before = config.plain(recipe)
    once = smoke(recipe)
    assert config.plain(recipe) == before
    assert smoke(once) == once


def test_smoke_keeps_the_kind_of_a_tokenizer() -> None:
    recipe, _ = load_recipe(QUICKSTART, ["tokenizer.kind=superbpe", "tokenizer.vocabulary_size=200000", "tokenizer.transition=80000"])
    small = smoke(recipe).tokenizer
    assert small is not None and (small.kind, small.vocabulary_size, small.transition) == ("superbpe", 1_024, 0.4)
    recipe, _ = load_recipe(QUICKSTART, ["tokenizer.kind=import", "tokenizer.preset=gpt2"])
    assert smoke(recipe).tokenizer == recipe.tokenizer


def test_the_quickstart_has_every_stage() -> None:
    recipe, _ = load_recipe(QUICKSTART, [])
    from fledge.stages import has_stage
    from fledge.stages.run import Run

    assert all(has_stage(stage, Run(recipe, Path("runs/x"), "")) for stage in STAGES)


def test_a_stage_with_another_objective_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"dpo\.objective\.kind is 'next_token'"):
        load_recipe(QUICKSTART, ["dpo.objective.kind=next_token"])


def test_documents_need_a_row_length() -> None:
    with pytest.raises(ConfigError, match=r"pretrain\.sequence_length is required"):
        load_recipe(QUICKSTART, ["pretrain.sequence_length=null"])


def test_no_wandb_overrides_any_recipe() -> None:
    recipe, _ = load_recipe(QUICKSTART, ["pretrain.metrics.wandb=online", "sft.metrics.wandb=offline"])
    assert recipe.pretrain is not None
    assert recipe.pretrain.metrics.wandb == "online"
    off = without_wandb(recipe)
    assert off.pretrain is not None
    assert off.sft is not None
    assert (off.pretrain.metrics.wandb, off.sft.metrics.wandb) == ("off", "off")


def test_overrides_index_lists() -> None:
    recipe, tree = load_recipe(find_recipe("own-text"), ["corpus.sources.0.path=my.txt"])
    assert recipe.corpus is not None
    assert recipe.corpus.sources[0].path == "my.txt"  # type: ignore[union-attr]
    assert tree.origin(("corpus", "sources", "0", "path")) == "override corpus.sources.0.path=my.txt"


def test_smoke_of_documents_in_rows_leaves_their_length_to_packing() -> None:
    small = smoke(load_recipe(find_recipe("quickstart"), ["pack.document_layout=best_fit"])[0])
    assert small.pretrain is not None and small.pretrain.sequence_length is None
    small = smoke(load_recipe(find_recipe("quickstart"), ["pack.import_bin=hub:someone/tokens"])[0])
    assert small.pack is not None and small.pack.import_bin is None


def test_only_documents_in_rows_bring_their_length_along() -> None:
    load_recipe(find_recipe("quickstart"), ["pretrain.sequence_length=null", "pack.document_layout=best_fit"])
    with pytest.raises(ConfigError, match=r"pretrain\.sequence_length is required"):
        load_recipe(find_recipe("quickstart"), ["pretrain.sequence_length=null"])


PHASES = "pretrain.phases=[{until_tokens: 5000, sequence_length: 8}, {until_tokens: 9000, batch_tokens: 100}, {until_tokens: 90000}]"


def test_smoke_keeps_as_many_phases_and_a_budget() -> None:
    overrides = [PHASES, "pretrain.steps=null", "sft.steps=null", "sft.budget={tokens_per_parameter: 20}"]
    overrides += ["dpo.steps=null", "dpo.phases=[{until_tokens: 10_000, batch_tokens: 1024}, {until_tokens: 900_000}]"]
    once = smoke(load_recipe(QUICKSTART, overrides)[0])
    assert once.pretrain is not None and once.sft is not None and once.dpo is not None
    assert [(one.until_tokens, one.sequence_length, one.batch_tokens) for one in once.pretrain.phases] == [
        (256, 8, 64),
        (656, None, 100),
        (4_752, None, 1_024),
    ]
    assert [(one.until_tokens, one.batch_tokens) for one in once.dpo.phases] == [(6 * 1_024, 1_024), (6 * (1_024 + 2_048), 2_048)]
    assert once.sft.budget == BudgetSettings(tokens=12 * 8 * 256)
    assert once.pretrain.steps is once.sft.steps is once.dpo.steps is None
    assert smoke(once) == once
    tight = smoke(load_recipe(QUICKSTART, ["pretrain.steps=null", "pretrain.budget={tokens: 700}"])[0])
    assert tight.pretrain is not None and tight.pretrain.budget == BudgetSettings(tokens=700)


def test_every_phase_of_documents_needs_a_row_length() -> None:
    load_recipe(QUICKSTART, [PHASES, "pretrain.steps=null"])
    with pytest.raises(ConfigError, match=r"pretrain\.sequence_length is required"):
        load_recipe(QUICKSTART, [PHASES, "pretrain.steps=null", "pretrain.sequence_length=null"])


def test_the_longest_phase_must_fit_the_context() -> None:
    longer = "pretrain.phases=[{until_tokens: 5000, sequence_length: 512}, {until_tokens: 9000}]"
    with pytest.raises(ConfigError, match=r"pretrain\.phases\.sequence_length is 512, more than the model's context"):
        load_recipe(QUICKSTART, ["pretrain.steps=null", longer])
    load_recipe(QUICKSTART, ["pretrain.steps=null", longer, "model.max_position_embeddings=512"])


@pytest.mark.parametrize("stage", ["sft", "dpo", "pretrain"])
def test_phases_of_packed_rows_have_no_length(stage: str) -> None:
    rows = ["pack.document_layout=best_fit", "pretrain.sequence_length=null"] if stage == "pretrain" else []
    load_recipe(QUICKSTART, [*rows, f"{stage}.steps=null", f"{stage}.phases=[{{until_tokens: 9000, batch_tokens: 900}}]"])
    with pytest.raises(ConfigError, match=rf"{stage}\.phases\.0\.sequence_length is 64, but {stage} reads rows as they were packed"):
        load_recipe(QUICKSTART, [*rows, f"{stage}.steps=null", f"{stage}.phases=[{{until_tokens: 9000, sequence_length: 64}}]"])


def test_every_recipe_in_the_documentation_of_training_parses(tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs" / "training.md").read_text(encoding="utf-8")
    examples = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert len(examples) >= 2
    for number, example in enumerate(examples):
        (tmp_path / f"{number}.yaml").write_text(example, encoding="utf-8")
        smoke(load_recipe(tmp_path / f"{number}.yaml", [])[0])


def test_the_options_are_those_of_the_golden_file() -> None:
    """A new option is a visible change: regenerate with `python tests/test_recipe.py`."""
    assert options() == GOLDEN.read_text(encoding="utf-8")


def options() -> str:
    """Every leaf option: its dotted name, whether it decides the result, its default and its help text."""
    lines: list[str] = []

    def walk(cls: Any, prefix: str, is_operation: bool) -> None:
        properties = properties_of(cls)
        for field in dataclasses.fields(cls):
            name = f"{prefix}.{field.name}" if prefix else field.name
            operation = is_operation or bool(field.metadata.get("operation"))
            below = [known for known in classes_in(field.type, cls) if known is not cls]
            if below:
                for known in below:
                    kind = f"<{known.__name__}>" if len(below) > 1 else ""
                    walk(known, f"{name}{kind}", operation)
            else:
                is_made = field.default_factory is not dataclasses.MISSING
                default = field.default_factory() if is_made else properties[field.name].get("default", "required")
                role = "operation" if operation else "identity"
                lines.append(f"{name} [{role}] = {default}: {help_text(cls, field.name)}")

    walk(Recipe, "", False)
    return "\n".join(lines) + "\n"


def help_text(cls: type, name: str) -> str:
    """The text below a field, in the class or in the one that it has the field from."""
    owner = next(one for one in cls.__mro__ if dataclasses.is_dataclass(one) and name in one.__annotations__)
    return str(properties_of(owner)[name].get("description", ""))


@functools.cache
def properties_of(cls: type) -> dict[str, Any]:
    schema = TypeAdapter(cls).json_schema()
    found: dict[str, Any] = schema.get("properties") or schema["$defs"][cls.__name__]["properties"]
    return found


def classes_in(annotation: Any, owner: type) -> list[type]:
    """The settings classes that a field's annotation mentions."""
    import typing

    hint = typing.get_type_hints(owner)
    resolved = next(
        value for name, value in hint.items() if next(f for f in dataclasses.fields(owner) if f.name == name).type == annotation
    )
    found: list[type] = []

    def visit(value: Any) -> None:
        if dataclasses.is_dataclass(value) and isinstance(value, type):
            found.append(value)
        for argument in typing.get_args(value):
            visit(argument)

    visit(resolved)
    return found


if __name__ == "__main__":
    GOLDEN.write_text(options(), encoding="utf-8")
