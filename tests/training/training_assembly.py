"""Toy data and the assembly of a run from its parts, as the training stages do it; also run as a program, by several processes.

python training_assembly.py FOLDER JSON      trains what the JSON lists and writes FOLDER/NAME-result-RANK.json
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmark_rows import BENCHMARK_ROWS

from fledge.core import artifact
from fledge.core.artifact import Artifact, Request
from fledge.core.errors import DataError
from fledge.core.metrics import open_metrics
from fledge.core.process import StopSignals
from fledge.core.samples import SampleRecord
from fledge.core.settings import MetricsSettings
from fledge.corpus.document import Content, Split
from fledge.evaluation.benchmarks.places import find_benchmark
from fledge.evaluation.benchmarks.run import read_questions
from fledge.evaluation.settings import EvaluateSettings
from fledge.model.adapters import add_adapter
from fledge.model.cost import parameter_count
from fledge.model.llama import Llama
from fledge.model.settings import Adapter, LoraSettings, ModelConfig, ModelSettings
from fledge.stages.making.benchmarks import asking
from fledge.tokens.shard_format import TokenSetMeta, record_shards, token_array
from fledge.tokens.shard_writer import Segment, ShardWriter
from fledge.tokens.shards import TokenSet, open_token_set
from fledge.training.batches import BatchLoader, Scores, open_rows, rows_at_once
from fledge.training.checkpoint import kept_start, load_kept_optimizer, resume
from fledge.training.figures import Gauge
from fledge.training.guard import LeftOut
from fledge.training.layout import whole
from fledge.training.objectives import make_objective
from fledge.training.observers import AskBenchmarks, BenchmarkFigure, Log, Sample, Validate
from fledge.training.optimizer import make_optimizer
from fledge.training.parallel import open_world, settle_machine
from fledge.training.phases import make_plan
from fledge.training.plan import FROM_THE_BEGINNING
from fledge.training.preparation import choose_computation
from fledge.training.saving import CheckpointWriter
from fledge.training.score import read_scores, score_preferences, write_scores
from fledge.training.settings import AdamWSettings, MuonSettings, NextTokenSettings, PreferenceSettings, ScheduleSettings, TrainingSettings
from fledge.training.trainer import Trainer
from fledge.verbs import launching

VOCABULARY = 128
END_OF_TEXT, PADDING = 100, 103
ROW_TOKENS = 24
MODEL = ModelConfig(
    ModelSettings(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, max_position_embeddings=64),
    VOCABULARY,
    begin_token_id=END_OF_TEXT,
)
REQUEST = Request("training", {"name": "toy"})
SPLITS: tuple[Split, ...] = ("train", "validation")


class ToyTokenizer:
    """A token per byte."""

    sha256, vocabulary_size, opening, document_start = "ab" * 32, VOCABULARY, (), (END_OF_TEXT,)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [[byte % END_OF_TEXT for byte in text.encode()] for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))


def write_token_set(folder: Path, content: Content, sizes: Mapping[str, int], seed: int = 0) -> TokenSet:
    """A token set with so many documents, conversations or pairs per source in training, and a third as many in validation."""
    random = np.random.default_rng(seed)
    meta = TokenSetMeta(content, "ab" * 32, VOCABULARY - 24, None if content == "documents" else ROW_TOKENS)
    for split in SPLITS:
        shards = []
        for source, size in sizes.items():
            writer = ShardWriter(folder, split, source, meta)
            for number in range(size if split == "train" else max(1, size // 3)):
                append(writer, content, meta, f"{source}-{number}", random)
            shards.append(writer.close())
        record_shards(folder, replace(meta, shards=tuple(shards)))
    return open_token_set(folder)


def append(writer: ShardWriter, content: Content, meta: TokenSetMeta, name: str, random: np.random.Generator) -> None:
    """One document, one row with one or two conversations, or one row with one pair; texts repeat a few tokens, so they can be learned."""
    if content == "documents":
        ids = [END_OF_TEXT, *words(random, int(random.integers(1, 40)))]
        writer.append(Segment(name, token_array(ids, meta), len(ids) - 1))
        return
    lengths = [int(random.integers(5, 12)) for _ in range(2 if content == "preferences" else int(random.integers(1, 3)))]
    for length in lengths:
        supervised = np.array([0, 0, 0] + [1] * (length - 3), dtype=np.uint8)
        damage = "cut" if content == "preferences" else None
        writer.append(Segment(name, token_array(words(random, length), meta), length - 3, supervised, damage))
    writer.pad(PADDING, ROW_TOKENS - sum(lengths))


def words(random: np.random.Generator, count: int) -> list[int]:
    start = int(random.integers(0, 90))
    return [(start + 3 * place) % 97 for place in range(count)]


def training_settings(**changes: Any) -> TrainingSettings:
    """A short run in fp32 on one thread, without TensorBoard; phases and a budget take the place of its steps."""
    defaults: dict[str, Any] = {
        "steps": 8,
        "batch_rows": 8,
        "sequence_length": 16,
        "learning_rate": 3e-3,
        "schedule": ScheduleSettings(kind="cosine", warmup_steps=2),
        "device": "cpu",
        "precision": "fp32",
        "threads": 1,
        "log_every_steps": 1,
        "metrics": MetricsSettings(tensorboard=False),
    }
    if changes.get("phases") or changes.get("budget"):
        defaults["steps"] = None
    return TrainingSettings(**{**defaults, **changes})


@contextlib.contextmanager
def assembled(
    folder: Path,
    settings: TrainingSettings,
    token_sets: Sequence[TokenSet],
    scores_folder: Path | None = None,
    request: Request = REQUEST,
    model: Llama | None = None,
    sample: Callable[[Llama], Sequence[tuple[str, str]]] | None = None,
    ask: Callable[[Llama], Sequence[BenchmarkFigure]] | Path | None = None,
    watched: bool = True,
    parent: Artifact | None = None,
    left_out: LeftOut = (),
) -> Iterator[Trainer]:
    """The parts of a run, put together; `watched` adds the observers that every stage has, `parent` is what `keep` takes from.

    `ask` of a folder: the questions of its benchmarks, see `benchmark_rows`.
    """
    with open_world(settings.device) as world, StopSignals() as stop:
        if world.main:
            artifact.begin(folder, request)
        model = model or Llama(MODEL, settings.seed)
        world = world.lay_out(settings.parallel, parameter_count(MODEL), elastic=settings.determinism == "elastic")
        machine = settle_machine(folder, settings, world, like=scores_folder)
        if isinstance(ask, Path):
            questions = [read_questions(find_benchmark(name, ask)) for name in BENCHMARK_ROWS]
            ask = asking(questions, ToyTokenizer(), EvaluateSettings(), machine, world, model)
        train, validation = (
            open_rows(
                token_sets,
                split,
                settings.longest_sequence_length,
                settings.isolate_documents,
                read_scores(scores_folder, split) if scores_folder else None,
            )
            for split in SPLITS
        )
        start = kept_start(parent) if parent is not None and "step" in settings.keep else FROM_THE_BEGINNING
        plan = make_plan(train.sources, settings, parameter_count(model.config), start)
        batches = BatchLoader(plan, train, settings.micro_batch_rows, world.rank, world.size, world.device.type == "cuda", world.elastic)
        choose_computation(model, settings, machine, plan)
        world.place(model)
        optimizer = make_optimizer(model, settings, has_fast_bf16=machine.precision == "bf16")
        objective = make_objective(settings.objective)
        progress = resume(folder, model, optimizer, plan, world)
        progress = replace(progress, left_out=left_out or progress.left_out)
        if parent is not None and "optimizer" in settings.keep and progress.step == start.step:
            load_kept_optimizer(parent, optimizer)
        with open_metrics(folder, settings.metrics, folder.name, progress.step) as metrics:
            byte_lengths = np.ones(VOCABULARY, dtype=np.int64)
            observers = [
                Log(settings, plan, metrics, Gauge(model.config, plan, progress.step, world.device, peak_flops_per_second=1e12), model),
                Validate(
                    settings,
                    plan,
                    metrics,
                    model,
                    objective,
                    validation,
                    batches.micro_batch_rows,
                    world.alone_if_elastic,
                    machine,
                    byte_lengths,
                    progress.validation_losses,
                ),
            ]
            asked = [AskBenchmarks(settings, plan, metrics, model, ask)] if ask is not None else []
            samples = [Sample(settings, plan, model, world, sample, SampleRecord(folder, progress.step))] if sample else []
            yield Trainer(
                settings=settings,
                model=model,
                objective=objective,
                optimizer=optimizer,
                batches=batches,
                world=world,
                machine=machine,
                observers=[*(observers if watched else []), *asked, *samples],
                writer=CheckpointWriter(
                    folder,
                    request,
                    settings.keep_checkpoints,
                    None,
                    settings.keep_every_steps,
                    settings.keep_every_epochs,
                    settings.asynchronous_saves,
                ),
                stop=stop,
                progress=progress,
            )


def make_scores(folder: Path, token_set: TokenSet, settings: TrainingSettings, model: Llama | None = None) -> Path:
    """The scores of both splits under the initial model, and how they were computed."""
    artifact.begin(folder, Request("scores", {}))
    with open_world(settings.device) as world:
        machine = settle_machine(folder, settings, world)
        scores: dict[Split, Scores] = {}
        for split in SPLITS:
            reader = open_rows([token_set], split, None)
            rows = rows_at_once(settings.batch_rows, settings.micro_batch_rows, world.size)
            scores[split] = score_preferences(model or Llama(MODEL, settings.seed), reader, rows, machine, world.device)
    write_scores(folder, scores)
    return folder


def start(folder: Path, asked: Sequence[Mapping[str, Any]], rank: int = 0, world_size: int = 1) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    if world_size > 1:
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1"}
        environment |= {name: str(value) for name, value in places.items()}
    command = [sys.executable, __file__, str(folder), json.dumps(asked)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def end(process: subprocess.Popen[str], seconds: float = 300) -> str:
    """What a process said on stderr, once it has ended; one that hangs is made to say where."""
    try:
        return process.communicate(timeout=seconds)[1]
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)
        return f"hung; {process.communicate()[1]}"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def start_all(folder: Path, asked: Sequence[Mapping[str, Any]], world_size: int, seconds: float = 1200) -> None:
    """Let so many processes train what is asked for, and see that each ends well."""
    with_ports = [{"port": free_port(), **values} for values in asked]
    started = [start(folder, with_ports, rank, world_size) for rank in range(world_size)]
    errors = [end(process, seconds) for process in started]
    assert [process.returncode for process in started] == [0] * world_size, "\n".join(errors)


def main() -> None:
    """Train what is asked for, one run after the other; tells a process that launched this one why it failed."""
    folder = Path(sys.argv[1])
    for asked in json.loads(sys.argv[2]):
        if "port" in asked:
            os.environ["MASTER_PORT"] = str(asked.pop("port"))
        try:
            train_as_asked(folder / asked.pop("name"), **asked)
        except Exception as error:
            if not launching.report(error):
                raise
            sys.exit(getattr(error, "exit_code", 1))


def fail_at(trainer: Trainer, rank: int, phase: str, step: int, kind: str) -> None:
    """Let one process go wrong when it comes to a phase of a step."""
    note = trainer.watch.at

    def at(reached: str, reached_step: int) -> None:
        note(reached, reached_step)
        if (trainer.world.rank, reached, reached_step) == (rank, phase, step):
            FAULTS[kind]()

    trainer.watch.at = at  # type: ignore[method-assign]


def _raise() -> None:
    raise ValueError("planted")


def _tell_where_it_listens() -> None:
    """The error names every address, but for the machine's own, at which this process or the one that started it listens."""
    entries = [entry for pid in (os.getpid(), os.getppid()) for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.is_symlink()]
    own = {str(entry.readlink()) for entry in entries if entry.is_symlink()}
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    listening = [line[1] for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in own]
    raise DataError(f"listens at {[address for address in listening if not address.startswith('0100007F')]}", "")


FAULTS: dict[str, Callable[[], object]] = {
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "SIGKILL at the first start": lambda: os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and os.kill(os.getpid(), signal.SIGKILL),
    "SIGSEGV": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "exception": _raise,
    "exit": lambda: os._exit(3),
    "listening": _tell_where_it_listens,
    "hang": lambda: time.sleep(600),
    "hang with the lock": lambda: ctypes.PyDLL(None).sleep(600),
    "no data": lambda: (_ for _ in ()).throw(DataError("the shard is gone", "bring it back")),
}


def train_as_asked(
    folder: Path,
    tokens: str,
    scores: str | None = None,
    muon: bool = False,
    preference: bool = False,
    lora: Mapping[str, Any] | None = None,
    fault: Mapping[str, Any] | None = None,
    stop_after: int | None = None,
    poison: Mapping[str, int] | None = None,
    benchmarks: str | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """One run; returns, and writes beside its folder, what it measured."""
    model = None
    if lora is not None:
        changes["lora"], model = LoraSettings(**lora), Llama(MODEL, 0)
        add_adapter(model, Adapter(changes["lora"], folder.parent / "base"), seed=0)
    if benchmarks is not None:
        changes["benchmarks"] = tuple(BENCHMARK_ROWS)
    settings = training_settings(
        optimizer=MuonSettings() if muon else AdamWSettings(),
        objective=PreferenceSettings() if preference else NextTokenSettings(),
        **changes,
    )
    ask = None if benchmarks is None else Path(benchmarks)
    with assembled(folder, settings, [open_token_set(Path(tokens))], Path(scores) if scores else None, model=model, ask=ask) as trainer:
        if fault is not None:
            fail_at(trainer, **fault)
        if poison is not None and trainer.world.rank == poison["rank"]:
            read = trainer.batches.micro_batches
            trainer.batches.micro_batches = lambda step: [  # type: ignore[method-assign]
                replace(batch, token_weight=batch.token_weight * (math.nan if step == poison["step"] else 1.0)) for batch in read(step)
            ]
        gradients = first_gradients(trainer) if trainer.progress.step == 0 and fault is None else []
        if stop_after is not None:
            while trainer.progress.step < stop_after:
                trainer._observe(trainer.step())
            trainer.save()
            return {}
        progress = trainer.run()
        result = {
            "losses": progress.recent_losses,
            "gradients": gradients,
            "validation": progress.validation_losses,
            "skipped": progress.health.skipped_steps,
        }
        Path(f"{folder}-result-{trainer.world.rank}.json").write_text(json.dumps(result))
    return result


def first_gradients(trainer: Trainer) -> list[float]:
    """Every gradient of the first step, flat; the step is not applied."""
    trainer._accumulate_gradients(trainer.batches.micro_batches(0), 0)
    flat = torch.cat([whole(parameter.grad).flatten() for parameter in trainer.model.parameters() if parameter.grad is not None])
    trainer.optimizer.clear_gradients()
    values: list[float] = flat.tolist()
    return values


if __name__ == "__main__":
    main()
