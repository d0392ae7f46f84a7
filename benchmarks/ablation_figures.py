"""What the runs of `superbpe_ablation.py` show: records of Fledge's metrics.jsonl -> [clock, curve] -> time to equal bits per byte.

The time of an arm is the steps of each phase times the lower quartile of their durations, over all rounds: validations and saves do not
count, nor does what happens once, such as compiling a shape at its first step. What else the machine does only ever adds time, and a
training that took turns has a long step for each.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any


@dataclass(frozen=True)
class ArmRun:
    """One training of an arm."""

    seed: int
    phase_steps: tuple[int, ...]
    step_seconds: tuple[float, ...]
    """Of every step, as Fledge counts them."""
    curve: tuple[tuple[int, float], ...]
    """(step, bits per byte of the held-out text), ascending."""
    tokens: int

    @property
    def final_bits_per_byte(self) -> float:
        """After all bytes."""
        return self.curve[-1][1]


def read_run(records: Sequence[Mapping[str, Any]], phase_steps: Sequence[int], seed: int) -> ArmRun:
    """From the records of a stage that logs every step."""
    steps = [record for record in records if "train/tokens_per_second" in record]
    tokens = [0, *(record["train/tokens"] for record in steps)]
    seconds = [
        (after - before) / record["train/tokens_per_second"] for before, after, record in zip(tokens, tokens[1:], steps, strict=False)
    ]
    curve = [(record["step"], record["validation/bits_per_byte"]) for record in records if "validation/bits_per_byte" in record]
    assert len(seconds) == sum(phase_steps), "every step is logged"
    return ArmRun(seed, tuple(phase_steps), tuple(seconds), tuple(curve), tokens[-1])


def clock(runs: Sequence[ArmRun]) -> list[float]:
    """Seconds of training after 0, 1, 2, ... steps of an arm, from all of its runs."""
    durations, begin = list[float](), 0
    for steps in runs[0].phase_steps:
        measured = sorted(seconds for run in runs for seconds in run.step_seconds[begin : begin + steps])
        durations += [measured[(len(measured) - 1) // 4]] * steps
        begin += steps
    return list(accumulate(durations, initial=0.0))


def seconds_to(target: float, curve: Sequence[tuple[int, float]], seconds_after: Sequence[float]) -> float | None:
    """When the bits per byte first are at the target or below, on straight lines between validations; None: never."""
    before: tuple[float, float] | None = None
    for step, bits in curve:
        now = seconds_after[step]
        if bits <= target:
            if before is None:
                return now
            then, bits_then = before
            return then + (now - then) * (bits_then - target) / (bits_then - bits)
        before = (now, bits)
    return None


def arm_figures(runs: Sequence[ArmRun], plain: Sequence[ArmRun], tokens_per_byte: float) -> dict[str, Any]:
    """Of one arm, beside the plain runs of the same seeds, whose last bits per byte are the target."""
    seconds_after = clock(runs)
    seconds, plain_seconds = seconds_after[-1], clock(plain)[-1]
    targets = {run.seed: run.final_bits_per_byte for run in plain}
    reached = [seconds_to(targets[run.seed], run.curve, seconds_after) for run in runs if run.seed in targets]
    times = [time for time in reached if time is not None]
    # An arm counts as there only if most of its rounds got there.
    to_target = statistics.median(times) if len(times) * 2 > len(reached) else None
    tokens = statistics.median(run.tokens for run in runs)
    return {
        "final_bits_per_byte": [round(run.final_bits_per_byte, 4) for run in runs],
        "tokens_per_byte": round(tokens_per_byte, 4),
        "steps": sum(runs[0].phase_steps),
        "tokens": tokens,
        "bytes": round(tokens / tokens_per_byte),
        "training_seconds": round(seconds, 2),
        "uncut_seconds": [round(sum(run.step_seconds), 2) for run in runs],
        "tokens_per_second": round(tokens / seconds),
        "bytes_per_second": round(tokens / tokens_per_byte / seconds),
        "phase_step_seconds": _typical_steps(runs[0].phase_steps, seconds_after),
        "seconds_to_plain_end": None if to_target is None else round(to_target, 2),
        "times_as_fast": None if to_target is None else round(plain_seconds / to_target, 3),
        "rounds_that_got_there": [time is not None for time in reached],
        "curves": [[[round(seconds_after[step], 2), round(bits, 4)] for step, bits in run.curve] for run in runs],
    }


def _typical_steps(phase_steps: Sequence[int], seconds_after: Sequence[float]) -> list[float]:
    ends = list(accumulate(phase_steps))
    return [round(seconds_after[end] - seconds_after[end - 1], 4) for end in ends]


def table(arms: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The arms as lines of Markdown."""
    plain = arms["plain"]
    lines = [
        "| arm | bits per byte at the end | tokens per byte | steps | bytes/s | seconds to plain's end | times as fast |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in arms.items():
        pace = one["bytes_per_second"] / plain["bytes_per_second"]
        bits = " / ".join(f"{value:.4f}" for value in one["final_bits_per_byte"])
        there = one["seconds_to_plain_end"]
        seconds, ratio = ("not reached", "-") if there is None else (f"{there:,.1f}", f"{one['times_as_fast']:.2f}")
        speed = f"{one['bytes_per_second']:,} ({pace:.2f}x)"
        lines.append(f"| {name} | {bits} | {one['tokens_per_byte']:.3f} | {one['steps']:,} | {speed} | {seconds} | {ratio} |")
    return lines
