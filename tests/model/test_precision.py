from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch

from fledge.core.errors import MachineError
from fledge.core.installing import install_hint
from fledge.model import precision
from fledge.model.precision import (
    Precision,
    ProductTiming,
    autocast,
    bf16_pays,
    choose_precision,
    float8_lacks,
    is_exact_fp32,
    measure_product,
    set_fp32_products,
    use_fast_fp32,
)
from fledge.model.settings import RequestedPrecision

FP32 = ProductTiming(seconds=1.3, relative_error=2e-7)


@pytest.fixture(autouse=True)
def restored_matmul_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def machine(monkeypatch: pytest.MonkeyPatch, **measured: ProductTiming) -> None:
    by_dtype = {torch.float32: measured.get("fp32", FP32), torch.bfloat16: measured.get("bf16", FP32)}
    monkeypatch.setattr(precision, "measure_product", by_dtype.__getitem__)


@pytest.mark.parametrize(
    ("seconds", "error", "pays"),
    [(1.0, 3e-3, True), (1.01, 3e-3, False), (0.5, 3e-3, True), (0.5, 2e-2, False), (5.0, 3e-3, False)],
)
def test_bf16_must_be_faster_and_sane(seconds: float, error: float, pays: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    bf16 = ProductTiming(seconds, error)
    assert bf16_pays(FP32, bf16) is pays
    machine(monkeypatch, bf16=bf16)
    assert choose_precision("auto", "cpu") == ("bf16" if pays else "fp32")


def test_an_explicit_request_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(precision, "measure_product")
    assert choose_precision("fp32", "cpu") == "fp32"
    assert choose_precision("bf16", "cpu") == "bf16"


@pytest.mark.parametrize(
    ("capability", "fastest"), [((6, 0), "fp32"), ((7, 0), "fp16"), ((7, 5), "fp16"), ((8, 0), "bf16"), ((8, 9), "bf16"), ((9, 0), "bf16")]
)
def test_a_gpu_is_known_by_its_capability(capability: tuple[int, int], fastest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_precision("auto", "cuda") == fastest


@pytest.mark.parametrize(
    ("capability", "has_float8", "fits"), [((8, 9), True, True), ((9, 0), True, True), ((8, 6), True, False), ((9, 0), False, False)]
)
def test_fp8_is_refused_or_replaced_where_it_does_not_fit(
    capability: tuple[int, int], has_float8: bool, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_precision("fp8_or_bf16", "cuda", has_float8) == ("fp8" if fits else "bf16")
    if fits:
        assert choose_precision("fp8", "cuda", has_float8) == "fp8"
        return
    with pytest.raises(MachineError, match=r"precision is fp8, which this cuda of compute capability .* cannot do") as error:
        choose_precision("fp8", "cuda", has_float8)
    assert "bf16" in error.value.remedy
    assert "fp8_or_bf16" in error.value.remedy
    assert ("torchao" in error.value.problem) is not has_float8


@pytest.mark.parametrize(
    ("capability", "has_float8", "reason"),
    [
        ((8, 9), True, None),
        ((8, 6), True, "the GPU has compute capability 8.6, and units for fp8 come with 8.9"),
        ((9, 0), False, f"torchao is missing, which computes in fp8: {install_hint('fp8')}"),
    ],
)
def test_what_fp8_lacks_is_what_decides_against_it(
    capability: tuple[int, int], has_float8: bool, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert float8_lacks("cuda", capability, has_float8) == reason
    assert (choose_precision("fp8_or_bf16", "cuda", has_float8) == "fp8") is (reason is None)
    assert float8_lacks("cpu", None, has_float8) == "a cpu has no units for fp8"


@pytest.mark.parametrize("precision", ["tf32", "fp16", "fp8"])
def test_a_cpu_does_not_pretend(precision: RequestedPrecision) -> None:
    with pytest.raises(MachineError, match=f"precision is {precision}, which this cpu cannot do") as error:
        choose_precision(precision, "cpu", has_float8=True)
    assert "fp32, bf16" in error.value.remedy


def test_fp32_products_are_computed_as_chosen() -> None:
    chosen: tuple[tuple[Precision, bool, str], ...] = (("tf32", False, "high"), ("fp32", True, "medium"), ("bf16", False, "highest"))
    for name, fast_fp32, told in chosen:
        set_fp32_products(name, fast_fp32)
        assert torch.get_float32_matmul_precision() == told


def test_other_devices_stay_in_fp32() -> None:
    assert choose_precision("auto", "mps") == "fp32"


@pytest.mark.parametrize(("error", "exact"), [(2.9e-7, True), (1e-6, True), (1.1e-6, False), (3e-3, False)])
def test_fast_fp32_is_kept_only_if_exact(error: float, exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    product = ProductTiming(1e-3, error)
    assert is_exact_fp32(product) is exact
    machine(monkeypatch, fp32=product)
    torch.set_float32_matmul_precision("highest")
    assert use_fast_fp32("cpu") is exact
    assert torch.get_float32_matmul_precision() == ("medium" if exact else "highest")


def test_fast_fp32_leaves_other_devices_alone() -> None:
    torch.set_float32_matmul_precision("highest")
    assert use_fast_fp32("cuda") is False
    assert torch.get_float32_matmul_precision() == "highest"


def test_the_probe_sees_rounding() -> None:
    torch.set_float32_matmul_precision("highest")
    fp32, bf16 = measure_product(torch.float32), measure_product(torch.bfloat16)
    assert is_exact_fp32(fp32) and not is_exact_fp32(bf16)
    assert 1e-3 < bf16.relative_error < precision.BF16_ERROR
    assert fp32.seconds > 0 and bf16.seconds > 0


def test_autocast_is_on_for_bf16_only() -> None:
    assert isinstance(autocast("fp32", "cpu"), nullcontext)
    with autocast("bf16", "cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
