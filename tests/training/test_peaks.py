"""A card has the peak of its data sheet, everything else is measured once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from training_assembly import training_settings

from fledge.model import precision
from fledge.model.precision import ProductTiming
from fledge.training import peaks
from fledge.training.parallel import MACHINE, Machine, open_world, settle_machine
from fledge.training.peaks import known_peak, measured_peak, peak_flops_per_second, peak_memory_bytes

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("card", "kind", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA H200", "fp8", 989),
        ("NVIDIA A100-SXM4-80GB", "tf32", 156),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2),
        ("Tesla V100-SXM2-16GB", "fp16", 125),
        ("Tesla T4", "fp16", 65),
        ("Tesla P100-PCIE-16GB", "fp32", 9.3),
        ("Tesla T4", "bf16", None),
        ("NVIDIA H100 NVL", "bf16", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16", None),
        ("NVIDIA T400", "fp32", None),
    ],
)
def test_cards_are_known_by_the_words_of_their_names(card: str, kind: precision.Precision, teraflops: float | None) -> None:
    assert known_peak(card, kind) == (None if teraflops is None else pytest.approx(teraflops * 1e12))


@pytest.fixture
def measurements(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The products that are measured, each of which takes a millisecond."""
    asked: list[torch.dtype] = []

    def measure(dtype: torch.dtype) -> ProductTiming:
        asked.append(dtype)
        return ProductTiming(1e-3, 0.0)

    monkeypatch.setattr(peaks, "measure_product", measure)
    return asked


def settled(folder: Path, threads: int) -> Machine:
    with open_world("cpu") as world:
        return settle_machine(folder, training_settings(threads=threads), world)


def test_a_cpu_is_measured_once_for_each_machine(tmp_path: Path, measurements: list[torch.dtype]) -> None:
    one_thread = 2 * 512 * 256 * 768 / 1e-3
    for _ in range(2):
        assert peak_flops_per_second(tmp_path, settled(tmp_path, 1), CPU) == pytest.approx(one_thread)
    assert measurements == [torch.float32]
    assert json.loads((tmp_path / MACHINE).read_text())["measured"] == {"fp32_flops_per_second": pytest.approx(one_thread)}
    assert peak_flops_per_second(tmp_path, settled(tmp_path, 3), CPU) == pytest.approx(3 * one_thread)
    assert len(measurements) == 2, "with other threads it is another machine"
    torch.set_num_threads(1)


def test_a_measured_peak_is_no_less_than_what_a_product_reaches() -> None:
    assert measured_peak(CPU, "fp32") > 1e9
    assert 2 * 64**3 / peaks._seconds_of_product(CPU, torch.float32, 64) > 1e6


def test_memory_is_the_most_that_this_process_had() -> None:
    before = peak_memory_bytes(CPU)
    held = torch.ones(60_000_000)  # 240 MB
    assert peak_memory_bytes(CPU) >= max(before, 240_000_000)
    del held
    assert peak_memory_bytes(CPU) >= 240_000_000
