from __future__ import annotations

from fledge.corpus.document import Document
from fledge.corpus.split import Splitter, assign_sides


def rows(*groups: str) -> list[Document]:
    return [Document(f"text {number}", str(number), "source", group) for number, group in enumerate(groups)]


def test_the_share_of_groups_is_as_asked_and_depends_on_the_seed() -> None:
    groups = [f"group {number}" for number in range(20_000)]
    held = {seed: {group for group in groups if Splitter(0.08, seed).side(group) == "validation"} for seed in (0, 1)}
    # Four standard deviations of a binomial with p = 0.08 are 153 groups.
    assert all(abs(len(chosen) - 1_600) < 153 for chosen in held.values())
    assert held[0] != held[1]


def test_a_larger_share_keeps_what_was_held_out() -> None:
    groups = [f"group {number}" for number in range(1_000)]
    small = {group for group in groups if Splitter(0.05, 0).side(group) == "validation"}
    large = {group for group in groups if Splitter(0.10, 0).side(group) == "validation"}
    assert small < large


def test_equal_groups_lie_on_one_side_in_input_order() -> None:
    given = rows(*(f"group {number % 50}" for number in range(500)))
    sides = list(assign_sides(given, Splitter(0.3, 0)))
    by_group: dict[str, set[str]] = {}
    for side, row in sides:
        by_group.setdefault(row.group, set()).add(side)
    assert all(len(found) == 1 for found in by_group.values())
    for side in ("train", "validation"):
        numbers = [int(row.id) for found, row in sides if found == side]
        assert numbers == sorted(numbers) and numbers


def test_one_group_always_stays_in_train() -> None:
    nearly_all = Splitter(0.999_999, 0)
    alone = list(assign_sides(rows("a", "a"), nearly_all))
    assert [side for side, _ in alone] == ["train", "train"]
    several = list(assign_sides(rows("a", "b", "c"), nearly_all))
    kept = {row.group for side, row in several if side == "train"}
    assert kept == {max("abc", key=nearly_all.draw)}
    assert list(assign_sides([], nearly_all)) == []


def test_nothing_is_held_out_at_fraction_zero() -> None:
    assert {side for side, _ in assign_sides(rows("a", "b", "c"), Splitter(0.0, 0))} == {"train"}
