"""One pass of the model for whatever requests have tokens to read: [chunks] -> keys and values in their slots -> logits.

A chunk is a run of tokens of one request. A prompt that is read is a long one, or several, a token that was drawn is one of length 1,
and all of them go through the model together. A `Forward` owns the slots that hold the keys and values of the earlier tokens; two
passes over the same chunk leave the same behind, so that a pass which failed may be tried again with fewer chunks.

`TorchForward` computes with the model as it is, wherever it lies; `kernel_forward` is faster on a CPU, `graph_forward` on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from fledge.model.attention import KeyValueCache, cache_bytes
from fledge.model.devices import require_room
from fledge.model.llama import Llama
from fledge.model.precision import Precision, autocast

SLOT_STEP_TOKENS = 64
"""Attention is over the longest text of a pass, rounded up to this."""

Wanted = Literal["nothing", "last", "all"]


@dataclass(frozen=True, eq=False)
class Chunk:
    """Consecutive tokens of the request in a slot."""

    slot: int
    start: int
    """Position of the first token; those before it have been read."""
    ids: Sequence[int]
    wanted: Wanted
    """Of which tokens the logits are asked for: those of token i say what follows it."""

    @property
    def end(self) -> int:
        """Position after the last token."""
        return self.start + len(self.ids)

    @property
    def wanted_tokens(self) -> int:
        """Of so many tokens, its last ones, the logits are asked for."""
        return {"nothing": 0, "last": 1, "all": len(self.ids)}[self.wanted]


def single_and_longer(chunks: Sequence[Chunk]) -> tuple[list[Chunk], list[Chunk]]:
    """Tokens that were drawn, and parts of prompts."""
    return [chunk for chunk in chunks if len(chunk.ids) == 1], [chunk for chunk in chunks if len(chunk.ids) > 1]


class Forward(Protocol):
    """A model with slots."""

    def run(self, chunks: Sequence[Chunk]) -> list[Tensor]:
        """Reads the chunks, of different slots; the logits (N, V) of the N tokens that each wanted, fp32."""

    def release(self, slot: int) -> None:
        """The text in a slot has ended; what is read there next begins at position 0."""


class Slots:
    """Where keys and values lie, and where the text in each slot ends."""

    def __init__(self, cache: KeyValueCache) -> None:
        self.cache = cache
        self._ends = [0] * cache.rows
        """Position behind the last token that was read; 0 in a free slot."""

    def release(self, slot: int) -> None:
        """See `Forward`. A free slot that keeps its end would make every pass as long as the text it held."""
        self._ends[slot] = 0

    def rows(self, chunks: Sequence[Chunk], slots: range) -> list[Chunk]:
        """What is read in each of these slots: its chunk, or an empty one for filler, behind its last token, where nothing is yet."""
        for chunk in chunks:
            self._ends[chunk.slot] = chunk.end
        by_slot = {chunk.slot: chunk for chunk in chunks}
        return [by_slot.get(slot, Chunk(slot, self._ends[slot], (), "nothing")) for slot in slots]


class TorchForward:
    """Slots as a `KeyValueCache`; a pass is one call of the model for the single tokens and one for each group of longer chunks."""

    def __init__(self, model: Llama, precision: Precision, slots: int, context_tokens: int, padded_chunk_tokens: int | None = None) -> None:
        """With `padded_chunk_tokens` every product has the same shape whatever is asked: chunks are read one by one, those of more than one
        token padded to this, and attention is over the whole context. A product's rows differ in their last bits with its shape and their
        place in it, so that is what makes answers independent of the load. Raises MachineError if the slots do not fit.
        """
        self.model, self.precision = model, precision
        self.device = model.lm_head.weight.device
        self.padded_chunk_tokens = padded_chunk_tokens
        settings, dtype = model.config.settings, product_dtype(model, precision)
        what = f"the keys and values of {slots} texts of {context_tokens:,} tokens"
        needed_bytes = cache_bytes(settings, slots, context_tokens, dtype)
        require_room(needed_bytes, self.device, what, "compute fewer at once (--slots), shorten the context (--context), or use the CPU")
        self.slots = Slots(KeyValueCache(settings, slots, context_tokens, dtype, self.device))

    @torch.inference_mode()
    def run(self, chunks: Sequence[Chunk]) -> list[Tensor]:
        """See `Forward`."""
        found: dict[int, Tensor] = {}
        for group in self._groups(chunks):
            found |= self._read(group)
        return [found[chunk.slot] for chunk in chunks]

    def release(self, slot: int) -> None:
        """See `Forward`."""
        self.slots.release(slot)

    def _groups(self, chunks: Sequence[Chunk]) -> list[list[Chunk]]:
        """What is read at once: single tokens, and longer chunks whose slots lie side by side, so that nothing is copied."""
        if self.padded_chunk_tokens:
            return [[chunk] for chunk in chunks]
        single, longer = single_and_longer(chunks)
        groups = [single] if single else []
        last_slot = None
        for chunk in sorted(longer, key=lambda one: one.slot):
            if last_slot is None or chunk.slot != last_slot + 1:
                groups.append([])
            groups[-1].append(chunk)
            last_slot = chunk.slot
        return groups

    def _read(self, chunks: Sequence[Chunk]) -> dict[int, Tensor]:
        """Slot -> logits. Slots between those of the chunks are read too, with filler."""
        fixed, cache = self.padded_chunk_tokens, self.slots.cache
        slots = range(min(chunk.slot for chunk in chunks), max(chunk.slot for chunk in chunks) + 1)
        length = max(len(chunk.ids) for chunk in chunks)
        length = fixed if fixed and length > 1 else length
        read = self.slots.rows(chunks, slots)
        longest = cache.slots if fixed else min(cache.slots, _rounded_up(max(chunk.start for chunk in read) + length))
        tokens = torch.tensor([[*chunk.ids, *[0] * (length - len(chunk.ids))] for chunk in read])
        starts = torch.tensor([[chunk.start] for chunk in read])
        # No prompt reaches the last position, so what is padded beyond the context may lie there.
        positions = (starts + torch.arange(length)).clamp(max=cache.slots - 1)
        wanted = torch.zeros(len(read), length, dtype=torch.bool)
        for row, chunk in enumerate(read):
            size = len(chunk.ids)
            wanted[row, size - chunk.wanted_tokens : size] = True
        with autocast(self.precision, self.device):
            logits: Tensor = self.model.extend(
                tokens.to(self.device), positions.to(self.device), cache.part(slots, longest), wanted.to(self.device)
            ).float()
        counts = wanted.sum(dim=1).tolist()
        return {chunk.slot: part for chunk, part in zip(read, logits.split(counts), strict=True)}  # type: ignore[no-untyped-call]


def _rounded_up(tokens: int) -> int:
    return -(-tokens // SLOT_STEP_TOKENS) * SLOT_STEP_TOKENS


def product_dtype(model: Llama, precision: Precision) -> torch.dtype:
    """What keys and values are computed in."""
    return {"bf16": torch.bfloat16, "fp8": torch.bfloat16, "fp16": torch.float16}.get(precision, model.lm_head.weight.dtype)
