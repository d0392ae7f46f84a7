"""The verbs that do something with a result: `generate`, `chat`, `merge`, `export`; `benchmarks` fetches what to measure with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from fledge.core import console
from fledge.core.errors import ConfigError
from fledge.inference.settings import GenerationSettings
from fledge.options import LogLevel, MaxTokens, Place, Reference, Seed, SmokeRun, Temperature, TopK, TopP

ExportTarget = Literal["bin"]
"""What `fledge export --to` knows; each has its function in verbs/export.py."""

GENERATION = GenerationSettings()


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


def merge(
    checkpoint: Reference,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to write; must not be there yet, or be empty.")],
    small: SmokeRun = False,
    log_level: LogLevel = "info",
) -> None:
    console.configure(log_level)
    from fledge.verbs import merge as verbs

    verbs.merge(checkpoint, folder, small)


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


def benchmarks(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Benchmarks to fetch, or all; none: list them.")] = None,
    folder: Annotated[Path | None, typer.Option("--to", metavar="FOLDER", help="Where their rows come to lie, a file for each.")] = None,
    log_level: LogLevel = "info",
) -> None:
    console.configure(log_level)
    from fledge.verbs import benchmarks as verbs

    if bool(names) != (folder is not None):
        raise ConfigError("benchmarks are fetched into a folder", "give names and --to FOLDER, or neither to list them")
    if names and folder is not None:
        verbs.fetch(names, folder)
    else:
        verbs.list_benchmarks()
