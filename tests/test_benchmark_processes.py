"""What the benchmarks measure answers line by line, and what fails says why."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

BENCHMARKS = str(Path(__file__).parent.parent / "benchmarks")
ECHO = (
    "import json, sys\nprint(json.dumps('ready'), flush=True)\nfor line in sys.stdin: print(json.dumps({'told': line.strip()}), flush=True)"
)
FAILS = "raise ValueError('no such model')"


@pytest.fixture(autouse=True)
def _benchmarks() -> Iterator[None]:
    """Last on the path: beside them lies a tokenizers.py, which is not the library."""
    sys.path.append(BENCHMARKS)
    yield
    sys.path.remove(BENCHMARKS)


def test_a_contestant_is_ready_and_answers() -> None:
    from processes import Contestant

    contestant = Contestant([sys.executable, "-c", ECHO], {})
    assert contestant.hear() == "ready"
    assert [contestant.ask(task)["told"] for task in ("one", "sixteen")] == ["one", "sixteen"]
    assert contestant.hear(until=0) is None
    contestant.close()


def test_a_contestant_that_fails_says_why(tmp_path: Path) -> None:
    from processes import Contestant

    contestant = Contestant([sys.executable, "-c", FAILS], {}, tmp_path / "log")
    assert contestant.hear() is None
    assert contestant.last_words() == "ValueError: no such model"
    contestant.kill()


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (
            "Traceback\ntorch.OutOfMemoryError: CUDA out of memory\n  a warning that came after\n",
            "torch.OutOfMemoryError: CUDA out of memory",
        ),
        ("RuntimeError: first\nImportError: second\n", "ImportError: second"),
        ('  """Configuration class for quantization."""\n', 'not ready in time, no error in its log; last line: """Configuration class'),
        ("", "not ready in time"),
    ],
)
def test_the_last_error_of_a_log_is_told_and_not_its_last_line(log: str, said: str, tmp_path: Path) -> None:
    from processes import last_words

    (tmp_path / "log").write_text(log)
    assert last_words(tmp_path / "log").startswith(said)
