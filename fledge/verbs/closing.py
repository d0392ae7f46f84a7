"""How `fledge run` ends: an answered question, where the report lies, and what to try next."""

from __future__ import annotations

import sys
from pathlib import Path

from fledge.core import console
from fledge.corpus.document import Message
from fledge.inference.settings import GenerationSettings
from fledge.stages import REPORT, TRAINING_STAGES, has_stage
from fledge.stages.checkpoint_names import find_checkpoint
from fledge.stages.run import Run
from fledge.verbs.answers import open_speaker


def close(run: Run) -> None:
    """Ask the last model the recipe's question, and say where to go from here."""
    trained = [stage for stage in TRAINING_STAGES if has_stage(stage, run)]
    if trained and run.recipe.question is not None:
        speaker = open_speaker(find_checkpoint(f"{run.folder / trained[-1]}@final"))
        limit = run.recipe.generation.maximum_new_tokens
        greedy = GenerationSettings(temperature=0, maximum_new_tokens=limit)
        console.say(f"\nquestion: {run.recipe.question}")
        console.say(f"answer:   {speaker.ask([Message('user', run.recipe.question)], greedy)}")
    report = run.folder / "report" / REPORT
    if report.is_file():
        console.say(f"\nreport:   {report.resolve()}")
    if trained:
        verb = "chat" if trained[-1] != "pretrain" else "generate"
        more = "" if verb == "chat" else ' --prompt "..."'
        console.say(f"next:     {_called_as()} {verb} {run.folder}{more}")


def _called_as() -> str:
    """How this program was started, as a person would type it again."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py":
        return "python -m fledge"
    typed = not program.is_absolute()
    return str(program) if typed else str(program.relative_to(Path.cwd())) if program.is_relative_to(Path.cwd()) else program.name
