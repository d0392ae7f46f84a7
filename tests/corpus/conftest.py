from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TOPICS = {
    "zeta": 'The "zeta" statement\n********************\n\nzeta comes last.',
    "assert": "\n\n".join(f"Paragraph {number} about inserting assertions number {number}." for number in range(180)),
}


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[..., Path]:
    """Writes values as JSON lines to a file below tmp_path."""

    def write(*values: Any, name: str = "data.jsonl") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(json.dumps(value).encode() + b"\n" for value in values))
        return path

    return write


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A small standard library: two modules, a package, a skipped folder, a broken file and the help topics."""
    files = {
        "alpha.py": '"""Tools for the first letter of an alphabet."""\n'
        "import alphabet_that_does_not_exist\n"
        "def dedent(text, *, width: int = 8):\n"
        '    """Remove common leading whitespace\n    from every line.\n\n    More on this below.\n    """\n'
        "class Reader:\n"
        '    """Reads letters one after another from a stream."""\n'
        "    def close(self):\n"
        '        """Close the reader and the stream under it."""\n'
        "    def undocumented(self): pass\n"
        "    def short(self):\n"
        '        """Too short."""\n'
        "if True:\n"
        "    async def fetch(url): \n"
        '        """Fetch a page and return the letters on it."""\n'
        "else:\n"
        "    def fetch(url):\n"
        '        """Fetch nothing, because there is no network here."""\n',
        "package/__init__.py": '"""A package that holds one module about beta."""\n',
        "package/beta.py": "class Writer:\n"
        '    """Writes letters one after another to a stream of bytes."""\n'
        "    def close(self):\n"
        '        """Close the reader and the stream under it."""\n',
        "surrogate.py": '"""A docstring with half a pair: \\ud800 is in it."""\n',
        "broken.py": '"""A template in {{ braces }} that is no Python."""\ndef (:\n',
        "test/test_alpha.py": '"""Tests of the alpha module, which nobody reads."""\n',
        "pydoc_data/topics.py": f"topics = {TOPICS!r}\n",
    }
    root = tmp_path / "library"
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root
