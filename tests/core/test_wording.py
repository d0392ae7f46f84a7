from __future__ import annotations

from fledge.core.wording import counted


def test_one_is_singular() -> None:
    assert [counted(number, "files") for number in (0, 1, 2, 2_000)] == ["0 files", "1 file", "2 files", "2,000 files"]
