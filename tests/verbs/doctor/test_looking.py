"""What is looked up is what is there: compared with other sources, on this machine and on folders and compilers that are broken."""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import httpx2
import psutil
import pytest

from fledge.core import disk
from fledge.core.console import format_bytes
from fledge.core.limits import group_limits
from fledge.verbs.doctor import checks, facts, online
from fledge.verbs.doctor.compiler import CompilerTrial, reason_of
from tests.command_line import run_fledge


def test_a_folder_that_works_keeps_nothing(tmp_path: Path) -> None:
    place = facts.look_at_place("runs", tmp_path / "not" / "there")
    assert place.trouble == "" and abs(place.clock_ahead_seconds) < 2
    assert place.total_bytes == shutil.disk_usage(tmp_path).total
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("operation", "code", "word"),
    [
        ("create", errno.EROFS, "Read-only file system"),
        ("create", errno.ENOSPC, "no space left"),
        ("lock", errno.ENOLCK, "No locks available"),
        ("rename", errno.EPERM, "Operation not permitted"),
    ],
)
def test_a_folder_that_does_not_work_says_what_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str, code: int, word: str
) -> None:
    def fail(done: str, path: Path) -> None:
        if done == operation and ".fledge-doctor" in str(path) and (operation != "rename" or path.name == "renamed"):
            raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(disk, "fail_point", fail)
    place = facts.look_at_place("runs", tmp_path)
    assert word in place.trouble and ".fledge-doctor" not in place.trouble
    [finding] = checks.check_place(place)
    assert finding.level == "problem"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("status", "level", "words"), [(401, "problem", "refuses the token"), (429, "note", "HTTP 429"), (None, "note", "TimeoutError")]
)
def test_only_a_refusal_is_told_as_one(monkeypatch: pytest.MonkeyPatch, status: int | None, level: str, words: str) -> None:
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    from fledge.corpus.sources import transport

    def fail(api: object, token: str) -> None:
        if status is None:
            raise TimeoutError
        request = httpx2.Request("GET", "https://example.org")
        raise HfHubHTTPError("no", response=httpx2.Response(status, request=request))

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
    monkeypatch.setattr(huggingface_hub.HfApi, "whoami", fail)
    monkeypatch.setattr(transport, "client", lambda: SimpleNamespace(head=lambda address: SimpleNamespace(headers={})))
    [finding] = online.check_hub(online.look_at_hub())
    assert finding.level == level and words in finding.found


def test_versions_are_compared_by_their_numbers() -> None:
    assert facts.release("2.13.0+cu130") == (2, 13, 0) > facts.release("2.9.1") > facts.release("")
    assert facts.Package("torch", "2.10", None, "2.10.0a0+git").is_too_old is False
    assert facts.Package("torch", "2.10", None, "2.9.1").is_too_old
    assert not facts.Package("torch", "2.10", None, None).is_too_old


def test_a_compiler_that_fails_or_does_not_end() -> None:
    told = "import sys; sys.stderr.write('Traceback\\nInvalidCxxCompiler: no g++\\nBackendError: no working compiler\\n\\nSet TORCHDYNAMO')"
    failed = CompilerTrial("cpu", [sys.executable, "-c", f"{told}; sys.exit(1)"]).outcome()
    assert (failed.outcome, failed.reason) == ("fails", "BackendError: no working compiler")
    endless = CompilerTrial("cpu", [sys.executable, "-c", "import time; time.sleep(600)"])
    assert endless.outcome(within_seconds=0.5).outcome == "unknown"
    assert endless._process.poll() is not None and not Path(endless._folder.name).exists()
    assert CompilerTrial("cpu", [sys.executable, "-c", ""]).outcome().outcome == "works"
    assert reason_of("\x1b[31mRuntimeError: bad\x1b[0m\nadvice") == "RuntimeError: bad"
    assert reason_of("") == "it says no reason"


@pytest.mark.slow
def test_a_compiler_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real trial, with a compiler and without one."""
    assert CompilerTrial("cpu").outcome(within_seconds=300).outcome == "works"
    monkeypatch.setenv("CXX", "/no/such/compiler")
    monkeypatch.setenv("PATH", "")
    failed = CompilerTrial("cpu").outcome(within_seconds=300)
    assert failed.outcome == "fails" and failed.reason


def test_every_finding_about_this_machine_is_true(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run_fledge(capsys, "doctor", "--quick", "--json")
    findings = {one["subject"]: one for one in json.loads(outcome.said)}
    problems = [one for one in findings.values() if one["level"] == "problem"]
    assert outcome.exit_code == (problems[0]["exit_code"] if problems else 0)
    assert all(bool(one["fix"]) == (one["level"] != "ok") for one in findings.values())
    assert list(tmp_path.iterdir()) == []

    assert findings["python"]["found"].startswith(f"{platform.python_version()} on {platform.system()}")
    installed = json.loads(
        subprocess.run([sys.executable, "-m", "pip", "list", "--format", "json"], capture_output=True, check=True, text=True).stdout
    )
    versions = {one["name"].lower().replace("_", "-"): one["version"] for one in installed}
    for name in checks.USES:
        assert (findings[name]["level"] == "note") == (name not in versions), name
        assert versions.get(name, "not installed") in findings[name]["found"]
    assert versions["torch"] in findings["torch"]["found"]
    free_bytes = shutil.disk_usage(tmp_path).free
    roomy = "ok" if free_bytes > checks.ROOMY_BYTES else "note"
    assert findings["runs"]["level"] == (roomy if free_bytes > checks.LEAST_FREE_BYTES else "problem")
    told = re.fullmatch(r"(?:only )?(\S+ \S+) of (\S+ \S+) free.*", findings["memory"]["found"])
    limit = group_limits().memory_bytes or psutil.virtual_memory().total
    assert told is not None and told[2] == format_bytes(min(limit, psutil.virtual_memory().total))
    assert findings["cores"]["found"].startswith(f"{len(os.sched_getaffinity(0))} of {os.cpu_count()}")
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert f"{soft:,}" in findings["open files"]["found"] or soft == resource.RLIM_INFINITY
    assert "gloo" in findings["processes"]["found"]
    assert "compiler" not in findings and "precision" not in findings
