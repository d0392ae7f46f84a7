"""How long a step takes here, found out by doing some: model and a batch -> [probe] -> seconds -> forecast.

A pass is what the trainer does with a micro-batch, forward and backward. An update is the optimizer's, with a gradient of zero and a
learning rate of zero, so a model that is probed stays bit by bit what it was; its gradients and the optimizer are to be thrown away. Of
several runs the fastest counts, because what else the machine does only ever adds time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from fledge.model.llama import Llama
from fledge.training.batches import Batch, Pairs
from fledge.training.objectives import Objective
from fledge.training.optimizer import Optimizer
from fledge.training.parallel import Machine

MEAN_DOCUMENT_TOKENS = 256


@dataclass(frozen=True)
class StepSeconds:
    """What a step is made of."""

    row: float
    """A row of a micro-batch, forward and backward."""
    update: float
    """The optimizer."""

    def step(self, rows: int) -> float:
        """Seconds of a step of a process that computes so many rows."""
        return rows * self.row + self.update


def measure(model: Llama, objective: Objective, optimizer: Optimizer, machine: Machine, batch: Batch, runs: int = 1) -> StepSeconds:
    """Seconds after one run that warms up. The model is as before afterwards; drop the optimizer, and its memory."""
    passes = measure_pass(model, objective, machine, batch, runs)

    def update() -> None:
        for parameter in model.parameters():
            if parameter.requires_grad:  # the optimizer would not clear the gradient of a frozen one
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step(0.0)

    update()
    updates = min(_seconds(update, batch) for _ in range(runs))
    optimizer.clear_gradients()
    return StepSeconds(passes / len(batch.tokens), updates)


def measure_pass(model: Llama, objective: Objective, machine: Machine, batch: Batch, runs: int = 1) -> float:
    """Seconds of one pass with a micro-batch, after one that warms up; leaves no gradient behind."""

    def once() -> None:
        with machine.autocast(batch.tokens.device):
            result = objective(model, batch)
        torch.autograd.backward(result.loss)
        model.zero_grad(set_to_none=True)

    once()
    return min(_seconds(once, batch) for _ in range(runs))


def random_batch(rows: int, row_tokens: int, vocabulary_size: int, isolate_documents: bool, as_pairs: bool, device: torch.device) -> Batch:
    """Rows of random tokens, in documents of 256 on average, for a model that has no text yet; `as_pairs`: one pair of answers a row."""
    generator = torch.Generator().manual_seed(0)
    shape = (rows, row_tokens)
    tokens = torch.randint(vocabulary_size, shape, generator=generator)
    starts = torch.rand(shape, generator=generator) < 1 / MEAN_DOCUMENT_TOKENS
    documents = torch.where(starts, torch.arange(row_tokens), 0).cummax(dim=1).values.int()
    pairs = None
    if as_pairs:
        halves = 1 + (torch.arange(row_tokens) >= row_tokens // 2).long()
        pairs = Pairs(2 * torch.arange(rows)[:, None] + halves, rows, torch.zeros(rows, 2))
    batch = Batch(tokens, torch.roll(tokens, -1, dims=1), torch.ones(shape), documents if isolate_documents or as_pairs else None, pairs)
    return batch.to(device)


def _seconds(work: Callable[[], None], batch: Batch) -> float:
    _wait(batch)
    started = time.perf_counter()
    work()
    _wait(batch)
    return time.perf_counter() - started


def _wait(batch: Batch) -> None:
    """Until the device has done what it was asked for."""
    if batch.tokens.device.type == "cuda":
        torch.cuda.synchronize(batch.tokens.device)
    elif batch.tokens.device.type == "mps":
        torch.mps.synchronize()
