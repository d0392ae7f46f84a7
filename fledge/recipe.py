"""The root of every recipe: one section per stage.

A section that is absent is a stage that does not run. The recipe knows only settings; the stages know what to do with them.
"""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path
from typing import Any

from fledge.core import config
from fledge.core.config import settings
from fledge.core.errors import ConfigError
from fledge.corpus.settings import CorpusSettings
from fledge.evaluation.settings import EvaluateSettings
from fledge.inference.settings import GenerationSettings
from fledge.model.settings import ModelSettings
from fledge.tokens.settings import PackSettings, TokenizerSettings
from fledge.training.settings import TrainingSettings

PACKAGED = Path(__file__).parent / "recipes"
"""Where an installed Fledge carries its recipes; in a checkout they lie beside the package."""


@settings
class Recipe:
    """Everything one road needs, from raw text to a model that answers."""

    corpus: CorpusSettings | None = None
    """Where the text comes from and how it is split."""
    tokenizer: TokenizerSettings | None = None
    """The tokenizer to train; leave it out and set pack.tokenizer to use one that exists."""
    pack: PackSettings | None = None
    """How documents, conversations and preference pairs become token ids."""
    model: ModelSettings = ModelSettings()
    """The shape of the model; a stage that starts from a checkpoint takes its shape from there."""
    pretrain: TrainingSettings | None = None
    """Learning from documents."""
    sft: TrainingSettings | None = None
    """Learning to answer, from conversations."""
    dpo: TrainingSettings | None = None
    """Learning what is preferred, from pairs of answers."""
    evaluate: EvaluateSettings | None = None
    """What is measured at the end; the report shows it."""
    generation: GenerationSettings = GenerationSettings()
    """How answers are drawn: the samples that training shows, and the default of generate, chat and serve."""
    question: str | None = None
    """Asked of the finished model at the end of `fledge run`, and answered greedily."""

    def section(self, name: str) -> Any:
        """A stage's settings. Raises ConfigError if the recipe has no such section."""
        found = getattr(self, name)
        if found is None:
            raise ConfigError(f"the recipe has no section {name!r}", f"add a section `{name}:` to it, or run another stage")
        return found


def find_recipe(given: str) -> Path:
    """The file of a recipe given by path, or by the name of one that Fledge brings. Raises ConfigError for a name nobody knows.

    `recipes/NAME.yaml` is one that Fledge brings where there is no such file: outside of a checkout the same command does the same.
    """
    path, ours = Path(given), packaged_recipes()
    if not path.exists() and path.parent == Path("recipes") and path.suffix == ".yaml" and path.stem in ours:
        return ours[path.stem]
    if path.is_file() or path.suffix:
        return path
    if given in ours:
        return ours[given]
    close = difflib.get_close_matches(given, ours, n=1)
    remedy = f"did you mean {close[0]}?" if close else f"give the path of a recipe file, or one of: {', '.join(sorted(ours))}"
    raise ConfigError(f"there is no recipe {given!r}", remedy)


def packaged_recipes() -> dict[str, Path]:
    """The recipes that Fledge brings, by name."""
    return {file.stem: file for folder in _our_folders() for file in sorted(folder.glob("*.yaml"))}


def is_packaged(name: str) -> bool:
    """Whether Fledge brings a recipe of this name."""
    return name in packaged_recipes()


def find_parent(folder: Path, name: str) -> Path:
    """The file that a recipe in a folder extends: beside it, or else among those that Fledge brings, such as models/124m.yaml."""
    places = [place / name for place in (folder, *_our_folders())]
    return next((place for place in places if place.is_file()), places[0])


def _our_folders() -> tuple[Path, ...]:
    return (PACKAGED, Path(__file__).parent.parent / "recipes")


def load_recipe(path: Path, overrides: list[str]) -> tuple[Recipe, config.Tree]:
    """Read, merge and validate a recipe. Raises ConfigError."""
    tree = config.read(path, overrides, find_parent)
    recipe = config.parse(Recipe, tree)
    _check(recipe)
    return recipe, tree


def _check(recipe: Recipe) -> None:
    """What no section can see alone."""
    for stage, kind in (("pretrain", "next_token"), ("sft", "next_token"), ("dpo", "preference")):
        training = getattr(recipe, stage)
        if training is not None and training.objective.kind != kind:
            raise ConfigError(f"{stage}.objective.kind is {training.objective.kind!r}", f"{stage} learns by {kind}: set it")
        _check_benchmarks(stage, training, recipe.evaluate)
    for stage in ("sft", "dpo"):
        _check_packed_phases(stage, getattr(recipe, stage))
    if recipe.pretrain is None:
        return
    in_rows = recipe.pack is not None and recipe.pack.document_layout == "best_fit" and not recipe.pretrain.tokens
    if in_rows:
        _check_packed_phases("pretrain", recipe.pretrain)
    elif not recipe.pretrain.tokens and not recipe.pretrain.has_sequence_length:
        raise ConfigError("pretrain.sequence_length is required and missing", "set the tokens per row, like pretrain.sequence_length=1024")
    context_tokens = recipe.model.max_position_embeddings
    in_phase = recipe.pretrain.longest_sequence_length != recipe.pretrain.sequence_length
    rows = {f"pretrain.{'phases.' if in_phase else ''}sequence_length": recipe.pretrain.longest_sequence_length or 0}
    if recipe.pack is not None and (recipe.sft or recipe.dpo or in_rows):
        rows["pack.sequence_length"] = recipe.pack.sequence_length
    for name, row_tokens in rows.items():
        if row_tokens > context_tokens and recipe.pretrain.start_from is None:
            raise ConfigError(
                f"{name} is {row_tokens}, more than the model's context: model.max_position_embeddings is {context_tokens}",
                f"shorten the rows, or raise model.max_position_embeddings to {row_tokens}",
            )


def _check_packed_phases(stage: str, training: TrainingSettings | None) -> None:
    for number, phase in enumerate(training.phases if training else ()):
        if phase.sequence_length is not None:
            raise ConfigError(
                f"{stage}.phases.{number}.sequence_length is {phase.sequence_length}, but {stage} reads rows as they were packed",
                "leave it out: these phases differ in batch_tokens and mixture, and pack.sequence_length decides the length of rows",
            )


def _check_benchmarks(stage: str, training: TrainingSettings | None, evaluate: EvaluateSettings | None) -> None:
    """The rows lie where `evaluate` says, so that the corpus leaves out what quotes them."""
    for name in training.benchmarks if training else ():
        if evaluate is None or name not in evaluate.benchmarks:
            raise ConfigError(
                f"{stage}.benchmarks names {name}, but evaluate.benchmarks does not say where its rows lie",
                f"fetch them once, fledge benchmarks {name} --to FOLDER, and set evaluate.benchmarks.{name}=FOLDER",
            )


def without_wandb(recipe: Recipe) -> Recipe:
    """The same recipe with the wandb sink off everywhere."""

    def off(training: TrainingSettings | None) -> TrainingSettings | None:
        return training and replace(training, metrics=replace(training.metrics, wandb="off"))

    return replace(recipe, pretrain=off(recipe.pretrain), sft=off(recipe.sft), dpo=off(recipe.dpo))
