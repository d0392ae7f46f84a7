"""`fledge board`: the form of a recipe, the command line that is shown and spawned, and a real run that starts, is watched and stops."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fledge.core.errors import ConfigError, DataError, FledgeError, MachineError
from fledge.core.metrics import METRICS
from fledge.core.run_record import read_record
from fledge.serving.board.curves import read_curves
from fledge.serving.board.folders import Runs
from fledge.serving.board.launching import AskedRun
from fledge.serving.board.status import status_of
from fledge.serving.settings import ServerSettings
from fledge.stages import STAGES
from fledge.verbs import board as verb
from fledge.verbs import board_runs as launching
from fledge.verbs.board_runs import RunLauncher
from tests.waiting import WAIT_SECONDS, until

OWN = """# A page of text.

corpus:
  sources: [{kind: text, name: own, path: text.txt}]
tokenizer: {vocabulary_size: 512}
"""


@pytest.fixture
def launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunLauncher]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("\n\n".join(f"The bird number {number} sings in the {number % 7}th tree." for number in range(200)))
    (tmp_path / "own.yaml").write_text(OWN)
    (tmp_path / "notes.txt").write_text("no recipe")
    made = RunLauncher(Path("runs"))
    yield made
    made.close()


def test_recipes_are_those_of_the_package_and_of_the_working_folder(launcher: RunLauncher) -> None:
    found = {one["name"]: one for one in launcher.recipes()}
    assert found["own.yaml"] == {"name": "own.yaml", "origin": "in the working folder", "about": "A page of text."}
    assert found["quickstart"]["origin"] == "comes with Fledge" and found["quickstart"]["about"].startswith("From raw text")
    assert "notes.txt" not in found


def test_the_form_tells_values_stages_name_and_command(launcher: RunLauncher) -> None:
    (Path("runs") / "own").mkdir(parents=True)
    form = launcher.form(AskedRun("own.yaml", {"tokenizer.vocabulary_size": "600"}))
    assert {field["name"]: field["value"] for field in form["fields"]}["tokenizer.vocabulary_size"] == "600"
    assert (form["stages"], form["name"], form["exists"]) == (["corpus", "tokenizer"], "own-2", False)
    assert form["command"] == "fledge run own.yaml tokenizer.vocabulary_size=600 --name own-2"
    assert launcher.form(AskedRun("own.yaml", name="own"))["exists"]
    small = launcher.form(AskedRun("quickstart", smoke=True))
    assert small["command"] == "fledge run quickstart --name quickstart-smoke --smoke" and small["shrunk"]["pretrain.steps"] == "12"


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (AskedRun("none"), "there is no recipe 'none'"),
        (AskedRun("../secret.yaml"), "there is no recipe"),
        (AskedRun("/etc/passwd"), "there is no recipe"),
        (AskedRun("notes.txt"), "there is no recipe"),
        (AskedRun("--help"), "there is no recipe"),
        (AskedRun("own.yaml", {"tokenizer.vocabulary_size": "many"}), "vocabulary_size"),
        (AskedRun("own.yaml", {"--name": "x"}), "no name of a value"),
        (AskedRun("own.yaml", {"-h": "x"}), "no name of a value"),
        (AskedRun("own.yaml", {"a=b": "x"}), "no name of a value"),
        (AskedRun("own.yaml", {"nonsense": "x"}), "nonsense"),
        (AskedRun("own.yaml", {"corpus.sources.0.license": "a\0b"}), "a NUL character"),
        (AskedRun("own.yaml", name="../up"), "cannot be the name of a run"),
        (AskedRun("own.yaml", name="-x"), "cannot be the name of a run"),
        (AskedRun("own.yaml", name="a/b"), "cannot be the name of a run"),
        (AskedRun("own.yaml", last_stage="none"), "there is no stage 'none'"),
    ],
)
def test_what_cannot_be_is_refused_and_starts_nothing(launcher: RunLauncher, asked: AskedRun, words: str) -> None:
    for ask in (launcher.form, launcher.start, launcher.plan):
        with pytest.raises(FledgeError, match=re.escape(words)):
            ask(asked)
    assert launcher.started() == [] and not Path("runs").exists()


def test_a_text_that_a_shell_would_run_stays_one_argument(launcher: RunLauncher) -> None:
    given = "$(touch hacked); `touch hacked` && rm -rf / #"
    form = launcher.form(AskedRun("quickstart", {"question": given}))
    assert shlex.split(form["command"])[3] == f"question={given}"


def exit_code(launcher: RunLauncher, run: str) -> Any:
    return next(one["exit_code"] for one in launcher.started() if one["run"] == run)


def ended(launcher: RunLauncher, run: str, seconds: float = WAIT_SECONDS) -> int:
    until(lambda: exit_code(launcher, run) is not None, seconds)
    return int(exit_code(launcher, run))


def test_a_real_run_is_spawned_as_it_is_shown(launcher: RunLauncher) -> None:
    asked = AskedRun("own.yaml", {"corpus.validation_fraction": "0.1"}, "first", last_stage="corpus")
    started = launcher.start(asked)
    shown = shlex.split(started["command"])
    spawned = launcher._started[0].process.args
    assert [*shown[1:]] == list(spawned)[3:] and list(spawned)[:3] == [sys.executable, "-m", "fledge"]  # type: ignore[call-overload]
    with pytest.raises(MachineError, match="first is running"):
        launcher.start(asked)
    assert ended(launcher, "first") == 0, launcher.started()[0]["lines"]
    status = status_of(Runs(Path("runs"), STAGES).named("first"))
    assert (status.state, status.finished_stages, status.stages) == ("finished", ("corpus",), ("corpus",))
    record = read_record(Path("runs/first"))
    assert record is not None and ("corpus.validation_fraction", 0.1, "override corpus.validation_fraction=0.1") in record.config
    assert any("corpus/documents" in line for line in launcher.started()[0]["lines"])
    with pytest.raises(DataError, match="does not run"):
        launcher.stop("first")


def has_ended(process_id: str) -> bool:
    """Also if nobody has asked for its exit code yet."""
    status = Path(f"/proc/{process_id}/status")
    return not status.exists() or "State:\tZ" in status.read_text()


def test_a_run_is_stopped_with_all_that_it_started(launcher: RunLauncher, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal goes to the group: a stand-in that starts a process of its own, which is to end with it."""
    code = "import subprocess, sys; child = subprocess.Popen(['sleep', '600']); print(child.pid, flush=True); child.wait()"
    monkeypatch.setattr(launching, "_FLEDGE", (sys.executable, "-c", code))
    launcher.start(AskedRun("own.yaml", name="long"))
    until(lambda: launcher.started()[0]["lines"])
    [child] = launcher.started()[0]["lines"]
    assert list(launcher.running) == ["long"]
    launcher.stop("long")
    assert ended(launcher, "long") == -signal.SIGTERM and launcher.running == {}
    until(lambda: has_ended(child))


@pytest.mark.slow
def test_a_real_training_is_watched_stopped_and_continued(launcher: RunLauncher) -> None:
    asked = AskedRun("quickstart", {"pretrain.log_every_steps": "1"}, "small", smoke=True, last_stage="pretrain")
    plan = launcher.plan(asked)
    assert [stage["stage"] for stage in plan["stages"]] == ["pretrain", "sft", "dpo"] and plan["stages"][0]["length"]["steps"] == 12
    launcher.start(asked)
    runs = Runs(Path("runs"), STAGES)
    until(lambda: any(run.file("pretrain", METRICS) for run in runs.all()) or not launcher.running, 600)
    assert launcher.running, launcher.started()
    assert status_of(runs.named("small")).state == "running"
    launcher.stop("small")
    assert ended(launcher, "small", 600) == 128 + signal.SIGTERM, launcher.started()[0]["lines"]
    status = status_of(runs.named("small"))
    assert status.state == "stopped" and "everything is saved" in status.problem and status.step is not None and status.step < 12
    cursor = read_curves(runs.named("small").file("pretrain", METRICS)).cursor
    launcher.start(asked)
    assert ended(launcher, "small", 600) == 0, launcher.started()[0]["lines"]
    assert status_of(runs.named("small")).state == "finished"
    curves = read_curves(runs.named("small").file("pretrain", METRICS))
    assert [step for step, _ in curves.series["train/loss"].points()] == list(range(1, 13)) and cursor != curves.cursor


def test_a_plan_is_what_the_verb_prints(launcher: RunLauncher, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import json, sys; print('a note'); print(json.dumps({'arguments': sys.argv[1:]}, indent=2))"
    monkeypatch.setattr(launching, "_FLEDGE", (sys.executable, "-c", code))
    plan = launcher.plan(AskedRun("own.yaml", {"tokenizer.vocabulary_size": "600"}, "x", last_stage="corpus"))
    assert plan["arguments"] == ["plan", "own.yaml", "tokenizer.vocabulary_size=600", "--name", "x", "--json", "--log-level", "error"]
    fails = "import sys; print('note\\nerror: it is too large\\n  fix: make it smaller', file=sys.stderr); sys.exit(2)"
    monkeypatch.setattr(launching, "_FLEDGE", (sys.executable, "-c", fails))
    with pytest.raises(ConfigError) as refused:
        launcher.plan(AskedRun("own.yaml"))
    assert (refused.value.problem, refused.value.remedy) == ("it is too large", "make it smaller")


def test_the_name_shown_is_that_of_the_run_that_was_started(launcher: RunLauncher, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in that makes its folder at once, before the answer is put together."""
    code = "import pathlib, sys; pathlib.Path('runs', sys.argv[-1]).mkdir(parents=True)"
    monkeypatch.setattr(launching, "_FLEDGE", (sys.executable, "-c", code))
    spawn = subprocess.Popen

    def spawn_and_wait(*arguments: Any, **options: Any) -> Any:
        process = spawn(*arguments, **options)
        process.wait(60)
        return process

    monkeypatch.setattr(subprocess, "Popen", spawn_and_wait)
    assert launcher.start(AskedRun("own.yaml")) == {"run": "own", "command": "fledge run own.yaml --name own"}
    assert launcher.started()[0]["command"] == "fledge run own.yaml --name own"


def test_a_look_waits_for_a_start_that_closes_an_output(launcher: RunLauncher) -> None:
    looked: list[object] = []
    looks = threading.Thread(target=lambda: looked.append(launcher.started()))
    with launcher._changing:
        looks.start()
        looks.join(0.2)
        assert looked == []
    looks.join(60)
    assert looked == [[]]


def test_a_plan_ends_with_the_board(launcher: RunLauncher, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import pathlib, time; pathlib.Path('plans').touch(); time.sleep(600)"
    monkeypatch.setattr(launching, "_FLEDGE", (sys.executable, "-c", code))
    ended: list[BaseException] = []

    def plan() -> None:
        try:
            launcher.plan(AskedRun("own.yaml"))
        except FledgeError as error:
            ended.append(error)

    planning = threading.Thread(target=plan)
    planning.start()
    until(lambda: Path("plans").exists())
    launcher.close()
    planning.join(60)
    assert len(ended) == 1


def test_a_file_is_no_folder_of_runs(launcher: RunLauncher) -> None:
    with pytest.raises(ConfigError, match=r"text\.txt is a file"):
        verb.board(Path("text.txt"), ServerSettings(port=0))


# ---- the verb itself


@pytest.fixture
def board(tmp_path: Path) -> Iterator[tuple[str, str, subprocess.Popen[str]]]:
    """(address, key, process) of `fledge board`."""
    (tmp_path / "runs").mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "FLEDGE_API_KEY"}
    command = [sys.executable, "-m", "fledge", "board", "--port", "0"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = re.search(r"(http://127\.0\.0\.1:\d+)/runs#key=(\S+)", process.stdout.readline())
        assert found is not None
        yield found[1], found[2], process
        process.kill()


def test_the_verb_prints_an_address_with_a_key_that_opens_it(board: tuple[str, str, subprocess.Popen[str]]) -> None:
    address, key, process = board
    asked = urllib.request.Request(f"{address}/board/runs", headers={"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(asked) as answer:
        assert json.load(answer) == {"folder": "runs", "can_start": True, "runs": []}
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{address}/board/runs")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


def test_at_its_end_the_board_says_how_each_run_is_stopped(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(RunLauncher, "running", {"long": 4711})
    monkeypatch.setattr(verb, "serve", lambda application, settings, on_ready, on_end: on_end())
    verb.board(Path("nowhere"), ServerSettings(port=0))
    assert "long is still at work; to have it save and end: kill -- -4711" in capsys.readouterr().out
