"""Where the units of these tests are found: by the tests, and by the worker processes that run them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# The assembly is a program too, so it is a file beside the tests, found as a program of this folder would find it.
sys.path.append(str(Path(__file__).parent))

from engine_assembly import ids, text_units, tree

from fledge.core import disk
from fledge.corpus.engine import pool
from fledge.corpus.engine.units import WorkFolder, name_of

PROGRAM = Path(__file__).with_name("engine_assembly.py")


@pytest.fixture(autouse=True)
def small_work_in_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The units here are small, and it is their processes that is tested."""
    monkeypatch.setattr(pool, "_WORTH_PROCESSES_BYTES", 0)


@pytest.fixture
def work(tmp_path: Path) -> WorkFolder:
    return WorkFolder(tmp_path / "work")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the assembly as a program, on `tmp_path/work` and `tmp_path/log`; returns once it has begun."""
    started: list[subprocess.Popen[str]] = []

    def begin(executor: str, units: int, seconds: float = 0.0, **environment: str) -> subprocess.Popen[str]:
        arguments = [tmp_path / "work", executor, units, tmp_path / "log", seconds]
        command = [sys.executable, str(PROGRAM), *map(str, arguments)]
        program = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment})
        started.append(program)
        assert program.stdout is not None
        assert program.stdout.readline() == "started\n"
        return program

    yield begin
    for program in started:
        program.kill()
        program.communicate()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], tuple[list[str | None], dict[str, bytes]]]:
    """What so many units make when nothing goes wrong: their ids and all files."""
    work = WorkFolder(tmp_path_factory.mktemp("undisturbed"))

    def make(count: int) -> tuple[list[str | None], dict[str, bytes]]:
        units = text_units(count)
        made = ids([work.find(unit) or work.make(unit) for unit in units])
        names = {name_of(unit.key) for unit in units}
        return made, {path: content for path, content in tree(work.folder).items() if path.partition("/")[0] in names}

    return make


@pytest.fixture(autouse=True)
def no_fail_point() -> Iterator[None]:
    yield
    disk.fail_point = None
