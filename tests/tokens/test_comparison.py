"""The figures of a comparison, against counts made another way; and its picture."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import tokenizers

from fledge.core.errors import DataError
from fledge.tokens.comparison import Compression, measure, printable
from fledge.tokens.comparison_page import comparison_page, longest_rows, source_rows, table_rows
from fledge.tokens.settings import TokenizerSettings
from fledge.tokens.tokenizer import TOKENIZER_FILE, Tokenizer, open_tokenizer
from fledge.tokens.trainers import train_tokenizer

SOURCES = {"words": ["a value and a list of values", "größer, schöner: 你好"], "code": ["def f(x):\n    return x\n", ""]}


@pytest.fixture(scope="module")
def small(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("small")
    train_tokenizer(TokenizerSettings(vocabulary_size=300), texts[:5], folder)
    return open_tokenizer(folder)


def test_figures_are_those_of_the_library(tokenizer: Tokenizer) -> None:
    found = measure("one", tokenizer, SOURCES)
    library = tokenizers.Tokenizer.from_file(str(tokenizer.folder / TOKENIZER_FILE))

    def encode(text: str) -> list[int]:
        ids: list[int] = library.encode(text, add_special_tokens=False).ids
        return ids

    ids = {source: [token for text in given for token in encode(text)] for source, given in SOURCES.items()}
    for source, given in SOURCES.items():
        joined = "".join(given)
        assert found.sources[source] == Compression(len(joined), len(joined.encode()), len(ids[source]))
        assert found.sources[source].characters_per_token == len(joined) / len(ids[source])
        assert found.sources[source].bytes_per_token == len(joined.encode()) / len(ids[source])
    assert found.total.tokens == sum(map(len, ids.values()))
    assert found.total.text_bytes > found.total.characters
    assert found.used_ids == len({token for those in ids.values() for token in those})
    assert found.vocabulary_use == found.used_ids / (768 - 4)
    assert found.engine == tokenizer.engine_name == "tokenizers"
    assert found.megabytes_per_cpu_second == pytest.approx(found.total.text_bytes / 1e6 / found.encode_cpu_seconds)


def test_longest_tokens_are_those_of_the_vocabulary(tokenizer: Tokenizer) -> None:
    library = tokenizers.Tokenizer.from_file(str(tokenizer.folder / TOKENIZER_FILE))
    lengths = sorted((len(piece) for piece in library.get_vocab(with_added_tokens=False)), reverse=True)[:10]
    longest = measure("one", tokenizer, SOURCES).longest_tokens
    assert [told_bytes(shown) for shown in longest] == lengths


def told_bytes(shown: str) -> int:
    """How many bytes `printable` says there are, of ASCII text."""
    if (counted := re.search(r" x (\d+)$|\((\d+) bytes\)$", shown)) is not None:
        return int(counted[1] or counted[2])
    return len(shown[1:-1].encode().decode("unicode_escape"))


def test_tokens_saved_are_a_share_of_those_of_the_first(tokenizer: Tokenizer, small: Tokenizer) -> None:
    first, second = measure("small", small, SOURCES), measure("large", tokenizer, SOURCES)
    needed, had = (sum(len(one.encode(text)) for given in SOURCES.values() for text in given) for one in (tokenizer, small))
    assert needed < had
    told = second.as_json(first)
    assert told["total"]["tokens_saved"] == pytest.approx((had - needed) / had)
    assert first.as_json(second)["total"]["tokens_saved"] < 0
    assert first.as_json(first)["sources"]["code"]["tokens_saved"] == 0
    assert table_rows([first, second])[1][4] == f"+{(had - needed) / had:.2%}"
    with pytest.raises(AssertionError, match="the same text"):
        first.total.tokens_saved(first.sources["code"])


def test_a_source_without_text_is_named(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="the source void holds no text"):
        measure("one", tokenizer, {"words": ["text"], "void": [""]})


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        (b" value", "' value'"),
        (b"\n\n", r"'\n\n'"),
        (b"            ", "' ' x 12"),
        (b"\n\n\n\n", r"'\n' x 4"),
        ("ö".encode(), "'ö'"),
        ("你".encode()[:2], r"'\xe4\xbd'"),
        (b"ab" * 20, "'ababababababababababababab'"[:25] + "...' (40 bytes)"),
    ],
)
def test_tokens_can_be_printed(content: bytes, shown: str) -> None:
    assert printable(content) == shown


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attributes if name in {"href", "src"}]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_picture_holds_every_figure_and_loads_nothing(tokenizer: Tokenizer, small: Tokenizer, tmp_path: Path) -> None:
    figures = [measure("<small>", small, SOURCES), measure("large", tokenizer, SOURCES)]
    reader = _Reader()
    reader.feed(comparison_page(figures, "some text"))
    texts = set(reader.texts)
    for row in (*table_rows(figures), *source_rows(figures), *longest_rows(figures)):
        assert {cell for cell in row if cell} <= texts
    assert "script" not in reader.tags
    assert all(address.startswith("#") for address in reader.addresses)
