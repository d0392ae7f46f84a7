"""Recipes: those that lie in recipes/ parse, what cannot be is refused, and every option there is is known to a golden file."""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from fledge.core.errors import ConfigError
from fledge.recipe import Recipe, find_recipe, load_recipe, without_wandb
from fledge.smoke import smoke
from fledge.stages import STAGES

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))
GOLDEN = Path(__file__).parent / "golden_options.txt"
QUICKSTART = find_recipe("quickstart")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_parses(path: Path) -> None:
    recipe, _ = load_recipe(path, [])
    assert recipe.corpus is not None or (recipe.pack is not None and recipe.pack.import_bin is not None)


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


def test_only_documents_in_rows_bring_their_length_along() -> None:
    load_recipe(find_recipe("quickstart"), ["pretrain.sequence_length=null", "pack.document_layout=best_fit"])
    with pytest.raises(ConfigError, match=r"pretrain\.sequence_length is required"):
        load_recipe(find_recipe("quickstart"), ["pretrain.sequence_length=null"])


PHASES = "pretrain.phases=[{until_tokens: 5000, sequence_length: 8}, {until_tokens: 9000, batch_tokens: 100}, {until_tokens: 90000}]"


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
