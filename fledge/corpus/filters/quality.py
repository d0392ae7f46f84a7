"""Applies the chosen rules to a batch of documents and says which stay, and why the others do not.

    texts -> language -> Gopher's rules -> C4's lines -> FineWeb's rules -> own rules -> Verdicts

The one idea: what a document is dropped for is the first rule that fails in the fixed order of `rules.py`, and what is counted besides
is every rule that fails on the same text. So the verdict on a document depends on nothing but the document and the settings, and the
counts say what each rule would do on its own. A later stage only looks at documents that every earlier one kept.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fledge.corpus.document import Document
from fledge.corpus.filters import languages as languages_of_texts
from fledge.corpus.filters import own_rules
from fledge.corpus.filters.line_rules import COUNTS as LINE_COUNTS
from fledge.corpus.filters.line_rules import LINE_RULES, apply_line_rules
from fledge.corpus.filters.rules import Rule, chosen
from fledge.corpus.filters.scanning import Texts, as_bytes
from fledge.corpus.filters.settings import QualitySettings
from fledge.corpus.filters.statistics import statistics

LANGUAGE = "language"
_REASONS_OF_A_RULE = 20
"""Different reasons of an own rule that are told apart in a batch; further ones are counted under the rule alone."""

Counts = dict[str, NDArray[np.int64]]


@dataclass(frozen=True)
class Verdicts:
    """What the rules say about a batch."""

    texts: pa.LargeStringArray
    """As many as were given; with the changes of line rules, except where an earlier rule had dropped the document."""
    reason: NDArray[np.int16]
    """(documents,) 0 keeps; else 1 + position in `names` of the first rule that failed."""
    names: tuple[str, ...]
    """Rules that can drop a document, in their order."""
    failed: dict[str, int]
    """Documents that fail each rule, whether or not another rule of the same text dropped them first."""
    removed_lines: dict[str, int]
    """By line rule: lines removed (c4_citations: mended) from documents that stay."""
    languages: list[str] | None
    """Of every document, if `languages` was set."""


class QualityFilter:
    """Made from settings; can be sent to another process. Raises ConfigError or MachineError if a rule cannot be had here."""

    def __init__(self, settings: QualitySettings) -> None:
        self._settings = settings
        rules = chosen(settings.preset, settings.add, settings.skip)
        self._thresholds = {one.name: settings.thresholds.get(one.name, one.threshold) for one in rules}
        self._line_rules = {one.name: self._thresholds[one.name] for one in rules if one.name in LINE_RULES}
        self._rules = tuple(one for one in rules if one.drops == "documents")
        self._own_rules = tuple(own_rules.find(name) for name in settings.own_rules)
        self._identifier = languages_of_texts.require_identifier() if settings.languages else None

    @property
    def identity(self) -> Any:
        """Plain JSON of all that decides the verdicts."""
        settings = self._settings
        return {
            "rules": self._thresholds,
            "stop_words": sorted(settings.stop_words) if "gopher_stop_words" in self._thresholds else None,
            "languages": [sorted(settings.languages), settings.language_confidence, self._identifier] if settings.languages else None,
            "own_rules": [[one.function, one.sha256] for one in self._own_rules],
        }

    def __call__(self, texts: pa.LargeStringArray, documents: Callable[[int], Document]) -> Verdicts:
        names = (*([LANGUAGE] if self._settings.languages else []), *(one.name for one in self._rules))
        verdict = _Verdict(len(texts), [*names, *(one.name for one in self._own_rules)])
        languages = self._identify(texts, verdict) if self._settings.languages else None
        removed: Counter[str] = Counter()
        if self._rules or self._line_rules:
            texts, removed = self._apply(texts, verdict)
        for one in self._own_rules:
            _apply_own(one, texts, documents, verdict)
        return Verdicts(texts, verdict.reason, tuple(verdict.names), dict(verdict.failed), dict(removed), languages)

    def _identify(self, texts: pa.LargeStringArray, verdict: _Verdict) -> list[str]:
        languages_of_texts.require_known(self._settings.languages)
        found, confidences = languages_of_texts.identify(texts)
        unwanted = np.array([language not in self._settings.languages for language in found], bool)
        verdict.fail(LANGUAGE, unwanted | (np.array(confidences) < self._settings.language_confidence))
        return found

    def _apply(self, texts: pa.LargeStringArray, verdict: _Verdict) -> tuple[pa.LargeStringArray, Counter[str]]:
        """The rules of the table. Where no rule changes lines, one pass over the text serves those before and after."""
        given, wanted = as_bytes(texts), np.ones(len(texts), bool)
        before = [one for one in self._rules if not one.remaining]
        of_lines = [one for one in self._rules if one.count in LINE_COUNTS]
        after = [one for one in self._rules if one.remaining and one not in of_lines]
        counts = self._count(before if self._line_rules else [*before, *after], given, wanted)
        self._judge(before, counts, wanted, verdict)
        wanted = verdict.kept
        left, removed = given, dict.fromkeys(LINE_COUNTS, np.zeros(len(texts), np.int64))
        if self._line_rules or of_lines:
            left, columns = apply_line_rules(given, self._line_rules, wanted)
            removed = dict(zip(LINE_COUNTS, columns.T, strict=True))
            self._judge(of_lines, removed, wanted, verdict)
        if not self._line_rules:
            self._judge(after, counts, wanted, verdict)
            return texts, Counter()
        wanted = verdict.kept
        self._judge(after, self._count(after, left, wanted), wanted, verdict)
        return _as_arrow(left), Counter({name: int(removed[name][verdict.kept].sum()) for name in self._line_rules})

    def _count(self, rules: Sequence[Rule], texts: Texts, wanted: NDArray[np.bool_]) -> Counts:
        needed = {name for one in rules for name in (one.count, one.per) if name}
        if any(one.spaced_only for one in rules):
            needed |= {"words", "unspaced_words"}
        found = statistics(texts, tuple(needed), self._settings.stop_words if "stop_words" in needed else (), wanted)
        return {name: found[name] for name in needed}

    def _judge(self, rules: Sequence[Rule], counts: Counts, wanted: NDArray[np.bool_], verdict: _Verdict) -> None:
        for one in rules:
            value = counts[one.count] / np.maximum(counts[one.per], 1) if one.per else counts[one.count].astype(np.float64)
            threshold = self._thresholds[one.name] or 0
            fails = value < threshold if one.minimum is not None else value > threshold
            if one.spaced_only:
                fails &= 2 * counts["unspaced_words"] <= counts["words"]
            verdict.fail(one.name, fails & wanted)


class _Verdict:
    """Collects which document fails which rule. Rules may be told in any order of stages; the first told counts."""

    def __init__(self, documents: int, names: list[str]) -> None:
        self.names = names
        self.reason = np.zeros(documents, np.int16)
        self.failed: Counter[str] = Counter()

    @property
    def kept(self) -> NDArray[np.bool_]:
        return np.equal(self.reason, 0)

    def fail(self, name: str, fails: NDArray[np.bool_]) -> None:
        """Of a rule in `names`, or a new one, which is added at the end."""
        if name not in self.names:
            self.names.append(name)
        if fails.any():
            self.failed[name] += int(fails.sum())
            self.reason[fails & self.kept] = 1 + self.names.index(name)


def _apply_own(rule: own_rules.OwnRule, texts: pa.LargeStringArray, documents: Callable[[int], Document], verdict: _Verdict) -> None:
    """Counted under the rule, and under `rule: reason` where it gives one."""
    failing: dict[str, list[int]] = {}
    for position in np.flatnonzero(verdict.kept).tolist():
        reason = rule(dataclasses.replace(documents(position), text=texts[position].as_py()))
        if reason is not None:
            name = f"{rule.name}: {reason}" if reason else rule.name
            known = name in failing or len(failing) < _REASONS_OF_A_RULE
            failing.setdefault(name if known else rule.name, []).append(position)
    for name, positions in failing.items():
        fails = np.zeros(len(texts), bool)
        fails[positions] = True
        verdict.fail(name, fails)


def _as_arrow(texts: Texts) -> pa.LargeStringArray:
    data = texts.data[: texts.offsets[-1]]
    return pa.LargeStringArray.from_buffers(len(texts.offsets) - 1, pa.py_buffer(texts.offsets), pa.py_buffer(data))
