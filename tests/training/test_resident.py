from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fledge.corpus.document import Content
from fledge.training.batches import open_rows
from fledge.training.resident import ResidentRows, fits_easily, resident_bytes
from tests.training.training_assembly import write_token_set


@pytest.mark.parametrize("isolate_documents", [True, False])
@pytest.mark.parametrize(("content", "row_tokens"), [("documents", 24), ("documents", 7 + 1), ("conversations", None)])
def test_a_resident_batch_is_the_batch_of_the_reader(
    content: Content, row_tokens: int | None, isolate_documents: bool, tmp_path: Path
) -> None:
    reader = open_rows([write_token_set(tmp_path, content, {"books": 30, "web": 11})], "train", row_tokens, isolate_documents)
    resident = ResidentRows(reader, torch.device("cpu"))
    rows = reader.all_rows()
    for start in range(0, len(rows), 4):
        expected, found = reader.batch(rows[start : start + 4], 4), resident.batch(rows[start : start + 4], 4)
        for name in ("tokens", "targets", "token_weight", "documents"):
            wanted = getattr(expected, name)
            assert (wanted is None) == (getattr(found, name) is None)
            if wanted is not None:
                assert torch.equal(getattr(found, name), wanted), (name, start)
                assert getattr(found, name).dtype == wanted.dtype
    assert resident_bytes(reader) == sum(len(shard.tokens) * (2 if content == "documents" else 3) for shard in reader.shards)


def test_a_cpu_has_nothing_to_gain(tmp_path: Path) -> None:
    reader = open_rows([write_token_set(tmp_path, "documents", {"books": 3})], "train", 8)
    assert not fits_easily(reader, torch.device("cpu"))
