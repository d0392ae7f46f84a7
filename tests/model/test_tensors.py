from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from fledge.core import disk
from fledge.core.errors import CheckpointError
from fledge.model import tensors as tensors_module
from fledge.model.tensors import DTYPE_NAMES, read_tensors, write_tensors


def every_kind() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = {f"of {dtype}": torch.randint(0, 2, (3, 5), generator=generator).to(dtype) for dtype in DTYPE_NAMES}
    return {
        **made,
        "weight": torch.randn(7, 3, generator=generator),
        "not contiguous": torch.randn(4, 6, generator=generator).T,
        "a scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 4),
        'name, "quoted" and wide: \u00e9': torch.arange(3),
    }


def test_bytes_are_those_of_the_library(tmp_path: Path) -> None:
    tensors = every_kind()
    write_tensors(tmp_path / "ours", tensors)
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    assert (tmp_path / "ours").read_bytes() == safetensors.torch.save(contiguous, metadata={"format": "pt"})


def test_what_is_written_is_read_bitwise(tmp_path: Path) -> None:
    tensors = every_kind()
    digest = write_tensors(tmp_path / "ours", tensors)
    assert digest == disk.digest_file(tmp_path / "ours")
    for found in (read_tensors(tmp_path / "ours"), safetensors.torch.load_file(tmp_path / "ours")):
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor), name


def test_header_is_aligned_and_wide_types_come_first(tmp_path: Path) -> None:
    write_tensors(tmp_path / "ours", every_kind())
    content = (tmp_path / "ours").read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0
    header = json.loads(content[8 : 8 + length])
    assert header.pop("__metadata__") == {"format": "pt"}
    sizes = {name: dtype.itemsize for dtype, name in DTYPE_NAMES.items()}
    assert all(entry["data_offsets"][0] % sizes[entry["dtype"]] == 0 for entry in header.values())


def test_floating_tensors_can_be_narrowed_on_the_way(tmp_path: Path) -> None:
    write_tensors(tmp_path / "ours", {"weight": torch.tensor([1.001]), "count": torch.tensor([3])}, torch.bfloat16)
    found = read_tensors(tmp_path / "ours")
    assert torch.equal(found["weight"], torch.tensor([1.001]).bfloat16())
    assert found["count"].dtype == torch.int64


def test_writing_holds_one_piece_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors_module, "_PIECE_BYTES", 64)
    sizes: list[int] = []

    def note(path: Path, pieces: Iterable[bytes]) -> disk.FileDigest:
        assert not isinstance(pieces, (bytes, list, tuple))
        sizes.extend(len(piece) for piece in pieces)
        return disk.FileDigest(sum(sizes), "")

    monkeypatch.setattr(tensors_module.disk, "write_bytes", note)
    write_tensors(tmp_path / "ours", {"weight": torch.ones(100)})
    assert sizes[1:] == [64] * 6 + [16]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="absent is missing") as caught:
        read_tensors(tmp_path / "absent")
    assert caught.value.remedy


@pytest.mark.parametrize("kept_bytes", [0, 5, 20, 100, -1])
def test_a_file_cut_short_is_refused(kept_bytes: int, tmp_path: Path) -> None:
    path = tmp_path / "ours"
    write_tensors(path, {"weight": torch.ones(100)})
    path.write_bytes(path.read_bytes()[:kept_bytes])
    with pytest.raises(CheckpointError, match="no complete safetensors file"):
        read_tensors(path)


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(3)}, tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match="no complete safetensors file"):
        read_tensors(tmp_path / "weights.safetensors")
