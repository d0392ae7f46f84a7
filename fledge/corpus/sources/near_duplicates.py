"""Clusters of texts that say nearly the same, so that a split can keep each cluster on one side.

Two texts are near duplicates if their sets of word 5-grams have a Jaccard similarity of at least 0.5, or if at least half of
the smaller set, and no fewer than 10 shingles, lie in the larger (a passage quoted in a longer text). All such pairs are found
exactly, without comparing all with all: both conditions need at least half of the smaller set in common, so with its n shingles
sorted from rare to frequent one of the first n - ceil(n / 2) + 1 must be common, and frequent boilerplate, which sorts last,
is hardly ever looked up. After AllPairs (Bayardo, Ma and Srikant, 2007). The clusters are the connected components: the finest
partition without a near-duplicate pair across a border.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

SHINGLE_WORDS = 5
SIMILARITY = 0.5
QUOTED_SHINGLES = 10

_WORD = re.compile(r"\w+")

Shingles = frozenset[str]


def normalised(text: str) -> str:
    """Lower-case words joined by single spaces; a text without words keeps its characters."""
    return " ".join(_WORD.findall(text.lower())) or " ".join(text.split())


def shingles(text: str) -> Shingles:
    """The set of word 5-grams of a text; a shorter text is one shingle."""
    words = normalised(text).split(" ")
    last_start = max(1, len(words) - SHINGLE_WORDS + 1)
    return frozenset(" ".join(words[start : start + SHINGLE_WORDS]) for start in range(last_start))


def alike(a: Shingles, b: Shingles) -> bool:
    """Whether two non-empty sets are near duplicates: by Jaccard similarity, or because one quotes the other."""
    common = len(a & b)
    quoted = common >= QUOTED_SHINGLES and common >= SIMILARITY * min(len(a), len(b))
    return quoted or common >= SIMILARITY * (len(a) + len(b) - common)


def text_group(text: str) -> str:
    """Group of a text that is compared by its normalised form only: exact duplicates get the same."""
    return hashlib.sha256(normalised(text).encode("utf-8")).hexdigest()[:32]


def alike_pairs(sets: Sequence[Shingles]) -> Iterator[tuple[int, int]]:
    """Pairs of indices of sets that are alike: every such pair of different sets.

    Of several equal sets, each is paired with the first, which stands for it in all other pairs.
    """
    first_of: dict[Shingles, int] = {}
    for index, members in enumerate(sets):
        first = first_of.setdefault(members, index)
        if first != index:
            yield first, index
    smallest_first = sorted(first_of.values(), key=lambda index: (len(sets[index]), index))
    yield from _alike_distinct_pairs([sets[index] for index in smallest_first], smallest_first)


def _alike_distinct_pairs(sets: Sequence[Shingles], index_of: Sequence[int]) -> Iterator[tuple[int, int]]:
    frequency = Counter(shingle for members in sets for shingle in members)
    holders: defaultdict[str, list[int]] = defaultdict(list)
    for position, members in enumerate(sets):
        for shingle in members:
            if frequency[shingle] > 1:
                holders[shingle].append(position)
    for position, members in enumerate(sets):
        rare_first = sorted(members, key=lambda shingle: (frequency[shingle], shingle))
        prefix = rare_first[: len(members) // 2 + 1]
        candidates = {other for shingle in prefix for other in holders.get(shingle, ()) if other > position}
        for other in sorted(candidates):
            if alike(members, sets[other]):
                yield index_of[position], index_of[other]


def equal_pairs(keys: Iterable[str]) -> Iterator[tuple[int, int]]:
    """Each index paired with the first one of the same key."""
    first_of: dict[str, int] = {}
    for index, key in enumerate(keys):
        first = first_of.setdefault(key, index)
        if first != index:
            yield first, index


def components(size: int, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """For each of `size` indices the smallest index it is connected with through `pairs` (union-find with path halving)."""
    parent = list(range(size))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for a, b in pairs:
        root_a, root_b = root(a), root(b)
        parent[max(root_a, root_b)] = min(root_a, root_b)
    return [root(index) for index in range(size)]
