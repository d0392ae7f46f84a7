"""What torch and its devices mean for Fledge: facts -> [device checks] -> findings. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator

from fledge.core.console import format_bytes, format_seconds
from fledge.model.attention import HOPPER
from fledge.model.precision import fastest_of, float8_lacks
from fledge.verbs.doctor.accelerator import Accelerator
from fledge.verbs.doctor.compiler import Compiler
from fledge.verbs.doctor.facts import Software
from fledge.verbs.doctor.findings import Finding, note, ok, problem

FREE_SHARE = 0.9
"""Of a GPU's memory; with less, another process is at work there."""


def check_torch(found: Accelerator, software: Software) -> Iterator[Finding]:
    """Whether torch and the driver go together."""
    version = f"torch {found.torch_version}"
    if found.driver is not None and found.cuda_version is None:
        fix = f"{software.install} --force-reinstall 'torch>=2.10'"
        yield problem("torch", f"{version} is built without CUDA, and NVIDIA's driver {found.driver} is here: no GPU is used", fix)
    elif found.driver is not None and not found.gpus:
        what = f"{version} for CUDA {found.cuda_version} finds no GPU with NVIDIA's driver {found.driver}: {found.cuda_trouble}"
        yield problem("torch", what, "nvidia-smi shows the CUDA version that the driver knows; install a driver or a torch for the same")
    elif found.cuda_version is not None and not found.gpus:
        yield ok(
            "torch", f"{version}, built for CUDA {found.cuda_version}; there is no driver of NVIDIA, so it computes on the {found.device}"
        )
    else:
        driver = f", driver {found.driver}" if found.driver else ""
        yield ok("torch", f"{version}" + (f" for CUDA {found.cuda_version}{driver}" if found.gpus else f", on the {found.device}"))


def check_gpus(found: Accelerator) -> Iterator[Finding]:
    for number, gpu in enumerate(found.gpus):
        capability = ".".join(map(str, gpu.capability))
        what = f"{gpu.name}, {format_bytes(gpu.memory_bytes)}, compute capability {capability}"
        if gpu.free_bytes < FREE_SHARE * gpu.memory_bytes:
            yield note(f"gpu {number}", f"{what}; only {format_bytes(gpu.free_bytes)} are free, another process has the rest", "nvidia-smi")
        else:
            yield ok(f"gpu {number}", what)


def check_precision(found: Accelerator, software: Software) -> Iterator[Finding]:
    """What was tried, how fast it is, and what training chooses."""
    for product in (product for product in found.products if product.trouble):
        fix = f"{software.install} --force-reinstall 'torch>=2.10'"
        yield problem(product.precision, f"a product fails on the {found.device}: {product.trouble}", fix)
    working = [product for product in found.products if not product.trouble]
    if not working:
        return
    speeds = ", ".join(f"{product.precision} {_speed(product.flops_per_second)}" for product in working)
    chosen = fastest_of(found.gpus[0].capability) if found.gpus else "bf16" if found.uses_bf16 else "fp32"
    unit = " a thread" if found.device == "cpu" else ""
    yield ok("precision", f"{speeds}{unit}; precision: auto takes {chosen}" + (", or fp8 where it is faster" if _has_fp8(found) else ""))


def check_float8(found: Accelerator, software: Software) -> Iterator[Finding]:
    """Only where there is a GPU, which might have it."""
    if not found.gpus:
        return
    capability = found.gpus[0].capability
    if units := float8_lacks(found.device, capability, has_float8=True):
        yield ok("fp8", f"{units}; fp8_or_bf16 takes what auto does")
    elif not found.has_float8:
        yield note("fp8", "this GPU has units for it, and torchao is missing, which computes in it", f"{software.install} 'torchao>=0.17'")
    else:
        yield ok("fp8", "this GPU has units for it, and torchao is installed")


def check_attention(found: Accelerator) -> Iterator[Finding]:
    """Only where there is a GPU: on a CPU attention is Fledge's own."""
    if found.gpus:
        third = found.gpus[0].capability == HOPPER and found.has_flash_attention_3
        yield ok(
            "attention", f"torch's fused kernels{', by FlashAttention 3' if third else ''}; FlexAttention where documents are isolated"
        )


def check_backends(found: Accelerator) -> Iterator[Finding]:
    wanted = "nccl" if found.gpus else "gloo"
    if wanted in found.backends:
        yield ok("processes", f"can train together by {' and '.join(found.backends)}")
    else:
        yield note(
            "processes", f"this torch lacks {wanted}, so only one process can train", "fledge run RECIPE, without --gpus or --processes"
        )


def check_compiler(trial: Compiler, device: str) -> Iterator[Finding]:
    """Training goes on without a compiler, so it is a problem only where much is lost."""
    if trial.outcome == "works":
        yield ok("compiler", f"torch.compile works for the {device} ({format_seconds(trial.seconds)})")
    elif trial.outcome == "unknown":
        yield note("compiler", f"{trial.reason}: not known whether torch.compile works", "fledge doctor, when the machine is idle")
    elif trial.outcome == "fails":
        what = f"torch.compile does not work for the {device}: {trial.reason}"
        fix = "sudo apt-get install g++ python3-dev"
        if device == "cuda":
            yield problem("compiler", f"{what}; training goes on without it, at less than two thirds of the speed", fix)
        else:
            yield note("compiler", f"{what}; training goes on without it, long runs a fifth slower", fix)


def _has_fp8(found: Accelerator) -> bool:
    return any(product.precision == "fp8" and not product.trouble for product in found.products)


def _speed(flops_per_second: float) -> str:
    giga = flops_per_second / 1e9
    return f"{giga / 1000:,.0f} TFLOP/s" if giga >= 10_000 else f"{giga:,.1f} GFLOP/s" if giga < 10 else f"{giga:,.0f} GFLOP/s"
