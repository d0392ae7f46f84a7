"""Which checkpoint? Numbered tables for a person who does not know by heart: the runs of this folder, then the checkpoints of one.

Enter takes what `RUN` alone means everywhere else. Nobody is asked who cannot answer, or where there is only one choice.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fledge.core import artifact, console
from fledge.core.errors import CheckpointError, ConfigError
from fledge.stages import TRAINING_STAGES
from fledge.stages.checkpoint_names import find_checkpoint, is_checkpoint
from fledge.stages.run import RUNS
from fledge.training.checkpoint_folders import CHECKPOINTS, best_checkpoint, list_checkpoints, step_folders
from fledge.verbs.chatting.terminal import ReadLine, is_interactive


@dataclass(frozen=True)
class Choice:
    """A line of a table."""

    reference: str
    cells: tuple[str, ...]


def pick_checkpoint(given: str | None, read_line: ReadLine) -> str:
    """A reference to one checkpoint: `given` where that names one, else what a person chooses.

    Raises ConfigError where nothing is given and nobody can be asked, CheckpointError if there is nothing to choose from.
    """
    if not is_interactive():
        if given is None:
            raise ConfigError("no checkpoint is given", "name one: fledge chat RUN; on a terminal a table lets you choose")
        return given
    if given is None:
        given = _pick("runs", ["run", "stages", "checkpoints", "changed"], runs(), read_line)
    folder = _run_folder(given)
    return given if folder is None else _pick(given, ["checkpoint", "step", "validation loss", "is"], checkpoints(given, folder), read_line)


def runs() -> list[Choice]:
    """The runs in this folder that have a checkpoint, the latest first. Raises CheckpointError if there is none."""
    found = []
    for folder in RUNS.iterdir() if RUNS.is_dir() else ():
        steps = {stage: step_folders(folder / stage) for stage in TRAINING_STAGES}
        if count := sum(map(len, steps.values())):
            changed = max(path.stat().st_mtime for stage in steps.values() for _, path in stage)
            stages = ", ".join(stage for stage in TRAINING_STAGES if steps[stage])
            ago = f"{console.format_seconds(max(0.0, time.time() - changed))} ago"
            found.append((changed, Choice(folder.name, (folder.name, stages, str(count), ago))))
    if not found:
        raise CheckpointError(f"no run under {RUNS} has a checkpoint", "train one (fledge run quickstart), or name a checkpoint's folder")
    return [choice for _, choice in sorted(found, key=lambda one: -one[0])]


def checkpoints(run: str, folder: Path) -> list[Choice]:
    """The checkpoints of a run, first the one that its name alone means. Raises CheckpointError if there is none."""
    meant = find_checkpoint(run)
    found = []
    for stage in reversed(TRAINING_STAGES):
        listed, best = list_checkpoints(folder / stage), best_checkpoint(folder / stage)
        finished = (folder / stage / artifact.MANIFEST).is_file()
        for one in reversed(listed):
            marks = [
                "final" if finished and one is listed[-1] else "",
                "latest" if not finished and one is listed[-1] else "",
                "best" if best is not None and best.step == one.step else "",
            ]
            loss = "" if one.validation_loss is None else f"{one.validation_loss:.3f}"
            told = ", ".join(mark for mark in marks if mark)
            found.append((one.path != meant, Choice(f"{run}/{stage}@{one.step}", (stage, f"{one.step:,}", loss, told))))
    return [choice for _, choice in sorted(found, key=lambda one: one[0])]


def _run_folder(given: str) -> Path | None:
    """The folder of the run that a name alone means; None if it names more than that, or something else."""
    folder = Path(given) if Path(given).is_dir() else RUNS / given
    if not folder.is_dir() or is_checkpoint(folder) or (folder / CHECKPOINTS).is_dir():
        return None
    return folder if any(step_folders(folder / stage) for stage in TRAINING_STAGES) else None


def _pick(title: str, columns: Sequence[str], choices: Sequence[Choice], read_line: ReadLine) -> str:
    """The reference that a person chooses. Raises ConfigError at the end of input."""
    if len(choices) == 1:
        return choices[0].reference
    rows = [[str(number), *choice.cells] for number, choice in enumerate(choices, 1)]
    console.table(title, ["", *columns], rows)
    while (answer := read_line(f"number, 1 to {len(choices)} [1]> ")) is not None:
        number = answer.strip() or "1"
        if number.isdecimal() and 1 <= int(number) <= len(choices):
            return choices[int(number) - 1].reference
        console.info(f"{number!r} is not a number from 1 to {len(choices)}")
    raise ConfigError("no checkpoint was chosen", "choose one by its number, or name it: fledge chat RUN@WHICH")
