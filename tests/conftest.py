"""Shared by all tests.

One thread per process, since tests run on both cores at once and idle threads of one starve the other. Generated inputs are the same in
every run, however long each takes; `pytest --hypothesis-profile=exploring` looks for others.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

import hypothesis
import pytest

from tests.command_line import Fledge, run_fledge

os.environ.setdefault("OMP_NUM_THREADS", "1")

hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.register_profile("exploring", deadline=None, max_examples=1000)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def fledge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Fledge:
    """`fledge ARGUMENTS` in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    return functools.partial(run_fledge, capsys)
