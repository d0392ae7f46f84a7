"""The scores of every checkpoint on text and questions that none of them has seen, with samples and what compressors reach."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from fledge.core import console, disk
from fledge.core.artifact import Artifact
from fledge.core.process import keep_freed_memory
from fledge.corpus.document import Conversation, Document, Split, read_conversations, read_documents
from fledge.corpus.filters.evaluation_files import EvaluationFile
from fledge.evaluation.benchmarks.places import PlacedBenchmark
from fledge.evaluation.benchmarks.run import BenchmarkResult, run_benchmark
from fledge.evaluation.checkpoint import (
    CheckpointEvaluation,
    answer_perplexity_score,
    answers_questions,
    evaluate_base,
    evaluate_chat,
    replies_table,
    replies_text,
    results_csv,
    results_table,
    results_text,
    training_settings,
)
from fledge.evaluation.compression import CompressorFigure, compressor_figures
from fledge.evaluation.generations import Answer, Sample, continued_documents, respond
from fledge.evaluation.preference import PairLogProbabilities, pair_log_probabilities, preference_scores
from fledge.evaluation.run_data import RESULTS
from fledge.evaluation.scoring import leading_texts
from fledge.evaluation.settings import EvaluateSettings
from fledge.evaluation.statistics import Score
from fledge.evaluation.text_files import text_file_scores
from fledge.model.devices import choose_device
from fledge.model.folder import load_model
from fledge.model.llama import Llama
from fledge.model.precision import set_fp32_products, use_fast_fp32
from fledge.stages.checkpoint_names import is_checkpoint
from fledge.stages.run import Run
from fledge.tokens.settings import CorpusSplitSettings
from fledge.tokens.shards import TokenSet, join_token_sets, open_token_set
from fledge.tokens.tokenizer import Tokenizer, open_tokenizer, require_same_tokenizer
from fledge.tokens.unpacking import unpacked_documents

OUTCOMES = "outcomes.json"
"""Of each checkpoint and benchmark the outcome of every row, for comparisons row by row."""


@dataclass(frozen=True)
class Asked:
    """What the recipe names to be measured besides the run's own held-out data."""

    files: Sequence[EvaluationFile]
    """Text files."""
    benchmarks: Sequence[PlacedBenchmark]


@dataclass(frozen=True)
class HeldOut:
    """What is measured on; and what was found of each checkpoint that others, or a later comparison, are measured by."""

    settings: EvaluateSettings
    device: torch.device
    documents: Sequence[Document]
    conversations: Sequence[Conversation]
    training_texts: Callable[[], Iterable[str]]
    """The texts trained on, for the compressor that may read them too."""
    document_tokens: TokenSet | None
    pair_tokens: TokenSet | None
    asked: Asked
    pairs: dict[str, PairLogProbabilities] = field(default_factory=dict)
    benchmark_results: dict[str, list[BenchmarkResult]] = field(default_factory=dict)


def make_evaluation(
    run: Run,
    checkpoints: Mapping[str, Artifact],
    tokenizers: Mapping[str, Path],
    corpora: Mapping[str, dict[str, Artifact]],
    tokens: Mapping[str, dict[str, Artifact]],
    asked: Asked,
    folder: Path,
) -> list[CheckpointEvaluation]:
    """Measure every checkpoint, print the scores and write them.

    `tokenizers` are the folders of those of the checkpoints, `corpora` and `tokens` the held-out data by content and role. Raises
    MachineError if the device is not there.
    """
    keep_freed_memory()
    settings: EvaluateSettings = run.recipe.section("evaluate")
    device = choose_device(settings.device)
    set_fp32_products("fp32", use_fast_fp32(device))  # training, in the same process, may have chosen others
    held_out = HeldOut(
        settings,
        device,
        list(_documents(run, corpora["documents"], tokens["documents"], "validation")),
        [row for found in corpora["conversations"].values() for row in read_conversations(found.path, "validation")],
        lambda: (row.text for row in _documents(run, corpora["documents"], tokens["documents"], "train")),
        _open(tokens["documents"]),
        _open(tokens["preferences"]),
        asked,
    )
    evaluations = []
    with console.progress("evaluate", len(checkpoints), "checkpoints") as progress:
        for name, found in checkpoints.items():
            evaluations.append(_evaluate(name, found, open_tokenizer(tokenizers[name]), held_out))
            progress.advance(note=name)
    first = next(iter(checkpoints), None)
    compressors = _compressors(held_out, open_tokenizer(tokenizers[first])) if first is not None else []
    samples = _samples(held_out, checkpoints[first], open_tokenizer(tokenizers[first])) if first is not None else []
    results = {
        "evaluations": [asdict(one) for one in evaluations],
        "compressors": [asdict(one) for one in compressors],
        "samples": [asdict(one) for one in samples],
    }
    disk.write_json(folder / RESULTS, results)
    if asked.benchmarks:
        disk.write_json(folder / OUTCOMES, {name: [asdict(one) for one in found] for name, found in held_out.benchmark_results.items()})
    disk.write_text(folder / "results.csv", results_csv(evaluations))
    disk.write_text(folder / "results.txt", results_text(evaluations) + replies_text(evaluations))
    _print(evaluations, compressors)
    return evaluations


def _documents(run: Run, corpora: dict[str, Artifact], tokens: dict[str, Artifact], split: Split) -> Iterator[Document]:
    """The documents of a split: as the corpus divides them, unless packing divided them anew; then as they were packed."""
    if tokens and run.recipe.pack is not None and not isinstance(run.recipe.pack.split, CorpusSplitSettings):
        for found in tokens.values():
            token_set, tokenizer = open_token_set(found.path), open_tokenizer(found.manifest.inputs["tokenizer"].path)
            for name, text in unpacked_documents(token_set, tokenizer, split):
                yield Document(text, name, "packed", "")
        return
    for found in corpora.values():
        yield from read_documents(found.path, split)


def _open(tokens: dict[str, Artifact]) -> TokenSet | None:
    return join_token_sets([open_token_set(found.path) for found in tokens.values()]) if tokens else None


def _evaluate(name: str, checkpoint: Artifact, tokenizer: Tokenizer, held_out: HeldOut) -> CheckpointEvaluation:
    model = load_model(checkpoint.path, held_out.device).eval()
    for token_set in (held_out.document_tokens, held_out.pair_tokens):
        if token_set is not None:
            what, holder = f"token set {token_set.folder}", f"checkpoint {checkpoint.path}"
            require_same_tokenizer(token_set.tokenizer_sha256, tokenizer.sha256, what, holder)
    scores: list[Score] = []
    answers: list[Answer] = []
    isolated = training_settings(checkpoint).get("isolate_documents", True)
    if held_out.document_tokens is not None:
        scores += evaluate_base(
            model, tokenizer, held_out.document_tokens, held_out.documents, held_out.settings, isolate_documents=isolated
        )
    scores += text_file_scores(model, tokenizer, held_out.asked.files, held_out.settings, isolate_documents=isolated)
    held_out.benchmark_results[name] = _benchmarks(model, tokenizer, held_out)
    scores += [score for result in held_out.benchmark_results[name] for score in result.scores]
    knows_controls = max(tokenizer.specials.values()) < model.config.vocabulary_size  # not so before its turns were learned
    if tokenizer.template is not None and held_out.conversations and knows_controls:
        likely = answer_perplexity_score(model, tokenizer, held_out.conversations, held_out.settings)
        scores += [likely] if likely is not None else []
    answering = answers_questions(checkpoint, model, tokenizer)
    if answering:
        if held_out.conversations:
            chat_scores, answers = evaluate_chat(model, tokenizer, held_out.conversations, held_out.settings)
            scores += chat_scores
        scores += _preference_scores(checkpoint, model, held_out)
    asked, settings = held_out.settings.prompts, held_out.settings
    replies = respond(model, tokenizer, asked, answering, settings.maximum_answer_tokens, settings.precision)
    return CheckpointEvaluation(name, tuple(scores), tuple(answers), tuple(replies))


def _benchmarks(model: Llama, tokenizer: Tokenizer, held_out: HeldOut) -> list[BenchmarkResult]:
    settings = held_out.settings
    return [
        run_benchmark(
            model,
            tokenizer,
            placed,
            samples=settings.benchmark_samples,
            seed=settings.seed,
            batch_tokens=settings.batch_tokens,
            precision=settings.precision,
            context_tokens=settings.window_tokens,
            stride_tokens=settings.stride_tokens,
        )
        for placed in held_out.asked.benchmarks
    ]


def _preference_scores(checkpoint: Artifact, model: Llama, held_out: HeldOut) -> list[Score]:
    """Scores on the pairs; of a checkpoint that learned from pairs also what it gained since the one it started from.

    The reference is computed here like the checkpoint itself: the scores that dpo trained with are of another precision, and the
    difference of the two would look like a preference.
    """
    if held_out.pair_tokens is None or not held_out.pair_tokens.shards("validation"):
        return []
    manifest = checkpoint.manifest
    if "scores" not in manifest.inputs:
        return preference_scores(_pairs(checkpoint.id, model, held_out), None)
    parent = manifest.inputs["start_from"]
    if parent.id not in held_out.pairs and not is_checkpoint(Path(parent.path)):
        console.warn(f"{parent.path} is not there any more: no rewards, which compare with it")
        return preference_scores(_pairs(checkpoint.id, model, held_out), None)
    reference = held_out.pairs.get(parent.id) or _pairs(parent.id, load_model(Path(parent.path), held_out.device).eval(), held_out)
    beta = training_settings(checkpoint)["objective"]["beta"]
    return preference_scores(_pairs(checkpoint.id, model, held_out), reference, beta)


def _pairs(checkpoint_id: str, model: Llama, held_out: HeldOut) -> PairLogProbabilities:
    assert held_out.pair_tokens is not None
    if checkpoint_id not in held_out.pairs:
        held_out.pairs[checkpoint_id] = pair_log_probabilities(model, held_out.pair_tokens, held_out.settings)
    return held_out.pairs[checkpoint_id]


def _samples(held_out: HeldOut, checkpoint: Artifact, tokenizer: Tokenizer) -> list[Sample]:
    """How the first of the checkpoints goes on with held-out documents."""
    model = load_model(checkpoint.path, held_out.device).eval()
    return continued_documents(model, tokenizer, held_out.documents, held_out.settings)


def _compressors(held_out: HeldOut, tokenizer: Tokenizer) -> list[CompressorFigure]:
    """What zlib and xz make of the very text that bits per byte are measured on."""
    if not held_out.settings.compressors or held_out.document_tokens is None:
        return []
    texts = leading_texts(held_out.document_tokens, tokenizer, "validation", held_out.settings.maximum_text_bytes)
    with console.progress("compress the held-out text", None, "texts"):
        return compressor_figures(texts, held_out.training_texts())


def _print(evaluations: Sequence[CheckpointEvaluation], compressors: Sequence[CompressorFigure]) -> None:
    if not any(one.scores for one in evaluations):
        console.warn("nothing was measured: there is no held-out text, or no checkpoint to measure")
        return
    console.table("held-out results (? : not distinguishable from guessing)", *results_table(evaluations))
    if evaluations[0].replies:
        console.table("what they say to the prompts", *replies_table(evaluations))
    if compressors:
        rows = [[figure.name, f"{figure.bits_per_byte:.3f}"] for figure in compressors]
        console.table("bits per byte of compressors on the same text", ["compressor", "bits per byte"], rows)
