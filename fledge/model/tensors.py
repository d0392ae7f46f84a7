"""Named tensors in a file: weights and optimizer state -> [safetensors] -> disk, without a second copy in memory and without pickle.

The format (github.com/huggingface/safetensors): eight bytes of little-endian header length, a JSON header padded with spaces to
a multiple of eight, then the tensors without gaps, widest dtype first so that each is aligned. Writing is ours, because it is
streamed and hashed on the way through `disk`; the bytes are the same as the library's. Reading is the library's memory map.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fledge.core import disk
from fledge.core.errors import CheckpointError

DTYPE_NAMES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
}
"""In the order in which the library sorts them, last first."""

_PIECE_BYTES = 16 << 20


def write_tensors(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> disk.FileDigest:
    """Write tensors, from any device, as one file; floating ones are cast to `dtype` if it is given, one at a time.

    Raises MachineError if the disk is full.
    """
    ranks = {known: rank for rank, known in enumerate(DTYPE_NAMES)}
    stored = {name: dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype for name, tensor in tensors.items()}
    names = sorted(tensors, key=lambda name: (-ranks[stored[name]], name))
    return disk.write_bytes(path, _pieces({name: (tensors[name], stored[name]) for name in names}))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a file, on the CPU, backed by its memory map: pages are read when they are touched.

    Raises CheckpointError if the file is missing or damaged.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing", "name a complete checkpoint, or run the stage that makes it again")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except SafetensorError as error:
        remedy = "use another copy of it, or an earlier checkpoint"
        raise CheckpointError(f"{path} is no complete safetensors file: {error}", remedy) from error


def _pieces(tensors: Mapping[str, tuple[Tensor, torch.dtype]]) -> Iterator[bytes]:
    yield _header(tensors)
    for tensor, dtype in tensors.values():
        content = tensor.detach().to("cpu", dtype).contiguous().view(-1).view(torch.uint8)
        for start in range(0, len(content), _PIECE_BYTES):
            yield content[start : start + _PIECE_BYTES].numpy().tobytes()


def _header(tensors: Mapping[str, tuple[Tensor, torch.dtype]]) -> bytes:
    # Older readers of transformers refuse a file whose metadata does not name its framework.
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, (tensor, dtype) in tensors.items():
        end = start + tensor.numel() * dtype.itemsize
        entries[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header
