"""What a chat model says to held-out questions: does it stop by itself, does it say different things, and what does it say?

Greedy answers, so the figures do not depend on a seed. "Distinct answers" catches a model that answers every question alike.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fledge.corpus.document import Conversation, Document, Message
from fledge.evaluation.settings import EvaluateSettings
from fledge.evaluation.statistics import Score, mean_score, share_score
from fledge.inference.engine import Engine
from fledge.inference.settings import GenerationSettings
from fledge.model.folder import load_model
from fledge.model.llama import Llama
from fledge.model.precision import Precision
from fledge.tokens.chat import render, render_batch
from fledge.tokens.tokenizer import Tokenizer, open_tokenizer

SAMPLED_DOCUMENTS = 3
REPETITION_WORDS = 4


@dataclass(frozen=True)
class Answer:
    """One held-out question with what the model and the corpus answer."""

    question: str
    reference: str
    """The answer the corpus gives."""
    text: str
    stopped: bool
    """Whether the model ended its answer by itself."""


@dataclass(frozen=True)
class Sample:
    """A prompt and how a model went on."""

    prompt: str
    text: str
    note: str = ""


def continued_documents(model: Llama, tokenizer: Tokenizer, documents: Sequence[Document], settings: EvaluateSettings) -> list[Sample]:
    """Greedy continuations of the first lines of a few held-out documents: what a base model does."""
    engine = Engine(model, tokenizer.vocabulary_size, model.config.end_token_ids, settings.precision)
    chosen = random.Random(settings.seed).sample(list(documents), min(SAMPLED_DOCUMENTS, len(documents)))
    prompts = [document.text.partition("\n")[0] + "\n\n" for document in chosen]
    ids = [[*tokenizer.document_start, *encoded] for encoded in tokenizer.encode_batch(prompts)]
    asked = [(prompt, one) for prompt, one in zip(prompts, ids, strict=True) if len(one) < engine.context_tokens]
    greedy = GenerationSettings(temperature=0, maximum_new_tokens=settings.maximum_answer_tokens)
    completions = engine.generate([one for _, one in asked], greedy)
    return [
        Sample(prompt.strip(), tokenizer.decode(completion.ids).strip()) for (prompt, _), completion in zip(asked, completions, strict=True)
    ]


def answer_questions(model: Llama, tokenizer: Tokenizer, conversations: Sequence[Conversation], settings: EvaluateSettings) -> list[Answer]:
    """Greedy answers to the last question of a seeded sample of conversations; prompts that leave no room for one are left out."""
    chosen = random.Random(settings.seed).sample(list(conversations), min(settings.questions, len(conversations)))
    engine = Engine(model, tokenizer.vocabulary_size, tokenizer.end_ids(answers=True), settings.precision)
    rendered = render_batch(tokenizer, [conversation.messages[:-1] for conversation in chosen], answer_follows=True)
    asked = [
        (conversation, prompt.ids) for conversation, prompt in zip(chosen, rendered, strict=True) if len(prompt.ids) < engine.context_tokens
    ]
    greedy = GenerationSettings(temperature=0, maximum_new_tokens=settings.maximum_answer_tokens)
    completions = engine.generate([ids for _, ids in asked], greedy)
    return [
        Answer(
            conversation.messages[-2].content,
            conversation.messages[-1].content,
            tokenizer.decode(completion.ids).strip(),
            completion.stopped,
        )
        for (conversation, _), completion in zip(asked, completions, strict=True)
    ]


def answer_question(checkpoint: Path, question: str, maximum_new_tokens: int) -> str:
    """The greedy answer of a checkpoint to one question. Raises DataError if its tokenizer has no turns, or the question is too long."""
    tokenizer = open_tokenizer(checkpoint)
    prompt = render(tokenizer, [Message("user", question)], answer_follows=True).ids
    engine = Engine(load_model(checkpoint).eval(), tokenizer.vocabulary_size, tokenizer.end_ids(answers=True))
    [completion] = engine.generate([prompt], GenerationSettings(temperature=0, maximum_new_tokens=maximum_new_tokens))
    return tokenizer.decode(completion.ids).strip()


def respond(model: Llama, tokenizer: Tokenizer, questions: Sequence[str], maximum_new_tokens: int, precision: Precision) -> list[Sample]:
    """The greedy answer to each question. One that leaves no room in the context is said to be too long; the others are answered."""
    engine = Engine(model, tokenizer.vocabulary_size, tokenizer.end_ids(answers=True), precision)
    encoded = [render(tokenizer, [Message("user", question)], answer_follows=True).ids for question in questions]
    fitting = [place for place, ids in enumerate(encoded) if len(ids) < engine.context_tokens]
    greedy = GenerationSettings(temperature=0, maximum_new_tokens=maximum_new_tokens)
    completions = engine.generate([encoded[place] for place in fitting], greedy) if fitting else []
    said = {place: tokenizer.decode(completion.ids).strip() for place, completion in zip(fitting, completions, strict=True)}
    too_long = f"(the question does not fit into the context of {engine.context_tokens} tokens)"
    return [Sample(question, said.get(place, too_long)) for place, question in enumerate(questions)]


def answer_scores(answers: Sequence[Answer], maximum_answer_tokens: int) -> list[Score]:
    """Stop rate, distinct answers and n-grams, repetition and length; empty without answers.

    distinct-n is different n-grams of words over all of them (Li et al. 2016); repetition the mean share of an answer's 4-grams that
    occurred in it before.
    """
    if not answers:
        return []
    words = [answer.text.split() for answer in answers]
    stopped = sum(answer.stopped for answer in answers)
    distinct = len({answer.text for answer in answers})
    return [
        share_score("stop_rate", stopped, len(answers), note=f"answers that ended by themselves within {maximum_answer_tokens} tokens"),
        Score("distinct_answers", distinct, len(answers), None, None, unit="count", note="different answers among all"),
        *(_distinct_ngrams(words, size) for size in (1, 2)),
        mean_score("repetition", [_repeated_share(one) for one in words], "share", "4-grams of words that occurred before in their answer"),
        mean_score("answer_words", [float(len(one)) for one in words], "words", "length of an answer"),
    ]


def _ngrams(words: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[start:] for start in range(size)), strict=False))


def _distinct_ngrams(answers: Sequence[Sequence[str]], size: int) -> Score:
    found = [ngram for words in answers for ngram in _ngrams(words, size)]
    share = len(set(found)) / len(found) if found else 0.0
    return Score(f"distinct_{size}", share, len(answers), None, None, note=f"different among {len(found):,} {size}-grams of words")


def _repeated_share(words: Sequence[str]) -> float:
    found = _ngrams(words, REPETITION_WORDS)
    return 1 - len(set(found)) / len(found) if found else 0.0
