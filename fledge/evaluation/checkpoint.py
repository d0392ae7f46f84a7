"""Everything that is measured on one checkpoint: the functions that the evaluate stage calls, and the table it prints.

`evaluate_base` needs a model and text, `evaluate_chat` a model that knows the chat format; pairs are measured in `preference`.
A task for which the held-out text offers no sample yields no score, never a made-up one.
"""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fledge.core.artifact import Artifact
from fledge.corpus.document import Conversation, Document
from fledge.evaluation.generations import Answer, Sample, answer_questions, answer_scores
from fledge.evaluation.score_words import format_score, format_value, score_title
from fledge.evaluation.scoring import Likelihood, ScoredSequence, bits_per_byte, continuation, loglikelihoods
from fledge.evaluation.settings import EvaluateSettings
from fledge.evaluation.statistics import Score, perplexity_score, score_from_plain, share_score
from fledge.evaluation.tasks import answer_choice_items, last_word_items, majority_share, yes_no_items
from fledge.model.llama import Llama
from fledge.tokens.chat import render_batch
from fledge.tokens.shards import TokenSet
from fledge.tokens.tokenizer import Tokenizer


@dataclass(frozen=True)
class CheckpointEvaluation:
    """What was measured on one checkpoint, plain enough for JSON (`dataclasses.asdict`)."""

    name: str
    """A stage (pretrain, sft, dpo), or the checkpoint as the user named it."""
    scores: tuple[Score, ...]
    answers: tuple[Answer, ...] = ()
    replies: tuple[Sample, ...] = ()
    """To the prompts of the recipe."""

    def score(self, name: str) -> Score | None:
        """The score of that name, if it was measured."""
        return next((score for score in self.scores if score.name == name), None)


def evaluate_base(
    model: Llama,
    tokenizer: Tokenizer,
    token_set: TokenSet,
    documents: Sequence[Document],
    settings: EvaluateSettings,
    *,
    isolate_documents: bool = True,
) -> list[Score]:
    """Bits per byte on the validation split of a set of documents, last word and yes/no on items made from validation documents.

    `isolate_documents` as in training.
    """
    scores = []
    if token_set.shards("validation"):
        scores.append(
            bits_per_byte(
                model,
                token_set,
                context_window_tokens(model, settings),
                isolate_documents=isolate_documents,
                maximum_text_bytes=settings.maximum_text_bytes,
                batch_tokens=settings.batch_tokens,
                precision=settings.precision,
            )
        )
    tasks = (last_word_score(model, tokenizer, documents, settings), yes_no_score(model, tokenizer, documents, settings))
    return [*scores, *(score for score in tasks if score is not None)]


def evaluate_chat(
    model: Llama, tokenizer: Tokenizer, conversations: Sequence[Conversation], settings: EvaluateSettings
) -> tuple[list[Score], list[Answer]]:
    """Stop and format rate, distinct answers and answer choice on held-out conversations, and the answers themselves."""
    answers = answer_questions(model, tokenizer, conversations, settings)
    choice = answer_choice_score(model, tokenizer, conversations, settings)
    return [*answer_scores(answers, settings.maximum_answer_tokens), *([choice] if choice else [])], answers


def context_window_tokens(model: Llama, settings: EvaluateSettings) -> int:
    """The window of the bits per byte: as asked for, at most the model's context."""
    longest = model.config.settings.max_position_embeddings
    return longest if settings.window_tokens is None else min(settings.window_tokens, longest)


def last_word_score(model: Llama, tokenizer: Tokenizer, documents: Sequence[Document], settings: EvaluateSettings) -> Score | None:
    """Strict accuracy: every token of " " + word is the most likely one. The context opens as a document does in training."""
    items = last_word_items(documents, settings.last_word_passages, settings.seed)
    contexts = tokenizer.encode_batch([item.context for item in items])
    words = tokenizer.encode_batch([f" {item.word}" for item in items])
    sequences = [continuation([*tokenizer.document_start, *context], word) for context, word in zip(contexts, words, strict=True)]
    kept = [index for index, sequence in enumerate(sequences) if _fits(model, sequence)]
    if not kept:
        return None
    found = _likelihoods(model, [sequences[index] for index in kept], settings)
    guessed = sum(items[index].guess_probability for index in kept) / len(kept)
    return share_score(
        "last_word",
        sum(likelihood.is_greedy for likelihood in found),
        len(kept),
        chance=guessed,
        majority=majority_share([items[index].word for index in kept]),
        note="chance: a random word of the passage; majority: always the most frequent last word",
    )


def yes_no_score(model: Llama, tokenizer: Tokenizer, documents: Sequence[Document], settings: EvaluateSettings) -> Score | None:
    """Whether " yes" or " no" is more likely after the prompt; a tie counts half."""
    items = yes_no_items(documents, settings.yes_no_questions, settings.seed)
    prompts = [[*tokenizer.document_start, *ids] for ids in tokenizer.encode_batch([item.prompt for item in items])]
    no, yes = tokenizer.encode(" no"), tokenizer.encode(" yes")
    kept = [index for index, prompt in enumerate(prompts) if _fits(model, continuation(prompt, max(no, yes, key=len)))]
    if not kept:
        return None
    sequences = [continuation(prompts[index], choice) for index in kept for choice in (no, yes)]
    found = [likelihood.log_probability for likelihood in _likelihoods(model, sequences, settings)]
    margins = [
        (after - before) * (1 if items[index].answer else -1) for index, before, after in zip(kept, found[0::2], found[1::2], strict=True)
    ]
    said_yes = sum(after > before for before, after in zip(found[0::2], found[1::2], strict=True))
    return share_score(
        "yes_no",
        _won(margins),
        len(kept),
        chance=0.5,
        majority=majority_share([items[index].answer for index in kept]),
        note=f"said yes to {said_yes} of {len(kept)}",
    )


def answer_choice_score(
    model: Llama, tokenizer: Tokenizer, conversations: Sequence[Conversation], settings: EvaluateSettings
) -> Score | None:
    """How often the answer (with its end of turn) is more likely after its own question than after another one; a tie counts half."""
    items = answer_choice_items(conversations, settings.choice_questions, settings.seed)
    own = _rendered(tokenizer, [[*item.own, item.answer] for item in items])
    other = _rendered(tokenizer, [[*item.other, item.answer] for item in items])
    pairs = [pair for pair in zip(own, other, strict=True) if all(_fits(model, sequence) for sequence in pair)]
    if not pairs:
        return None
    found = [likelihood.log_probability for likelihood in _likelihoods(model, [sequence for pair in pairs for sequence in pair], settings)]
    margins = [after_own - after_other for after_own, after_other in zip(found[0::2], found[1::2], strict=True)]
    return share_score(
        "answer_choice",
        _won(margins),
        len(pairs),
        chance=0.5,
        note="the right answer is more likely after its own question than after another one",
    )


def answer_perplexity_score(
    model: Llama, tokenizer: Tokenizer, conversations: Sequence[Conversation], settings: EvaluateSettings
) -> Score | None:
    """exp of the mean negative log-likelihood per token of the answers of held-out conversations, with their ends of turn.

    Also of a model that has not learned to answer, so that one sees what fine-tuning changed.
    """
    chosen = random.Random(settings.seed).sample(list(conversations), min(settings.questions, len(conversations)))
    sequences = [sequence for sequence in _rendered(tokenizer, [one.messages for one in chosen]) if _fits(model, sequence)]
    if not sequences:
        return None
    nats = [-likelihood.log_probability for likelihood in _likelihoods(model, sequences, settings)]
    return perplexity_score("answer_perplexity", nats, [sum(sequence.scored) for sequence in sequences], "given what was said before")


def results_table(evaluations: Sequence[CheckpointEvaluation]) -> tuple[list[str], list[list[str]]]:
    """Column titles and rows for `console.table`: one row per score, one column per checkpoint, then baseline and samples."""
    names = list(dict.fromkeys(score.name for evaluation in evaluations for score in evaluation.scores))
    rows = []
    for name in names:
        found = [evaluation.score(name) for evaluation in evaluations]
        known = next(score for score in found if score is not None)
        baseline = "" if known.baseline is None else format_value(known.baseline, known.unit)
        rows.append([score_title(name), *("" if score is None else format_score(score) for score in found), baseline, f"{known.n:,}"])
    return ["score", *(evaluation.name for evaluation in evaluations), "guessing", "n"], rows


def results_csv(evaluations: Sequence[CheckpointEvaluation]) -> str:
    """A line per checkpoint and score, for programs that want tables."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["checkpoint", "score", "value", "low", "high", "n", "unit", "baseline", "note"])
    for one in evaluations:
        for score in one.scores:
            given = (score.value, score.low, score.high, score.n, score.unit, score.baseline, score.note)
            writer.writerow([one.name, score.name, *("" if value is None else value for value in given)])
    return text.getvalue()


def results_text(evaluations: Sequence[CheckpointEvaluation]) -> str:
    """The table of `results_table` in columns of plain text."""
    return plain_columns(*results_table(evaluations))


def plain_columns(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as lines of text."""
    widths = [max(len(line[place]) for line in (titles, *rows)) for place in range(len(titles))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in (titles, *rows)]
    return "\n".join(lines) + "\n"


def replies_table(evaluations: Sequence[CheckpointEvaluation]) -> tuple[list[str], list[list[str]]]:
    """Column titles and rows: a row per prompt, a column per checkpoint. No rows without prompts."""
    asked = zip(*(one.replies for one in evaluations), strict=True)
    return ["prompt", *(one.name for one in evaluations)], [[replies[0].prompt, *(reply.text for reply in replies)] for replies in asked]


def replies_text(evaluations: Sequence[CheckpointEvaluation]) -> str:
    """The same as plain text: each prompt, and below it what every checkpoint says."""
    (_, *names), rows = replies_table(evaluations)
    blocks = [[f"\n> {prompt}", *(f"{name}: {said}" for name, said in zip(names, replies, strict=True))] for prompt, *replies in rows]
    return "".join(f"{line}\n" for block in blocks for line in block)


def training_settings(checkpoint: Artifact) -> dict[str, Any]:
    """What a checkpoint was trained with; empty for one that others wrote."""
    found: dict[str, Any] = checkpoint.manifest.settings.get("settings", {}).get("training", {})
    return found


def answers_questions(checkpoint: Artifact, model: Llama, tokenizer: Tokenizer) -> bool:
    """Whether a model was trained on conversations: told by what ends it, or, where turns have no end of their own, by its stage."""
    if tokenizer.template is None:
        return False
    if tokenizer.template.has_turn_tokens:
        return tokenizer.turn_end in model.config.end_token_ids
    return checkpoint.manifest.settings.get("settings", {}).get("stage") in ("sft", "dpo")


def evaluation_from_plain(plain: Mapping[str, Any]) -> CheckpointEvaluation:
    """A CheckpointEvaluation from what `dataclasses.asdict` and JSON made of it."""
    scores = tuple(score_from_plain(score) for score in plain["scores"])
    answers, replies = tuple(Answer(**one) for one in plain["answers"]), tuple(Sample(**one) for one in plain.get("replies", ()))
    return CheckpointEvaluation(plain["name"], scores, answers, replies)


def _likelihoods(model: Llama, sequences: Sequence[ScoredSequence], settings: EvaluateSettings) -> list[Likelihood]:
    return loglikelihoods(model, sequences, settings.batch_tokens, settings.precision)


def _rendered(tokenizer: Tokenizer, conversations: Sequence[Sequence[Any]]) -> list[ScoredSequence]:
    rendered = render_batch(tokenizer, conversations, last_answer_only=True)
    return [ScoredSequence(conversation.ids, conversation.supervised) for conversation in rendered]


def _fits(model: Llama, sequence: ScoredSequence) -> bool:
    return len(sequence.ids) <= model.config.settings.max_position_embeddings


def _won(margins: Sequence[float]) -> float:
    return sum(0.5 if margin == 0 else float(margin > 0) for margin in margins)
