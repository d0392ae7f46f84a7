"""Rows are fetched once, from the hub's Parquet copies, and are whole and right or not there."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fledge.core.errors import DataError
from fledge.evaluation.benchmarks.fetching import PARQUET_BRANCH, fetch_benchmarks
from fledge.evaluation.benchmarks.places import find_benchmark, read_rows
from tests.corpus.sources.conftest import hub, site  # noqa: F401  # fixtures
from tests.corpus.sources.servers import Hub

from .benchmark_rows import ROWS


def parquet(name: str) -> bytes:
    content = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS[name]), content)
    return content.getvalue()


def test_rows_are_fetched_once_and_found(hub: Hub, tmp_path: Path) -> None:  # noqa: F811
    wanted = "boolq/validation/0000.parquet"
    commit = hub.put("aps/super_glue", {wanted: parquet("boolq"), "boolq/train/0000.parquet": b"x"}, PARQUET_BRANCH)
    [found] = fetch_benchmarks(["boolq"], tmp_path)
    assert (found.name, found.path, found.commit) == ("boolq", tmp_path / "boolq.parquet", commit)
    assert [row.values["question"] for row in read_rows(find_benchmark("boolq", tmp_path))] == [row["question"] for row in ROWS["boolq"]]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".boolq.json", "boolq.parquet"]

    asked = len(hub.site.requests)
    assert fetch_benchmarks(["boolq"], tmp_path) == [found]
    assert hub.site.requests[asked:] == [], "what is there needs no hub"
    (tmp_path / ".boolq.json").unlink()
    assert fetch_benchmarks(["boolq"], tmp_path) == [found]
    assert not any("/cdn/" in str(request) for request in hub.site.requests[asked:]), "what is there is not fetched again"
    found.path.write_bytes(b"damaged")
    fetch_benchmarks(["boolq"], tmp_path)
    assert found.path.read_bytes() == parquet("boolq")


def test_what_cannot_be_fetched_is_said(hub: Hub, tmp_path: Path) -> None:  # noqa: F811
    hub.put("baber/piqa", {"default/validation/0000.parquet": b"x", "default/validation/0001.parquet": b"y"}, PARQUET_BRANCH)
    with pytest.raises(DataError, match="has 2 files at default/validation"):
        fetch_benchmarks(["piqa"], tmp_path)
    with pytest.raises(DataError, match="text has no rows"):
        fetch_benchmarks(["text"], tmp_path)
    with pytest.raises(DataError, match="there is no benchmark 'piqua'"):
        fetch_benchmarks(["piqua"], tmp_path)
    assert list(tmp_path.iterdir()) == []
