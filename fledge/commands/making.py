"""The verbs that make something: `run`, one for each stage, and `prove-resume`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from fledge.core import console, process
from fledge.core.errors import ConfigError
from fledge.core.run_record import recorded
from fledge.model.settings import DeviceName
from fledge.options import (
    Force,
    Gpus,
    LogLevel,
    Name,
    NoWandb,
    OptionalRecipe,
    Overrides,
    Processes,
    RecipeArgument,
    RecipeOrPlace,
    Resume,
    Smoke,
    names_recipe,
    prepare,
    refuse_contradictions,
    refuse_ranks,
    refuse_with,
    stretch,
)
from fledge.stages import STAGES, TRAINING_STAGES, Stage, has_stage, run_stage
from fledge.stages.run import Run, set_aside
from fledge.verbs import launching

TrainingStage = Literal["pretrain", "sft", "dpo"]


def run(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    first: Annotated[str | None, typer.Option("--from", metavar="STAGE", help="Begin with this stage.")] = None,
    last: Annotated[str | None, typer.Option("--to", metavar="STAGE", help="End after this stage.")] = None,
    processes: Processes = None,
    gpus: Gpus = None,
    resume: Resume = None,
    name: Name = None,
    force: Force = False,
    small: Smoke = False,
    no_wandb: NoWandb = False,
    log_level: LogLevel = "info",
) -> None:
    console.configure(log_level)
    stages = stretch(first, last)
    this = prepare(recipe, overrides, name, small, no_wandb)
    refuse_ranks("run")
    _require_resumable(resume, force)
    if not any(has_stage(stage, this) for stage in stages):
        raise ConfigError(f"the recipe has none of the stages {', '.join(stages)}", "add their sections to the recipe, or run other stages")
    _run_stages(this, stages, force, launching.starter(processes, gpus, launching.passed_on(no_wandb, log_level)), resume)
    if stages[-1] == STAGES[-1]:
        from fledge.verbs.closing import close

        close(this)


def _stage_verb(
    stage: Stage, start: Callable[[Stage, Run], None] = run_stage, resume: str | None = None, compared: Sequence[str] = ()
) -> Callable[..., None]:
    def verb(
        recipe: RecipeArgument,
        overrides: Overrides = None,
        name: Name = None,
        force: Force = False,
        small: Smoke = False,
        no_wandb: NoWandb = False,
        log_level: LogLevel = "info",
    ) -> None:
        console.configure(log_level)
        this = replace(prepare(recipe, overrides, name, small, no_wandb), compared=tuple(compared))
        if stage not in TRAINING_STAGES:
            refuse_ranks(stage)
        if not has_stage(stage, this):
            raise ConfigError(f"the recipe has no stage {stage!r}", "add its section to the recipe, or run another stage")
        if not process.is_main():
            run_stage(stage, _resuming(this, (stage,), resume)[1])
            return
        _run_stages(this, (stage,), force, start, resume)

    return verb


def _run_stages(this: Run, stages: Sequence[Stage], force: bool, start: Callable[[Stage, Run], None], resume: str | None = None) -> None:
    """Run what the recipe has of these stages, under the run's lock; `resume` names a checkpoint of one of them."""
    asked = [stage for stage in stages if has_stage(stage, this)]
    with process.run_lock(this.folder), recorded(this.folder, this.command, asked, this.config):
        if force:
            set_aside(this, STAGES[STAGES.index(stages[0]) :])
        resumed, continued = _resuming(this, stages, resume)
        for stage in asked:
            start(stage, continued if stage == resumed else this)


def _resuming(this: Run, stages: Sequence[Stage], resume: str | None) -> tuple[Stage | None, Run]:
    """Known before the first stage starts, so that a wrong name costs no work."""
    if resume is None:
        return None, this
    from fledge.stages.resumption import resuming

    return resuming(this, stages, resume)


def _require_resumable(resume: str | None, force: bool) -> None:
    if resume is not None and force:
        raise ConfigError("--resume continues what --force would move away", "give one of them")


def _training_verb(stage: Stage) -> Callable[..., None]:
    def verb(
        recipe: RecipeArgument,
        overrides: Overrides = None,
        processes: Processes = None,
        gpus: Gpus = None,
        resume: Resume = None,
        name: Name = None,
        force: Force = False,
        small: Smoke = False,
        no_wandb: NoWandb = False,
        log_level: LogLevel = "info",
    ) -> None:
        _require_resumable(resume, force)
        start = launching.starter(processes, gpus, launching.passed_on(no_wandb, log_level))
        _stage_verb(stage, start, resume)(recipe, overrides, name, force, small, no_wandb, log_level)

    return verb


def corpus(
    recipe: OptionalRecipe = None,
    overrides: Overrides = None,
    listing: Annotated[bool, typer.Option("--list", help="Show the datasets known by name, and what of them is downloaded.")] = False,
    analyze_only: Annotated[bool, typer.Option("--analyze-only", help="Write the data card of the documents and nothing else.")] = False,
    download_only: Annotated[bool, typer.Option("--download-only", help="Write the raw rows of the sources as JSON Lines chunks.")] = False,
    test: Annotated[bool, typer.Option("--test", help="With --download-only: two chunks of each source.")] = False,
    chunk_documents: Annotated[
        int | None, typer.Option("--chunk-documents", help="With --download-only: rows in a chunk (100,000).", min=1)
    ] = None,
    workers: Annotated[int | None, typer.Option("--workers", help="Processes; with --download-only, readers (8).", min=1)] = None,
    rank: Annotated[int, typer.Option("--rank", help="Which of --world processes this is, from 0.", min=0)] = 0,
    world: Annotated[int, typer.Option("--world", help="Processes that share the work, each started by itself.", min=1)] = 1,
    name: Name = None,
    force: Force = False,
    small: Smoke = False,
    log_level: LogLevel = "info",
) -> None:
    console.configure(log_level)
    refuse_contradictions({"--list": listing, "--analyze-only": analyze_only, "--download-only": download_only}, test, rank, world)
    if chunk_documents is not None and not download_only:
        raise ConfigError("--chunk-documents means nothing without --download-only", "give both, or neither")
    if force and (analyze_only or download_only or listing):
        raise ConfigError("--force makes a corpus anew, and none is made here", "leave it out")
    if listing:
        from fledge.verbs import corpus as verbs

        verbs.list_presets(recipe, overrides or [])
        return
    if recipe is None:
        raise ConfigError("no recipe is given", "name one, or look with: fledge corpus --list")
    if workers is not None and not download_only:
        overrides = [*(overrides or []), f"corpus.workers={workers}"]
    this = prepare(recipe, overrides, name, small, no_wandb=False)
    refuse_ranks("corpus")
    if not has_stage("corpus", this):
        raise ConfigError("the recipe has no stage 'corpus'", "add its section to the recipe, or run another stage")
    from fledge.verbs import corpus as verbs

    if rank != 0:
        verbs.make(this, rank, world)
        return
    with process.run_lock(this.folder):
        if download_only:
            verbs.download(this, workers, chunk_documents, test)
        elif analyze_only:
            verbs.analyze(this)
        else:
            if force:
                set_aside(this, STAGES)
            verbs.make(this, rank, world)


def tokenizer(
    recipe: RecipeOrPlace = None,
    overrides: Overrides = None,
    compare: Annotated[bool, typer.Option("--compare", help="Measure the tokenizers at PLACE PLACE ... on one text.")] = False,
    text: Annotated[list[str] | None, typer.Option("--text", help="With --compare: a file of text, JSON Lines or Parquet.")] = None,
    json: Annotated[Path | None, typer.Option("--json", help="With --compare: write the figures.")] = None,
    picture: Annotated[Path | None, typer.Option("--picture", help="With --compare: write an HTML page.")] = None,
    encode: Annotated[str | None, typer.Option("--encode", metavar="TEXT", help="Print the ids of a text.")] = None,
    decode: Annotated[str | None, typer.Option("--decode", metavar="1,2,3", help="Print the text of ids.")] = None,
    encode_file: Annotated[Path | None, typer.Option("--encode-file", help="A text on each line (of .jsonl: a string).")] = None,
    decode_file: Annotated[Path | None, typer.Option("--decode-file", help="A JSON list of ids on each line.")] = None,
    output: Annotated[Path | None, typer.Option("--output", help="Where --encode-file or --decode-file write JSON Lines.")] = None,
    name: Name = None,
    force: Force = False,
    small: Smoke = False,
    no_wandb: NoWandb = False,
    log_level: LogLevel = "info",
) -> None:
    console.configure(log_level)
    if any(given not in (None, False, []) for given in (compare, encode, decode, encode_file, decode_file, text, json, picture, output)):
        from fledge.verbs import tokenizers as verbs

        use = verbs.Use(compare, encode, decode, encode_file, decode_file, tuple(text or ()), json, picture, output)
        refuse_with(str(use.asked), {"--name": name is not None, "--force": force, "--no-wandb": no_wandb})
        verbs.use_tokenizers(use, [*([recipe] if recipe else []), *(overrides or [])], small)
        return
    if recipe is None:
        raise ConfigError("no recipe is given", "name one to train by, or a tokenizer with --compare, --encode or --decode")
    _stage_verb("tokenizer")(recipe, overrides, name, force, small, no_wandb, log_level)


def evaluate(
    places: Annotated[
        list[str], typer.Argument(metavar="RECIPE|MODEL [A.B=C|MODEL]...", help="A recipe; or checkpoints and model folders to compare.")
    ],
    file: Annotated[list[str] | None, typer.Option("--file", help="Of models: a text file to measure bits per byte on.")] = None,
    benchmarks: Annotated[
        list[str] | None, typer.Option("--benchmarks", metavar="NAME=FILE", help="Of models: rows of a benchmark, or a folder of them.")
    ] = None,
    harness: Annotated[list[str] | None, typer.Option("--harness", metavar="TASK[=FILE]", help="Of models: a task of lm-eval.")] = None,
    samples: Annotated[
        str | None, typer.Option("--samples", help="Of models: rows of a benchmark: quick, standard, comprehensive, all (default) or N.")
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="Of models: a text that each answers.")] = None,
    prompts: Annotated[Path | None, typer.Option("--prompts", help="Of models: a file with a prompt on each line.")] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", help="Of models: cut an answer off there (64).", min=1)] = None,
    window_tokens: Annotated[int | None, typer.Option("--window-tokens", help="Of models: context; default each one's own.", min=1)] = None,
    stride_tokens: Annotated[int | None, typer.Option("--stride-tokens", help="Of models: windows overlap but for these.", min=1)] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of models: decides which rows are drawn (0).")] = None,
    device: Annotated[DeviceName | None, typer.Option("--device", help="Of models: where they are computed (auto).")] = None,
    folder: Annotated[Path | None, typer.Option("--to", metavar="FOLDER", help="Of models: keep tables, page and items there.")] = None,
    name: Name = None,
    force: Force = False,
    small: Smoke = False,
    no_wandb: NoWandb = False,
    log_level: LogLevel = "info",
) -> None:
    first, *others = places
    options = (file, benchmarks, harness, samples, prompt, prompts, max_tokens, window_tokens, stride_tokens, seed, device, folder)
    if all(option in (None, []) for option in options) and names_recipe(first, others):
        _stage_verb("evaluate")(first, others, name, force, small, no_wandb, log_level)
        return
    console.configure(log_level)
    refuse_with("models to compare", {"--name": name is not None, "--force": force, "--no-wandb": no_wandb})
    refuse_ranks("evaluate")
    from fledge.verbs import comparison as verbs

    use = verbs.Use(
        files=tuple(file or ()),
        benchmarks=tuple(benchmarks or ()),
        harness=tuple(harness or ()),
        prompts=tuple(prompt or ()),
        prompt_file=prompts,
        samples=samples or "all",
        maximum_new_tokens=max_tokens or 64,
        context_tokens=window_tokens,
        stride_tokens=stride_tokens,
        seed=seed or 0,
        device=device or "auto",
        folder=folder,
    )
    verbs.compare(places, use, small)


def report(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    compare: Annotated[list[str] | None, typer.Option("--compare", metavar="RUN", help="Show this run beside it.")] = None,
    name: Name = None,
    force: Force = False,
    small: Smoke = False,
    no_wandb: NoWandb = False,
    log_level: LogLevel = "info",
) -> None:
    _stage_verb("report", compared=compare or ())(recipe, overrides, name, force, small, no_wandb, log_level)


def prove_resume(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    stage: Annotated[TrainingStage | None, typer.Option("--stage", help="Default: the first that trains.")] = None,
    steps: Annotated[int, typer.Option("--steps", help="Optimizer steps of the trial.", min=4)] = 24,
    kills: Annotated[int, typer.Option("--kills", help="How often the training is killed.", min=1)] = 5,
    seed: Annotated[int, typer.Option("--seed", help="Decides when.")] = 0,
    processes: Annotated[int, typer.Option("--processes", min=1, help="Every other start trains in so many processes.")] = 1,
    name: Name = None,
    small: Smoke = False,
    log_level: LogLevel = "warning",
) -> None:
    console.configure(log_level)
    refuse_ranks("prove-resume")
    this = prepare(recipe, overrides, name, small, no_wandb=True)
    from fledge.verbs import proving

    proved = proving.stage_to_prove(this, stage)
    _run_stages(this, STAGES[: STAGES.index(proved)], False, run_stage)
    changes = [*(overrides or []), *proving.shortened(this, proved, steps, processes)]
    settings = prepare(recipe, changes, name, small, no_wandb=True).recipe.section(proved)
    trial = proving.Trial(proved, settings.steps, kills, seed, processes, settings.determinism == "elastic")
    proving.prove(this, trial, [recipe, *changes, *(["--smoke"] if small else [])])


def stage_verb(stage: Stage) -> Callable[..., None]:
    """The verb of a stage."""
    own: dict[Stage, Callable[..., None]] = {"corpus": corpus, "tokenizer": tokenizer, "evaluate": evaluate, "report": report}
    return own.get(stage) or (_training_verb(stage) if stage in TRAINING_STAGES else _stage_verb(stage))
