"""Parameter groups cover a model once, schedules are right at their borders, state goes round."""

from __future__ import annotations

import pytest
import torch
from training_assembly import MODEL, training_settings

from fledge.core.errors import CheckpointError
from fledge.model.llama import Llama
from fledge.training.optimizer import (
    MuonInFp32,
    MuonOfParts,
    Optimizer,
    group_parameters,
    learning_rate_fraction,
    make_optimizer,
    orthogonalized,
)
from fledge.training.settings import AdamWSettings, MuonSettings, ScheduleSettings

BODY = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def torch_groups(optimizer: Optimizer) -> list[tuple[str, dict[str, object]]]:
    return [(type(one).__name__, group) for one in optimizer._optimizers for group in one.param_groups]


def step_once(model: Llama, optimizer: Optimizer, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step(0.5)


def test_groups_hold_every_parameter_once() -> None:
    model = Llama(MODEL, 0)
    groups = group_parameters(model)
    names = [*groups.body_matrices, *groups.other_matrices, *groups.vectors]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert {name.split(".")[-2] for name in groups.body_matrices} == set(BODY)
    assert list(groups.other_matrices) == ["model.embed_tokens.weight"]
    assert all("norm" in name for name in groups.vectors)


def test_frozen_parameters_are_left_out() -> None:
    model = Llama(MODEL, 0)
    model.model.embed_tokens.weight.requires_grad_(False)
    assert group_parameters(model).other_matrices == {}


@pytest.mark.parametrize("chosen", [AdamWSettings(), MuonSettings()])
def test_optimizers_hold_every_parameter_once_and_decay_matrices_only(chosen: AdamWSettings | MuonSettings) -> None:
    model = Llama(MODEL, 0)
    groups = torch_groups(make_optimizer(model, training_settings(optimizer=chosen, weight_decay=0.2)))
    held = [parameter for _, group in groups for parameter in group["params"]]  # type: ignore[attr-defined]
    assert sorted(map(id, held)) == sorted(map(id, model.parameters()))
    for kind, group in groups:
        parameters = group["params"]
        assert isinstance(parameters, list)
        expected = 0.05 if kind == "Muon" else 0.2
        assert group["weight_decay"] == (expected if parameters[0].ndim == 2 else 0.0)
        assert group["lr"] == (0.02 if kind == "Muon" else 3e-3)
        assert kind != "Muon" or all(parameter.ndim == 2 and parameter.shape[0] < 128 for parameter in parameters)


def test_the_fraction_scales_every_group_from_its_peak() -> None:
    model = Llama(MODEL, 0)
    optimizer = make_optimizer(model, training_settings(optimizer=MuonSettings()))
    for _ in range(2):
        step_once(model, optimizer)
        assert {group["lr"] for _, group in torch_groups(optimizer)} == {0.01, 1.5e-3}


def test_gradients_stay_where_they_are_if_their_memory_is_kept() -> None:
    models = [Llama(MODEL, 0), Llama(MODEL, 0)]
    optimizers = [make_optimizer(model, training_settings(), has_fast_bf16=True) for model in models]
    optimizers[1].keep_gradient_memory()
    places = [parameter.grad for parameter in models[1].parameters()]
    tokens = torch.arange(12).view(2, 6)
    for model, optimizer in zip(models, optimizers, strict=True):
        for _ in range(2):
            model(tokens, None, tokens, torch.ones(2, 6)).loss_sum.backward()
            optimizer.step(1.0)
            optimizer.clear_gradients()
    assert all(torch.equal(one, other) for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True))
    assert all(parameter.grad is None for parameter in models[0].parameters())
    assert all(parameter.grad is place for parameter, place in zip(models[1].parameters(), places, strict=True))
    assert not any(bool(place.any()) for place in places if place is not None)


@pytest.mark.parametrize("chosen", [AdamWSettings(), MuonSettings()])
def test_state_goes_round(chosen: AdamWSettings | MuonSettings) -> None:
    settings = training_settings(optimizer=chosen)
    model, other = Llama(MODEL, 0), Llama(MODEL, 0)
    optimizer, continued = make_optimizer(model, settings), make_optimizer(other, settings)
    step_once(model, optimizer)
    other.load_state_dict(model.state_dict())
    continued.load_state(optimizer.state())
    for seed in (1, 2):
        step_once(model, optimizer, seed)
        step_once(other, continued, seed)
    assert all(torch.equal(first, second) for first, second in zip(model.parameters(), other.parameters(), strict=True))
    assert optimizer.state().keys() == continued.state().keys()


def test_the_state_of_another_model_is_refused() -> None:
    settings, model = training_settings(), Llama(MODEL, 0)
    optimizer = make_optimizer(model, settings)
    step_once(model, optimizer)
    state = optimizer.state()
    fresh = make_optimizer(Llama(MODEL, 0), settings)
    with pytest.raises(CheckpointError, match=r"bias/exp_avg is unknown"):
        fresh.load_state({**state, "bias/exp_avg": torch.zeros(3)})
    with pytest.raises(CheckpointError, match=r"does not fit: model\.norm\.weight/exp_avg is \(3,\) and would be \(32,\)"):
        fresh.load_state({**state, "model.norm.weight/exp_avg": torch.zeros(3)})
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight/step is missing"):
        fresh.load_state({key: value for key, value in state.items() if not key.startswith("model.norm.weight")})


@pytest.mark.parametrize(
    ("schedule", "step", "fraction"),
    [
        (ScheduleSettings(kind="constant"), 0, 1.0),
        (ScheduleSettings(kind="constant"), 99, 1.0),
        (ScheduleSettings(kind="constant", warmup_steps=4), 0, 0.25),
        (ScheduleSettings(kind="cosine", warmup_steps=10), 0, 0.1),
        (ScheduleSettings(kind="cosine", warmup_steps=10), 9, 1.0),
        (ScheduleSettings(kind="cosine", warmup_steps=10), 10, 1.0),
        (ScheduleSettings(kind="cosine", warmup_fraction=0.1), 0, 0.1),
        (ScheduleSettings(kind="cosine", warmup_fraction=0.1), 10, 1.0),
        (ScheduleSettings(kind="linear", warmup_fraction=0.0), 0, 1.0),
        (ScheduleSettings(kind="cosine", warmup_steps=10), 55, 0.5),
        (ScheduleSettings(kind="cosine", warmup_steps=10, final_fraction=0.2), 55, 0.6),
        (ScheduleSettings(kind="cosine", final_fraction=0.2), 100, 0.2),
        (ScheduleSettings(kind="linear"), 0, 1.0),
        (ScheduleSettings(kind="linear"), 50, 0.5),
        (ScheduleSettings(kind="linear"), 99, 0.01),
        (ScheduleSettings(kind="linear", final_fraction=0.5), 50, 0.75),
        (ScheduleSettings(kind="warmup_stable_decay", warmup_steps=5), 5, 1.0),
        (ScheduleSettings(kind="warmup_stable_decay", decay_fraction=0.2), 80, 1.0),
        (ScheduleSettings(kind="warmup_stable_decay", decay_fraction=0.2), 90, 0.5),
        (ScheduleSettings(kind="warmup_stable_decay", decay_fraction=0.2), 99, 0.05),
        (ScheduleSettings(kind="warmup_stable_decay", decay_fraction=1.0, warmup_steps=50), 49, 1.0),
        (ScheduleSettings(kind="warmup_stable_decay", decay_fraction=1.0, warmup_steps=50), 75, 0.5),
    ],
)
def test_schedules(schedule: ScheduleSettings, step: int, fraction: float) -> None:
    assert learning_rate_fraction(schedule, step, steps=100) == pytest.approx(fraction)


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine", "warmup_stable_decay"])
def test_a_run_that_is_all_warm_up_has_a_learning_rate(kind: str) -> None:
    schedule = ScheduleSettings(kind=kind, warmup_steps=5)  # type: ignore[arg-type]
    assert [learning_rate_fraction(schedule, step, steps=5) for step in range(5)] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert learning_rate_fraction(ScheduleSettings(kind=kind), 0, steps=1) > 0  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(8, 8), (4, 12), (12, 4)])
@pytest.mark.parametrize(("kind_of_ours", "tolerance"), [(MuonInFp32, 4e-3), (MuonOfParts, 8e-3)])
def test_our_muon_is_torch_s_but_for_rounding(shape: tuple[int, int], kind_of_ours: type[MuonInFp32], tolerance: float) -> None:
    """Two steps, so that momentum counts; bf16 has 8 bits, and where both round to them they differ twice as much."""
    torch.manual_seed(0)
    weights, gradients = torch.randn(shape), [torch.randn(shape) for _ in range(2)]
    found = []
    for kind in (torch.optim.Muon, kind_of_ours):
        parameter = torch.nn.Parameter(weights.clone())
        optimizer = kind([parameter], lr=0.1, weight_decay=0.2, momentum=0.9, adjust_lr_fn="original")
        for gradient in gradients:
            parameter.grad = gradient.clone()
            optimizer.step()
        found.append((parameter.detach() - weights, optimizer.state[parameter]["momentum_buffer"]))
    (theirs, their_momentum), (ours, our_momentum) = found
    torch.testing.assert_close(our_momentum, their_momentum)
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)


def test_what_is_orthogonalized_has_singular_values_near_one() -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalized(torch.randn(6, 10), iterations=5, epsilon=1e-7))
    assert values.min() > 0.6 and values.max() < 1.3
