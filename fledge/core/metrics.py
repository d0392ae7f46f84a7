"""Figures of a training run, one record per step, into every sink that was asked for.

`metrics.jsonl` is the truth: one JSON object per line, `step` and `time` (Unix seconds) first, then flat names such as
`train/loss`; what is not a finite number is null; each line is one append, so at worst the last one is torn. TensorBoard's event
file is derived from it and written anew on resume, so that both always tell the same story. Weights & Biases only if asked for.

A sink that fails warns once and is dropped: a run of days does not end over a chart. What can be known before the first step (a
missing key or package) is refused then.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from fledge.core import console, disk, process
from fledge.core.errors import DataError, MachineError
from fledge.core.settings import MetricsSettings

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
WANDB_RUN = "wandb_run.json"
SOURCE_TOKENS = "train/source_tokens/"
"""What the figures begin with that say how many tokens a source, named behind it, has given so far."""

Record = dict[str, Any]
"""A line of metrics.jsonl: `step`, `time` and figures by name."""


class Sink(Protocol):
    """Takes records one by one. Raises MachineError if it cannot."""

    name: str

    def write(self, record: Record) -> None: ...

    def close(self) -> None: ...


class Metrics:
    """The open sinks of a run. Records nothing on ranks other than 0."""

    def __init__(self, sinks: Iterable[Sink]) -> None:
        self._sinks = list(sinks)

    def record(self, step: int, values: Mapping[str, float | int | None]) -> None:
        """Write one record; values may be anything `float` takes, and whole numbers stay whole."""
        assert not {"step", "time"} & values.keys(), "step and time are set here"
        record = {"step": step, "time": round(time.time(), 3), **{name: _finite(value) for name, value in values.items()}}
        for sink in tuple(self._sinks):
            try:
                sink.write(record)
            except MachineError as error:
                self._drop(sink, error)

    def close(self) -> None:
        """Write out what the sinks still hold."""
        for sink in tuple(self._sinks):
            try:
                sink.close()
            except MachineError as error:
                self._drop(sink, error)
        self._sinks.clear()

    def _drop(self, sink: Sink, error: MachineError) -> None:
        self._sinks.remove(sink)
        console.warn(f"no more metrics go to {sink.name}: {error.problem} (the run goes on)")

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open_metrics(folder: Path, settings: MetricsSettings, run_name: str, keep_until_step: int) -> Metrics:
    """Open the sinks of a stage in its folder; records after `keep_until_step` and a torn last line are cut off first.

    Raises MachineError, before anything is written, if Weights & Biases was asked for and cannot work.
    """
    require_sinks(settings)
    if not process.is_main():
        return Metrics([])
    kept = _cut(folder / METRICS, keep_until_step)
    sinks: list[Sink] = [_JsonLines(folder / METRICS)]
    if settings.tensorboard:
        sinks.append(_EventFile(folder / TENSORBOARD, kept))
    if settings.wandb != "off":
        sinks.append(_WeightsAndBiases(folder, settings, run_name))
    return Metrics(sinks)


def read_metrics(folder: Path) -> list[Record]:
    """Every record of a stage; a torn last line is left out, no file gives none. Raises DataError naming a damaged line."""
    path = folder / METRICS
    records, damaged_lines = _read(path)
    if damaged_lines:
        raise DataError(f"{path}:{damaged_lines[0]} is no record", "remove that line; the figures in it are lost")
    return records


def _read(path: Path) -> tuple[list[Record], list[int]]:
    """The records of a file and the numbers of its damaged lines. Only the last line can be torn: each is appended whole."""
    lines = path.read_bytes().split(b"\n") if path.is_file() else [b""]
    parsed = [parse_record(line) for line in lines]
    damaged_lines = [number for number, record in enumerate(parsed[:-1], start=1) if record is None]
    return [record for record in parsed if record is not None], damaged_lines


def parse_record(line: bytes) -> Record | None:
    """The record in a line; None if it holds none, such as a torn one."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # brackets by the thousand are a torn line, too
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) and "time" in record else None


def _cut(path: Path, keep_until_step: int) -> list[Record]:
    records, damaged_lines = _read(path)
    for number in damaged_lines:
        console.warn(f"{path}:{number} is damaged and left out")
    kept = [record for record in records if record["step"] <= keep_until_step]
    content = "".join(f"{_line(record)}\n" for record in kept).encode("utf-8")
    if path.is_file() and content != path.read_bytes():
        disk.write_bytes(path, content)
    return kept


def _line(record: Record) -> str:
    return json.dumps(record, ensure_ascii=False, allow_nan=False)


def _finite(value: float | int | None) -> float | int | None:
    if value is None:
        return None
    if isinstance(value, int):
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else None


class _JsonLines:
    """The truth: one line per record. What a full disk did not take is held and comes before the next record."""

    name = METRICS

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: list[str] = []

    def write(self, record: Record) -> None:
        self._held.append(_line(record))
        try:
            self._flush()
        except MachineError as error:
            if len(self._held) == 1:
                console.warn(f"{METRICS} waits for the disk: {error.problem}")

    def close(self) -> None:
        self._flush()

    def _flush(self) -> None:
        while self._held:
            disk.append_line(self._path, self._held[0])
            del self._held[0]


class _EventFile:
    """A TensorBoard event file, by tensorboard's own record writer over our own appends: no thread, nothing held back."""

    name = "TensorBoard"

    def __init__(self, folder: Path, records: Iterable[Record]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        # One run, one file: several would be read in the order of their names, and steps of a killed attempt would show twice.
        disk.remove(folder)
        started = time.time()
        path = folder / f"events.out.tfevents.{int(started):010d}.{socket.gethostname()}.{os.getpid()}.0"
        self._writer = RecordWriter(_Appender(path))
        self._writer.write(Event(wall_time=started, file_version="brain.Event:2").SerializeToString())
        for record in records:
            self.write(record)

    def write(self, record: Record) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        figures = [(name, value) for name, value in record.items() if name not in {"step", "time"} and value is not None]
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in figures])
        self._writer.write(Event(wall_time=record["time"], step=record["step"], summary=summary).SerializeToString())

    def close(self) -> None:
        """Nothing is held back."""


class _Appender:
    """The part of a file that tensorboard's record writer needs."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, content: bytes) -> None:
        disk.append_bytes(self._path, content)


def require_sinks(settings: MetricsSettings, section: str = "") -> None:
    """Raises MachineError, before any work, if the wandb that a section of the recipe asks for cannot be had."""
    option = f"{section}.metrics.wandb" if section else "metrics.wandb"
    if settings.wandb == "online" and not os.environ.get("WANDB_API_KEY"):
        raise MachineError(f"{option} is online, but WANDB_API_KEY is not set", f"set it, or use --no-wandb or {option}=offline")
    if settings.wandb == "off":
        return
    try:
        import wandb  # noqa: F401
    except ImportError as error:
        raise MachineError(f"{option} is {settings.wandb}, but wandb is not installed", "pip install wandb") from error


class _WeightsAndBiases:
    """A Weights & Biases run; a resumed stage goes on in the same one."""

    name = "Weights & Biases"

    def __init__(self, folder: Path, settings: MetricsSettings, run_name: str) -> None:
        import wandb

        start = partial(
            wandb.init,
            project=settings.wandb_project,
            name=run_name,
            id=_wandb_run_id(folder),
            dir=str(folder),
            mode=settings.wandb,
            resume="allow",
            settings=wandb.Settings(console="off", silent=True),
        )
        self._run = self._guarded(start)
        # Their own step counter refuses to go back, which a resumed run does.
        self._guarded(partial(self._run.define_metric, "*", step_metric="step"))

    def write(self, record: Record) -> None:
        figures = {name: value for name, value in record.items() if name != "time" and value is not None}
        self._guarded(partial(self._run.log, figures))

    def close(self) -> None:
        self._guarded(self._run.finish)

    def _guarded(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        # Some of wandb's own errors (a closed mailbox, a lost service) derive from nothing narrower, and none may end a run.
        except Exception as error:
            raise MachineError(f"wandb failed: {error}", "mend it, or use --no-wandb or metrics.wandb=offline") from error


def _wandb_run_id(folder: Path) -> str:
    path = folder / WANDB_RUN
    if not path.is_file():
        disk.write_json(path, {"id": secrets.token_hex(8)})
    return str(json.loads(path.read_text(encoding="utf-8"))["id"])
