"""HTML that cannot be broken by what it shows: plain text is escaped, and only `Markup` is not.

Everything below `page.py` and `chart.py` is built by `element`, which escapes attributes and text, so no other place has to think
of it. Documents and answers may hold anything, also tags, control characters and halves of surrogate pairs.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

_NOT_IN_HTML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_VOID = {"meta", "br", "hr"}


class Markup(str):
    """Finished HTML: put into a page as it is."""

    __slots__ = ()


def escape(text: str) -> Markup:
    """Text as HTML; what is Markup already stays; characters that no page may hold become U+FFFD."""
    return text if isinstance(text, Markup) else Markup(html.escape(_NOT_IN_HTML.sub("\ufffd", text), quote=True))


def join(parts: Iterable[str]) -> Markup:
    """Put escaped parts one after another."""
    return Markup("".join(escape(part) for part in parts))


def element(name: str, /, *content: str, **attributes: str | None) -> Markup:
    """One element. In names of attributes `_` stands for `-` and one at the end is dropped (`class_`); None leaves one out."""
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    start = " ".join([name, *(f'{key}="{escape(value)}"' for key, value in given.items())])
    return Markup(f"<{start} />" if name in _VOID else f"<{start}>{join(content)}</{name}>")
