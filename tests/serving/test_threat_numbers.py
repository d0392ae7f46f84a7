"""Every threat of docs/serving.md has a test that carries its number, and no test a number that is not there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"


def listed_numbers(page: str) -> list[int]:
    """Those of the first column of the table, such as `1 to 5` and `21, 29`, in ascending order."""
    numbers: list[int] = []
    for cell in re.findall(r"^\| ([\d, to]+) \|", page.partition("## What it withstands")[2], re.MULTILINE):
        for first, last in re.findall(r"(\d+)(?: to (\d+))?", cell):
            numbers += range(int(first), int(last or first) + 1)
    return sorted(numbers)


def test_every_threat_has_a_test() -> None:
    tested: set[int] = set()
    for path in Path(__file__).parent.glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and (found := re.match(r"test((_\d+)+)_", node.name)):
                tested |= {int(number) for number in found[1].split("_")[1:]}
    page = PAGE.read_text(encoding="utf-8")
    assert listed_numbers(page) == sorted(tested)
    assert len(tested) == 40 and "Forty threats" in page
