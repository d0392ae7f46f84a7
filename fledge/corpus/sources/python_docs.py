"""The embedded corpus: the documentation of the Python that runs Fledge, so that the whole road needs no download.

An entry is a module, class or function of the standard library with its docstring, or a piece of a help topic. Entries are
clustered by near duplicates first (docstrings are inherited, copied and quoted); documents, conversations and preference pairs
are derived from entries afterwards and carry the cluster as their group, so no held-out text, question or answer is in train.

The sources are parsed, never imported: nothing of the library runs.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import sysconfig
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from fledge.core import console
from fledge.core.errors import DataError
from fledge.corpus.document import Conversation, Document, Message, Preference
from fledge.corpus.sources.damage import DAMAGES, damaged
from fledge.corpus.sources.near_duplicates import alike_pairs, components, equal_pairs, normalised, shingles
from fledge.corpus.sources.pieces import cut
from fledge.corpus.split import Splitter

_SKIPPED_FOLDERS = {"test", "tests", "idlelib", "lib2to3", "turtledemo", "site-packages", "dist-packages", "__pycache__"}
_TOPICS_FOLDER = "pydoc_data"
_TOPICS_FILE = f"{_TOPICS_FOLDER}/topics.py"
_MAXIMUM_PIECE_CHARACTERS = 4_000
_MINIMUM_TEXT_CHARACTERS = 20
_ANSWER_CHARACTERS = range(20, 201)
_MINIMUM_LETTER_SHARE = 0.8


@dataclass(frozen=True)
class Entry:
    """Something documented."""

    name: str
    """Qualified: "textwrap.dedent"; of a help topic its key."""
    heading: str
    """The name, and the signature of a function."""
    text: str
    """The docstring, or a piece of the help topic."""
    summary: str
    """The first paragraph in one line; "" for a help topic."""
    group: str = ""
    """Name of the first entry in its cluster of near duplicates."""

    @property
    def document(self) -> str:
        return f"{self.heading}\n\n{self.text}"


def stdlib_folder() -> Path:
    """Where the sources of the standard library lie."""
    return Path(sysconfig.get_paths()["stdlib"])


def stdlib_fingerprint(library: Path) -> str:
    """SHA-256 over the names and contents of the files read."""
    digest = hashlib.sha256()
    for path in _library_files(library):
        digest.update(path.relative_to(library).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


@functools.cache
def stdlib_entries(library: Path) -> tuple[Entry, ...]:
    """All entries in the order of files and lines, clustered. Kept in memory: three contents are made from them.

    About 7,500 entries in 4.5 s on Python 3.11. Raises DataError if there is no source to read.
    """
    entries = list[Entry]()
    files = _documented_files(library)
    with console.progress("reading the standard library", len(files), "files") as progress:
        for path in files:
            entries += _entries_of(library, path)
            progress.advance()
    if not entries:
        raise DataError(
            f"the standard library in {library} has no readable docstrings",
            "use a Python installed with its source files, or name other corpus.sources",
        )
    return tuple(_with_groups(entries))


def read_entries(library: Path, backwards: bool = False) -> Iterator[Entry]:
    """All entries without their clusters, file by file as they are asked for; `backwards`: the last file first."""
    files = _documented_files(library)
    for path in reversed(files) if backwards else files:
        yield from _entries_of(library, path)


def documents(source: str, entries: Iterable[Entry]) -> Iterator[Document]:
    """Heading and text of every entry; the same text once."""
    seen: set[str] = set()
    repeated: defaultdict[str, int] = defaultdict(int)
    for entry in entries:
        if len(entry.text) >= _MINIMUM_TEXT_CHARACTERS and entry.document not in seen:
            seen.add(entry.document)
            repeated[entry.name] += 1
            suffix = f"#{repeated[entry.name]}" if repeated[entry.name] > 1 else ""
            yield Document(entry.document, f"{source}:{entry.name}{suffix}", source, entry.group)


def conversations(source: str, entries: Iterable[Entry]) -> Iterator[Conversation]:
    """A question about a name and the first paragraph of its docstring as the answer."""
    for entry in _answerable(entries):
        messages = (_question(entry), Message("assistant", entry.summary))
        yield Conversation(messages, f"{source}:{entry.name}", source, entry.group)


def preferences(source: str, entries: Sequence[Entry], splitter: Splitter) -> Iterator[Preference]:
    """The answer of each conversation against a damaged copy; one that runs on does so into an answer of the same side."""
    answerable = list(_answerable(entries))
    following = _following_answers(answerable, splitter)
    for entry in answerable:
        random = Random(int.from_bytes(hashlib.sha256(f"{splitter.seed}:{entry.name}".encode()).digest()[:8], "big"))
        damage = random.choice(DAMAGES if entry.name in following else [kind for kind in DAMAGES if kind != "run_on"])
        rejected = damaged(entry.summary, damage, following.get(entry.name, ""), random)
        yield Preference((_question(entry),), entry.summary, rejected, damage, f"{source}:{entry.name}", source, entry.group)


def _question(entry: Entry) -> Message:
    return Message("user", f"What does `{entry.name}` do?")


def _answerable(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Entries with a summary of a sentence's length and in words, each name and each summary once.

    A summary that several names share says nothing about any of them. Doctests, signatures and file paths are no answers: a
    greedy model that has learned to begin one runs in circles.
    """
    names: set[str] = set()
    summaries: set[str] = set()
    for entry in entries:
        summary = normalised(entry.summary)
        if _is_in_words(entry.summary) and entry.name not in names and summary not in summaries:
            names.add(entry.name)
            summaries.add(summary)
            yield entry


def _is_in_words(summary: str) -> bool:
    letters = sum(character.isalpha() or character.isspace() for character in summary)
    return len(summary) in _ANSWER_CHARACTERS and letters >= _MINIMUM_LETTER_SHARE * len(summary) and ">>>" not in summary


def _following_answers(entries: Sequence[Entry], splitter: Splitter) -> dict[str, str]:
    """For each name the summary of the next entry on its side of the split, around the end; none for a lone entry."""
    sides: defaultdict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        sides[splitter.side(entry.group)].append(entry)
    return {
        entry.name: following.summary
        for side in sides.values()
        if len(side) > 1
        for entry, following in zip(side, [*side[1:], side[0]], strict=True)
    }


def _with_groups(entries: Sequence[Entry]) -> Iterator[Entry]:
    """Each entry with its cluster, found over four views of it: the document, its text, its summary and its name."""
    views: list[tuple[int, str]] = []
    for index, entry in enumerate(entries):
        views += ((index, view) for view in dict.fromkeys((entry.document, entry.text, entry.summary)) if view)
    with console.progress("finding near duplicates", None, "entries"):
        pairs = [(views[a][0], views[b][0]) for a, b in alike_pairs([shingles(text) for _, text in views])]
    pairs += equal_pairs(entry.name for entry in entries)
    first = components(len(entries), pairs)
    for index, entry in enumerate(entries):
        yield replace(entry, group=f"python:{entries[first[index]].name}")


def _library_files(library: Path) -> list[Path]:
    files = []
    for folder, subfolders, names in os.walk(library):
        subfolders[:] = sorted(set(subfolders) - _SKIPPED_FOLDERS)
        files += [Path(folder, name) for name in sorted(names) if name.endswith(".py")]
    return files


def _documented_files(library: Path) -> list[Path]:
    """In the order of their entries: the help topics, which are no module's, come last."""
    modules = (path for path in _library_files(library) if path.relative_to(library).parts[0] != _TOPICS_FOLDER)
    return [*modules, library / _TOPICS_FILE]


def _entries_of(library: Path, path: Path) -> Iterator[Entry]:
    relative = path.relative_to(library)
    if relative.as_posix() == _TOPICS_FILE:
        return _topic_entries(_parse(path))
    return _docstring_entries(_module_name(relative), _parse(path))


def _module_name(relative: Path) -> str:
    parts = relative.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def _parse(path: Path) -> ast.Module:
    """The syntax tree; an empty one for a file that is no Python of this version (templates, code for tools)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in old files
            return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return ast.Module(body=[], type_ignores=[])


def _docstring_entries(module: str, tree: ast.Module) -> Iterator[Entry]:
    yield from _entry(module, module, tree)
    yield from _member_entries(module, tree)


def _member_entries(prefix: str, node: ast.AST) -> Iterator[Entry]:
    """Classes and functions below a node in the order of lines, also those inside `if` and `try`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{prefix}.{child.name}"
            signature = "" if isinstance(child, ast.ClassDef) else f"({ast.unparse(child.args)})"
            yield from _entry(name, name + signature, child)
            yield from _member_entries(name, child)
        elif isinstance(child, ast.stmt | ast.ExceptHandler):
            yield from _member_entries(prefix, child)


def _entry(name: str, heading: str, node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[Entry]:
    text = (ast.get_docstring(node) or "").strip()
    if text and _is_encodable(heading + text):
        yield Entry(name, heading, text, " ".join(text.split("\n\n")[0].split()))


def _is_encodable(text: str) -> bool:
    """Whether a text can be written as UTF-8; an escape in a docstring may spell half a surrogate pair."""
    return not any("\ud800" <= character <= "\udfff" for character in text) if not text.isascii() else True


def _topic_entries(tree: ast.Module) -> Iterator[Entry]:
    for name, text in sorted(_topics(tree).items()):
        for piece in cut([text], _MAXIMUM_PIECE_CHARACTERS):
            yield Entry(name, name, piece, "")


def _topics(tree: ast.Module) -> dict[str, str]:
    """The dictionary that pydoc's help reads: topic to text."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            topics = ast.literal_eval(node.value)
            return {name: text for name, text in topics.items() if isinstance(name, str) and isinstance(text, str)}
    return {}
