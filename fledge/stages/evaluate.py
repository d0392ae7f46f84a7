"""Stage 8: what each checkpoint of the run can do, measured on text and questions that none of them has seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fledge.core import artifact, console, disk
from fledge.core.artifact import Artifact
from fledge.core.process import keep_freed_memory
from fledge.corpus.document import Conversation, Document, read_conversations, read_documents
from fledge.evaluation.checkpoint import CheckpointEvaluation, evaluate_base, evaluate_chat, evaluate_preference, results_table
from fledge.evaluation.compression import CompressorFigure, compressor_figures
from fledge.evaluation.generations import Answer
from fledge.evaluation.preference import drawn_pairs
from fledge.evaluation.scoring import leading_texts
from fledge.evaluation.settings import EvaluateSettings
from fledge.evaluation.statistics import Score
from fledge.model.folder import load_model
from fledge.model.precision import use_fast_fp32
from fledge.stages import TRAINING_STAGES, wanted
from fledge.stages.references import open_checkpoint
from fledge.stages.run import Run, make
from fledge.tokens.shards import TokenSet, open_token_set
from fledge.tokens.tokenizer import open_tokenizer, require_same_tokenizer
from fledge.training.score import read_scores

RESULTS = "results.json"


@dataclass(frozen=True)
class HeldOut:
    """What is measured on."""

    documents: Sequence[Document]
    conversations: Sequence[Conversation]
    document_tokens: TokenSet | None
    pair_tokens: TokenSet | None
    scores_folder: Path | None


def run(run: Run) -> None:
    settings: EvaluateSettings = run.recipe.section("evaluate")
    checkpoints = dict(_checkpoints(run, settings))
    corpora = {content: run.corpora((), content) for content in ("documents", "conversations")}
    tokens = {content: run.own(f"pack/{content}", "tokens") for content in ("documents", "preferences")}
    scores = run.own("score", "scores")
    inputs = {f"checkpoint.{name}": found for name, found in checkpoints.items()}
    inputs |= {f"{content}.{role}": found for content, by_role in corpora.items() for role, found in by_role.items()}
    inputs |= {f"tokens.{content}": found for content, found in tokens.items() if found} | ({"scores": scores} if scores else {})

    def fill(folder: Path, stats: dict[str, Any]) -> str:
        keep_freed_memory()
        use_fast_fp32("cpu")
        held_out = HeldOut(
            [row for found in corpora["documents"].values() for row in read_documents(found.path, "validation")],
            [row for found in corpora["conversations"].values() for row in read_conversations(found.path, "validation")],
            open_token_set(tokens["documents"].path) if tokens["documents"] else None,
            open_token_set(tokens["preferences"].path) if tokens["preferences"] else None,
            scores.path if scores else None,
        )
        with console.progress("evaluate", len(checkpoints), "checkpoints") as progress:
            evaluations = []
            for name, found in checkpoints.items():
                evaluations.append(_evaluate(run, settings, name, found, held_out))
                progress.advance(note=name)
        compressors = _compressors(settings, held_out, tokens["documents"], corpora["documents"])
        results = {"evaluations": [asdict(one) for one in evaluations], "compressors": [asdict(one) for one in compressors]}
        disk.write_json(folder / RESULTS, results)
        stats["checkpoints"] = len(evaluations)
        stats["scores"] = sum(len(one.scores) for one in evaluations)
        console.table("held-out results (? : not distinguishable from guessing)", *results_table(evaluations))
        console.table("bits per byte of compressors on the same text", ["compressor", "bits per byte"], _rows(compressors))
        return f"{stats['scores']} scores of {len(evaluations)} checkpoints"

    make(run.folder / "evaluate", artifact.request("evaluation", settings, inputs), fill, "evaluate")


def _compressors(
    settings: EvaluateSettings, held_out: HeldOut, tokens: Artifact | None, corpora: dict[str, Artifact]
) -> list[CompressorFigure]:
    """What zlib and xz make of the very text that bits per byte are measured on."""
    if not settings.compressors or held_out.document_tokens is None or tokens is None:
        return []
    tokenizer = open_tokenizer(Path(tokens.manifest.inputs["tokenizer"].path))
    texts = leading_texts(held_out.document_tokens, tokenizer, "validation", settings.maximum_text_bytes)
    training_texts = (row.text for found in corpora.values() for row in read_documents(found.path, "train"))
    return compressor_figures(texts, training_texts)


def _rows(compressors: Sequence[CompressorFigure]) -> list[list[str]]:
    return [[figure.name, f"{figure.bits_per_byte:.3f}"] for figure in compressors]


def _checkpoints(run: Run, settings: EvaluateSettings) -> Iterator[tuple[str, Artifact]]:
    for name in settings.checkpoints:
        if name not in TRAINING_STAGES:
            yield name, open_checkpoint(name)
        elif wanted(name, run):
            yield name, open_checkpoint(f"{run.folder / name}@final")


def _evaluate(run: Run, settings: EvaluateSettings, name: str, checkpoint: Artifact, held_out: HeldOut) -> CheckpointEvaluation:
    model, tokenizer = load_model(checkpoint.path).eval(), open_tokenizer(checkpoint.path)
    scores: list[Score] = []
    answers: list[Answer] = []
    if held_out.document_tokens is not None:
        require_same_tokenizer(held_out.document_tokens.tokenizer_sha256, tokenizer.sha256, str(checkpoint.path))
        isolate = run.recipe.pretrain is None or run.recipe.pretrain.isolate_documents
        tokens, documents = held_out.document_tokens, held_out.documents
        scores += evaluate_base(model, tokenizer, tokens, documents, settings, isolate_documents=isolate)
    if held_out.conversations and tokenizer.turn_end in model.config.end_token_ids:
        chat_scores, answers = evaluate_chat(model, tokenizer, held_out.conversations, settings)
        scores += chat_scores
    if held_out.pair_tokens is not None and held_out.pair_tokens.shards("validation") and tokenizer.turn_end in model.config.end_token_ids:
        reference, beta = None, 0.1
        if name == "dpo" and held_out.scores_folder is not None:
            reference = drawn_pairs(held_out.pair_tokens, settings, read_scores(held_out.scores_folder, "validation"))
            beta = run.recipe.section("dpo").objective.beta
        scores += evaluate_preference(model, held_out.pair_tokens, settings, reference, beta)
    return CheckpointEvaluation(name, tuple(scores), tuple(answers))
