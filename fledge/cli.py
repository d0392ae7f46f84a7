"""`fledge <verb> <recipe> [a.b=c ...]`: names the verbs, and turns their errors into two lines.

Nothing heavy is imported before a verb is known: `fledge --help` waits for no recipe's settings, and a typo in a recipe never for torch.
"""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable
from typing import Annotated, Any

import typer

from fledge.commands import looking, making, using
from fledge.core import __version__, console, process
from fledge.core.errors import FledgeError
from fledge.options import STAGE_HELP
from fledge.stages import STAGES
from fledge.verbs import launching

VERBS: dict[str, tuple[Callable[..., None], str]] = {
    "run": (making.run, "Run the whole road of a recipe, from raw text to an answer."),
    **{stage: (making.stage_verb(stage), STAGE_HELP[stage]) for stage in STAGES},
    "generate": (using.generate, "Continue a text, or answer with --chat."),
    "chat": (using.chat, "Talk with a model."),
    "serve": (using.serve, "Serve models to programs and browsers, by OpenAI's interface."),
    "merge": (using.merge, "Fold an adapter into its base."),
    "export": (using.export, "Write a result in the form of other programs."),
    "push": (using.push, "Send a model or a dataset to the hub; with --watch, a run while it trains."),
    "pull": (using.pull, "Bring a model, a dataset or a run from the hub."),
    "import": (using.import_model, "Take over a model of others."),
    "benchmarks": (using.benchmarks, "List the benchmarks known by name, or fetch their rows."),
    "plan": (looking.plan, "Say what a run will take: time, memory, disk."),
    "doctor": (looking.doctor, "Check this machine, or what a recipe needs of it, and say how to mend it."),
    "board": (looking.board, "Watch, compare and start runs in a browser."),
    "config": (looking.show_config, "Print every value of a recipe and where it comes from."),
    "show": (looking.show, "Print what a result is, its figures, and what it was made from."),
    "inspect": (looking.inspect, "Print packed tokens with their borders and loss mask."),
    "prove-resume": (making.prove_resume, "Kill a training again and again, and compare it with one left alone."),
    "which": (looking.which, "List the documents of a training step, or the steps that saw a text."),
    "verify": (looking.verify, "Hash a result and everything it was made from again."),
}
"""In the order of `fledge --help`: what each calls, and its line there."""

_KEEPING = {"run", *STAGES}
"""Those that surely go on where they were stopped."""


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
    for name, (verb, text) in VERBS.items():
        app.command(name, help=text)(_guarded(verb, keeps_finished=name in _KEEPING))
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


def _guarded(verb: Callable[..., None], keeps_finished: bool) -> Callable[..., None]:
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
                if keeps_finished:
                    console.error("stopped before this stage had finished", "run the same command again: what is finished is kept")
                else:
                    console.error("stopped before it had finished", "run the same command again")
            raise typer.Exit(128 + signal.SIGINT) from error
        except Exception as error:
            # Our own bug, whatever it is: of many launched processes one tells it, not each.
            if not launching.report(error):
                raise
            raise typer.Exit(FledgeError.exit_code) from error

    return guarded
