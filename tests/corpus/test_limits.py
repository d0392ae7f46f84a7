from __future__ import annotations

import pytest

from fledge.corpus.document import Document
from fledge.corpus.limits import BYTES_PER_TOKEN, Limits, limits_of
from fledge.corpus.sources.settings import PythonDocsSource

ROWS = [Document(text, f"a:{number}", "a", "") for number, text in enumerate(("four", "fünf", "six", "seven"))]


def taken(limits: Limits) -> list[str]:
    return [row.text for row in limits.take(ROWS)]


def test_without_limits_all_is_taken() -> None:
    assert len(taken(Limits())) == 4
    assert Limits().endless and not Limits().exhausted


def test_a_number_of_documents() -> None:
    assert taken(Limits(documents=2)) == ["four", "fünf"]
    assert taken(Limits(documents=4)) == taken(Limits(documents=9)) == taken(Limits())
    assert taken(Limits(documents=0)) == []


@pytest.mark.parametrize(("utf8_bytes", "documents"), [(1, 1), (4, 1), (5, 2), (9, 2), (10, 3), (12, 3), (13, 4), (99, 4)])
def test_the_row_that_reaches_the_bytes_is_the_last(utf8_bytes: int, documents: int) -> None:
    """ "fünf" has five bytes."""
    assert len(taken(Limits(utf8_bytes=utf8_bytes))) == documents


def test_what_is_left() -> None:
    assert Limits(documents=3, utf8_bytes=10).after(1, 4) == Limits(documents=2, utf8_bytes=6)
    assert Limits(documents=3).after(3, 1_000).exhausted
    assert Limits(utf8_bytes=10).after(3, 12).exhausted
    assert not Limits(documents=3, utf8_bytes=10).after(2, 9).exhausted


def test_the_smallest_limit_of_a_source_counts() -> None:
    assert limits_of(PythonDocsSource()) == Limits()
    both = PythonDocsSource(maximum_documents=7, maximum_bytes=1_000, maximum_tokens_estimate=100)
    assert limits_of(both) == Limits(documents=7, utf8_bytes=100 * BYTES_PER_TOKEN)
