"""What `--smoke` makes of a recipe: a recipe of the same stages that takes about a minute on a CPU and needs no network. Pure functions.

Whatever decides which code runs stays: the kinds of tokenizer, model, objective, optimizer and schedule, mixtures, templates, adapters, the
number of phases. What decides how long it runs shrinks. What lies outside of the recipe is replaced, on the hub or on this disk: texts by
the documentation of Python, and files of another layout (a tokenizer, token files, rows of benchmarks) by `stand-in:NAME`, which
`fledge.stages.stand_ins` makes in the run's folder before a stage reads it by the code that reads the real ones.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fledge.core import config
from fledge.core.run_record import ConfigRow
from fledge.core.wording import counted
from fledge.corpus.filters.settings import DecontaminateSettings, QualitySettings, TurnSettings
from fledge.corpus.settings import CorpusSettings
from fledge.corpus.sources.settings import PythonDocsSource, Source
from fledge.evaluation.settings import EvaluateSettings
from fledge.model.settings import ModelSettings, RequestedPrecision
from fledge.recipe import Recipe
from fledge.tokens.settings import BudgetSplitSettings, CorpusSplitSettings, FractionSplitSettings, PackSettings, TokenizerSettings
from fledge.training.settings import BudgetSettings, PhaseSettings, TrainingSettings

SMOKE_DOCUMENTS = 600
SMOKE_TALKS = 200
"""Conversations and preferences, of which each is answered for when preferences are scored."""
SMOKE_STEPS = 12
SMOKE_ROWS = 8
SMOKE_TOKENS = 128
SMOKE_VOCABULARY = 1_024
SMOKE_PHASE_TOKENS = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192)
"""Row lengths of phases, which must share a small common multiple: theirs is 384."""
SMOKE_QUESTIONS = 12
SMOKE_SPLIT = BudgetSplitSettings(train_tokens=40_000, validation_tokens=4_000)
SMOKE_VALIDATION_FRACTION = 0.08
"""At least so much is held out, so that there are rows to measure on."""

STAND_IN = "stand-in:"
STAND_IN_TOKENS = f"{STAND_IN}tokens"
STAND_IN_BENCHMARKS = f"{STAND_IN}benchmarks"
STAND_IN_TEXT = f"{STAND_IN}benchmarks/text.txt"
SENTENCEPIECE_MODEL = "sentencepiece/tokenizer.model"
SUPERBPE_TOKENIZER = "superbpe/tokenizer.json"
BYTE_BPE_TOKENIZER = "byte_bpe/tokenizer.json"

_TOLD_APART = re.compile(r"^(sources|phases)\b")
_COUNTED = re.compile(r"_every_|(?:^|_)(rows|samples|passages|questions|pairs|answer_tokens|new_tokens)$(?<!batch_rows)")
_ON_ANY_MACHINE: Mapping[str, RequestedPrecision] = {"fp8": "fp8_or_bf16", "fp16": "auto", "tf32": "auto"}
"""Of precisions that a CPU does not have."""


def smoke(recipe: Recipe) -> Recipe:
    """The small recipe. Source names stay (a mixture names them), and so does everything whose cost does not grow with the size."""
    return replace(
        recipe,
        corpus=recipe.corpus and _small_corpus(recipe.corpus),
        tokenizer=recipe.tokenizer and _small_tokenizer(recipe.tokenizer),
        pack=recipe.pack and _small_pack(recipe.pack),
        model=_small_model(recipe.model),
        pretrain=_small_pretraining(recipe),
        sft=recipe.sft and _small_training(recipe.sft),
        dpo=recipe.dpo and _small_training(recipe.dpo),
        evaluate=recipe.evaluate and _small_evaluation(recipe.evaluate),
        generation=replace(recipe.generation, maximum_new_tokens=min(recipe.generation.maximum_new_tokens, 48)),
    )


def config_rows(recipe: Recipe, tree: config.Tree, small: bool) -> list[ConfigRow]:
    """Every value that a run takes, and where it was set; `small`: of a recipe that `smoke` shrinks."""
    written = {dotted: value for dotted, value, _ in config.leaves(Recipe, recipe, tree)}
    rows = config.leaves(Recipe, smoke(recipe) if small else recipe, tree)
    return [(dotted, value, origin if written.get(dotted) == value else "--smoke") for dotted, value, origin in rows]


# ---- what differs, for people


def difference(recipe: Recipe) -> list[str]:
    """What `smoke` changes about a recipe, a line for each section: "pretrain: steps 30,000 -> 12, batch_rows 32 -> 8".

    How often a stage looks, and on how many samples, is only counted; what a recipe does not use is left out.
    """
    before, after = config.plain(recipe), config.plain(smoke(recipe))
    lines, counted_changes = [], 0
    for section in before:
        changed = [_told_sources(recipe.corpus)] if section == "corpus" and recipe.corpus else []
        changed += _told_phases(before[section], after[section])
        for dotted, old, new in config.differences(before[section], after[section]):
            if _COUNTED.search(dotted) and None not in (old, new):
                counted_changes += 1
            elif not _TOLD_APART.search(dotted):
                changed.append(f"{dotted} {_shown(old)} -> {_shown(new)}".strip())
        if changed:
            lines.append(f"{section}: {', '.join(changed)}")
    if counted_changes:
        lines.append(f"and {counted(counted_changes, 'values')} of how often a stage looks, and on how many samples")
    return lines


def _told_sources(corpus: CorpusSettings) -> str:
    names = ", ".join(source.name for source in corpus.sources)
    return f"Python's own documentation for each of {names}, in place of its files and their form"


def _told_phases(before: Any, after: Any) -> Iterator[str]:
    """The first and the last value of what phases have of each thing."""
    if not isinstance(before, dict) or not before.get("phases"):
        return
    for name in ("until_tokens", "sequence_length", "batch_tokens"):
        old, new = ([phase[name] for phase in side["phases"]] for side in (before, after))
        if old != new:
            yield f"phases {name} {_range(old)} -> {_range(new)}"


def _range(values: Sequence[Any]) -> str:
    first, last = _shown(values[0]), _shown(values[-1])
    return first if first == last else f"{first}..{last}"


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {None: "unset", True: "true", False: "false"}[value]
    return f"{value:,}" if isinstance(value, int) else str(value)


# ---- section by section


def _small_corpus(corpus: CorpusSettings) -> CorpusSettings:
    # Rules and evaluation files are meant for the real text: Python's docstrings would fail most rules of the web.
    return replace(
        corpus,
        sources=tuple(_small_sources(corpus.sources)),
        validation_fraction=corpus.validation_fraction and max(corpus.validation_fraction, SMOKE_VALIDATION_FRACTION),
        turns=TurnSettings(),
        quality=QualitySettings(),
        decontaminate=DecontaminateSettings(),
        executor="local",
    )


def _small_sources(sources: Sequence[Source]) -> Iterator[PythonDocsSource]:
    """A part of the documentation for each, since what two sources have in common would be removed from one of them."""
    earlier = Counter[str]()
    for source in sources:
        rows = SMOKE_DOCUMENTS if source.content == "documents" else SMOKE_TALKS
        yield PythonDocsSource(
            name=source.name, content=source.content, skip_documents=rows * earlier[source.content], maximum_documents=rows
        )
        earlier[source.content] += 1


def _small_tokenizer(tokenizer: TokenizerSettings) -> TokenizerSettings:
    """A transition in tokens becomes the same share of the smaller vocabulary."""
    reserved_tokens = min(tokenizer.reserved_tokens, SMOKE_VOCABULARY)
    size = min(tokenizer.vocabulary_size, SMOKE_VOCABULARY + reserved_tokens)
    if tokenizer.kind == "import":
        return _small_import(tokenizer, size)
    transition = tokenizer.transition
    if isinstance(transition, int) and size < tokenizer.vocabulary_size:
        transition = transition / tokenizer.vocabulary_size
    return replace(tokenizer, vocabulary_size=size, reserved_tokens=reserved_tokens, transition=transition)


def _small_import(tokenizer: TokenizerSettings, size: int) -> TokenizerSettings:
    """One of the same layout."""
    if (tokenizer.path or "").startswith(STAND_IN):
        return tokenizer
    if tokenizer.preset in ("llama", "codellama") or (tokenizer.path or "").endswith(".model"):
        layout = SENTENCEPIECE_MODEL
    else:
        layout = SUPERBPE_TOKENIZER if "superbpe" in (tokenizer.path or "").lower() else BYTE_BPE_TOKENIZER
    return replace(tokenizer, preset=None, path=f"{STAND_IN}{layout}", revision="main", vocabulary_size=size)


def _small_pack(pack: PackSettings) -> PackSettings:
    return replace(
        pack,
        sequence_length=min(pack.sequence_length, 2 * SMOKE_TOKENS),
        import_bin=pack.import_bin and STAND_IN_TOKENS,
        split=_small_split(pack.split),
    )


def _small_split(
    split: CorpusSplitSettings | FractionSplitSettings | BudgetSplitSettings,
) -> CorpusSplitSettings | FractionSplitSettings | BudgetSplitSettings:
    match split:
        case BudgetSplitSettings(train_tokens=train, validation_tokens=validation):
            return BudgetSplitSettings(
                train_tokens=min(train, SMOKE_SPLIT.train_tokens), validation_tokens=min(validation, SMOKE_SPLIT.validation_tokens)
            )
        case FractionSplitSettings(validation_fraction=fraction):
            return FractionSplitSettings(validation_fraction=max(fraction, SMOKE_VALIDATION_FRACTION))
    return split


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
        max_position_embeddings=min(model.max_position_embeddings, 2 * SMOKE_TOKENS),
    )


def _small_pretraining(recipe: Recipe) -> TrainingSettings | None:
    small = recipe.pretrain and _small_training(recipe.pretrain)
    in_rows = recipe.pack is not None and recipe.pack.document_layout == "best_fit"
    # Documents in rows bring their own length, which shrinks with the rows of conversations.
    return replace(small, sequence_length=None) if small and in_rows and not small.tokens else small


def _small_training(training: TrainingSettings) -> TrainingSettings:
    """A budget stays one and phases stay as many, each a few steps long."""
    steps_per_phase = max(1, SMOKE_STEPS // max(1, len(training.phases)))
    steps = SMOKE_STEPS if training.steps is None else min(training.steps, SMOKE_STEPS)
    rows = min(training.batch_rows, SMOKE_ROWS)
    small = replace(
        training,
        steps=training.steps and steps,
        batch_rows=rows,
        sequence_length=training.sequence_length and min(training.sequence_length, SMOKE_TOKENS),
        schedule=replace(training.schedule, warmup_steps=min(training.schedule.warmup_steps, steps // 4)),
        micro_batch_rows=training.micro_batch_rows and min(training.micro_batch_rows, max(1, rows // 2)),
        device="auto",
        precision=_ON_ANY_MACHINE.get(training.precision, training.precision),
        compile="off" if training.compile == "off" else "auto",
        metrics=replace(training.metrics, wandb="off"),
        profile=None,
        log_every_steps=min(training.log_every_steps, 4),
    )
    # Packed rows bring their length, which `_small_pack` has made at most twice that of others.
    row_tokens = small.sequence_length or 2 * SMOKE_TOKENS
    tokens = SMOKE_STEPS * small.batch_rows * row_tokens
    budget = training.budget and BudgetSettings(tokens=min(training.budget.tokens or tokens, tokens))
    phases = _small_phases(training.phases, steps_per_phase, row_tokens)
    return _with_small_cadence(replace(small, budget=budget, phases=phases), steps)


def _with_small_cadence(training: TrainingSettings, steps: int) -> TrainingSettings:
    """Whatever is done now and then is done twice: in the middle and at the end."""
    validates = training.validate_every_steps or training.validate_every_tokens or training.validate_every_epochs
    asks = training.benchmark_every_steps or training.benchmark_every_tokens or training.benchmark_every_epochs
    middle = max(1, steps // 2)
    return replace(
        training,
        validate_every_steps=middle if validates else None,
        validate_every_tokens=None,
        validate_every_epochs=None,
        validation_rows=SMOKE_ROWS,
        validation_share=None,
        benchmark_samples=min(training.benchmark_samples, SMOKE_QUESTIONS),
        benchmark_every_steps=middle if asks else None,
        benchmark_every_tokens=None,
        benchmark_every_epochs=None,
        sample_every_steps=training.sample_every_steps and steps,
        save_every_steps=training.save_every_steps and middle,
        keep_every_steps=training.keep_every_steps and training.save_every_steps and middle,
    )


def _small_phases(phases: tuple[PhaseSettings, ...], steps: int, row_tokens: int) -> tuple[PhaseSettings, ...]:
    small, until_tokens = list[PhaseSettings](), 0
    lengths = _small_lengths({phase.sequence_length for phase in phases if phase.sequence_length})
    for phase in phases:
        sequence_length = phase.sequence_length and lengths[phase.sequence_length]
        batch_tokens = min(phase.batch_tokens or SMOKE_ROWS * row_tokens, SMOKE_ROWS * (sequence_length or row_tokens))
        until_tokens += steps * batch_tokens
        small.append(replace(phase, until_tokens=until_tokens, sequence_length=sequence_length, batch_tokens=batch_tokens))
    return tuple(small)


def _small_lengths(lengths: Iterable[int]) -> dict[int, int]:
    """Each length -> the one in its place: no longer, and while there are enough, another for another."""
    small, left = dict[int, int](), list(SMOKE_PHASE_TOKENS)
    for length in sorted(lengths, reverse=True):
        while len(left) > 1 and left[-1] > length:
            left.pop()
        small[length] = left.pop() if len(left) > 1 else left[0]
    return small


def _small_evaluation(evaluate: EvaluateSettings) -> EvaluateSettings:
    counts = ("last_word_passages", "yes_no_questions", "questions", "choice_questions", "preference_pairs")
    samples = evaluate.benchmark_samples
    return replace(
        evaluate,
        files=(STAND_IN_TEXT,) * bool(evaluate.files),
        benchmarks={name: _small_benchmark(place) for name, place in evaluate.benchmarks.items()},
        benchmark_samples=min(samples, SMOKE_QUESTIONS) if isinstance(samples, int) else SMOKE_QUESTIONS,
        maximum_answer_tokens=min(evaluate.maximum_answer_tokens, 48),
        **{name: min(getattr(evaluate, name), SMOKE_QUESTIONS) for name in counts},
    )


def _small_benchmark(place: str) -> str:
    """A benchmark of one's own, which its file describes, stays."""
    return place if place.endswith((".yaml", ".yml")) else STAND_IN_BENCHMARKS
