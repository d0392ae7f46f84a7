"""What happened to the documents of a piece, in numbers that add up: counts by rule, a few examples, lengths, languages.

Every unit of work counts for itself and returns plain JSON; `merged` adds pieces up. Examples are those with the smallest hash of
their id, so the same documents are shown however the work was divided.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fledge.corpus.engine.telling import HowFar

EXAMPLES = 5
_EXCERPT_CHARACTERS = 300

Counts = dict[str, Any]


@dataclass(frozen=True)
class Texts:
    """A batch of texts with their lengths, which are counted once and asked for often."""

    array: pa.LargeStringArray
    characters: NDArray[np.int64]
    utf8_bytes: NDArray[np.int64]

    @classmethod
    def of(cls, array: pa.LargeStringArray) -> Texts:
        """Count the lengths of a batch."""
        offsets = np.frombuffer(array.buffers()[1], np.int64)[array.offset : array.offset + len(array) + 1]
        return cls(array, np.asarray(pc.utf8_length(array), np.int64), np.diff(offsets))

    def changed_to(self, array: pa.LargeStringArray) -> Texts:
        """The same texts after a step, which returns the same array if it changed none."""
        return self if array is self.array else Texts.of(array)

    def chosen(self, keep: NDArray[np.bool_]) -> Texts:
        """The texts that stay."""
        return self if keep.all() else Texts(self.array.filter(pa.array(keep)), self.characters[keep], self.utf8_bytes[keep])

    def are_blank(self) -> NDArray[np.bool_]:
        """Whether each text is empty or white space."""
        blank: NDArray[np.bool_] = np.asarray(pc.utf8_is_space(self.array), np.bool_) | (self.characters == 0)
        return blank

    def __getitem__(self, position: int) -> str:
        text: str = self.array[position].as_py()
        return text


class Tally:
    """Counts what one unit does to its documents."""

    def __init__(self) -> None:
        self._texts: dict[str, Counter[str]] = {"read": Counter(), "kept": Counter()}
        self._by_name: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._lengths: Counter[str] = Counter()
        self._examples: defaultdict[str, list[dict[str, str]]] = defaultdict(list)

    def read(self, texts: Texts) -> None:
        """Count documents as the source gave them."""
        self._add_texts("read", texts)

    def kept(self, texts: Texts) -> None:
        """Count documents that no rule dropped."""
        self._add_texts("kept", texts)
        exponents, documents = np.unique(np.frexp(np.maximum(texts.characters, 1).astype(np.float64))[1] - 1, return_counts=True)
        self._lengths.update({str(exponent): int(count) for exponent, count in zip(exponents, documents, strict=True)})

    def count(self, what: str, counts: Mapping[str, int]) -> None:
        """Add to one of the counters by name: changed, failed, removed_lines, contaminated, languages."""
        self._by_name[what].update({name: int(count) for name, count in counts.items() if count})

    def dropped(self, rule: str, ids: Iterable[str], texts: Iterable[str], utf8_bytes: int) -> None:
        """Count the documents of a batch that a rule dropped, and keep a few to show."""
        known = self._examples[rule]
        documents = 0
        for name, text in zip(ids, texts, strict=True):
            documents += 1
            rank = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
            if len(known) < EXAMPLES or rank < known[-1]["hash"]:
                known.append({"hash": rank, "id": name, "text": text[:_EXCERPT_CHARACTERS]})
                known.sort(key=_hash)
                del known[EXAMPLES:]
        self._by_name["dropped"][rule] += documents
        self._by_name["dropped_bytes"][rule] += utf8_bytes

    def how_far(self, expected_bytes: int) -> HowFar:
        """Where the unit stands that counts here, if about so many bytes of text are to be read in all."""
        read, kept = self._texts["read"], self._texts["kept"]
        share = min(read["utf8_bytes"] / expected_bytes, 1.0) if expected_bytes else 0.0
        return HowFar(share, read["documents"], kept["documents"])

    def counts(self) -> Counts:
        """Plain JSON."""
        by_name = {what: dict(sorted(counter.items())) for what, counter in self._by_name.items()}
        texts = {what: dict(counter) for what, counter in self._texts.items()}
        return {**texts, **by_name, "lengths": dict(self._lengths), "examples": dict(sorted(self._examples.items()))}

    def _add_texts(self, what: str, texts: Texts) -> None:
        sizes = {"characters": int(texts.characters.sum()), "utf8_bytes": int(texts.utf8_bytes.sum())}
        self._texts[what].update({"documents": len(texts.array), **sizes})


def merged(pieces: Iterable[Counts]) -> Counts:
    """The counts of several pieces as one."""
    result: Counts = {}
    examples: defaultdict[str, list[dict[str, str]]] = defaultdict(list)
    for piece in pieces:
        for what, counts in piece.items():
            if what == "examples":
                for rule, shown in counts.items():
                    examples[rule] = sorted([*examples[rule], *shown], key=_hash)[:EXAMPLES]
            else:
                total = result.setdefault(what, {})
                for name, count in counts.items():
                    total[name] = total.get(name, 0) + count
    return {**{what: dict(sorted(counts.items())) for what, counts in sorted(result.items())}, "examples": dict(sorted(examples.items()))}


def _hash(example: dict[str, str]) -> str:
    return example["hash"]
