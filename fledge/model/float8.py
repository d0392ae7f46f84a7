"""Matrix products of the layers in FP8: model -> [float8] -> the same parameters, other products. By torchao (`pip install '.[fp8]'`).

Each factor is scaled by its largest magnitude and rounded to E4M3, in the forward and the backward pass; sums stay in higher precision, and
the parameters fp32. The head and the embedding stay out: their products are few, and the loss feels the rounding.

It pays late. At widths up to 768 the scaling costs more than the faster products save (nanochat: slower at 12 layers of 768, 1.17 times as
fast at 26 of 1,664), so for "auto" both are timed before a long run (`training/preparation.py`).
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import torch
from torch import nn

from fledge.model.cost import body_matrix_parameters, flops_per_token
from fledge.model.llama import Llama
from fledge.model.settings import ModelConfig

DIVISOR = 16
"""The units for FP8 multiply in multiples of it."""


@dataclass(frozen=True)
class ShareOfFlops:
    """How much of a training step's arithmetic is done in which precision; sums to 1 with what is left for fp32."""

    fp8: float
    bf16: float


def has_float8() -> bool:
    """Whether torchao is installed."""
    return importlib.util.find_spec("torchao") is not None


def use_float8(model: Llama, emulate: bool = False) -> dict[str, nn.Linear]:
    """Make the layers' linear maps compute in FP8, in place; returns by name those that did it before, for `leave_float8`.

    The parameters stay the same objects. `emulate` rounds alike on any device, slowly.
    """
    from torchao.float8 import CastConfig, Float8LinearConfig, convert_to_float8_training

    operand = CastConfig(target_dtype=torch.float8_e4m3fn)
    config = Float8LinearConfig(cast_config_input=operand, cast_config_weight=operand, cast_config_grad_output=operand, emulate=emulate)
    before = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear) and _fits(module, name)}
    convert_to_float8_training(model, config=config, module_filter_fn=lambda module, name: name in before)
    return before


def leave_float8(model: Llama, before: dict[str, nn.Linear]) -> None:
    """Undo `use_float8`, which returned `before`."""
    for name, linear in before.items():
        model.set_submodule(name, linear)


def shares(config: ModelConfig, sequence_length: int) -> ShareOfFlops:
    """Of the FLOPs of forward and backward pass: the layers' products in FP8; attention and head in bf16."""
    fp8 = 6 * body_matrix_parameters(config) / flops_per_token(config, sequence_length)
    return ShareOfFlops(fp8, 1 - fp8)


def _fits(module: nn.Linear, name: str) -> bool:
    return not name.startswith("lm_head") and module.in_features % DIVISOR == 0 and module.out_features % DIVISOR == 0
