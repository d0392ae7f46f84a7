"""Causal attention within documents on a CPU, as matrix products over blocks of queries: attention -> [block attention].

torch's fused kernel for CPUs reaches a tenth of the speed of its bf16 matrix products and takes a third of a step on rows of 1,024 tokens.
Here each block of queries meets all keys that any of them may see in one product:

    scores = query[start:end] key[first:end]^T / sqrt(E)      first: where the oldest document of these queries starts
    probabilities = softmax(scores + forbidden)               in fp32, kept for the backward pass in the dtype of the products
    output[start:end] = probabilities value[first:end]

Keys that no query of the block sees are not multiplied at all, so isolating documents saves time. The scores leave a bf16 product rounded,
as in the plain attention of transformers: relative errors of 6e-3 where the fused kernel has 2e-3 to 3.5e-3, and the same loss curve
(tests/training). It is an operator of its own, which torch.compile takes as it is: its loop unrolled gives slower kernels.

Shapes: B rows, T tokens, H query heads, K key and value heads (G = H / K queries per key), E head size, n queries of a block, w keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

BLOCK_QUERIES = 128
"""Smaller blocks multiply fewer forbidden pairs, larger ones make better products."""


class DocumentBlocks(NamedTuple):
    """What the queries of each row may look at; made once and shared by all layers."""

    starts: Tensor
    """(B, T): the index at which the token's document starts."""
    forbidden: Tensor
    """(B, T, T) in the dtype of the products: 0 where a query (second) may look at a key (last), else -inf."""


class _Block(NamedTuple):
    queries: slice
    keys: slice
    probabilities: Tensor
    """(B K, G n, w), a part of what the forward pass keeps."""


def document_blocks(documents: Tensor, dtype: torch.dtype) -> DocumentBlocks:
    """documents (B, T) -> the same as blocks need it."""
    index = torch.arange(documents.shape[1], device=documents.device)
    seen = (documents[:, :, None] <= index) & (index <= index[:, None])
    return DocumentBlocks(documents, torch.where(seen, 0.0, float("-inf")).to(dtype))


def block_attention(query: Tensor, key: Tensor, value: Tensor, blocks: DocumentBlocks | None) -> Tensor:
    """query (B, H, T, E), key and value (B, K, T, E) -> (B, H, T, E); without `blocks` a row is one document."""
    starts, forbidden = (None, None) if blocks is None else (blocks.starts, blocks.forbidden.to(query.dtype))
    output: Tensor = _forward_operator(query, key, value, starts, forbidden)[0]
    return output


@torch.library.custom_op("fledge::block_attention", mutates_args=())
def _forward_operator(query: Tensor, key: Tensor, value: Tensor, starts: Tensor | None, forbidden: Tensor | None) -> list[Tensor]:
    """The output, and the probabilities of each block; columns of keys that were not multiplied are left unset."""
    kept = [query.new_empty(shape) for shape in _kept_shapes(query, key)]
    grouped, keys, values = _by_key_head(query, key), key.flatten(0, 1), value.flatten(0, 1).contiguous()
    output = torch.empty_like(grouped, memory_format=torch.contiguous_format)
    triangle = query.new_full((BLOCK_QUERIES, BLOCK_QUERIES), float("-inf")).triu(1)
    scale = query.shape[-1] ** -0.5
    for block in _blocks(starts, grouped, kept):
        width = block.queries.stop - block.queries.start
        scores = torch.bmm(_flat(grouped, block) * scale, keys[:, block.keys].mT)  # (B K, G n, w)
        by_group = scores.view(len(query), -1, width, scores.shape[-1])  # (B, K G, n, w)
        if forbidden is None:
            by_group[..., -width:] += triangle[:width, :width]
        else:
            by_group += forbidden[:, None, block.queries, block.keys]
        block.probabilities.copy_(torch.softmax(scores, dim=-1))  # bf16 in and out is fp32 inside
        mixed = torch.bmm(block.probabilities, values[:, block.keys])
        output[:, :, block.queries] = mixed.view_as(output[:, :, block.queries])
    return [output.view_as(query), *kept]


@_forward_operator.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, starts: Tensor | None, forbidden: Tensor | None) -> list[Tensor]:
    return [query.new_empty(query.shape), *(query.new_empty(shape) for shape in _kept_shapes(query, key))]


@torch.library.custom_op("fledge::block_attention_backward", mutates_args=())
def _backward_operator(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, starts: Tensor | None, kept: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of query, key and value; those of a key are summed over the blocks in fp32."""
    grouped, keys, values = _by_key_head(query, key), key.flatten(0, 1), value.flatten(0, 1).contiguous()
    incoming = _by_key_head(gradient.contiguous(), key)
    wide = torch.promote_types(query.dtype, torch.float32)
    for_query = torch.empty_like(grouped, memory_format=torch.contiguous_format)
    for_keys, for_values = keys.new_zeros(keys.shape, dtype=wide), values.new_zeros(values.shape, dtype=wide)
    scale = query.shape[-1] ** -0.5
    for block in _blocks(starts, grouped, kept):
        given, queries = _flat(incoming, block), _flat(grouped, block) * scale
        for_values[:, block.keys] += torch.bmm(block.probabilities.mT, given)
        on_probabilities = torch.bmm(given, values[:, block.keys].mT)
        on_scores = torch._softmax_backward_data(on_probabilities, block.probabilities.contiguous(), -1, query.dtype)
        for_keys[:, block.keys] += torch.bmm(on_scores.mT, queries)
        target = for_query[:, :, block.queries]
        target.copy_((torch.bmm(on_scores, keys[:, block.keys]) * scale).view_as(target))
    return for_query.view_as(query), for_keys.to(key.dtype).view_as(key), for_values.to(value.dtype).view_as(value)


@_backward_operator.register_fake
def _(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, starts: Tensor | None, kept: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    query, key, value, starts, _ = inputs
    ctx.has_starts = starts is not None
    ctx.save_for_backward(query, key, value, *([starts] if starts is not None else []), *output[1:])


def _backward(ctx: Any, gradients: list[Tensor]) -> tuple[Tensor | None, ...]:
    query, key, value, *rest = ctx.saved_tensors
    starts, kept = (rest[0], rest[1:]) if ctx.has_starts else (None, rest)
    return (*_backward_operator(gradients[0], query, key, value, starts, list(kept)), None, None)


_forward_operator.register_autograd(_backward, setup_context=_setup_context)


def _blocks(starts: Tensor | None, grouped: Tensor, kept: list[Tensor]) -> Iterator[_Block]:
    tokens = grouped.shape[2]
    for start, probabilities in zip(range(0, tokens, BLOCK_QUERIES), kept, strict=True):
        end = min(start + BLOCK_QUERIES, tokens)
        first = 0 if starts is None else int(starts[:, start:end].min())
        yield _Block(slice(start, end), slice(first, end), probabilities[..., first:])


def _by_key_head(query: Tensor, key: Tensor) -> Tensor:
    """(B, H, T, E) -> (B K, G, T, E)."""
    rows, heads, tokens, size = query.shape
    return query.reshape(rows * key.shape[1], heads // key.shape[1], tokens, size)


def _flat(grouped: Tensor, block: _Block) -> Tensor:
    """(B K, G, T, E) -> the queries of a block, (B K, G n, E)."""
    return grouped[:, :, block.queries].flatten(1, 2)


def _kept_shapes(query: Tensor, key: Tensor) -> Iterator[tuple[int, int, int]]:
    rows, heads, tokens, _ = query.shape
    for start in range(0, tokens, BLOCK_QUERIES):
        end = min(start + BLOCK_QUERIES, tokens)
        yield rows * key.shape[1], heads // key.shape[1] * (end - start), end
