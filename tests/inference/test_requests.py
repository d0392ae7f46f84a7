"""What a failure inside means: broken weights, too little memory, or what nobody foresaw, each with a remedy of its own."""

from __future__ import annotations

import pytest
import torch

from fledge.core.errors import FledgeError, MachineError, NumericsError
from fledge.inference.requests import error_of, failure_of


@pytest.mark.parametrize(
    ("error", "kind", "problem"),
    [
        (NumericsError("logits are not numbers", "use another"), "numbers", "logits are not numbers"),
        (MemoryError(), "memory", "MemoryError"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"),
            "memory",
            "OutOfMemoryError: CUDA out of memory. Tried to allocate",
        ),
        (
            RuntimeError("[enforce fail] can't allocate memory: you tried"),
            "memory",
            "RuntimeError: [enforce fail] can't allocate memory: you tried",
        ),
        (MachineError("no device", "look"), "other", "MachineError: no device"),
        (ValueError("secret"), "other", "ValueError: secret"),
    ],
)
def test_kinds(error: Exception, kind: str, problem: str) -> None:
    failure = failure_of(error)
    assert (failure.kind, failure.problem) == (kind, problem)


@pytest.mark.parametrize(
    ("error", "raised", "remedy"),
    [
        (NumericsError("logits are not numbers", "use another"), NumericsError, "earlier checkpoint"),
        (MemoryError(), MachineError, "more memory"),
        (ValueError("secret"), MachineError, "report"),
    ],
)
def test_each_kind_has_its_own_error(error: Exception, raised: type[FledgeError], remedy: str) -> None:
    told = error_of(failure_of(error), "it could not be done")
    assert type(told) is raised
    assert told.problem.startswith("it could not be done: ") and "\n" not in told.problem
    assert remedy in told.remedy
