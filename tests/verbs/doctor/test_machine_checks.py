"""Each check of the machine on both sides: a machine that is fine, and one with a single thing amiss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fledge.core.errors import MachineError
from fledge.core.limits import GroupLimits
from fledge.verbs.doctor import checks
from fledge.verbs.doctor import device_checks as devices
from fledge.verbs.doctor.accelerator import Accelerator, Gpu, Product
from fledge.verbs.doctor.compiler import Compiler
from fledge.verbs.doctor.facts import KernelCache, Package, Place, Resources, Software
from fledge.verbs.doctor.findings import Finding
from fledge.verbs.doctor.online import Hub, check_hub

GB = 1_000_000_000
PACKAGES = (Package("torch", "2.10", None, "2.13.0+cu130"), Package("wandb", "0.19", "wandb", "0.20.1"))
SOFTWARE = Software((3, 12, 1), "/env/bin/python", "Linux x86_64", "0.1.0", "/env/fledge", PACKAGES, True)
PLACE = Place("runs", Path("runs"), Path("/home/me"), 200 * GB, 500 * GB)
RESOURCES = Resources(64 * GB, 60 * GB, GroupLimits(), 8, 8, 4_096, 8_192, "utf-8", 1.8e9)
CPU = Accelerator("2.13.0+cpu", None, None, "", (), False, 8, (Product("fp32", 9e10), Product("bf16", 2e11)), True, True, False, ("gloo",))
H100 = Gpu("NVIDIA H100", 80 * GB, 79 * GB, (9, 0))
GPU = replace(
    CPU,
    torch_version="2.13.0+cu130",
    cuda_version="13.0",
    driver="580.1",
    gpus=(H100,),
    products=(Product("bf16", 7e14), Product("fp8", 1.1e15)),
    backends=("nccl", "gloo"),
)


def only(findings: Iterator[Finding]) -> Finding:
    [finding] = findings
    assert bool(finding.fix) == (finding.level != "ok")
    return finding


def says(finding: Finding, level: str, *words: str) -> None:
    assert finding.level == level, finding
    for word in words:
        assert word in f"{finding.found} {finding.fix}", finding


def test_python() -> None:
    says(only(checks.check_python(SOFTWARE)), "ok", "3.12.1", "/env/bin/python")
    says(only(checks.check_python(replace(SOFTWARE, python=(3, 10, 9)))), "problem", "3.10.9", "3.11", "PYTHON=python3.12")


def test_required_packages() -> None:
    says(only(checks.check_install(SOFTWARE)), "ok", "all 1 packages")
    missing = replace(SOFTWARE, packages=(replace(PACKAGES[0], version=None),))
    says(only(checks.check_install(missing)), "problem", "is missing", "/env/bin/python -m pip install 'torch>=2.10'")
    old = replace(SOFTWARE, packages=(replace(PACKAGES[0], version="2.9.1"),), has_pip=False)
    says(only(checks.check_install(old)), "problem", "2.9.1, too old", "uv pip install --python /env/bin/python 'torch>=2.10'")
    says(only(checks.check_install(replace(SOFTWARE, packages=()))), "note", "not installed", "pip install .")


def test_extras() -> None:
    says(only(checks.check_extras(SOFTWARE)), "ok", "0.20.1")
    absent = replace(SOFTWARE, packages=(replace(PACKAGES[1], version=None),))
    says(only(checks.check_extras(absent)), "note", "Weights & Biases", "'wandb>=0.19'")
    old = replace(SOFTWARE, packages=(replace(PACKAGES[1], version="0.9"),))
    says(only(checks.check_extras(old)), "problem", "too old")


def test_a_full_a_small_and_a_read_only_disk() -> None:
    says(only(checks.check_place(PLACE)), "ok", "200 GB of 500 GB")
    says(only(checks.check_place(replace(PLACE, free_bytes=5 * GB))), "note", "5.0 GB", "fledge plan")
    says(only(checks.check_place(replace(PLACE, free_bytes=GB // 2))), "problem", "only 500 MB", "--name /FOLDER", "du -sh /home/me/*")
    says(only(checks.check_place(replace(PLACE, trouble="cannot write runs: Read-only file system"))), "problem", "Read-only", "--name")
    cache = replace(PLACE, what="downloads", trouble="cannot write it")
    says(only(checks.check_place(cache)), "problem", "corpus.cache_folder=")


def test_a_file_system_with_another_clock() -> None:
    [_, late] = checks.check_place(replace(PLACE, clock_ahead_seconds=-30.0))
    says(late, "note", "30 s behind")
    assert len(list(checks.check_place(replace(PLACE, clock_ahead_seconds=1.0)))) == 1


def test_memory_is_that_of_the_container() -> None:
    says(only(checks.check_memory(RESOURCES)), "ok", "60 GB of 64 GB")
    limited = replace(RESOURCES, limits=GroupLimits(8 * GB, 7 * GB), available_memory_bytes=7 * GB)
    says(only(checks.check_memory(limited)), "ok", "7.0 GB of 8.0 GB", "a limit below 64 GB")
    little = replace(limited, available_memory_bytes=GB)
    says(only(checks.check_memory(little)), "problem", "--memory")
    says(only(checks.check_memory(replace(RESOURCES, available_memory_bytes=GB))), "problem", "ps aux")


def test_threads_are_not_more_than_cores() -> None:
    says(only(checks.check_cores(RESOURCES, 8)), "ok", "8 of 8", "8 threads")
    shared = replace(RESOURCES, usable_cores=2, limits=GroupLimits(cores=1.5))
    says(only(checks.check_cores(shared, 8)), "note", "2 of 8", "a share of 1.5", "export OMP_NUM_THREADS=2")
    says(only(checks.check_cores(shared, 2)), "ok", "2 threads")
    says(only(checks.check_cores(RESOURCES, None)), "ok", "8 of 8")


def test_the_session() -> None:
    assert [finding.level for finding in checks.check_session(RESOURCES)] == ["ok", "ok", "ok"]
    odd = replace(RESOURCES, open_files=256, open_files_possible=512, encoding="ascii", unix_seconds=0.0)
    files, encoding, clock = checks.check_session(odd)
    says(files, "note", "at most 256", "ulimit -n 512")
    says(encoding, "problem", "ascii", "PYTHONUTF8=1")
    says(clock, "problem", "2025")
    assert next(checks.check_session(replace(RESOURCES, open_files=None))).level == "ok"


def test_where_compiled_loops_are_kept() -> None:
    says(only(checks.check_kernel_cache(KernelCache(Path("/cache"), True))), "ok", "/cache")
    says(only(checks.check_kernel_cache(KernelCache(Path("/cache"), False))), "note", "every start", "NUMBA_CACHE_DIR")
    says(only(checks.check_kernel_cache(KernelCache(None, False, "no locator available"))), "problem", "no locator", "NUMBA_CACHE_DIR")


def test_torch_and_driver() -> None:
    says(only(devices.check_torch(CPU, SOFTWARE)), "ok", "2.13.0+cpu", "on the cpu")
    says(only(devices.check_torch(GPU, SOFTWARE)), "ok", "CUDA 13.0", "driver 580.1")
    says(only(devices.check_torch(replace(CPU, driver="580.1"), SOFTWARE)), "problem", "without CUDA", "--force-reinstall")
    old = replace(GPU, gpus=(), cuda_trouble="The NVIDIA driver on your system is too old")
    says(only(devices.check_torch(old, SOFTWARE)), "problem", "too old", "nvidia-smi")
    says(only(devices.check_torch(replace(GPU, gpus=(), driver=None), SOFTWARE)), "ok", "no driver", "on the cpu")


def test_gpus() -> None:
    assert list(devices.check_gpus(CPU)) == []
    says(only(devices.check_gpus(GPU)), "ok", "NVIDIA H100", "80 GB", "9.0")
    taken = replace(GPU, gpus=(replace(H100, free_bytes=20 * GB),))
    says(only(devices.check_gpus(taken)), "note", "only 20 GB", "nvidia-smi")


def test_precisions() -> None:
    says(only(devices.check_precision(CPU, SOFTWARE)), "ok", "fp32 90 GFLOP/s", "bf16 200 GFLOP/s a thread", "takes bf16")
    says(only(devices.check_precision(replace(CPU, uses_bf16=False), SOFTWARE)), "ok", "takes fp32")
    says(only(devices.check_precision(GPU, SOFTWARE)), "ok", "bf16 700 TFLOP/s", "fp8 1,100 TFLOP/s", "or fp8 where it is faster")
    broken, rest = devices.check_precision(replace(GPU, products=(Product("bf16", 7e14), Product("fp8", 0, "no kernel image"))), SOFTWARE)
    says(broken, "problem", "no kernel image")
    assert broken.subject == "fp8" and "or fp8" not in rest.found
    assert list(devices.check_precision(replace(CPU, products=()), SOFTWARE)) == []


def test_fp8_and_attention() -> None:
    assert list(devices.check_float8(CPU, SOFTWARE)) == [] == list(devices.check_attention(CPU))
    says(only(devices.check_float8(GPU, SOFTWARE)), "ok", "torchao is installed")
    says(only(devices.check_float8(replace(GPU, has_float8=False), SOFTWARE)), "note", "torchao is missing", "torchao>=")
    ampere = replace(GPU, gpus=(replace(H100, capability=(8, 0)),), has_flash_attention_3=True)
    says(only(devices.check_float8(ampere, SOFTWARE)), "ok", "8.0", "come with 8.9", "takes what auto does")
    assert "FlashAttention 3" not in only(devices.check_attention(ampere)).found
    assert "FlashAttention 3" in only(devices.check_attention(replace(GPU, has_flash_attention_3=True))).found


def test_backends() -> None:
    says(only(devices.check_backends(CPU)), "ok", "gloo")
    says(only(devices.check_backends(replace(GPU, backends=("gloo",)))), "note", "lacks nccl")


@pytest.mark.parametrize(
    ("trial", "device", "level", "word"),
    [
        (Compiler("works", "", 8.0), "cpu", "ok", "works for the cpu"),
        (Compiler("fails", "InvalidCxxCompiler: no g++"), "cpu", "note", "no g++"),
        (Compiler("fails", "Failed to find C compiler"), "cuda", "problem", "two thirds"),
        (Compiler("unknown", "compiling had not ended after 60 s"), "cpu", "note", "not known"),
    ],
)
def test_the_compiler(trial: Compiler, device: str, level: str, word: str) -> None:
    says(only(devices.check_compiler(trial, device)), level, word)


def test_a_compiler_that_was_not_tried_is_not_judged() -> None:
    assert list(devices.check_compiler(Compiler("skipped"), "cpu")) == []


def test_the_hub() -> None:
    says(only(check_hub(Hub("me", True, "", 0.5))), "ok", "token of me")
    says(only(check_hub(Hub(None, False, "", None))), "note", "no token", "hf auth login")
    says(only(check_hub(Hub(None, True, "", None))), "problem", "refuses the token")
    says(only(check_hub(Hub(None, True, "", None, "HTTP 429"))), "note", "does not say whose token", "HTTP 429")
    says(only(check_hub(Hub(None, True, "ConnectError", None))), "problem", "ConnectError")
    says(only(check_hub(Hub(None, True, "HF_HUB_OFFLINE is set", None))), "problem", "unset HF_HUB_OFFLINE")
    [_, clock] = check_hub(Hub("me", True, "", -7_200.0))
    says(clock, "problem", "-7,200 s")


def test_the_worst_finding_gives_the_code() -> None:
    findings = [*checks.check_place(PLACE), *checks.check_python(replace(SOFTWARE, python=(3, 9, 0)))]
    worst = checks.worst(findings)
    assert worst is not None and worst.error is MachineError
    assert checks.worst(list(checks.check_place(PLACE))) is None
    assert checks.counts(findings, 3.0) == "1 problem, 0 notes, 1 ok; 3.0 s"
