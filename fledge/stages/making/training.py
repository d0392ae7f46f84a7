"""The parts of a training stage, built from its task, put together and run; and what the finished stage says of itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from fledge.core import artifact, console, disk
from fledge.core.artifact import Artifact
from fledge.core.errors import ConfigError
from fledge.core.metrics import open_metrics
from fledge.core.process import StopSignals, keep_freed_memory, resident_bytes
from fledge.core.samples import SampleRecord
from fledge.corpus.document import Message, Split
from fledge.evaluation.run_data import PLAN
from fledge.inference.engine import Engine
from fledge.inference.settings import GenerationSettings
from fledge.model.attention import attention_kernel
from fledge.model.cost import parameter_count, trained_parameter_count
from fledge.model.float8 import has_float8
from fledge.model.folder import load_model
from fledge.model.llama import Llama
from fledge.model.precision import Precision, capability_of, float8_lacks
from fledge.model.settings import ModelConfig, padded_vocabulary_size
from fledge.model.vocabulary import begin_as_mean
from fledge.publish.generation import sampling_json
from fledge.stages.making.adapters import open_with_adapter
from fledge.stages.making.benchmarks import open_benchmarks
from fledge.stages.making.prediction import forget_seconds, predict, predicted
from fledge.stages.parent_tokenizer import new_tokens
from fledge.stages.run import Run
from fledge.stages.task import Task
from fledge.tokens.chat import render
from fledge.tokens.tokenizer import Tokenizer, copy_tokenizer
from fledge.training.batches import BatchLoader, RowReader, open_rows
from fledge.training.checkpoint import Progress, kept_start, load_kept_optimizer, require_disk_space, resume
from fledge.training.checkpoint_folders import best_checkpoint, list_checkpoints
from fledge.training.elastic import described as described_elastic
from fledge.training.elastic import require_elastic
from fledge.training.figures import Gauge, training_flops
from fledge.training.guard import LeftOut
from fledge.training.objectives import make_objective
from fledge.training.observers import AskBenchmarks, Log, Sample, Validate
from fledge.training.optimizer import Optimizer, make_optimizer
from fledge.training.parallel import Machine, World, chosen_machine, machine_changes, open_world, settle_machine
from fledge.training.peaks import peak_flops_per_second, peak_memory_bytes
from fledge.training.phases import described, make_plan, used
from fledge.training.plan import FROM_THE_BEGINNING, Plan, Start
from fledge.training.preparation import choose_computation, on_device, open_batches, prepare
from fledge.training.profiling import Profile
from fledge.training.resident import ResidentRows
from fledge.training.rollback import run_with_rollbacks
from fledge.training.saving import CheckpointWriter
from fledge.training.score import read_scores
from fledge.training.sentinels import FirstLoss, expected_loss, require_stop_token, require_targets
from fledge.training.settings import PreferenceSettings, TrainingSettings
from fledge.training.trainer import Trainer


def make_checkpoints(task: Task) -> None:
    """Train on this process, or on its share of many, from the start or from the newest checkpoint."""
    with open_world(task.settings.device) as world:
        started = time.monotonic()
        if world.main:
            artifact.begin(task.folder, task.wanted)
        world.barrier()
        # Outside of what a way back puts together anew, so that no signal is lost in it.
        with StopSignals() as stop:
            trainer = run_with_rollbacks(partial(_assemble, task, world, stop, _writer(task)), task.folder, world)
        if world.main:
            _finish(task, trainer, time.monotonic() - started)


def open_model(parent: Artifact | None, run: Run, tokenizer: Tokenizer, answers: bool, settings: TrainingSettings) -> Llama:
    """The parent's weights, or fresh ones in the recipe's shape, told where a text and a turn end; with an adapter if one is trained."""
    ends = tokenizer.end_ids(answers)
    if parent is not None:
        model = load_model(parent.path) if settings.lora is None else open_with_adapter(parent.path, settings.lora, settings.seed)
        _require_vocabulary(parent.path, model, tokenizer, settings)
        model.config = replace(
            model.config, begin_token_id=tokenizer.document_start[0], end_token_ids=ends, padding_token_id=tokenizer.padding
        )
        return model
    size = padded_vocabulary_size(tokenizer.vocabulary_size)
    return Llama(ModelConfig(run.recipe.model, size, tokenizer.document_start[0], ends, tokenizer.padding), settings.seed)


def _require_vocabulary(parent: Path, model: Llama, tokenizer: Tokenizer, settings: TrainingSettings) -> None:
    """Make room for ids that a model of others does not have, or has rows for that were never learned, such as those of turns."""
    names = new_tokens(parent, tokenizer, model.config.vocabulary_size)
    if not names:
        return
    if settings.lora is not None:
        raise ConfigError(
            f"{', '.join(names)} are new to the model in {parent}, and with lora they would be frozen as they are",
            "train all weights first, without lora, so that they are learned; or choose a tokenizer.template without tokens for turns",
        )
    size = max(model.config.vocabulary_size, padded_vocabulary_size(tokenizer.vocabulary_size))
    begin_as_mean(model, [tokenizer.specials[name] for name in names], size)
    console.say(f"{', '.join(names)} are new to the model: they begin as the mean of the others")


@contextmanager
def _assemble(task: Task, world: World, stop: StopSignals, writer: CheckpointWriter, left_out: LeftOut) -> Iterator[Trainer]:
    """Build the parts and put them together, to pass over the steps that are left out; nothing runs yet."""
    keep_freed_memory()
    settings, folder, process_bytes = task.settings, task.folder, resident_bytes()
    train, validation = _rows(task, "train"), _rows(task, "validation")
    model = open_model(task.parent, task.run, task.tokenizer, task.answers, settings)
    trained = trained_parameter_count(model.config, settings.lora)
    frozen = 0 if settings.lora is None else parameter_count(model.config)
    world = world.lay_out(settings.parallel, trained, frozen, settings.determinism == "elastic")
    require_elastic(world, settings.compile)
    _require_context(task, train, model)
    _require_validation(task, validation)
    require_disk_space(folder, model)
    plan = make_plan(train.sources, settings, parameter_count(model.config), _start(task))
    _require_something_to_learn(task, train, plan)
    # For elastic steps what is chosen must not depend on the number of processes.
    flops = training_flops(model.config, plan, plan.steps, settings.lora) / (1 if world.elastic else world.size)
    machine = settle_machine(folder, settings, world, task.scores.path if task.scores else None, flops)
    if task.scores is not None:
        _require_same_arithmetic(task, task.scores.path, machine)
    ask = open_benchmarks(task, model, machine, world) if settings.benchmarks else None
    objective = make_objective(settings.objective)
    choose_computation(model, settings, machine, plan)
    world.place(model)
    rows = on_device(train, world, settings.tokens_on_device)
    machine = prepare(folder, model, objective, machine, world, settings, rows, plan)
    optimizer = _optimizer(model, settings, machine, world)
    batches = open_batches(plan, rows, machine.micro_batch_rows or settings.micro_batch_rows, world)
    progress = resume(folder, model, optimizer, plan, world)
    progress = replace(progress, left_out=left_out or progress.left_out)
    if task.parent is not None and progress.step == plan.start.step and "optimizer" in settings.keep:
        load_kept_optimizer(task.parent, optimizer)
    _keep_plan(folder, plan, world)
    _announce(task, batches, model, progress, world, machine.precision, _described(machine, world, batches, train.isolate_documents, model))
    if progress.step > plan.start.step:
        forget_seconds(folder, world)
    else:
        predict(folder, model, objective, machine, world, settings, batches, len(validation.all_rows()), process_bytes)
    with open_metrics(folder, settings.metrics, f"{task.run.folder.name}-{task.stage}", progress.step) as metrics:
        at_once, measuring = batches.micro_batch_rows, world.alone_if_elastic
        byte_lengths, losses = task.tokenizer.document_byte_lengths, progress.validation_losses
        validate = Validate(settings, plan, metrics, model, objective, validation, at_once, measuring, machine, byte_lengths, losses)
        peak = peak_flops_per_second(folder, machine, world.device) * world.size if world.main else None
        log = Log(settings, plan, metrics, Gauge(model.config, plan, progress.step, world.device, peak, lora=settings.lora), model)
        asking = [AskBenchmarks(settings, plan, metrics, model, ask)] if ask is not None else []
        samples = [] if world.sharded else [_samples(task, plan, model, world, progress.step)]
        profiles = [Profile(settings.profile, folder, progress.step, plan.steps, world.main)] if settings.profile else []
        yield Trainer(
            settings=settings,
            model=model,
            objective=objective,
            optimizer=optimizer,
            batches=batches,
            world=world,
            machine=machine,
            observers=[log, _first_loss(task, plan, model, world), validate, *asking, *samples, *profiles],
            writer=writer,
            stop=stop,
            progress=progress,
        )


def _optimizer(model: Llama, settings: TrainingSettings, machine: Machine, world: World) -> Optimizer:
    optimizer = make_optimizer(model, settings, has_fast_bf16=world.device.type != "cpu" or machine.precision == "bf16")
    if settings.compile == "cuda_graphs":
        optimizer.keep_gradient_memory()
    return optimizer


def _writer(task: Task) -> CheckpointWriter:
    """One for all ways back: what it counts goes on."""
    settings = task.settings
    copy = partial(copy_tokenizer, task.tokenizer, task.answers)
    kept = settings.keep_checkpoints, copy, settings.keep_every_steps, settings.keep_every_epochs
    sampling = sampling_json(task.run.recipe.generation)
    return CheckpointWriter(task.folder, task.wanted, *kept, asynchronous=settings.asynchronous_saves, sampling=sampling)


def _rows(task: Task, split: Split) -> RowReader:
    """The rows of a split at the length of the longest phase, with the reference's scores where there are any."""
    scores = read_scores(task.scores.path, split) if task.scores else None
    return open_rows(task.token_sets, split, task.settings.longest_sequence_length, task.settings.isolate_documents, scores)


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


def _require_something_to_learn(task: Task, rows: RowReader, plan: Plan) -> None:
    """In every step, and at the end of an answer."""
    require_targets(plan, rows.shards)
    if rows.content == "conversations":
        stop_id = task.tokenizer.end_ids(answers=True)[0]
        names = {number: name for name, number in task.tokenizer.specials.items()}
        require_stop_token(rows.shards, stop_id, names[stop_id])


def _first_loss(task: Task, plan: Plan, model: Llama, world: World) -> FirstLoss:
    objective = task.settings.objective
    preference = objective if isinstance(objective, PreferenceSettings) else None
    return FirstLoss(expected_loss(task.stage, preference, model.config.vocabulary_size, task.parent), plan, world.main)


def _start(task: Task) -> Start:
    """What was trained before the run, if it takes over the step of its parent."""
    return kept_start(task.parent) if task.parent is not None and "step" in task.settings.keep else FROM_THE_BEGINNING


def _require_validation(task: Task, rows: RowReader) -> None:
    if task.settings.early_stopping is not None and not rows.all_rows():
        raise ConfigError(
            f"{task.stage}.early_stopping needs validation rows, and the token sets have none",
            "keep some text apart with corpus.validation_fraction, or leave early_stopping out",
        )


def _keep_plan(folder: Path, plan: Plan, world: World) -> None:
    """Where whoever looks on finds it."""
    if world.main:
        disk.write_json(folder / PLAN, plan.identity())


def _announce(task: Task, batches: BatchLoader, model: Llama, progress: Progress, world: World, precision: Precision, machine: str) -> None:
    """Say what is going to be done."""
    plan = batches.plan
    steps, tokens = plan.steps - plan.start.step, plan.tokens(plan.steps) - plan.start.tokens
    of_tokens = f"of {plan.phases[0].batch_tokens:,} tokens" if len(plan.phases) == 1 else f"in {len(plan.phases)} phases"
    console.say(
        f"{task.stage}: {_counted(model)}, {steps:,} steps {of_tokens} = {tokens:,} tokens, {plan.epochs(plan.steps):.2f} epochs; {machine}"
    )
    if task.settings.precision == "fp8_or_bf16" and precision != "fp8":
        lacking = float8_lacks(world.device.type, capability_of(world.device), has_float8()) or "kept from machine.json"
        console.say(f"{task.stage}: precision is fp8_or_bf16, and computes in {precision}: {lacking}")
    for line in described(plan):
        console.say(f"{task.stage}: {line}")
    if world.sharded:
        console.info(f"{task.stage}: no samples of text, for which one process would need the whole model; checkpoints have it")
    if world.elastic:
        console.say(f"{task.stage}: {described_elastic(world, batches.micro_batch_rows, parameter_count(model.config))}")
    if progress.step > plan.start.step and world.main:
        console.say(f"{task.stage}: {_restored(task, plan, progress)}")
    elif progress.step:
        console.say(f"{task.stage}: continues after step {progress.step:,} of the checkpoint it starts from")


def _restored(task: Task, plan: Plan, progress: Progress) -> str:
    """What a continued run has of the one before, and what may differ from an undisturbed one."""
    found = list_checkpoints(task.folder)[-1]
    changes = machine_changes(task.folder)
    exactness = f"the last bits may differ ({'; '.join(changes)})" if changes else "from here on bitwise as if undisturbed"
    loss = f", loss {progress.recent_losses[-1]:.4f}" if progress.recent_losses else ""
    return (
        f"continues after step {progress.step:,} ({plan.tokens(progress.step):,} tokens{loss}) from "
        f"checkpoint {found.artifact.id[:12]}: weights, optimizer, order of rows, random numbers and losses are restored; {exactness}"
    )


def _counted(model: Llama) -> str:
    """The model's parameters, and how many of them are trained if not all."""
    total = parameter_count(model.config)
    if model.adapter is None:
        return f"{total:,} parameters"
    lora = model.adapter.settings
    trained = trained_parameter_count(model.config, lora)
    return f"{total:,} frozen parameters and {trained:,} of an adapter of rank {lora.rank} ({trained / total:.1%})"


def _described(machine: Machine, world: World, batches: BatchLoader, isolate_documents: bool, model: Llama) -> str:
    """How the machine is used, for the line that opens a stage."""
    processes = f"{world.size} x {world.device.type}" + (f" by {world.layout}" if world.size > 1 else "")
    has_dropout = model.training and model.config.settings.attention_dropout > 0
    kernel = attention_kernel(world.device, isolate_documents, machine.compiled, has_dropout)
    parts = [machine.precision, f"{machine.threads} threads", processes, f"attention {kernel}"]
    parts += ["compiled"] if machine.compiled else []
    parts += [f"{batches.micro_batch_rows} rows at once"] if machine.micro_batch_rows else []
    parts += ["tokens on the device"] if isinstance(batches.reader, ResidentRows) else []
    return ", ".join(parts)


def _sampler(task: Task, model: Llama) -> Callable[[Llama], list[tuple[str, str]]]:
    """What the model writes after each prompt, with random numbers of its own. Raises ConfigError if a prompt leaves no room."""
    tokenizer, generation = task.tokenizer, _seeded(task.run.recipe.generation, task.settings.seed)
    question = task.run.recipe.question if task.answers else None
    prompts = task.settings.sample_prompts or ((question,) if question else ("",))
    encoded = [_encoded_prompt(task, prompt) for prompt in prompts]
    context_tokens = model.config.settings.max_position_embeddings
    too_long = next((prompt for prompt, ids in zip(prompts, encoded, strict=True) if len(ids) >= context_tokens), None)
    if too_long is not None:
        key = f"{task.stage}.sample_prompts" if task.settings.sample_prompts else "question"
        problem = f"{key}: {too_long[:40]!r} ... fills the model's context of {context_tokens} tokens"
        raise ConfigError(problem, "shorten it")
    # An answer's question is the recipe's, known without being repeated in every line.
    named = prompts if task.settings.sample_prompts else ("",)

    def sample(model: Llama) -> list[tuple[str, str]]:
        completions = Engine(model, tokenizer.vocabulary_size, model.config.end_token_ids).generate(encoded, generation)
        texts = [" ".join(tokenizer.decode(completion.ids).split()) for completion in completions]
        return list(zip(named, texts, strict=True))

    return sample


def _samples(task: Task, plan: Plan, model: Llama, world: World, step: int) -> Sample:
    record = SampleRecord(task.folder, step) if world.main else None
    return Sample(task.settings, plan, model, world, _sampler(task, model), record)


def _encoded_prompt(task: Task, prompt: str) -> list[int]:
    """A question where the model learns to answer, else the beginning of a text."""
    if task.answers and prompt:
        return render(task.tokenizer, [Message("user", prompt)], answer_follows=True).ids
    return [*task.tokenizer.document_start, *task.tokenizer.encode(prompt)]


def _seeded(generation: GenerationSettings, seed: int) -> GenerationSettings:
    return generation if generation.seed is not None else replace(generation, seed=seed)


def _finish(task: Task, trainer: Trainer, seconds: float) -> None:
    """The manifest names the files of the final checkpoint, so the stage's id is that of its weights."""
    final = list_checkpoints(task.folder)[-1]
    place = final.path.relative_to(task.folder).as_posix()
    files = {f"{place}/{name}": digest for name, digest in final.artifact.manifest.files.items()}
    plan, progress, stop = trainer.plan, trainer.progress, trainer.early_stop
    best = best_checkpoint(task.folder)
    expected = predicted(task.folder)
    stats = {
        "parameters": parameter_count(trainer.model.config),
        "trained_parameters": trained_parameter_count(trainer.model.config, task.settings.lora),
        "steps": progress.step,
        "tokens": plan.tokens(progress.step),
        "planned_tokens": plan.tokens(plan.steps),
        "flops": training_flops(trainer.model.config, plan, progress.step, task.settings.lora),
        "epochs": plan.epochs(progress.step),
        "sources": {name: asdict(use) for name, use in plan.use(progress.step).items()},
        "started_from": _origin(task),
        "initial_loss": progress.initial_loss,
        "loss": progress.recent_losses[-1],
        "validation_loss": progress.validation_loss,
        "stopped_early": stop.reason if stop is not None and stop.step < plan.steps else None,
        "final": place,
        "best": best.path.relative_to(task.folder).as_posix() if best is not None else None,
        "planned_seconds": expected.seconds if expected else None,
        "seconds": round(seconds, 3),
        "planned_peak_bytes": expected.peak_bytes if expected else None,
        "peak_bytes": peak_memory_bytes(trainer.world.device),
    }
    artifact.finish(task.folder, task.wanted, files, {name: value for name, value in stats.items() if value is not None})
    for line in used(plan, progress.step):
        console.say(f"{task.stage}: {line}")
    if stats["stopped_early"]:
        console.say(
            f"{task.stage}: stopped early, after step {progress.step:,} of {plan.steps:,}: {stats['stopped_early']}; "
            f"the best checkpoint is {stats['best']}, in other recipes start_from: {task.folder}@best"
        )
    console.say(f"{task.stage}: loss {progress.initial_loss:.3f} -> {progress.recent_losses[-1]:.3f}; {console.format_seconds(seconds)}")


def _origin(task: Task) -> dict[str, Any] | None:
    """The checkpoint that the run started from, the step it had, and what was taken over besides its weights."""
    if task.parent is None:
        return None
    return {"checkpoint": task.parent.id, "step": task.parent.stats.get("step"), "kept": list(task.settings.keep)}
