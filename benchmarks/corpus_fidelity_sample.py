"""The documents that `benchmarks/corpus_fidelity.py` compares rules on: real texts of folders, and alterations of some of them.

Prose, code, lists, manuals and pages stripped of HTML, in whatever languages lie there. Good text passes most rules, so every second
document is altered by one of ALTERATIONS, with a strength that goes from nothing to far too much: both sides of each threshold are
met. Everything follows from a seed and the names of the files.
"""

from __future__ import annotations

import gzip
import hashlib
import html
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

LONG_WORDS = (95_000, 160_000)
_LENGTHS = (150, 14_000)
_LONG_DOCUMENTS = 120
_MOST_FROM_A_FILE = 6
_MOST_FROM_A_FOLDER = 700
_ALTERED_SHARE = 0.5


@dataclass(frozen=True)
class Sampled:
    """A document of the sample; `held_out` follows from the file, so that an altered text is in the half of its siblings."""

    text: str
    origin: str
    alteration: str
    held_out: bool
    is_long: bool = False
    """Made for the upper bound of words; compared on that rule alone, as the peer takes seconds for one."""


def sample(folders: Sequence[Path], documents: int, seed: int) -> list[Sampled]:
    """At most so many documents, and some very long ones of their texts."""
    chance = random.Random(seed)
    found = list(_documents(folders, chance))
    chance.shuffle(found)
    chosen = [_altered(text, origin, chance) for origin, text in found[:documents]]
    return chosen + list(_long(found, chance))


def _documents(folders: Sequence[Path], chance: random.Random) -> Iterator[tuple[str, str]]:
    """(origin, text) of every stretch of every readable file, with bounds so that no file and no folder fills the sample."""
    for folder in folders:
        paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()) if folder.is_dir() else [folder]
        paths.sort(key=lambda path: hashlib.sha256(path.name.encode()).digest())
        taken: dict[str, int] = {}
        for path in paths:
            parent = path.parent.name
            if taken.get(parent, 0) >= _MOST_FROM_A_FOLDER:
                continue
            stretches = [one for text in _texts(path) for one in _stretches(text, chance)]
            most = 600 if folder.is_file() or ".jsonl" in path.suffixes or len(paths) < 20 else _MOST_FROM_A_FILE
            for number, text in enumerate(chance.sample(stretches, min(most, len(stretches)))):
                taken[parent] = taken.get(parent, 0) + 1
                yield f"{parent}/{path.name}#{number // 20}", text


def _texts(path: Path) -> Iterator[str]:
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = raw.decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError):
        return
    if "\0" in text:
        return
    if ".jsonl" in path.suffixes:
        for line in text.splitlines():
            yield "\n".join(value for value in json.loads(line).values() if isinstance(value, str))
    elif path.suffix in {".html", ".htm"}:
        text = re.sub(r"(?s)<(script|style|head).*?</\1>", "", text)
        yield html.unescape(re.sub(r"<[^>]*>", "", re.sub(r"</(p|div|li|tr|h\d|pre)>|<br>", "\n", text)))
    else:
        yield text


def _stretches(text: str, chance: random.Random) -> Iterator[str]:
    """A text, or if it is long, consecutive stretches of it that end at empty lines, of lengths between the bounds."""
    blocks, size, most = [], 0, _drawn_length(chance)
    for block in re.split(r"\n\s*\n", text):
        blocks.append(block)
        size += len(block) + 2
        if size >= most:
            yield "\n\n".join(blocks)[: 2 * most]
            blocks, size, most = [], 0, _drawn_length(chance)
    if size >= _LENGTHS[0]:
        yield "\n\n".join(blocks)[: 2 * most]


def _drawn_length(chance: random.Random) -> int:
    low, high = _LENGTHS
    return round(low * (high / low) ** chance.random())


def _altered(text: str, origin: str, chance: random.Random) -> Sampled:
    name = ""
    if chance.random() < _ALTERED_SHARE:
        name = chance.choice(sorted(ALTERATIONS))
        text = ALTERATIONS[name](text, chance)
    return Sampled(text, origin, name, _is_held_out(origin))


def _is_held_out(origin: str) -> bool:
    return hashlib.sha256(origin.encode()).digest()[0] % 2 == 1


def _long(found: Sequence[tuple[str, str]], chance: random.Random) -> Iterator[Sampled]:
    """Texts one after another up to about 100,000 words."""
    position = 0
    for number in range(_LONG_DOCUMENTS):
        wanted, words, texts = chance.randint(*LONG_WORDS), 0, []
        while words < wanted:
            text = found[position % len(found)][1]
            texts.append(text)
            words += len(text.split())
            position += 1
        yield Sampled("\n\n".join(texts), f"long {number}", "long", number % 2 == 1, is_long=True)


def _lines(change: Callable[[str, random.Random], str], high: float = 1.0) -> Callable[[str, random.Random], str]:
    """Changes a share of the lines, drawn anew for each document."""

    def alter(text: str, chance: random.Random) -> str:
        share = chance.random() * high
        return "\n".join(change(line, chance) if line.strip() and chance.random() < share else line for line in text.split("\n"))

    return alter


def _words(change: Callable[[str, random.Random], str], high: float = 1.0) -> Callable[[str, random.Random], str]:
    """Changes a share of the words, drawn anew for each document."""

    def alter(text: str, chance: random.Random) -> str:
        share = chance.random() * high
        return re.sub(r"\S+", lambda found: change(found[0], chance) if chance.random() < share else found[0], text)

    return alter


def _repeat_lines(text: str, chance: random.Random) -> str:
    lines = text.split("\n")
    for _ in range(chance.randint(0, len(lines))):
        lines.insert(chance.randrange(len(lines)), chance.choice(lines))
    return "\n".join(lines)


def _repeat_paragraphs(text: str, chance: random.Random) -> str:
    paragraphs = re.split(r"\n\s*\n", text)
    for _ in range(chance.randint(0, len(paragraphs) + 1)):
        paragraphs.insert(chance.randrange(len(paragraphs) + 1), chance.choice(paragraphs[: 1 + len(paragraphs) // 3]))
    return "\n\n".join(paragraphs)


def _repeat_phrase(text: str, chance: random.Random) -> str:
    """A run of 2 to 14 words of the text at random places."""
    words = text.split(" ")
    start, length = chance.randrange(len(words)), chance.randint(2, 14)
    phrase = " ".join(words[start : start + length])
    for _ in range(round(chance.random() * 0.5 * len(words) / length)):
        words.insert(chance.randrange(len(words)), phrase)
    return " ".join(words)


def _shorten(text: str, chance: random.Random) -> str:
    words = re.findall(r"\S+\s*", text)
    return "".join(words[: chance.randint(25, 90)])


def _few_sentences(text: str, chance: random.Random) -> str:
    sentences = re.split(r"(?<=[.!?])\s+", text)
    return " ".join(sentences[: chance.randint(2, 9)])


def _rewrap(text: str, chance: random.Random) -> str:
    """So many words a line."""
    words, width = text.split(), chance.randint(1, 9)
    return "\n".join(" ".join(words[i : i + width]) for i in range(0, len(words), width))


def _insert(*pieces: str) -> Callable[[str, random.Random], str]:
    """Lines with one of these among the words, at random places."""

    def alter(text: str, chance: random.Random) -> str:
        lines = text.split("\n")
        for _ in range(chance.randint(0, 3)):
            words = chance.choice(lines).split(" ")
            words.insert(chance.randrange(len(words) + 1), chance.choice(pieces))
            lines.insert(chance.randrange(len(lines) + 1), " ".join(words))
        return "\n".join(lines)

    return alter


def _cite(word: str, chance: random.Random) -> str:
    return word + chance.choice(("[1]", "[23]", "[]", "[edit]", "[citation needed]", "[note 1]"))


_BULLETED = _lines(lambda line, chance: chance.choice(("- ", "• ", "  - ")) + line, 2.0)

ALTERATIONS: dict[str, Callable[[str, random.Random], str]] = {
    "repeated lines": _repeat_lines,
    "repeated paragraphs": _repeat_paragraphs,
    "repeated phrase": _repeat_phrase,
    "shortened": _shorten,
    "few sentences": _few_sentences,
    "rewrapped": _rewrap,
    "bullets": lambda text, chance: _BULLETED(re.sub("\n+", "\n", text), chance),
    "lines end in an ellipsis": _lines(lambda line, chance: line.rstrip() + chance.choice(("...", "…", " ..."))),
    "lines end openly": _lines(lambda line, chance: line.rstrip().rstrip(".!?"), 1.5),
    "ellipses": _words(lambda word, chance: word + chance.choice(("...", " ...", "…", "......")), 0.3),
    "hash signs": _words(lambda word, chance: chance.choice(("#", "# ", "##")) + word, 0.3),
    "numbers": _words(lambda word, chance: str(chance.randint(0, 9_999)), 0.5),
    "symbols": _words(lambda word, chance: chance.choice(("--", "|", "=>", "*", "+", "→", "(", "%")), 0.5),
    "no stop words": _words(lambda word, chance: word.upper(), 1.6),
    "joined words": lambda text, chance: re.sub(r"(?<=\S) (?=\S)", lambda _: "" if chance.random() < 0.7 else " ", text),
    "short words": _words(lambda word, chance: word[:2], 1.4),
    "overlong word": _insert("x" * 999, "y" * 1_001, "https://example.org/" + "a1b2" * 300),
    "javascript": _insert("Please enable JavaScript", "javascript:void(0)", "java script", "a Javascript file"),
    "policy": _insert("our Privacy Policy", "This site uses cookies", "by use of cookies", "we use cookies", "Terms of Use", "a cookie"),
    "lorem ipsum": _insert("Lorem ipsum dolor sit amet", "lorem  ipsum", "LOREM IPSUM"),
    "curly brackets": _insert("{", "}", "{ a: 1 }", "a{b}"),
    "citations": _words(_cite, 0.2),
    "typographic": lambda text, chance: re.sub(r'"([^"\n]*)"', "\u201c\\1\u201d", text).replace("'", "\u2019").replace(" - ", " \u2013 "),
    "other line ends": lambda text, chance: text.replace("\n", chance.choice(("\r\n", "\n\n", " \n", "\r", "\u2028"))),
}
