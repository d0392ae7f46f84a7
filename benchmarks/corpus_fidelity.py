"""Fledge's quality rules against datatrove's filters, rule by rule, on the same documents:

    python benchmarks/corpus_fidelity.py FOLDER... --peer-python PATH [--half tuned|held-out] [--documents N] [--write]

The peer (datatrove 0.10.1 with spaCy 3.8) runs in its own environment, on the very words that Fledge's rules see; a second column tells how
much its own words, spaCy's, change. A rule agrees where both drop a document or both keep it; Jaccard is that of the two dropped sets.
Line rules are compared on single lines. Half of the documents, by a hash of the file they come from, is held out: differences are
looked into (`--show RULE`) on the tuned half only.

Left out of a comparison, because the peer has no such notion: documents mostly in unspaced scripts for rules that are not applied to
them, and lines and sentences of such scripts for C4's rules, whose words the peer always takes from `str.split`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import random
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from corpus_fidelity_sample import Sampled, sample

from fledge.corpus.characters import DIGIT, LETTER, TABLE_SIZE, UNSPACED, character_tables
from fledge.corpus.document import Document
from fledge.corpus.filters.quality import QualityFilter
from fledge.corpus.filters.rules import RULES
from fledge.corpus.filters.settings import QualitySettings

RESULTS = Path(__file__).parent / "results" / "corpus_fidelity.json"
AGREEMENT, JACCARD, LEAST_DROPPED = 0.99, 0.95, 20
_LINES = 150_000
_MARKS = ("[", "javascript", "cookie", "terms", "privacy")


def main() -> None:
    arguments = _arguments()
    documents = [one for one in sample(arguments.folders, arguments.documents, arguments.seed) if one.text.split()]
    if arguments.half != "both":
        documents = [one for one in documents if one.held_out == (arguments.half == "held-out")]
    words = [_words_unless_plain(one.text) for one in documents]
    lines = _single_lines(documents, arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        theirs = _peer(arguments.peer_python, Path(folder), documents, words, lines)
    unspaced = np.array([one is not None for one in words])
    mostly_unspaced = np.array([one is not None and sum(map(_is_unspaced, one)) * 2 > len(one) for one in words])
    held_out = np.array([one.held_out for one in documents])
    is_long = np.array([one.is_long for one in documents])
    ours = _dropped([one.text for one in documents], lines)
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": platform.processor() or platform.machine(),
        "peer": theirs["versions"],
        "peer_seconds": round(theirs["seconds"], 1),
        "documents": _facts(documents, mostly_unspaced, len(lines)),
        "bars": {"agreement": AGREEMENT, "jaccard": JACCARD, "dropped": LEAST_DROPPED},
    }
    for name, half in (("tuned", ~held_out), ("held_out", held_out)):
        if half.any():
            half_lines = np.array([one == (name == "held_out") for _, one in lines])
            result[name] = _compare(ours, theirs, half, half_lines, is_long, unspaced, mostly_unspaced)
            _print(name, result[name])
    if arguments.show:
        _show(arguments.show, ours, theirs, [(one.text, one.held_out) for one in documents], lines)
    if arguments.write:
        RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--peer-python", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=7_000)
    parser.add_argument("--half", choices=("tuned", "held-out", "both"), default="both")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", metavar="RULE", help="print documents of the tuned half on which the two differ")
    parser.add_argument("--write", action="store_true")
    return parser.parse_args()


def _words_unless_plain(text: str) -> list[str] | None:
    """Words in plain Python where they are not those of `str.split`: cut before a letter of an unspaced script, and after it."""
    runs = text.split()
    words: list[str] = []
    for run in runs:
        start, unspaced = 0, False
        for i, character in enumerate(run if not run.isascii() else ""):
            kind = _kind(character)
            if i > start and (kind == UNSPACED or (unspaced and kind in {LETTER, DIGIT})):
                words.append(run[start:i])
                start, unspaced = i, False
            unspaced |= kind == UNSPACED
        words.append(run[start:])
    return None if words == runs else words


def _kind(character: str) -> int:
    code = ord(character)
    return int(character_tables().kind[code]) if code < TABLE_SIZE and character != "_" else -1


def _is_unspaced(word: str) -> bool:
    return any(_kind(character) == UNSPACED for character in word)


def _single_lines(documents: Sequence[Sampled], seed: int) -> list[tuple[str, bool]]:
    """(line, held out), each line once, with the same words by both definitions."""
    found = {line.strip(): one.held_out for one in documents if not one.is_long for line in one.text.splitlines() if line.strip()}
    chosen = sorted(found)
    random.Random(seed).shuffle(chosen)
    rare = [line for line in chosen if len(line) > 900 or any(mark in line.lower() for mark in _MARKS)]
    chosen = [*rare, *chosen[:_LINES]]
    return [(line, found[line]) for line in dict.fromkeys(chosen) if _words_unless_plain(line) is None]


def _peer(
    python: Path, folder: Path, documents: Sequence[Sampled], words: Sequence[list[str] | None], lines: Sequence[tuple[str, bool]]
) -> Any:
    given = ({"text": one.text, "words": some, "long": one.is_long} for one, some in zip(documents, words, strict=True))
    (folder / "documents").write_text("\n".join(map(json.dumps, given)), encoding="utf-8")
    (folder / "lines").write_text("\n".join(json.dumps(line) for line, _ in lines), encoding="utf-8")
    script = Path(__file__).parent / "corpus_fidelity_peer.py"
    subprocess.run([python, script, folder / "documents", folder / "lines", folder / "out"], check=True)
    return json.loads((folder / "out").read_text(encoding="utf-8"))


def _dropped(texts: Sequence[str], lines: Sequence[tuple[str, bool]]) -> dict[str, Any]:
    """By rule: which documents, or lines, it drops alone; and what the preset and all of C4 make of every document."""
    documents, single_lines = pa.array(texts, pa.large_string()), pa.array([line for line, _ in lines], pa.large_string())
    dropped: dict[str, Any] = {}
    for rule in RULES:
        add = (rule.name, "c4_words_per_line") if rule.name == "c4_sentences" else (rule.name,)
        judge = QualityFilter(QualitySettings(add=add))
        if rule.drops == "documents":
            dropped[rule.name] = judge(documents, _no_document).reason > 0
        else:
            left = judge(single_lines, _no_document).texts.to_pylist()
            dropped[rule.name] = np.array([text != line for text, (line, _) in zip(left, lines, strict=True)])
    c4 = tuple(rule.name for rule in RULES if rule.name.startswith("c4_"))
    for name, settings in (("web", QualitySettings(preset="web")), ("c4", QualitySettings(add=c4))):
        verdicts = QualityFilter(settings)(documents, _no_document)
        left = [hashlib.sha256(text.encode()).hexdigest() for text in verdicts.texts.to_pylist()]
        dropped[name] = [text if reason == 0 else "" for text, reason in zip(left, verdicts.reason, strict=True)]
    return dropped


def _no_document(_: int) -> Document:
    raise AssertionError("only own rules ask for documents")


def _compare(
    ours: dict[str, Any], theirs: Any, half: Any, half_lines: Any, is_long: Any, unspaced: Any, mostly_unspaced: Any
) -> dict[str, Any]:
    """Figures by rule, and of the preset and C4 as wholes, on one half of the documents and lines."""
    by_rule: dict[str, Any] = {}
    for rule in RULES:
        if rule.drops == "lines":
            by_rule[rule.name] = _figures(ours[rule.name][half_lines], np.array(theirs["lines"][rule.name])[half_lines])
            continue
        left_out = mostly_unspaced if rule.spaced_only else unspaced & (rule.name == "c4_sentences")
        which = half & ~left_out & (~is_long | (rule.name == "gopher_maximum_words"))
        given = np.array([rule.name in names for names in theirs["given"]])
        by_rule[rule.name] = _figures(ours[rule.name][which], given[which])
        if rule.name.startswith(tuple(theirs["of_words"])):
            small = which & np.array([names is not None for names in theirs["spacy"]])
            spacy = np.array([names is not None and rule.name in names for names in theirs["spacy"]])
            by_rule[rule.name]["spacy_words"] = _figures(ours[rule.name][small], spacy[small])
    return {
        "rules": by_rule,
        **{name: _whole(ours[name], [left for _, left in theirs[name]], half & ~unspaced & ~is_long) for name in ("web", "c4")},
    }


def _figures(ours: Any, theirs: Any) -> dict[str, Any]:
    either = int((ours | theirs).sum())
    return {
        "n": len(ours),
        "n_fledge": int(ours.sum()),
        "n_datatrove": int(theirs.sum()),
        "agreement": round(float((ours == theirs).mean()), 5),
        "jaccard": round(float((ours & theirs).sum() / either), 4) if either else None,
    }


def _whole(ours: Sequence[str], theirs: Sequence[str], which: Any) -> dict[str, Any]:
    """Of a sequence of rules: figures of the dropped documents, and the share of the texts both keep that are equal to the last byte."""
    dropped, dropped_by_peer = (np.array([text == "" for text in side])[which] for side in (ours, theirs))
    kept = [(one, other) for one, other, is_in in zip(ours, theirs, which, strict=True) if is_in and one and other]
    return {**_figures(dropped, dropped_by_peer), "equal_texts": round(sum(one == other for one, other in kept) / max(len(kept), 1), 5)}


def _facts(documents: Sequence[Sampled], mostly_unspaced: Any, lines: int) -> dict[str, Any]:
    sizes = sorted(len(one.text) for one in documents)
    return {
        "documents": len(documents),
        "characters": sum(sizes),
        "median_characters": sizes[len(sizes) // 2],
        "lines": lines,
        "mostly_unspaced": int(mostly_unspaced.sum()),
        "alterations": dict(sorted(Counter(one.alteration or "none" for one in documents).items())),
    }


def _print(half: str, figures: dict[str, Any]) -> None:
    print(f"\n{half:46} {'n':>7} {'fledge':>7} {'peer':>7} {'agree':>8} {'Jaccard':>8}   spaCy words: agree, Jaccard")
    for name, row in (*figures["rules"].items(), ("all of web", figures["web"]), ("all of C4", figures["c4"])):
        enough = min(row["n_fledge"], row["n_datatrove"]) >= LEAST_DROPPED
        passes = enough and row["agreement"] >= AGREEMENT and row["jaccard"] >= JACCARD
        spacy = row.get("spacy_words", {"agreement": "", "jaccard": ""})
        print(
            f"{'ok  ' if passes else 'MISS'} {name:41} {row['n']:7} {row['n_fledge']:7} {row['n_datatrove']:7} {row['agreement']:8.4f} "
            f"{row['jaccard'] if row['jaccard'] is not None else 'none':>8}   {spacy['agreement']} {spacy['jaccard']}"
        )
    print(f"texts kept by both that are equal: web {figures['web']['equal_texts']}, C4 {figures['c4']['equal_texts']}")


def _show(rule: str, ours: Any, theirs: Any, texts: Sequence[tuple[str, bool]], lines: Sequence[tuple[str, bool]]) -> None:
    """Where the two differ, in the tuned half."""
    of_lines = rule in theirs["lines"]
    peer = theirs["lines"][rule] if of_lines else [rule in names for names in theirs["given"]]
    differing = [
        (text, mine, other)
        for (text, held_out), mine, other in zip(lines if of_lines else texts, ours[rule], peer, strict=True)
        if bool(mine) != other and not held_out
    ]
    for text, mine, other in differing[:12]:
        print(f"--- fledge {bool(mine)}, datatrove {other}, {len(text)} characters\n{text[:1_500]!r}")


if __name__ == "__main__":
    main()
