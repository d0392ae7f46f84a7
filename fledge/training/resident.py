"""Training tokens in the memory of the GPU: shards -> [resident rows] -> batches, with nothing to copy and nobody to wait for in a step.

A billion tokens of 2 bytes are 2 GB, which most GPUs can spare. Shards are read once, every block compared with its checksum, and lie there
as they lie on disk; a batch is then two look-ups on the device and the same, bit for bit, as `RowReader.batch` makes it. What does not fit
is read ahead by `BatchLoader` and copied from pinned memory instead; rotating parts of the tokens through the device was left out, because
a reader needs 10 microseconds a row and a step of 64 rows 100 milliseconds.

Shapes: B rows, T tokens per row, N tokens of all sources, D documents of all sources.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fledge.model.head import IGNORE
from fledge.tokens.blocks import CheckedArray
from fledge.training.batches import Batch, RowReader
from fledge.training.plan import Row

SHARE_OF_MEMORY = 1 / 8
"""Of a GPU's memory, that tokens may take before model and batch had their say."""
_READ_TOKENS = 1 << 22


def resident_bytes(reader: RowReader) -> int:
    """What the tokens of a reader take on a device."""
    return sum(len(shard.tokens) * (shard.tokens.dtype.itemsize + (shard.supervised is not None)) for shard in reader.shards)


def fits_easily(reader: RowReader, device: torch.device) -> bool:
    """Whether a GPU has room to spare for the tokens; on a CPU there is nothing to gain."""
    return device.type == "cuda" and resident_bytes(reader) <= SHARE_OF_MEMORY * torch.cuda.get_device_properties(device).total_memory


class ResidentRows:
    """The rows of a reader, on a device."""

    def __init__(self, reader: RowReader, device: torch.device) -> None:
        self.row_tokens, self.shards = reader.row_tokens, reader.shards
        self.size_bytes = resident_bytes(reader)
        self._isolate_documents, self._device = reader.isolate_documents, device
        self._sizes = [len(shard.tokens) for shard in reader.shards]
        self._offsets = np.cumsum([0, *self._sizes]).tolist()
        self._tokens = self._load([shard.tokens for shard in reader.shards])
        starts = [shard.starts + offset for shard, offset in zip(reader.shards, self._offsets[:-1], strict=True)]
        self._starts = torch.from_numpy(np.concatenate(starts)).to(device)
        masks = [shard.supervised for shard in reader.shards if shard.supervised is not None]
        self._supervised = self._load(masks) if masks else None

    def with_row_tokens(self, row_tokens: int) -> ResidentRows:
        """The same tokens, where they are, in rows of another length."""
        other = copy.copy(self)
        other.row_tokens = row_tokens
        return other

    def batch(self, rows: Sequence[Row], batch_rows: int) -> Batch:
        """The given rows, then rows without targets up to `batch_rows`."""
        first = self._column([row.index * self.row_tokens for row in rows], batch_rows)
        size = self._column([self._sizes[row.source] for row in rows], batch_rows)
        offset = self._column([self._offsets[row.source] for row in rows], batch_rows)
        place = first + torch.arange(self.row_tokens, device=self._device)  # (B, T) within the source
        is_there = (place < size) & (torch.arange(batch_rows, device=self._device) < len(rows))[:, None]
        here = torch.where(is_there, offset + place, 0)
        after = offset + torch.where(place + 1 < size, place + 1, 0)
        tokens = torch.where(is_there, self._ids(here), 0)
        is_target = is_there
        if self._supervised is not None:
            inside = torch.arange(self.row_tokens, device=self._device) < self.row_tokens - 1
            is_target = is_there & inside & (self._supervised[torch.where(is_there, after, 0)] == 1)
        targets = torch.where(is_target, self._ids(torch.where(is_target, after, 0)), IGNORE)
        documents = self._documents(here, offset + first, is_there) if self._isolate_documents else None
        return Batch(tokens, targets, is_target.float(), documents)

    def _documents(self, here: Tensor, row_start: Tensor, is_there: Tensor) -> Tensor:
        """Places (B, T) and where their rows start, (B, 1), among all tokens -> where in its row each token's document starts."""
        starts = self._starts[torch.searchsorted(self._starts, here, right=True) - 1]
        inside = torch.where(is_there, (starts - row_start).clamp(min=0), 0).int()
        return inside.cummax(dim=1).values.int()

    def _ids(self, places: Tensor) -> Tensor:
        ids = self._tokens[places]
        return ids.long() & 0xFFFF if ids.dtype == torch.int16 else ids.long()

    def _column(self, numbers: list[int], batch_rows: int) -> Tensor:
        """(B, 1), zeros after the given numbers."""
        column = torch.zeros(batch_rows, 1, dtype=torch.int64)
        column[: len(numbers), 0] = torch.tensor(numbers, dtype=torch.int64)
        if self._device.type == "cuda":
            column = column.pin_memory()
        return column.to(self._device, non_blocking=True)

    def _load(self, arrays: Sequence[CheckedArray]) -> Tensor:
        """Arrays of one width, one after the other on the device; torch looks up signed numbers only."""
        stored = {2: np.int16, 4: np.int32}.get(arrays[0].dtype.itemsize, np.uint8)
        target = torch.empty(sum(map(len, arrays)), dtype=torch.from_numpy(np.empty(0, stored)).dtype, device=self._device)
        place = 0
        for array in arrays:
            for start in range(0, len(array), _READ_TOKENS):
                part = torch.from_numpy(array[start : start + _READ_TOKENS].view(stored).copy())
                target[place : place + len(part)] = part.to(self._device)
                place += len(part)
        return target
