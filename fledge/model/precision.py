"""Which arithmetic the matrix products use: machine -> [probe, decide] -> a precision, and which fp32 kernel.

Parameters are fp32 always, and so are loss and optimizer. What differs is how products are computed:

    fp32    in full                                        tf32    factors rounded to 10 bits (NVIDIA from Ampere on)
    bf16    by autocast, 8 bits and the range of fp32      fp16    by autocast, 11 bits and a small range: the loss is scaled (training)
    fp8     the layers' products in E4M3 with scales (model.float8), head and the rest as in bf16

On a CPU the right choice differs by a factor of two to five from one machine to the next and cannot be told from its name, so it is
measured, once, on a product of the kind a small model is made of. A GPU's is known by its compute capability. Measuring and deciding
are apart: the decisions are pure functions.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fledge.core.errors import MachineError
from fledge.core.installing import install_hint
from fledge.model.settings import RequestedPrecision

Precision = Literal["fp32", "tf32", "bf16", "fp16", "fp8"]

BF16_CAPABILITY, FP16_CAPABILITY, FP8_CAPABILITY = (8, 0), (7, 0), (8, 9)
"""The first compute capabilities with such units: Ampere, Volta, Ada. torch emulates bf16 below, slowly."""

BF16_SPEEDUP = 1.3
"""Below this, bf16 is not worth its rounding; processors without bf16 units are slower with it than without."""
BF16_ERROR = 1e-2
"""Relative error of a product. Rounding the factors to 8 bits gives 2e-3 to 3e-3; more means a broken kernel."""
FP32_ERROR = 1e-6
"""Relative error of a product: fp32 kernels have 2e-7, one that rounds to bf16 behind our back has 2e-3."""

_ROWS, _INNER, _COLUMNS = 512, 256, 768
_REPEATS, _LEAST_REPEATS, _ENOUGH_SECONDS = 50, 3, 0.3
"""A processor without bf16 takes 0.2 s for one such product in it: fifty would keep every first start waiting for ten seconds."""


@dataclass(frozen=True)
class ProductTiming:
    """One kind of matrix product, measured."""

    seconds: float
    relative_error: float
    """|product - exact| / |exact|, Frobenius norms."""


def choose_precision(requested: RequestedPrecision, device: torch.device | str, has_float8: bool = False) -> Precision:
    """The precision asked for, if this device has it; for "auto", and for "fp8_or_bf16" without fp8, the fastest that needs no trial.

    On a CPU call `use_fast_fp32` before, so that bf16 has to beat the best fp32. There the answer is a measurement: record it.
    `has_float8`: whether the library for it is installed. Raises MachineError naming the alternatives if the device cannot do it.
    """
    device = torch.device(device)
    capability = capability_of(device)
    fit = fit_precisions(device.type, capability, has_float8)
    if requested == "fp8_or_bf16" and "fp8" in fit:
        return "fp8"
    # On a processor without units for bf16 a step in it takes thirty times as long, so who asks for fp8_or_bf16 gets what pays there.
    if requested in ("auto", "fp8_or_bf16"):
        if device.type == "cpu":
            return "bf16" if bf16_pays(measure_product(torch.float32), measure_product(torch.bfloat16)) else "fp32"
        return "fp32" if capability is None else fastest_of(capability)
    if requested not in fit:
        wanting = " without torchao" if requested == "fp8" and not has_float8 else ""
        raise MachineError(
            f"precision is {requested}, which this {device.type}{_shown(capability)} cannot do{wanting}",
            f"choose one of {', '.join(fit)}; or fp8_or_bf16, which takes what there is"
            if requested == "fp8"
            else f"choose one of {', '.join(fit)}",
        )
    return requested


def float8_lacks(device: str, capability: tuple[int, int] | None, has_float8: bool) -> str | None:
    """What a kind of device needs for FP8 and does not have; None if it has it."""
    if capability is None:
        return f"a {device} has no units for fp8"
    if capability < FP8_CAPABILITY:
        needed = ".".join(map(str, FP8_CAPABILITY))
        return f"the GPU has compute capability {capability[0]}.{capability[1]}, and units for fp8 come with {needed}"
    return None if has_float8 else f"torchao is missing, which computes in fp8: {install_hint('fp8')}"


def can_compute(precision: Precision, device: torch.device | str, has_float8: bool = False) -> bool:
    """Whether a device has a precision."""
    device = torch.device(device)
    return precision in fit_precisions(device.type, capability_of(device), has_float8)


def capability_of(device: torch.device) -> tuple[int, int] | None:
    """Of an NVIDIA GPU; None for what is none."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def fastest_of(capability: tuple[int, int]) -> Precision:
    """The fastest sane precision of an NVIDIA GPU."""
    if capability >= BF16_CAPABILITY:
        return "bf16"
    return "fp16" if capability >= FP16_CAPABILITY else "fp32"


def fit_precisions(device: str, capability: tuple[int, int] | None, has_float8: bool) -> tuple[Precision, ...]:
    """What a kind of device can compute in, best known first."""
    if capability is None:
        return ("fp32", "bf16")
    fit: list[Precision] = ["fp32"]
    if capability >= BF16_CAPABILITY:
        fit += ["tf32", "bf16"]
    if capability >= (5, 3):
        fit.append("fp16")
    if capability >= FP8_CAPABILITY and has_float8:
        fit.append("fp8")
    return tuple(fit)


def _shown(capability: tuple[int, int] | None) -> str:
    return "" if capability is None else f" of compute capability {capability[0]}.{capability[1]}"


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
    if precision in ("fp32", "tf32"):
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=torch.float16 if precision == "fp16" else torch.bfloat16)


def set_fp32_products(precision: Precision, fast_fp32: bool) -> None:
    """Let this process compute fp32 products as was chosen: tf32 on a GPU, oneDNN's kernels on a CPU (`use_fast_fp32`), or in full."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "medium" if fast_fp32 else "highest")


def sum_dtype(device: torch.device) -> torch.dtype:
    """In what sums over many rows are kept, so that how rows are grouped does not show; Apple's GPUs have nothing wider than fp32."""
    return torch.float32 if device.type == "mps" else torch.float64


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


def product_flops() -> int:
    """FLOPs of the product that `measure_product` takes the time of."""
    return 2 * _ROWS * _INNER * _COLUMNS


def _fastest_seconds(run: Callable[[], Tensor]) -> float:
    """Of several runs, because what else the machine does only ever adds time; of few where each is long."""
    seconds = list[float]()
    while len(seconds) < _REPEATS and (len(seconds) < _LEAST_REPEATS or sum(seconds) < _ENOUGH_SECONDS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
