"""Runs that are killed: the smallest training stage, in a copy of this process, with a fail-point that kills; and what is left of it."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from training_assembly import MODEL, REQUEST, assembled, training_settings

from fledge.core import artifact, disk
from fledge.core.metrics import METRICS
from fledge.model.llama import Llama
from fledge.tokens.shards import TokenSet
from fledge.training.checkpoint_folders import CHECKPOINTS, list_checkpoints
from fledge.training.parallel import World
from fledge.training.settings import TrainingSettings
from fledge.training.sound_checkpoints import SET_ASIDE

SMALL = replace(MODEL, settings=replace(MODEL.settings, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8))
ALONE = World(0, 1, torch.device("cpu"))
SMALL_BATCHES = {"batch_rows": 4, "micro_batch_rows": 2, "validation_rows": 2}
Save = Callable[..., object]
"""`save(writer, step, loss, occasion, world)`: a fixture that saves some state as that of a step."""
FIGURES = ("step", "train/loss", "train/gradient_norm", "train/tokens", "validation/loss")


class KillAt:
    """A fail-point that kills this process at an operation; with `torn`, a write is half done by then."""

    def __init__(self, number: int, torn: bool = False) -> None:
        self._left, self._torn = number, torn

    def __call__(self, operation: str, path: Path) -> None:
        self._left -= 1
        if self._left < 0:
            if self._torn and operation == "write":
                path.write_bytes(b"torn off in the middle of somethi")
            os.kill(os.getpid(), signal.SIGKILL)


def in_a_fork(act: Callable[[], object]) -> int:
    """Run something in a copy of this process; returns how the copy ended, as `os.waitstatus_to_exitcode` tells."""
    return ended(forked(act))


def forked(act: Callable[[], object]) -> int:
    child = os.fork()
    if child == 0:
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            act()
            os._exit(0)
        finally:
            os._exit(99)
    return child


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def stage_settings(**changes: Any) -> TrainingSettings:
    """Six steps with accumulation, three saves, a best and a removal."""
    return training_settings(
        **{"steps": 6, "save_every_steps": 2, "validate_every_steps": 2, "keep_checkpoints": 1, **SMALL_BATCHES, **changes}
    )


def run_stage(
    folder: Path, tokens: TokenSet, settings: TrainingSettings, fail_point: Callable[[str, Path], None] | None = None
) -> int | None:
    """Train and commit as a stage does; returns the step from which it went on, None if there was nothing to do."""
    disk.fail_point = fail_point
    if artifact.state(folder, REQUEST) == "finished":
        return None
    with assembled(folder, settings, [tokens], model=Llama(SMALL, 0)) as trainer:
        started_at = trainer.progress.step
        trainer.run()
    final = list_checkpoints(folder)[-1]
    place = final.path.relative_to(folder).as_posix()
    files = {f"{place}/{name}": digest for name, digest in final.artifact.manifest.files.items()}
    artifact.finish(folder, REQUEST, files, {"final": place})
    disk.fail_point = None
    return started_at


def operations(folder: Path, tokens: TokenSet, settings: TrainingSettings, log: Path) -> list[tuple[str, Path]]:
    """What an undisturbed run does on the disk, in order."""

    def note(operation: str, path: Path) -> None:
        with log.open("a") as file:
            file.write(f"{operation} {path}\n")

    assert in_a_fork(lambda: run_stage(folder, tokens, settings, note)) == 0
    lines = [line.split(" ", 1) for line in log.read_text().splitlines()]
    return [(operation, Path(path)) for operation, path in lines]


def outcome(folder: Path) -> dict[str, Any]:
    """All that a run leaves which must not depend on kills: the final state bit by bit, and its records."""
    final = list_checkpoints(folder)[-1]
    assert artifact.verify(final.artifact, exact=True) == []
    records = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    return {
        # Weights, optimizer, losses, loss scale and order of rows lie in files, whose hashes make the id.
        "final": final.artifact.id,
        "stage": artifact.open_artifact(folder).id,
        "records": [{name: record.get(name) for name in FIGURES} for record in records],
        "files": sorted(path.name for path in folder.iterdir() if path.name != SET_ASIDE),
    }


def published(folder: Path) -> int:
    """The step of the newest checkpoint that is there as a whole."""
    return max((one.step for one in list_checkpoints(folder)), default=0)


def leftovers(folder: Path) -> list[Path]:
    return list((folder / CHECKPOINTS).glob("*.partial"))


def wait(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(min(0.001, seconds))


def steps(folder: Path) -> list[int]:
    """Of the finished checkpoints of a stage."""
    return [checkpoint.step for checkpoint in list_checkpoints(folder)]
