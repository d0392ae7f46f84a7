from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fledge.core.errors import DataError
from fledge.corpus.document import Conversation, Document, Message, Preference
from fledge.corpus.sources.settings import CsvSource, JsonSource, ParquetSource

from .readers import input_file, places, read_all


def read_list(path: Path, **settings: Any) -> Any:
    return read_all(JsonSource(name="a", path=str(path), maximum_reject_share=1.0, **settings), [input_file(path)])


def read_table(path: Path, **settings: Any) -> Any:
    return read_all(CsvSource(name="a", path=str(path), maximum_reject_share=1.0, **settings), [input_file(path)])


@pytest.mark.parametrize("packed", [False, True])
def test_a_list_of_objects(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / ("alpaca.json.gz" if packed else "alpaca.json")
    content = json.dumps([{"instruction": "q", "input": "", "output": "a"}, 7, {"instruction": "q"}], indent=2).encode()
    path.write_bytes(gzip.compress(content) if packed else b"\xef\xbb\xbf" + content)
    rows, rejects = read_list(path, content="conversations", form="instructions")
    assert [row.messages for row in rows] == [(Message("user", "q"), Message("assistant", "a"))]
    assert [place[1:] for place in places(rejects)] == [(2, 0, "a number, not an object"), (3, 0, "no key 'output' (keys: instruction)")]


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b'{"a": 1}\n{"a": 2}\n', "is not JSON"), (b'{"a": 1}', "holds an object, not a list"), (b'[{"a": 1}', "is not JSON")],
)
def test_what_is_no_list_is_told(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=problem):
        read_list(path)


def test_a_table(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbfid,text\r\n1,"one, with ""quotes""\r\nand lines"\r\n\r\n2,\r\n3,caf\xe9\r\n4\r\n5,last')
    rows, rejects = read_table(path)
    assert [(row.id, row.text) for row in rows if isinstance(row, Document)] == [
        ("a:a.csv:3", 'one, with "quotes"\nand lines'),
        ("a:a.csv:8", "last"),
    ]
    assert [place[1:] for place in places(rejects)] == [(5, 0, "text is empty"), (6, 0, "not UTF-8"), (7, 0, "1 values for 2 columns")]


def test_a_table_with_tabs(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text("question\tgood\tbad\nq\ta\tb\n", encoding="utf-8")
    fields = {"prompt": "question", "chosen": "good", "rejected": "bad"}
    rows, _ = read_table(path, content="preferences", fields=fields, delimiter="\t")
    assert isinstance(rows[0], Preference) and (rows[0].chosen, rows[0].rejected) == ("a", "b")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("body\nx\n", r"has no column 'text' \(it has body\)"),
        ("", r"has no column 'text' \(it has none\)"),
        ('text\n"never closed\n', "is not CSV after line"),
    ],
)
def test_what_is_no_table_is_told(tmp_path: Path, content: str, problem: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=problem):
        read_table(path)


def test_forms_in_parquet(tmp_path: Path) -> None:
    """Columns that a form may have are read where they are there, and only these."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([{"instruction": "q", "input": "about", "output": "a", "other": 1}]), path)
    source = ParquetSource(name="a", path=str(path), content="conversations", form="instructions")
    rows, _ = read_all(source, [input_file(path)])
    assert isinstance(rows[0], Conversation) and rows[0].messages[0].content == "q\n\nabout"
    pq.write_table(pa.Table.from_pylist([{"conversations": ["q", "a"]}, {"conversations": ["q2", "a2"]}]), path)
    source = ParquetSource(name="a", path=str(path), content="conversations", fields={"messages": "conversations"})
    assert [len(row.messages) for row in read_all(source, [input_file(path)])[0] if isinstance(row, Conversation)] == [2, 2]
    tree = [
        {"message_id": "1", "parent_id": None, "role": "prompter", "text": "q", "rank": None, "lang": "en"},
        {"message_id": "2", "parent_id": "1", "role": "assistant", "text": "a", "rank": 0.0, "lang": "en"},
    ]
    pq.write_table(pa.Table.from_pylist(tree), path, row_group_size=1)
    source = ParquetSource(name="a", path=str(path), content="conversations", form="tree", fields={"language": "lang"}, language="en")
    assert len(read_all(source, [input_file(path)], piece_bytes=1)[0]) == 1
