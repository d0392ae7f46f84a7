from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fledge.core.errors import DataError
from fledge.tokens import shard_writer
from fledge.tokens.shard_format import ShardMeta, TokenSetMeta, record_shards, token_array
from fledge.tokens.shard_writer import INDEX_SCHEMA, IndexRows, Segment, ShardWriter
from fledge.tokens.shards import open_token_set

SHA256 = "0123456789abcdef" * 4
STREAM = TokenSetMeta("documents", SHA256, 1_000, None, end_of_text=999)
ROWS = TokenSetMeta("preferences", SHA256, 1_000, 8, end_of_text=999)


def write_stream(folder: Path, meta: TokenSetMeta = STREAM, documents: int = 3) -> ShardMeta:
    """Document i has i + 1 tokens: 0, then 10 i, 10 i + 1, ..."""
    writer = ShardWriter(folder, "train", "books", meta)
    for number in range(documents):
        writer.append(Segment(f"book-{number}", token_array([0, *range(10 * number, 11 * number)], meta), text_bytes=4 * number))
    shard = writer.close()
    record_shards(folder, replace(meta, shards=(shard,)))
    return shard


def write_rows(folder: Path) -> None:
    """One row of 8 tokens: a chosen answer of 3, a rejected one of 2, 3 of padding."""
    writer = ShardWriter(folder, "validation", "pairs", ROWS)
    writer.append(Segment("pair", token_array([1, 2, 3], ROWS), 7, np.array([0, 1, 1], dtype=np.uint8), "stutter"))
    writer.append(Segment("pair", token_array([1, 4], ROWS), 5, np.array([0, 1], dtype=np.uint8), "stutter"))
    writer.pad(999, 3)
    record_shards(folder, replace(ROWS, shards=(writer.close(),)))


def test_a_stream_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write_stream(tmp_path)
    opened = open_token_set(tmp_path)
    assert (opened.content, opened.tokenizer_sha256, opened.vocabulary_size, opened.row_tokens) == ("documents", SHA256, 1_000, None)
    (shard,) = opened.shards("train")
    assert opened.shards("validation") == ()
    assert shard.tokens.dtype == np.dtype("<u2") and shard.tokens[:].tolist() == [0, 0, 10, 0, 20, 21]
    assert not shard.tokens[:].flags.writeable
    assert shard.supervised is None and shard.damages is None
    assert shard.starts.tolist() == [0, 1, 3] and shard.lengths.tolist() == [1, 2, 3]
    assert shard.text_bytes.tolist() == [0, 4, 8] and shard.starts.dtype == shard.text_bytes.dtype == np.int64
    assert shard.document_ids.to_pylist() == ["book-0", "book-1", "book-2"]


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    write_rows(tmp_path)
    opened = open_token_set(tmp_path)
    (shard,) = opened.shards("validation")
    assert opened.row_tokens == 8 and shard.source == "pairs"
    assert shard.tokens[:].tolist() == [1, 2, 3, 1, 4, 999, 999, 999]
    assert shard.supervised is not None and shard.supervised[:].tolist() == [0, 1, 1, 0, 1, 0, 0, 0]
    assert shard.starts.tolist() == [0, 3] and shard.lengths.tolist() == [3, 2]
    assert shard.damages is not None and shard.damages.to_pylist() == ["stutter", "stutter"]


def test_the_header_is_64_bytes_and_little_endian(tmp_path: Path) -> None:
    write_stream(tmp_path)
    content = (tmp_path / "train-books.tokens").read_bytes()
    checksums = (tmp_path / "train-books.tokens.crc32").read_bytes()
    described = struct.pack("<6I", 1_000, 0, 999, 0, 21, zlib.crc32(checksums))
    assert content[:64] == b"FLEDGETK" + struct.pack("<IHHQ", 2, 1, 0, 6) + bytes.fromhex(SHA256)[:16] + described
    assert checksums == struct.pack("<I", zlib.crc32(content[64:]))
    assert content[64:] == struct.pack("<6H", 0, 0, 10, 0, 20, 21)


@pytest.mark.parametrize(("vocabulary_size", "expected"), [(65_536, "<u2"), (65_537, "<u4")])
def test_ids_take_four_bytes_only_where_two_do_not_suffice(tmp_path: Path, vocabulary_size: int, expected: str) -> None:
    meta = TokenSetMeta("documents", SHA256, vocabulary_size, None)
    writer = ShardWriter(tmp_path, "train", "books", meta)
    writer.append(Segment("a", token_array([0, vocabulary_size - 1], meta), 1))
    record_shards(tmp_path, replace(meta, shards=(writer.close(),)))
    (shard,) = open_token_set(tmp_path).shards("train")
    assert shard.tokens.dtype == np.dtype(expected) and shard.tokens[:].tolist() == [0, vocabulary_size - 1]


def test_large_shards_are_written_in_parts_with_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_stream(tmp_path / "whole", documents=50)
    monkeypatch.setattr(shard_writer, "_WRITE_BYTES", 100)
    monkeypatch.setattr(shard_writer, "_INDEX_BATCH", 7)
    write_stream(tmp_path / "parts", documents=50)
    names = ["tokens.json", "train-books.documents", "train-books.tokens", "train-books.tokens.crc32"]
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == names
    for name in ("train-books.tokens", "train-books.tokens.crc32"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    (whole,), (parts,) = (open_token_set(tmp_path / name).shards("train") for name in ("whole", "parts"))
    assert whole.starts.tolist() == parts.starts.tolist() and whole.document_ids.to_pylist() == parts.document_ids.to_pylist()


def test_the_splits_of_a_set_are_recorded_one_after_the_other(tmp_path: Path) -> None:
    train = write_stream(tmp_path)
    writer = ShardWriter(tmp_path, "validation", "books", STREAM)
    writer.append(Segment("held-out", token_array([5], STREAM), 1))
    record_shards(tmp_path, replace(STREAM, shards=(writer.close(),)))
    opened = open_token_set(tmp_path)
    assert opened.meta.shards[0] == train
    assert [shard.document_ids.to_pylist() for shard in opened.shards("validation")] == [["held-out"]]


def _patch(offset: int, content: bytes) -> Callable[[bytes], bytes]:
    return lambda old: old[:offset] + content + old[offset + len(content) :]


DAMAGE: list[tuple[Callable[[bytes], bytes], str]] = [
    (lambda old: old[:-1], "75 bytes long, expected 76"),
    (lambda old: old + b"\x00", "77 bytes long, expected 76"),
    (lambda old: old[:-2], "74 bytes long, expected 76"),
    (lambda old: b"", "0 bytes long, expected 76"),
    (_patch(0, b"PK"), "magic"),
    (_patch(8, b"\x01"), "format version is 1, tokens.json expects 2"),
    (_patch(12, b"\x02"), "element type is 2, tokens.json expects 1"),
    (_patch(14, b"\x01"), "content is 1, tokens.json expects 0"),
    (_patch(8, b"\x00\x00\x00\x01"), "format version"),
    (_patch(16, b"\x07"), "token count is 7, tokens.json expects 6"),
    (_patch(24, b"\xff"), "tokenizer is ff23"),
    (_patch(40, b"\xe9"), "vocabulary size is 1001, tokens.json expects 1000"),
    (_patch(44, b"\x08"), "row length is 8, tokens.json expects 0"),
    (_patch(48, b"\xe6"), "end-of-text id is 998, tokens.json expects 999"),
    (_patch(52, b"\x01"), "lowest id is 1, tokens.json expects 0"),
    (_patch(56, b"\x16"), "highest id is 22, tokens.json expects 21"),
    (_patch(60, bytes(4)), "CRC-32 of the block checksums is 0"),
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
    record_shards(tmp_path, replace(ROWS, shards=(writer.close(),)))
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
    _accept_index(path)
    _refused(tmp_path, str(path), "has the columns")


# What is changed in tokens.json, and what the error names: the file that contradicts it and the field.
MUTATIONS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "content": (lambda meta: meta.update(content="poems"), "tokens.json .*content is 'poems'"),
    "another content": (lambda meta: meta.update(content="conversations"), "tokens.json .*row_tokens is null for conversations"),
    "tokenizer": (lambda meta: meta.update(tokenizer_sha256="ff" * 32), r"books\.tokens: the header's tokenizer is 0123.*expects ffff"),
    "short tokenizer": (lambda meta: meta.update(tokenizer_sha256="abc"), "tokens.json"),
    "no tokenizer": (lambda meta: meta.update(tokenizer_sha256=3), "tokens.json"),
    "vocabulary": (lambda meta: meta.update(vocabulary_size=1_001), r"books\.tokens: the header's vocabulary size is 1000.*1001"),
    "no vocabulary": (lambda meta: meta.update(vocabulary_size=0), "tokens.json .*vocabulary_size is 0"),
    "text for a number": (lambda meta: meta.update(vocabulary_size="1000"), "tokens.json"),
    "element type": (lambda meta: meta.update(element_type="uint32"), "tokens.json .*element_type is 'uint32'.*uint16"),
    "end of text": (lambda meta: meta.update(end_of_text=998), r"books\.tokens: the header's end-of-text id is 999.*998"),
    "end of text outside": (lambda meta: meta.update(end_of_text=1_000), "tokens.json .*end_of_text is 1000"),
    "row length": (lambda meta: meta.update(row_tokens=8), "tokens.json .*row_tokens 8"),
    "format": (lambda meta: meta.update(format_version=1), "tokens.json: format_version is 1"),
    "no format": (lambda meta: meta.pop("format_version"), "tokens.json .*format_version"),
    "unknown field": (lambda meta: meta.update(surprise=1), "tokens.json .*surprise"),
    "no shards": (lambda meta: meta.pop("shards"), "tokens.json .*shards"),
    "a shard left out": (lambda meta: meta["shards"].clear(), r"books\.tokens is a shard that tokens\.json does not name"),
    "a shard twice": (lambda meta: meta["shards"].append(dict(meta["shards"][0])), "tokens.json .*listed twice"),
    "a path": (lambda meta: meta["shards"][0].update(source="../../etc/passwd"), "tokens.json .*misnamed"),
    "no name": (lambda meta: meta["shards"][0].update(source=3), "tokens.json"),
    "another source": (lambda meta: meta["shards"][0].update(source="web"), "books.tokens is a shard that tokens.json does not name"),
    "no split": (lambda meta: meta["shards"][0].update(split="test"), "tokens.json .*misnamed"),
    "token count": (lambda meta: meta["shards"][0].update(tokens=5), r"books\.tokens is 76 bytes long, expected 74 for 5 tokens"),
    "negative count": (lambda meta: meta["shards"][0].update(tokens=-6), "tokens.json .*tokens of train-books is -6"),
    "documents": (lambda meta: meta["shards"][0].update(documents=2), r"books\.documents lists 3 documents, tokens\.json says 2"),
    "half documents": (lambda meta: meta["shards"][0].update(documents=2.5), "tokens.json .*documents of train-books is 2.5"),
    "lowest id": (lambda meta: meta["shards"][0].update(lowest_id=1), r"books\.tokens: the header's lowest id is 0.*1"),
    "highest id": (lambda meta: meta["shards"][0].update(highest_id=20), r"books\.tokens: the header's highest id is 21.*20"),
    "highest id outside": (lambda meta: meta["shards"][0].update(highest_id=1_000), "tokens.json .*highest_id of train-books is 1000"),
    "checksums": (lambda meta: meta["shards"][0].update(tokens_crc32=7), r"books\.tokens: the header's CRC-32 of the block checksums"),
    "index checksum": (lambda meta: meta["shards"][0].update(index_crc32=7), r"books\.documents is damaged: its CRC-32 is .*says 7"),
    "mask of a stream": (lambda meta: meta["shards"][0].update(supervised_crc32=7), "tokens.json .*supervised_crc32"),
    "no token count": (lambda meta: meta["shards"][0].pop("tokens"), "tokens.json .*tokens"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_description_that_does_not_fit_is_refused_naming_file_and_field(tmp_path: Path, name: str) -> None:
    write_stream(tmp_path)
    change, reason = MUTATIONS[name]
    _change_meta(tmp_path, change)
    with pytest.raises(DataError, match=reason):
        open_token_set(tmp_path)


def test_the_row_length_of_a_set_in_rows_is_part_of_every_header(tmp_path: Path) -> None:
    write_rows(tmp_path)
    _change_meta(tmp_path, lambda meta: meta.update(row_tokens=4))
    _refused(tmp_path, "validation-pairs.tokens: the header's row length is 8, tokens.json expects 4")


def test_a_shard_that_nobody_names_is_refused(tmp_path: Path) -> None:
    write_stream(tmp_path)
    (tmp_path / "train-web.tokens").write_bytes((tmp_path / "train-books.tokens").read_bytes())
    _refused(tmp_path, "train-web.tokens is a shard that tokens.json does not name")


@pytest.mark.parametrize("part", ["documents", "tokens.crc32", "supervised.crc32"])
def test_a_flipped_bit_beside_the_tokens_is_found_on_opening(tmp_path: Path, part: str) -> None:
    write_rows(tmp_path)
    path = tmp_path / f"validation-pairs.{part}"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(bytes(content))
    _refused(tmp_path, f"{path} is damaged: its CRC-32 is")


def test_documents_may_lie_in_rows_and_in_batches(tmp_path: Path) -> None:
    meta = TokenSetMeta("documents", SHA256, 1_000, 4)
    writer = ShardWriter(tmp_path, "train", "books", meta)
    writer.append(Segment("before", token_array([9, 9, 9, 9], meta), 4, np.ones(4, np.uint8)))
    numbers, parts = np.array([2, 1, 2]), np.array([0, 0, 1], np.int32)
    rows = IndexRows(["b", "a", "b"], np.array([0, 4, 6]), np.array([4, 2, 1]), np.array([7, 2, 1]), numbers, parts)
    writer.append_batch(token_array([1, 2, 3, 4, 5, 6, 7, 999], meta), rows, np.array([1, 1, 1, 1, 1, 1, 0, 0], np.uint8))
    record_shards(tmp_path, replace(meta, shards=(writer.close(),)))
    (shard,) = open_token_set(tmp_path).shards("train")
    assert shard.document_ids.to_pylist() == ["before", "b", "a", "b"]
    assert shard.documents.tolist() == [0, 2, 1, 2] and shard.parts.tolist() == [0, 0, 0, 1]
    assert shard.starts.tolist() == [0, 4, 8, 10] and shard.lengths.tolist() == [4, 4, 2, 1]
    assert shard.damages is None


@pytest.mark.parametrize("content", [b"[]", b"{", b"\xff", b"3", b"null"])
def test_a_description_that_is_no_object_is_refused(tmp_path: Path, content: bytes) -> None:
    write_stream(tmp_path)
    (tmp_path / "tokens.json").write_bytes(content)
    _refused(tmp_path, "tokens.json")


def _write_index(path: Path, starts: list[int], lengths: list[int]) -> None:
    count = len(starts)
    columns = [["x"] * count, list(range(count)), [0] * count, starts, lengths, [1] * count, ["stutter"] * count]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, INDEX_SCHEMA, strict=True)]
    with pa.ipc.new_file(str(path), INDEX_SCHEMA) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=INDEX_SCHEMA))
    _accept_index(path)


def _accept_index(path: Path) -> None:
    """Let the description know of an index as it now lies there."""
    _change_meta(path.parent, lambda meta: meta["shards"][0].update(index_crc32=zlib.crc32(path.read_bytes())))


def _change_meta(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "tokens.json"
    meta = json.loads(path.read_text())
    change(meta)
    path.write_text(json.dumps(meta))


def _refused(folder: Path, *reasons: str) -> None:
    with pytest.raises(DataError) as caught:
        open_token_set(folder)
    for reason in reasons:
        assert reason in str(caught.value)
