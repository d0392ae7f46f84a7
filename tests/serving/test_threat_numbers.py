"""Every threat of docs/serving.md has a test that carries its number."""

from __future__ import annotations

import ast
import re
from pathlib import Path


def test_every_threat_has_a_test() -> None:
    numbers: set[int] = set()
    for path in Path(__file__).parent.glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and (found := re.match(r"test((_\d+)+)_", node.name)):
                numbers |= {int(number) for number in found[1].split("_")[1:]}
    assert numbers == set(range(1, 41)), sorted(numbers ^ set(range(1, 41)))
