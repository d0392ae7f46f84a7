"""How a run stands, in a word: running, finished, stopped or failed; where it is, and how long that stage will take.

Whether it runs is known from its lock, which the system frees however the process ended; how it ended, from its record. A run of a
version without records has ended well if nothing of it was left in the middle.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

from fledge.core import process
from fledge.core.artifact import MANIFEST
from fledge.core.metrics import METRICS
from fledge.core.run_record import RUN_RECORD, RunRecord, read_record
from fledge.serving.board.curves import last_record
from fledge.serving.board.folders import RunFolder

State = Literal["running", "finished", "stopped", "failed"]

NO_LAST_WORD = "It ended without a word: it was killed, or this is a copy that was made while it ran."
CONTINUES = "The same command continues it."
UNREADABLE = "This run cannot be read"


@dataclass(frozen=True)
class Status:
    """Of one run, plain enough for JSON."""

    name: str
    state: State
    stage: str | None
    """The one in work, or the last one that was."""
    stages: tuple[str, ...]
    """That were asked for."""
    finished_stages: tuple[str, ...]
    step: int | None
    step_stage: str | None
    """The one that step and loss are of: of a stage that does not train, the last one before it that does."""
    loss: float | None
    seconds_left: float | None
    """Of the stage, while it runs and once it has taken steps."""
    changed_unix_seconds: float
    command: str
    problem: str
    remedy: str


def status_of(run: RunFolder, now: float | None = None) -> Status:
    """Read off the folder; `now` in Unix seconds."""
    # In this order: a run that ends in between has written how before it lets go of the lock.
    is_running = _is_in_use(run)
    record = read_record(run.path) if run.file(RUN_RECORD) is not None else None
    finished = tuple(stage for stage in run.begun() if run.is_finished(stage))
    begun = tuple(stage for stage in run.begun() if stage in finished or stage in run.trained() or record is not None)
    asked = record.stages if record is not None else begun
    state = "running" if is_running else _ended(run, record)
    stage = next((one for one in asked if one not in finished), asked[-1] if asked else None)
    figures = stage if is_running or stage in run.trained() else next(reversed(run.trained()), None)
    last = last_record(run.file(figures, METRICS), "train/loss") if figures is not None else None
    is_killed = state == "stopped" and record is not None and record.outcome is None
    return Status(
        name=run.name,
        state=state,
        stage=stage,
        stages=asked,
        finished_stages=finished,
        step=last["step"] if last else None,
        step_stage=figures,
        loss=last["train/loss"] if last else None,
        seconds_left=_seconds_left(last, time.time() if now is None else now) if is_running and last and stage not in finished else None,
        changed_unix_seconds=_changed(run, record),
        command=record.command if record else "",
        problem=NO_LAST_WORD if is_killed else record.problem if record and not is_running else "",
        remedy=CONTINUES if is_killed else record.remedy if record and not is_running else "",
    )


def listed_status(run: RunFolder) -> Status:
    """The same for a list, in which no run may hide the others: one that is damaged beyond what was foreseen says so in its row."""
    try:
        return status_of(run)
    except Exception as error:  # files of others, damaged in ways that have no common type
        problem = f"{UNREADABLE}: {type(error).__name__}."
        return Status(run.name, "failed", None, (), (), None, None, None, None, 0.0, "", problem, "Copy it again, or move it elsewhere.")


def _is_in_use(run: RunFolder) -> bool:
    try:
        return run.file(process.LOCK) is not None and process.is_in_use(run.path)
    except OSError:  # a folder that may be read but whose lock may not
        return False


def _ended(run: RunFolder, record: RunRecord | None) -> State:
    if record is not None:
        return record.outcome or "stopped"
    return "finished" if all(run.is_finished(stage) for stage in run.trained()) else "stopped"


def _seconds_left(last: dict[str, float], now: float) -> float | None:
    expected = last.get("train/seconds_left_smoothed", last.get("train/seconds_left"))
    return None if expected is None else max(0.0, expected - max(0.0, now - last["time"]))


def _changed(run: RunFolder, record: RunRecord | None) -> float:
    """When something was last written that tells of progress."""
    files = [found for stage in run.begun() for name in (METRICS, MANIFEST) if (found := run.file(stage, name)) is not None]
    times = [path.stat().st_mtime for path in files]
    if record is not None:
        times.append(record.ended_unix_seconds or record.started_unix_seconds)
    return max(times, default=run.path.stat().st_mtime)
