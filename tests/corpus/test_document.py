from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fledge.core.errors import DataError
from fledge.corpus.document import (
    SCHEMAS,
    Content,
    Conversation,
    Document,
    Message,
    Preference,
    Row,
    Split,
    as_columns,
    read_conversations,
    read_documents,
    read_preferences,
    shard_paths,
)

ORIGIN = {"id": "s:1", "source": "s", "group": "g"}
QUESTION = Message("user", "Why?")
ROWS: dict[Content, Row] = {
    "documents": Document(text="A text with \u00e4, \U0001f41f and \x00.", **ORIGIN),
    "conversations": Conversation(messages=(Message("system", "Be brief."), QUESTION, Message("assistant", "So.")), **ORIGIN),
    "preferences": Preference(prompt=(QUESTION,), chosen="So.", rejected="So. So.", damage="repeat", **ORIGIN),
}
READERS: dict[Content, Callable[[Path, Split], Iterator[Any]]] = {
    "documents": read_documents,
    "conversations": read_conversations,
    "preferences": read_preferences,
}


def write(folder: Path, content: Content, rows: list[Row], name: str = "train-00000.parquet") -> None:
    pq.write_table(pa.Table.from_pylist([as_columns(row) for row in rows], schema=SCHEMAS[content]), folder / name)


@pytest.mark.parametrize("content", ["documents", "conversations", "preferences"])
def test_rows_come_back_as_they_were(tmp_path: Path, content: Content) -> None:
    write(tmp_path, content, [ROWS[content]] * 3)
    assert list(READERS[content](tmp_path, "train")) == [ROWS[content]] * 3
    assert list(READERS[content](tmp_path, "validation")) == []


def test_shards_are_read_in_order(tmp_path: Path) -> None:
    for number in (2, 0, 1):
        write(tmp_path, "documents", [Document(str(number), "", "s", "g")], f"train-{number:05d}.parquet")
    assert [document.text for document in read_documents(tmp_path, "train")] == ["0", "1", "2"]
    assert [path.name for path in shard_paths(tmp_path, "validation")] == []


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no corpus of documents"):
        list(read_documents(tmp_path, "train"))
    with pytest.raises(DataError, match="holds no corpus of documents"):
        list(read_documents(tmp_path, "validation"))


def test_another_content_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "documents", [ROWS["documents"]])
    with pytest.raises(DataError, match="no column 'messages'"):
        list(read_conversations(tmp_path, "train"))
    pq.write_table(pa.table({"text": [1], "id": ["a"], "source": ["s"], "group": ["g"]}), tmp_path / "train-00000.parquet")
    with pytest.raises(DataError, match="column 'text' holds int64, not string"):
        list(read_documents(tmp_path, "train"))


def test_a_shard_cut_short_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "documents", [ROWS["documents"]])
    path = tmp_path / "train-00000.parquet"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(DataError, match=r"train-00000\.parquet cannot be read"):
        list(read_documents(tmp_path, "train"))
