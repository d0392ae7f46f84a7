"""What GPUs can do, from their makers' data sheets: plan -> [devices] -> what a run would take there, and cost.

Peaks are dense (without structured sparsity), of the tensor cores where a card has them, summed in fp32. A run reaches a share of the peak,
the MFU, which is measured where we could and assumed elsewhere; it depends on the width of the model far more than on the card:

    width   256    768    1,024     of 989 TFLOP/s in bf16, compiled, causal half of attention counted: Fledge on an H200,
    MFU     0.19   0.40   0.42      23M, 96M/110M, 197M at 32 rows of 1,024 tokens (benchmarks/results/train_gpu-H200.json)

An H100, in micro-batches of half as many tokens, reached 0.81 and 0.89 of that with 95M and 198M parameters (recipes_gpu-H100.json). Other
cards are assumed to do as the H200, which published figures bear out: 37 % for GPT-2 124M on H100s (modded-nanogpt), 41 % for 12 layers
of 768 (nanochat), and 25 % on an A100 by nanoGPT, which is older. The RTX 4090, whose peak with sums in fp32 is half of that with sums in
fp16, gets nearer to it: 54 % for GPT-2 124M (110,000 tokens/s, tylerromero.com/posts/nanogpt-speedrun-worklog, January 2025; nanoGPT's
issue 182 has 55 %). fp32 without tensor cores is easier to feed: 0.6 is assumed there.

A small model does not keep a card busy: a step takes at least as long as its kernels take to be started, one after the other, by the CPU.
How many those are was counted on one layer of ours: 39 operations forward, about twice as many backward; compiled, 21 matrix products, 3
kernels of attention and what lies between them, fused; 31 for each matrix that Muon orthogonalises. 10 us each is what the start of a
kernel costs, and rather too little where Python does it: on an H100, 6 layers more of a forward pass that is not compiled take 6.2 ms
longer (first token of 23M and 110M, benchmarks/results/serving_gpu-H100.json), 26 us an operation. The steps measured above stay as they
were: those of 23M took 17.4 ms, and at least 3.4 are assumed.

The price of an hour is an assumption, of the size of what one card cost on demand in spring 2026, in dollars, at RunPod, Lambda (A100 of
40 GB) and Google Cloud (P100, T4, V100, without their machine); second-hand figures. `fledge plan --price-per-hour` takes yours.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fledge.model.precision import Precision

GB = 1_000_000_000
TERA = 1e12
MFU_BY_WIDTH = ((256, 0.19), (768, 0.40), (1024, 0.42))
FP32_MFU = 0.6
LAUNCH_SECONDS = 10e-6
LAYER_LAUNCHES, COMPILED_LAYER_LAUNCHES = 120, 40
"""Of a layer, forward and backward."""
MUON_LAYER_LAUNCHES = 7 * 31
"""Of the update of a layer's matrices; fused AdamW takes a few for all parameters together."""
OTHER_LAUNCHES = 100
"""Of a step besides its layers: batch, embedding, head and loss, clipping, update."""
USABLE_SHARE = 0.92
"""Of a card's memory: the CUDA context takes half a gigabyte, and torch's allocator cannot use every gap."""

_HOPPER: Mapping[Precision, float] = {"fp16": 989 * TERA, "bf16": 989 * TERA, "fp8": 989 * TERA, "tf32": 494 * TERA, "fp32": 67 * TERA}
PEAK_FLOPS_PER_SECOND: Mapping[tuple[str, ...], Mapping[Precision, float]] = {
    ("H200",): _HOPPER,
    ("H100", "PCIe"): {"fp16": 756 * TERA, "bf16": 756 * TERA, "fp8": 756 * TERA, "tf32": 378 * TERA, "fp32": 51 * TERA},
    ("H100", "HBM3"): _HOPPER,
    ("A100",): {"fp16": 312 * TERA, "bf16": 312 * TERA, "tf32": 156 * TERA, "fp32": 19.5 * TERA},
    ("RTX", "4090"): {"fp16": 165.2 * TERA, "bf16": 165.2 * TERA, "fp8": 165.2 * TERA, "tf32": 82.6 * TERA, "fp32": 82.6 * TERA},
    ("V100",): {"fp16": 125 * TERA, "fp32": 15.7 * TERA},
    ("T4",): {"fp16": 65 * TERA, "fp32": 8.1 * TERA},
    ("P100",): {"fp16": 18.7 * TERA, "fp32": 9.3 * TERA},
}
"""By words that occur in the name that CUDA gives a card. fp8 counts against bf16, in which much of such a step is computed."""


@dataclass(frozen=True)
class Device:
    """A GPU as its data sheet has it."""

    name: str
    memory_bytes: int
    bandwidth_bytes: float
    """Per second, of its memory."""
    precision: Precision
    """What Fledge chooses there: bf16 from compute capability 8.0 on, fp16 from 7.0 on, fp32 below (`model.precision.fastest_of`)."""
    peak_flops: Mapping[Precision, float]
    """Per second."""
    compute_capability: tuple[int, int]
    dollars_per_hour: float
    relative_mfu: float = 1.0
    """The share of the peak that it reaches, of the share that an H200 reaches."""

    @property
    def usable_bytes(self) -> float:
        return USABLE_SHARE * self.memory_bytes

    def tokens_per_second(self, flops_per_token: int, width: int) -> float:
        """Assumed for training a model of this width in the card's precision."""
        mfu = FP32_MFU if self.precision == "fp32" else self.relative_mfu * assumed_mfu(width)
        return self.peak_flops[self.precision] * mfu / flops_per_token


DEVICES = (
    # NVIDIA Tesla P100 data sheet (PCIe, 16 GB): 9.3 TFLOP/s fp32, 18.7 fp16 without tensor cores, 732 GB/s.
    Device("P100", 16 * GB, 732e9, "fp32", PEAK_FLOPS_PER_SECOND[("P100",)], (6, 0), 1.46),
    # NVIDIA T4 data sheet: 65 TFLOP/s fp16 (tensor cores), 8.1 fp32, 320 GB/s ("300+").
    Device("T4", 16 * GB, 320e9, "fp16", PEAK_FLOPS_PER_SECOND[("T4",)], (7, 5), 0.35),
    # NVIDIA V100 data sheet (SXM2): 125 TFLOP/s fp16 (tensor cores), 15.7 fp32, 900 GB/s.
    Device("V100 16 GB", 16 * GB, 900e9, "fp16", PEAK_FLOPS_PER_SECOND[("V100",)], (7, 0), 2.48),
    Device("V100 32 GB", 32 * GB, 900e9, "fp16", PEAK_FLOPS_PER_SECOND[("V100",)], (7, 0), 2.48),
    # NVIDIA A100 data sheet (SXM4): 312 TFLOP/s bf16 and fp16, 19.5 fp32, 1,555 GB/s (40 GB) and 2,039 GB/s (80 GB).
    Device("A100 40 GB", 40 * GB, 1555e9, "bf16", PEAK_FLOPS_PER_SECOND[("A100",)], (8, 0), 1.29),
    Device("A100 80 GB", 80 * GB, 2039e9, "bf16", PEAK_FLOPS_PER_SECOND[("A100",)], (8, 0), 1.49),
    # NVIDIA Ada GPU architecture white paper, RTX 4090: 165.2 TFLOP/s bf16 and fp16 with sums in fp32, 82.6 fp32, 1,008 GB/s.
    Device("RTX 4090", 24 * GB, 1008e9, "bf16", PEAK_FLOPS_PER_SECOND[("RTX", "4090")], (8, 9), 0.69, relative_mfu=1.35),
    # NVIDIA H100 data sheet (SXM5): 989 TFLOP/s bf16 and fp16, 67 fp32, 3,350 GB/s.
    Device("H100", 80 * GB, 3350e9, "bf16", PEAK_FLOPS_PER_SECOND[("H100", "HBM3")], (9, 0), 2.69, relative_mfu=0.85),
    # NVIDIA H200 data sheet (SXM): as H100, with 141 GB and 4,800 GB/s.
    Device("H200", 141 * GB, 4800e9, "bf16", PEAK_FLOPS_PER_SECOND[("H200",)], (9, 0), 3.59),
)


def starting_seconds(layers: int, micro_batches: int, is_compiled: bool, with_muon: bool) -> float:
    """What the CPU takes at least to start the kernels of a step."""
    of_passes = micro_batches * layers * (COMPILED_LAYER_LAUNCHES if is_compiled else LAYER_LAUNCHES)
    return LAUNCH_SECONDS * (OTHER_LAUNCHES + of_passes + (layers * MUON_LAYER_LAUNCHES if with_muon else 0))


def find_devices(name: str) -> tuple[Device, ...]:
    """The cards whose name begins like this, whatever its case and spaces."""
    wanted = _plain(name)
    return tuple(device for device in DEVICES if wanted and _plain(device.name).startswith(wanted))


def assumed_mfu(width: int) -> float:
    """Of the peak of tensor cores, for a model of this width: between the measured widths along the logarithm, beyond them constant."""
    (low, first), *_ = MFU_BY_WIDTH
    if width <= low:
        return first * width / low
    for (low, first), (high, second) in itertools.pairwise(MFU_BY_WIDTH):
        if width <= high:
            return first + (second - first) * math.log(width / low) / math.log(high / low)
    return MFU_BY_WIDTH[-1][1]


def _plain(name: str) -> str:
    return "".join(name.lower().split())
