"""`--processes N` and `--gpus N`: a training stage in so many processes of this machine, started as torchrun starts them.

torchrun's agent runs inside this process, which holds the lock on the run folder, passes signals on and ends with the exit code of
what went wrong first. A launched process does not print why it failed: N processes would say the same N times, or tell of the
loss of another one. Each leaves a report, and the first cause is raised here as one error. All other stages run in this process.

    fledge run RECIPE --processes 2
      +- corpus, tokenizer, pack                              here
      +- torchrun's agent: 2 x `fledge pretrain RECIPE ...`   RANK, WORLD_SIZE and the like as from torchrun
      +- ...
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fledge.core import artifact, console, disk, process, watch
from fledge.core.errors import ConfigError, DistributedError, FledgeError, MachineError, Stopped
from fledge.core.watch import Place
from fledge.stages import TRAINING_STAGES, Stage, run_stage
from fledge.stages.run import Run

SAVING_SECONDS = 600
"""How long processes that were asked to stop may take for their step and a checkpoint before they are killed."""

_STOOD_STILL = 1
"""The exit code of a process that `core.watch` ended; others end with it too."""
_CONTINUE = "run the same command again: training continues from its last checkpoint"


@dataclass(frozen=True)
class Report:
    """Why a launched process failed."""

    rank: int
    unix_seconds: float
    problem: str
    remedy: str
    exit_code: int


def passed_on(no_wandb: bool, log_level: console.LogLevel) -> list[str]:
    """Options that a launched process gets besides the recipe, its overrides and its name."""
    return ["--log-level", log_level, *(["--no-wandb"] if no_wandb else [])]


def starter(processes: int | None, gpus: int | None, options: Sequence[str]) -> Callable[[Stage, Run], None]:
    """What starts a stage: `run_stage`, or for training stages so many processes, each with these options of the command line.

    Raises ConfigError if both are given or this is a launched process itself, MachineError if there are fewer GPUs.
    """
    count = processes or gpus
    if count is None:
        return run_stage
    if processes and gpus:
        raise ConfigError("--processes and --gpus cannot be had at once", "give one of them; --gpus insists on GPUs")
    if process.world_size() > 1:
        raise ConfigError(
            f"this is one of {process.world_size()} processes already, each would start {count} more",
            "leave out --processes and --gpus, or start without torchrun or accelerate",
        )
    if gpus:
        _require_gpus(gpus)

    def start(stage: Stage, run: Run) -> None:
        # What is finished, and what was made differently, is told without starting anything.
        is_finished = (run.folder / stage / artifact.MANIFEST).is_file() and run.resume is None
        if stage not in TRAINING_STAGES or is_finished:
            run_stage(stage, run)
            return
        if run.resume is not None:
            from fledge.stages.resumption import rewound

            run = rewound(run, stage, count)
        device = [f"{stage}.device=cuda"] if gpus else []
        launch([stage, *run.arguments, *device, *options], count)

    return start


def launch(arguments: Sequence[str], processes: int, module: str = "fledge") -> None:
    """Run `fledge ARGUMENTS`, or another module, in so many processes and wait for them.

    Raises the first cause if one fails, Stopped after a signal.
    """
    import tempfile

    import torch
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from fledge.verbs import rendezvous

    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()  # what stages of this process have left
    with tempfile.TemporaryDirectory(prefix="fledge-") as folder, _torchrun_in_this_process(Path(folder), processes):
        try:
            torchrun.run(torchrun.parse_args([*rendezvous.arguments(Path(folder), processes), "-m", module, *arguments]))  # type: ignore[no-untyped-call]
        except ChildFailedError as error:
            reports = _reports(Path(folder))
            # Who left no report had no time to: the others, even if they were seen to end before, may only have missed it.
            silent = {rank: one for rank, one in error.failures.items() if all(rank != found.rank for found in reports)}
            rank, failure = min((silent or error.failures).items(), key=lambda item: item[1].timestamp)
            raise first_cause(reports, rank, failure.exitcode, failure.timestamp, watch.places(Path(folder))) from None
        except SignalException as error:
            name = signal.Signals(error.sigval).name
            stopped = Stopped(error.sigval, f"stopped by {name}", _CONTINUE)
            raise first_cause(_reports(Path(folder)), otherwise=stopped) from None


def report(error: Exception) -> bool:
    """Leave word of a failure to the process that launched this one; False if none did."""
    folder = process.report_folder()
    if folder is None:
        return False
    if isinstance(error, FledgeError):
        problem, remedy, exit_code = error.problem, error.remedy, error.exit_code
    else:
        problem = f"process {process.rank()} failed{_where(folder)}\n{''.join(traceback.format_exception(error))}"
        remedy, exit_code = "this is a mistake of Fledge's own: please report the lines above", FledgeError.exit_code
    found = Report(process.rank(), time.time(), problem, remedy, exit_code)
    disk.write_json(folder / f"{found.rank}.json", asdict(found))
    return True


def _where(folder: Path) -> str:
    return next((f" {one.words}" for one in watch.places(folder) if one.rank == process.rank()), "")


def first_cause(
    reports: Sequence[Report],
    failed_rank: int | None = None,
    exit_code: int = 0,
    ended_unix_seconds: float = 0.0,
    found: Sequence[Place] = (),
    otherwise: FledgeError | None = None,
) -> FledgeError:
    """Of all that was reported, and of how the process that failed first ended, what the others only followed from.

    A stop and the loss of another process come last: torchrun stops the processes that are left, and these miss the one that failed.
    `found`: where processes were last.
    """
    in_time = sorted(reports, key=lambda found: found.unix_seconds)
    own = [one for one in in_time if one.exit_code < 128 and one.exit_code != DistributedError.exit_code]
    if own:
        return _as_error(own[0])
    place = next((one for one in found if one.rank == failed_rank), None)
    where = f" {place.words}" if place is not None else ""
    if exit_code < 0:
        problem = f"process {failed_rank} was ended by {signal.Signals(-exit_code).name}{where}"
        return DistributedError(problem, f"see whether memory ran out (a smaller micro_batch_rows needs less); then {_CONTINUE}")
    is_silent = all(one.rank != failed_rank for one in in_time)
    if is_silent and exit_code == _STOOD_STILL and place is not None and place.stood_still(ended_unix_seconds):
        return _stands_still(watch.held_up(list(found)), found)
    ended = DistributedError(f"process {failed_rank} ended with exit code {exit_code}{where}", f"see what it said; then {_CONTINUE}")
    if is_silent and exit_code > 0 and exit_code != DistributedError.exit_code:
        return ended
    stops = [one for one in in_time if one.exit_code >= 128]
    if stops or in_time:
        return _as_error((stops or in_time)[0])
    return otherwise or ended


def _stands_still(culprit: Place, found: Sequence[Place]) -> DistributedError:
    others = ", ".join(f"process {one.rank} {one.words}" for one in found if one != culprit)
    return DistributedError(
        f"process {culprit.rank} stood still {culprit.words} ({others})",
        f"its stack is above; raise hang_timeout_seconds if it was only slow; then {_CONTINUE}",
    )


def _as_error(found: Report) -> FledgeError:
    error = FledgeError(found.problem, found.remedy)
    error.exit_code = found.exit_code
    return error


def _reports(folder: Path) -> list[Report]:
    return [Report(**json.loads(path.read_text(encoding="utf-8"))) for path in sorted(folder.glob("*.json"))]


def _require_gpus(gpus: int) -> None:
    import torch

    found = torch.cuda.device_count()
    if found < gpus:
        raise MachineError(
            f"--gpus {gpus} asks for more GPUs than torch finds here: {found}",
            f"ask for {found}" if found else f"--processes {gpus} starts as many on the CPU",
        )


def collective_backends() -> tuple[str, ...]:
    """By what processes can train together here: nccl on GPUs, gloo on CPUs."""
    import torch.distributed

    if not torch.distributed.is_available():
        return ()
    there = {"nccl": torch.distributed.is_nccl_available(), "gloo": torch.distributed.is_gloo_available()}
    return tuple(name for name, is_there in there.items() if is_there)


@contextlib.contextmanager
def _torchrun_in_this_process(reports: Path, processes: int) -> Iterator[None]:
    """What torchrun's agent takes from its process and leaves in it: environment, signal handlers, lines of a log."""
    import logging

    from fledge.corpus.engine.pool import available_cores

    environment = dict(os.environ)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)}
    os.environ[process.REPORT_FOLDER] = str(reports)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // processes)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SAVING_SECONDS))
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.environ.clear()
        os.environ.update(environment)
