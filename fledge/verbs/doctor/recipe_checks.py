"""Whether a run can begin, or go on: recipe and run folder -> [recipe checks] -> findings.

What is judged is asked of those who will do it: sources of the corpus, needs of the plan, hashes of the tokenizer, states of the artifacts.
Nothing is read that is large, and nothing is written. Only with `online` is a server asked.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

from fledge.core import artifact, process
from fledge.core.console import format_bytes
from fledge.core.errors import ArtifactError, ConfigError, DataError, FledgeError, MachineError
from fledge.core.metrics import require_sinks
from fledge.core.wording import counted
from fledge.corpus.document import Content
from fledge.corpus.resolve import lies_elsewhere
from fledge.corpus.sources import hub
from fledge.corpus.sources.hub_presets import PRESETS, dataset_of, preset_bytes
from fledge.corpus.sources.inputs import Fingerprints, look_at_files, resolve, revision
from fledge.corpus.sources.settings import HubSource, PathSource, PythonDocsSource, Source
from fledge.corpus.sources.transport import shown
from fledge.evaluation.benchmarks.places import find_benchmarks
from fledge.smoke import STAND_IN
from fledge.stages import STAGES, TRAINING_STAGES, Stage, has_stage
from fledge.stages.run import Run
from fledge.tokens.importing import origin, require_form
from fledge.tokens.plain_bin import BIN_FILES
from fledge.tokens.shards import open_token_set
from fledge.tokens.tokenizer import open_tokenizer, require_one_tokenizer
from fledge.training.checkpoint_folders import step_folders
from fledge.verbs.corpus_space import made_parts
from fledge.verbs.doctor.findings import Finding, note, ok, problem, refused
from fledge.verbs.doctor.space_checks import check_space

_MADE_BY_THE_RUN = "stand-ins, which the run makes"


def check_sources(run: Run, online: bool) -> Iterator[Finding]:
    """Each source of the corpus: there, and as many files and bytes as it expects."""
    if run.recipe.corpus is None:
        return
    for source in run.recipe.corpus.sources:
        subject = f"source {source.name}"
        try:
            found = _source(source, online)
        except FledgeError as error:
            if (run.folder / "corpus" / source.content / artifact.MANIFEST).is_file():
                yield ok(subject, f"not needed any more, the corpus is made ({error.problem})")
            else:
                yield refused(subject, error)
        else:
            gate = _gate(run, source)
            yield note(subject, f"{found}; {gate}", "hf auth login") if gate else ok(subject, found)


def _gate(run: Run, source: Source) -> str:
    """What the hub asks for before it gives a dataset that is neither used nor downloaded yet; empty: nothing, or there is a token."""
    preset = PRESETS.get(source.preset or "") if isinstance(source, HubSource) else None
    if preset is None or not preset.is_gated or hub.has_token() or run.recipe.corpus is None:
        return ""
    is_made = (run.folder / "corpus" / source.content / artifact.MANIFEST).is_file()
    if is_made or preset_bytes(preset, Path(run.recipe.corpus.cache_folder).expanduser()):
        return ""
    return f"the hub asks to accept its terms on https://huggingface.co/datasets/{preset.repository}, and there is no token of an account"


def _source(source: Source, online: bool) -> str:
    if isinstance(source, PythonDocsSource):
        return "the documentation of this Python"
    if not lies_elsewhere(source):
        assert isinstance(source, PathSource), "only a source with a path lies here"
        sizes = look_at_files(source)
        if not sum(sizes):
            raise DataError(f"{source.path} holds nothing", "name a file or a folder with text")
        return f"{counted(len(sizes), 'files')}, {format_bytes(sum(sizes))} in {source.path}"
    place = f"hub:{dataset_of(source).repository}" if isinstance(source, HubSource) else shown(source.path)
    if not online:
        return f"{place}, fetched by fledge corpus; it is asked for with --online"
    files = resolve(source, Fingerprints(None), revision(source))
    return f"{counted(len(files), 'files')}, {format_bytes(sum(file.size_bytes for file in files))} at {place}"


def check_inputs(run: Run) -> Iterator[Finding]:
    """What the recipe names besides: texts and rows to evaluate on, checkpoints to start from, results of other runs."""
    evaluate, pack = run.recipe.evaluate, run.recipe.pack
    for file in evaluate.files if evaluate else ():
        yield _there(run, "evaluation", Path(file).expanduser(), "evaluate.files")
    if evaluate is not None and any(str(place).startswith(STAND_IN) for place in evaluate.benchmarks.values()):
        yield ok("benchmarks", _MADE_BY_THE_RUN)
    elif evaluate is not None and evaluate.benchmarks:
        try:
            yield ok("benchmarks", ", ".join(placed.name for placed in find_benchmarks(evaluate.benchmarks)))
        except FledgeError as error:
            yield refused("benchmarks", error)
    named = {"pack.corpus": pack.corpus if pack else (), "tokenizer.corpus": run.recipe.tokenizer.corpus if run.recipe.tokenizer else ()}
    if pack is not None and pack.import_bin is not None and not pack.import_bin.startswith(("hub:", STAND_IN)):
        named["pack.import_bin"] = (str(Path(pack.import_bin) / BIN_FILES["train"]),)
    for stage in (stage for stage in TRAINING_STAGES if has_stage(stage, run)):
        named[f"{stage}.tokens"] = run.recipe.section(stage).tokens
    for option, paths in named.items():
        for path in paths:
            yield _there(run, "input", Path(path), option)
    yield from _starts(run)


def _there(run: Run, subject: str, path: Path, option: str) -> Finding:
    if path.exists():
        return ok(subject, f"{path} ({option})")
    return problem(
        subject, f"there is no {path}, which {option} names", f"fledge config {run.command}, which shows where it is set", DataError
    )


def _starts(run: Run) -> Iterator[Finding]:
    from fledge.stages.checkpoint_names import open_checkpoint

    for stage in (stage for stage in TRAINING_STAGES if has_stage(stage, run)):
        given = run.recipe.section(stage).start_from
        if given is not None:
            try:
                yield ok("checkpoint", f"{stage} starts from {open_checkpoint(given).path}")
            except FledgeError as error:
                yield refused("checkpoint", error)


def check_tokenizer(run: Run, online: bool) -> Iterator[Finding]:
    """There, and the one that the token sets were made with; before that, what it will be made of."""
    settings = run.recipe.tokenizer
    if settings is None and run.recipe.pack is None:
        return  # it comes with the tokens, or with the checkpoint
    try:
        frozen = open_tokenizer(run.tokenizer().path)
    except ArtifactError as error:
        is_made_elsewhere = run.recipe.pack is not None and run.recipe.pack.tokenizer is not None
        is_damaged = (run.folder / "tokenizer" / artifact.MANIFEST).is_file()
        if settings is None or is_made_elsewhere or is_damaged:
            yield refused("tokenizer", error)
        elif settings.kind != "import":
            yield ok("tokenizer", f"not there yet; {settings.kind} of {settings.vocabulary_size:,} entries will be trained")
        else:
            yield from _imported(run, online)
        return
    except FledgeError as error:
        yield refused("tokenizer", error)
        return
    made_with = {f"tokenizer {frozen.folder}": frozen.sha256}
    try:
        for content in get_args(Content):
            if run.own(f"pack/{content}", "tokens") is not None:
                token_set = open_token_set(run.folder / "pack" / content)
                made_with[f"token set {token_set.folder}"] = token_set.tokenizer_sha256
        require_one_tokenizer(made_with, run.command)
    except FledgeError as error:
        yield refused("tokenizer", error)
        return
    packed = f", the same in {counted(len(made_with) - 1, 'token sets')}" if len(made_with) > 1 else ""
    yield ok("tokenizer", f"{frozen.definition.sha256[:16]} in {frozen.folder}{packed}")


def _imported(run: Run, online: bool) -> Iterator[Finding]:
    settings = run.recipe.section("tokenizer")
    if (settings.path or "").startswith(STAND_IN):
        yield ok("tokenizer", _MADE_BY_THE_RUN)
        return
    try:
        found = origin(settings)
        if "repository" not in found:
            require_form(settings)
            yield ok("tokenizer", f"will be imported from {settings.path}, SHA-256 {found['sha256'][:16]}")
            return
        place = f"hub:{found['repository']}"
        if not online:
            yield ok("tokenizer", f"will be imported from {place}; it is asked for with --online")
            return
        commit = hub.commit_of(found["repository"], found["revision"], "model")
        yield ok("tokenizer", f"will be imported from {place}, whose {found['revision']} is {commit[:12]}")
    except FledgeError as error:
        yield refused("tokenizer", error)


def check_sinks(run: Run) -> Iterator[Finding]:
    """What the metrics of a stage are sent to besides files."""
    for stage in (stage for stage in TRAINING_STAGES if has_stage(stage, run)):
        metrics = run.recipe.section(stage).metrics
        if metrics.wandb == "off":
            continue
        try:
            require_sinks(metrics, stage)
            yield ok(f"{stage} metrics", f"sent to Weights & Biases, {metrics.wandb}")
        except MachineError as error:
            yield refused(f"{stage} metrics", error)


def check_precision(run: Run) -> Iterator[Finding]:
    """What each training stage asks for, against what its device has."""
    from fledge.model.devices import choose_device
    from fledge.model.float8 import has_float8
    from fledge.model.precision import capability_of, choose_precision, float8_lacks

    for stage in (stage for stage in TRAINING_STAGES if has_stage(stage, run)):
        settings = run.recipe.section(stage)
        try:
            device = choose_device(settings.device, apple_by_itself=True)
            asked = settings.precision
            if asked == "auto":
                yield ok(f"{stage} precision", f"auto, chosen on this {device.type} when it starts")
                continue
            taken = choose_precision(asked, device, has_float8())
            lacks = float8_lacks(device.type, capability_of(device), has_float8())
            what = f"{asked} falls back to {taken}: {lacks}" if asked == "fp8_or_bf16" and lacks else f"{taken} on this {device.type}"
            yield ok(f"{stage} precision", what)
        except MachineError as error:
            fix = f"fledge run {run.command} {stage}.precision=auto" if "precision" in error.problem else error.remedy
            yield problem(f"{stage} precision", error.problem, fix)


def check_plan(run: Run) -> Iterator[Finding]:
    """Disk and memory, as `fledge plan` says them; no step is tried."""
    from fledge.verbs.planning import plan_run

    try:
        plan = plan_run(_with_any_precision(run), devices=(), probe_seconds=0.0)
    except ConfigError as error:
        yield note("plan", error.problem, error.remedy)
        return
    except FledgeError as error:
        yield refused("plan", error)
        return
    yield from check_space(plan.disk, run)
    for stage in plan.stages:
        yield memory_finding(stage.stage, stage.memory.total, stage.available_bytes, stage.batch.rows, stage.length.batch_rows, run)
    for warning in plan.warnings:
        yield note("plan", warning.text, f"fledge run {run.command} {warning.change}" if warning.change else f"fledge plan {run.command}")


def _with_any_precision(run: Run) -> Run:
    """The same run in the precision and on the device that there are: what it asks for has a check of its own."""
    trained = {stage: run.recipe.section(stage) for stage in TRAINING_STAGES if has_stage(stage, run)}
    anywhere = {stage: replace(settings, precision="auto", device="auto") for stage, settings in trained.items()}
    return replace(run, recipe=replace(run.recipe, **anywhere))


def memory_finding(stage: str, needed_bytes: int, available_bytes: float, rows: int, batch_rows: int, run: Run) -> Finding:
    """The peak of a stage, with as many rows at once as fit."""
    found = f"{format_bytes(needed_bytes)} with {counted(rows, 'rows')} at once of a batch of {batch_rows:,}"
    if needed_bytes > available_bytes:
        what = f"{found} do not fit {format_bytes(available_bytes)}"
        fix = f"fledge run {run.command} {stage}.activation_checkpointing=full"
        if run.recipe.section(stage).activation_checkpointing == "full":
            fix = f"fledge plan {run.command}"  # which tells where it fits
        return problem(f"{stage} memory", what, fix)
    return ok(f"{stage} memory", f"{found}; {format_bytes(available_bytes)} can be had")


def check_stages(run: Run) -> Iterator[Finding]:
    """How far the run is."""
    if process.is_in_use(run.folder):
        yield note("run", f"{run.folder} is in use by another process", f"fledge board {shlex.quote(str(run.folder.parent))}")
    states = {stage: _state(run, stage) for stage in STAGES if has_stage(stage, run)}
    for state in ("finished", "begun", "not begun"):
        there = [stage + how for stage, (found, how) in states.items() if found == state]
        if there:
            yield ok(state, ", ".join(there))


def _state(run: Run, stage: Stage) -> tuple[str, str]:
    folder = run.folder / stage
    parts = (made_parts(run, stage) if stage in ("corpus", "pack") else []) or [folder]
    if all((part / artifact.MANIFEST).is_file() for part in parts):
        return "finished", ""
    steps = [step for step, _ in step_folders(folder)]
    if steps:
        return "begun", f" (step {steps[-1]:,} is saved)"
    begun = any((part / name).is_file() for part in parts for name in (artifact.MANIFEST, artifact.STARTED))
    return ("begun", "") if begun else ("not begun", "")
