"""The verbs that look and change nothing: `plan`, `doctor`, `config`, `show`, `inspect`, `which`, `verify`.

And `board`, which looks too, and starts and stops runs for whoever asks on its page.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated, Literal

import typer

from fledge.core import console
from fledge.core.config import parse
from fledge.options import (
    LogLevel,
    Name,
    NoWandb,
    OptionalRecipe,
    Overrides,
    Place,
    RecipeArgument,
    Smoke,
    SmokeRun,
    prepare,
    read_run,
    refuse_ranks,
    typed,
)
from fledge.serving.settings import ServerSettings
from fledge.stages.run import RUNS

SERVER = ServerSettings()

Split = Literal["train", "validation"]
TrainedStage = Literal["pretrain", "sft", "dpo"]


def plan(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    device: Annotated[str | None, typer.Option("--device", help='Only this one of the other devices, such as "RTX 4090".')] = None,
    rate: Annotated[
        float | None, typer.Option("--price-per-hour", help="Of one device, in your currency; unset: dollars of a price list.", min=0.0)
    ] = None,
    elsewhere: Annotated[bool, typer.Option("--elsewhere", help="Leave this machine out: nothing is measured.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
    name: Name = None,
    small: Smoke = False,
    log_level: LogLevel = "info",
) -> None:
    console.configure(log_level)
    this = prepare(recipe, overrides, name, small, no_wandb=True)
    refuse_ranks("plan")
    from fledge.verbs import plan as verbs

    verbs.plan(this, device, rate, json, elsewhere)


def doctor(
    recipe: OptionalRecipe = None,
    overrides: Overrides = None,
    online: Annotated[bool, typer.Option("--online", help="Ask the hub too, and look at what lies elsewhere.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Try nothing: neither the compiler nor products of each precision.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print all findings as JSON.")] = False,
    name: Name = None,
    small: Smoke = False,
    no_wandb: NoWandb = False,
    log_level: LogLevel = "info",
) -> None:
    console.configure(log_level)
    refuse_ranks("doctor")
    from fledge.verbs.doctor import doctor as verbs

    prepared = None if recipe is None else functools.partial(read_run, recipe, overrides, name, small, no_wandb)
    verbs.doctor(prepared, verbs.Asked(online, quick, json))


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
    stage: Annotated[TrainedStage | None, typer.Option("--stage", help="Only what this stage trains on; PLACE may be a recipe.")] = None,
    split: Annotated[Split, typer.Option("--split", help="Which side of the set.")] = "train",
    row: Annotated[int | None, typer.Option("--row", help="Which row, from 0; of a continuous stream, of 256 tokens.", min=0)] = None,
    document: Annotated[str | None, typer.Option("--document", metavar="ID", help="All of one document instead.")] = None,
    small: SmokeRun = False,
    log_level: LogLevel = "info",
) -> None:
    console.configure(log_level)
    from fledge.verbs import token_rows

    token_rows.inspect(place, stage, split, row, document, small)


def which(
    place: Place,
    stage: Annotated[TrainedStage | None, typer.Option("--stage", help="Of this stage; default: the last one with a checkpoint.")] = None,
    step: Annotated[int | None, typer.Option("--step", help="List the documents of this step.", min=1)] = None,
    text: Annotated[str | None, typer.Option("--text", help="Say at which steps documents with this text are seen.")] = None,
    small: SmokeRun = False,
    log_level: LogLevel = "info",
) -> None:
    console.configure(log_level)
    from fledge.verbs import which as verbs

    verbs.which(place, stage, step, text, small)


def verify(place: Place, small: SmokeRun = False, log_level: LogLevel = "info") -> None:
    console.configure(log_level)
    from fledge.verbs import inspection

    inspection.verify(place, small)


def board(
    folder: Annotated[Path, typer.Argument(metavar="[RUNS]", help="The folder of runs.")] = RUNS,
    host: Annotated[str, typer.Option("--host", help="The address to listen on; runs start from this machine's own only.")] = SERVER.host,
    port: Annotated[int, typer.Option("--port", help="The port to listen on; 0 takes a free one.", min=0, max=65_535)] = 8001,
    allowed_host: Annotated[
        list[str] | None, typer.Option("--allowed-host", help="A name by which the board is reached, besides --host and localhost.")
    ] = None,
    log_level: LogLevel = "info",
) -> None:
    console.configure(log_level)
    refuse_ranks("board")
    from fledge.verbs import board as verbs

    verbs.board(folder, parse(ServerSettings, typed({"host": host, "port": port, "allowed_hosts": allowed_host or []})))
