from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.core import disk
from fledge.core.errors import DataError
from fledge.corpus.rejects import Reject, Rejects, value_kind


def reject(line: int, reason: str = "not JSON", file: str = "a.jsonl", source: str = "a") -> Reject:
    return Reject(source, file, line, 10 * line, reason)


def rejects_of(*kept: Reject, seen: int = 0, lines_read: dict[tuple[str, str], int] | None = None) -> Rejects:
    rejects = Rejects()
    for each in kept:
        rejects.add(each)
    rejects.seen["a"] = seen
    rejects.lines_read.update(lines_read or {})
    return rejects


def test_values_are_named_as_json_names_them() -> None:
    named = [value_kind(value) for value in (None, False, 1, 1.5, "", [], {}, b"")]
    assert named == ["null", "true or false", "a number", "a number", "a string", "a list", "an object", "bytes"]


def test_they_travel_as_json(tmp_path: Path) -> None:
    rejects = rejects_of(reject(3), reject(4, "no key 'text' (keys: a)"), seen=9, lines_read={("a", "a.jsonl"): 7})
    disk.write_json(tmp_path / "rejects.json", rejects.as_json())
    read = Rejects.read(tmp_path / "rejects.json")
    assert vars(read) == vars(rejects)
    assert [json.loads(line) for line in rejects.lines()][1] == {
        "source": "a",
        "file": "a.jsonl",
        "line": 4,
        "byte_offset": 40,
        "reason": "no key 'text' (keys: a)",
    }


def test_lines_of_later_pieces_of_a_file_are_shifted_by_those_before() -> None:
    first = rejects_of(reject(2), seen=5, lines_read={("a", "a.jsonl"): 5})
    second = rejects_of(seen=0, lines_read={("a", "a.jsonl"): 2})
    third = rejects_of(reject(1), reject(2, file="b.jsonl"), seen=3)
    merged = Rejects.merged([first, second, third])
    assert [(each.file, each.line, each.byte_offset) for each in merged.kept] == [
        ("a.jsonl", 2, 20),
        ("a.jsonl", 8, 10),
        ("b.jsonl", 2, 20),
    ]
    assert merged.seen["a"] == 8 and merged.count("a") == 3


@given(st.lists(st.sampled_from("xyz"), max_size=30), st.lists(st.integers(0, 30), max_size=4))
def test_merging_gives_what_one_reader_would_have(kinds: list[str], cuts: list[int]) -> None:
    whole = rejects_of(*(reject(number + 1, kind) for number, kind in enumerate(kinds)), seen=len(kinds))
    borders = sorted({0, len(kinds), *(min(cut, len(kinds)) for cut in cuts)})
    parts = [
        rejects_of(
            *(Reject("a", "a.jsonl", number + 1, 10 * (start + number + 1), kind) for number, kind in enumerate(kinds[start:end])),
            seen=end - start,
            lines_read={("a", "a.jsonl"): end - start},
        )
        for start, end in itertools.pairwise(borders)
    ]
    merged = Rejects.merged(parts)
    assert merged.kept == whole.kept and merged.stats() == whole.stats() and list(merged.lines()) == list(whole.lines())


def test_every_reject_is_counted_and_the_first_ten_thousand_are_kept() -> None:
    def part(start: int) -> Rejects:
        return rejects_of(*(reject(start + number, f"no key 'text' (keys: {start + number})") for number in range(6_000)), seen=6_000)

    merged = Rejects.merged([part(0), part(6_000), part(12_000)])
    assert [each.line for each in merged.kept] == list(range(10_000))
    assert merged.stats() == {"a": {"seen": 18_000, "rejected": 18_000, "reasons": {"no key 'text'": 18_000}}}


@pytest.mark.parametrize("hostile", ["half \ud800 pair", "a\nb", "a\x1b[31m", "tab\t"])
def test_what_a_line_says_of_itself_is_printable(hostile: str) -> None:
    rejects = rejects_of(reject(1, f"no key 'text' (keys: {hostile})"))
    assert rejects.kept[0].reason.isprintable()
    assert next(rejects.lines()).decode("utf-8").count("\n") == 1
    assert rejects_of(reject(1, "no key 'text' (keys: grün)")).kept[0].reason == "no key 'text' (keys: grün)"


def few(bad: int, good: int, share: float, **options: Any) -> None:
    rejects = rejects_of(*(reject(number) for number in range(bad)), seen=bad + good)
    rejects.require_few("a", "lines", share, **{"at_end": True, **options})


def test_too_many_are_refused_with_the_first_reasons() -> None:
    few(1, 19, 0.05)
    few(0, 0, 0.0)
    with pytest.raises(DataError) as caught:
        few(7, 18, 0.05)
    assert "source a: 7 of 25 lines cannot be used (5% may be malformed)" in caught.value.problem
    assert caught.value.problem.count("a.jsonl:") == 5 and "a.jsonl:0: not JSON" in caught.value.problem


def test_before_the_end_only_what_is_mostly_bad_is_refused() -> None:
    few(500, 500, 0.05, at_end=False)
    few(1_000, 0, 0.6, at_end=False)
    with pytest.raises(DataError, match="501 of 1,000 lines"):
        few(501, 499, 0.5, at_end=False)


def test_the_first_thousand_decide_early() -> None:
    def read(bad: int, more: int) -> None:
        rejects = Rejects()
        for number in range(1_000 + more):
            rejects.saw("a", "rows", 0.05)
            if number < bad:
                rejects.add(reject(number))

    read(bad=501, more=0)
    read(bad=500, more=100)
    with pytest.raises(DataError, match="501 of 1,000 rows"):
        read(bad=501, more=1)
