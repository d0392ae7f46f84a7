"""Verbs about a result, from `generate` to `pull`; `benchmarks` fetches what to measure with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from fledge.core import console
from fledge.core.config import parse
from fledge.core.errors import ConfigError
from fledge.inference.settings import EngineSettings
from fledge.options import (
    NOTHING_GIVEN,
    Device,
    LogLevel,
    Place,
    Reference,
    Repository,
    Sampling,
    SmokeRun,
    WeightsKept,
    typed,
    with_sampling,
)
from fledge.publish.settings import WeightType
from fledge.serving.settings import ServerSettings
from fledge.stages.run import smoke_name
from fledge.tokens.settings import TemplateName

ExportTarget = Literal["hf", "gguf", "ollama", "bin"]
"""What `fledge export --to` knows."""

Kind = Literal["model", "dataset"]

ENGINE = EngineSettings()
SERVER = ServerSettings()


@with_sampling
def generate(
    checkpoint: Reference,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="The text to continue; may be given several times.")] = None,
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="Prompts from a file: a line each; or .jsonl with `prompt` or `messages`."),
    ] = None,
    target: Annotated[
        Path | None, typer.Option("--to", metavar="FILE", help="Write the texts as JSON Lines into a file that is not there yet.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the texts as JSON Lines.")] = False,
    chat_format: Annotated[bool, typer.Option("--chat", help="Ask the prompt as a question in the chat format.")] = False,
    samples: Annotated[int, typer.Option("--n", help="So many texts for each prompt.", min=1)] = 1,
    sampling: Sampling = NOTHING_GIVEN,
    weights: WeightsKept = ENGINE.weights,
    device: Device = "auto",
    small: SmokeRun = False,
    log_level: LogLevel = "info",
) -> None:
    console.configure(log_level)
    from fledge.verbs.chatting import generating, speakers

    prompts = generating.prompts_of(prompt or [], source, chat_format)
    generating.require_free(target)
    speaker = speakers.open_speaker(smoke_name(checkpoint) if small else checkpoint, EngineSettings(slots=1, weights=weights), device)
    settings = speakers.adjusted(speaker.generation, sampling.given)
    generating.generate(speaker, prompts, settings, samples, sampling.stop, generating.Output(target, as_json))


@with_sampling
def chat(
    checkpoints: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A checkpoint folder, or RUN, RUN@latest, RUN@best, RUN@final, RUN@500. None: a table to choose from.",
        ),
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Every one of several checkpoints answers, side by side.")] = False,
    system: Annotated[str | None, typer.Option("--system", help="An instruction before the conversation.")] = None,
    sampling: Sampling = NOTHING_GIVEN,
    weights: WeightsKept = ENGINE.weights,
    device: Device = "auto",
    small: SmokeRun = False,
    log_level: LogLevel = "info",
) -> None:
    console.configure(log_level)
    if compare != (len(checkpoints or ()) > 1):
        raise ConfigError(
            f"--compare wants several checkpoints, and several want it; given: {len(checkpoints or ())}", "fledge chat --compare A B"
        )
    from fledge.verbs.chatting import loop, picking, speakers, terminal

    named = [smoke_name(one) if small else one for one in checkpoints or ()]
    if not compare:
        named = [picking.pick_checkpoint(named[0] if named else None, terminal.line_reader())]
    engine = EngineSettings(slots=1, weights=weights)
    loop.chat([speakers.open_speaker(one, engine, device) for one in named], system, sampling.given, sampling.stop)


def serve(
    checkpoints: Annotated[
        list[str], typer.Argument(metavar="CHECKPOINT...", help="Checkpoint folders, or RUN, RUN@latest, RUN@best, RUN@final, RUN@500.")
    ],
    model_name: Annotated[
        list[str] | None, typer.Option("--model-name", help="What clients call it; once for each checkpoint. Default: as it is given here.")
    ] = None,
    host: Annotated[str, typer.Option("--host", help="The address to listen on.")] = SERVER.host,
    port: Annotated[int, typer.Option("--port", help="The port to listen on; 0 takes a free one.", min=0, max=65535)] = SERVER.port,
    insecure: Annotated[bool, typer.Option("--insecure", help="Listen for other machines without FLEDGE_API_KEY.")] = False,
    allowed_host: Annotated[
        list[str] | None, typer.Option("--allowed-host", help="A name by which the server is reached, besides --host and localhost.")
    ] = None,
    cors_origin: Annotated[
        list[str] | None, typer.Option("--cors-origin", help="An origin, like https://example.org, whose pages may ask.")
    ] = None,
    slots: Annotated[int, typer.Option("--slots", help="Answers computed at once.", min=1)] = ENGINE.slots,
    context: Annotated[int | None, typer.Option("--context", help="Longest prompt and answer together, in tokens.", min=2)] = None,
    weights: WeightsKept = ENGINE.weights,
    device: Device = "auto",
    drain_seconds: Annotated[float, typer.Option("--drain-seconds", help="After a signal, time for answers.")] = SERVER.drain_seconds,
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Write prompts and answers into the log.")] = False,
    allow_control_ids: Annotated[bool, typer.Option("--allow-control-ids", help="Take control tokens in prompts of token ids.")] = False,
    small: SmokeRun = False,
    log_level: LogLevel = "info",
) -> None:
    console.configure(log_level)
    given = {
        "host": host,
        "port": port,
        "insecure": insecure,
        "allowed_hosts": allowed_host or [],
        "cors_origins": cors_origin or [],
        "drain_seconds": drain_seconds,
        "log_prompts": log_prompts,
        "allow_control_ids": allow_control_ids,
    }
    server = parse(ServerSettings, typed(given))
    from fledge.verbs import serving

    engine = EngineSettings(slots=slots, context_tokens=context, weights=weights)
    serving.serve(checkpoints, model_name or [], small, server, engine, device)


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
        ExportTarget,
        typer.Option(
            "--to",
            help="hf: a Hugging Face folder (transformers, vLLM); gguf: a file for llama.cpp; ollama: the same with a Modelfile; "
            "bin: a token set of documents as train.bin, val.bin, data_meta.json and the tokenizer.",
        ),
    ],
    weight_type: Annotated[
        WeightType | None, typer.Option("--dtype", help="How weights are stored. Default: hf f32, gguf and ollama f16; q8_0 in GGUF only.")
    ] = None,
    small: SmokeRun = False,
    log_level: LogLevel = "info",
) -> None:
    console.configure(log_level)
    from fledge.verbs import export as verbs

    verbs.export(place, folder, target, weight_type, small)


def import_model(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A Hugging Face folder, OWNER/NAME on the hub, or a .pt file with a state dict.")
    ],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to write; must not be there yet, or be empty.")],
    template: Annotated[
        TemplateName | None,
        typer.Option("--template", help="How conversations are written. Default: chatml if the tokenizer has its tokens, else instruct."),
    ] = None,
    revision: Annotated[str, typer.Option("--revision", help="Branch, tag or commit on the hub.")] = "main",
    config: Annotated[Path | None, typer.Option("--config", help="Of a .pt file: JSON with what its tensors do not tell.")] = None,
    tokenizer: Annotated[Path | None, typer.Option("--tokenizer", help="Folder or file of the tokenizer, if it lies elsewhere.")] = None,
    log_level: LogLevel = "info",
) -> None:
    console.configure(log_level)
    from fledge.verbs import importing

    importing.bring_in(source, folder, template, revision, config, tokenizer)


def push(
    place: Place,
    repository: Repository,
    kind: Annotated[Kind | None, typer.Option("--kind", help="What it is on the hub; default: a corpus or tokens a dataset.")] = None,
    public: Annotated[bool, typer.Option("--public", help="For all to see; of a repository that is made by this.")] = False,
    revision: Annotated[str, typer.Option("--revision", help="The branch; made if it is not there.")] = "main",
    watch: Annotated[bool, typer.Option("--watch", help="PLACE is a run: send what it makes while it trains, until it is over.")] = False,
    keep: Annotated[int | None, typer.Option("--keep", help="With --watch: newest checkpoints of a stage on the hub (2).", min=1)] = None,
    small: SmokeRun = False,
    log_level: LogLevel = "info",
) -> None:
    console.configure(log_level)
    if keep is not None and not watch:
        raise ConfigError("--keep means nothing without --watch", "give both, or neither")
    if kind == "dataset" and watch:
        raise ConfigError("a run is kept as a model, so --kind dataset cannot be had with --watch", "leave out --kind")
    from fledge.verbs import hub

    if watch:
        hub.push_while_training(place, repository, public, revision, keep or 2, small)
    else:
        hub.push(place, repository, kind, public, revision, small)


def pull(
    repository: Repository,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to write; must not be there yet, or be empty.")],
    kind: Annotated[Kind | None, typer.Option("--kind", help="Which of the two; default: a model, or else a dataset of that name.")] = None,
    revision: Annotated[str, typer.Option("--revision", help="A branch, a tag or a commit.")] = "main",
    log_level: LogLevel = "info",
) -> None:
    console.configure(log_level)
    from fledge.verbs import hub

    hub.pull(repository, folder, kind, revision)


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
