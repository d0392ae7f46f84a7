"""Markdown of cards, of data and of models: tables, lists for the YAML in front, and licences by the names that the hub knows.

Foreign text stands in code spans, where Markdown and HTML mean nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence

from fledge.corpus.card_figures import NOT_STATED, shown

_SHOWN_ROWS = 100
_HUB_LICENSES = {
    "afl-3.0", "agpl-3.0", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "bsl-1.0", "cc-by-2.0", "cc-by-3.0", "cc-by-4.0",
    "cc-by-nc-4.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0", "gfdl", "gpl-2.0",
    "gpl-3.0", "lgpl-2.1", "lgpl-3.0", "mit", "mpl-2.0", "odbl", "odc-by", "pddl", "unlicense", "wtfpl", "zlib",
}  # fmt: skip
"""Identifiers that the hub knows; any other licence is `other` there, with its name beside it."""
_MARKDOWN = re.compile(r"[\\`*_\[\]<>|&~$#@]")


def yaml_list(name: str, values: Iterable[str]) -> Iterator[str]:
    """A list of YAML, nothing if it is empty; JSON strings are YAML strings."""
    listed = [f"- {json.dumps(shown(value))}" for value in values]
    if listed:
        yield "\n".join([f"{name}:", *listed])


def hub_license(name: str) -> str:
    """What the hub calls a licence; `other` for one that it does not know."""
    if name == NOT_STATED:
        return "unknown"
    written = name.strip().lower().replace(" ", "-")
    known = (candidate for candidate in (written, re.sub(r"-v?\d+(?:\.\d+)*$", "", written)) if candidate in _HUB_LICENSES)
    return next(known, "other")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], numeric: Iterable[int] = (), foreign: Iterable[int] | None = None) -> str:
    """A table of GitHub-flavoured Markdown. Cells of columns in `foreign` become code; by default of all that are not numeric."""
    right = set(numeric)
    quoted = set(range(len(columns))) - right if foreign is None else set(foreign)
    lines = [
        _row(columns),
        _row(["---:" if place in right else "---" for place in range(len(columns))]),
        *(_row([code(cell) if place in quoted else plain(cell) for place, cell in enumerate(row)]) for row in rows[:_SHOWN_ROWS]),
    ]
    left = len(rows) - _SHOWN_ROWS
    return "\n".join(lines) + (f"\n\n{left:,} more are in `stats.json`." if left > 0 else "")


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def plain(text: str) -> str:
    """Text that Markdown and HTML have nothing to find in."""
    return _MARKDOWN.sub(lambda found: f"\\{found[0]}", shown(text, 2_000)).replace("\n", " ")


def code(text: str) -> str:
    """Foreign text as a code span; in a table a bar must be escaped even there."""
    flat = " ".join(text.split())
    if not flat:
        return ""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", flat)), default=0))
    gap = " " if flat[0] == "`" or flat[-1] == "`" else ""
    return f"{fence}{gap}{flat}{gap}{fence}".replace("|", "\\|")
