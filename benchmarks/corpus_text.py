"""The corpus that `benchmarks/corpus.py` measures on: real text, cut into documents, with planted duplicates of known similarity.

Text comes from folders (manual pages, documentation, HTML, source code), whatever lies there; the order of documents follows from
the names of the files and a seed, never from the machine. The truth about the planted pairs is computed here in plain Python, by a
definition that no engine shares code with: words are runs of letters, digits and `_` in lower case, similarity is the Jaccard
coefficient of the sets of five successive words (Broder 1997).
"""

from __future__ import annotations

import gzip
import hashlib
import html
import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SHINGLE_WORDS = 5
SIMILARITY_BINS = ((0.7, 0.8), (0.8, 0.9), (0.9, 1.0))
PAIRS_WANTED = 3_200
# Of every eight planted pairs one is exact; most of the others lie where banded hashing misses some.
_TARGET_BINS = (None, 0, 0, 1, 1, 1, 2, 2)
_LEAST_WORDS = 60
_SHARED_AT_MOST = 0.4
_DOCUMENT_CHARACTERS = (1_000, 8_000)
_LEAST_CHARACTERS = 200
_FILE_BYTES = 12_000_000
_FAMILY_BYTES = 2_000_000
_PRECISION_SAMPLE = 1_500

_WORD = re.compile(r"\w+")
# Combining marks and scripts without spaces, where engines differ in what a word is.
_AMBIGUOUS = re.compile(
    "[\u0300-\u036f\u0590-\u05ff\u0610-\u08ff\u0900-\u109f\u1780-\u17ff\u2e80-\ud7ff\uf900-\ufaff\uff66-\uff9f\U00010000-\U0003ffff]"
)
_SOURCE_SUFFIX = re.compile(r"\.(py|c|h|cpp|hpp|cc|java|js|ts|sh|pl|pm|rb|go|rs|lua|tcl)")
_DOCUMENTATION_SUFFIX = re.compile(r"\.(md|markdown|rst|txt)")
_DOCUMENTATION_NAME = re.compile(
    r"(readme|changelog|changes|news|copyright|licen[sc]e|todo|authors|faq|history|notice|install)", re.IGNORECASE
)
_MANUAL_FOLDER = re.compile(r"man\d")


@dataclass(frozen=True)
class Pair:
    """Two documents of the corpus, by id, and how alike they are."""

    first: str
    second: str
    jaccard: float


@dataclass(frozen=True)
class Corpus:
    """JSON Lines files in a folder, and what is known about them."""

    folder: Path
    pairs: tuple[Pair, ...]
    facts: dict[str, Any]

    def files(self, megabytes: float | None = None) -> list[Path]:
        """The files in order; the first of them with so many megabytes of JSON, if asked for."""
        files = sorted(self.folder.glob("part-*.jsonl"))
        if megabytes is None:
            return files
        taken, size = [], 0
        for path in files:
            taken.append(path)
            size += path.stat().st_size
            if size >= megabytes * 1e6:
                break
        return taken

    def texts(self) -> dict[str, str]:
        """All texts by id."""
        return {row["id"]: row["text"] for row in read_rows(self.files())}


def read_rows(files: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """The rows of JSON Lines files."""
    for path in files:
        with path.open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)


def words_of(text: str) -> list[str]:
    """The normalised words."""
    return _WORD.findall(text.lower())


def shingles_of(text: str) -> frozenset[tuple[str, ...]]:
    """The set of runs of five words; of a shorter text, all of its words as one run."""
    words = words_of(text)
    if len(words) <= SHINGLE_WORDS:
        return frozenset({tuple(words)})
    return frozenset(zip(*(words[start:] for start in range(SHINGLE_WORDS)), strict=False))


def jaccard(one: Collection[Any], other: Collection[Any]) -> float:
    """Shared elements over all elements of two sets."""
    first, second = frozenset(one), frozenset(other)
    shared = len(first & second)
    return shared / max(len(first) + len(second) - shared, 1)


def build(text_folders: Sequence[Path], target: Path, megabytes: float, seed: int = 0) -> Corpus:
    """Write the corpus into `target`, or read it if it is there already."""
    if (target / "truth.json").exists():
        return read(target)
    chance = random.Random(seed)
    by_kind, texts = _collect(text_folders, megabytes, chance)
    chance.shuffle(texts)
    bases = _bases(texts, min(PAIRS_WANTED, len(texts) // 8), chance)
    vocabulary = sorted({word for text in chance.sample(texts, min(300, len(texts))) for word in words_of(text)})
    planted = [_planted(texts[base], _TARGET_BINS[index % len(_TARGET_BINS)], vocabulary, chance) for index, base in enumerate(bases)]
    natural_copies = len(texts) - len(set(texts))
    order = [*range(len(texts) + len(planted))]
    chance.shuffle(order)
    every = texts + planted
    ids = _write(target, [every[index] for index in order])
    id_of = dict(zip(order, ids, strict=True))
    pairs = []
    for offset, base in enumerate(bases):
        first, second = sorted((id_of[base], id_of[len(texts) + offset]), key=_place)
        pairs.append(Pair(first, second, jaccard(shingles_of(texts[base]), shingles_of(planted[offset]))))
    facts = {
        "text_megabytes": round(sum(len(text.encode()) for text in every) / 1e6, 1),
        "documents": len(order),
        "kilobytes_by_kind": {kind: round(size / 1e3) for kind, size in sorted(by_kind.items())},
        "natural_exact_copies": natural_copies,
        "planted": planted_by_bin(pairs),
        "files": len(list(target.glob("part-*.jsonl"))),
        "seed": seed,
    }
    (target / "truth.json").write_text(json.dumps({"facts": facts, "pairs": [asdict(pair) for pair in pairs]}), encoding="utf-8")
    return Corpus(target, tuple(pairs), facts)


def read(folder: Path) -> Corpus:
    """One that was built before."""
    truth = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
    return Corpus(folder, tuple(Pair(**pair) for pair in truth["pairs"]), truth["facts"])


def build_large(corpus: Corpus, target: Path, megabytes: float) -> list[Path]:
    """The corpus again and again, each time with other words: a letter is put behind frequent pairs of letters.

    No stop word holds one of these pairs, so the rules for quality decide much as before; between two copies of a document hardly
    a run of five words stays the same, so the copies are no duplicates.
    """
    files = sorted(target.glob("part-*.jsonl"))
    if sum(path.stat().st_size for path in files) >= megabytes * 1e6:
        return files
    target.mkdir(parents=True, exist_ok=True)
    written, copy = 0, 0
    while written < megabytes * 1e6:
        for number, source in enumerate(corpus.files()):
            letter = "" if copy == 0 else chr(ord("a") + copy - 1)
            path = target / f"part-{copy:02d}-{number:03d}.jsonl"
            with path.open("wb") as file:
                for row in read_rows([source]):
                    file.write(_json_line(f"{path.name}:{file.tell()}", _altered(row["text"], letter)))
            written += path.stat().st_size
            if written >= megabytes * 1e6:
                break
        copy += 1
    return sorted(target.glob("part-*.jsonl"))


def bin_name(similarity: float) -> str | None:
    """The bin of a similarity; identical words have one of their own."""
    if similarity == 1.0:
        return "1"
    return next((f"{low}-{high}" for low, high in SIMILARITY_BINS if low <= similarity < high), None)


def planted_by_bin(pairs: Iterable[Pair]) -> dict[str, int]:
    """How many pairs lie in each bin."""
    counts = Counter(bin_name(pair.jaccard) or "other" for pair in pairs)
    return dict(sorted(counts.items()))


def recall(pairs: Iterable[Pair], cluster_of: Mapping[str, Any]) -> dict[str, float]:
    """Share of the pairs of each bin that ended in one cluster; a document that is in none has no entry."""
    found: defaultdict[str, list[bool]] = defaultdict(list)
    for pair in pairs:
        name = bin_name(pair.jaccard)
        if name is not None:
            cluster = cluster_of.get(pair.first)
            found[name].append(cluster is not None and cluster == cluster_of.get(pair.second))
    return {name: round(sum(hits) / len(hits), 4) for name, hits in sorted(found.items())}


def best_mates(texts: Mapping[str, str], cluster_of: Mapping[str, Any], removed: Collection[str]) -> list[Pair]:
    """A sample of the removed documents, each with the document of its cluster that is most like it."""
    sample = random.Random(0).sample(sorted(removed), min(_PRECISION_SAMPLE, len(removed)))
    wanted = defaultdict(list)
    for row_id in sample:
        wanted[cluster_of[row_id]].append(row_id)
    members = defaultdict(list)
    for row_id, cluster in cluster_of.items():
        if cluster in wanted:
            members[cluster].append(row_id)
    pairs = []
    for cluster, mates in sorted(members.items()):
        sets = {row_id: shingles_of(texts[row_id]) for row_id in mates}
        for row_id in wanted[cluster]:
            similarity, mate = max((jaccard(sets[row_id], sets[other]), other) for other in mates if other != row_id)
            pairs.append(Pair(row_id, mate, similarity))
    return pairs


def precision(mates: Sequence[Pair]) -> dict[str, float]:
    """Shares of the pairs that are alike."""
    return {f"at_least_{least}": round(sum(pair.jaccard >= least for pair in mates) / max(len(mates), 1), 4) for least in (0.7, 0.5)}


def _collect(folders: Sequence[Path], megabytes: float, chance: random.Random) -> tuple[Counter[str], list[str]]:
    """Documents of all kinds, as evenly as there is text, until their UTF-8 reaches `megabytes`.

    No family of files gives more than a little: the thousands of pages of one program, all alike, would be half of the corpus.
    """
    queues = _files_by_kind(folders)
    by_kind: Counter[str] = Counter(dict.fromkeys(queues, 0))
    by_family: Counter[tuple[str, str]] = Counter()
    texts: list[str] = []
    while queues and by_kind.total() < megabytes * 1e6:
        kind = min(queues, key=lambda one: (by_kind[one], one))
        _, family, path = queues[kind].pop()
        if by_family[kind, family] < _FAMILY_BYTES:
            for text in _documents(_plain_text(path, kind), chance):
                texts.append(text)
                by_kind[kind] += len(text.encode())
                by_family[kind, family] += len(text.encode())
        if not queues[kind]:
            del queues[kind]
    if by_kind.total() < megabytes * 1e6:
        raise SystemExit(
            f"The folders hold only {by_kind.total() / 1e6:.1f} MB of text; name more with --text, or ask for fewer --megabytes."
        )
    return by_kind, texts


def _files_by_kind(folders: Sequence[Path]) -> dict[str, list[tuple[str, str, Path]]]:
    """Files in an order without meaning, the same everywhere, each after its place in that order and the name of its family."""
    found: defaultdict[str, list[tuple[str, str, Path]]] = defaultdict(list)
    for folder in folders:
        for path in folder.rglob("*"):
            kind = _kind(path)
            if kind is not None and not path.is_symlink() and path.is_file():
                inside = path.relative_to(folder)
                family = re.split(r"[-_.:]", path.name)[0] if kind == "manual" else "/".join(inside.parts[:2])
                found[kind].append((hashlib.sha256(inside.as_posix().encode()).hexdigest(), family, path))
    return {kind: sorted(files) for kind, files in sorted(found.items())}


def _kind(path: Path) -> str | None:
    name = path.name.removesuffix(".gz")
    suffix = Path(name).suffix.lower()
    if _MANUAL_FOLDER.match(path.parent.name) and suffix[1:2].isdigit():
        return "manual"
    if suffix in {".html", ".htm"}:
        return "html"
    if _SOURCE_SUFFIX.fullmatch(suffix):
        return "source"
    if _DOCUMENTATION_SUFFIX.fullmatch(suffix) or (suffix not in {".json", ".svg", ".png"} and _DOCUMENTATION_NAME.match(name)):
        return "documentation"
    return None


def _plain_text(path: Path, kind: str) -> str:
    """Text of a file, markup taken off crudely; empty if it is not UTF-8."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = raw.decode("utf-8").replace("\r\n", "\n")
    except (OSError, EOFError, UnicodeDecodeError):
        return ""
    if kind == "html":
        text = re.sub(r"(?is)<(script|style|head)\b.*?</\1>", "", text)
        text = html.unescape(re.sub(r"(?s)<[^>]*>", "", re.sub(r"(?i)</?(p|div|h\d|tr|li|pre|ul|table)\b[^>]*>", "\n\n", text)))
        text = re.sub(r"\n\s*\n", "\n\n", text)
    elif kind == "manual":
        text = re.sub(r"(?m)^[.']\s*(SH|SS|Sh|Ss|PP|P|LP|TP|IP|Pp|It)\b", r"\n.\1", text)
        text = re.sub(r"(?m)^[.'](?!\s*(SH|SS|Sh|Ss|[BIR]{1,2}|SM|SB|Nm|Fl|Ar|Nd|Xr)\b).*\n", "", text)
        text = re.sub(r"(?m)^[.']\s*\w+ ?", "", text)
        text = re.sub(r"\\f(\[\w*\]|\(\w\w|\w)|\\&|\\s[-+]?\d|\\m\[\w*\]", "", text)
        text = text.replace("\\-", "-").replace("\\(aq", "'").replace("\\e", "\\").replace('"', "")
    return text


def _documents(text: str, chance: random.Random) -> Iterator[str]:
    """Stretches of one to eight thousand characters, which end at an empty line, or else at a line end."""
    low, high = _DOCUMENT_CHARACTERS
    lines: list[str] = []
    size, target = 0, low
    for line in (*text.splitlines(), ""):
        full = size >= target and (not line.strip() or size >= high)
        if full:
            yield "\n".join(lines).strip()
            lines, size = [], 0
        if not lines:
            target = round(low * (high / low) ** chance.random())
        if len(line) <= high:
            lines.append(line)
            size += len(line) + 1
    rest = "\n".join(lines).strip()
    if len(rest) >= _LEAST_CHARACTERS:
        yield rest


def _bases(texts: Sequence[str], wanted: int, chance: random.Random) -> list[int]:
    """Documents to plant duplicates of: long enough, and alone with most of their words, so only the planted one is like them."""
    candidates: list[int] = []
    for index in chance.sample(range(len(texts)), len(texts)):
        if len(candidates) == 3 * wanted:
            break
        if not _AMBIGUOUS.search(texts[index]) and len(words_of(texts[index])) >= _LEAST_WORDS:
            candidates.append(index)
    shingles = {index: shingles_of(texts[index]) for index in candidates}
    owners: Counter[tuple[str, ...]] = Counter(shingle for one in shingles.values() for shingle in one)
    elsewhere = {shingle for shingle, count in owners.items() if count > 1}
    chosen = set(candidates)
    for index, text in enumerate(texts):
        if index not in chosen:
            elsewhere |= owners.keys() & shingles_of(text)
    alone = [index for index in candidates if len(shingles[index] & elsewhere) <= _SHARED_AT_MOST * len(shingles[index])]
    return alone[:wanted]


def _planted(text: str, target_bin: int | None, vocabulary: Sequence[str], chance: random.Random) -> str:
    """A copy, or one with words replaced and deleted at random places until the similarity comes closest to one drawn from the bin."""
    if target_bin is None:
        return text
    target = chance.uniform(*SIMILARITY_BINS[target_bin])
    spans = [match.span() for match in _WORD.finditer(text)]
    edits = [(spans[place], chance.choice(("", chance.choice(vocabulary)))) for place in chance.sample(range(len(spans)), len(spans))]
    original = shingles_of(text)
    few, many = 1, len(edits)
    while few < many:
        middle = (few + many) // 2
        if jaccard(original, shingles_of(_edited(text, edits[:middle]))) > target:
            few = middle + 1
        else:
            many = middle
    options = [_edited(text, edits[:count]) for count in {max(few - 1, 1), few}]
    return min(options, key=lambda one: abs(jaccard(original, shingles_of(one)) - target))


def _edited(text: str, edits: Iterable[tuple[tuple[int, int], str]]) -> str:
    pieces, position = [], 0
    for (start, end), word in sorted(edits):
        pieces += [text[position:start], word]
        position = end
    return "".join([*pieces, text[position:]])


def _write(target: Path, texts: Sequence[str]) -> list[str]:
    """Write the files; returns the ids, which are the file and the byte at which the line begins."""
    target.mkdir(parents=True, exist_ok=True)
    ids: list[str] = []
    position = 0
    while position < len(texts):
        path = target / f"part-{len(list(target.glob('part-*.jsonl'))):03d}.jsonl"
        with path.open("wb") as file:
            while position < len(texts) and file.tell() < _FILE_BYTES:
                ids.append(f"{path.name}:{file.tell()}")
                file.write(_json_line(ids[-1], texts[position]))
                position += 1
    return ids


def _json_line(row_id: str, text: str) -> bytes:
    return (json.dumps({"id": row_id, "text": text}, ensure_ascii=False) + "\n").encode()


def _place(row_id: str) -> tuple[str, int]:
    name, _, offset = row_id.rpartition(":")
    return name, int(offset)


def _altered(text: str, letter: str) -> str:
    if letter:
        for pair in ("er", "in", "on", "re", "es", "st", "en", "or", "ti", "ar", "al", "le", "nt", "se", "ro", "ca"):
            text = text.replace(pair, pair + letter)
    return text
