"""What is done to each document, and which documents go: cleaning, quality rules, language, contamination."""

from __future__ import annotations

import re
from dataclasses import field
from typing import Literal

from fledge.core.config import operation, settings
from fledge.corpus.filters.rules import RULES, Preset, chosen, unknown

CleaningStep = Literal["mojibake", "control_characters", "unicode", "email", "ip", "phone", "boilerplate", "whitespace"]

_OWN_RULE = re.compile(r".+\.py:[^\W\d]\w*")
_LANGUAGE = re.compile(r"[a-z]{2,3}")


@settings
class QualitySettings:
    """Rules that drop a document or lines of it; each has a name, is counted, and can be left out or given another threshold."""

    preset: Preset = "none"
    """Which rules: none; web (Gopher, C4, FineWeb); books, docs and code (those of them that fit such texts)."""
    add: tuple[str, ...] = ()
    """Rules to apply besides those of the preset, by name."""
    skip: tuple[str, ...] = ()
    """Rules of the preset to leave out, by name."""
    thresholds: dict[str, float] = field(default_factory=dict)
    """Other thresholds than the published ones, by rule."""
    stop_words: tuple[str, ...] = ("the", "be", "to", "of", "and", "that", "have", "with")
    """Words of which gopher_stop_words wants two: those of the language of the corpus."""
    languages: tuple[str, ...] = ()
    """Keep only these languages (two-letter codes); empty keeps all. Needs the extra `langid`."""
    language_confidence: float = 0.65
    """How sure the identification must be (0 to 1) of one of `languages`."""
    own_rules: tuple[str, ...] = ()
    """Rules of your own, FILE.py:FUNCTION from where the command runs: given a Document, True keeps it, False or a reason drops it."""

    def __post_init__(self) -> None:
        known = {rule.name: rule for rule in RULES}
        for key in ("add", "skip", "thresholds"):
            for name in getattr(self, key):
                if name not in known:
                    raise ValueError(f"{key} names {unknown(name, known)}")
        applied = {rule.name for rule in chosen(self.preset, self.add, ())}
        for key in ("skip", "thresholds"):
            for name in getattr(self, key):
                if name not in applied:
                    raise ValueError(f"{key} names {name}, which is not among the rules of preset {self.preset}; `add` adds a rule")
        for name in self.thresholds:
            if known[name].threshold is None:
                raise ValueError(f"thresholds names {name}, which has none: it looks for a phrase")
        self._check_others()

    def _check_others(self) -> None:
        for language in self.languages:
            if not _LANGUAGE.fullmatch(language):
                raise ValueError(f"languages names {language!r}; codes are two small letters, like en")
        if not 0 <= self.language_confidence <= 1:
            raise ValueError(f"language_confidence must be between 0 and 1, not {self.language_confidence}")
        for rule in self.own_rules:
            if not _OWN_RULE.fullmatch(rule):
                raise ValueError(f"own_rules must be FILE.py:FUNCTION, not {rule!r}")
        functions = [rule.rpartition(":")[2] for rule in self.own_rules]
        repeated = next((function for function in functions if functions.count(function) > 1), None)
        if repeated is not None:
            raise ValueError(f"own_rules names two functions {repeated}; they are counted by name, so give one another name")
        for word in self.stop_words:
            if not word or word != "".join(word.split()):
                raise ValueError(f"stop_words must be single words, not {word!r}")


@settings
class TurnSettings:
    """Which conversations and preference pairs are good enough. What is malformed is a reject before that."""

    minimum_answer_characters: int = 1
    """Drop a conversation with a shorter answer of the assistant, or a pair with one."""
    maximum_characters: int | None = None
    """Drop what has more characters in all its messages; None keeps any. Tokens are counted when rows are packed."""
    deduplicate: bool = True
    """Drop what says the same as one before, without regard to case and white space."""

    def __post_init__(self) -> None:
        for name in ("minimum_answer_characters", "maximum_characters"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")


@settings
class DecontaminateSettings:
    """Drops documents, conversations and pairs that share a run of words with the files a model is evaluated on."""

    files: tuple[str, ...] = operation(())
    """Evaluation files (.txt, .jsonl, .parquet, folders, globs), beside those that the recipe's `evaluate` section names."""
    shingle_words: int = 13
    """Length of the run of words, after lower-casing and without punctuation. GPT-3's choice."""
    evaluated: bool = True
    """Whether the files of the `evaluate` section count."""

    def __post_init__(self) -> None:
        if self.shingle_words < 1:
            raise ValueError(f"shingle_words must be at least 1, not {self.shingle_words}")
