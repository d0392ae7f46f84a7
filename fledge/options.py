"""The arguments and options that several verbs of the command line share, which of them cannot go together, and the run they mean."""

from __future__ import annotations

import functools
import inspect
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from fledge.core import console, process
from fledge.core.config import Tree, parse
from fledge.core.errors import ConfigError
from fledge.core.metrics import require_sinks
from fledge.core.wording import without_secrets
from fledge.inference.settings import GenerationSettings, Weights
from fledge.model.settings import DeviceName
from fledge.stages import STAGES, TRAINING_STAGES, Stage, has_stage
from fledge.stages.run import RUNS, Run, run_folder, smoke_name

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe file (.yaml or .json), or the name of one that Fledge brings.")
]
OptionalRecipe = Annotated[
    str | None, typer.Argument(metavar="RECIPE", help="A recipe file (.yaml or .json), or the name of one that Fledge brings.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[A.B=C]...", help="Values that replace the recipe's, like pretrain.steps=100.")
]
Name = Annotated[str | None, typer.Option("--name", help="Results lie in runs/NAME; a path is used as it is. Default: the recipe's name.")]
Force = Annotated[bool, typer.Option("--force", help="Move this stage's results and all later ones aside and make them anew.")]
SmokeRun = Annotated[bool, typer.Option("--smoke", help="Of the run that --smoke made under this name.")]
Smoke = Annotated[bool, typer.Option("--smoke", help="Shrink everything to about a minute on a CPU, keeping every stage.")]
NoWandb = Annotated[bool, typer.Option("--no-wandb", help="Never send metrics to wandb, whatever the recipe says.")]
LogLevel = Annotated[console.LogLevel, typer.Option("--log-level", help="From which level on notes and warnings are shown.")]
Resume = Annotated[
    str | None,
    typer.Option("--resume", metavar="CHECKPOINT", help="Continue from this checkpoint of the stage; later ones are moved aside."),
]
Processes = Annotated[
    int | None,
    typer.Option("--processes", min=1, help="Train in so many processes of this machine, each on a GPU of its own where there are GPUs."),
]
Gpus = Annotated[int | None, typer.Option("--gpus", min=1, help="The same on so many GPUs; an error where there are fewer.")]
Reference = Annotated[
    str, typer.Argument(metavar="CHECKPOINT", help="A checkpoint folder, or RUN, RUN@latest, RUN@best, RUN@final, RUN@500.")
]
Place = Annotated[str, typer.Argument(metavar="PLACE", help="An artifact or run folder, or a name like a checkpoint's.")]
Repository = Annotated[str, typer.Argument(metavar="REPOSITORY", help="OWNER/NAME on the Hugging Face hub.")]
WeightsKept = Annotated[
    Weights, typer.Option("--weights", help="In what weights are kept: fp32 is exact, bf16 faster, int8 too on a CPU. auto: bf16 on a GPU.")
]
Device = Annotated[
    DeviceName, typer.Option("--device", help="Where the model is computed: auto is an NVIDIA GPU if there is one, else the CPU.")
]
_SAMPLING: dict[str, Any] = {
    "temperature": Annotated[float | None, typer.Option("--temperature", help="0 takes the likeliest token each time.")],
    "top_k": Annotated[int | None, typer.Option("--top-k", help="Draw from so many likeliest tokens; 0 from all.")],
    "top_p": Annotated[float | None, typer.Option("--top-p", help="Draw from the likeliest tokens that hold this probability.")],
    "min_p": Annotated[float | None, typer.Option("--min-p", help="Leave out tokens less likely than this share of the likeliest.")],
    "repetition_penalty": Annotated[
        float | None, typer.Option("--repetition-penalty", help="Above 1: what was said becomes less likely to be said again.")
    ],
    "maximum_new_tokens": Annotated[int | None, typer.Option("--max-tokens", help="Cut an answer off after so many tokens.")],
    "stop": Annotated[list[str] | None, typer.Option("--stop", help="A text that ends an answer; may be given several times.")],
    "seed": Annotated[int | None, typer.Option("--seed", help="Makes the draws repeatable.")],
}
"""What `with_sampling` adds, in the order of `--help`.

Of all that is not given the checkpoint itself says how: its recipe's `generation`."""

RecipeOrPlace = Annotated[
    str | None,
    typer.Argument(metavar="RECIPE|PLACE", help="A recipe to train by; or, to use a tokenizer: its folder, a run or a checkpoint."),
]


STAGE_HELP: dict[Stage, str] = {
    "corpus": "Gather the documents, conversations and preference pairs.",
    "tokenizer": "Train the tokenizer; or compare, encode and decode.",
    "pack": "Turn documents, conversations and pairs into token ids.",
    "pretrain": "Learn from the documents.",
    "sft": "Learn to answer, from the conversations.",
    "score": "Rate the preference pairs with the model that dpo starts from.",
    "dpo": "Learn what is preferred, from the pairs.",
    "evaluate": "Measure the checkpoints of a recipe; or compare models.",
    "report": "Write the HTML report of the run.",
}


@dataclass(frozen=True)
class Sampling:
    """How the command line wants texts to be drawn."""

    given: dict[str, float | int]
    """By the names of the settings."""
    stop: list[str]


NOTHING_GIVEN = Sampling({}, [])


def typed(values: dict[str, Any]) -> Tree:
    """Values of options, for `parse`, which then tells that a wrong one was typed."""
    return Tree(values, {(name,): "command line" for name in values})


def with_sampling(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb the options of sampling in place of its parameter `sampling`, checked before it begins: a model takes long to load."""

    @functools.wraps(verb)
    def sampled(**options: Any) -> None:
        values = {name: options.pop(name) for name in _SAMPLING}
        stop = values.pop("stop")
        given = {name: value for name, value in values.items() if value is not None}
        parse(GenerationSettings, typed(given))
        verb(**options, sampling=Sampling(given, stop or []))

    keyword = inspect.Parameter.KEYWORD_ONLY
    own = inspect.signature(verb, eval_str=True).parameters.values()
    added = [inspect.Parameter(name, keyword, default=None, annotation=option) for name, option in _SAMPLING.items()]
    parameters = [new for one in own for new in (added if one.name == "sampling" else [one.replace(kind=keyword)])]
    sampled.__dict__["__signature__"] = inspect.Signature(parameters)
    sampled.__annotations__ = {one.name: one.annotation for one in parameters}
    return sampled


def refuse_contradictions(modes: dict[str, bool], test: bool, rank: int, world: int) -> None:
    """Of the options of `corpus`, refuse those that another one would leave without effect. Raises ConfigError."""
    given = [name for name, is_given in modes.items() if is_given]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} cannot be had at once", "give one of them")
    if test and "--download-only" not in given:
        raise ConfigError("--test means nothing without --download-only", "give both, or neither")
    if rank >= world:
        raise ConfigError(f"--rank {rank} is not one of --world {world}", f"count from 0 to {world - 1}")
    if given and world > 1:
        raise ConfigError(f"{given[0]} is done by one process, not by --world {world}", "leave out --rank and --world")


def names_recipe(first: str, others: Sequence[str]) -> bool:
    """Whether the arguments of `evaluate` are a recipe and values that replace its own, rather than models to compare."""
    if any("=" not in other or Path(other).is_dir() for other in others):
        return False
    is_model = "@" in first or Path(first).is_dir() or (RUNS / first).is_dir()
    if not is_model:
        return True
    from fledge.recipe import is_packaged

    return not Path(first).is_dir() and is_packaged(first)


def refuse_with(action: str, options: dict[str, bool]) -> None:
    """Refuse options that an action would leave without effect. Raises ConfigError."""
    given = [name for name, is_given in options.items() if is_given]
    if given:
        raise ConfigError(f"{' and '.join(given)} cannot be had with {action}", f"leave out {' and '.join(given)}")


def stretch(first: str | None, last: str | None) -> tuple[Stage, ...]:
    """The stages from `first` to `last`; unset: from the beginning, to the end. Raises ConfigError."""
    for given in (first, last):
        if given is not None and given not in STAGES:
            raise ConfigError(f"there is no stage {given!r}", f"name one of {', '.join(STAGES)}")
    begin = STAGES.index(first) if first in STAGES else 0
    end = STAGES.index(last) if last in STAGES else len(STAGES) - 1
    if begin > end:
        raise ConfigError(f"--from {first} comes after --to {last}", f"the order is {', '.join(STAGES)}")
    return STAGES[begin : end + 1]


def refuse_ranks(verb: str) -> None:
    """Refuse to work as one of several processes. Raises ConfigError."""
    if process.world_size() > 1:
        raise ConfigError(
            f"`{verb}` works in one process, this is one of {process.world_size()}",
            f"start only {', '.join(TRAINING_STAGES)} under torchrun or accelerate, the other stages without",
        )


def prepare(recipe: str, overrides: list[str] | None, name: str | None, small: bool, no_wandb: bool) -> Run:
    """The run that these options mean, its recipe read and checked. Raises ConfigError, MachineError if a sink is not installed."""
    this = read_run(recipe, overrides, name, small, no_wandb)
    for stage in TRAINING_STAGES:
        if has_stage(stage, this):
            require_sinks(this.recipe.section(stage).metrics, stage)
    return this


def read_run(recipe: str, overrides: list[str] | None, name: str | None, small: bool, no_wandb: bool) -> Run:
    """`prepare` without asking for the sinks of metrics."""
    from fledge.recipe import find_recipe, load_recipe, without_wandb
    from fledge.smoke import config_rows, difference, smoke

    path = find_recipe(recipe)
    parsed, tree = load_recipe(path, overrides or [])
    config = tuple(config_rows(parsed, tree, small))
    if small and not process.is_launched():
        console.info(f"--smoke: the same stages, shrunk, with nothing from the network; every value: fledge config {recipe} --smoke")
        for line in difference(parsed):
            console.info(f"  {line}")
    if small:
        parsed = smoke(parsed)
    if no_wandb:
        parsed = without_wandb(parsed)
    run_name = name or (smoke_name(path.stem) if small else path.stem)
    options = [*(["--name", name] if name else []), *(["--smoke"] if small else [])]
    arguments = (recipe, *(overrides or []), *options)
    # It is shown, and written into the report.
    command = shlex.join([recipe, *map(without_secrets, overrides or []), *options])
    return Run(parsed, run_folder(run_name), command, arguments=arguments, config=config)
