"""What a run folder says of the last command: how it was asked for, and how it ended, whatever ended it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fledge.core import process
from fledge.core.errors import ArtifactError, MachineError, Stopped
from fledge.core.run_record import RUN_RECORD, read_record, recorded

CONFIG = (
    ("pretrain.steps", 10, "default"),
    ("corpus.sources.0.path", "https://me:word@host/text?token=x", "override a=https://me:word@h/"),
)


def test_work_that_ends_well_is_finished(tmp_path: Path) -> None:
    with recorded(tmp_path, "quickstart", ["pretrain", "sft"], CONFIG):
        during = read_record(tmp_path)
        assert during is not None and during.outcome is None and during.ended_unix_seconds is None
    record = read_record(tmp_path)
    assert record is not None
    assert (record.command, record.stages, record.outcome, record.problem) == ("quickstart", ("pretrain", "sft"), "finished", "")
    assert record.ended_unix_seconds is not None and record.ended_unix_seconds >= record.started_unix_seconds
    assert record.config[0] == CONFIG[0]
    assert "word" not in (tmp_path / RUN_RECORD).read_text() and "token" not in (tmp_path / RUN_RECORD).read_text()


@pytest.mark.parametrize(
    ("error", "outcome", "problem"),
    [
        (MachineError("no space left", "free some"), "failed", "no space left"),
        (Stopped(15, "stopped after step 3", "run it again"), "stopped", "stopped after step 3"),
        (KeyboardInterrupt(), "stopped", "stopped before this stage had finished"),
        (ZeroDivisionError("private text"), "failed", "ZeroDivisionError, an error of Fledge itself"),
    ],
)
def test_what_ends_it_otherwise_is_told(tmp_path: Path, error: BaseException, outcome: str, problem: str) -> None:
    with pytest.raises(type(error)), recorded(tmp_path, "quickstart", ["pretrain"], CONFIG):
        raise error
    record = read_record(tmp_path)
    assert record is not None and (record.outcome, record.problem) == (outcome, problem)


def test_what_is_refused_leaves_the_record_of_what_is_there(tmp_path: Path) -> None:
    with recorded(tmp_path, "first", ["pretrain"], CONFIG):
        pass
    with pytest.raises(ArtifactError), recorded(tmp_path, "second", ["pretrain"], ()):
        raise ArtifactError("made differently", "another name")
    record = read_record(tmp_path)
    assert record is not None and (record.command, record.outcome) == ("first", "finished")


def test_a_launched_process_leaves_it_to_the_one_that_launched_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(process.REPORT_FOLDER, str(tmp_path))
    with recorded(tmp_path, "quickstart", ["pretrain"], CONFIG):
        pass
    assert read_record(tmp_path) is None


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"config": [], "stages": []}', '{"config": 3}', '{"config": [], "stages": [], "more": 1}']
)
def test_what_is_no_record_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / RUN_RECORD).write_text(content)
    assert read_record(tmp_path) is None
