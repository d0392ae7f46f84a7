"""A probe leaves the model as it was, and its batches are what objectives expect."""

from __future__ import annotations

import pytest
import torch

from fledge.model.llama import Llama
from fledge.model.settings import ModelConfig, ModelSettings
from fledge.training.objectives import make_objective
from fledge.training.optimizer import make_optimizer
from fledge.training.parallel import Machine
from fledge.training.probe import StepSeconds, measure, random_batch
from fledge.training.settings import AdamWSettings, MuonSettings, PreferenceSettings, TrainingSettings

CPU, MACHINE = torch.device("cpu"), Machine("fp32", False, 1)


@pytest.mark.parametrize("optimizer", [AdamWSettings(), MuonSettings()])
@pytest.mark.parametrize("preference", [False, True])
def test_a_probed_model_is_bit_by_bit_what_it_was(optimizer: object, preference: bool) -> None:
    shape = ModelSettings(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
    model = Llama(ModelConfig(shape, 128), 0)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    settings = TrainingSettings(steps=1, optimizer=optimizer, **({"objective": PreferenceSettings()} if preference else {}))  # type: ignore[arg-type]
    batch = random_batch(2, 16, model.config.vocabulary_size, True, preference, CPU)
    took = measure(model, make_objective(settings.objective), make_optimizer(model, settings, False), MACHINE, batch)
    assert took.row > 0
    assert took.update > 0
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name
        assert parameter.grad is None


def test_a_probe_leaves_no_gradient_with_frozen_weights() -> None:
    """They would stay for the whole run, as large as all that an adapter saves."""
    model = Llama(ModelConfig(ModelSettings(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48), 128), 0)
    model.model.embed_tokens.requires_grad_(False)
    settings = TrainingSettings(steps=1)
    batch = random_batch(2, 16, model.config.vocabulary_size, True, False, CPU)
    measure(model, make_objective(settings.objective), make_optimizer(model, settings, False), MACHINE, batch)
    assert [name for name, parameter in model.named_parameters() if parameter.grad is not None] == []


def test_a_step_is_its_rows_and_one_update() -> None:
    assert StepSeconds(row=0.5, update=2.0).step(4) == 4.0


def test_random_batches_look_like_real_ones() -> None:
    batch = random_batch(3, 400, 100, True, False, CPU)
    assert batch.documents is not None
    assert batch.documents.dtype == torch.int32
    assert bool((batch.documents <= torch.arange(400)).all())
    assert int(batch.documents.max()) > 0
    assert torch.equal(batch.targets[:, :-1], batch.tokens[:, 1:])
    assert random_batch(3, 400, 100, False, False, CPU).documents is None
    pairs = random_batch(2, 16, 100, False, True, CPU).pairs
    assert pairs is not None
    assert pairs.answers.unique().tolist() == [1, 2, 3, 4]
