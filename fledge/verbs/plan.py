"""`fledge plan RECIPE`: what a run will take, said before anything is made; as tables for people or as JSON for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from fledge.core import console
from fledge.core.console import format_bytes, format_count, format_seconds
from fledge.core.errors import ConfigError
from fledge.model.cost import parameter_count
from fledge.model.settings import ModelConfig
from fledge.stages.run import Run
from fledge.training.devices import DEVICES, Device, find_devices
from fledge.training.forecast import loss_by_law
from fledge.verbs.corpus_space import DiskUse
from fledge.verbs.levers import Lever, levers
from fledge.verbs.planning import DeviceForecast, RunPlan, StagePlan, StageWork, Work, plan_run, plan_work


def plan(run: Run, device: str | None, rate: float | None, as_json: bool, elsewhere: bool = False) -> None:
    """Print the plan; `device` chooses from the table of devices, `rate` is the price of an hour, `elsewhere` leaves this machine out.

    Raises ConfigError if there is no such device, or nothing to train.
    """
    if elsewhere:
        _say_work(plan_work(run, _chosen(device), rate), as_json)
        return
    found = plan_run(run, _chosen(device), rate)
    first = found.stages[0]
    changes = list(levers(found, first, run.recipe.section(first.stage).optimizer.kind))
    if as_json:
        console.say(json.dumps(_plain(found, changes), indent=2))
        return
    _say_model(found)
    _say_stages(found.stages)
    _say_memory(found.stages)
    _say_disk(found.disk)
    _say_levers(changes, first)
    _say_devices(found.devices, first, rate)
    _say_loss(found.config, found.stages)
    for warning in found.warnings:
        console.warn(warning.text)


def _chosen(name: str | None) -> tuple[Device, ...]:
    if name is None:
        return DEVICES
    found = find_devices(name)
    if not found:
        raise ConfigError(f"there is no device {name!r} in the table", f"name one of {', '.join(device.name for device in DEVICES)}")
    return found


def _say_work(work: Work, as_json: bool) -> None:
    if as_json:
        stages = [asdict(one) for one in work.stages]
        figures = {"parameters": parameter_count(work.config), "vocabulary_size": work.config.vocabulary_size}
        console.say(json.dumps({**figures, "stages": stages, "devices": _plain_devices(work.devices)}, indent=2))
        return
    console.say(f"{parameter_count(work.config):,} parameters, vocabulary {work.config.vocabulary_size:,}")
    rows = [
        [
            one.stage,
            f"{one.length.steps:,}",
            format_count(one.length.tokens),
            f"{one.length.batch_rows} x {one.length.row_tokens:,}",
            f"{one.flops_per_token / 1e6:,.1f}",
            f"{one.length.tokens * one.flops_per_token:.2e}",
        ]
        for one in work.stages
    ]
    console.table("\nStages", ["stage", "steps", "tokens", "batch", "MFLOP/token", "FLOP"], rows)
    _say_devices(work.devices, work.stages[0], None)
    _say_loss(work.config, work.stages)


def _say_loss(config: ModelConfig, stages: Sequence[StageWork]) -> None:
    """What a scaling law expects of new text; a stage that starts from a checkpoint has seen more."""
    bounds = loss_by_law(config, stages[0].length.tokens) if stages[0].stage == "pretrain" else None
    if bounds is not None:
        low, high = bounds
        perplexities = f"perplexity {math.exp(low):,.0f} to {math.exp(high):,.0f}"
        console.say(f"loss of pretrain to expect on new text like its own: {low:.2f} to {high:.2f} ({perplexities}), see docs/training.md")


def _say_model(found: RunPlan) -> None:
    machine = found.machine
    how = ", ".join([machine.precision, *(["compiled"] if machine.compiled else []), f"{machine.threads} threads"])
    parameters, entries = parameter_count(found.config), found.config.vocabulary_size
    console.say(f"{parameters:,} parameters, vocabulary {entries:,}; on this {found.device.type}: {how}")


def _say_stages(stages: Iterable[StagePlan]) -> None:
    columns = ["stage", "steps", "tokens", "epochs", "batch", "rows at once", "MFLOP/token", "tokens/s", "time", "speed is"]
    rows = [
        [
            one.stage,
            f"{one.length.steps:,}",
            format_count(one.length.tokens),
            "" if one.epochs is None else f"{one.epochs:.2f}",
            f"{one.length.batch_rows} x {one.length.row_tokens:,}",
            f"{one.batch.rows}" if one.fits else "none fits",
            f"{one.flops_per_token / 1e6:,.1f}",
            format_count(one.tokens_per_second),
            format_seconds(one.seconds),
            "measured here" if one.is_measured else "assumed",
        ]
        for one in stages
    ]
    console.table("\nStages on this machine", columns, rows)
    console.say(f"training together: {format_seconds(sum(one.seconds for one in stages))}")


def _say_memory(stages: Sequence[StagePlan]) -> None:
    columns = ["stage", "process", "weights", "gradients", "optimizer", "activations", "workspace", "tokens", "heap", "peak", "of"]
    rows = []
    for one in stages:
        parts = list(asdict(one.memory).values())
        rows.append([one.stage, *(format_bytes(part) if part else "" for part in (*parts, one.memory.total, one.available_bytes))])
    console.table("\nPeak memory at the longest rows (workspace: logits of a chunk, or a layer's gradients)", columns, rows)


def _say_disk(uses: Sequence[DiskUse]) -> None:
    rows = [[use.what, "?" if use.size_bytes is None else format_bytes(use.size_bytes), use.how] for use in uses]
    console.table("\nDisk at the largest moment", ["what", "size", "how it is known"], rows)
    known = [use.size_bytes for use in uses if use.size_bytes is not None]
    console.say(f"together: {format_bytes(sum(known))}" + ("" if len(known) == len(uses) else " and what is not known"))


def _say_levers(changes: Iterable[Lever], stage: StagePlan) -> None:
    rows = [
        [
            lever.name,
            "" if lever.memory is None else format_bytes(lever.memory.total),
            "" if lever.memory is None else f"{lever.memory.total / stage.memory.total - 1:+.0%}",
            "" if lever.speed is None else f"{lever.speed:.2f}",
            lever.how,
        ]
        for lever in changes
    ]
    title = f"\nWhat else {stage.stage} could do, with {stage.batch.rows} rows at once (memory computed)"
    console.table(title, ["change", "peak", "memory", "speed", "speed is"], rows)


def _say_devices(forecasts: Sequence[DeviceForecast], first: StageWork, rate: float | None) -> None:
    columns = ["device", "memory", "precision", "fits", "rows at once", "peak", f"tokens/s of {first.stage}", "time", "price"]
    rows = [
        [
            one.device.name,
            format_bytes(one.device.memory_bytes),
            one.device.precision,
            "no" if one.batch_rows is None else "yes",
            "" if one.batch_rows is None else f"{one.batch_rows}",
            format_bytes(one.peak_bytes),
            format_count(one.tokens_per_second),
            format_seconds(one.seconds),
            f"{'$' if rate is None else ''}{one.price:,.2f}",
        ]
        for one in forecasts
    ]
    assumed = "share of the peak" if rate is not None else "share of the peak and price of an hour"
    console.table(f"\nThe same training on one of these (assumed {assumed}, see docs/training.md)", columns, rows)


def _plain_devices(forecasts: Iterable[DeviceForecast]) -> list[dict[str, Any]]:
    return [
        {**asdict(one), "device": one.device.name, "precision": one.device.precision, "fits": one.batch_rows is not None}
        for one in forecasts
    ]


def _plain(found: RunPlan, changes: Sequence[Lever]) -> dict[str, Any]:
    return {
        "parameters": parameter_count(found.config),
        "vocabulary_size": found.config.vocabulary_size,
        "device": str(found.device),
        "machine": asdict(found.machine),
        "stages": [{**asdict(one), "tokens_per_second": one.tokens_per_second, "peak_bytes": one.memory.total} for one in found.stages],
        "disk": [asdict(use) for use in found.disk],
        "levers": [{**asdict(one), "peak_bytes": one.memory and one.memory.total} for one in changes],
        "devices": _plain_devices(found.devices),
        "warnings": [warning.text for warning in found.warnings],
    }
