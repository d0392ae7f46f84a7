"""How `fledge run` ends: an answered question, where the report lies, and what to try next."""

from __future__ import annotations

import sys
from pathlib import Path

from fledge.core import artifact, console
from fledge.stages import REPORT, TRAINING_STAGES, Stage, has_stage
from fledge.stages.checkpoint_names import find_checkpoint
from fledge.stages.run import Run


def close(run: Run) -> None:
    """Say what the last model answered to the recipe's question, and where to go from here."""
    trained = [stage for stage in TRAINING_STAGES if has_stage(stage, run)]
    answer = _answer(run, trained[-1]) if trained and run.recipe.question is not None else None
    if answer is not None:
        console.say(f"\nquestion: {run.recipe.question}")
        console.say(f"answer:   {answer if answer.strip() else '(nothing but spaces)'}")
    report = run.folder / "report" / REPORT
    if report.is_file():
        console.say(f"\nreport:   {report.resolve()}")
    if trained:
        verb = "chat" if trained[-1] != "pretrain" else "generate"
        more = "" if verb == "chat" else ' --prompt "..."'
        console.say(f"next:     {_called_as()} {verb} {run.folder}{more}")


def _answer(run: Run, last: Stage) -> str | None:
    """The answer that the report holds; a run without one is asked each time."""
    if has_stage("report", run):
        answer: str | None = artifact.open_artifact(run.folder / "report", "report").stats.get("answer")
        return answer
    from fledge.evaluation.generations import answer_question

    assert run.recipe.question is not None
    return answer_question(find_checkpoint(f"{run.folder / last}@final"), run.recipe.question, run.recipe.generation.maximum_new_tokens)


def _called_as() -> str:
    """How this program was started, as a person would type it again."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py":
        return "python -m fledge"
    typed = not program.is_absolute()
    return str(program) if typed else str(program.relative_to(Path.cwd())) if program.is_relative_to(Path.cwd()) else program.name
