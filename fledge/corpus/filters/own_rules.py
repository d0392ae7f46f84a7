"""Quality rules of your own: a function in a Python file that looks at one document and says whether it stays.

A file `my_rules.py`, named in the recipe as `quality.own_rules: [my_rules.py:no_changelogs]`, may be as short as this:

    def no_changelogs(document):
        '''Drops what is mostly lines such as "* Fix typo".'''
        lines = document.text.splitlines()
        entries = sum(line.lstrip().startswith("* ") for line in lines)
        if document.source == "wiki":
            return True
        if entries > 0.5 * len(lines):
            return "mostly entries of a changelog"
        return len(lines) > 1

It is called with a `Document` (text, id, source, group) and returns True to keep it, False to drop it, or a reason (one short line) to
drop it. Own rules run last, in the order of the recipe, on what all other rules kept. They must depend on nothing but the document:
results are remembered by the hash of the file. The function runs in every worker process, each of which loads the file by itself.
The path is taken from the folder in which the command runs, as every path of a recipe is.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.machinery
import importlib.util
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from fledge.core.errors import ConfigError, DataError
from fledge.corpus.document import Document

_REASON_CHARACTERS = 60


@dataclass(frozen=True)
class OwnRule:
    """A function in a file; small enough to send to another process, which loads the file again."""

    path: Path
    """Absolute."""
    function: str
    sha256: str
    """Of the file when the rule was found."""

    @property
    def name(self) -> str:
        return f"own:{self.function}"

    def __call__(self, document: Document) -> str | None:
        """None to keep the document, else the reason to drop it, which may be empty. Raises DataError if the function fails."""
        function = _load(self)
        try:
            answer = function(document)
        # Whatever the user's code raises is theirs to see, with its place; sys.exit(0) would pass for a finished build.
        except (Exception, SystemExit) as error:
            raise self._failed(f"{type(error).__name__}: {error}", _line_in(self.path, error), document) from error
        if isinstance(answer, str):
            return " ".join(answer.split())[:_REASON_CHARACTERS]
        if answer is True:
            return None
        if answer is False:
            return ""
        raise self._failed(f"it returned {answer!r}", None, document)

    def _failed(self, what: str, line: int | None, document: Document) -> DataError:
        place = f"{self.path}, line {line}" if line else f"{self.path}"
        return DataError(
            f"own rule {self.function} ({place}) failed on document {document.id!r} of source {document.source!r}: {what}",
            "mend the function: it must return True, False or a reason for any document",
        )


def find(name: str) -> OwnRule:
    """The rule that FILE.py:FUNCTION names, loaded once to see that it is there. Raises ConfigError."""
    file, _, function = name.rpartition(":")
    path = Path(file).expanduser().absolute()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"quality.own_rules names {file}, but {path} cannot be read: {error.strerror}",
            "give the path of a Python file, absolute or from the folder in which the command runs",
        ) from error
    rule = OwnRule(path, function, hashlib.sha256(content).hexdigest())
    _load(rule)
    return rule


class _FromSource(importlib.machinery.SourceFileLoader):
    """Leaves no bytecode beside the file, and takes none: its key is the second of the last change, so it may be of another version."""

    def path_stats(self, path: str) -> NoReturn:
        raise OSError


@functools.cache
def _load(rule: OwnRule) -> Callable[[Document], Any]:
    if hashlib.sha256(rule.path.read_bytes()).hexdigest() != rule.sha256:
        raise DataError(f"{rule.path} changed while it was in use", "start again; what is done already is kept")
    # A name of its own, so that neither a module of that name nor another version of the file is taken for it.
    name = f"fledge_own_rule_{rule.sha256[:16]}"
    spec = importlib.util.spec_from_file_location(name, rule.path, loader=_FromSource(name, str(rule.path)))
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a user's own code, which may raise or leave as it likes
        del sys.modules[name]
        line = error.lineno if isinstance(error, SyntaxError) else _line_in(rule.path, error)
        place = f"{rule.path}, line {line}" if line else f"{rule.path}"
        raise ConfigError(f"{place}: {type(error).__name__}: {error}", "mend the file; it must be importable on its own") from error
    function = getattr(module, rule.function, None)
    if not callable(function):
        found = ", ".join(name for name, value in vars(module).items() if callable(value) and not name.startswith("_"))
        raise ConfigError(f"{rule.path} has no function {rule.function}", f"it has: {found or 'none'}")
    loaded: Callable[[Document], Any] = function
    return loaded


def _line_in(path: Path, error: BaseException) -> int | None:
    """The innermost line of the file that the error went through."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return lines[-1] if lines else None
