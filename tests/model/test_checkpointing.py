from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fledge.model.checkpointing import ActivationCheckpointing
from fledge.model.llama import Llama


class Counter(TorchDispatchMode):
    """How often operators whose names begin so are run."""

    def __init__(self, *beginnings: str) -> None:
        super().__init__()
        self.beginnings, self.count = beginnings, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += str(function).startswith(self.beginnings)
        return function(*args, **(kwargs or {}))


def loss(model: Llama, tokens: Tensor) -> Tensor:
    result: Tensor = model(tokens, torch.zeros_like(tokens), tokens, torch.ones(tokens.shape)).loss_sum
    return result


@pytest.mark.parametrize("how", get_args(ActivationCheckpointing))
def test_the_gradients_are_the_same(how: ActivationCheckpointing, make_model: Callable[..., Llama], tokens: Tensor) -> None:
    plain, saving = make_model(), make_model()
    saving.model.activation_checkpointing = how
    loss(plain, tokens).backward()
    loss(saving, tokens).backward()
    for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        assert torch.equal(one.grad, other.grad)


@pytest.mark.parametrize(("how", "products", "norms"), [("none", 1, 1), ("selective", 1, 2), ("full", 2, 2)])
def test_what_is_computed_again(
    how: ActivationCheckpointing, products: int, norms: int, make_model: Callable[..., Llama], tokens: Tensor
) -> None:
    """Products are what costs; full computes those of the layers twice, selective the rest only."""
    model = make_model()
    counts = {}
    for kept in ("none", how):
        model.model.activation_checkpointing = kept  # type: ignore[assignment]
        with Counter("fledge.block_attention.") as attentions, Counter("aten.silu.") as gates:
            loss(model, tokens).backward()
        counts[kept] = (attentions.count, gates.count)
    assert counts[how] == (counts["none"][0] * products, counts["none"][1] * norms)
