"""Which arithmetic the matrix products use: machine -> [probe, decide] -> fp32 or bf16, and which fp32 kernel.

Parameters are fp32 always; "bf16" means autocast: products in bf16, norms, softmax, loss and optimizer in fp32. On a CPU the
right choice differs by a factor of two to five from one machine to the next and cannot be told from its name, so it is measured,
once, on a product of the kind a small model is made of. Measuring and deciding are apart: the decisions are pure functions.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Precision = Literal["fp32", "bf16"]
RequestedPrecision = Literal["auto", "fp32", "bf16"]

BF16_SPEEDUP = 1.3
"""Below this, bf16 is not worth its rounding; processors without bf16 units are slower with it than without."""
BF16_ERROR = 1e-2
"""Relative error of a product. Rounding the factors to 8 bits gives 2e-3 to 3e-3; more means a broken kernel."""
FP32_ERROR = 1e-6
"""Relative error of a product: fp32 kernels have 2e-7, one that rounds to bf16 behind our back has 2e-3."""

_ROWS, _INNER, _COLUMNS = 512, 256, 768
_REPEATS = 50


@dataclass(frozen=True)
class ProductTiming:
    """One kind of matrix product, measured."""

    seconds: float
    relative_error: float
    """|product - exact| / |exact|, Frobenius norms."""


def choose_precision(requested: RequestedPrecision, device: torch.device | str) -> Precision:
    """fp32 or bf16 as asked; for "auto" bf16 where the device has fast and sane bf16 products, else fp32.

    On a CPU call `use_fast_fp32` before, so that bf16 has to beat the best fp32. The answer is a measurement: record it.
    """
    if requested != "auto":
        return requested
    kind = torch.device(device).type
    if kind == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if kind == "cpu":
        return "bf16" if bf16_pays(measure_product(torch.float32), measure_product(torch.bfloat16)) else "fp32"
    return "fp32"


def use_fast_fp32(device: torch.device | str) -> bool:
    """On a CPU, let fp32 products run through oneDNN if they then still are fp32; returns whether they do.

    torch's default is MKL, whose kernels reach 100 GFLOP/s on a Zen 5 core where oneDNN's reach 235. The switch is torch's
    precision "medium", which on processors with AMX may round to bf16: then it is taken back. Decided by the error alone, so
    that a busy moment does not change the arithmetic from one run to the next.
    """
    if torch.device(device).type != "cpu":
        return False
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    keep = is_exact_fp32(measure_product(torch.float32))
    if not keep:
        torch.set_float32_matmul_precision(before)
    return keep


def autocast(precision: Precision, device: torch.device | str) -> AbstractContextManager[object]:
    """The context in which a forward pass runs."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)


def bf16_pays(fp32: ProductTiming, bf16: ProductTiming) -> bool:
    """Whether bf16 is fast and exact enough to be preferred."""
    return bf16.seconds * BF16_SPEEDUP <= fp32.seconds and bf16.relative_error <= BF16_ERROR


def is_exact_fp32(product: ProductTiming) -> bool:
    """Whether a product was computed in fp32 throughout."""
    return product.relative_error <= FP32_ERROR


def measure_product(dtype: torch.dtype) -> ProductTiming:
    """Time and error of a (512, 256) x (256, 768) product on one thread of the CPU, in about 0.1 s.

    One thread and many short runs: on two busy cores, nine runs on both threads once chose fp32 where bf16 is twice as fast.
    """
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(_ROWS, _INNER, generator=generator)
    right = torch.randn(_INNER, _COLUMNS, generator=generator)
    exact = left.double() @ right.double()
    left, right = left.to(dtype), right.to(dtype)
    product = left @ right
    error = product.double() - exact
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = _fastest_seconds(lambda: torch.mm(left, right, out=product))
    torch.set_num_threads(threads)
    return ProductTiming(seconds, float(error.norm() / exact.norm()))


def _fastest_seconds(run: Callable[[], Tensor]) -> float:
    """Of several runs, because what else the machine does only ever adds time."""
    seconds = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
