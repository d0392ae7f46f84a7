"""Cleaning: what is mended in a document before any rule looks at it; each step is named and counted.

The one idea: a step first says which documents it could change (a compiled loop over the characters, or RE2 for words and numbers),
and only those are taken out and mended. Most documents need nothing and are never touched.

The order differs from that of the option: mojibake is repaired first, because what the next step would drop (C1 controls, soft
hyphens) are bytes of the letters to be restored; NFC follows on what is left. A document that changed goes through again until
a round changes nothing, so cleaning twice is cleaning once and the last word of every step holds, whatever the others did.
"""

from __future__ import annotations

import importlib.metadata
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fledge.corpus.filters import boilerplate, mending, personal_data
from fledge.corpus.filters.settings import CleaningStep

_MAXIMUM_ROUNDS = 16
"""Two or three do for nearly every text; a bound, because no proof says that there is none that needs more."""

_TERMINAL = "\x1b\\[[0-?]*[ -/]*[@-~]|[^\n\x08]\x08"
"""Escape sequences of terminals (ECMA-48), and what was overstruck, as in formatted manual pages."""

Texts: TypeAlias = pa.LargeStringArray


@dataclass(frozen=True)
class Cleaner:
    """Applies cleaning steps to batches of texts; the same text is cleaned the same in any batch."""

    steps: tuple[CleaningStep, ...]

    @property
    def identity(self) -> Any:
        """Plain JSON: what decides how a text is cleaned, beside this package's own version and that of Unicode."""
        library = {"ftfy": importlib.metadata.version("ftfy")} if "mojibake" in self.steps else {}
        return {"steps": [step for step in _MENDS if step in self.steps], **library}

    def __call__(self, texts: Texts) -> tuple[Texts, dict[str, int]]:
        """The texts, and how many documents each step changed. A document of which nothing is left is an empty text."""
        steps = [step for step in _MENDS if step in self.steps]
        touched = {step: np.zeros(len(texts), np.bool_) for step in steps}
        rows, pending = np.arange(len(texts)), texts
        for _ in range(_MAXIMUM_ROUNDS):
            places, mended = _one_round(pending, rows, steps, touched)
            if not places.size:
                break
            rows, pending = rows[places], mended
            texts = _replaced(texts, rows, mended)
        return texts, {step: int(documents.sum()) for step, documents in touched.items()}


def _one_round(
    texts: Texts, rows: NDArray[np.int64], steps: Sequence[CleaningStep], touched: dict[CleaningStep, NDArray[np.bool_]]
) -> tuple[NDArray[np.int64], Texts]:
    """Places in `texts` of the documents that changed, and these; `rows` says where `touched` counts each document."""
    suspects = _suspects(texts, steps)
    places = np.flatnonzero(np.logical_or.reduce([np.zeros(len(texts), np.bool_), *suspects.values()]))
    before = after = texts.take(pa.array(places))
    for step in steps:
        chosen = np.flatnonzero(suspects[step][places])
        given = after.take(pa.array(chosen))
        mended = _MENDS[step](given)
        differs = _differs(given, mended)
        if differs.any():
            touched[step][rows[places[chosen[differs]]]] = True
            after = _replaced(after, chosen[differs], mended.filter(pa.array(differs)))
    differs = _differs(before, after)
    return places[differs], after.filter(pa.array(differs))


def _differs(before: Texts, after: Texts) -> NDArray[np.bool_]:
    differs: NDArray[np.bool_] = pc.not_equal(before, after).to_numpy(zero_copy_only=False).astype(np.bool_)
    return differs


def _replaced(texts: Texts, rows: NDArray[np.int64], mended: Texts) -> Texts:
    mask = np.zeros(len(texts), np.bool_)
    mask[rows] = True
    return pc.replace_with_mask(texts, pa.array(mask), mended)


def _suspects(texts: Texts, steps: Sequence[CleaningStep]) -> dict[CleaningStep, NDArray[np.bool_]]:
    """By step, which documents it could change."""
    suspects: dict[CleaningStep, NDArray[np.bool_]] = {}
    if any(step in _SUSPICIONS for step in steps):
        found = np.zeros(len(texts), np.uint16)
        mending.look_at_characters(*_bytes_and_offsets(texts), mending.character_table(), found)
        suspects = {step: (found & bit) != 0 for step, bit in _SUSPICIONS.items()}
    for step, pattern in _SUSPECT_PATTERNS.items():
        if step in steps:
            suspects[step] = pc.match_substring_regex(texts, pattern).to_numpy(zero_copy_only=False).astype(np.bool_)
    return {step: suspects[step] for step in steps}


def _bytes_and_offsets(texts: Texts) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    _, offsets, data = texts.buffers()
    if not len(texts):
        return np.zeros(0, np.uint8), np.zeros(1, np.int64)
    starts = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    return np.zeros(0, np.uint8) if data is None else np.frombuffer(data, np.uint8), starts


def _rewritten(loop: Callable[..., None], texts: Texts) -> Texts:
    """What a loop of `mending` makes of the texts."""
    data, offsets = _bytes_and_offsets(texts)
    kept = np.empty(int(offsets[-1] - offsets[0]), np.uint8)
    ends = np.zeros(offsets.size, np.int64)
    loop(data, offsets, mending.character_table(), kept, ends[1:])
    return pa.LargeStringArray.from_buffers(len(texts), pa.py_buffer(ends), pa.py_buffer(kept[: ends[-1]]))


def _without_controls(texts: Texts) -> Texts:
    if pc.any(pc.match_substring_regex(texts, "[\x08\x1b]")).as_py():
        texts = pc.replace_substring_regex(texts, _TERMINAL, "")
    return _rewritten(mending.drop_controls, texts)


def _tidied(texts: Texts) -> Texts:
    """Indentation and spaces inside a line stay; the two spaces by which Markdown can force a line break do not."""
    return _rewritten(mending.tidy_space, texts)


def _each(mend: Callable[[str], str]) -> Callable[[Texts], Texts]:
    return lambda texts: pa.array([mend(text) for text in texts.to_pylist()], pa.large_string())


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _repaired(text: str) -> str:
    """UTF-8 that was read as another encoding, read rightly (ftfy; Speer 2019, doi 10.5281/zenodo.2591652)."""
    import ftfy

    # Repair can bring to light half a surrogate pair, which no UTF-8 can hold.
    return ftfy.fix_encoding(text).encode("utf-8", errors="replace").decode("utf-8")


_MENDS: dict[CleaningStep, Callable[[Texts], Texts]] = {
    "mojibake": _each(_repaired),
    "control_characters": _without_controls,
    "unicode": _each(_composed),
    "email": _each(personal_data.mask_emails),
    "ip": _each(personal_data.mask_addresses),
    "phone": _each(personal_data.mask_phones),
    "boilerplate": _each(boilerplate.remove_boilerplate),
    "whitespace": _tidied,
}
"""In the order of a round."""

_SUSPICIONS: dict[CleaningStep, int] = {
    "mojibake": mending.MOJIBAKE,
    "control_characters": mending.CONTROL,
    "unicode": mending.UNICODE,
    "whitespace": mending.SPACE,
}
_SUSPECT_PATTERNS: dict[CleaningStep, str] = {
    "email": personal_data.EMAIL_SUSPECT,
    "ip": personal_data.ADDRESS_SUSPECT,
    "phone": personal_data.PHONE_SUSPECT,
    "boilerplate": boilerplate.SUSPECT,
}
"""For RE2: texts in which it finds nothing are left as they are."""
