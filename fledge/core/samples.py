"""What a model wrote while it was trained: `samples.jsonl` beside the metrics, so that report and board can show how it came to speak.

One JSON object per line: `step`, `prompt` (empty: a text of its own) and `text`. A run that continues cuts off what comes after its
checkpoint, as the metrics do. A disk that takes no more ends the record with a warning, not the run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fledge.core import console, disk
from fledge.core.errors import MachineError

SAMPLES = "samples.jsonl"


@dataclass(frozen=True)
class SampledText:
    """A prompt and how the model went on after so many steps."""

    step: int
    prompt: str
    text: str


class SampleRecord:
    """Appends to the file of a stage."""

    def __init__(self, folder: Path, keep_until_step: int) -> None:
        """Cuts off what was written after `keep_until_step`, and a torn last line."""
        self._path = folder / SAMPLES
        kept = "".join(f"{_line(one)}\n" for one in read_samples(folder) if one.step <= keep_until_step).encode("utf-8")
        self._is_open = True
        try:
            if self._path.is_file() and self._path.read_bytes() != kept:
                disk.write_bytes(self._path, kept)
        except MachineError as error:
            self._end(error)

    def append(self, samples: Sequence[SampledText]) -> None:
        """Write them, or warn once and write no more."""
        try:
            for one in samples if self._is_open else ():
                disk.append_line(self._path, _line(one))
        except MachineError as error:
            self._end(error)

    def _end(self, error: MachineError) -> None:
        self._is_open = False
        console.warn(f"no more samples go to {SAMPLES}: {error.problem} (the run goes on)")


def read_samples(folder: Path) -> list[SampledText]:
    """All samples of a stage in their order; lines that are none, such as a torn last one, are left out."""
    path = folder / SAMPLES
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    return [one for line in lines if (one := _parse(line)) is not None]


def _line(sample: SampledText) -> str:
    return json.dumps(asdict(sample), ensure_ascii=False)


def _parse(line: bytes) -> SampledText | None:
    try:
        sample = SampledText(**json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return None
    return sample if isinstance(sample.step, int) and isinstance(sample.prompt, str) and isinstance(sample.text, str) else None
