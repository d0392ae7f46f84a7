"""What torch finds here, and what its products do: torch -> [accelerator] -> frozen values, which the checks judge.

On a CPU this is the probe by which training chooses bf16; on a GPU, one square product of each precision that it has units for.
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from fledge.core.wording import first_line
from fledge.model.attention import FLASH_ATTENTION_3
from fledge.model.float8 import has_float8
from fledge.model.precision import Precision, ProductTiming, bf16_pays, fit_precisions, measure_product, product_flops, use_fast_fp32
from fledge.training.peaks import measured_peak
from fledge.verbs.launching import collective_backends

_SIDE = 4096
_RUNS = 5
_DRIVER = Path("/proc/driver/nvidia/version")
_ASKING_SECONDS = 20


@dataclass(frozen=True)
class Product:
    """A matrix product of one precision, tried."""

    precision: Precision
    flops_per_second: float
    """On one thread of a CPU, or the whole GPU; 0 if it failed."""
    trouble: str = ""


@dataclass(frozen=True)
class Gpu:
    """One that torch sees."""

    name: str
    memory_bytes: int
    free_bytes: int
    capability: tuple[int, int]


@dataclass(frozen=True)
class Accelerator:
    """torch, and the devices it computes on."""

    torch_version: str
    cuda_version: str | None
    """That torch was built for; None: without CUDA."""
    driver: str | None
    """Version of NVIDIA's driver; None: there is none."""
    cuda_trouble: str
    """Why torch built for CUDA finds no GPU."""
    gpus: tuple[Gpu, ...]
    has_mps: bool
    threads: int
    products: tuple[Product, ...]
    """Empty if not tried."""
    uses_bf16: bool
    """On a CPU: whether training chooses bf16."""
    has_float8: bool
    has_flash_attention_3: bool
    backends: tuple[str, ...]
    """By which processes can train together."""

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "mps" if self.has_mps else "cpu"


def main_device() -> str:
    """The kind of device that training chooses here."""
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def look_at_accelerator(tries_products: bool = True) -> Accelerator:
    """The threads and the kernels that torch uses are as before afterwards."""
    gpus = tuple(_gpus())
    has_mps = torch.backends.mps.is_available()
    products, uses_bf16 = tuple[Product, ...](), False
    if tries_products and (gpus or has_mps):
        device = torch.device("cuda" if gpus else "mps")
        products = tuple(_products_of_gpu(device, gpus[0].capability if gpus else None))
    elif tries_products:
        products, uses_bf16 = _products_of_cpu()
    return Accelerator(
        torch.__version__,
        torch.version.cuda,
        _driver_version(),
        _cuda_trouble() if torch.version.cuda and not gpus else "",
        gpus,
        has_mps,
        torch.get_num_threads(),
        products,
        uses_bf16,
        has_float8(),
        importlib.util.find_spec(FLASH_ATTENTION_3) is not None,
        collective_backends(),
    )


def _gpus() -> Iterator[Gpu]:
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(number)
        free_bytes, _ = torch.cuda.mem_get_info(number)
        yield Gpu(properties.name, properties.total_memory, free_bytes, (properties.major, properties.minor))


def _cuda_trouble() -> str:
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except Exception as error:  # of whatever kind torch's initialisation raises
        return first_line(error)
    return "torch finds no GPU"


def _driver_version() -> str | None:
    with contextlib.suppress(OSError):
        found = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", _DRIVER.read_text(encoding="utf-8", errors="replace"))
        if found is not None:
            return found[1]
    asking = shutil.which("nvidia-smi")
    if asking is None:
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = [asking, "--query-gpu=driver_version", "--format=csv,noheader"]
        told = subprocess.run(command, capture_output=True, text=True, timeout=_ASKING_SECONDS, check=True).stdout.split()
        return told[0] if told else None
    return None


def _products_of_cpu() -> tuple[tuple[Product, ...], bool]:
    """Each precision, and whether training chooses bf16."""
    before = torch.get_float32_matmul_precision()
    use_fast_fp32("cpu")
    timings: dict[Precision, ProductTiming] = {"fp32": measure_product(torch.float32), "bf16": measure_product(torch.bfloat16)}
    torch.set_float32_matmul_precision(before)
    products = (Product(precision, product_flops() / timing.seconds) for precision, timing in timings.items())
    return tuple(products), bf16_pays(timings["fp32"], timings["bf16"])


def _products_of_gpu(device: torch.device, capability: tuple[int, int] | None) -> Iterator[Product]:
    before = torch.get_float32_matmul_precision()
    for precision in fit_precisions(device.type, capability, has_float8()):
        try:
            torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
            yield Product(precision, _float8_peak(device) if precision == "fp8" else measured_peak(device, precision))
        except Exception as error:  # a broken kernel fails in ways that have no common type
            yield Product(precision, 0.0, first_line(error))
    torch.set_float32_matmul_precision(before)


def _float8_peak(device: torch.device) -> float:
    """FLOP/s of a product whose factors are E4M3, which `measured_peak` counts as bf16 because a step is mixed."""
    left, right = (torch.ones(_SIDE, _SIDE, device=device).to(torch.float8_e4m3fn) for _ in range(2))
    one, seconds = torch.ones((), device=device), []
    for _ in range(_RUNS):
        started = time.perf_counter()
        torch._scaled_mm(left, right.T, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)[0, 0].item()
        seconds.append(time.perf_counter() - started)
    return 2 * _SIDE**3 / min(seconds)
