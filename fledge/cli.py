"""`fledge <verb> <recipe> [a.b=c ...]`: parses the line, loads the recipe, calls the stage, and turns errors into two lines.

Nothing heavy is imported before a verb is known: `fledge --help` waits for no recipe's settings, and a typo in a recipe never for torch.
"""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fledge.core import __version__, console, process
from fledge.core.errors import ConfigError, FledgeError
from fledge.inference.settings import GenerationSettings
from fledge.options import (
    STAGE_HELP,
    Force,
    Gpus,
    LogLevel,
    MaxTokens,
    Name,
    NoWandb,
    OptionalRecipe,
    Overrides,
    Place,
    Processes,
    RecipeArgument,
    RecipeOrPlace,
    Reference,
    Seed,
    Smoke,
    SmokeRun,
    Temperature,
    TopK,
    TopP,
    prepare,
    refuse_contradictions,
    refuse_ranks,
    refuse_with,
    stretch,
)
from fledge.stages import STAGES, TRAINING_STAGES, Stage, has_stage, run_stage
from fledge.stages.run import Run, set_aside
from fledge.verbs import launching

Split = Literal["train", "validation"]
ExportTarget = Literal["bin"]
"""What `fledge export --to` knows; each has its function in verbs/export.py."""

GENERATION = GenerationSettings()


def main() -> None:
    """The `fledge` command; exits with the code of the error's class (see core/errors.py)."""
    if process.is_launched():
        process.end_with_parent(os.getppid())
    _application()()


def _application() -> typer.Typer:
    app = typer.Typer(
        name="fledge",
        help="Raise small language models: from raw text to a model that answers.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # frames around help cost a quarter of a second in imports, half of `fledge --help`
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    app.command("run", help="Run the whole road of a recipe, from raw text to an answer.")(_guarded(run))
    own: dict[Stage, Callable[..., None]] = {"corpus": corpus, "tokenizer": tokenizer}
    for stage in STAGES:
        verb = own.get(stage) or (_training_verb(stage) if stage in TRAINING_STAGES else _stage_verb(stage))
        app.command(stage, help=STAGE_HELP[stage])(_guarded(verb))
    app.command("generate", help="Continue a text, or answer with --chat.")(_guarded(generate))
    app.command("chat", help="Talk with a model.")(_guarded(chat))
    app.command("export", help="Write a result in the form of other programs.")(_guarded(export))
    app.command("plan", help="Say what a run will take: time, memory, disk.")(_guarded(plan))
    app.command("config", help="Print every value of a recipe and where it comes from.")(_guarded(show_config))
    app.command("show", help="Print what a result is, its figures, and what it was made from.")(_guarded(show))
    app.command("inspect", help="Print packed tokens with their borders and loss mask.")(_guarded(inspect))
    app.command("verify", help="Hash a result and everything it was made from again.")(_guarded(verify))
    return app


def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", is_eager=True, callback=lambda asked: _show_version(asked))
    ] = False,
) -> None:
    pass


def _show_version(asked: bool) -> None:
    if asked:
        console.say(f"fledge {__version__}")
        raise typer.Exit


def _guarded(verb: Callable[..., None]) -> Callable[..., None]:
    """The same verb, with our errors as two lines and their exit code."""

    @functools.wraps(verb)
    def guarded(*arguments: Any, **options: Any) -> None:
        try:
            verb(*arguments, **options)
        except FledgeError as error:
            if not launching.report(error):
                console.error(error.problem, error.remedy)
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            if not process.is_launched():
                console.error("stopped before this stage had finished", "run the same command again: what is finished is kept")
            raise typer.Exit(128 + signal.SIGINT) from error
        except Exception as error:
            # Our own bug, whatever it is: of many launched processes one tells it, not each.
            if not launching.report(error):
                raise
            raise typer.Exit(FledgeError.exit_code) from error

    return guarded


def run(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    first: Annotated[str | None, typer.Option("--from", metavar="STAGE", help="Begin with this stage.")] = None,
    last: Annotated[str | None, typer.Option("--to", metavar="STAGE", help="End after this stage.")] = None,
    processes: Processes = None,
    gpus: Gpus = None,
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
    _run_stages(this, stages, force, launching.starter(processes, gpus, launching.passed_on(no_wandb, log_level)))
    if stages[-1] == STAGES[-1]:
        from fledge.verbs.closing import close

        close(this)


def _stage_verb(stage: Stage, start: Callable[[Stage, Run], None] = run_stage) -> Callable[..., None]:
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
        this = prepare(recipe, overrides, name, small, no_wandb)
        if stage not in TRAINING_STAGES:
            refuse_ranks(stage)
        if not has_stage(stage, this):
            raise ConfigError(f"the recipe has no stage {stage!r}", "add its section to the recipe, or run another stage")
        if not process.is_main():
            run_stage(stage, this)
            return
        _run_stages(this, (stage,), force, start)

    return verb


def _run_stages(this: Run, stages: Sequence[Stage], force: bool, start: Callable[[Stage, Run], None]) -> None:
    """Run what the recipe has of these stages, under the run's lock."""
    with process.run_lock(this.folder):
        if force:
            set_aside(this, STAGES[STAGES.index(stages[0]) :])
        for stage in stages:
            if has_stage(stage, this):
                start(stage, this)


def _training_verb(stage: Stage) -> Callable[..., None]:
    def verb(
        recipe: RecipeArgument,
        overrides: Overrides = None,
        processes: Processes = None,
        gpus: Gpus = None,
        name: Name = None,
        force: Force = False,
        small: Smoke = False,
        no_wandb: NoWandb = False,
        log_level: LogLevel = "info",
    ) -> None:
        start = launching.starter(processes, gpus, launching.passed_on(no_wandb, log_level))
        _stage_verb(stage, start)(recipe, overrides, name, force, small, no_wandb, log_level)

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


def generate(
    checkpoint: Reference,
    prompt: Annotated[list[str], typer.Option("--prompt", "-p", help="The text to continue; may be given several times.")],
    chat_format: Annotated[bool, typer.Option("--chat", help="Ask the prompt as a question in the chat format.")] = False,
    temperature: Temperature = GENERATION.temperature,
    top_k: TopK = GENERATION.top_k,
    top_p: TopP = GENERATION.top_p,
    max_tokens: MaxTokens = GENERATION.maximum_new_tokens,
    seed: Seed = GENERATION.seed,
    small: SmokeRun = False,
    log_level: LogLevel = "info",
) -> None:
    console.configure(log_level)
    from fledge.verbs import answers

    model = answers.open_model(checkpoint, small)
    answers.generate(model, prompt, chat_format, answers.generation_settings(temperature, top_k, top_p, max_tokens, seed))


def chat(
    checkpoint: Reference,
    system: Annotated[str | None, typer.Option("--system", help="An instruction before the conversation.")] = None,
    temperature: Temperature = GENERATION.temperature,
    top_k: TopK = GENERATION.top_k,
    top_p: TopP = GENERATION.top_p,
    max_tokens: MaxTokens = GENERATION.maximum_new_tokens,
    seed: Seed = GENERATION.seed,
    small: SmokeRun = False,
    log_level: LogLevel = "info",
) -> None:
    console.configure(log_level)
    from fledge.verbs import answers

    model = answers.open_model(checkpoint, small)
    answers.chat(model, system, answers.generation_settings(temperature, top_k, top_p, max_tokens, seed))


def export(
    place: Place,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to write; must not be there yet, or be empty.")],
    target: Annotated[
        ExportTarget, typer.Option("--to", help="bin: a token set of documents as train.bin, val.bin, data_meta.json and the tokenizer.")
    ],
    small: SmokeRun = False,
    log_level: LogLevel = "info",
) -> None:
    console.configure(log_level)
    from fledge.verbs.export import EXPORTS

    EXPORTS[target](place, folder, small)


def plan(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    device: Annotated[str | None, typer.Option("--device", help='Only this one of the other devices, such as "RTX 4090".')] = None,
    rate: Annotated[float | None, typer.Option("--rate", help="Price of an hour, in your currency.", min=0.0)] = None,
    json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
    name: Name = None,
    small: Smoke = False,
    log_level: LogLevel = "info",
) -> None:
    console.configure(log_level)
    this = prepare(recipe, overrides, name, small, no_wandb=True)
    refuse_ranks("plan")
    from fledge.verbs import plan as verbs

    verbs.plan(this, device, rate, json)


def show_config(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    small: Smoke = False,
    log_level: LogLevel = "info",
) -> None:
    console.configure(log_level)
    from fledge.verbs import inspection

    inspection.show_config(recipe, overrides or [], small)


def show(place: Place, small: SmokeRun = False, log_level: LogLevel = "info") -> None:
    console.configure(log_level)
    from fledge.verbs import inspection

    inspection.show(place, small)


def inspect(
    place: Place,
    split: Annotated[Split, typer.Option("--split", help="Which side of the set.")] = "train",
    row: Annotated[int | None, typer.Option("--row", help="Which row, from 0; of a continuous stream, of 256 tokens.", min=0)] = None,
    document: Annotated[str | None, typer.Option("--document", metavar="ID", help="All of one document instead.")] = None,
    small: SmokeRun = False,
    log_level: LogLevel = "info",
) -> None:
    console.configure(log_level)
    from fledge.verbs import token_rows

    token_rows.inspect(place, split, row, document, small)


def verify(place: Place, small: SmokeRun = False, log_level: LogLevel = "info") -> None:
    console.configure(log_level)
    from fledge.verbs import inspection

    inspection.verify(place, small)
