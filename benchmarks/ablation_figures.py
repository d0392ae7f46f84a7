"""What the runs of `superbpe_ablation.py` show: records of Fledge's metrics.jsonl -> [clock, curve] -> time to equal bits per byte.

The time of an arm is the steps of each phase times the lower quartile of what steps of that shape took, in all arms of its precision and
all rounds: validations and saves do not count, nor does what happens once, such as compiling a shape at its first step. What else the
machine does only ever adds time, and a training that took turns has a long step for each.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

Shape = tuple[int, int]
"""(rows, tokens per row) of a batch."""


@dataclass(frozen=True)
class ArmRun:
    """One training of an arm."""

    seed: int
    precision: str
    phases: tuple[tuple[int, Shape], ...]
    """(steps, shape), in their order."""
    step_seconds: tuple[float, ...]
    """Of every step, as Fledge counts them."""
    curve: tuple[tuple[int, float], ...]
    """(step, bits per byte of the held-out text), ascending."""
    tokens: int

    @property
    def final_bits_per_byte(self) -> float:
        """After all bytes."""
        return self.curve[-1][1]


def read_run(records: Sequence[Mapping[str, Any]], phases: Sequence[Mapping[str, Any]], seed: int, precision: str) -> ArmRun:
    """From the records of a stage that logs every step, and the phases of its plan.json."""
    steps = [record for record in records if "train/tokens_per_second" in record]
    tokens = [0, *(record["train/tokens"] for record in steps)]
    seconds = [
        (after - before) / record["train/tokens_per_second"] for before, after, record in zip(tokens, tokens[1:], steps, strict=False)
    ]
    curve = [(record["step"], record["validation/bits_per_byte"]) for record in records if "validation/bits_per_byte" in record]
    shapes = tuple((phase["steps"], (phase["batch_rows"], phase["row_tokens"])) for phase in phases)
    assert len(seconds) == sum(steps for steps, _ in shapes), "every step is logged"
    return ArmRun(seed, precision, shapes, tuple(seconds), tuple(curve), tokens[-1])


def typical_seconds(runs: Sequence[ArmRun]) -> dict[tuple[str, Shape], float]:
    """Of a step, by precision and shape."""
    measured: dict[tuple[str, Shape], list[float]] = {}
    for run in runs:
        begin = 0
        for steps, shape in run.phases:
            measured.setdefault((run.precision, shape), []).extend(run.step_seconds[begin : begin + steps])
            begin += steps
    return {shape: sorted(seconds)[(len(seconds) - 1) // 4] for shape, seconds in measured.items()}


def clock(run: ArmRun, typical: Mapping[tuple[str, Shape], float]) -> list[float]:
    """Seconds of training after 0, 1, 2, ... steps."""
    return list(accumulate((typical[run.precision, shape] for steps, shape in run.phases for _ in range(steps)), initial=0.0))


def amount_to(target: float, curve: Sequence[tuple[int, float]], after: Sequence[float]) -> float | None:
    """Of something that is `after[step]` after each step, such as seconds: how much it is when the bits per byte first are at the target
    or below, on straight lines between validations; None: never.
    """
    before: tuple[float, float] | None = None
    for step, bits in curve:
        now = after[step]
        if bits <= target:
            if before is None:
                return now
            then, bits_then = before
            return then + (now - then) * (bits_then - target) / (bits_then - bits)
        before = (now, bits)
    return None


def arm_figures(
    runs: Sequence[ArmRun], plain: Sequence[ArmRun], typical: Mapping[tuple[str, Shape], float], tokens_per_byte: float
) -> dict[str, Any]:
    """Of one arm, beside the plain runs of the same seeds, whose last bits per byte are the target."""
    seconds_after = clock(runs[0], typical)
    seconds, plain_seconds = seconds_after[-1], clock(plain[0], typical)[-1]
    targets = {run.seed: run.final_bits_per_byte for run in plain}
    tokens = runs[0].tokens
    steps = len(runs[0].step_seconds)
    bytes_after = [tokens / tokens_per_byte * step / steps for step in range(steps + 1)]
    reached = [amount_to(targets[run.seed], run.curve, seconds_after) for run in runs]
    to_target = _of_most(reached)
    text_to_target = _of_most([amount_to(targets[run.seed], run.curve, bytes_after) for run in runs])
    return {
        "final_bits_per_byte": [round(run.final_bits_per_byte, 4) for run in runs],
        "tokens_per_byte": round(tokens_per_byte, 4),
        "steps": steps,
        "tokens": tokens,
        "bytes": round(tokens / tokens_per_byte),
        "training_seconds": round(seconds, 2),
        "uncut_seconds": [round(sum(run.step_seconds), 2) for run in runs],
        "tokens_per_second": round(tokens / seconds),
        "bytes_per_second": round(tokens / tokens_per_byte / seconds),
        "phase_step_seconds": [round(typical[runs[0].precision, shape], 4) for _, shape in runs[0].phases],
        "bytes_to_plain_end": None if text_to_target is None else round(text_to_target),
        "seconds_to_plain_end": None if to_target is None else round(to_target, 2),
        "times_as_fast": None if to_target is None else round(plain_seconds / to_target, 3),
        "rounds_that_got_there": [time is not None for time in reached],
        "curves": [[[round(seconds_after[step], 2), round(bits, 4)] for step, bits in run.curve] for run in runs],
    }


def _of_most(amounts: Sequence[float | None]) -> float | None:
    """The median of the rounds that got there, if they are most."""
    there = [amount for amount in amounts if amount is not None]
    return statistics.median(there) if len(there) * 2 > len(amounts) else None


def table(arms: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The arms as lines of Markdown."""
    plain = arms["plain"]
    lines = [
        "| arm | bits per byte at the end | tokens per byte | bytes/s | MB to plain's end | seconds to plain's end | times as fast |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in arms.items():
        pace = one["bytes_per_second"] / plain["bytes_per_second"]
        bits = " / ".join(f"{value:.4f}" for value in one["final_bits_per_byte"])
        speed = f"{one['bytes_per_second']:,} ({pace:.2f}x)"
        there = ("not reached", "not reached", "-")
        if one["seconds_to_plain_end"] is not None:
            there = (f"{one['bytes_to_plain_end'] / 1e6:.2f}", f"{one['seconds_to_plain_end']:,.1f}", f"{one['times_as_fast']:.2f}")
        lines.append(f"| {name} | {bits} | {one['tokens_per_byte']:.3f} | {speed} | {' | '.join(there)} |")
    return lines
