"""When a run validates and on how many rows, at the borders; and that what it wrote is kept as far as its checkpoint goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from training_assembly import assembled, training_settings

from fledge.core import disk
from fledge.core.errors import MachineError
from fledge.core.metrics import read_metrics
from fledge.core.samples import SAMPLES, SampledText, SampleRecord, read_samples
from fledge.tokens.shards import TokenSet
from fledge.training.cadence import benchmarks_are_due, spread, validated_rows, validation_is_due
from fledge.training.forecast import planned_length, validations
from fledge.training.plan import Row
from fledge.training.settings import PhaseSettings


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({}, [8]),
        ({"validate_every_steps": 3}, [3, 6, 8]),
        # A step trains on 8 rows of 16 tokens.
        ({"validate_every_tokens": 256}, [2, 4, 6, 8]),
        ({"validate_every_tokens": 300}, [3, 5, 8]),
        ({"validate_every_tokens": 1}, [1, 2, 3, 4, 5, 6, 7, 8]),
        ({"validate_every_tokens": 10_000}, [8]),
    ],
)
def test_due_by_steps_and_by_tokens(tmp_path: Path, documents: TokenSet, changes: dict[str, Any], steps: list[int]) -> None:
    settings = training_settings(**changes)
    with assembled(tmp_path / "run", settings, [documents]) as trainer:
        plan = trainer.plan
    assert [step for step in range(1, 9) if validation_is_due(step, settings, plan)] == steps
    renamed = {name.replace("validate", "benchmark"): value for name, value in changes.items()}
    asking = training_settings(benchmarks=("boolq",), **renamed)
    assert [step for step in range(1, 9) if benchmarks_are_due(step, asking, plan)] == steps
    assert len(steps) <= validations(settings, planned_length(plan), plan.epochs(plan.steps)) <= len(steps) + 1


def test_due_by_tokens_keeps_its_distance_where_batches_grow(tmp_path: Path, documents: TokenSet) -> None:
    phases = (PhaseSettings(until_tokens=512, batch_tokens=64), PhaseSettings(until_tokens=1_536, batch_tokens=256))
    settings = training_settings(phases=phases, validate_every_tokens=256)
    with assembled(tmp_path / "run", settings, [documents]) as trainer:
        plan = trainer.plan
    assert [step for step in range(1, plan.steps + 1) if validation_is_due(step, settings, plan)] == [4, 8, 9, 10, 11, 12]


def test_due_every_tenth_of_an_epoch(tmp_path: Path, documents: TokenSet) -> None:
    settings = training_settings(steps=60, validate_every_epochs=0.1)
    with assembled(tmp_path / "run", settings, [documents]) as trainer:
        plan = trainer.plan
    due = [step for step in range(1, 60) if validation_is_due(step, settings, plan)]
    assert len(due) == pytest.approx(plan.epochs(59) / 0.1, abs=1) and len(due) > 5
    for number, step in enumerate(due, start=1):
        assert plan.epochs(step - 1) < number * 0.1 <= plan.epochs(step) + 1e-9
    assert abs(validations(settings, planned_length(plan), plan.epochs(plan.steps)) - len([*due, plan.steps])) <= 1


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({}, 200),
        ({"validation_rows": 7}, 7),
        ({"validation_rows": 900}, 200),
        ({"validation_share": 0.05}, 10),
        ({"validation_share": 0.0001}, 1),
        ({"validation_share": 1.0}, 200),
    ],
)
def test_a_share_of_the_rows(changes: dict[str, Any], count: int) -> None:
    assert validated_rows(200, training_settings(**changes)) == count
    assert validated_rows(0, training_settings(**changes)) == 0


@pytest.mark.parametrize(("count", "indices"), [(9, [0, 1, 2, 3, 4]), (2, [0, 2]), (5, [0, 1, 2, 3, 4]), (0, [])])
def test_rows_are_spread(count: int, indices: list[int]) -> None:
    assert [row.index for row in spread([Row(0, index, 0) for index in range(5)], count)] == indices


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"validate_every_steps": 2, "validate_every_tokens": 9}, "validate_every_steps and validate_every_tokens say the same"),
        ({"validate_every_tokens": 9, "validate_every_epochs": 0.1}, "validate_every_tokens and validate_every_epochs"),
        ({"validation_rows": 9, "validation_share": 0.1}, "validation_rows and validation_share"),
        ({"validate_every_tokens": 0}, "validate_every_tokens must be at least 1"),
        ({"validate_every_epochs": 0.0}, "validate_every_epochs must be above 0"),
        ({"validation_share": 0.0}, r"validation_share must lie in \(0, 1\]"),
        ({"benchmark_every_steps": 2}, "benchmark_every_steps needs benchmarks"),
        ({"benchmarks": ("boolq",), "benchmark_every_steps": 2, "benchmark_every_tokens": 9}, "benchmark_every_steps and benchmark_every"),
        ({"benchmarks": ("boolq",), "benchmark_every_epochs": 0.0}, "benchmark_every_epochs must be above 0"),
        ({"benchmarks": ("boolq",), "benchmark_every_steps": 0}, "benchmark_every_steps must be at least 1"),
        ({"benchmark_samples": 0}, "benchmark_samples must be at least 1"),
        ({"validation_share": 1.1}, r"validation_share must lie in \(0, 1\]"),
    ],
)
def test_two_ways_at_once_and_values_out_of_range_are_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        training_settings(**changes)


def test_the_share_is_told_and_recorded(tmp_path: Path, documents: TokenSet, capsys: pytest.CaptureFixture[str]) -> None:
    with assembled(tmp_path / "run", training_settings(steps=2, validation_share=0.5), [documents]) as trainer:
        trainer.run()
    share = read_metrics(tmp_path / "run")[-1]["validation/row_share"]
    assert share == pytest.approx(0.5, abs=0.05)
    assert f"validation on {share:.0%} of the rows: loss" in capsys.readouterr().err


def test_samples_are_kept_as_far_as_the_checkpoint_goes(tmp_path: Path, documents: TokenSet) -> None:
    folder, settings = tmp_path / "run", training_settings(steps=6, sample_every_steps=2, save_every_steps=4)
    written = [SampledText(step, "<b>", f"text {step}") for step in (2, 4, 6)]

    def sample(model: object) -> list[tuple[str, str]]:
        return [("<b>", f"text {trainer.progress.step}")]

    with assembled(folder, settings, [documents], sample=sample) as trainer:
        while trainer.progress.step < 4:
            trainer._observe(trainer.step())
        trainer.save()
        trainer.step(), trainer._observe(trainer.step())
    assert read_samples(folder) == written
    disk.append_bytes(folder / SAMPLES, b'{"step": 6, "pro')
    with assembled(folder, settings, [documents], sample=sample) as trainer:
        assert read_samples(folder) == written[:2]
        trainer.run()
    assert read_samples(folder) == written


def test_a_full_disk_ends_the_record_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = SampleRecord(tmp_path, 0)

    def full(path: Path, line: str) -> None:
        raise MachineError("no space", "make some")

    monkeypatch.setattr(disk, "append_line", full)
    record.append([SampledText(1, "", "a")])
    record.append([SampledText(2, "", "b")])
    assert capsys.readouterr().err.count("no more samples") == 1


def test_a_full_disk_while_the_record_is_cut_off_ends_it_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    SampleRecord(tmp_path, 0).append([SampledText(1, "", "a"), SampledText(2, "", "b")])

    def full(path: Path, content: bytes) -> None:
        raise MachineError("no space", "make some")

    monkeypatch.setattr(disk, "write_bytes", full)
    SampleRecord(tmp_path, 1).append([SampledText(2, "", "c")])
    assert capsys.readouterr().err.count("no more samples") == 1
    assert [one.text for one in read_samples(tmp_path)] == ["a", "b"]
