"""Launched processes: whose error is told, signals on their way down and exit codes on their way up."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fledge.core import process
from fledge.core.errors import ConfigError, DistributedError, FledgeError, MachineError, Stopped
from fledge.core.watch import Place
from fledge.options import prepare
from fledge.stages import run_stage
from fledge.verbs import launching
from fledge.verbs.launching import Report, first_cause, report, starter

WRONG = Report(1, 2.0, "the recipe is wrong", "mend it", 2)
LOST = Report(0, 1.0, "process 0 lost another process", "look there", 7)
STOPPED = Report(0, 3.0, "stopped by SIGTERM", "run it again", 143)


@pytest.mark.parametrize(
    ("reports", "exit_code", "problem", "code"),
    [
        ([WRONG], 2, "the recipe is wrong", 2),
        ([LOST, WRONG], 7, "the recipe is wrong", 2),
        ([STOPPED, WRONG, LOST], 2, "the recipe is wrong", 2),
        ([WRONG, Report(0, 1.5, "the disk is full", "free some", 5)], 2, "the disk is full", 5),
        ([LOST], -9, "process 1 was ended by SIGKILL", 7),
        ([LOST, STOPPED], -11, "process 1 was ended by SIGSEGV", 7),
        ([LOST, replace(STOPPED, rank=1)], 143, "stopped by SIGTERM", 143),
        ([LOST, STOPPED], 137, "process 1 ended with exit code 137", 7),
        ([LOST], 7, "process 0 lost another process", 7),
        ([LOST], 3, "process 1 ended with exit code 3", 7),
        ([], 3, "process 1 ended with exit code 3", 7),
    ],
)
def test_the_first_cause_is_told(reports: list[Report], exit_code: int, problem: str, code: int) -> None:
    found = first_cause(reports, 1, exit_code)
    assert found.problem == problem
    assert found.exit_code == code


@pytest.mark.parametrize(
    ("place", "problem"),
    [
        (Place(1, "data", 7, 940.0, limit_seconds=60), "process 1 stood still in data of step 8"),
        (Place(1, "data", 7, 990.0, limit_seconds=60), "process 1 ended with exit code 1 in data of step 8"),
        (Place(1, "data", 7, 940.0), "process 1 ended with exit code 1 in data of step 8"),
        (None, "process 1 ended with exit code 1"),
    ],
)
def test_only_who_did_not_get_on_stood_still(place: Place | None, problem: str) -> None:
    """A silent end with the code that the clock gives, of a process that was at work a moment before, is only an end."""
    others = [Place(0, "backward", 7, 940.0, limit_seconds=60)]
    found = first_cause([LOST], 1, 1, 1_000.0, [*others, *([place] if place else [])]).problem
    assert found.split(" (")[0] == problem


def test_launched_processes_get_what_was_given_with_its_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = "pretrain.sample_prompts=['see http://host/page?token=4f1c']"
    run = prepare("quickstart", [given], str(tmp_path / "run"), small=True, no_wandb=False)
    launched: list[list[str]] = []
    monkeypatch.setattr(launching, "launch", lambda arguments, processes: launched.append(arguments))
    starter(2, None, ["--no-wandb"])("pretrain", run)
    assert launched == [["pretrain", "quickstart", given, "--name", str(tmp_path / "run"), "--smoke", "--no-wandb"]]
    assert "4f1c" not in run.command and "4f1c" not in repr(run.command)


def test_a_stop_before_anything_was_reported() -> None:
    stopped = Stopped(15, "stopped by SIGTERM", "run it again")
    assert first_cause([], otherwise=stopped) is stopped
    assert first_cause([STOPPED], otherwise=stopped).remedy == STOPPED.remedy


def test_only_a_launched_process_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not report(ConfigError("wrong", "mend it"))
    monkeypatch.setenv(process.REPORT_FOLDER, str(tmp_path))
    monkeypatch.setenv("RANK", "3")
    assert report(ConfigError("wrong", "mend it"))
    assert '"exit_code": 2' in (tmp_path / "3.json").read_text()
    assert report(ValueError("a bug"))
    assert "ValueError: a bug" in (tmp_path / "3.json").read_text()


def test_what_starts_a_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    assert starter(None, None, []) is run_stage
    assert starter(2, None, []) is not run_stage
    with pytest.raises(ConfigError, match="cannot be had at once"):
        starter(2, 2, [])
    there = torch.cuda.device_count()
    with pytest.raises(MachineError, match=f"than torch finds here: {there}"):
        starter(None, there + 1, [])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert starter(None, 4, []) is not run_stage
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="one of 2 processes already"):
        starter(2, None, [])


def test_errors_that_several_processes_could_tell_have_their_own_exit_code() -> None:
    assert DistributedError.exit_code == LOST.exit_code
    assert FledgeError.exit_code == 1


@contextmanager
def launched(home: Path) -> Iterator[subprocess.Popen[str]]:
    """A long training in two processes, in a home where everything before it is made; killed if it is still there at the end."""
    small = ("model.hidden_size=64", "pretrain.sequence_length=32", "pretrain.batch_rows=8", "pretrain.validation_rows=8")
    long = ("pretrain.steps=100000", "pretrain.save_every_steps=20", "pretrain.precision=fp32")
    command = [sys.executable, "-m", "fledge", "pretrain", "quickstart", "--name", "quickstart-smoke", "--processes", "2", *small, *long]
    with subprocess.Popen(command, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as started:
        try:
            yield started
        finally:
            started.kill()


def wait_for_training(started: subprocess.Popen[str]) -> None:
    assert started.stderr is not None
    for line in started.stderr:
        if re.match(r"step [1-9]", line):
            return
    pytest.fail(f"it ended with {started.wait()} before its first step")


def ranks_of(started: subprocess.Popen[str]) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(started.pid)], capture_output=True, text=True, check=True)
    return [int(number) for number in listed.stdout.split()]


@pytest.mark.slow
def test_signals_go_down_and_exit_codes_come_up(tmp_path: Path) -> None:
    made = subprocess.run([sys.executable, "-m", "fledge", "run", "quickstart", "--smoke", "--to", "pack"], cwd=tmp_path, check=False)
    assert made.returncode == 0
    with launched(tmp_path) as started:
        wait_for_training(started)
        started.send_signal(signal.SIGTERM)
        errors = started.communicate(timeout=300)[1]
        assert started.returncode == 143
        assert re.search(r"^error: stopped by SIGTERM after step \d+ of 100,000; everything is saved$", errors, re.MULTILINE)
    with launched(tmp_path) as started:
        wait_for_training(started)
        ranks = ranks_of(started)
        assert len(ranks) == 2
        os.kill(ranks[1], signal.SIGKILL)
        errors = started.communicate(timeout=300)[1]
        assert started.returncode == 7
        assert errors.count("error:") == 1
        assert "was ended by SIGKILL" in errors
        assert "Traceback" not in errors
    with launched(tmp_path) as started:
        wait_for_training(started)
        ranks = ranks_of(started)
        started.kill()
        until = time.monotonic() + 120
        while any(Path(f"/proc/{number}/cmdline").exists() and Path(f"/proc/{number}/cmdline").read_bytes() for number in ranks):
            assert time.monotonic() < until, "a launched process outlives the one that launched it"
            time.sleep(0.1)
