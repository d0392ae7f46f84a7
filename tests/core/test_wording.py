from __future__ import annotations

import pytest

from fledge.core.wording import counted, without_secrets


def test_one_is_singular() -> None:
    assert [counted(number, "files") for number in (0, 1, 2, 2_000)] == ["0 files", "1 file", "2 files", "2,000 files"]


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("corpus.sources.0.path=https://user:pass@host/a.jsonl?token=1&b=2#c", "corpus.sources.0.path=https://host/a.jsonl"),
        ("[{path: 'http://host/a?b'}, {path: s3://key:word@bucket/a?b}]", "[{path: 'http://host/a'}, {path: s3://bucket/a?b}]"),
        ("pretrain.start_from=demo@500", "pretrain.start_from=demo@500"),
        ("path=runs/a@b/c?d", "path=runs/a@b/c?d"),
        ("https://host/people@home/a", "https://host/people@home/a"),
    ],
)
def test_no_address_shows_its_secrets(given: str, shown: str) -> None:
    assert without_secrets(given) == shown
