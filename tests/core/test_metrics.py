from __future__ import annotations

import json
import math
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest

from fledge.core import disk
from fledge.core.errors import DataError, MachineError
from fledge.core.metrics import METRICS, open_metrics, read_metrics
from fledge.core.settings import MetricsSettings

PLAIN = MetricsSettings(tensorboard=False)


def record_steps(folder: Path, steps: range, settings: MetricsSettings = PLAIN, keep_until_step: int = 0) -> None:
    with open_metrics(folder, settings, "test", keep_until_step) as metrics:
        for step in steps:
            metrics.record(step, {"train/loss": 5 - step / 10, "train/tokens": step * 1000, "rate": None if step % 2 else math.inf})


def steps_in(folder: Path) -> list[int]:
    return [record["step"] for record in read_metrics(folder)]


def read_tensorboard(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    accumulator.Reload()
    return {tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def as_tensorboard(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What metrics.jsonl says, in the form of an event file."""
    expected: dict[str, list[tuple[int, float]]] = {}
    for record in read_metrics(folder):
        for name, value in record.items():
            if name not in {"step", "time"} and value is not None:
                expected.setdefault(name, []).append((record["step"], value))
    return expected


# ---- metrics.jsonl


def test_a_record_is_one_line_of_json(tmp_path: Path) -> None:
    before = time.time()
    with open_metrics(tmp_path, PLAIN, "test", 0) as metrics:
        metrics.record(3, {"train/loss": 1.5, "tokens": 12, "bad": math.nan, "worse": -math.inf, "none": None, "größe": True})
    (line,) = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    record = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert before - 1 <= record.pop("time") <= time.time() + 1
    assert list(record.items()) == [
        ("step", 3), ("train/loss", 1.5), ("tokens", 12), ("bad", None), ("worse", None), ("none", None), ("größe", 1),
    ]  # fmt: skip
    assert isinstance(record["tokens"], int)


def test_each_record_is_on_disk_when_record_returns(tmp_path: Path) -> None:
    metrics = open_metrics(tmp_path, PLAIN, "test", 0)
    for step in range(3):
        metrics.record(step, {"a": step})
        assert steps_in(tmp_path) == list(range(step + 1))


def test_a_torn_last_line_is_left_out_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []
    record_steps(tmp_path, range(3))
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    last = whole.rindex(b"{")
    for cut in range(last, len(whole) + 1):
        path.write_bytes(whole[:cut])
        assert steps_in(tmp_path) == ([0, 1, 2] if cut >= len(whole) - 1 else [0, 1])
    path.write_bytes(whole + b"\x00" * 40)
    assert steps_in(tmp_path) == [0, 1, 2]
    path.write_bytes(whole.replace(b'{"step": 1', b'{"stop": 1'))
    with pytest.raises(DataError, match=r"metrics\.jsonl:2 is no record"):
        read_metrics(tmp_path)


def test_resuming_cuts_what_was_not_saved(tmp_path: Path) -> None:
    record_steps(tmp_path, range(1, 11))
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 11, "ti')
    record_steps(tmp_path, range(6, 13), keep_until_step=5)
    assert steps_in(tmp_path) == list(range(1, 13))


def test_a_run_killed_many_times_reads_as_one(tmp_path: Path) -> None:
    """Reliability R8: after n kills each step is there once and in order. Saved every 4 steps, killed anywhere, also in a line."""
    step, saved = 0, 0
    for kill_after in (3, 9, 1, 6, 13, 2):
        record_steps(tmp_path, range(saved + 1, saved + kill_after + 1), MetricsSettings(), keep_until_step=saved)
        with (tmp_path / "metrics.jsonl").open("ab") as file:
            file.write(b'{"step": 99, "time": 1'[: kill_after + 2])
        step = saved + kill_after
        saved = step - step % 4
    record_steps(tmp_path, range(saved + 1, saved + 3), MetricsSettings(), keep_until_step=saved)
    assert steps_in(tmp_path) == list(range(1, saved + 3))
    assert [at for at, _ in read_tensorboard(tmp_path)["train/loss"]] == list(range(1, saved + 3))


def test_a_damaged_line_does_not_stop_a_resumed_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record_steps(tmp_path, range(4))
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"step": 1,', b'"step": ?,'))
    record_steps(tmp_path, range(4, 6), keep_until_step=3)
    assert "metrics.jsonl:2 is damaged and left out" in capsys.readouterr().err
    assert steps_in(tmp_path) == [0, 2, 3, 4, 5]


def test_a_file_that_needs_no_cut_is_not_rewritten(tmp_path: Path, operations: Any) -> None:
    record_steps(tmp_path, range(4))
    assert operations.count(lambda: open_metrics(tmp_path, PLAIN, "test", 3)) == 0
    assert operations.count(lambda: open_metrics(tmp_path, PLAIN, "test", 2)) > 0


def test_a_kill_while_cutting_leaves_the_old_or_the_new_file(tmp_path: Path, operations: Any) -> None:
    record_steps(tmp_path, range(10))
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    count = operations.count(lambda: open_metrics(tmp_path, PLAIN, "test", 4))
    for index in range(count):
        operations.undisturbed()
        disk.write_bytes(tmp_path / "metrics.jsonl", whole)
        assert operations.killed(lambda: open_metrics(tmp_path, PLAIN, "test", 4), index, by_signal=True)
        assert steps_in(tmp_path) in (list(range(10)), list(range(5)))


def test_other_ranks_record_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    record_steps(tmp_path, range(3), MetricsSettings())
    assert list(tmp_path.iterdir()) == []


# ---- TensorBoard


def test_the_event_file_equals_metrics_jsonl(tmp_path: Path) -> None:
    record_steps(tmp_path, range(100), MetricsSettings())
    found, expected = read_tensorboard(tmp_path), as_tensorboard(tmp_path)
    assert found.keys() == expected.keys() == {"train/loss", "train/tokens"}
    for name, points in expected.items():
        assert found[name] == [(step, pytest.approx(value, rel=1e-7)) for step, value in points]


def test_after_a_resume_there_is_one_event_file_and_it_equals_metrics_jsonl(tmp_path: Path) -> None:
    record_steps(tmp_path, range(10), MetricsSettings())
    record_steps(tmp_path, range(6, 12), MetricsSettings(), keep_until_step=5)
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1
    found = read_tensorboard(tmp_path)["train/loss"]
    assert found == [(step, pytest.approx(value, rel=1e-7)) for step, value in as_tensorboard(tmp_path)["train/loss"]]
    assert [step for step, _ in found] == list(range(12))


def test_tensorboard_can_be_switched_off_and_needs_no_torch(tmp_path: Path) -> None:
    record_steps(tmp_path / "off", range(2), MetricsSettings(tensorboard=False))
    assert [path.name for path in (tmp_path / "off").iterdir()] == ["metrics.jsonl"]
    code = f"""
import sys
from pathlib import Path
from fledge.core.metrics import open_metrics
from fledge.core.settings import MetricsSettings
assert "tensorboard" not in sys.modules
with open_metrics(Path({str(tmp_path)!r}), MetricsSettings(), "test", 0) as metrics:
    metrics.record(1, {{"a": 1.0}})
print("torch" in sys.modules or "tensorflow" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_a_failing_sink_warns_once_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_metrics(tmp_path, MetricsSettings(), "test", 0) as metrics:
        metrics.record(1, {"a": 1.0})

        def full_for_events(operation: str, path: Path) -> None:
            if "tfevents" in path.name:
                raise OSError(28, "No space left on device")

        monkeypatch.setattr(disk, "fail_point", full_for_events)
        for step in range(2, 5):
            metrics.record(step, {"a": 1.0})
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 1
    assert "no more metrics go to TensorBoard: no space left" in warnings[0]
    assert steps_in(tmp_path) == [1, 2, 3, 4]
    assert [step for step, _ in read_tensorboard(tmp_path)["a"]] == [1]


def test_records_that_a_full_disk_did_not_take_come_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(operation: str, path: Path) -> None:
        if path.name == METRICS:
            raise OSError(28, "No space left on device")

    with open_metrics(tmp_path, MetricsSettings(tensorboard=False), "test", 0) as metrics:
        metrics.record(1, {"a": 1.0})
        monkeypatch.setattr(disk, "fail_point", full)
        for step in (2, 3):
            metrics.record(step, {"a": 1.0})
        assert steps_in(tmp_path) == [1]
        monkeypatch.setattr(disk, "fail_point", None)
        metrics.record(4, {"a": 1.0})
        assert steps_in(tmp_path) == [1, 2, 3, 4]
    assert capsys.readouterr().err.count("metrics.jsonl waits for the disk") == 1


# ---- Weights & Biases


def test_online_without_a_key_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(MachineError, match="WANDB_API_KEY is not set") as caught:
        open_metrics(tmp_path / "stage", MetricsSettings(wandb="online"), "test", 0)
    assert "--no-wandb" in caught.value.remedy
    assert not (tmp_path / "stage").exists()


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_without_the_package_the_command_that_installs_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Any) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a key")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MachineError, match="wandb is not installed") as caught:
        open_metrics(tmp_path / "stage", MetricsSettings(wandb=mode), "test", 0)
    assert caught.value.remedy == "pip install wandb"
    assert not (tmp_path / "stage").exists()


class WandbRun:
    """Stands for the package, which the tests do not install: takes figures and fails at step 3."""

    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []
        self.started: list[dict[str, Any]] = []

    def init(self, **settings: Any) -> WandbRun:
        self.started.append(settings)
        return self

    def define_metric(self, name: str, step_metric: str) -> None:
        assert (name, step_metric) == ("*", "step")

    def log(self, figures: dict[str, Any]) -> None:
        if figures["step"] == 3:
            raise ConnectionError("the service is gone")
        self.logged.append(figures)

    def finish(self) -> None:
        pass


def test_wandb_takes_the_same_figures_and_its_failure_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = WandbRun()
    package = types.SimpleNamespace(init=run.init, Settings=dict)
    monkeypatch.setitem(sys.modules, "wandb", package)
    settings = MetricsSettings(tensorboard=False, wandb="offline", wandb_project="birds")
    record_steps(tmp_path, range(1, 6), settings)
    assert run.logged == [{"step": 1, "train/loss": 4.9, "train/tokens": 1000}, {"step": 2, "train/loss": 4.8, "train/tokens": 2000}]
    assert steps_in(tmp_path) == [1, 2, 3, 4, 5]
    warnings = capsys.readouterr().err.splitlines()
    assert warnings == ["warning: no more metrics go to Weights & Biases: wandb failed: the service is gone (the run goes on)"]
    record_steps(tmp_path, range(6, 7), settings, keep_until_step=5)
    assert [started["mode"] for started in run.started] == ["offline", "offline"]
    assert run.started[0]["project"] == "birds"
    assert run.started[0]["id"] == run.started[1]["id"], "a resumed stage goes on in the same run"
