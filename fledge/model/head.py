"""From the last hidden states to the loss without ever holding all logits: hidden states -> [head in chunks] -> loss.

The logits are the largest tensor of a small model (16 x 256 tokens x 32,768 entries in fp32: 537 MB), so they are made for one
chunk of tokens, used up and dropped. For a token with target y (softmax and sums in fp32):

    log_z = log sum_v exp(logit_v)          nll = log_z - logit_y
    d (a nll + b log_z) / d logits = (a + b) softmax(logits) - a onehot(y)

`weighted_loss` is one number, the sum of weight (nll + z_weight log_z^2). It makes its gradients in the forward pass, where the
chunk's logits are at hand; the backward pass only scales them, exactly and without recomputation. `token_losses` gives nll and
log_z of every token, both differentiable, for objectives that are no plain sum; its backward pass makes the logits again.
The idea is that of Liger Kernel (arXiv:2410.10989); log_z^2 is the z-loss of PaLM (arXiv:2204.02311).

Shapes: N tokens (all rows of a batch), D width, V vocabulary, C tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORE = -100
"""The target of a token that has none; its nll and log_z are 0."""

CHUNK_TOKENS = 512
"""On a CPU 512 to 1,024 are fastest (128: 5 % slower); each chunk's logits take 2 KB per vocabulary entry."""
MAXIMUM_CHUNKS = 8
"""torch.compile unrolls the loop over chunks, so their number is bounded."""


class TokenLoss(NamedTuple):
    """What `weighted_loss` returns: only `loss_sum` is differentiable, the others are for the record."""

    loss_sum: Tensor
    nll: Tensor
    log_z: Tensor


class TokenNll(NamedTuple):
    """What `token_losses` returns: both are differentiable, in nats."""

    nll: Tensor
    log_z: Tensor


def weighted_loss(
    hidden: Tensor, weight: Tensor, targets: Tensor, token_weight: Tensor, z_weight: float = 0.0, chunk_tokens: int = CHUNK_TOKENS
) -> TokenLoss:
    """hidden (N, D), head weight (V, D), targets and token_weight (N) -> loss_sum (), nll (N), log_z (N).

    loss_sum = sum of token_weight (nll + z_weight log_z^2). `token_weight` is data of order one (a mask); divisors and loss
    scales belong on the result, whose gradient they multiply. A frozen `weight` gets no gradient and costs none.
    """
    chosen = _targets_alone(targets)
    if chosen is not None:
        part = weighted_loss(hidden[chosen], weight, targets[chosen], token_weight[chosen], z_weight, chunk_tokens)
        return TokenLoss(part.loss_sum, *(_spread(values, chosen, targets) for values in (part.nll, part.log_z)))
    differentiable = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    dtype = gemm_dtype(hidden)
    losses = _WeightedLoss.apply(hidden, weight, targets, token_weight, z_weight, chunk_tokens, dtype, differentiable)  # type: ignore[no-untyped-call]
    return TokenLoss(*losses)


def token_losses(hidden: Tensor, weight: Tensor, targets: Tensor, chunk_tokens: int = CHUNK_TOKENS) -> TokenNll:
    """hidden (N, D), head weight (V, D), targets (N) -> nll (N), log_z (N)."""
    chosen = _targets_alone(targets)
    if chosen is not None:
        part = token_losses(hidden[chosen], weight, targets[chosen], chunk_tokens)
        return TokenNll(*(_spread(values, chosen, targets) for values in part))
    losses = _TokenLosses.apply(hidden, weight, targets, chunk_tokens, gemm_dtype(hidden))  # type: ignore[no-untyped-call]
    return TokenNll(*losses)


def _targets_alone(targets: Tensor) -> Tensor | None:
    """Where there are targets, if not everywhere: questions and padding need no logits. A GPU would have to be waited for: None there."""
    if targets.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    chosen = (targets != IGNORE).nonzero()[:, 0]
    return chosen if len(chosen) < len(targets) else None


def _spread(values: Tensor, chosen: Tensor, targets: Tensor) -> Tensor:
    """(C) -> (N), 0 where nothing was chosen."""
    return values.new_zeros(len(targets)).index_put((chosen,), values)


class _WeightedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        token_weight: Tensor,
        z_weight: float,
        chunk_tokens: int,
        dtype: torch.dtype,
        differentiable: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        head = weight.to(dtype)
        nll, log_z = _empty_losses(hidden)
        gradients = _Gradients(ctx, hidden, weight) if differentiable else None
        counted = torch.where(targets == IGNORE, 0.0, token_weight.to(nll.dtype))
        for chunk in _chunks(len(hidden), chunk_tokens):
            inputs = hidden[chunk].to(dtype)
            log_probability, nll[chunk], log_z[chunk] = _chunk_losses(inputs, head, targets[chunk])
            if gradients is not None:
                on_target = counted[chunk]
                on_softmax = on_target * (1 + 2 * z_weight * log_z[chunk])
                gradients.add(chunk, inputs, head, _logits_gradient(log_probability, targets[chunk], on_softmax, on_target))
        if gradients is not None:
            ctx.save_for_backward(gradients.hidden, gradients.weight)
        ctx.mark_non_differentiable(nll, log_z)
        loss_sum = (counted * (nll + z_weight * log_z.square())).sum()
        return loss_sum, nll, log_z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_sum: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        scaled = [None if gradient is None else grad_sum * gradient for gradient in (hidden_gradient, weight_gradient)]
        return (*scaled, None, None, None, None, None, None)


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk_tokens: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        head = weight.to(dtype)
        nll, log_z = _empty_losses(hidden)
        for chunk in _chunks(len(hidden), chunk_tokens):
            _, nll[chunk], log_z[chunk] = _chunk_losses(hidden[chunk].to(dtype), head, targets[chunk])
        ctx.save_for_backward(hidden, weight, targets)
        ctx.chunk_tokens, ctx.dtype = chunk_tokens, dtype
        return nll, log_z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_nll: Tensor, grad_log_z: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets = ctx.saved_tensors
        head = weight.to(ctx.dtype)
        gradients = _Gradients(ctx, hidden, weight)
        on_target = torch.where(targets == IGNORE, 0.0, grad_nll)
        on_softmax = torch.where(targets == IGNORE, 0.0, grad_nll + grad_log_z)
        for chunk in _chunks(len(hidden), ctx.chunk_tokens):
            inputs = hidden[chunk].to(ctx.dtype)
            log_probability, _, _ = _chunk_losses(inputs, head, targets[chunk])
            gradients.add(chunk, inputs, head, _logits_gradient(log_probability, targets[chunk], on_softmax[chunk], on_target[chunk]))
        return gradients.hidden, gradients.weight, None, None, None


class _Gradients:
    """The gradients of hidden (N, D) and head weight (V, D), filled chunk by chunk; the weight's is summed in fp32."""

    def __init__(self, ctx: Any, hidden: Tensor, weight: Tensor) -> None:
        for_hidden, for_weight = ctx.needs_input_grad[:2]
        self.hidden = torch.empty_like(hidden) if for_hidden else None
        self.weight = torch.zeros_like(weight, dtype=_softmax_dtype(weight)) if for_weight else None

    def add(self, chunk: slice, inputs: Tensor, head: Tensor, logits_gradient: Tensor) -> None:
        """inputs (C, D), head (V, D), logits_gradient (C, V)."""
        logits_gradient = logits_gradient.to(head.dtype)
        if self.hidden is not None:
            self.hidden[chunk] = logits_gradient @ head
        if self.weight is not None:
            self.weight += logits_gradient.T @ inputs


def _chunk_losses(inputs: Tensor, head: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """inputs (C, D), head (V, D), targets (C) -> log-softmax (C, V), nll (C), log_z (C)."""
    logits = inputs @ head.T
    log_probability = torch.log_softmax(logits, dim=-1, dtype=_softmax_dtype(logits))
    index = targets.clamp(min=0)[:, None]
    nll = -log_probability.gather(1, index)[:, 0]
    log_z = logits.gather(1, index)[:, 0] + nll
    ignored = targets == IGNORE
    return log_probability, nll.masked_fill(ignored, 0.0), log_z.masked_fill(ignored, 0.0)


def _logits_gradient(log_probability: Tensor, targets: Tensor, on_softmax: Tensor, on_target: Tensor) -> Tensor:
    """on_softmax softmax - on_target onehot(targets), (C, V); overwrites `log_probability`."""
    gradient = log_probability.exp_().mul_(on_softmax[:, None])
    return gradient.scatter_add_(1, targets.clamp(min=0)[:, None], -on_target[:, None])


def _chunks(tokens: int, chunk_tokens: int) -> Iterator[slice]:
    size = max(chunk_tokens, -(-tokens // MAXIMUM_CHUNKS))
    return (slice(start, start + size) for start in range(0, tokens, size))


def _empty_losses(hidden: Tensor) -> tuple[Tensor, Tensor]:
    dtype = _softmax_dtype(hidden)
    return hidden.new_empty(len(hidden), dtype=dtype), hidden.new_empty(len(hidden), dtype=dtype)


def _softmax_dtype(values: Tensor) -> torch.dtype:
    """fp32, or what is wider."""
    return torch.promote_types(values.dtype, torch.float32)


def gemm_dtype(hidden: Tensor) -> torch.dtype:
    """What autocast would use for products with `hidden`; asked here because it does not reach into the backward pass of a Function."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
