from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from fledge.core.errors import DataError
from fledge.corpus.document import Document
from fledge.tokens.sampling import TrainingText, choose_text
from fledge.tokens.settings import TokenizerSettings


def _documents(count: int = 3_000) -> list[Document]:
    sources = ("web", "code", "books")
    return [Document(f"{number:04}" + "x" * (16 + number % 60), f"d{number}", sources[number % 3], "g") for number in range(count)]


def _chosen(documents: Iterable[Document], **options: Any) -> TrainingText:
    return choose_text(lambda: documents, TokenizerSettings(**options))


def test_all_is_taken_as_it_is_where_there_is_room() -> None:
    documents = _documents(30)
    chosen = _chosen(documents)
    assert list(chosen) == [document.text for document in documents]
    assert chosen.expected_bytes == chosen.figures()["available_bytes"] == sum(len(document.text) for document in documents)


def test_a_sample_is_about_as_large_as_asked_and_holds_the_smaller_one(capsys: Any) -> None:
    documents = _documents()
    small, large = (_chosen(documents, maximum_bytes=size) for size in (30_000, 60_000))
    assert "trains on 30 kB of 148 kB" in capsys.readouterr().err
    for chosen, size in ((small, 30_000), (large, 60_000)):
        assert sum(map(len, chosen)) == pytest.approx(size, rel=0.1)
    assert list(small) == list(small)
    assert set(small) < set(large)


def test_the_sample_does_not_depend_on_the_order() -> None:
    documents = _documents()
    assert sorted(_chosen(documents, maximum_bytes=30_000)) == sorted(_chosen(documents[::-1], maximum_bytes=30_000))


def test_shares_of_sources_hold_and_the_others_are_left_out() -> None:
    chosen = _chosen(_documents(), sources={"web": 3, "code": 1})
    assert sum(map(len, chosen)) < chosen.figures()["available_bytes"]
    shares = chosen.figures()["source_shares"]
    assert shares == {"web": pytest.approx(0.75, abs=0.03), "code": pytest.approx(0.25, abs=0.03)}
    # The scarcest source, here web, is taken whole.
    assert chosen.fractions["web"] == 1.0
    small = _chosen(_documents(), sources={"web": 3, "code": 1}, maximum_bytes=20_000)
    assert sum(map(len, small)) == pytest.approx(20_000, rel=0.15)
    assert small.figures()["source_shares"]["web"] == pytest.approx(0.75, abs=0.05)


def test_a_source_that_no_document_has_is_refused() -> None:
    with pytest.raises(DataError, match="'papers', and no document") as caught:
        _chosen(_documents(30), sources={"web": 1, "papers": 1})
    assert "books, code, web" in caught.value.remedy


def test_memory_is_told_before(capsys: Any) -> None:
    _chosen(_documents(), kind="unigram")
    assert "with up to 3.1 MB of memory" in capsys.readouterr().err
