"""What observers measure is what a plain computation gives."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from training_assembly import MODEL, VOCABULARY, assembled, training_settings, write_token_set

from fledge.core.metrics import read_metrics
from fledge.core.samples import SampledText, read_samples
from fledge.model.head import IGNORE
from fledge.model.llama import Llama
from fledge.tokens.shards import TokenSet
from fledge.training.batches import open_rows
from fledge.training.observers import BenchmarkFigure, Validate, rise
from fledge.training.settings import PreferenceSettings
from fledge.training.trainer import Trainer


def validation_of(trainer: Trainer) -> Validate:
    return next(observer for observer in trainer.observers if isinstance(observer, Validate))


@pytest.mark.parametrize(("micro_batch_rows", "validation_rows"), [(None, None), (3, None), (2, 7)])
def test_validation_is_the_mean_over_the_validation_rows(
    tmp_path: Path, documents: TokenSet, micro_batch_rows: int | None, validation_rows: int | None
) -> None:
    settings = training_settings(micro_batch_rows=micro_batch_rows, validation_rows=validation_rows)
    with assembled(tmp_path / "run", settings, [documents]) as trainer:
        validate = validation_of(trainer)
        found = validate.measure()
    reader = open_rows([documents], "validation", 16)
    batch = reader.batch(validate.rows, len(validate.rows))
    logits = Llama(MODEL, 0)(batch.tokens, batch.documents).detach()
    nll = float(F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORE, reduction="sum"))
    count = int((batch.targets != IGNORE).sum())
    assert len(validate.rows) == (validation_rows or len(reader.all_rows()))
    assert found["validation/loss"] == pytest.approx(nll / count, rel=1e-6)
    # The toy vocabulary has one byte per token.
    assert found["validation/bits_per_byte"] == pytest.approx(nll / math.log(2) / count, rel=1e-6)


def test_bytes_of_targets_are_counted_by_the_tokenizer(tmp_path: Path, documents: TokenSet) -> None:
    with assembled(tmp_path / "run", training_settings(), [documents]) as trainer:
        validate = validation_of(trainer)
        plain = validate.measure()["validation/bits_per_byte"]
        validate._byte_lengths = torch.full((VOCABULARY,), 4)
        assert validate.measure()["validation/bits_per_byte"] == pytest.approx(plain / 4)


def test_preference_validation_has_rewards_and_no_bytes(tmp_path: Path, preferences: TokenSet, scores: Path) -> None:
    settings = training_settings(objective=PreferenceSettings(), sequence_length=None)
    with assembled(tmp_path / "run", settings, [preferences], scores) as trainer:
        found = validation_of(trainer).measure()
    assert found.keys() == {f"validation/{name}" for name in trainer.objective.measures}
    assert found["validation/loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_the_record_of_a_run(tmp_path: Path, documents: TokenSet, capsys: pytest.CaptureFixture[str]) -> None:
    settings = training_settings(steps=7, log_every_steps=3, validate_every_steps=4)
    with assembled(
        tmp_path / "run", settings, [documents], sample=lambda model: [("", "once upon a time"), ("The bird", "sings")]
    ) as trainer:
        trainer.run()
    records = read_metrics(tmp_path / "run")
    training = [record for record in records if "train/loss" in record]
    assert [record["step"] for record in training] == [1, 3, 6, 7]
    paces = ("tokens_per_second", "mfu", "data_wait_share", "seconds_left")
    others = ("loss", "learning_rate", "gradient_norm", "tokens", "epoch", "peak_memory_bytes")
    guarded = ("clip_factor", "weight_norm", "skipped_steps", "spikes")
    names = {*others, *guarded, *paces, *(f"{name}_smoothed" for name in paces)}
    sources = ("source_tokens/manual", "source_tokens/letters")
    assert training[0].keys() - {"step", "time"} == {f"train/{name}" for name in (*names, *sources)}
    assert all(sum(record[f"train/{name}"] for name in sources) == record["train/tokens"] for record in training)
    assert [record["train/tokens"] for record in training] == [128 * step for step in (1, 3, 6, 7)]
    assert all(record["train/tokens_per_second"] > 0 for record in training)
    clipped = [min(1.0, 1.0 / (record["train/gradient_norm"] + 1e-6)) for record in training]
    assert [record["train/clip_factor"] for record in training] == pytest.approx(clipped)
    weight_norm = math.sqrt(sum(float(parameter.detach().double().square().sum()) for parameter in trainer.model.parameters()))
    assert training[-1]["train/weight_norm"] == pytest.approx(weight_norm, rel=1e-5)
    assert (training[-1]["train/skipped_steps"], training[-1]["train/spikes"]) == (0, 0)
    validations = {record["step"]: record["validation/loss"] for record in records if "validation/loss" in record}
    assert validations == dict(trainer.progress.validation_losses)
    assert validations.keys() == {4, 7}
    shown = capsys.readouterr().err
    assert "step 3/7  loss 4." in shown
    assert "tokens/s" in shown
    assert "step 7/7  sample: once upon a time" in shown
    assert "step 7/7  sample after 'The bird': sings" in shown
    assert read_samples(tmp_path / "run") == [SampledText(7, "", "once upon a time"), SampledText(7, "The bird", "sings")]


def test_preference_records_have_the_names_of_trl(tmp_path: Path, preferences: TokenSet, scores: Path) -> None:
    settings = training_settings(objective=PreferenceSettings(), sequence_length=None, steps=2)
    with assembled(tmp_path / "run", settings, [preferences], scores) as trainer:
        trainer.run()
    record = read_metrics(tmp_path / "run")[0]
    assert {"rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "train/loss"} <= record.keys()


def test_a_set_without_validation_rows_is_never_validated(tmp_path: Path, documents: TokenSet) -> None:
    with assembled(tmp_path / "run", training_settings(), [documents]) as trainer:
        validate = validation_of(trainer)
        assert validate.due(8)
        validate.rows = []
        assert not validate.due(8)


def test_a_validation_line_tells_how_far_the_run_is_and_how_often_each_source_was_read(
    tmp_path: Path, documents: TokenSet, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = training_settings(mixture={"manual": 1.0, "letters": 1.0}, validate_every_steps=2)
    with assembled(tmp_path / "run", settings, [documents]) as trainer:
        trainer.run()
    use = trainer.plan.use(2)
    shown = capsys.readouterr().err
    assert re.search(r"step 2/8 \(25%\)  validation: loss \d\.\d+  bits_per_byte \d\.\d+  0\.\d+ epochs \(manual ", shown)
    assert f"{trainer.plan.epochs(2):.2f} epochs (manual {use['manual'].epochs:.2f}, letters {use['letters'].epochs:.2f})" in shown
    with assembled(tmp_path / "one", training_settings(), [write_token_set(tmp_path / "set", "documents", {"books": 9})]) as trainer:
        trainer.run()
    assert re.search(r"step 8/8 \(100%\)  validation: .* epochs$", capsys.readouterr().err, re.MULTILINE)


@pytest.mark.parametrize(
    ("losses", "epoch_ends_at", "best"),
    [
        ([3.0], 0, None),
        ([3.0, 2.0, 1.0], 0, None),
        ([3.0, 2.0, 2.5], 0, 2),
        ([3.0, 2.0, 2.5], 3, None),
        ([3.0, 2.0, 2.0], 0, None),
        ([3.0, 2.0, 2.5, 2.6], 0, None),
        ([3.0, 2.0, 2.5, 2.4], 3, 2),
        ([3.0, 2.0, 2.5, 1.9, 2.0], 0, 4),
        ([3.0, 2.0, 2.5, 2.0, 2.1], 0, 4),
        ([2.0, 2.5, 2.6, 2.7], 2, None),
    ],
)
def test_a_rise_is_told_once_and_only_after_an_epoch(losses: list[float], epoch_ends_at: int, best: int | None) -> None:
    """Validations are one step apart; `best` is the step that is named, None: nothing is said."""
    found = rise(list(enumerate(losses, start=1)), lambda step: step > epoch_ends_at)
    assert (found and found[0]) == best


def test_a_rising_validation_loss_is_a_warning(tmp_path: Path, documents: TokenSet, capsys: pytest.CaptureFixture[str]) -> None:
    settings = training_settings(steps=400, validate_every_steps=1)
    with assembled(tmp_path / "run", settings, [documents]) as trainer:
        validate = validation_of(trainer)
        report = replace(trainer.step(), step=300, epochs=20.0)
        for loss, told in ((2.0, False), (2.1, True), (2.2, False), (1.5, False), (1.6, True)):
            validate.measure = lambda loss=loss: {"validation/loss": loss}  # type: ignore[method-assign]
            report = replace(report, step=report.step + 1)
            capsys.readouterr()
            validate.observe(report)
            shown = capsys.readouterr().err
            assert ("the validation loss rises" in shown) is told, loss
    assert "1.6000 after 1.5000 at step 304, on text that was read before: 20.00 epochs (manual " in shown


ASKED = BenchmarkFigure("boolq/acc", 0.62, 0.48, 0.74, 0.5, 50)


def test_benchmarks_are_asked_when_due_and_recorded_with_their_intervals(
    tmp_path: Path, documents: TokenSet, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = training_settings(benchmarks=("boolq",), benchmark_every_steps=3)
    price = BenchmarkFigure("text/byte_perplexity", 7.5, None, None, None, 1)
    with assembled(tmp_path / "run", settings, [documents], ask=lambda model: [ASKED, price]) as trainer:
        trainer.run()
    records = [record for record in read_metrics(tmp_path / "run") if "benchmark/boolq/acc" in record]
    assert [record.pop("step") for record in records] == [3, 6, 8]
    assert {name: value for name, value in records[0].items() if name != "time"} == {
        "benchmark/boolq/acc": 0.62,
        "benchmark/boolq/acc/low": 0.48,
        "benchmark/boolq/acc/high": 0.74,
        "benchmark/boolq/acc/guessing": 0.5,
        "benchmark/boolq/acc/n": 50,
        "benchmark/text/byte_perplexity": 7.5,
        "benchmark/text/byte_perplexity/n": 1,
    }
    assert "step 6/8  benchmarks: boolq/acc 0.62 (0.48 to 0.74), text/byte_perplexity 7.5\n" in capsys.readouterr().err


@pytest.mark.parametrize("changes_weights", [False, True])
def test_whoever_asks_benchmarks_changes_no_weight(tmp_path: Path, documents: TokenSet, changes_weights: bool) -> None:
    """Not by drawing random numbers either; that the comparison sees a changed weight is the other side."""

    def ask(model: Llama) -> list[BenchmarkFigure]:
        torch.rand(7)
        assert not model.training and not torch.is_grad_enabled()
        if changes_weights:
            model.lm_head.weight[0, 0] += 1e-3
        return [ASKED]

    settings = training_settings(benchmarks=("boolq",), benchmark_every_steps=2)
    ends = []
    for name, asking in (("asked", ask), ("unasked", None)):
        with assembled(tmp_path / name, settings, [documents], ask=asking) as trainer:
            trainer.run()
        ends.append(dict(trainer.model.named_parameters()))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[1]) is not changes_weights
