"""Training contestants that take turns, each in a process of its own, so that a busy moment meets all alike.

A contestant (`training_contestants.py`) prints `READY {json}` when it has taken its first steps, then for each line that it reads takes
so many steps and prints `TOOK {json}`. All start together, so that what they compile is compiled at the same time.
"""

from __future__ import annotations

import json
import os
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from processes import last_words, python_path

CONTESTANTS = Path(__file__).with_name("training_contestants.py")


@dataclass
class Contestant:
    """One engine on one model."""

    name: str
    given: dict[str, Any]
    """What `training_contestants.py` is told."""
    python: str = sys.executable
    environment: Mapping[str, str] = field(default_factory=dict)
    core: int | None = None
    told: dict[str, Any] = field(default_factory=dict)
    """What it said of itself when it was ready."""
    turns: list[dict[str, float]] = field(default_factory=list)
    problem: str | None = None


def take_turns(contestants: Sequence[Contestant], rounds: int, steps: int, ready_within_seconds: float, logs: Path) -> None:
    """Start all, wait until they are ready or out of time, and give each `steps` steps in each round; fills what the contestants tell."""
    processes = [_start(contestant, logs) for contestant in contestants]
    deadline = time.monotonic() + ready_within_seconds
    for contestant, process in zip(contestants, processes, strict=True):
        told = _line(process, "READY ", deadline)
        if told is None:
            contestant.problem = last_words(logs / f"{_file_name(contestant)}.log")
            process.kill()
        else:
            contestant.told = told
        print(f"{contestant.name}: {contestant.problem or contestant.told}", flush=True)
    for _ in range(rounds):
        for contestant, process in zip(contestants, processes, strict=True):
            if contestant.problem is None:
                assert process.stdin is not None
                process.stdin.write(f"{steps}\n")
                process.stdin.flush()
                took = _line(process, "TOOK ", time.monotonic() + 600)
                if took is None:
                    contestant.problem = last_words(logs / f"{_file_name(contestant)}.log")
                else:
                    contestant.turns.append(took)
    for process in processes:
        process.kill()
        process.wait()


def tokens_per_second(contestant: Contestant, kind: str = "seconds") -> float:
    """The median over its turns, by the clock (`seconds`) or by what the processor spent on it (`cpu_seconds`)."""
    return contestant.told["tokens_per_step"] / statistics.median(turn[kind] / turn["steps"] for turn in contestant.turns)


def _start(contestant: Contestant, logs: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": python_path()}
    command = [contestant.python, str(CONTESTANTS), json.dumps(contestant.given)]
    if contestant.core is not None:
        command = ["taskset", "--cpu-list", str(contestant.core), *command]
    log = (logs / f"{_file_name(contestant)}.log").open("w")
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env={**environment, **contestant.environment}
    )


def _line(process: subprocess.Popen[str], mark: str, deadline: float) -> dict[str, Any] | None:
    """What follows the mark in the next line that begins with it; None if the process ends or the time is over before."""
    assert process.stdout is not None
    stream: TextIO = process.stdout
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([stream], [], [], left)[0]:
            break
        line = stream.readline()
        if not line:
            break
        if line.startswith(mark):
            told: dict[str, Any] = json.loads(line.removeprefix(mark))
            return told
    return None


def _file_name(contestant: Contestant) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in contestant.name)
