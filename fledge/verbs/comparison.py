"""`fledge evaluate A B C`: several models on the same items, side by side; with `--to FOLDER` kept as an artifact.

A comparison that is kept names what it was made from by hash: its key follows from the weights, the tokenizers and the data. So asking
again measures nothing if all is as it was, measures anew, and says so, if anything has changed, and what is shown of one whose models or
data are no longer there as they were is refused as stale.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from fledge.core import __version__, artifact, console, disk
from fledge.core.artifact import Artifact
from fledge.core.errors import ArtifactError, CheckpointError, ConfigError, DataError, FledgeError
from fledge.corpus.document import Document, read_documents
from fledge.evaluation.benchmarks.definitions import BENCHMARKS
from fledge.evaluation.benchmarks.places import PlacedBenchmark, find_benchmark, rows_in
from fledge.evaluation.benchmarks.run import Samples
from fledge.evaluation.comparison import (
    COMPARISON_RESULTS,
    HOW_TO_READ,
    ComparedData,
    Comparison,
    answers_by_prompt,
    comparison_csv,
    comparison_json,
    comparison_text,
    differences_table,
    find_differences,
    outcomes_csv,
    read_comparison,
    scores_table,
)
from fledge.evaluation.text_files import IN_PIECES, find_text_files, text_file_documents
from fledge.model.adapter_config import find_base, is_adapter
from fledge.model.settings import DeviceName
from fledge.stages.checkpoint_names import open_checkpoint
from fledge.stages.run import free_name, smoke_name

if TYPE_CHECKING:
    from fledge.evaluation.comparison_measures import Questions

KIND = "comparison"
DATA = "data"
"""Kind of an input that is a file."""
PAGE = "comparison.html"
HELD_OUT = "held-out"
MAXIMUM_HELD_OUT_BYTES = 4_000_000
"""As much as the evaluate stage measures by default."""


@dataclass(frozen=True)
class Use:
    """What `fledge evaluate A B C` is asked for, as the options say it."""

    files: tuple[str, ...] = ()
    benchmarks: tuple[str, ...] = ()
    """NAME=FILE, a YAML file of one's own, or a folder of NAME.jsonl."""
    harness: tuple[str, ...] = ()
    """TASK, or TASK=FILE."""
    prompts: tuple[str, ...] = ()
    prompt_file: Path | None = None
    samples: str = "all"
    """quick, standard, comprehensive, all, or a number."""
    maximum_new_tokens: int = 64
    context_tokens: int | None = None
    stride_tokens: int | None = None
    seed: int = 0
    device: DeviceName = "auto"
    folder: Path | None = None
    """Where to keep it."""


@dataclass(frozen=True)
class _Data:
    """Something to measure on: what it is, the input that names it, and its documents."""

    told: ComparedData
    given: Artifact
    note: str = ""

    def documents(self) -> Iterable[Document]:
        if self.given.manifest.kind == DATA:
            return text_file_documents(self.given.path)
        return _leading(read_documents(self.given.path, "validation"))


def _leading(documents: Iterable[Document]) -> Iterator[Document]:
    """As many of the held-out documents as make a figure of three digits."""
    size_bytes = 0
    for document in documents:
        if size_bytes >= MAXIMUM_HELD_OUT_BYTES:
            return
        size_bytes += len(document.text.encode("utf-8"))
        yield document


def compare(places: Sequence[str], use: Use, small: bool) -> None:
    """Measure models on the same items and print what they score, how they differ and what they say; keep it if a folder is given.

    Raises ConfigError if there is nothing to measure, CheckpointError or DataError if a model or a text cannot be read, ArtifactError if
    something else lies in the folder.
    """
    names = _distinct(places)
    models = {name: open_sound_checkpoint(smoke_name(place) if small else place) for name, place in zip(names, places, strict=True)}
    data, questions = _questions(use, list(models.values()))
    asked = _identity(names, data, questions)
    inputs = {f"model.{place}": found for place, found in enumerate(models.values())}
    inputs |= {f"{role}.base": base for role, found in inputs.items() if (base := _sound_base(found)) is not None}
    inputs |= {f"data.{one.told.name}": one.given for one in data}
    wanted = artifact.request(KIND, asked, inputs)
    if use.folder is not None and _is_measured(use.folder, wanted):
        console.say(f"{use.folder}: measured before on the same weights, tokenizers and data, which is shown again")
        _print(read_comparison((use.folder / COMPARISON_RESULTS).read_text(encoding="utf-8")))
        return
    comparison = _measure(models, [one.told for one in data], questions, asked, use.device)
    _print(comparison)
    if use.folder is not None:
        with artifact.build(use.folder, wanted) as (partial, stats):
            stats |= {"models": len(models), "scores": sum(len(model.measured) for model in comparison.models)}
            _write(partial, comparison)
        console.say(f"kept in {use.folder}: {COMPARISON_RESULTS}, results.csv, outcomes.csv, results.txt, {PAGE}")


def open_sound_checkpoint(reference: str) -> Artifact:
    """A checkpoint by name whose every byte is as it was written. Raises CheckpointError."""
    from fledge.evaluation.comparison_measures import damaged_files

    found = open_checkpoint(reference)
    # The id of a folder of others was made from its bytes just now.
    damaged = damaged_files(found) if found.manifest.kind != "huggingface" else []
    if damaged:
        raise CheckpointError(
            f"{reference} is not what was trained: {'; '.join(damaged)}", "name another checkpoint, or bring the file back"
        )
    return found


def _sound_base(model: Artifact) -> Artifact | None:
    """What an adapter's weights are added to; None of a whole model. Raises CheckpointError as `open_sound_checkpoint`."""
    return open_sound_checkpoint(str(find_base(model.path))) if is_adapter(model.path) else None


def _sound_corpus(folder: Path) -> Artifact:
    """A corpus whose held-out text is as it was written. Raises ArtifactError."""
    found = artifact.open_artifact(folder, "corpus")
    held_out = {name: digest for name, digest in found.manifest.files.items() if name.startswith("validation")}
    damaged = artifact.changed_files(folder, held_out)
    if damaged:
        raise ArtifactError("; ".join(damaged), "bring the file back, or measure on other text")
    return found


def stale_inputs(comparison: Artifact) -> list[str]:
    """Which of the models and data of a comparison are no longer what was measured, one line each."""
    return [f"{role} ({given.path})" for role, given in comparison.manifest.inputs.items() if _current_id(given) != given.id]


def show_comparison(found: Artifact) -> None:
    """Print a comparison that was kept. Raises ArtifactError if it is damaged, or stale."""
    problems = artifact.verify(found)
    if problems:
        raise ArtifactError("; ".join(problems), "measure again: fledge evaluate MODEL ... --to FOLDER, in another folder")
    stale = stale_inputs(found)
    if stale:
        models = " ".join(found.manifest.settings["models"])
        raise ArtifactError(
            f"{found.path} is stale: {', '.join(stale)} is not what was measured any more",
            f"measure again: fledge evaluate {models} --to {found.path}, with the options of then",
        )
    _print(read_comparison((found.path / COMPARISON_RESULTS).read_text(encoding="utf-8")))


def _current_id(given: artifact.Input) -> str | None:
    """The id of what lies at an input's place now; None if there is nothing, or it is damaged."""
    place = Path(given.path)
    try:
        if given.kind in (DATA, "huggingface"):
            return artifact.foreign(place, given.kind).id
        if given.kind == "checkpoint":
            return open_sound_checkpoint(given.path).id
        return _sound_corpus(place).id
    except FledgeError:
        return None


def _distinct(places: Sequence[str]) -> list[str]:
    names = [place.rstrip("/") or place for place in places]
    _require_distinct(names, "name every model once")
    return names


def _require_distinct(names: Sequence[str], remedy: str) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"{twice} is named twice", remedy)


def _read_prompts(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--prompts {path} cannot be read: {error}", "give a file of UTF-8 text with a prompt on each line") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise DataError(f"--prompts {path} holds no prompt", "write one on each line")
    return prompts


def _questions(use: Use, models: Sequence[Artifact]) -> tuple[list[_Data], Questions]:
    """What is asked for, with all data found and hashed. Raises ConfigError if it is nothing, DataError for data that is not there."""
    from fledge.evaluation.comparison_measures import Questions, Text

    prompts = (*use.prompts, *(_read_prompts(use.prompt_file) if use.prompt_file else ()))
    placed = find_given_benchmarks(use.benchmarks)
    tasks = [one.partition("=") for one in use.harness]
    harness = {name: Path(file) if file else None for name, _, file in tasks}
    _require_distinct([*(one.name for one in placed), *(f"lm-eval's {name}" for name, _, _ in tasks)], "name every task once")
    texts = _texts(use.files, models, has_other_work=bool(prompts or placed or harness))
    data = list(texts)
    data += [_file_data(one.name, one.file.path, f"rows of {one.benchmark.title}") for one in placed]
    data += [_file_data(f"lm-eval {name}", path, f"rows of lm-eval's {name}") for name, path in harness.items() if path is not None]
    _require_distinct([one.told.name for one in data], "give one of the two files another name")
    return data, Questions(
        texts=tuple(Text(one.told, one.documents, one.note) for one in texts),
        benchmarks=tuple(placed),
        harness=harness,
        prompts=prompts,
        samples=_samples(use.samples),
        seed=use.seed,
        maximum_new_tokens=use.maximum_new_tokens,
        context_tokens=use.context_tokens,
        stride_tokens=use.stride_tokens,
    )


def _identity(names: Sequence[str], data: Sequence[_Data], questions: Questions) -> dict[str, Any]:
    """What decides the figures besides models and data; the benchmarks by what they ask."""
    plain = ("samples", "seed", "maximum_new_tokens", "context_tokens", "stride_tokens")
    return {
        "models": list(names),
        "data": [one.told.name for one in data],
        "benchmarks": [one.identity for one in questions.benchmarks],
        "harness": list(questions.harness or ()),
        **({"lm_eval": _harness_version()} if questions.harness else {}),
        "prompts": list(questions.prompts),
        **{name: getattr(questions, name) for name in plain},
    }


def _harness_version() -> str:
    """Empty where it is not installed, which is said when it is asked."""
    try:
        return importlib.metadata.version("lm_eval")
    except importlib.metadata.PackageNotFoundError:
        return ""


def _samples(given: str) -> Samples:
    """Raises ConfigError for what is neither a known word nor a number."""
    if given.isdecimal() and int(given) >= 1:
        return int(given)
    if given not in get_args(get_args(Samples)[1]):
        raise ConfigError(f"--samples {given} is no number of samples", "give quick, standard, comprehensive, all, or a number")
    return cast(Samples, given)


def find_given_benchmarks(given: Sequence[str]) -> list[PlacedBenchmark]:
    """NAME=PLACE each; a YAML file is called as it is named; of a folder all whose rows lie there. Raises DataError, ConfigError."""
    found: list[PlacedBenchmark] = []
    for one in given:
        name, equals, place = one.partition("=")
        if equals:
            found.append(find_benchmark(name, place))
        elif Path(one).is_dir():
            held = [known for known in BENCHMARKS if rows_in(Path(one), known)]
            if not held:
                raise DataError(f"{one} holds the rows of no benchmark", f"put NAME.jsonl there, NAME one of {', '.join(BENCHMARKS)}")
            found += [find_benchmark(known, one) for known in held]
        else:
            found.append(find_benchmark(Path(one).stem, one))
    return found


def _file_data(name: str, path: Path, what: str, note: str = "") -> _Data:
    if not path.is_file():
        raise DataError(f"there is no file {path}", "mend its path")
    return _Data(ComparedData(name, disk.digest_file(path).sha256, f"{what}: {path}"), artifact.foreign(path, DATA), note)


def _texts(files: Sequence[str], models: Sequence[Artifact], has_other_work: bool) -> list[_Data]:
    """The text files that are named, else what the first model that knows its corpus was not trained on, else nothing."""
    if files:
        return [_file_data(file.name, file.path, "text file", IN_PIECES) for file in find_text_files(files, "--file")]
    if has_other_work:
        return []
    for model in models:
        corpus = _corpus_of(model)
        if corpus is not None:
            console.info(f"measured on the held-out documents of {corpus.path}, which a model of another run may have been trained on")
            told = ComparedData(HELD_OUT, corpus.id, f"held-out documents of {corpus.path}")
            return [_Data(told, _sound_corpus(corpus.path))]
    raise ConfigError(
        "there is nothing to measure on",
        "give --file, --benchmarks or --prompt, or a model whose corpus is still there",
    )


def _corpus_of(model: Artifact) -> Artifact | None:
    """The first corpus in the lineage of a model that has held-out documents."""
    for _, _, given, found in artifact.lineage(model):
        is_of_documents = given.kind == "corpus" and found is not None and found.manifest.settings["content"] == "documents"
        if found is not None and is_of_documents and found.stats["rows"]["validation"]:
            return found
    return None


def _is_measured(folder: Path, wanted: artifact.Request) -> bool:
    """Whether a folder holds this very comparison; another one is told and moved aside. Raises ArtifactError if it holds anything else."""
    try:
        if artifact.state(folder, wanted) != "finished":
            return False
    except ArtifactError as error:
        if artifact.open_artifact(folder).manifest.kind != KIND:
            raise
        aside = free_name(folder.with_name(f"{folder.name}~{artifact.read_key(folder / artifact.MANIFEST)[:8]}"))
        disk.move(folder, aside)
        console.say(f"{error.problem}: measured again; what was there is now {aside}")
        return False
    problems = artifact.verify(artifact.open_artifact(folder))
    if problems:
        raise ArtifactError("; ".join(problems), f"remove {folder}, so that it is measured again")
    return True


def _measure(
    models: dict[str, Artifact], data: Sequence[ComparedData], questions: Questions, asked: dict[str, Any], device: DeviceName
) -> Comparison:
    import torch

    from fledge.core.process import keep_freed_memory
    from fledge.evaluation.comparison_measures import measure
    from fledge.model.devices import choose_device
    from fledge.model.precision import use_fast_fp32

    keep_freed_memory()
    chosen = choose_device(device)
    use_fast_fp32(chosen)
    measured = []
    with console.progress("evaluate", len(models), "models") as progress:
        for name, found in models.items():
            measured.append(measure(name, found, questions, chosen))
            progress.advance(note=name)
    # What lm-eval computes is a matter of its version.
    harness = {"lm_eval": _harness_version()} if questions.harness else {}
    software = {"fledge": __version__, "torch": torch.__version__, "python": platform.python_version(), "precision": "fp32", **harness}
    return Comparison(tuple(measured), tuple(data), find_differences(measured, questions.seed), asked, software)


def _write(folder: Path, comparison: Comparison) -> None:
    from fledge.evaluation.comparison_page import comparison_page

    disk.write_json(folder / COMPARISON_RESULTS, comparison_json(comparison))
    disk.write_text(folder / "results.csv", comparison_csv(comparison))
    disk.write_text(folder / "outcomes.csv", outcomes_csv(comparison))
    disk.write_text(folder / "results.txt", comparison_text(comparison))
    disk.write_text(folder / PAGE, comparison_page(comparison))


def _print(comparison: Comparison) -> None:
    if any(model.measured for model in comparison.models):
        console.table("scores (? : not distinguishable from guessing)", *scores_table(comparison))
    if comparison.differences:
        console.table("differences, item by item", *differences_table(comparison))
        console.info(HOW_TO_READ)
    for line in _answer_lines(comparison):
        console.say(line)


def _answer_lines(comparison: Comparison) -> Iterator[str]:
    for prompt, answers in answers_by_prompt(comparison):
        yield f"\n> {prompt}"
        yield from (f"  {name}: {text}" for name, text in answers)
