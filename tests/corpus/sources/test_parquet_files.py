from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.core.errors import DataError
from fledge.corpus.document import Conversation, Document, Message, Preference, Row
from fledge.corpus.rejects import Rejects
from fledge.corpus.sources.parquet_files import read_row_batches, read_rows
from fledge.corpus.sources.piece import InputFile
from fledge.corpus.sources.reading import cut_pieces
from fledge.corpus.sources.records import Records
from fledge.corpus.sources.settings import Content, ParquetSource

from .readers import input_file, input_files, places, read_all

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


def source_of(path: Path, content: Content = "documents", **settings: Any) -> ParquetSource:
    return ParquetSource(name="a", path=str(path), content=content, **{"maximum_reject_share": 1.0, **settings})


def read(path: Path, content: Content = "documents", piece_bytes: int = 1 << 30, **settings: Any) -> tuple[list[Row], Rejects]:
    return read_all(source_of(path, content, **settings), [input_file(path)], piece_bytes)


def texts(rows: list[Row]) -> list[str]:
    return [row.text for row in rows if isinstance(row, Document)]


def written(path: Path, columns: dict[str, Any], rows: int = 1_000, **options: Any) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=rows, **options)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data.parquet"


def test_documents(path: Path) -> None:
    written(path, {"id": [1, 2, 3], "text": ["one", "two\r\nlines", "gr\u00fcn \x00 \U0001f41f"]}, rows=2)
    rows, rejects = read(path)
    assert texts(rows) == ["one", "two\nlines", "gr\u00fcn \x00 \U0001f41f"]
    assert [row.id for row in rows] == ["a:data.parquet:0", "a:data.parquet:1", "a:data.parquet:2"]
    assert {(row.source, row.group) for row in rows} == {("a", "")}
    assert rejects.seen["a"] == 3 and not rejects.stats()
    assert texts(read(path, fields={"text": "text"})[0]) == texts(rows)


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.large_binary(),
        pa.dictionary(pa.int32(), pa.string()),
        pa.dictionary(pa.int8(), pa.large_string()),
    ],
    ids=str,
)
def test_every_kind_of_text_is_read(path: Path, kind: pa.DataType) -> None:
    values = ["one", "gr\u00fcn", None, "", "one"]
    array = pa.array(values, pa.string())
    written(path, {"text": array.cast(kind)})
    rows, rejects = read(path)
    assert texts(rows) == ["one", "gr\u00fcn", "one"]
    assert places(rejects) == [
        ("data.parquet", 2, 0, "text is null, not a string"),
        ("data.parquet", 3, 0, "text is empty"),
    ]


@pytest.mark.parametrize("kind", [pa.string(), pa.binary()])
def test_what_is_not_utf8_is_a_reject_of_its_row(path: Path, kind: pa.DataType) -> None:
    buffers = pa.array([b"good", b"\xff", b"g\xc3\xbct"], pa.binary()).buffers()
    written(path, {"text": pa.Array.from_buffers(kind, 3, buffers)})
    rows, rejects = read(path)
    assert texts(rows) == ["good", "g\u00fct"]
    assert places(rejects) == [("data.parquet", 1, 0, "not UTF-8")]


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        (pa.array([1]), "int64"),
        (pa.array([["x"]]), "list<element: string>"),
        (pa.array([{"text": "x"}]), "struct<text: string>"),
        (pa.array([b"1234"], pa.binary(4)), "fixed_size_binary[4]"),
    ],
)
def test_a_column_of_another_type_is_refused(path: Path, values: pa.Array, shown: str) -> None:
    written(path, {"text": values})
    with pytest.raises(DataError) as caught:
        read(path)
    assert f"{path}: column 'text' holds {shown}" in caught.value.problem and caught.value.problem.endswith(", not text")


def test_a_missing_column_is_named(path: Path) -> None:
    written(path, {"id": [1], "body": ["x"]})
    for piece_bytes in (1, 1 << 30):
        with pytest.raises(DataError) as caught:
            read(path, piece_bytes=piece_bytes)
        assert caught.value.problem == f"{path} has no column 'text' (it has id, body)"


@pytest.mark.parametrize("damage", ["footer", "magic", "empty", "page", "text"])
def test_a_damaged_file_is_named(path: Path, damage: str) -> None:
    content = bytearray(written(path, {"text": [f"text {number}" for number in range(5_000)]}).read_bytes())
    match damage:
        case "footer":
            content = content[:-200]
        case "magic":
            content[-1] ^= 1
        case "empty":
            content = bytearray()
        case "page":
            content[100:2_000] = bytes(1_900)
        case "text":
            content = bytearray(b"plain text\n" * 10)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"data\.parquet cannot be read as Parquet: .*\nrestore the file"):
        read(path)


def test_a_file_that_changes_is_refused(path: Path, tmp_path: Path) -> None:
    written(path, {"text": ["one"]})
    file = input_file(path)
    written(path, {"text": ["one", "two"]})
    with pytest.raises(DataError, match=r"data\.parquet changed while it was read"):
        read_all(source_of(path), [file])


def test_pieces_are_row_groups_up_to_a_size(path: Path) -> None:
    written(
        path, {"text": [f"{number:05d}" + "x" * 995 for number in range(40)], "other": ["y" * 5_000] * 40}, rows=10, use_dictionary=False
    )
    file = input_file(path)

    def ranges(piece_bytes: int) -> list[tuple[int, int | None]]:
        return [(piece.start, piece.end) for piece in cut_pieces(source_of(path), [file], piece_bytes)]

    assert ranges(1) == [(0, 1), (1, 2), (2, 3), (3, None)]
    assert ranges(25_000) == [(0, 2), (2, None)]
    assert ranges(1 << 30) == [(0, None)]
    assert sum(piece.size_bytes for piece in cut_pieces(source_of(path), [file], 1)) < file.size_bytes


def test_small_files_share_a_piece(tmp_path: Path) -> None:
    for number in range(5):
        written(tmp_path / f"{number}.parquet", {"text": [f"text {number}"]})
    files = input_files(tmp_path)
    assert len(cut_pieces(source_of(tmp_path), files)) == 1
    rows, _ = read_all(source_of(tmp_path), files)
    assert [row.id for row in rows] == [f"a:{number}.parquet:0" for number in range(5)]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> list[InputFile]:
    folder = tmp_path_factory.mktemp("mixed")
    for name, rows in (("a", 13), ("b", 100), ("c", 7)):
        values = [None if number % 5 == 3 else f"{name} {number}" for number in range(57)]
        written(folder / f"{name}.parquet", {"text": values}, rows=rows)
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), folder / "d.parquet")
    return input_files(folder)


@given(piece_bytes=st.integers(1, 20_000))
def test_any_cut_gives_the_same_rows_and_rejects(mixed: list[InputFile], piece_bytes: int) -> None:
    source = source_of(Path("mixed"))
    whole, cut = (read_all(source, mixed, size) for size in (1 << 30, piece_bytes))
    assert cut[0] == whole[0] and len(whole[0]) == 3 * 46
    assert vars(cut[1]) == vars(whole[1])
    assert [reject.line for reject in whole[1].kept][:3] == [3, 8, 13]


TEXTS = st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(["a\r\nb", "\u2003\u1680", "\x1c", "\x85", "\u3000x", "\u0e01"])


@given(
    values=st.lists(TEXTS, max_size=9), odd=st.sampled_from([None, b"\xff", b"fine"]), rows=st.integers(1, 10), batch_rows=st.integers(1, 4)
)
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary()], ids=str)
def test_batches_and_single_rows_agree(
    tmp_path_factory: pytest.TempPathFactory, kind: pa.DataType, values: list[str], odd: bytes | None, rows: int, batch_rows: int
) -> None:
    encoded = pa.array([*(value.encode() for value in values), odd], pa.large_binary() if kind == pa.large_string() else pa.binary())
    column = pa.Array.from_buffers(kind, len(encoded), encoded.buffers())
    file = input_file(written(tmp_path_factory.getbasetemp() / "agree.parquet", {"text": column}, rows=rows))
    records = Records.of(source_of(Path("agree")))
    singly, batched = Rejects(), Rejects()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fledge.corpus.sources.parquet_files._BATCH_ROWS", batch_rows)
        expected = list(read_rows(records, file, 0, None, singly, 1.0))
        batches = list(read_row_batches(records, file, 0, None, batched, 1.0))
    assert [batch.document(index, batch.texts[index].as_py()) for batch in batches for index in range(len(batch))] == expected
    assert vars(batched) == vars(singly)


def test_usual_batches_make_no_row(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(path, {"text": [f"Text {number}: \U0001f600" for number in range(100)]})
    monkeypatch.setattr(Records, "row", None)
    batches = list(read_row_batches(Records.of(source_of(path)), input_file(path), 0, None, Rejects(), 1.0))
    assert [text for batch in batches for text in batch.texts.to_pylist()][99] == "Text 99: \U0001f600"
    assert batches[-1].origins.ids[-1].as_py() == "a:data.parquet:99"


def test_conversations(path: Path) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a\r\n"}]
    values = [turns, turns[:1], None, [None, *turns], [], turns]
    written(path, {"talk": pa.array(values, MESSAGES)}, rows=2)
    rows, rejects = read(path, "conversations", fields={"messages": "talk"})
    assert [row.id for row in rows] == ["a:data.parquet:0", "a:data.parquet:5"]
    assert isinstance(rows[0], Conversation) and rows[0].messages == (Message("user", "q"), Message("assistant", "a\n"))
    assert [(line, reason) for _, line, _, reason in places(rejects)] == [
        (1, "the last message is not the assistant's"),
        (2, "messages is null, not a list"),
        (3, "a message without role and content"),
        (4, "the last message is not the assistant's"),
    ]


def test_a_message_that_is_not_utf8_is_a_reject_of_its_row(path: Path) -> None:
    contents = pa.Array.from_buffers(pa.string(), 4, pa.array([b"q", b"a", b"q", b"\xff"], pa.binary()).buffers())
    turns = pa.StructArray.from_arrays([pa.array(["user", "assistant"] * 2), contents], ["role", "content"])
    written(path, {"messages": pa.ListArray.from_arrays([0, 2, 4], turns)})
    rows, rejects = read(path, "conversations")
    assert len(rows) == 1 and places(rejects) == [("data.parquet", 1, 0, "not UTF-8")]


@pytest.mark.parametrize(
    "values",
    [
        pa.array(["text"]),
        pa.array([[{"role": "user"}]]),
        pa.array([[{"role": "user", "content": 5}]]),
        pa.array([{"role": ["user"], "content": ["q"]}]),
    ],
)
def test_a_column_that_holds_no_messages_is_refused(path: Path, values: pa.Array) -> None:
    written(path, {"messages": values})
    with pytest.raises(DataError, match=r"data\.parquet: column 'messages' holds .*, not messages"):
        read(path, "conversations")


@pytest.mark.parametrize("prompt", [pa.array(["q"]), pa.array([[{"role": "user", "content": "q"}]], MESSAGES)])
def test_preferences(path: Path, prompt: pa.Array) -> None:
    written(path, {"prompt": prompt, "chosen": ["good"], "rejected": ["bad"]})
    rows, rejects = read(path, "preferences")
    assert not rejects.kept and isinstance(rows[0], Preference)
    assert (rows[0].prompt, rows[0].chosen, rows[0].rejected) == ((Message("user", "q"),), "good", "bad")
    written(path, {"prompt": [5], "chosen": ["good"], "rejected": ["bad"]})
    with pytest.raises(DataError, match=r"column 'prompt' holds int64, not text or messages"):
        read(path, "preferences")


def test_only_the_needed_columns_are_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(
        path,
        {"text": ["x" * 100] * 10, "other": [bytes(number % 256 for number in range(1_000_000))] * 10},
        use_dictionary=False,
        compression="none",
    )
    read_bytes = 0

    class Counting(io.FileIO):
        def read(self, size: int | None = -1) -> bytes:
            nonlocal read_bytes
            content = super().read(size)
            read_bytes += len(content)
            return content

    monkeypatch.setattr("fledge.corpus.sources.unpacking.open_input", lambda file: Counting(file.address))
    rows, _ = read(path)
    assert len(rows) == 10 and 0 < read_bytes < 200_000


@pytest.mark.parametrize(("characters", "rows"), [(100_000, 500), (5_000_000, 6)])
def test_few_rows_are_decoded_at_a_time(path: Path, characters: int, rows: int) -> None:
    """Long texts, and one that is stored once and stands in every row."""
    values = [f"{number * (rows < 10)}" + "x" * characters for number in range(rows)]
    written(path, {"text": values}, rows=rows, write_batch_size=1, data_page_size=1_000)
    before, most = pa.total_allocated_bytes(), 0
    records = Records.of(source_of(path))
    for _ in read_rows(records, input_file(path), 0, None, Rejects(), 1.0):
        most = max(most, pa.total_allocated_bytes() - before)
    assert characters < most < 25_000_000
