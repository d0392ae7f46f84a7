"""When a state becomes a checkpoint: at once or behind the next steps, and what happens if the disk does not take it.

    save -> snapshot -> [ write, publish, read back, remove old ones ] -> the next step
                          in a thread, if saves are asynchronous

A save that fails costs nothing but itself: it is counted and told, older checkpoints stay as they are, and the next one tries again.
Only where going on would risk what was learned is it an error: at the end of a run, on a signal, and after five failures in a row.

An asynchronous save copies the state in memory (12 bytes per parameter) and writes the copy while training goes on, so the bytes are
those of a synchronous one. At most one is on its way. After PyTorch's asynchronous distributed checkpoints and torchtitan's use of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from fledge.core import console
from fledge.core.artifact import Request
from fledge.core.errors import DistributedError, FledgeError, MachineError, NumericsError
from fledge.model.llama import Llama
from fledge.training.checkpoint import CopyTokenizer, Progress, Snapshot, take_snapshot, write_checkpoint
from fledge.training.checkpoint_folders import Checkpoint
from fledge.training.optimizer import Optimizer
from fledge.training.parallel import World
from fledge.training.plan import Plan
from fledge.training.sound_checkpoints import KEPT_WHILE_RUNNING, problems_of, retain, sweep

Occasion = Literal["cadence", "stop", "end"]
"""Why to save: it is time; a signal stops the run; the run has ended."""
FAILURES_IN_A_ROW = 5
"""Saves that failed one after the other, after which training stops: what it still learns could be lost."""


class CheckpointWriter:
    """Saves the checkpoints of a stage and removes those that are no longer kept; as a block it waits for the last one at its end."""

    def __init__(
        self,
        stage_folder: Path,
        request: Request,
        keep: int,
        copy_tokenizer: CopyTokenizer | None = None,
        keep_every_steps: int | None = None,
        keep_every_epochs: int | None = None,
        asynchronous: bool = False,
        sampling: Mapping[str, Any] | None = None,
    ) -> None:
        """`request` is what the stage was asked for; a checkpoint is that and a step. `sampling`: how its model is to be drawn from."""
        self.stage_folder = stage_folder
        self.failures = 0
        """Saves that did not succeed, since this process began, ways back included."""
        self._request, self._copy_tokenizer, self._sampling = request, copy_tokenizer, sampling
        self._keep, self._keep_every_steps, self._keep_every_epochs = keep, keep_every_steps, keep_every_epochs
        self._failures_in_a_row = 0
        self._sound: set[str] = set()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint") if asynchronous else None
        self._on_its_way: tuple[int, Future[Checkpoint]] | None = None

    def save(
        self, model: Llama, optimizer: Optimizer, plan: Plan, progress: Progress, world: World, occasion: Occasion = "stop"
    ) -> Checkpoint | None:
        """Write the state of a run, or let it be written; every process takes part, the main one writes.

        Returns the checkpoint where it is there already. Raises, in all processes, NumericsError if a value is not finite, MachineError if
        the disk does not take the last state of this process, or takes no checkpoint for the fifth time in a row.
        """
        snapshot = take_snapshot(model, optimizer, plan, progress, world)
        saved: Checkpoint | None = None
        problem: FledgeError | None = None
        if world.main:
            try:
                saved = self._save(snapshot, occasion)
            except (MachineError, NumericsError) as error:
                problem = error
        if world.from_main(int(problem is not None)):
            raise problem or DistributedError("the main process could not save", "see what it says, then run the same command again")
        return saved

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.wait()

    def notice(self) -> None:
        """Tell of a save on its way that has failed meanwhile; does not wait."""
        if self._on_its_way is not None and self._on_its_way[1].done():
            self.wait()

    def wait(self) -> None:
        """Wait for a save that is on its way, so that the folder is at rest."""
        if self._on_its_way is not None:
            (step, future), self._on_its_way = self._on_its_way, None
            self._settled(step, future.result)

    def _save(self, snapshot: Snapshot, occasion: Occasion) -> Checkpoint | None:
        snapshot.require_finite()
        self.wait()
        step, keep = snapshot.progress.step, max(self._keep, KEPT_WHILE_RUNNING)
        saved = None
        if occasion != "cadence":
            saved = self._surely_written(snapshot, self._keep if occasion == "end" else keep)
            self._failures_in_a_row = 0
        elif self._thread is None:
            saved = self._settled(step, lambda: self._write(snapshot, keep))
        elif self._failures_in_a_row < FAILURES_IN_A_ROW:
            self._on_its_way = step, self._thread.submit(self._write, snapshot.copied(), keep)
        if self._failures_in_a_row >= FAILURES_IN_A_ROW:
            raise MachineError(
                f"{self._failures_in_a_row} checkpoints in a row could not be written, the last before step {step + 1:,}",
                "see the warnings above; free disk space or mend the disk, then run the same command again",
            )
        return saved

    def _surely_written(self, snapshot: Snapshot, keep: int) -> Checkpoint:
        try:
            return self._write(snapshot, keep)
        except (MachineError, OSError) as error:
            problem, remedy = _told(error)
            raise MachineError(
                f"the state after step {snapshot.progress.step:,} could not be saved: {problem}",
                f"{remedy}; what was saved before is as it was, training continues from it",
            ) from error

    def _settled(self, step: int, result: Callable[[], Checkpoint]) -> Checkpoint | None:
        """What came of a save that may fail."""
        try:
            saved = result()
        except (MachineError, OSError) as error:
            self.failures += 1
            self._failures_in_a_row += 1
            count = f"failure {self._failures_in_a_row} in a row" if self._failures_in_a_row > 1 else "training goes on"
            console.warn(f"no checkpoint of step {step:,}: {_told(error)[0]} ({count}; the next save tries again)")
            return None
        self._failures_in_a_row = 0
        return saved

    def _write(self, snapshot: Snapshot, keep: int) -> Checkpoint:
        sweep(self.stage_folder)
        saved = write_checkpoint(snapshot, self.stage_folder, self._request, self._copy_tokenizer, self._sampling)
        problems = problems_of(saved.path)
        if problems:
            raise MachineError(f"what was written reads back differently: {problems[0]}", "test the disk and the memory of this machine")
        self._sound.add(saved.artifact.id)
        try:
            is_permanent = partial(self._is_permanent, snapshot.plan)
            retain(self.stage_folder, keep, is_permanent, self._sound, snapshot.progress.health.bad_since)
        except MachineError as error:
            console.warn(f"older checkpoints stay: {error.problem}")
        return saved

    def _is_permanent(self, plan: Plan, step: int) -> bool:
        by_steps = self._keep_every_steps is not None and step % self._keep_every_steps == 0
        return by_steps or plan.ends_epochs(step, self._keep_every_epochs)


def _told(error: MachineError | OSError) -> tuple[str, str]:
    """Problem and remedy."""
    if isinstance(error, MachineError):
        return error.problem, error.remedy
    return f"{error.filename or 'the disk'}: {error.strerror}", "mend the disk, then run the same command again"
