"""Trainings that take turns: each is a process of `fledge pretrain`, and all but one of them stand still.

All start together, since starting takes several cores and no GPU; when a training is about to do its first step it waits for its turn.
Stopped and continued by signals it notices nothing but one step that took long.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from processes import python_path

from fledge.stages.making.prediction import PREDICTION

RECIPE, LOG = "recipe.json", "log.txt"
STOPPED = 128 + signal.SIGTERM
"""How a training ends that was asked to stop, with everything saved."""
_LOOK_SECONDS = 0.05


def environment() -> dict[str, str]:
    """For processes that run this checkout's Fledge, with whatever else this one finds its modules by."""
    return {**os.environ, "PYTHONPATH": python_path()}


class Training:
    """A process that trains the recipe in a folder, or goes on with it; what is finished ends at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._prediction = folder / "pretrain" / PREDICTION
        self._predicted_before = self._predicted()
        command = [sys.executable, "-m", "fledge", "pretrain", str(folder / RECIPE), "--name", str(folder), "--log-level", "warning"]
        with (folder / LOG).open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment())

    @property
    def is_over(self) -> bool:
        """Whether it has ended. Raises SystemExit if that was an error."""
        code = self.process.poll()
        if code not in (None, 0, STOPPED):
            raise SystemExit(f"{self.folder} ended with {code}:\n{(self.folder / LOG).read_text()[-4_000:]}")
        return code is not None

    @property
    def is_ready(self) -> bool:
        """Whether it has written what it expects of itself, which it does right before its first step of each start."""
        return self._predicted() != self._predicted_before

    def _predicted(self) -> int | None:
        return self._prediction.stat().st_mtime_ns if self._prediction.is_file() else None


def take_turns(folders: Sequence[Path], turn_seconds: float, deadline: float | None = None) -> bool:
    """Train all to their ends; False if the deadline (of `time.monotonic`) came first, after which they are saved and stopped."""
    trainings = [Training(folder) for folder in folders]
    try:
        return _to_the_end(trainings, turn_seconds, deadline)
    finally:
        for training in trainings:
            if training.process.poll() is None:
                training.process.send_signal(signal.SIGTERM)
                training.process.send_signal(signal.SIGCONT)
        for training in trainings:
            training.process.wait()


def _to_the_end(trainings: Sequence[Training], turn_seconds: float, deadline: float | None) -> bool:
    starting = list(trainings)
    while starting:
        time.sleep(_LOOK_SECONDS)
        for training in [one for one in starting if one.is_over or one.is_ready]:
            starting.remove(training)
            if not training.is_over:
                training.process.send_signal(signal.SIGSTOP)
    while left := [training for training in trainings if not training.is_over]:
        for training in left:
            if deadline is not None and time.monotonic() > deadline:
                return False
            training.process.send_signal(signal.SIGCONT)
            ends = time.monotonic() + turn_seconds
            while time.monotonic() < ends and not training.is_over:
                time.sleep(_LOOK_SECONDS)
            if not training.is_over:
                training.process.send_signal(signal.SIGSTOP)
    return True
