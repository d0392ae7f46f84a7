"""Causal attention within documents, and the memory of it that generation keeps: batch -> [model: attention] -> loss.

A row of tokens may hold several documents; none sees another. `documents` says so without lengths or loops:

    documents[b, t] = index within row b at which the document of token t starts
    token t sees token k        iff  documents[b, t] <= k <= t
    position of t in its text   =    t - documents[b, t]

Shapes: B rows, T tokens per row, H query heads, K key and value heads (H a multiple of K), E head size,
L layers, S slots of the cache.
"""

from __future__ import annotations

import copy
import importlib.util
from dataclasses import dataclass

import torch
import torch.nn.attention
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from fledge.core import console
from fledge.model.block_attention import DocumentBlocks, block_attention, document_blocks
from fledge.model.settings import ModelSettings

PRODUCTS_UP_TO_SLOTS = 512
"""On a CPU, attention over at most this many keys of a cache is two plain matrix products and a softmax, which beats torch's kernel."""

HOPPER = (9, 0)
FLASH_ATTENTION_3 = "flash_attn_interface"

Mask = Tensor | DocumentBlocks | BlockMask | None
"""What a query may look at: booleans (B, 1, T, S), or what is added to its scores; the forms that the kernels for documents want; or None:
causal, T = S."""


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Mask, dropout: float = 0.0) -> Tensor:
    """query (B, H, T, E), key and value (B, K, S, E) -> (B, H, T, E).

    softmax(query key^T / sqrt(E)) value over the keys that the mask shows, softmax in fp32; each key head serves H / K query heads
    (arXiv:2305.13245). `dropout` sets that share of the probabilities to zero and divides the others by what is left of one; it goes
    with masks of booleans only.
    """
    grouped = query.shape[1] != key.shape[1]
    if dropout:
        assert mask is None or isinstance(mask, Tensor), "the kernels for documents have no dropout, see `documents_mask`"
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, enable_gqa=grouped
        )
    if isinstance(mask, BlockMask):
        mixed = flex_attention(query, key, value, block_mask=mask, enable_gqa=grouped)
        assert isinstance(mixed, Tensor), "without return_lse there is one result"
        return mixed
    on_cpu = query.device.type == "cpu"
    if isinstance(mask, DocumentBlocks) or (mask is None and on_cpu):
        return block_attention(query, key, value, mask)
    if mask is not None and on_cpu and key.shape[2] <= PRODUCTS_UP_TO_SLOTS:
        return _attention_by_products(query, key, value, mask)
    if mask is not None and grouped and query.shape[2] == 1:
        return _attention_of_one(query, key, value, mask)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped)


def _attention_of_one(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """query (B, H, 1, E): the heads that share a key head stand in line like tokens, so that keys are not repeated for each."""
    in_line = query.reshape(len(query), key.shape[1], -1, query.shape[3])  # (B, H, 1, E) -> (B, K, H / K, E)
    return F.scaled_dot_product_attention(in_line, key, value, attn_mask=mask).reshape(query.shape)


def _attention_by_products(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    queries_per_key = query.shape[1] // key.shape[1]
    if queries_per_key > 1:
        key, value = (shared.repeat_interleave(queries_per_key, dim=1) for shared in (key, value))
    forbidden = torch.where(mask, 0.0, float("-inf")).to(query.dtype)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(2, 3) + forbidden  # (B, H, T, S)
    probabilities = torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    return probabilities.to(value.dtype) @ value


def use_flash_attention_3(device: torch.device) -> None:
    """On a Hopper GPU, let torch's fused attention run FlashAttention 3's kernels if `flash_attn_interface` is installed and works.

    A compiled 124M model gains 9 % by them (nanochat). It is torch's own switch, from torch 2.11 on.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) != HOPPER or importlib.util.find_spec(FLASH_ATTENTION_3) is None:
        return
    activate = getattr(torch.nn.attention, "activate_flash_attention_impl", None)
    if activate is None:
        console.info(f"FlashAttention 3 is installed, but torch {torch.__version__} cannot use it")
        return
    try:
        activate("FA3")
    except Exception as error:  # a package for another torch fails as it likes
        console.warn(f"FlashAttention 3 is installed and does not work, torch's own kernels are used: {error}")


def fused_kernel() -> str:
    """Which kernels torch's fused attention runs on a GPU, for people and for the record."""
    current = getattr(torch.nn.attention, "current_flash_attention_impl", lambda: None)()
    return "fused" if current is None else f"fused by {current}"


def attention_kernel(device: torch.device | str, isolate_documents: bool, compiled: bool, has_dropout: bool = False) -> str:
    """What attends in training, for people; see `documents_mask` and `attention`."""
    if has_dropout:
        return "with dropout"
    if torch.device(device).type == "cpu":
        return "products by blocks"
    if not isolate_documents:
        return fused_kernel()
    return "flex" if compiled else "fused with a mask"


def documents_mask(documents: Tensor, dtype: torch.dtype, has_dropout: bool = False) -> Mask:
    """documents (B, T) -> what their tokens may look at, in the form that is fastest where they are; `dtype` is that of the products.

    Built once per forward and shared by all layers and heads. FlexAttention needs a compiler; a dense mask keeps torch's fused kernel,
    but not its fastest form; it is all that dropout can be had with.
    """
    if has_dropout:
        return document_mask(documents)
    if documents.device.type == "cpu":
        return document_blocks(documents, dtype)
    if torch.compiler.is_compiling():
        rows, tokens = documents.shape

        def is_seen(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (documents[row, query] <= key) & (key <= query)

        return create_block_mask(is_seen, rows, None, tokens, tokens, device=documents.device)
    return document_mask(documents)


def causal_mask(tokens: int, device: torch.device) -> Tensor:
    """(T, T), true where a query (first) may look at a key (last)."""
    return torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()


def document_mask(documents: Tensor) -> Tensor:
    """documents (B, T) -> (B, 1, T, T), true where a query (second to last) may look at a key (last).

    Every token sees itself, so no softmax is over nothing.
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
    def rows(self) -> int:
        """Texts it can hold."""
        return self.keys.shape[1]

    @property
    def slots(self) -> int:
        """Tokens a row can hold."""
        return self.keys.shape[3]

    def part(self, rows: range, slots: int) -> KeyValueCache:
        """The first slots of consecutive rows, sharing their memory."""
        part = copy.copy(self)
        part.keys = self.keys[:, rows.start : rows.stop, :, :slots]
        part.values = self.values[:, rows.start : rows.stop, :, :slots]
        return part

    def layer(self, index: int, positions: Tensor) -> LayerCache:
        """The part of layer `index`, for tokens at `positions` (B, T)."""
        return LayerCache(self.keys[index], self.values[index], positions)

    def mask(self, positions: Tensor) -> Tensor:
        """positions (B, T) -> (B, 1, T, S): the token at position p looks at slots 0 to p.

        On a GPU 0 and -inf, which torch's fused kernels add to the scores: of booleans they would make that anew in every layer.
        """
        slots = torch.arange(self.slots, device=positions.device)
        seen = (slots <= positions[:, :, None])[:, None]
        if positions.device.type == "cpu":
            return seen
        return torch.zeros(seen.shape, dtype=self.keys.dtype, device=seen.device).masked_fill_(~seen, float("-inf"))


def cache_bytes(settings: ModelSettings, rows: int, slots: int, dtype: torch.dtype) -> int:
    """What a KeyValueCache of this size takes."""
    return 2 * settings.num_hidden_layers * rows * settings.key_value_heads * slots * settings.head_size * dtype.itemsize
