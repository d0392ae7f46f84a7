"""What the data card tells, as figures and sentences: read off `stats.json` once, for Markdown (`card.py`) and HTML (`card_page.py`).

Parts that a corpus does not have are empty here and left out there. Texts and names come from the web, so `shown` makes them short
and takes from them what could reorder or hide the words around them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fledge.core.console import format_bytes
from fledge.core.wording import counted
from fledge.corpus.tally import Counts, merged

CONTAMINATED, EMPTY = "contaminated", "empty"
NOT_STATED = "not stated"

_NAME_CHARACTERS = 160
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff0-\uffff\U000e0000-\U000e0fff]")
"""Controls, what overrides the direction of text, invisible characters, halves of surrogate pairs."""
_NOUNS = {"documents": "documents", "conversations": "conversations", "preferences": "preference pairs"}
_SIDES = ("train", "validation")

CLEANING_STEPS = {
    "mojibake": "wrongly decoded text repaired (ftfy)",
    "control_characters": "control and invisible characters dropped, line ends made newlines",
    "unicode": "characters composed (Unicode NFC)",
    "email": "e-mail addresses masked",
    "ip": "public IP addresses masked",
    "phone": "telephone numbers masked",
    "boilerplate": "lines of the page around the text dropped: cookie notices, navigation, page numbers",
    "whitespace": "white space at line ends and more than two blank lines dropped, typographic spaces made plain",
}
"""In the order in which they are applied."""
SPLIT = "Clusters of duplicates are held out whole: no validation text has a copy in training, nor a near copy that was found."
DUPLICATES = "Duplicates waste training and leak held-out text, so of every cluster of documents that are the same or nearly so, one stays."
REJECTS = "What could not be read as a document at all. rejects.jsonl has the first 10,000 of a source with file, line and byte offset."


DROPPED_TURNS = {
    "duplicate": "says the same as one before",
    "short_answer": "an answer is too short",
    "too_long": "too long",
    CONTAMINATED: "gives away what a model is evaluated on",
}


@dataclass(frozen=True)
class Figures:
    """A corpus in numbers."""

    stats: Mapping[str, Any]
    counts: Counts
    """Of all sources together; empty for rows that no filter sees."""

    @property
    def noun(self) -> str:
        """What a row is."""
        return _NOUNS.get(str(self.stats.get("content")), "rows")

    @property
    def read(self) -> int:
        """Documents that could be read."""
        return int(self.counts.get("read", {}).get("documents", 0))

    @property
    def contaminated(self) -> int:
        """Documents dropped because an evaluation file shares a run of words with them."""
        return int(self.counts.get("dropped", {}).get(CONTAMINATED, 0))

    @property
    def dropped(self) -> int:
        """Documents dropped by all other rules."""
        return int(sum(self.counts.get("dropped", {}).values())) - self.contaminated

    @property
    def duplicates(self) -> int:
        """Documents dropped because another one is the same or nearly so."""
        found = self.stats.get("duplicates", {})
        return int(found.get("exact", 0)) + int(found.get("near", 0))

    @property
    def kept(self) -> int:
        """Rows of the corpus."""
        if "rows" in self.stats:
            return int(sum(self.stats["rows"].values()))
        return int(self.stats.get("kept", self.read - self.dropped - self.contaminated - self.duplicates))

    @property
    def utf8_bytes(self) -> int:
        """Text in the shards; 0 before they are written."""
        return sum(int(size["utf8_bytes"]) for sides in self.stats.get("sources", {}).values() for size in sides.values())

    @property
    def source_names(self) -> list[str]:
        """In the order of the recipe."""
        named = [str(one["source"]) for one in self.stats.get("provenance", ())]
        return named or [*self.stats.get("sources", {})] or [*self.stats.get("filters", {})]

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.stats.get("settings") or {}

    def part(self, name: str) -> Mapping[str, Any]:
        """One group of settings, such as deduplicate."""
        found = self.settings.get(name)
        return found if isinstance(found, Mapping) else {}


def figures_of(stats: Mapping[str, Any]) -> Figures:
    """Read off the content of `stats.json`."""
    return Figures(stats, merged(stats.get("filters", {}).values()))


def shown(text: object, characters: int = _NAME_CHARACTERS) -> str:
    """Any text as it can be put between other text."""
    cut = str(text)
    cut = cut if len(cut) <= characters else cut[: characters - 1] + "…"
    return _UNSEEN.sub("\ufffd", cut)


def share(part: float, whole: float) -> str:
    """A percentage; never 0 or 100 for what is not."""
    if not whole:
        return ""
    if 0 < part / whole < 0.001:
        return "<\u00a00.1\u00a0%"
    return ">\u00a099.9\u00a0%" if 0.999 < part / whole < 1 else f"{100 * part / whole:.1f}\u00a0%"


def by_count(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Most frequent first, then by name."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def summary(figures: Figures) -> list[str]:
    """What the corpus is and what became of what was read, in sentences."""
    names = [shown(name) for name in figures.source_names]
    size = f", {format_bytes(figures.utf8_bytes)} of text," if figures.utf8_bytes else ""
    origin = f" from {'the source' if len(names) == 1 else 'the sources'} {joined(names)}" if names else ""
    sentences = [f"This corpus holds {counted(figures.kept, figures.noun)}{size}{origin}."]
    if figures.read:
        lost = [
            (figures.dropped, "by rules on their text"),
            (figures.contaminated, "because they give away what a model is evaluated on"),
            (figures.duplicates, "as duplicates"),
        ]
        told = [f"{share(count, figures.read)} {why}" for count, why in lost if count]
        rest = f". Dropped were {joined(told)}." if told else ", and all were kept."
        sentences.append(f"{counted(figures.read, figures.noun)} were read{rest}")
    return sentences


def joined(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def volume_rows(figures: Figures) -> list[list[str]]:
    """Of each source and side: rows, characters, bytes."""
    return [
        [shown(name), side, f"{size['rows']:,}", f"{size['characters']:,}", format_bytes(size["utf8_bytes"])]
        for name, sides in figures.stats.get("sources", {}).items()
        for side in _SIDES
        if (size := sides.get(side))
    ]


VOLUME_COLUMNS = ("source", "split", "rows", "characters", "UTF-8")
PROVENANCE_COLUMNS = ("source", "licence", "from", "revision", "files", "size", "fingerprint")


def provenance_rows(figures: Figures) -> list[list[str]]:
    """Where the texts come from."""
    return [
        [
            *(shown(one.get(name) or "") for name in ("source", "license", "address")),
            shown(str(one.get("revision") or "")[:12]),
            f"{one['files']:,}" if one.get("files") else "",
            format_bytes(one["bytes"]) if one.get("bytes") else "",
            shown(str(one.get("fingerprint") or "")[:12]),
        ]
        for one in figures.stats.get("provenance", ())
    ]


def cleaning_rows(figures: Figures) -> list[list[str]]:
    """Each cleaning step with the documents it changed."""
    changed = figures.counts.get("changed", {})
    steps = [step for step in CLEANING_STEPS if step in (figures.settings.get("cleaning") or changed)]
    return [[step, CLEANING_STEPS[step], f"{changed.get(step, 0):,}", share(changed.get(step, 0), figures.read)] for step in steps]


def way(figures: Figures) -> list[tuple[str, int]]:
    """From read to kept: how many documents were left after each part of the work that dropped any."""
    left = figures.read
    told = [("read", left)]
    for count, label in (
        (figures.dropped, "left by the rules"),
        (figures.contaminated, "left by the comparison with evaluation files"),
        (figures.duplicates, "left when duplicates were dropped"),
    ):
        if count:
            left -= count
            told.append((label, left))
    return told


def lengths_text(figures: Figures) -> str:
    """What the histogram of lengths is of."""
    kept = figures.counts.get("kept", {})
    mean = f" They have {kept['characters'] / kept['documents']:,.0f} characters on average." if kept.get("documents") else ""
    return f"Documents that passed the rules, duplicates among them.{mean}"


def contamination_text(figures: Figures) -> str:
    """Why documents were compared with evaluation files, and how."""
    words = figures.part("decontaminate").get("shingle_words")
    run = f"{words} words, lower-cased and without punctuation," if words else "words"
    return (
        f"A document that shares a run of {run} with a file on which a model is evaluated would spoil that measurement, so it is dropped."
    )


def lengths(figures: Figures) -> list[tuple[int, int]]:
    """Documents with at least 2**exponent and less than twice as many characters, as (exponent, documents), without gaps."""
    found = {int(exponent): count for exponent, count in figures.counts.get("lengths", {}).items() if count}
    return [(exponent, found.get(exponent, 0)) for exponent in range(min(found), max(found) + 1)] if found else []


def doubling(exponent: int) -> str:
    """The range from 2**exponent to below twice that."""
    low, high = 2**exponent, 2 ** (exponent + 1) - 1
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def turn_facts(figures: Figures) -> list[tuple[str, str]]:
    """How conversations or pairs look, and what was dropped of them by reason."""
    if "messages" not in figures.stats:
        return []
    lengths, total = figures.stats["answer_characters"], figures.kept
    facts = [
        (f"{figures.noun} of {counted(int(count), 'messages')}" + " before the answers" * (figures.noun == _NOUNS["preferences"]), rows)
        for count, rows in figures.stats["messages"].items()
    ]
    return [
        *((name, f"{rows:,} ({share(rows, total)})") for name, rows in facts),
        ("with a system message", f"{figures.stats['with_system']:,}"),
        (
            "characters of an answer",
            f"{lengths['median']:,} in the middle, {lengths['ninth_decile']:,} nine of ten, {lengths['longest']:,} at most",
        ),
        *((f"dropped: {DROPPED_TURNS.get(reason, reason)}", f"{count:,}") for reason, count in by_count(figures.stats.get("dropped", {}))),
    ]


def reject_rows(figures: Figures) -> list[list[str]]:
    """By source and reason: what could not be used."""
    return [
        [shown(source), shown(reason), f"{count:,}", share(count, told.get("seen", 0))]
        for source, told in figures.stats.get("rejects", {}).items()
        for reason, count in by_count(told.get("reasons", {}))
    ]


def contamination_rows(figures: Figures) -> list[list[str]]:
    """Every evaluation file with the documents dropped for it, also those with none."""
    found = figures.counts.get("contaminated", {})
    names = dict.fromkeys([*(name for name, _ in by_count(found)), *figures.stats.get("evaluation_files", ())])
    return [[shown(name), f"{found.get(name, 0):,}", share(found.get(name, 0), figures.read)] for name in names]


def duplicate_facts(figures: Figures) -> list[tuple[str, str]]:
    """How duplicates were looked for and what was found."""
    found, how = figures.stats.get("duplicates", {}), figures.part("deduplicate")
    if found.get("kind", "none") == "none":
        return []
    facts = [("exact duplicates dropped", f"{found.get('exact', 0):,}")]
    if found["kind"] == "near":
        facts.append(("near duplicates dropped", f"{found.get('near', 0):,}"))
    if found.get("clusters"):
        facts.append(("clusters", f"{found['clusters']:,}, the largest of {found.get('largest', 0):,} documents"))
    stays = {"first": "the first in the order of the sources", "longest": "the longest, of equally long ones the first"}
    facts.append(("which one stays", stays.get(found.get("keep", ""), shown(found.get("keep", "")))))
    if found["kind"] == "near" and {"bands", "rows", "shingle_words"} <= how.keys():
        facts.append(("method", _minhash(how)))
    return facts


def _minhash(how: Mapping[str, Any]) -> str:
    bands, rows = how["bands"], how["rows"]
    likenesses = (0.7, 0.8, 0.9)
    alike = joined([f"{100 * likeness:.0f}\u00a0%" for likeness in likenesses])
    chances = joined([share(1 - (1 - likeness**rows) ** bands, 1) for likeness in likenesses])
    return (
        f"MinHash of word {how['shingle_words']}-grams in {bands} bands of {rows}: documents that have {alike} of their n-grams in common "
        f"are found with a chance of {chances}"
    )


def setting_rows(figures: Figures) -> list[tuple[str, str]]:
    """All settings that decide the rows, as (dotted name, value)."""
    return list(_dotted(figures.settings))


def _dotted(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{name}.")
        elif value not in (None, "", [], ()) and name != "sources":
            plain = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            yield f"{prefix}{shown(name)}", shown(plain, 400)


def limits(figures: Figures) -> list[str]:
    """What the corpus does not promise, in sentences that fit how it was made."""
    stats, cleaning = figures.stats, set(figures.settings.get("cleaning") or ())
    unstated = [shown(one["source"]) for one in stats.get("provenance", ()) if one.get("license", NOT_STATED) == NOT_STATED]
    told = ["Rules judge the form of a text, not whether it is true, fair or decent."]
    if unstated:
        told.append(f"The licence of {joined(unstated)} is not stated: find out what it allows before you pass the texts on.")
    if figures.read and not any(name not in {EMPTY, CONTAMINATED} for name in _judged(figures)):
        told.append("No quality rule was applied.")
    if figures.read and not figures.counts.get("languages"):
        told.append("Languages were not identified.")
    masks = [name for name in ("email", "ip", "phone") if name in cleaning]
    if figures.read and masks:
        told.append("Personal data is found by its form: names, postal addresses and numbers in unusual forms stay.")
    elif figures.read:
        told.append("Personal data was not looked for: e-mail addresses, telephone numbers and names stay as they are.")
    kind = stats.get("duplicates", {}).get("kind")
    if kind == "near":
        told.append("Near duplicates are found by chance, the more surely the more alike they are; translations and paraphrases are not.")
    elif kind is not None:
        told.append(f"{'Near duplicates' if kind == 'exact' else 'Duplicates'} were not looked for.")
    if stats.get("evaluation_files") or figures.contaminated:
        told.append("Evaluation texts are found by runs of equal words: what was reworded or translated stays.")
    elif figures.read:
        told.append("The corpus was not compared with any evaluation file.")
    return told


def _judged(figures: Figures) -> set[str]:
    quality = figures.part("quality")
    preset = {str(quality["preset"])} if quality.get("preset", "none") != "none" else set()
    chosen = {name for name in ("languages", "own_rules") if quality.get(name)}
    return {*preset, *chosen, *figures.counts.get("failed", {}), *figures.counts.get("dropped", {})}
