from __future__ import annotations

import numpy as np
import pyarrow as pa

from fledge.corpus.tally import EXAMPLES, Tally, Texts, merged


def texts(*values: str) -> Texts:
    return Texts.of(pa.array(values, pa.large_string()))


def test_sizes_are_of_the_texts_also_in_a_slice() -> None:
    whole = texts("abc", "grün", "", "漢字")
    assert whole.characters.tolist() == [3, 4, 0, 2]
    assert whole.utf8_bytes.tolist() == [3, 5, 0, 6]
    assert Texts.of(whole.array.slice(1, 2)).utf8_bytes.tolist() == [5, 0]
    some = whole.chosen(np.array([False, True, False, True]))
    assert (some.array.to_pylist(), some.characters.tolist(), some.utf8_bytes.tolist()) == (["grün", "漢字"], [4, 2], [5, 6])


def test_blank_is_empty_or_white_space_of_any_script() -> None:
    assert texts("", " \n\t", "\u3000\u00a0", " a ", "。").are_blank().tolist() == [True, True, True, False, False]


def tally_of(*values: str) -> Tally:
    tally = Tally()
    tally.read(texts(*values))
    tally.kept(texts(*values))
    tally.dropped("rule", [f"id {value}" for value in values], values, sum(map(len, values)))
    tally.count("changed", {"unicode": len(values), "never": 0})
    return tally


def test_pieces_add_up_to_the_whole() -> None:
    values = [f"text {number} " + "x" * number for number in range(40)]
    whole = tally_of(*values).counts()
    pieces = [tally_of(*values[:7]).counts(), tally_of(*values[7:9]).counts(), tally_of(*values[9:]).counts()]
    assert merged(pieces) == merged([whole]) == merged(reversed(pieces))
    assert whole["read"] == {"documents": 40, "characters": sum(map(len, values)), "utf8_bytes": sum(map(len, values))}
    assert whole["changed"] == {"unicode": 40}
    assert whole["dropped"] == {"rule": 40}
    assert len(whole["examples"]["rule"]) == EXAMPLES


def test_lengths_are_counted_by_their_power_of_two() -> None:
    tally = Tally()
    tally.kept(texts("a", "ab", "abc", "abcd", "x" * 1023, "x" * 1024))
    assert tally.counts()["lengths"] == {"0": 1, "1": 2, "2": 1, "9": 1, "10": 1}


def test_an_example_is_an_excerpt() -> None:
    tally = Tally()
    tally.dropped("rule", ["one"], ["y" * 10_000], 10_000)
    [shown] = tally.counts()["examples"]["rule"]
    assert (shown["id"], shown["text"]) == ("one", "y" * 300)
