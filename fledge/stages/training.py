"""Stages 4, 5 and 7 are one: a token set and a start become checkpoints; what differs lies in the recipe and in `Task`.

Inputs by role: `tokens.0`, `tokens.1`, ... the token sets; `start_from` the checkpoint before; `scores` the reference of dpo.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from fledge.core import artifact, console
from fledge.core.artifact import Artifact, Request
from fledge.core.errors import ConfigError
from fledge.core.metrics import open_metrics, read_metrics
from fledge.core.process import StopSignals, keep_freed_memory
from fledge.corpus.document import Content, Message, Split
from fledge.inference.engine import Engine
from fledge.inference.settings import GenerationSettings
from fledge.model.cost import flops_per_token, parameter_count
from fledge.model.folder import load_model
from fledge.model.llama import Llama
from fledge.model.settings import ModelConfig, padded_vocabulary_size
from fledge.stages import TRAINING_STAGES, Stage, has_stage
from fledge.stages.checkpoint_names import open_checkpoint
from fledge.stages.run import Run
from fledge.tokens.chat import render
from fledge.tokens.shards import TokenSet, open_token_set
from fledge.tokens.tokenizer import Tokenizer, copy_tokenizer, open_tokenizer, require_one_tokenizer
from fledge.training.batches import BatchLoader, RowReader, open_rows
from fledge.training.checkpoint import CheckpointWriter, Progress, list_checkpoints, require_disk_space, resume
from fledge.training.objectives import make_objective
from fledge.training.observers import Log, Sample, Validate
from fledge.training.optimizer import make_optimizer
from fledge.training.parallel import Machine, World, chosen_machine, open_world, settle_machine
from fledge.training.plan import Plan, make_plan
from fledge.training.score import read_scores
from fledge.training.settings import TrainingSettings
from fledge.training.trainer import Trainer


@dataclass(frozen=True)
class Task:
    """What one training stage has to do, with everything it reads opened."""

    run: Run
    stage: Stage
    settings: TrainingSettings
    token_sets: tuple[TokenSet, ...]
    tokenizer: Tokenizer
    parent: Artifact | None
    scores: Artifact | None
    wanted: Request

    @property
    def folder(self) -> Path:
        return self.run.folder / self.stage

    @property
    def answers(self) -> bool:
        """Whether the model learns to answer, so that the end of a turn ends what it says."""
        return self.token_sets[0].content != "documents"

    def rows(self, split: Split) -> RowReader:
        """The rows of a split, with the reference's scores where there are any."""
        scores = read_scores(self.scores.path, split) if self.scores else None
        return open_rows(self.token_sets, split, self.settings.sequence_length, self.settings.isolate_documents, scores)


def train(run: Run, stage: Stage, content: Content) -> None:
    """Run one training stage, on this process or on its share of many."""
    task = open_task(run, stage, content)
    with open_world(task.settings.device) as world:
        finished = run.state(stage, task.wanted) == "finished"
        world.barrier()
        if finished:
            console.info(f"{stage}: already done")
            return
        started = time.monotonic()
        if world.main:
            artifact.begin(task.folder, task.wanted)
        world.barrier()
        with _assemble(task, world) as trainer:
            trainer.run()
        if world.main:
            _finish(task, trainer, time.monotonic() - started)


def open_task(run: Run, stage: Stage, content: Content) -> Task:
    """Open the inputs of a stage. Raises ArtifactError naming the command that makes what is missing."""
    settings: TrainingSettings = run.recipe.section(stage)
    tokens = run.token_sets(settings.tokens, content)
    parent = open_parent(run, stage)
    scores = run.open(run.folder / "score", "scores", "score") if stage == "dpo" else None
    inputs = {**tokens, **({"start_from": parent} if parent else {}), **({"scores": scores} if scores else {})}
    token_sets = tuple(open_token_set(found.path) for found in tokens.values())
    tokenizer = open_tokenizer(parent.path if parent else Path(next(iter(tokens.values())).manifest.inputs["tokenizer"].path))
    made_with = {f"token set {token_set.folder}": token_set.tokenizer_sha256 for token_set in token_sets}
    holder = f"checkpoint {parent.path}" if parent else f"tokenizer {tokenizer.folder}"
    require_one_tokenizer({**made_with, holder: tokenizer.sha256}, run.command)
    shape = None if parent else run.recipe.model
    wanted = artifact.request("training", {"stage": stage, "training": settings, "model": shape}, inputs)
    return Task(run, stage, settings, token_sets, tokenizer, parent, scores, wanted)


def open_parent(run: Run, stage: Stage) -> Artifact | None:
    """The checkpoint a stage starts from: the one given, or the final one of the stage before. None: random weights."""
    given = run.recipe.section(stage).start_from
    if given is not None:
        return open_checkpoint(given)
    if stage == "pretrain":
        return None
    earlier = TRAINING_STAGES[: TRAINING_STAGES.index(stage)]
    before = next((one for one in reversed(earlier) if has_stage(one, run)), None)
    if before is None:
        raise ConfigError(f"{stage} has nothing to start from", f"set {stage}.start_from to a checkpoint")
    run.open(run.folder / before, "training", before)
    return open_checkpoint(f"{run.folder / before}@final")


def open_model(parent: Artifact | None, run: Run, tokenizer: Tokenizer, answers: bool, seed: int) -> Llama:
    """The parent's weights, or fresh ones in the recipe's shape, told where a text and a turn end."""
    ends = tokenizer.end_ids(answers)
    if parent is not None:
        model = load_model(parent.path)
        model.config = replace(model.config, end_token_ids=ends)
        return model
    size = padded_vocabulary_size(tokenizer.vocabulary_size)
    return Llama(ModelConfig(run.recipe.model, size, tokenizer.document_start[0], ends, tokenizer.padding), seed)


@contextmanager
def _assemble(task: Task, world: World) -> Iterator[Trainer]:
    """Build the parts and put them together; nothing runs yet."""
    keep_freed_memory()
    settings, folder = task.settings, task.folder
    model = open_model(task.parent, task.run, task.tokenizer, task.answers, settings.seed)
    world = world.lay_out(settings.parallel, parameter_count(model.config))
    machine = settle_machine(folder, settings, world, like=task.scores.path if task.scores else None)
    if task.scores is not None:
        _require_same_arithmetic(task, task.scores.path, machine)
    train, validation = task.rows("train"), task.rows("validation")
    _require_context(task, train, model)
    require_disk_space(folder, model)
    world.place(model)
    plan = make_plan(train.sources, settings.mixture, settings.batch_rows, train.row_tokens, settings.seed)
    batches = BatchLoader(plan, train, settings.micro_batch_rows, world.rank, world.size, ahead=world.device.type == "cuda")
    has_fast_bf16 = world.device.type != "cpu" or machine.precision == "bf16"
    optimizer, objective = make_optimizer(model, settings, has_fast_bf16), make_objective(settings.objective)
    progress = resume(folder, model, optimizer, plan, world)
    _announce(task, plan, model, progress, world, machine)
    copy = partial(copy_tokenizer, task.tokenizer, answers=task.answers, maximum_tokens=model.config.settings.max_position_embeddings)
    writer = CheckpointWriter(folder, task.wanted, settings.keep_checkpoints, copy)
    run_name = f"{task.run.folder.name}-{task.stage}"
    with StopSignals() as stop, open_metrics(folder, settings.metrics, run_name, progress.step) as metrics:
        rows = batches.micro_batch_rows
        validate = Validate(settings, metrics, model, objective, validation, rows, world, machine, task.tokenizer.document_byte_lengths)
        samples = [] if world.sharded else [Sample(settings, model, world, _sampler(task))]
        yield Trainer(
            settings=settings,
            model=model,
            objective=objective,
            optimizer=optimizer,
            batches=batches,
            world=world,
            machine=machine,
            observers=[Log(settings, metrics, progress.step), validate, *samples],
            writer=writer,
            stop=stop,
            progress=progress,
        )


def _require_same_arithmetic(task: Task, scores: Path, machine: Machine) -> None:
    """The first loss is ln 2 only if the policy is computed as its reference was."""
    scored = chosen_machine(scores)
    if scored is not None and scored.precision != machine.precision:
        raise ConfigError(
            f"the pairs were scored in {scored.precision}, {task.stage} would compute in {machine.precision}",
            f"score them again: fledge score {task.run.command} --force",
        )


def _require_context(task: Task, rows: RowReader, model: Llama) -> None:
    context_tokens = model.config.settings.max_position_embeddings
    if rows.row_tokens > context_tokens:
        raise ConfigError(
            f"{task.stage} reads rows of {rows.row_tokens} tokens, the model's context is max_position_embeddings = {context_tokens}",
            "shorten the rows (sequence_length), or raise model.max_position_embeddings",
        )


def _announce(task: Task, plan: Plan, model: Llama, progress: Progress, world: World, machine: Machine) -> None:
    settings = task.settings
    processes = f"{world.size} x {world.device.type}" + (f" by {world.layout}" if world.size > 1 else "")
    computing = f"{machine.precision}, {machine.threads} threads, {processes}"
    planned_tokens = settings.steps * plan.batch_tokens
    console.say(
        f"{task.stage}: {parameter_count(model.config):,} parameters, {settings.steps:,} steps of {plan.batch_tokens:,} tokens "
        f"= {planned_tokens:,} tokens, {plan.epochs(settings.steps):.2f} epochs; {computing}"
    )
    if world.sharded:
        console.info(f"{task.stage}: no samples of text, for which one process would need the whole model; checkpoints have it")
    if progress.step:
        console.say(f"{task.stage}: continues after step {progress.step:,}")


def _sampler(task: Task) -> Callable[[Llama], str]:
    """A text of its own, or the answer to the recipe's question; with random numbers of its own."""
    tokenizer, generation = task.tokenizer, _seeded(task.run.recipe.generation, task.settings.seed)
    if task.answers and task.run.recipe.question:
        prompt = render(tokenizer, [Message("user", task.run.recipe.question)], answer_follows=True).ids
    else:
        prompt = list(tokenizer.document_start)

    def sample(model: Llama) -> str:
        [completion] = Engine(model, tokenizer.vocabulary_size, model.config.end_token_ids).generate([prompt], generation)
        return " ".join(tokenizer.decode(completion.ids).split())

    return sample


def _seeded(generation: GenerationSettings, seed: int) -> GenerationSettings:
    return generation if generation.seed is not None else replace(generation, seed=seed)


def _finish(task: Task, trainer: Trainer, seconds: float) -> None:
    """The manifest names the files of the final checkpoint, so the stage's id is that of its weights."""
    final = list_checkpoints(task.folder)[-1]
    place = final.path.relative_to(task.folder).as_posix()
    files = {f"{place}/{name}": digest for name, digest in final.artifact.manifest.files.items()}
    plan, progress = trainer.batches.plan, trainer.progress
    stats = {
        "parameters": parameter_count(trainer.model.config),
        "steps": progress.step,
        "tokens": progress.step * plan.batch_tokens,
        "flops": progress.step * plan.batch_tokens * flops_per_token(trainer.model.config, plan.row_tokens),
        "epochs": plan.epochs(progress.step),
        "initial_loss": progress.initial_loss,
        "loss": progress.recent_losses[-1],
        "validation_loss": progress.validation_loss,
        "final": place,
        "planned_seconds": _planned_seconds(task.folder, progress.step * plan.batch_tokens),
        "seconds": round(seconds, 3),
    }
    artifact.finish(task.folder, task.wanted, files, {name: value for name, value in stats.items() if value is not None})
    console.say(f"{task.stage}: loss {progress.initial_loss:.3f} -> {progress.recent_losses[-1]:.3f}; {console.format_seconds(seconds)}")


def _planned_seconds(folder: Path, tokens: int) -> float | None:
    """What the whole stage would take at the pace of its second line of progress, the first being that of warming up."""
    paces = [record["train/tokens_per_second"] for record in read_metrics(folder) if "train/tokens_per_second" in record]
    return round(tokens / paces[1], 1) if len(paces) > 1 else None
