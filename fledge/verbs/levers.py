"""What each way to save memory or time would do to a planned stage, here: plan -> [levers] -> one table.

Memory is computed. Speed is the whole step's against the plan's: measured by a pass where that is quick, else what was measured elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from fledge.model.cost import flops_per_token
from fledge.model.float8 import has_float8
from fledge.model.llama import Llama
from fledge.model.memory import MemoryBytes, MicroBatch, OptimizerKind, training_memory
from fledge.model.precision import fit_precisions, measure_product
from fledge.model.settings import LoraSettings
from fledge.training.devices import DEVICES
from fledge.training.forecast import COMPILED_SPEEDUP
from fledge.training.objectives import NextToken
from fledge.training.parallel import Machine
from fledge.training.probe import measure_pass, random_batch
from fledge.verbs.planning import RunPlan, StagePlan

CHECKPOINTING_SPEED = {"none": 1.0, "selective": 0.9, "full": 0.75}
"""full computes the forward pass, a third of the work, once more; selective the cheap part of it."""
FLOAT8_SPEED = {768: 0.96, 1024: 1.04}
"""On an H200, by width (benchmarks/results/train_gpu-H200.json)."""
DENSE_MASK_SPEED = 0.85
"""torch's fused attention with a mask does not skip what the mask forbids; of a step with rows of 1,024 tokens, as assumed."""
LEVER_SECONDS = 8.0
"""For all passes that measure levers."""


@dataclass(frozen=True)
class Lever:
    """One change of how a stage computes."""

    name: str
    memory: MemoryBytes | None
    """None where this device cannot do it."""
    speed: float | None
    """Of a step, against the plan; None if unknown."""
    how: str
    """Whether the speed was measured here, measured elsewhere or estimated."""


MakeLever = Callable[[str, MicroBatch, float | None, str], Lever]
"""(name, what is computed at once, speed, how that is known) -> a lever with its memory."""


def levers(plan: RunPlan, stage: StagePlan, optimizer: OptimizerKind) -> Iterator[Lever]:
    """The plan itself and one change at a time."""
    batch, config = stage.batch, plan.config
    model = _model_to_measure(plan, stage)

    def of(name: str, changed: MicroBatch, speed: float | None, how: str) -> Lever:
        return Lever(name, training_memory(config, changed, optimizer, stage.memory.tokens), speed, how)

    yield of("as planned", batch, 1.0, "")
    factor = COMPILED_SPEEDUP.get(batch.device, 1.0)
    other = replace(batch, compiled=not batch.compiled)
    said = "1.1 to 1.3, measured on a CPU" if batch.device == "cpu" else "measured on an H200"
    yield of("not compiled" if batch.compiled else "compiled", other, 1 / factor if batch.compiled else factor, said)
    yield from _checkpointing(plan, batch, model, of)
    yield from _precisions(plan, batch, of)
    if batch.lora is None:
        lora = LoraSettings()
        changed = replace(batch, lora=lora)
        flops = [flops_per_token(config, batch.row_tokens, chosen) for chosen in (None, lora)]
        yield Lever(
            f"LoRA, rank {lora.rank}",
            training_memory(config, changed, "adamw", stage.memory.tokens),
            flops[0] / flops[1],
            "estimated from the FLOPs",
        )
    yield from _masks(plan, batch, model, of)


def _model_to_measure(plan: RunPlan, stage: StagePlan) -> Llama | None:
    """A fresh model, where a row takes little enough time for half a dozen passes."""
    is_quick = stage.is_measured and stage.step.row * 12 < LEVER_SECONDS
    return Llama(plan.config, 0).to(plan.device) if is_quick and not plan.machine.compiled else None


def _row_seconds(plan: RunPlan, model: Llama, batch: MicroBatch, machine: Machine | None = None) -> float:
    rows = random_batch(1, batch.row_tokens, plan.config.vocabulary_size, batch.isolate_documents, False, plan.device)
    model.model.activation_checkpointing = batch.activation_checkpointing
    return measure_pass(model, NextToken(), machine or plan.machine, rows)


def _checkpointing(plan: RunPlan, batch: MicroBatch, model: Llama | None, of: MakeLever) -> Iterator[Lever]:
    now = _row_seconds(plan, model, batch) if model is not None else None
    for how in ("none", "selective", "full"):
        if how == batch.activation_checkpointing:
            continue
        changed = replace(batch, activation_checkpointing=how)
        if model is not None and now is not None:
            yield of(f"activation checkpointing {how}", changed, now / _row_seconds(plan, model, changed), "measured here")
        else:
            speed = CHECKPOINTING_SPEED[how] / CHECKPOINTING_SPEED[batch.activation_checkpointing]
            yield of(f"activation checkpointing {how}", changed, speed, "estimated")


def _precisions(plan: RunPlan, batch: MicroBatch, of: MakeLever) -> Iterator[Lever]:
    capability = torch.cuda.get_device_capability(plan.device) if plan.device.type == "cuda" else None
    fit = fit_precisions(plan.device.type, capability, has_float8())
    for precision in ("fp32", "bf16", "fp8"):
        if precision == batch.precision:
            continue
        if precision not in fit:
            yield Lever(precision, None, None, f"not on this {plan.device.type}" + ("" if has_float8() else " without torchao"))
            continue
        changed = replace(batch, precision=precision)
        if plan.device.type == "cpu":
            seconds = {name: measure_product(dtype).seconds for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))}
            yield of(precision, changed, seconds[batch.precision] / seconds[precision], "measured here, of products alone")
        elif precision == "fp8":
            width = min(FLOAT8_SPEED, key=lambda known: abs(known - plan.config.settings.hidden_size))
            yield of(precision, changed, FLOAT8_SPEED[width], f"measured on an H200 at width {width}")
        else:
            peaks = DEVICES[-1].peak_flops
            factor = peaks["fp32"] / peaks["bf16"]
            yield of(precision, changed, factor if precision == "fp32" else 1 / factor, "estimated from the peaks of an H200")


def _masks(plan: RunPlan, batch: MicroBatch, model: Llama | None, of: MakeLever) -> Iterator[Lever]:
    """Attention over whole rows, which flash attention does, against documents apart."""
    changed = replace(batch, isolate_documents=not batch.isolate_documents)
    name = "documents not isolated (flash attention)" if batch.isolate_documents else "documents isolated"
    if model is not None:
        whole = replace(batch, activation_checkpointing="none")
        apart, speed = _row_seconds(plan, model, whole), _row_seconds(plan, model, replace(changed, activation_checkpointing="none"))
        yield of(name, changed, apart / speed, "measured here")
    elif batch.compiled or batch.device == "cpu":
        yield of(name, changed, 1.0, "measured on an H200 (flex attention: 0.99)")
    else:
        yield of(name, changed, 1 / DENSE_MASK_SPEED if batch.isolate_documents else DENSE_MASK_SPEED, "estimated, of a dense mask")
