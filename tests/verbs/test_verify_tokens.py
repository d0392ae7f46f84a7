"""`fledge verify` finds one changed byte anywhere in a token set: which file, and of ids and masks which block."""

from __future__ import annotations

import random
import re
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from token_artifacts import make_conversations, make_documents, make_tokenizer

from fledge.core.errors import ArtifactError
from fledge.tokens import blocks
from fledge.verbs import inspection

BLOCK = 256
HEADER = 64


@pytest.fixture
def sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A stream of documents, documents in rows, and conversations; in blocks of 256 bytes."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", BLOCK)
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    make_documents(tmp_path / "stream", tokenizer)
    make_documents(tmp_path / "rows", tokenizer, row_tokens=32)
    make_conversations(tmp_path / "talks", tokenizer)
    return [tmp_path / name for name in ("stream", "rows", "talks")]


@pytest.mark.parametrize("flips", [60, pytest.param(1_000, marks=pytest.mark.slow)])
def test_every_changed_byte_is_found_and_its_file_named(sets: list[Path], flips: int) -> None:
    draw = random.Random(flips)
    for folder in sets:
        inspection.verify(str(folder), small=False)
    files = sorted(path for folder in sets for path in folder.iterdir())
    assert len(files) > 30
    found = 0
    for number in range(flips):
        path = files[number % len(files)]
        content = path.read_bytes()
        byte = draw.randrange(len(content))
        other = draw.choice([value for value in range(256) if value != content[byte]])
        path.write_bytes(content[:byte] + bytes([other]) + content[byte + 1 :])
        with pytest.raises(ArtifactError) as caught:
            inspection.verify(str(path.parent), small=False)
        path.write_bytes(content)
        assert str(path) in caught.value.problem, (path, byte)
        if path.suffix in (".tokens", ".supervised") and byte >= HEADER:
            block = (byte - HEADER) // BLOCK
            assert f"{path} is damaged: block {block}, bytes {HEADER + block * BLOCK:,} to" in caught.value.problem
        found += 1
    assert found == flips
    for folder in sets:
        inspection.verify(str(folder), small=False)


def test_files_that_are_cut_or_gone_are_found_too(sets: list[Path]) -> None:
    for path in sorted(sets[1].iterdir()):
        content = path.read_bytes()
        path.write_bytes(content[:-1])
        with pytest.raises(ArtifactError, match=re.escape(path.name)):
            inspection.verify(str(sets[1]), small=False)
        path.write_bytes(content)
