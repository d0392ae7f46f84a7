"""What a device can do at most, and how much memory a process has taken: device -> [peak, memory] -> figures of a run.

A card that is listed has the peak of its data sheet: dense products whose sums are in fp32, without sparsity. What is not listed, a CPU
above all, is measured at the first start of a stage on a product of the kind models are made of, and kept in machine.json.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

import torch

from fledge.core import process
from fledge.model.precision import Precision, measure_product, product_flops
from fledge.training.devices import PEAK_FLOPS_PER_SECOND
from fledge.training.parallel import Machine, kept_measurement

_DEVICE_PRODUCT_SIZE = 4_096
_DEVICE_REPEATS = 10


def peak_flops_per_second(folder: Path, machine: Machine, device: torch.device) -> float:
    """What this process's device can compute at most in the precision of a run; the main process calls this.

    A CPU's is that of one thread times the threads: where two share a core, no run comes near it.
    """
    known = known_peak(torch.cuda.get_device_name(device), machine.precision) if device.type == "cuda" else None
    if known is not None:
        return known
    kept = kept_measurement(folder, f"{machine.precision}_flops_per_second", lambda: measured_peak(device, machine.precision))
    return kept * (machine.threads if device.type == "cpu" else 1)


def known_peak(card: str, precision: Precision) -> float | None:
    """FLOP/s of a card by its name, such as "NVIDIA H100 80GB HBM3"; None if it is not listed."""
    words = set(re.split(r"[^A-Za-z0-9]+", card))
    if "Laptop" in words:
        return None  # the same name on a slower chip
    return next((peaks.get(precision) for wanted, peaks in PEAK_FLOPS_PER_SECOND.items() if words.issuperset(wanted)), None)


def measured_peak(device: torch.device, precision: Precision, size: int = _DEVICE_PRODUCT_SIZE) -> float:
    """FLOP/s of a plain product, the best of several; on a CPU by one thread. `size`: of the square factors on other devices."""
    dtypes = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp8": torch.bfloat16}
    dtype = dtypes.get(precision, torch.float32)
    if device.type == "cpu":
        return product_flops() / measure_product(dtype).seconds
    return 2 * size**3 / _seconds_of_product(device, dtype, size)


def _seconds_of_product(device: torch.device, dtype: torch.dtype, size: int) -> float:
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(_DEVICE_REPEATS):
        started = time.perf_counter()
        (left @ right)[0, 0].item()  # reading a number waits for the product
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def peak_memory_bytes(device: torch.device) -> int:
    """The most that this process has had so far: allocated on a GPU of CUDA, else resident in the machine's memory."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else process.peak_resident_bytes()
