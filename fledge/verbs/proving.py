"""`fledge prove-resume`: a training that is killed again and again, beside an undisturbed one, and a certificate that they are the same.

    inputs (linked) -> [undisturbed]                                 -> losses, hashes --+
                    -> [kill -9 at a random instant, start again] .. -> losses, hashes --+-> certificate

Real processes, started as a person starts them, in a folder that is removed afterwards. An instant is a random step and a random part of
one, so it falls into steps, into saves and into what comes between; the kills of a seed are the same each time, but for what the
machine does meanwhile. What is compared is on disk: the loss of every step, and the SHA-256 of weights and optimizer state.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from fledge.core import console, disk
from fledge.core.artifact import hash_json
from fledge.core.errors import CheckpointError, ConfigError, DistributedError
from fledge.core.metrics import read_metrics
from fledge.stages import STAGES, TRAINING_STAGES, Stage, has_stage
from fledge.stages.run import Run
from fledge.training.checkpoint import read_order
from fledge.training.checkpoint_folders import list_checkpoints
from fledge.training.parallel import chosen_machine

LOSS_TOLERANCE = 1e-3
"""Relative, where another number of processes sums in another order; a batch read twice or left out shows as ten times that."""
_LOOK_SECONDS = 0.002
_LAST_WORDS_BYTES = 2_000
_COMPARED = {"weights": ("model.safetensors", "adapter_model.safetensors"), "optimizer": ("resume/optimizer.safetensors",)}
"""Files of a checkpoint, one of each."""


@dataclass(frozen=True)
class Trial:
    """What is tried, and how."""

    stage: Stage
    steps: int
    kills: int
    seed: int
    processes: int
    """In turn with one process, from start to start."""
    is_elastic: bool
    """Whether the number of processes must not show in the result."""


@dataclass(frozen=True)
class Outcome:
    """What a finished training left."""

    losses: dict[int, float]
    """By step."""
    hashes: dict[str, str]
    order: str
    """What decides the rows of every step."""


def prove(run: Run, trial: Trial, arguments: Sequence[str]) -> None:
    """Train both ways and print the certificate. `arguments` are those of the stage's verb, but for --name and --processes.

    Raises CheckpointError if the results differ, DistributedError if a training ends that nobody killed.
    """
    with tempfile.TemporaryDirectory(prefix=f"{run.folder.name}-prove-", dir=run.folder.parent) as place:
        folders = [Path(place) / name for name in ("undisturbed", "killed")]
        for folder in folders:
            _link_inputs(run, trial.stage, folder)
        with _Training(arguments, trial, folders[0], 1) as training:
            training.wait()
        console.say(f"undisturbed: {trial.steps:,} steps in one process")
        _disturb([*arguments, *_as_computed(folders[0] / trial.stage, trial.stage)], trial, folders[1])
        expected, found = (_outcome(folder / trial.stage) for folder in folders)
    is_bitwise = trial.processes == 1 or trial.is_elastic
    problems = list(differences(expected, found, is_bitwise))
    for line in _certificate(trial, expected, found, is_bitwise):
        console.say(line)
    if problems:
        raise CheckpointError(
            f"the training that was killed is not the undisturbed one: {problems[0]}",
            "look whether both had the same threads, precision and processes; else this is a mistake of Fledge's own: please report it",
        )
    console.say("certificate: equal, bit for bit" if is_bitwise else "certificate: equal in order of data, and in losses to rounding")


def differences(expected: Outcome, found: Outcome, is_bitwise: bool) -> Iterator[str]:
    """What is not as it must be, in words."""
    if expected.order != found.order:
        yield "the order of the data is another"
    if expected.losses.keys() != found.losses.keys():
        yield f"steps were lost or done twice: {len(found.losses):,} of {len(expected.losses):,}"
    for step in sorted(expected.losses.keys() & found.losses.keys()):
        one, other = expected.losses[step], found.losses[step]
        if one != other and (is_bitwise or abs(one - other) > LOSS_TOLERANCE * abs(one)):
            yield f"the loss of step {step:,} is {other.hex()} instead of {one.hex()}"
    if is_bitwise:
        yield from (f"the {name} are others" for name in _COMPARED if expected.hashes[name] != found.hashes[name])


def _certificate(trial: Trial, expected: Outcome, found: Outcome, is_bitwise: bool) -> Iterator[str]:
    pairs = [(expected.losses[step], found.losses.get(step)) for step in expected.losses]
    equal = sum(one == other for one, other in pairs)
    yield f"data order  sha256 {expected.order[:16]} and {found.order[:16]}"
    yield f"losses      {equal:,} of {len(pairs):,} equal; last {_hex(expected)} and {_hex(found)}"
    if not is_bitwise:
        worst = max((abs(one - other) / abs(one) for one, other in pairs if other is not None), default=0.0)
        yield (
            f"            largest relative difference {worst:.1e}; another number of processes sums in another order, so only the order "
            f"of data and the loss to {LOSS_TOLERANCE:g} are compared ({trial.stage}.determinism=elastic makes it exact)"
        )
        return
    for name in _COMPARED:
        yield f"{name:<11} sha256 {expected.hashes[name][:16]} and {found.hashes[name][:16]}"


def _hex(outcome: Outcome) -> str:
    return outcome.losses[max(outcome.losses)].hex() if outcome.losses else "none"


def _disturb(arguments: Sequence[str], trial: Trial, folder: Path) -> None:
    """Start the training, kill it and start it again, as often as asked for, and let it end."""
    chance = random.Random(trial.seed)
    steps = sorted(chance.sample(range(1, trial.steps), min(trial.kills, trial.steps - 1)))
    for number, step in enumerate(steps):
        with _Training(arguments, trial, folder, _processes(trial, number)) as training:
            training.kill_after(step, chance.random())
        newest = max((found.step for found in list_checkpoints(folder / trial.stage)), default=0)
        console.say(f"killed after step {step:,} ({training.processes} at work); the newest checkpoint is of step {newest:,}")
    with _Training(arguments, trial, folder, _processes(trial, len(steps))) as training:
        training.wait()
    console.say(f"continued to the end ({training.processes} at work)")


def _processes(trial: Trial, start: int) -> int:
    return 1 if start % 2 == 0 else trial.processes


class _Training:
    """A training stage as a process of its own, while the block lasts; what it says is kept for the case that it fails."""

    def __init__(self, arguments: Sequence[str], trial: Trial, folder: Path, processes: int) -> None:
        self.processes = processes
        self._folder = folder / trial.stage
        many = ["--processes", str(processes)] if processes > 1 else []
        self._command = [sys.executable, "-m", "fledge", trial.stage, *arguments, "--name", str(folder), "--no-wandb", *many]

    def __enter__(self) -> _Training:
        self._words = tempfile.TemporaryFile()
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=self._words)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        self._words.close()

    def wait(self) -> None:
        """Raises DistributedError unless it ends well."""
        if self._process.wait() != 0:
            raise self._failed()

    def kill_after(self, step: int, part: float) -> None:
        """End it once a step is done and a part of a step's time has passed; the processes it started end with it."""
        started, steps, before = time.time(), 0, time.monotonic()
        step_seconds = 0.0
        while (reached := self._reached(started)) < step:
            if self._process.poll() is not None:
                raise self._failed()
            if reached != steps:
                if steps:
                    step_seconds = time.monotonic() - before
                before, steps = time.monotonic(), reached
            time.sleep(_LOOK_SECONDS)
        time.sleep(part * step_seconds)
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def _reached(self, since: float) -> int:
        """The last step that was done since then: a record of the training before says nothing of this one."""
        return max((int(record["step"] or 0) for record in read_metrics(self._folder) if record["time"] >= since), default=0)

    def _failed(self) -> DistributedError:
        self._words.seek(max(0, self._words.seek(0, os.SEEK_END) - _LAST_WORDS_BYTES))
        words = self._words.read().decode("utf-8", "replace").strip()
        return DistributedError(f"a training ended with exit code {self._process.returncode}:\n{words}", "see what it said")


def _as_computed(folder: Path, stage: Stage) -> list[str]:
    """What a stage measured at its start, so that another start does not find it otherwise."""
    machine = chosen_machine(folder)
    assert machine is not None, "a stage that has trained knows its machine"
    values = {"precision": machine.precision, "threads": machine.threads, "compile": "on" if machine.compiled else "off"}
    return [f"{stage}.{name}={value}" for name, value in values.items()]


def _link_inputs(run: Run, stage: Stage, folder: Path) -> None:
    """Give a run folder what the stages before have made, without copying it."""
    for name in STAGES[: STAGES.index(stage)]:
        source = run.folder / name
        for path in sorted(source.rglob("*")) if name != "corpus" else ():
            if path.is_file():
                disk.link(path, folder / name / path.relative_to(source))


def _outcome(folder: Path) -> Outcome:
    losses = {int(record["step"] or 0): float(record["train/loss"] or 0.0) for record in read_metrics(folder) if "train/loss" in record}
    last = list_checkpoints(folder)[-1]
    files = last.artifact.manifest.files
    return Outcome(
        losses,
        {name: next(files[file].sha256 for file in one if file in files) for name, one in _COMPARED.items()},
        hash_json(read_order(last.path)),
    )


def shortened(run: Run, stage: Stage, steps: int, processes: int) -> list[str]:
    """What makes a stage of a recipe so short, saves often, and records every loss; one thread where processes share the cores in turn."""
    settings = run.recipe.section(stage)
    values = {
        "budget": "null",
        "phases": "[]",
        "steps": steps,
        "early_stopping": "null",
        "schedule.warmup_steps": min(settings.schedule.warmup_steps, steps // 4),
        "log_every_steps": 1,
        "save_every_steps": max(1, steps // 8),
        "validate_every_steps": "null",
        "validate_every_tokens": "null",
        "validate_every_epochs": "null",
        "sample_every_steps": "null",
        "metrics.tensorboard": "false",
        **({"threads": 1} if processes > 1 else {}),
    }
    return [f"{stage}.{name}={value}" for name, value in values.items()]


def stage_to_prove(run: Run, asked: str | None) -> Stage:
    """The stage asked for, or the first training stage of the recipe. Raises ConfigError if the recipe does not have it."""
    found = [stage for stage in TRAINING_STAGES if has_stage(stage, run) and asked in (None, stage)]
    if not found:
        raise ConfigError(f"the recipe has no stage {asked!r} that trains", "add its section to the recipe, or prove another stage")
    return found[0]
