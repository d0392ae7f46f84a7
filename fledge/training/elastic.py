"""The same bits for every number of processes: a step as fixed micro-batches whose gradients are summed by a fixed tree.

    batch -> M canonical micro-batches, M a power of two that no number of processes changes, each with a seed of its own
    gradients:  ((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7))        one process does all of it;
                 process 0            process 1                  of two each does a half, and they exchange their sums

Addition in floating point is commutative and not associative, so what has to be fixed is which sums are added to which, and a binary
tree over contiguous leaves is the same tree however many processes share it, as long as their number divides M. Between processes it
is recursive doubling: process r exchanges with r ^ 1, then with r ^ 2, and so on. DDP's all-reduce has an order of its own: it is not used.

What it costs: micro-batches of an M-th of the batch, gradients that travel after the backward pass and not beside it, and log2(M) copies
of them. A process has one thread unless `threads` says otherwise, because the number of threads shows in the bits too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fledge.core import console
from fledge.core.errors import ConfigError
from fledge.training.batches import CANONICAL_MICRO_BATCHES, Batch
from fledge.training.parallel import World

MEASURED_STEPS = 3
"""After so many the price is told; the first one is like no other."""


class TreeSum:
    """Adds up lists of tensors, leaf by leaf, by a binary tree over all of them; holds one sum for each level."""

    def __init__(self) -> None:
        self._sums: list[tuple[int, list[Tensor]]] = []

    def add(self, leaf: list[Tensor]) -> None:
        """Take the next leaf, which belongs to the tree from now on."""
        level = 0
        while self._sums and self._sums[-1][0] == level:
            _, before = self._sums.pop()
            torch._foreach_add_(before, leaf)
            level, leaf = level + 1, before
        self._sums.append((level, leaf))

    def total(self) -> list[Tensor]:
        """The sum of all leaves, whose number must be a power of two."""
        ((_, total),) = self._sums
        return total


class ElasticSteps:
    """The gradients of a step, for `Trainer`."""

    def __init__(self, world: World, parameters: Sequence[nn.Parameter], seed: int) -> None:
        self._world, self._parameters, self._seed = world, list(parameters), seed
        self._steps, self._seconds, self._began = 0, 0.0, 0.0

    def accumulate(self, micro_batches: Sequence[Batch], step: int, compute: Callable[[Batch], tuple[Tensor, Tensor]]) -> Tensor:
        """Leave the summed gradients of all processes in the parameters; returns the summed measures.

        `compute` gives the () loss of a micro-batch, to be differentiated, and its (n,) measures.
        """
        self._began = self._began or time.monotonic()
        tree, first = TreeSum(), self._world.rank * len(micro_batches)
        for number, batch in enumerate(micro_batches, start=first):
            torch.manual_seed(micro_batch_seed(self._seed, step, number))
            loss, measures = compute(batch)
            torch.autograd.backward(loss)
            started = time.monotonic()
            tree.add([measures, *(self._take(parameter) for parameter in self._parameters)])
            self._seconds += time.monotonic() - started
        started = time.monotonic()
        measures, *gradients = (self._world.tree_sum(values) for values in tree.total())
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        self._tell(time.monotonic() - started)
        return measures

    def _take(self, parameter: nn.Parameter) -> Tensor:
        gradient, parameter.grad = parameter.grad, None
        return torch.zeros_like(parameter) if gradient is None else gradient

    def _tell(self, seconds: float) -> None:
        self._steps += 1
        self._seconds += seconds
        if self._steps == MEASURED_STEPS and self._world.main:
            share = self._seconds / (time.monotonic() - self._began)
            console.say(f"elastic: summing by the tree took {share:.1%} of the first {MEASURED_STEPS} steps")


def micro_batch_seed(seed: int, step: int, number: int) -> int:
    """Of the random numbers of a canonical micro-batch: the same in whichever process it is computed."""
    return ((seed * 1_000_003 + step) * 1_000_003 + number) % (1 << 63)


def require_elastic(world: World, compile: str) -> None:
    """Raises ConfigError where the same bits are asked for and cannot be promised."""
    if not world.elastic:
        return
    if compile == "cuda_graphs":
        raise ConfigError("determinism: elastic takes gradients away, and CUDA graphs need them in place", "set compile: auto")
    if world.sharded:
        raise ConfigError("determinism: elastic needs whole gradients in each process, and this model is cut (fsdp)", "set parallel: ddp")
    if world.size > 1 and world.device.type != "cpu":
        raise ConfigError(
            f"determinism: elastic cannot be promised for {world.size} GPUs, whose kernels choose by what else runs",
            "train on one GPU, on the CPU (device: cpu), or with determinism: usual",
        )
    if CANONICAL_MICRO_BATCHES % world.size:
        raise ConfigError(
            f"determinism: elastic shares {CANONICAL_MICRO_BATCHES} micro-batches, which {world.size} processes cannot do evenly",
            "start 1, 2, 4 or 8 processes",
        )


def described(world: World, micro_batch_rows: int, parameters: int) -> str:
    """What the switch costs, for the line before the first step."""
    copies = max(1, (CANONICAL_MICRO_BATCHES // world.size).bit_length())
    return (
        f"elastic: micro-batches of {micro_batch_rows:,} rows for any number of processes, their gradients summed by a fixed tree "
        f"({console.format_bytes(4 * parameters * copies)} for sums), validation by each process alone"
    )
