"""What is found out by trying, before the first step: model and rows -> [compile, try one micro-batch] -> trainer.

A compiler that fails on this machine, or a micro-batch that does not fit its memory, must never end a run. So one micro-batch goes
forward and backward before anything counts: if compiling fails, training goes on without it; if memory runs out, the micro-batch is
halved, and the batch stays what it was. All processes agree on the smallest answer, and machine.json keeps it for the next start.
A stage with checkpoints is tried as well, but to go on otherwise than it began is refused, as any change of the arithmetic is.

Whether FP8 pays depends on the card and on the model's width, so where a long run may choose, both are timed on that micro-batch.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from fledge.core import console
from fledge.core.errors import MachineError
from fledge.model.float8 import has_float8, leave_float8, shares, use_float8
from fledge.model.llama import Llama
from fledge.model.precision import can_compute
from fledge.training.batches import Batch, BatchLoader, RowReader, Rows, rows_at_once
from fledge.training.checkpoint_folders import step_folders
from fledge.training.objectives import Objective
from fledge.training.parallel import Machine, World, keep_trial, kept_measurement
from fledge.training.plan import Plan, Row
from fledge.training.probe import measure_pass
from fledge.training.resident import ResidentRows, fits_easily
from fledge.training.settings import TrainingSettings

OPTIMIZER_BYTES_PER_PARAMETER = 8
"""Two moments in fp32, which are made at the first step and not at the trial."""
SHAPES_TO_COMPILE = 64
"""torch gives up on a function after 8; each phase of a curriculum is one."""
WORTHWHILE_FLOAT8_SECONDS = 1_200
"""Of training in bf16, to time FP8 against it: compiling once or twice more takes up to two minutes, FP8 saves a seventh at best."""
TIMED_PASSES = 5


def choose_computation(model: Llama, settings: TrainingSettings, machine: Machine, plan: Plan) -> None:
    """Make a model, wherever it is still whole, keep and compute what the settings and the machine say.

    Preferences are learned without the model's dropout, as in TRL: the reference's scores know none, and with it the first loss would
    not be ln 2.
    """
    model.train(settings.objective.kind != "preference")
    model.model.activation_checkpointing = settings.activation_checkpointing
    if machine.precision == "fp8":
        use_float8(model)
        _say_shares(model, plan)


def prepare(
    folder: Path,
    model: Llama,
    objective: Objective,
    machine: Machine,
    world: World,
    settings: TrainingSettings,
    rows: Rows,
    plan: Plan,
) -> Machine:
    """Compile a model on its device and try a micro-batch, as far as that works here; the machine as it turned out to be.

    What can fail is tried: a CPU that does not compile needs no trial. A sharded model is neither compiled nor tried: its layers meet in
    every pass, and a process that runs out of memory alone would leave the others waiting. Raises MachineError if not even one row fits,
    or if CUDA graphs are asked for where they cannot be; ArtifactError if checkpoints were computed otherwise than works now.
    """
    graphs = settings.compile == "cuda_graphs"
    if graphs and (world.device.type != "cuda" or world.size > 1):
        problem = f"compile is cuda_graphs, which needs one process with one CUDA GPU, not {world.size} x {world.device.type}"
        raise MachineError(problem, "choose another value: auto compiles where it pays")
    if world.sharded:
        return machine
    if machine.compiled:
        compile_in_place(model, graphs)
    if not machine.compiled and world.device.type == "cpu":
        return machine
    longest = max(phase.batch_rows for phase in plan.phases if phase.row_tokens == plan.longest_row_tokens)
    wanted = rows_at_once(longest, machine.micro_batch_rows or settings.micro_batch_rows, world.size, world.elastic)
    there = plan.sources[0].rows(rows.row_tokens)
    sample = [Row(0, index % there, 0) for index in range(wanted)]
    compiled, fitting = try_out(model, objective, machine, world, wanted, lambda count: rows.batch(sample[:count], count))
    if fitting < wanted:
        console.say(f"micro-batches of {fitting} rows: {wanted} do not fit the memory of {world.device}; the batch stays the same")
    tried = replace(machine, compiled=compiled, micro_batch_rows=fitting if fitting < wanted else machine.micro_batch_rows)
    is_plain = settings.lora is None and settings.objective.kind != "preference"
    if settings.precision == "auto" and is_plain and not graphs and may_choose_float8(tried, world.device) and not step_folders(folder):
        batch = rows.batch(sample[:fitting], fitting)
        passes = plan.tokens(plan.steps) / (fitting * rows.row_tokens * world.size)
        seconds = partial(measure_pass, model, objective, tried, batch.to(world.device), TIMED_PASSES)
        tried = faster_precision(folder, model, tried, world, plan, passes, seconds)
    return keep_trial(folder, machine, tried, settings.inexact_resume)


def on_device(reader: RowReader, world: World, wanted: Literal["auto", "on", "off"]) -> Rows:
    """The same rows from the device's own memory, where that is wanted; preference pairs, which are few, are read as ever."""
    if reader.content == "preferences" or wanted == "off" or (wanted == "auto" and not fits_easily(reader, world.device)):
        return reader
    return ResidentRows(reader, world.device)


def open_batches(plan: Plan, rows: Rows, micro_batch_rows: int | None, world: World) -> BatchLoader:
    """A process's batches; what is not on a GPU is read ahead for it."""
    ahead = world.device.type == "cuda" and not isinstance(rows, ResidentRows)
    return BatchLoader(plan, rows, micro_batch_rows, world.rank, world.size, ahead, world.elastic)


def compile_in_place(model: Llama, graphs: bool = False) -> None:
    """Make calls of the model run compiled code, made for each shape when it first occurs; parameters and names stay as they are.

    `graphs`: as CUDA graphs besides, which start all kernels of a pass at once. What a pass returns is then good until the next one, so
    gradients need memory of their own (`Optimizer.keep_gradient_memory`).
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, SHAPES_TO_COMPILE)
    model.compile(dynamic=False, fullgraph=True, mode="reduce-overhead" if graphs else None)


def try_out(
    model: Llama, objective: Objective, machine: Machine, world: World, rows: int, batch_of: Callable[[int], Batch]
) -> tuple[bool, int]:
    """Whether the model stays compiled, and the rows of a micro-batch that fit, at most `rows`. `batch_of(rows)` gives a real micro-batch.

    Raises MachineError if not even one row fits.
    """
    compiled = machine.compiled
    while True:
        try:
            _one_pass(model, objective, machine, world, batch_of(rows))
            break
        except torch.OutOfMemoryError as error:
            if rows == 1:
                raise MachineError(
                    f"one row does not fit the memory of {world.device}", "shorten the rows, or set activation_checkpointing to full"
                ) from error
            rows = (rows + 1) // 2
        except Exception as error:  # a compiler fails in ways that have no common type
            if not compiled:
                raise
            console.warn(f"compiling failed ({type(error).__name__}), training goes on without: {_first_line(error)}")
            model._compiled_call_impl = None
            compiled = False
        _forget(model)
    _forget(model)
    if not world.least(int(compiled)):
        model._compiled_call_impl = None
        compiled = False
    return compiled, world.least(rows)


def may_choose_float8(machine: Machine, device: torch.device) -> bool:
    """Whether FP8 is a choice here; without a compiler its scaling alone costs more than it saves."""
    return machine.precision == "bf16" and machine.compiled and has_float8() and can_compute("fp8", device, has_float8=True)


def faster_precision(
    folder: Path, model: Llama, machine: Machine, world: World, plan: Plan, passes: float, pass_seconds: Callable[[], float]
) -> Machine:
    """The machine with FP8 if that is faster than bf16 and so many passes are worth finding out; the model computes accordingly.

    What was timed is kept in machine.json.
    """
    bf16_seconds = pass_seconds()
    if world.from_main(int(bf16_seconds * passes < WORTHWHILE_FLOAT8_SECONDS)):
        return machine
    linears, fp8_seconds = use_float8(model), math.inf
    compile_in_place(model)
    try:
        fp8_seconds = pass_seconds()
    except Exception as error:  # a compiler, and FP8 on this GPU, fail in ways that have no common type
        console.warn(f"fp8 failed ({type(error).__name__}), training goes on in bf16: {_first_line(error)}")
        _forget(model)
    works = world.least(int(fp8_seconds < math.inf))
    if works and world.main:
        kept_measurement(folder, "bf16_pass_seconds", lambda: bf16_seconds)
        kept_measurement(folder, "fp8_pass_seconds", lambda: fp8_seconds)
        console.say(f"precision: a micro-batch takes {bf16_seconds:.4f} s in bf16 and {fp8_seconds:.4f} s in fp8, the faster is taken")
    if works and world.from_main(int(fp8_seconds < bf16_seconds)):
        _say_shares(model, plan)
        return replace(machine, precision="fp8")
    leave_float8(model, linears)
    compile_in_place(model)
    return machine


def _say_shares(model: Llama, plan: Plan) -> None:
    share = shares(model.config, plan.longest_row_tokens)
    console.say(f"fp8: {share.fp8:.0%} of the FLOPs, those of the layers' linear maps; bf16 {share.bf16:.0%}; optimizer and loss fp32")


def _one_pass(model: Llama, objective: Objective, machine: Machine, world: World, batch: Batch) -> None:
    with machine.autocast(world.device):
        result = objective(model, batch.to(world.device))
    torch.autograd.backward(result.loss)
    if world.device.type == "cuda":
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        needed_bytes = OPTIMIZER_BYTES_PER_PARAMETER * trained
        free_bytes, _ = torch.cuda.mem_get_info(world.device)
        if free_bytes < needed_bytes:
            raise torch.OutOfMemoryError(f"{free_bytes} bytes are left for the optimizer, {needed_bytes} are needed")


def _forget(model: Llama) -> None:
    """Leave no gradient and no memory behind."""
    model.zero_grad(set_to_none=True)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "no reason given")
