"""Every mutant of `make mutants` still applies to the code of today, and its tests are there."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from mutants import MUTANTS, ROOT, Mutant, changed_text


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_applies_and_is_code(mutant: Mutant) -> None:
    ast.parse(changed_text(mutant))
    for test in mutant.tests:
        path, _, name = test.partition("::")
        assert f"def {name}" in (ROOT / path).read_text(encoding="utf-8"), test


def test_there_are_enough_and_none_twice() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len({(mutant.file, mutant.old, mutant.new) for mutant in MUTANTS}) == len(MUTANTS)
    assert len(MUTANTS) >= 15
