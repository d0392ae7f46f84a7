"""What a run was last asked for and how that ended: `run.json` in its folder, for whoever looks at the folder later or elsewhere.

The artifacts say what came out; this says what was meant to come out, by which command, from which recipe values, and, if it did not
come out, why. Written under the run's lock when a command begins and again when it ends. A record without an end, of a run that nobody
holds, is of one that was killed, or of a copy made while it ran. Secrets in addresses are left out.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from fledge.core import __version__, disk, process
from fledge.core.errors import ArtifactError, FledgeError, Stopped
from fledge.core.wording import without_secrets

RUN_RECORD = "run.json"

Outcome = Literal["finished", "stopped", "failed"]
ConfigRow = tuple[str, Any, str]
"""A value of the recipe: its dotted name, the value, and where it was set."""


@dataclass(frozen=True)
class RunRecord:
    """The content of `run.json`."""

    command: str
    """As it was typed, without secrets."""
    stages: tuple[str, ...]
    """That were asked for, in their order."""
    config: tuple[ConfigRow, ...]
    fledge_version: str
    started_unix_seconds: float
    ended_unix_seconds: float | None = None
    outcome: Outcome | None = None
    problem: str = ""
    """What went wrong, of one that failed or was stopped."""
    remedy: str = ""


@contextlib.contextmanager
def recorded(folder: Path, command: str, stages: Sequence[str], config: Sequence[ConfigRow]) -> Iterator[None]:
    """Keep the record of the work in the block. What the block raises is noted and raised on.

    A process that another one of Fledge launched leaves it to that one.
    """
    if process.is_launched():
        yield
        return
    before = read_record(folder)
    rows = tuple((name, _without_secrets(value), without_secrets(origin)) for name, value, origin in config)
    record = RunRecord(command, tuple(stages), rows, __version__, round(time.time(), 3))
    _write(folder, record)
    try:
        yield
    except Stopped as error:
        _end(folder, record, "stopped", error.problem, error.remedy)
        raise
    except ArtifactError as error:
        # What lies there contradicts what was asked, so what is told of the folder is what was asked before.
        if before is None:
            _end(folder, record, "failed", error.problem, error.remedy)
        else:
            _write(folder, before)
        raise
    except FledgeError as error:
        _end(folder, record, "failed", error.problem, error.remedy)
        raise
    except KeyboardInterrupt:
        _end(folder, record, "stopped", "stopped before this stage had finished", "run the same command again: what is finished is kept")
        raise
    except Exception as error:
        # Our own bug: what it says may hold anything, so only its kind is kept.
        _end(folder, record, "failed", f"{type(error).__name__}, an error of Fledge itself", "report it with the lines that it printed")
        raise
    _end(folder, record, "finished")


def read_record(folder: Path) -> RunRecord | None:
    """The record of a run; None if it has none that can be read, as of a version that wrote none."""
    try:
        raw = json.loads((folder / RUN_RECORD).read_text(encoding="utf-8"))
        rows = tuple((str(name), value, str(origin)) for name, value, origin in raw["config"])
        record = RunRecord(**{**raw, "stages": tuple(map(str, raw["stages"])), "config": rows})
        return record if _is_well_formed(record) else None
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def _is_well_formed(record: RunRecord) -> bool:
    """A copied folder may hold a record of any hand. Raises TypeError and OverflowError for times that are none."""
    texts = (record.command, record.fledge_version, record.problem, record.remedy)
    times = (record.started_unix_seconds, record.ended_unix_seconds or 0.0)
    is_outcome = record.outcome is None or record.outcome in get_args(Outcome)
    return is_outcome and all(isinstance(text, str) for text in texts) and all(math.isfinite(moment) for moment in times)


def _end(folder: Path, record: RunRecord, outcome: Outcome, problem: str = "", remedy: str = "") -> None:
    ended = replace(record, ended_unix_seconds=round(time.time(), 3), outcome=outcome, problem=without_secrets(problem), remedy=remedy)
    # A full disk, which may be what ended the run, must not hide it.
    with contextlib.suppress(FledgeError):
        _write(folder, ended)


def _write(folder: Path, record: RunRecord) -> None:
    disk.write_json(folder / RUN_RECORD, asdict(record))


def _without_secrets(value: Any) -> Any:
    return without_secrets(value) if isinstance(value, str) else value
