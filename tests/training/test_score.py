"""Scores are the reference's log-probabilities, and training on them starts at ln 2."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from training_assembly import MODEL, assembled, make_scores, training_settings

from fledge.core.errors import CheckpointError, DataError, MachineError
from fledge.model.llama import Llama
from fledge.model.tensors import write_tensors
from fledge.tokens.shards import TokenSet
from fledge.training.parallel import MACHINE
from fledge.training.score import SCORES, read_scores, within_memory
from fledge.training.settings import PreferenceSettings, TrainingSettings


def preference_settings(**changes: object) -> TrainingSettings:
    return training_settings(**{"objective": PreferenceSettings(), "sequence_length": None, **changes})


def test_scores_are_sums_of_log_probabilities_of_answers_alone(preferences: TokenSet, scores: Path) -> None:
    """Each answer behind its own prompt, in a row of its own: what shares its packed row has no say."""
    model, (shard,) = Llama(MODEL, 0), preferences.shards("train")
    found = read_scores(scores, "train")["pairs"]
    assert found.shape == (30, 2)
    assert shard.supervised is not None
    for segment in range(len(shard.starts)):
        start, end = int(shard.starts[segment]), int(shard.starts[segment] + shard.lengths[segment])
        ids = torch.from_numpy(shard.tokens[start:end].astype(np.int64))
        chances = model(ids[None]).log_softmax(-1)[0, :-1].gather(1, ids[1:, None])[:, 0]
        expected = float(chances[torch.from_numpy(shard.supervised[start + 1 : end] == 1)].sum().detach())
        assert found[segment // 2, segment % 2] == pytest.approx(expected, rel=1e-5)
    assert read_scores(scores, "validation")["pairs"].shape == (10, 2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("micro_batch_rows", [None, 3])
def test_the_first_loss_is_ln_2(
    tmp_path: Path, preferences: TokenSet, precision: Literal["fp32", "bf16"], micro_batch_rows: int | None
) -> None:
    settings = preference_settings(precision=precision, micro_batch_rows=micro_batch_rows, steps=12)
    folder = make_scores(tmp_path / "score", preferences, settings)
    with assembled(tmp_path / "run", settings, [preferences], folder) as trainer:
        trainer.run()
    initial_loss = trainer.progress.initial_loss
    assert initial_loss is not None
    assert abs(initial_loss - math.log(2)) < 1e-4
    assert trainer.progress.recent_losses[-1] < 0.69


def test_a_model_with_dropout_starts_at_ln_2_too(tmp_path: Path, preferences: TokenSet) -> None:
    """Its dropout is left out of preference training, also after looking on, and of nothing else."""
    settings = preference_settings(validate_every_steps=2)
    with_dropout = replace(MODEL, settings=replace(MODEL.settings, attention_dropout=0.5))
    folder = make_scores(tmp_path / "score", preferences, settings, Llama(with_dropout, 0))
    with assembled(tmp_path / "run", settings, [preferences], folder, model=Llama(with_dropout, 0)) as trainer:
        trainer.run()
        assert not trainer.model.training
    with assembled(tmp_path / "without", settings, [preferences], folder) as without:
        without.run()
    assert trainer.progress == without.progress
    assert trainer.progress.initial_loss == pytest.approx(math.log(2), abs=1e-6)
    with assembled(tmp_path / "answers", training_settings(sequence_length=None), [preferences]) as other:
        other.step()
        assert other.model.training


def test_training_computes_as_its_scores_were_computed(tmp_path: Path, preferences: TokenSet) -> None:
    folder = make_scores(tmp_path / "score", preferences, preference_settings(precision="bf16"))
    with assembled(tmp_path / "run", preference_settings(precision="auto"), [preferences], folder) as trainer:
        assert trainer.machine.precision == "bf16"
    assert '"bf16"' in (tmp_path / "run" / MACHINE).read_text()


def test_scores_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="missing"):
        read_scores(tmp_path, "train")
    write_tensors(tmp_path / SCORES, {"train/pairs": torch.tensor([[1.0, float("nan")]])})
    with pytest.raises(DataError, match="'pairs' that are not finite"):
        read_scores(tmp_path, "train")


def test_memory_that_runs_out_makes_micro_batches_smaller() -> None:
    def compute(rows: int) -> str:
        if rows > fits:
            raise torch.OutOfMemoryError("too much")
        return f"{rows} at once"

    fits = 5
    assert within_memory(compute, 12) == ("3 at once", 3)
    fits = 12
    assert within_memory(compute, 12) == ("12 at once", 12)
    fits = 0
    with pytest.raises(MachineError, match="one row of pairs"):
        within_memory(compute, 12)
