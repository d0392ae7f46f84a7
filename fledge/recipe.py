"""The root of every recipe: one section per stage, and what `--smoke` makes of it.

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
from fledge.core.run_record import ConfigRow
from fledge.corpus.filters.settings import DecontaminateSettings, QualitySettings
from fledge.corpus.settings import CorpusSettings
from fledge.corpus.sources.settings import PythonDocsSource
from fledge.evaluation.settings import EvaluateSettings
from fledge.inference.settings import GenerationSettings
from fledge.model.settings import ModelSettings
from fledge.tokens.settings import PackSettings, TokenizerSettings
from fledge.training.settings import BudgetSettings, PhaseSettings, TrainingSettings

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
    """The file of a recipe given by path, or by the name of one that Fledge brings. Raises ConfigError for a name nobody knows."""
    path = Path(given)
    if path.is_file() or path.suffix:
        return path
    ours = packaged_recipes()
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


def config_rows(recipe: Recipe, tree: config.Tree, small: bool) -> list[ConfigRow]:
    """Every value that a run takes, and where it was set; `small`: of a recipe that `smoke` shrinks."""
    written = {dotted: value for dotted, value, _ in config.leaves(Recipe, recipe, tree)}
    rows = config.leaves(Recipe, smoke(recipe) if small else recipe, tree)
    return [(dotted, value, origin if written.get(dotted) == value else "--smoke") for dotted, value, origin in rows]


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


SMOKE_DOCUMENTS = 600
SMOKE_STEPS = 12
SMOKE_ROWS = 8
SMOKE_TOKENS = 128
SMOKE_VOCABULARY = 1_024
SMOKE_QUESTIONS = 12


def smoke(recipe: Recipe) -> Recipe:
    """A recipe of the same stages that takes about a minute on a CPU: embedded text, small vocabulary, short rows, few steps.

    Source names stay (a mixture names them), and so does everything whose cost does not grow with the size.
    """
    return replace(
        recipe,
        corpus=recipe.corpus and _small_corpus(recipe.corpus),
        tokenizer=_small_tokenizer(recipe.tokenizer),
        pack=recipe.pack and _small_pack(recipe.pack, has_corpus=recipe.corpus is not None),
        model=_small_model(recipe.model),
        pretrain=_small_pretraining(recipe),
        sft=_small_training(recipe.sft),
        dpo=_small_training(recipe.dpo),
        evaluate=recipe.evaluate and _small_evaluation(recipe.evaluate),
        generation=replace(recipe.generation, maximum_new_tokens=min(recipe.generation.maximum_new_tokens, 48)),
    )


def _small_corpus(corpus: CorpusSettings) -> CorpusSettings:
    sources = tuple(
        PythonDocsSource(name=source.name, content=source.content, maximum_documents=SMOKE_DOCUMENTS) for source in corpus.sources
    )
    # Rules and evaluation files are meant for the real text: Python's docstrings would fail most rules of the web.
    return replace(corpus, sources=sources, quality=QualitySettings(), decontaminate=DecontaminateSettings(), executor="local")


def _small_tokenizer(tokenizer: TokenizerSettings | None) -> TokenizerSettings | None:
    """An imported one stays as it is; a transition in tokens becomes the same share of the smaller vocabulary."""
    if tokenizer is None or tokenizer.kind == "import":
        return tokenizer
    size = min(tokenizer.vocabulary_size, SMOKE_VOCABULARY + tokenizer.reserved_tokens)
    transition = tokenizer.transition
    if isinstance(transition, int) and size < tokenizer.vocabulary_size:
        transition = transition / tokenizer.vocabulary_size
    return replace(tokenizer, vocabulary_size=size, transition=transition)


def _small_model(model: ModelSettings) -> ModelSettings:
    """Two layers of width 128; heads keep their grouping."""
    grouped = model.key_value_heads < model.num_attention_heads
    return replace(
        model,
        hidden_size=128,
        num_hidden_layers=min(model.num_hidden_layers, 2),
        num_attention_heads=4,
        num_key_value_heads=2 if grouped else None,
        head_dim=None,
        intermediate_size=256,
    )


def _small_pack(pack: PackSettings, has_corpus: bool) -> PackSettings:
    """Token files of others are of another tokenizer than a small one, so the small corpus stands in for them if there is one."""
    import_bin = None if has_corpus else pack.import_bin
    return replace(pack, sequence_length=min(pack.sequence_length, 2 * SMOKE_TOKENS), import_bin=import_bin)


def _small_pretraining(recipe: Recipe) -> TrainingSettings | None:
    small = _small_training(recipe.pretrain)
    in_rows = recipe.pack is not None and recipe.pack.document_layout == "best_fit"
    # Documents in rows bring their own length, which shrinks with the rows of conversations.
    return replace(small, sequence_length=None) if small and in_rows and not small.tokens else small


def _small_training(training: TrainingSettings | None) -> TrainingSettings | None:
    """A budget stays one and phases stay as many, each a few steps long."""
    if training is None:
        return None
    steps_per_phase = max(1, SMOKE_STEPS // max(1, len(training.phases)))
    steps = SMOKE_STEPS if training.steps is None else min(training.steps, SMOKE_STEPS)
    validates = training.validate_every_steps or training.validate_every_tokens or training.validate_every_epochs
    small = replace(
        training,
        steps=training.steps and steps,
        batch_rows=min(training.batch_rows, SMOKE_ROWS),
        sequence_length=training.sequence_length and min(training.sequence_length, SMOKE_TOKENS),
        schedule=replace(training.schedule, warmup_steps=min(training.schedule.warmup_steps, steps // 4)),
        micro_batch_rows=None,
        log_every_steps=min(training.log_every_steps, 4),
        validate_every_steps=steps // 2 if validates else None,
        validate_every_tokens=None,
        validate_every_epochs=None,
        validation_rows=SMOKE_ROWS,
        validation_share=None,
        benchmarks=(),
        benchmark_every_steps=None,
        benchmark_every_tokens=None,
        benchmark_every_epochs=None,
        sample_every_steps=training.sample_every_steps and steps,
        save_every_steps=training.save_every_steps and steps // 2,
        keep_every_steps=None,
    )
    # Packed rows bring their length, which `_small_pack` has made at most twice that of others.
    row_tokens = small.sequence_length or 2 * SMOKE_TOKENS
    tokens = SMOKE_STEPS * small.batch_rows * row_tokens
    budget = training.budget and BudgetSettings(tokens=min(training.budget.tokens or tokens, tokens))
    return replace(small, budget=budget, phases=_small_phases(training.phases, steps_per_phase, row_tokens))


def _small_phases(phases: tuple[PhaseSettings, ...], steps: int, row_tokens: int) -> tuple[PhaseSettings, ...]:
    small, until_tokens = list[PhaseSettings](), 0
    for phase in phases:
        sequence_length = phase.sequence_length and min(phase.sequence_length, SMOKE_TOKENS)
        batch_tokens = min(phase.batch_tokens or SMOKE_ROWS * row_tokens, SMOKE_ROWS * (sequence_length or row_tokens))
        until_tokens += steps * batch_tokens
        small.append(replace(phase, until_tokens=until_tokens, sequence_length=sequence_length, batch_tokens=batch_tokens))
    return tuple(small)


def _small_evaluation(evaluate: EvaluateSettings) -> EvaluateSettings:
    counts = ("last_word_passages", "yes_no_questions", "questions", "choice_questions", "preference_pairs")
    # A perplexity is measured on all of its texts, which is more than a minute allows.
    return replace(evaluate, benchmarks={}, **{name: min(getattr(evaluate, name), SMOKE_QUESTIONS) for name in counts})
