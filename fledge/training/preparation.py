"""What is found out by trying, before the first step: model and rows -> [compile, try one micro-batch] -> trainer.

A compiler that fails on this machine, or a micro-batch that does not fit its memory, must never end a run. So one micro-batch goes forward
and backward before anything counts: if compiling fails, training goes on without it; if memory runs out, the micro-batch is halved, and
the batch stays what it was. All processes agree on the smallest answer. What came out is kept in machine.json and the start for the next time.
"""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch

from fledge.core import console
from fledge.core.errors import MachineError
from fledge.model.llama import Llama
from fledge.training.batches import Batch
from fledge.training.objectives import Objective
from fledge.training.parallel import Machine, World

OPTIMIZER_BYTES_PER_PARAMETER = 8
"""Two moments in fp32, which are made at the first step and not at the trial."""
SHAPES_TO_COMPILE = 64
"""torch gives up on a function after 8; each phase of a curriculum is one."""


def compile_in_place(model: Llama) -> None:
    """Make calls of the model run compiled code, made for each shape when it first occurs; parameters and names stay as they are."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, SHAPES_TO_COMPILE)
    model.compile(dynamic=False, fullgraph=True)


def try_out(model: Llama, objective: Objective, machine: Machine, world: World, rows: int, batch_of: Callable[[int], Batch]) -> tuple[bool, int]:
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
    return bool(world.least(int(compiled))), world.least(rows)


def _one_pass(model: Llama, objective: Objective, machine: Machine, world: World, batch: Batch) -> None:
    with machine.autocast(world.device):
        result = objective(model, batch.to(world.device))
    result.loss.backward()
    if world.device.type == "cuda":
        needed_bytes = OPTIMIZER_BYTES_PER_PARAMETER * sum(parameter.numel() for parameter in model.parameters())
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
