"""The arithmetic of the device table, and that its entries fit what the code does elsewhere."""

from __future__ import annotations

import pytest

from fledge.model.precision import fastest_of
from fledge.training.devices import DEVICES, MFU_BY_WIDTH, assumed_mfu, find_devices, starting_seconds


def test_the_precision_is_the_one_that_would_be_chosen() -> None:
    for device in DEVICES:
        assert device.precision == fastest_of(device.compute_capability), device.name
        assert device.peak_flops[device.precision] == max(
            peak for precision, peak in device.peak_flops.items() if device.name != "P100" or precision == "fp32"
        )


def test_the_share_of_the_peak_grows_with_the_width() -> None:
    for width, mfu in MFU_BY_WIDTH:
        assert assumed_mfu(width) == pytest.approx(mfu)
    shares = [assumed_mfu(width) for width in (64, 128, 256, 400, 768, 900, 1024)]
    assert shares == sorted(shares)
    assert assumed_mfu(4096) == MFU_BY_WIDTH[-1][1]


def test_tokens_per_second_are_peak_times_share_over_flops() -> None:
    """110M parameters at 1,024 tokens: 717 MFLOP a token; an H200 did 552,000 tokens a second."""
    [h200] = find_devices("H200")
    assert h200.tokens_per_second(717_000_000, 768) == pytest.approx(552_000, rel=0.01)
    [p100] = find_devices("p100")
    assert p100.tokens_per_second(1_000_000_000, 256) == pytest.approx(9.3e12 * 0.6 / 1e9)


def test_a_step_takes_as_long_as_its_kernels_take_to_start() -> None:
    assert starting_seconds(6, 1, is_compiled=True, with_muon=False) == pytest.approx(3.4e-3)
    assert starting_seconds(6, 4, is_compiled=True, with_muon=False) == pytest.approx(10.6e-3)
    assert starting_seconds(6, 1, is_compiled=False, with_muon=False) == pytest.approx(8.2e-3)
    assert starting_seconds(6, 1, is_compiled=True, with_muon=True) == pytest.approx(16.42e-3)
    measured = 32 * 1024 / 1_881_513  # a step of 23M on an H200, benchmarks/results/train_gpu-H200.json
    assert starting_seconds(6, 1, is_compiled=True, with_muon=False) < measured


def test_devices_are_found_by_the_beginning_of_their_name() -> None:
    assert [device.name for device in find_devices("rtx4090")] == ["RTX 4090"]
    assert [device.name for device in find_devices("A100")] == ["A100 40 GB", "A100 80 GB"]
    assert find_devices("a100 80 gb") == find_devices("A10080GB")
    assert find_devices("TPU") == find_devices(" ") == ()
