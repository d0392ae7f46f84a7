"""A finished run does nothing, and loads nothing that would."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from fledge.core import artifact
from fledge.core.errors import ArtifactError
from fledge.stages import run_stage
from fledge.stages.run import Run, set_aside

MakeRun = Callable[..., Run]
Walk = Callable[..., None]


def test_a_finished_run_repeats_nothing_and_loads_neither_torch_nor_numba(make_run: MakeRun, walk: Walk) -> None:
    run = make_run()
    walk(run)
    assert isinstance(artifact.open_artifact(run.folder / "report").stats["answer"], str)
    # Hashes of files that were new at the first run are remembered at the second: a file that changes again at once keeps its time.
    made = [path for path in run.folder.rglob("*") if path.is_file() and path.name != "fingerprints.json"]
    before = {path: path.stat().st_mtime_ns for path in made}
    code = "import atexit, sys; atexit.register(lambda: print([name for name in ('torch', 'numba') if name in sys.modules])); "
    command = [sys.executable, "-c", f"{code}from fledge.cli import main; main()", "run", run.command, "--name", str(run.folder)]
    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("already done") == 13
    assert "question: What is a bird?\nanswer:   " in again.stdout
    assert again.stdout.splitlines()[-1] == "[]"
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_another_question_asks_for_another_report(make_run: MakeRun, walk: Walk) -> None:
    walk(make_run("sft=null", "dpo=null"))
    with pytest.raises(ArtifactError, match="question: 'What is a bird\\?' -> 'What is a song\\?'"):
        run_stage("report", make_run("sft=null", "dpo=null", "question=What is a song?"))
    unasked = make_run("sft=null", "dpo=null", "question=null")
    set_aside(unasked, ["report"])
    run_stage("report", unasked)
    assert "answer" not in artifact.open_artifact(unasked.folder / "report").stats
