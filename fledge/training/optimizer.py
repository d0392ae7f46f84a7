"""How weights follow gradients: parameter groups, AdamW or Muon, and the learning rate as a pure function of the step.

AdamW (Loshchilov and Hutter 2019) can take every parameter. Muon (Jordan et al. 2024) orthogonalises the momentum of a matrix, so
it is for matrices that map vectors to vectors: the body's. The embedding and the head are tables of tokens and stay with AdamW, as
do vectors. Weight decay is decoupled and for matrices only; decaying the gain of a norm means nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fledge.core.errors import CheckpointError
from fledge.training.layout import is_sharded, part_of, whole
from fledge.training.settings import AdamWSettings, MuonSettings, ScheduleSettings, TrainingSettings

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration (Jordan et al. 2024), as torch has them."""
_TOKEN_TABLES = ("model.embed_tokens.", "lm_head.")
_PEAK = "peak_learning_rate"


class MuonInFp32(torch.optim.Muon):
    """torch's Muon, but for the iteration, which is in fp32, and of matrices that may be cut.

    torch's is in bf16. A CPU without instructions for that takes 0.5 s for a matrix of 256 x 256, and ten seconds for a step of 3.4 million
    parameters that takes half a second in fp32 (AVX2, 2 cores). A cut matrix is put together for its iteration, one at a time, and
    each process orthogonalises all of it, as it does where nothing is cut; torch's would send it several times in every iteration.
    """

    iteration_dtype = torch.float32

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None, "the trainer computes the gradients"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter.grad)
                momentum = state["momentum_buffer"].lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
                rows, columns = parameter.shape
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                scale = math.sqrt(max(1, rows / columns))
                direction = orthogonalized(whole(update).to(self.iteration_dtype), group["ns_steps"], group["eps"])
                parameter.add_(part_of(direction.to(parameter.dtype), parameter), alpha=-group["lr"] * scale)


class MuonOfParts(MuonInFp32):
    """The same with the iteration in bf16, as in torch's."""

    iteration_dtype = torch.bfloat16


def orthogonalized(matrix: Tensor, iterations: int, epsilon: float) -> Tensor:
    """(rows, columns) -> the same with singular values near 1, by the Newton-Schulz iteration x <- a x + (b g + c g^2) x with g = x x^T."""
    a, b, c = _NEWTON_SCHULZ
    is_tall = matrix.size(0) > matrix.size(1)
    x: Tensor = matrix.T if is_tall else matrix
    x = x / x.norm().clamp(min=epsilon)
    for _ in range(iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if is_tall else x


_STATE_KEYS: dict[type[torch.optim.Optimizer], tuple[str, ...]] = {
    torch.optim.AdamW: ("step", "exp_avg", "exp_avg_sq"),
    torch.optim.Muon: ("momentum_buffer",),
    MuonInFp32: ("momentum_buffer",),
    MuonOfParts: ("momentum_buffer",),
}


@dataclass(frozen=True)
class ParameterGroups:
    """Every trainable parameter once, by name."""

    body_matrices: dict[str, nn.Parameter]
    other_matrices: dict[str, nn.Parameter]
    vectors: dict[str, nn.Parameter]


def group_parameters(model: nn.Module) -> ParameterGroups:
    """Sort the trainable parameters of a model; a tied head counts as the embedding it is."""
    groups = ParameterGroups({}, {}, {})
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim < 2:
            groups.vectors[name] = parameter
        elif parameter.ndim > 2 or name.startswith(_TOKEN_TABLES):
            groups.other_matrices[name] = parameter
        else:
            groups.body_matrices[name] = parameter
    return groups


class Optimizer:
    """One or two optimizers of torch as one, with a state that is a mapping of tensors by parameter name."""

    def __init__(self, optimizers: list[torch.optim.Optimizer], parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = dict(parameters)
        self._names = {id(parameter): name for name, parameter in parameters.items()}
        self._optimizers = optimizers
        self._keeps_gradient_memory = False
        for group in self._groups():
            group[_PEAK] = group["lr"]

    def step(self, learning_rate_fraction: float, applies: Tensor | None = None) -> None:
        """Apply the gradients, each group with this fraction of its peak learning rate.

        `applies`: () on the device; where it is false, no bit of the weights and the state changes, and nobody waits to know it.
        """
        for group in self._groups():
            group["lr"] = group[_PEAK] * learning_rate_fraction
        for optimizer in self._optimizers:
            if applies is None:
                optimizer.step()
            elif isinstance(optimizer, torch.optim.AdamW):
                _step_adamw_if(applies, optimizer)
            else:
                _step_muon_if(applies, optimizer)

    def keep_gradient_memory(self) -> None:
        """Let gradients stay at one place from now on, where passes add to them; a CUDA graph writes over tensors that it made itself."""
        for parameter in self._parameters.values():
            parameter.grad = torch.zeros_like(parameter)
        self._keeps_gradient_memory = True

    def clear_gradients(self) -> None:
        """Forget the gradients, and free their memory unless it is kept."""
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=not self._keeps_gradient_memory)

    def state(self) -> dict[str, Tensor]:
        """The state after the last step as `PARAMETER/KEY`, for example `lm_head.weight/exp_avg`; not a copy."""
        return {
            f"{self._names[id(parameter)]}/{key}": value
            for optimizer in self._optimizers
            for parameter, values in optimizer.state.items()
            for key, value in values.items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned, in a copy. Raises CheckpointError if it is not a state of this optimizer."""
        owners = {
            f"{self._names[id(parameter)]}/{key}": (optimizer, parameter, key)
            for optimizer in self._optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
            for key in _STATE_KEYS[type(optimizer)]
        }
        wrong = [f"{name} is missing" for name in owners if name not in state]
        wrong += [f"{name} is unknown" for name in state if name not in owners]
        wrong += [
            f"{name} is {tuple(state[name].shape)} and would be {tuple(parameter.shape)}"
            for name, (_, parameter, _) in owners.items()
            if name in state and state[name].ndim and state[name].shape != parameter.shape
        ]
        if wrong:
            given, own = ("Muon" if _is_muon(names) else "AdamW" for names in (state, owners))
            kinds = "" if given == own else f"it is {given}'s, this run's optimizer is {own}: "
            raise CheckpointError(
                f"the optimizer's state does not fit: {kinds}{wrong[0]}",
                "undo the change of optimizer or model, or start a new run from these weights with start_from, without keep: [optimizer]",
            )
        for name, (optimizer, parameter, key) in owners.items():
            # A number, such as the count of steps, is never cut.
            like = parameter if state[name].ndim else torch.empty(0, device=parameter.device)
            optimizer.state[parameter][key] = part_of(state[name], like)

    def _groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self._optimizers for group in optimizer.param_groups]


def make_optimizer(model: nn.Module, settings: TrainingSettings, has_fast_bf16: bool = True) -> Optimizer:
    """The optimizer that the settings name, over every trainable parameter of a model.

    Without `has_fast_bf16` nothing is computed in bf16, whatever torch does.
    """
    groups, chosen = group_parameters(model), settings.optimizer
    everything = {**groups.body_matrices, **groups.other_matrices, **groups.vectors}
    if isinstance(chosen, AdamWSettings):
        return Optimizer([_adamw({**groups.body_matrices, **groups.other_matrices}, groups.vectors, chosen, settings)], everything)
    in_bf16 = MuonOfParts if any(map(is_sharded, everything.values())) else torch.optim.Muon
    muon = (in_bf16 if has_fast_bf16 else MuonInFp32)(
        groups.body_matrices.values(),
        lr=chosen.matrix_learning_rate,
        weight_decay=chosen.matrix_weight_decay,
        momentum=chosen.momentum,
        # sqrt(max(1, rows / columns)): the update's spectral norm, and so the learning rate, is that of Jordan's own experiments.
        adjust_lr_fn="original",
    )
    return Optimizer([muon, _adamw(groups.other_matrices, groups.vectors, chosen, settings)], everything)


def learning_rate_fraction(schedule: ScheduleSettings, step: int, steps: int) -> float:
    """Fraction of the peak learning rate for the step after `step` of `steps` steps.

    The warm-up's step k (from 0) has (k + 1) / warmup_steps, so the first step already learns. A fall starts at 1 and reaches
    final_fraction at `steps`, one step after the last.
    """
    start = schedule.warmup_of(steps)
    if step < start:
        return (step + 1) / start
    if schedule.kind == "warmup_stable_decay":
        start = max(start, steps - round(schedule.decay_fraction * steps))
    if schedule.kind == "constant" or step < start:
        return 1.0
    progress = min(1.0, (step - start) / max(1, steps - start))
    height = (1 + math.cos(math.pi * progress)) / 2 if schedule.kind == "cosine" else 1 - progress
    return schedule.final_fraction + (1 - schedule.final_fraction) * height


def _step_adamw_if(applies: Tensor, optimizer: torch.optim.AdamW) -> None:
    """By what torch's fused kernel has for scaled gradients: it reads a flag on the device."""
    optimizer.found_inf = (~applies).float()  # type: ignore[attr-defined]
    try:
        optimizer.step()
    finally:
        del optimizer.found_inf  # type: ignore[attr-defined]


def _step_muon_if(applies: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Muon knows no such flag: what it changed is put back where it must not apply, so one matrix at a time has a copy."""
    (group,) = optimizer.param_groups
    parameters = group["params"]
    for parameter in parameters:
        group["params"] = [parameter]
        state = optimizer.state[parameter]
        before = [value.detach().clone() for value in (parameter, *state.values())]
        optimizer.step()
        # A momentum that was not there before begins at zero.
        before += [torch.zeros_like(value) for value in [parameter, *state.values()][len(before) :]]
        for value, old in zip((parameter, *state.values()), before, strict=True):
            value.detach().copy_(torch.where(applies, value.detach(), old))
    group["params"] = parameters


def _is_muon(names: Iterable[str]) -> bool:
    """Whether a state with these names is of Muon and AdamW together."""
    return any(name.endswith("/momentum_buffer") for name in names)


def _adamw(
    decayed: Mapping[str, nn.Parameter],
    undecayed: Mapping[str, nn.Parameter],
    moments: AdamWSettings | MuonSettings,
    settings: TrainingSettings,
) -> torch.optim.AdamW:
    parts = ((decayed, settings.weight_decay), (undecayed, 0.0))
    return torch.optim.AdamW(
        [{"params": list(group.values()), "weight_decay": decay} for group, decay in parts if group],
        lr=settings.learning_rate,
        betas=(moments.beta1, moments.beta2),
        eps=moments.epsilon,
        fused=True,
    )
