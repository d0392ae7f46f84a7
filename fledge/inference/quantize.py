"""Weights as they are read fastest: a matrix -> fp32, bf16 or int8 with a scale per output, in the order in which `kernels` reads.

int8, weight-only: each output's weights are divided by a 127th of the largest of them and rounded; products are computed in fp32, so that
nothing but this rounding is lost (Dettmers et al., arXiv:2208.07339, without outliers, which models of this size do not have).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fledge.inference.vector_block import TILE

WeightFormat = Literal["fp32", "bf16", "int8"]

LARGEST_INT8 = 127


@dataclass(frozen=True)
class PackedMatrix:
    """Weights (O, I) of a product: values (O / TILE, I x TILE), O filled up to a multiple of TILE with zeros."""

    values: NDArray[np.generic]
    """fp32, uint16 (the bits of bf16) or int8."""
    scales: NDArray[np.float32]
    """(O): what products are multiplied with; 1 unless int8."""
    outputs: int


def pack(weight: Tensor, form: WeightFormat) -> PackedMatrix:
    """weight (O, I), fp32 -> packed."""
    outputs, inputs = weight.shape
    rows = torch.nn.functional.pad(weight.detach().float(), (0, 0, 0, -outputs % TILE))
    scales = torch.ones(len(rows))
    if form == "int8":
        rows, scales = quantized(rows)
    elif form == "bf16":
        rows = rows.bfloat16().view(torch.uint16)
    tiles = rows.view(-1, TILE, inputs).transpose(1, 2).reshape(-1, inputs * TILE)  # (O, I) -> (O / TILE, I x TILE)
    return PackedMatrix(tiles.numpy(), scales.numpy(), outputs)


def quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight (O, I) -> int8 (O, I) and scales (O), whose product is the weight to within half a scale; a row of zeros stays one."""
    scales = weight.abs().amax(dim=1) / LARGEST_INT8
    return (weight / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round().to(torch.int8), scales
