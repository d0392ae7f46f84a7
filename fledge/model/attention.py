"""Causal attention within documents, and the memory of it that generation keeps: batch -> [model: attention] -> loss.

A row of tokens may hold several documents; none sees another. `documents` says so without lengths or loops:

    documents[b, t] = index within row b at which the document of token t starts
    token t sees token k        iff  documents[b, t] <= k <= t
    position of t in its text   =    t - documents[b, t]

Shapes: B rows, T tokens per row, H query heads, K key and value heads (H a multiple of K), E head size,
L layers, S slots of the cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fledge.model.settings import ModelSettings

PRODUCTS_UP_TO_SLOTS = 512
"""On a CPU, attention over at most this many keys is two plain matrix products and a softmax.

Forward and backward of a 4.3M-parameter model (4 layers of 4 heads of 64, vocabulary 4,096, 16 rows of 256 tokens, several
documents a row) on one Zen 5 core, milliseconds: torch's fused kernel 869 in bf16 and 1,443 in fp32, plain products 771 and
1,304, products by blocks of 128 queries in an autograd function of their own 743 in bf16. At 1,024 tokens the gain is half of
that, and the probabilities, which are kept for the backward pass, grow with the square: there the fused kernel is used. The
bf16 gradient of the whole model is as far from fp32's either way (relative 0.0073 new, 0.020 with three times the weights).
"""


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """query (B, H, T, E), key and value (B, K, S, E), mask (B, 1, T, S) -> (B, H, T, E); mask None: causal, T = S.

    softmax(query key^T / sqrt(E)) value over the keys where the mask is true, softmax in fp32; each key head serves H / K query
    heads (arXiv:2305.13245).
    """
    if query.device.type == "cpu" and key.shape[2] <= PRODUCTS_UP_TO_SLOTS:
        return _attention_by_products(query, key, value, causal_mask(query.shape[2], query.device) if mask is None else mask)
    grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped)


def _attention_by_products(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    queries_per_key = query.shape[1] // key.shape[1]
    if queries_per_key > 1:
        key, value = (shared.repeat_interleave(queries_per_key, dim=1) for shared in (key, value))
    # Added rather than filled in: the backward pass of a sum is free.
    forbidden = torch.where(mask, 0.0, float("-inf")).to(query.dtype)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(2, 3) + forbidden  # (B, H, T, S)
    probabilities = torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    return probabilities.to(value.dtype) @ value


def causal_mask(tokens: int, device: torch.device) -> Tensor:
    """(T, T), true where a query (first) may look at a key (last)."""
    return torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()


def document_mask(documents: Tensor) -> Tensor:
    """documents (B, T) -> (B, 1, T, T), true where a query (second to last) may look at a key (last).

    Built once per forward and shared by all layers and heads. Every token sees itself, so no softmax is over nothing.
    """
    index = torch.arange(documents.shape[1], device=documents.device)
    since_its_start = documents[:, :, None] <= index  # (B, T, T)
    return (causal_mask(len(index), documents.device) & since_its_start)[:, None]


@dataclass(frozen=True)
class LayerCache:
    """One layer's part of a KeyValueCache, together with where the tokens at hand belong."""

    keys: Tensor
    values: Tensor
    positions: Tensor

    def store(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """key and value (B, K, T, E) of the tokens at hand -> everything stored (B, K, S, E), theirs included."""
        rows = torch.arange(len(self.positions), device=self.positions.device)[:, None]
        # The indices (B, 1) and (B, T) around the slice put the head axis last but one: (B, T, K, E).
        self.keys[rows, :, self.positions] = key.transpose(1, 2).to(self.keys.dtype)
        self.values[rows, :, self.positions] = value.transpose(1, 2).to(self.values.dtype)
        return self.keys.to(key.dtype), self.values.to(value.dtype)


class KeyValueCache:
    """Keys and values of the tokens so far, (L, B, K, S, E) each: slot j of a row holds position j.

    Rows are independent and may be of different lengths. What lies beyond a row's present position is never looked at and
    is overwritten when the row gets there, so a padded prompt needs no mask and a row is emptied by starting at position 0.
    `dtype` should be that of the products (bf16 under autocast), else every step converts the whole cache.
    """

    def __init__(
        self, settings: ModelSettings, rows: int, slots: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> None:
        shape = (settings.num_hidden_layers, rows, settings.key_value_heads, slots, settings.head_size)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)

    @property
    def slots(self) -> int:
        """Tokens a row can hold."""
        return self.keys.shape[3]

    def layer(self, index: int, positions: Tensor) -> LayerCache:
        """The part of layer `index`, for tokens at `positions` (B, T)."""
        return LayerCache(self.keys[index], self.values[index], positions)

    def mask(self, positions: Tensor) -> Tensor:
        """positions (B, T) -> (B, 1, T, S): the token at position p looks at slots 0 to p."""
        slots = torch.arange(self.slots, device=positions.device)
        return (slots <= positions[:, :, None])[:, None]
