from __future__ import annotations

import itertools
import json
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from fledge.core.errors import DataError
from fledge.corpus import shards
from fledge.corpus.document import Document, read_documents, shard_paths
from fledge.corpus.engine.pool import LocalExecutor
from fledge.corpus.engine.units import Done, WorkFolder
from fledge.corpus.factory import Factory
from fledge.corpus.resolve import resolve_sources
from fledge.corpus.settings import CorpusSettings
from fledge.corpus.shards import ShardUnit, _Cutter, shard_units

from .corpus_assembly import lines_source, near_copy, settings, texts, write_lines


def surveyed(folder: Path, wanted: CorpusSettings) -> tuple[tuple[Done, ...], Done]:
    """What the first three phases made: the clean units and the clusters."""
    found = Factory(wanted, (), WorkFolder(folder / "work"), LocalExecutor(1)).survey(resolve_sources(wanted, "documents", folder / "work"))
    return found.clean, found.clusters


def written(folder: Path, units: Sequence[ShardUnit]) -> list[dict[str, Any]]:
    """Run units into one folder; returns their counts."""
    folder.mkdir()
    return [unit.run(folder) for unit in units]


@pytest.fixture
def sources(tmp_path: Path) -> CorpusSettings:
    """Two sources of 25 and 20 documents; 5 of the second are copies."""
    one, two = texts(25), texts(15, seed=1)
    write_lines(tmp_path / "one.jsonl", one)
    write_lines(tmp_path / "two.jsonl", [*two, *map(near_copy, one[:3]), one[0], two[0]])
    return settings(lines_source(tmp_path / "one.jsonl"), lines_source(tmp_path / "two.jsonl"), validation_fraction=0.3)


def test_rows_are_dealt_out_in_order_on_both_sides(tmp_path: Path, sources: CorpusSettings) -> None:
    wanted = replace(sources, shard_documents=8)
    clean, clusters = surveyed(tmp_path, wanted)
    units = shard_units(clean, clusters, wanted)
    counts = written(tmp_path / "out", units)
    train, validation = (list(read_documents(tmp_path / "out", split)) for split in ("train", "validation"))
    given = {name: [json.loads(line)["text"] for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()] for name in ("one", "two")}
    kept = [("one", text) for text in given["one"]] + [("two", text) for text in given["two"][:15]]
    order = {text: number for number, (_, text) in enumerate(kept)}
    assert sorted(order[row.text] for row in (*train, *validation)) == list(range(40))
    for rows in (train, validation):
        assert [order[row.text] for row in rows] == sorted(order[row.text] for row in rows)
        assert [row.source for row in rows] == [kept[order[row.text]][0] for row in rows]
    assert not {row.group for row in train} & {row.group for row in validation}
    names = [path.name for split in ("train", "validation") for path in shard_paths(tmp_path / "out", split)]
    assert names == [unit.name for unit in units]
    assert [pq.ParquetFile(tmp_path / "out" / name).metadata.num_rows for name in names[: len(train) // 8]] == [8] * (len(train) // 8)
    told = {"rows": 0, "characters": 0, "utf8_bytes": 0}
    for count in counts:
        for name in told:
            told[name] += sum(figures[name] for figures in count["sources"].values())
    rows = [*train, *validation]
    assert told == {"rows": 40, "characters": sum(len(row.text) for row in rows), "utf8_bytes": sum(len(row.text.encode()) for row in rows)}
    assert [unit.size_bytes for unit in units] == [sum(one["utf8_bytes"] for one in count["sources"].values()) for count in counts]


@pytest.mark.parametrize("form", ["parquet", "jsonl", "jsonl.zst"])
def test_every_form_reads_back_the_same(tmp_path: Path, sources: CorpusSettings, form: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "odd.jsonl").write_text(
        "".join(
            json.dumps({"text": text}) + "\n"
            for text in ('Quote " and \\ and\ttab.', "漢字とかな。", "😀 \u2028 line\nnext \x85 end", "é" * 5000)
        )
    )
    wanted = replace(sources, sources=(*sources.sources, lines_source(tmp_path / "odd.jsonl")), cleaning=())
    clean, clusters = surveyed(tmp_path, wanted)
    expected = written(tmp_path / "parquet", shard_units(clean, clusters, wanted))
    monkeypatch.setattr(shards, "_ROW_GROUP_ROWS", 7)
    assert written(tmp_path / "other", shard_units(clean, clusters, replace(wanted, format=form))) == expected
    for split in ("train", "validation"):
        assert list(read_documents(tmp_path / "other", split)) == list(read_documents(tmp_path / "parquet", split))
    assert {path.name.partition(".")[2] for path in (tmp_path / "other").iterdir()} == {form}


def test_what_is_on_disk_is_what_it_says(tmp_path: Path, sources: CorpusSettings) -> None:
    clean, clusters = surveyed(tmp_path, sources)
    written(tmp_path / "parquet", shard_units(clean, clusters, sources))
    column = pq.ParquetFile(tmp_path / "parquet" / "train-00000.parquet").metadata.row_group(0).column(0)
    assert (column.path_in_schema, column.compression) == ("text", "ZSTD")
    written(tmp_path / "packed", shard_units(clean, clusters, replace(sources, format="jsonl.zst")))
    with zstandard.open(tmp_path / "packed" / "train-00000.jsonl.zst", "rt", encoding="utf-8") as lines:
        rows = [Document(**json.loads(line)) for line in lines]
    assert rows == list(read_documents(tmp_path / "packed", "train"))


@pytest.mark.parametrize("form", ["jsonl", "jsonl.zst"])
def test_a_damaged_shard_of_lines_is_an_error(tmp_path: Path, sources: CorpusSettings, form: Any) -> None:
    clean, clusters = surveyed(tmp_path, sources)
    written(tmp_path / "out", shard_units(clean, clusters, replace(sources, format=form)))
    path = tmp_path / "out" / f"train-00000.{form}"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=rf"{form} cannot be read"):
        list(read_documents(tmp_path / "out", "train"))


def test_row_groups_are_bounded_by_rows_and_by_bytes(tmp_path: Path, sources: CorpusSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    clean, clusters = surveyed(tmp_path, replace(sources, validation_fraction=0.0))
    [unit] = shard_units(clean, clusters, sources)
    expected = written(tmp_path / "one", [unit])
    sizes = [len(row.text.encode()) for row in read_documents(tmp_path / "one", "train")]
    for name, value in (("_ROW_GROUP_ROWS", 7), ("_ROW_GROUP_BYTES", 500)):
        monkeypatch.setattr(shards, name, value)
        assert written(tmp_path / name, [unit]) == expected
        metadata = pq.ParquetFile(tmp_path / name / unit.name).metadata
        groups = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        assert sum(groups) == 40
        assert max(groups) <= 7
    starts = [0, *itertools.accumulate(groups)]
    assert all(sum(sizes[start : end - 1]) < 500 for start, end in itertools.pairwise(starts))
    assert len(groups) > 10


def test_a_side_without_rows_has_no_shard(tmp_path: Path, sources: CorpusSettings) -> None:
    wanted = replace(sources, validation_fraction=0.0)
    clean, clusters = surveyed(tmp_path, wanted)
    assert [unit.name for unit in shard_units(clean, clusters, wanted)] == ["train-00000.parquet"]


# ---- keys


def test_a_shard_follows_its_own_rows_only(tmp_path: Path, sources: CorpusSettings) -> None:
    wanted = replace(sources, shard_documents=5, validation_fraction=0.0)
    units = shard_units(*surveyed(tmp_path, wanted), wanted)
    before = [unit.key for unit in units]
    assert len(set(before)) == len(units) == 8
    # The first copy moves: from the second source into the first, where it was a near copy before.
    lines = (tmp_path / "two.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "two.jsonl").write_text("".join([*lines[:-5], lines[-1]]))
    after = [unit.key for unit in shard_units(*surveyed(tmp_path, wanted), wanted)]
    assert after[:5] == before[:5], "shards of the first source"
    assert not set(after[5:]) & set(before), "the file of the second is another"
    assert [
        unit.key for unit in shard_units(*surveyed(tmp_path, replace(wanted, format="jsonl")), replace(wanted, format="jsonl"))
    ] != after
    unit = units[0]
    assert pickle.loads(pickle.dumps(unit)).key == unit.key
    assert unit.label == "shard train-00000.parquet"
    assert replace(unit, selection="other").key != unit.key
    assert replace(unit, number=7).key != unit.key
    moved = replace(unit.stretches[0], offset=99)
    assert replace(unit, stretches=(moved, *unit.stretches[1:])).key == unit.key, "where the rows stand among all is no matter"


def test_a_row_that_joins_another_cluster_changes_only_its_shard(tmp_path: Path, sources: CorpusSettings) -> None:
    wanted = replace(sources, shard_documents=5, validation_fraction=0.0)
    clean, clusters = surveyed(tmp_path, wanted)
    before = [unit.key for unit in shard_units(clean, clusters, wanted)]
    for name, row in (("groups", 12), ("keep", 39)):
        array = np.load(clusters.folder / f"{name}.npy")
        array[row] = 5 if name == "groups" else False
        np.save(clusters.folder / f"{name}.npy", array)
        after = [unit.key for unit in shard_units(clean, clusters, wanted)]
        changed = [number for number, (one, other) in enumerate(zip(before, after, strict=True)) if one != other]
        assert changed == ([2] if name == "groups" else [2, 7])


# ---- where shards end


def naive(sizes: Sequence[int], rows: int, size_bytes: int | None) -> list[int]:
    """The shard of each row, row by row."""
    shard, rows_in, bytes_in, found = 0, 0, 0, []
    for size in sizes:
        if rows_in == rows or (size_bytes is not None and bytes_in >= size_bytes):
            shard, rows_in, bytes_in = shard + 1, 0, 0
        rows_in, bytes_in = rows_in + 1, bytes_in + size
        found.append(shard)
    return found


@given(
    pieces=st.lists(st.lists(st.integers(1, 40), max_size=12), max_size=6),
    rows=st.integers(1, 15),
    size_bytes=st.none() | st.integers(1, 120),
)
def test_shards_end_with_their_last_row_or_their_last_byte(pieces: list[list[int]], rows: int, size_bytes: int | None) -> None:
    cutter = _Cutter(rows, size_bytes)
    found: list[int] = []
    for sizes in pieces:
        behind = 0
        for number, low, high in cutter.cut(np.array(sizes, np.int64)):
            assert low == behind < high
            behind = high
            found += [number] * (high - low)
        assert behind == len(sizes)
    assert found == naive(list(itertools.chain(*pieces)), rows, size_bytes)


@pytest.mark.parametrize(
    ("shard_bytes", "expected"), [(None, [3, 3, 1]), (1, [1] * 7), (20, [2, 2, 2, 1]), (21, [3, 3, 1]), (10**9, [3, 3, 1])]
)
def test_shards_by_documents_and_by_bytes(tmp_path: Path, shard_bytes: int | None, expected: list[int]) -> None:
    """Every text has 10 bytes."""
    write_lines(tmp_path / "a.jsonl", (f"text {number:04d}." for number in range(7)))
    source = lines_source(tmp_path / "a.jsonl")
    wanted = settings(source, validation_fraction=0.0, shard_documents=3, shard_bytes=shard_bytes)
    counts = written(tmp_path / "out", shard_units(*surveyed(tmp_path, wanted), wanted))
    assert [count["sources"]["a"]["rows"] for count in counts] == expected
