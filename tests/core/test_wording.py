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
        ("https://h/a,b.parquet?sig=SECRET", "https://h/a,b.parquet"),
        ("https://h/part-[0-9].parquet?sig=a,SECRET", "https://h/part-[0-9].parquet"),
        ("https://h/{0,1}.parquet?sig=SECRET", "https://h/{0,1}.parquet"),
        ("HTTPS://h/a?sig=SECRET", "HTTPS://h/a"),
        ("https://h/a#token=SECRET", "https://h/a"),
        ("https://user:pa,s[s#'1?@h/x and more", "https://h/x and more"),
        ('{path: "https://h/a?b=1", name: a}', '{path: "https://h/a", name: a}'),
    ],
)
def test_no_address_shows_its_secrets(given: str, shown: str) -> None:
    assert without_secrets(given) == shown
