"""Whether a stage compiles its model: (setting, device, work ahead) -> yes or no. Asked once, at its first start, see `parallel`."""

from __future__ import annotations

import shutil
from typing import Literal

import torch

WORTHWHILE_CPU_SECONDS = 600
"""Of training, to compile for a CPU: that costs 30 to 80 s and saves at least an eighth."""
ASSUMED_CPU_FLOPS = 100e9
"""Per thread and second, to tell minutes from hours; fp32 products reach 100 to 235 GFLOP/s on a core of 2024."""


def wants_compiling(
    requested: Literal["auto", "on", "off", "cuda_graphs"], device: torch.device, training_flops: float, threads: int
) -> bool:
    """Whether to compile: as asked; for "auto" on a GPU, and on a CPU with a compiler where the run is long.

    Compiling takes half a minute to a minute. A step of 110M parameters is then 1.6 times as fast on an H100, one of 23M on a CPU 1.1 to
    1.3 times.
    """
    if requested != "auto":
        return requested != "off"
    if device.type == "cuda":
        return True
    seconds = training_flops / (ASSUMED_CPU_FLOPS * threads)
    return device.type == "cpu" and seconds > WORTHWHILE_CPU_SECONDS and shutil.which("g++") is not None
