from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fledge.core.errors import DataError
from fledge.tokens import shards
from fledge.tokens.shards import Segment, ShardMeta, ShardWriter, TokenSetMeta, open_token_set, record_shards, token_array

SHA256 = "0123456789abcdef" * 4
STREAM = TokenSetMeta("documents", SHA256, 1_000, None)
ROWS = TokenSetMeta("preferences", SHA256, 1_000, 8)


def write_stream(folder: Path, meta: TokenSetMeta = STREAM, documents: int = 3) -> ShardMeta:
    """Document i has i + 1 tokens: 0, then 10 i, 10 i + 1, ..."""
    writer = ShardWriter(folder, "train", "books", meta)
    for number in range(documents):
        writer.append(Segment(f"book-{number}", token_array([0, *range(10 * number, 11 * number)], meta), text_bytes=4 * number))
    shard = writer.close()
    record_shards(folder, TokenSetMeta(meta.content, meta.tokenizer_sha256, meta.vocabulary_size, None, (shard,)))
    return shard


def write_rows(folder: Path) -> None:
    """One row of 8 tokens: a chosen answer of 3, a rejected one of 2, 3 of padding."""
    writer = ShardWriter(folder, "validation", "pairs", ROWS)
    writer.append(Segment("pair", token_array([1, 2, 3], ROWS), 7, np.array([0, 1, 1], dtype=np.uint8), "stutter"))
    writer.append(Segment("pair", token_array([1, 4], ROWS), 5, np.array([0, 1], dtype=np.uint8), "stutter"))
    writer.pad(999, 3)
    record_shards(folder, TokenSetMeta("preferences", SHA256, 1_000, 8, (writer.close(),)))


def test_a_stream_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write_stream(tmp_path)
    opened = open_token_set(tmp_path)
    assert (opened.content, opened.tokenizer_sha256, opened.vocabulary_size, opened.row_tokens) == ("documents", SHA256, 1_000, None)
    (shard,) = opened.shards("train")
    assert opened.shards("validation") == ()
    assert shard.tokens.dtype == np.dtype("<u2") and shard.tokens.tolist() == [0, 0, 10, 0, 20, 21]
    assert not shard.tokens.flags.writeable
    assert shard.supervised is None and shard.damages is None
    assert shard.starts.tolist() == [0, 1, 3] and shard.lengths.tolist() == [1, 2, 3]
    assert shard.text_bytes.tolist() == [0, 4, 8] and shard.starts.dtype == shard.text_bytes.dtype == np.int64
    assert shard.document_ids.to_pylist() == ["book-0", "book-1", "book-2"]


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    write_rows(tmp_path)
    opened = open_token_set(tmp_path)
    (shard,) = opened.shards("validation")
    assert opened.row_tokens == 8 and shard.source == "pairs"
    assert shard.tokens.tolist() == [1, 2, 3, 1, 4, 999, 999, 999]
    assert shard.supervised is not None and shard.supervised.tolist() == [0, 1, 1, 0, 1, 0, 0, 0]
    assert shard.starts.tolist() == [0, 3] and shard.lengths.tolist() == [3, 2]
    assert shard.damages is not None and shard.damages.to_pylist() == ["stutter", "stutter"]


def test_the_header_is_64_bytes_and_little_endian(tmp_path: Path) -> None:
    write_stream(tmp_path)
    content = (tmp_path / "train-books.tokens").read_bytes()
    assert content[:64] == b"FLEDGETK" + struct.pack("<IIQ", 1, 1, 6) + bytes.fromhex(SHA256)[:16] + bytes(24)
    assert content[64:] == struct.pack("<6H", 0, 0, 10, 0, 20, 21)


@pytest.mark.parametrize(("vocabulary_size", "expected"), [(65_536, "<u2"), (65_537, "<u4")])
def test_ids_take_four_bytes_only_where_two_do_not_suffice(tmp_path: Path, vocabulary_size: int, expected: str) -> None:
    meta = TokenSetMeta("documents", SHA256, vocabulary_size, None)
    writer = ShardWriter(tmp_path, "train", "books", meta)
    writer.append(Segment("a", token_array([0, vocabulary_size - 1], meta), 1))
    record_shards(tmp_path, TokenSetMeta("documents", SHA256, vocabulary_size, None, (writer.close(),)))
    (shard,) = open_token_set(tmp_path).shards("train")
    assert shard.tokens.dtype == np.dtype(expected) and shard.tokens.tolist() == [0, vocabulary_size - 1]


def test_large_shards_are_written_in_parts_with_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_stream(tmp_path / "whole", documents=50)
    monkeypatch.setattr(shards, "_PART_BYTES", 100)
    monkeypatch.setattr(shards, "_INDEX_BATCH", 7)
    write_stream(tmp_path / "parts", documents=50)
    names = ["tokens.json", "train-books.documents", "train-books.tokens"]
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == names
    for name in ("tokens.json", "train-books.tokens"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    (whole,), (parts,) = (open_token_set(tmp_path / name).shards("train") for name in ("whole", "parts"))
    assert whole.starts.tolist() == parts.starts.tolist() and whole.document_ids.to_pylist() == parts.document_ids.to_pylist()


def test_the_splits_of_a_set_are_recorded_one_after_the_other(tmp_path: Path) -> None:
    train = write_stream(tmp_path)
    writer = ShardWriter(tmp_path, "validation", "books", STREAM)
    writer.append(Segment("held-out", token_array([5], STREAM), 1))
    record_shards(tmp_path, TokenSetMeta("documents", SHA256, 1_000, None, (writer.close(),)))
    opened = open_token_set(tmp_path)
    assert opened.meta.shards[0] == train
    assert [shard.document_ids.to_pylist() for shard in opened.shards("validation")] == [["held-out"]]


def test_ids_beyond_the_vocabulary_are_found_by_reading(tmp_path: Path) -> None:
    write_stream(tmp_path)
    open_token_set(tmp_path).check_ids()
    with (tmp_path / "train-books.tokens").open("r+b") as file:
        file.seek(64 + 2 * 4)
        file.write(struct.pack("<H", 1_000))
    opened = open_token_set(tmp_path)
    with pytest.raises(DataError, match=r"train-books\.tokens holds id 1000 at token 4, the vocabulary ends at 999"):
        opened.check_ids()


def _patch(offset: int, content: bytes) -> Callable[[bytes], bytes]:
    return lambda old: old[:offset] + content + old[offset + len(content) :]


DAMAGE: list[tuple[Callable[[bytes], bytes], str]] = [
    (lambda old: old[:-1], "75 bytes long, expected 76"),
    (lambda old: old + b"\x00", "77 bytes long, expected 76"),
    (lambda old: old[:-2], "74 bytes long, expected 76"),
    (lambda old: b"", "0 bytes long, expected 76"),
    (_patch(0, b"PK"), "magic"),
    (_patch(8, b"\x02"), "format version is 2, expected 1"),
    (_patch(12, b"\x02"), "element type is 2, expected 1"),
    (_patch(8, b"\x00\x00\x00\x01"), "format version"),
    (_patch(16, b"\x07"), "token count is 7, expected 6"),
    (_patch(24, b"\xff"), "tokenizer is ff23"),
]


@pytest.mark.parametrize(("damage", "reason"), DAMAGE)
def test_a_damaged_shard_is_refused_naming_what_was_expected(tmp_path: Path, damage: Callable[[bytes], bytes], reason: str) -> None:
    write_stream(tmp_path)
    path = tmp_path / "train-books.tokens"
    path.write_bytes(damage(path.read_bytes()))
    _refused(tmp_path, str(path), reason)


@pytest.mark.parametrize("name", ["validation-pairs.tokens", "validation-pairs.supervised", "validation-pairs.documents", "tokens.json"])
def test_a_missing_or_empty_file_is_refused(tmp_path: Path, name: str) -> None:
    write_rows(tmp_path)
    (tmp_path / name).write_bytes(b"")
    _refused(tmp_path, name)
    (tmp_path / name).unlink()
    _refused(tmp_path, name)


def test_no_token_set_names_the_command_that_makes_one(tmp_path: Path) -> None:
    _refused(tmp_path / "nowhere", "there is no token set", "fledge pack RECIPE")


@pytest.mark.parametrize(
    ("starts", "lengths"),
    [([0, 2, 3], [1, 2, 3]), ([1, 2, 3], [1, 1, 3]), ([0, 1, 3], [1, 2, 2]), ([0, 1, 3], [1, 2, 4]), ([0, 1, 1], [1, 0, 5])],
)
def test_documents_that_do_not_fit_the_stream_are_refused(tmp_path: Path, starts: list[int], lengths: list[int]) -> None:
    write_stream(tmp_path)
    _write_index(tmp_path / "train-books.documents", starts, lengths)
    _refused(tmp_path, "train-books.documents", "do not fit the 6 tokens")


@pytest.mark.parametrize(("starts", "lengths"), [([0, 2], [3, 2]), ([0, 6], [3, 3]), ([-1, 3], [3, 2]), ([3, 0], [2, 3])])
def test_documents_that_do_not_fit_their_row_are_refused(tmp_path: Path, starts: list[int], lengths: list[int]) -> None:
    write_rows(tmp_path)
    _write_index(tmp_path / "validation-pairs.documents", starts, lengths)
    _refused(tmp_path, "validation-pairs.documents", "do not fit the 8 tokens")


def test_an_answer_without_its_partner_is_refused(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "train", "pairs", ROWS)
    flags = np.ones(4, dtype=np.uint8)
    for name in ("first", "second"):
        writer.append(Segment(name, token_array([1, 2, 3, 4], ROWS), 7, flags, "cut"))
    writer.append(Segment("second", token_array([1, 2, 3, 4], ROWS), 7, flags, "cut"))
    writer.append(Segment("third", token_array([1, 2, 3, 4], ROWS), 7, flags, "cut"))
    record_shards(tmp_path, TokenSetMeta("preferences", SHA256, 1_000, 8, (writer.close(),)))
    assert len(open_token_set(tmp_path).shards("train")[0].starts) == 4
    _write_index(tmp_path / "train-pairs.documents", [0, 4, 8, 12], [4, 4, 4, 4])
    open_token_set(tmp_path)
    _write_index(tmp_path / "train-pairs.documents", [0, 8, 10, 12], [4, 2, 2, 4])
    _refused(tmp_path, "train-pairs.documents", "do not fit")


def test_an_index_of_another_length_or_other_columns_is_refused(tmp_path: Path) -> None:
    write_stream(tmp_path)
    path = tmp_path / "train-books.documents"
    _write_index(path, [0, 1], [1, 5])
    _refused(tmp_path, str(path), "lists 2 documents, tokens.json says 3")
    with pa.ipc.new_file(str(path), pa.schema([("start", pa.int64())])):
        pass
    _refused(tmp_path, str(path), "has the columns")


META_DAMAGE: list[Callable[[dict[str, Any]], Any]] = [
    lambda meta: meta.update(content="poems"),
    lambda meta: meta.update(tokenizer_sha256="abc"),
    lambda meta: meta.update(tokenizer_sha256=3),
    lambda meta: meta.update(vocabulary_size=0),
    lambda meta: meta.update(vocabulary_size="1000"),
    lambda meta: meta.update(row_tokens=8),
    lambda meta: meta.update(format_version=2),
    lambda meta: meta.pop("format_version"),
    lambda meta: meta.update(surprise=1),
    lambda meta: meta.pop("shards"),
    lambda meta: meta["shards"].append(dict(meta["shards"][0])),
    lambda meta: meta["shards"][0].update(source="../../etc/passwd"),
    lambda meta: meta["shards"][0].update(source=3),
    lambda meta: meta["shards"][0].update(split="test"),
    lambda meta: meta["shards"][0].update(tokens=-6),
    lambda meta: meta["shards"][0].update(documents=2.5),
    lambda meta: meta["shards"][0].pop("tokens"),
]


@pytest.mark.parametrize("change", META_DAMAGE)
def test_a_damaged_description_is_refused(tmp_path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    write_stream(tmp_path)
    path = tmp_path / "tokens.json"
    meta = json.loads(path.read_text())
    change(meta)
    path.write_text(json.dumps(meta))
    _refused(tmp_path, str(path))


@pytest.mark.parametrize("content", [b"[]", b"{", b"\xff", b"3", b"null"])
def test_a_description_that_is_no_object_is_refused(tmp_path: Path, content: bytes) -> None:
    write_stream(tmp_path)
    (tmp_path / "tokens.json").write_bytes(content)
    _refused(tmp_path, "tokens.json")


def _write_index(path: Path, starts: list[int], lengths: list[int]) -> None:
    columns = [["x"] * len(starts), starts, lengths, [1] * len(starts), ["stutter"] * len(starts)]
    schema = shards._INDEX_SCHEMA
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    with pa.ipc.new_file(str(path), schema) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=schema))


def _refused(folder: Path, *reasons: str) -> None:
    with pytest.raises(DataError) as caught:
        open_token_set(folder)
    for reason in reasons:
        assert reason in str(caught.value)
