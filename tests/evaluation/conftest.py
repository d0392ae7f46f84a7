"""A corpus in the shape of the embedded one, packed; a model that knows nothing and one that has learned the corpus by heart."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fledge.corpus.document import Conversation, Document, Message, Preference
from fledge.model.llama import Llama
from fledge.model.settings import ModelConfig, ModelSettings, padded_vocabulary_size
from fledge.tokens.chat import render_batch
from fledge.tokens.document_packing import pack_documents
from fledge.tokens.packing import pack_preferences
from fledge.tokens.settings import TokenizerSettings
from fledge.tokens.shards import TokenSet, open_token_set
from fledge.tokens.tokenizer import Tokenizer, open_tokenizer
from fledge.tokens.trainers import train_tokenizer

VERBS = ["shift", "turn", "copy", "sort", "join", "split", "read", "write", "count", "drop", "mark", "fold"]
THINGS = ["rows", "words", "files", "pages", "names", "lists"]
ROW_TOKENS = 128


@dataclass(frozen=True)
class Corpus:
    """Everything the evaluation of one run reads; the same rows serve as training and as validation text."""

    documents: tuple[Document, ...]
    conversations: tuple[Conversation, ...]
    tokenizer: Tokenizer
    document_tokens: TokenSet
    preference_tokens: TokenSet


def make_document(index: int) -> Document:
    verb, thing = VERBS[index % 12], THINGS[index // 12 % 6]
    body = f"{verb} all {thing} of a table one after the other. The first and the last of the {thing} stay as they are in the {thing}."
    return Document(f"tables.{verb}_{thing}(table)\n\n{body}", f"d{index}", "docs", f"g{index}")


def make_conversation(index: int) -> Conversation:
    verb, thing = VERBS[index % 12], THINGS[index // 12 % 6]
    messages = (Message("user", f"What does {verb}_{thing} do?"), Message("assistant", f"It will {verb} the {thing}."))
    return Conversation(messages, f"c{index}", "docs", f"g{index}")


def make_preference(conversation: Conversation, damage: str) -> Preference:
    answer = conversation.messages[1].content
    rejected = answer[:8] if damage == "cut" else answer.replace("the", "the the the")
    return Preference(conversation.messages[:1], answer, rejected, damage, conversation.id, "docs", conversation.group)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def documents() -> list[Document]:
    return [make_document(index) for index in range(40)]


@pytest.fixture(scope="session")
def conversations() -> list[Conversation]:
    return [make_conversation(index) for index in range(30)]


@pytest.fixture(scope="session")
def corpus(documents: list[Document], conversations: list[Conversation], tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    for name in ("tokenizer", "documents", "preferences"):
        (folder / name).mkdir()
    train_tokenizer(TokenizerSettings(vocabulary_size=400), (document.text for document in documents), folder / "tokenizer")
    tokenizer = open_tokenizer(folder / "tokenizer")
    pairs = [make_preference(one, ("cut", "repeat")[index % 2]) for index, one in enumerate(conversations)]
    for split in ("train", "validation"):
        pack_documents(documents, tokenizer, folder / "documents", split)
        pack_preferences(pairs, tokenizer, folder / "preferences", split, ROW_TOKENS)
    return Corpus(
        tuple(documents), tuple(conversations), tokenizer, open_token_set(folder / "documents"), open_token_set(folder / "preferences")
    )


def new_model(tokenizer: Tokenizer, seed: int = 0) -> Llama:
    settings = ModelSettings(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=ROW_TOKENS,
        initializer_range=0.1,
    )
    return Llama(ModelConfig(settings, padded_vocabulary_size(tokenizer.vocabulary_size)), seed)


@pytest.fixture(scope="session")
def uniform_model(corpus: Corpus) -> Llama:
    """Every token is equally likely, always."""
    model = new_model(corpus.tokenizer).requires_grad_(False)
    model.lm_head.weight.zero_()
    return model


@pytest.fixture(scope="session")
def random_model(corpus: Corpus) -> Llama:
    return new_model(corpus.tokenizer, seed=3).requires_grad_(False)


@pytest.fixture(scope="session")
def trained_model(corpus: Corpus) -> Llama:
    """Has learned documents and conversations by heart."""
    tokenizer = corpus.tokenizer
    texts = tokenizer.encode_batch([document.text for document in corpus.documents])
    rows = [[tokenizer.end_of_text, *ids, tokenizer.end_of_text] for ids in texts]
    rows += [rendered.ids for rendered in render_batch(tokenizer, [one.messages for one in corpus.conversations])]
    model = new_model(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0, fused=True)
    chosen = random.Random(0)
    for _ in range(150):
        tokens, targets = _batch(chosen.sample(rows, 24))
        loss = model(tokens, targets=targets).nll.sum() / (targets != -100).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.requires_grad_(False)


def _batch(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    longest = max(len(row) for row in rows) - 1
    tokens = torch.tensor([[*row[:-1], *[0] * (longest - len(row) + 1)] for row in rows])
    targets = torch.tensor([[*row[1:], *[-100] * (longest - len(row) + 1)] for row in rows])
    return tokens, targets


def open_texts_as_llama_does(folder: Path) -> int:
    """Let a tokenizer.json put <|endoftext|> in front of every text, as published ones do with their <s>; returns its id."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    name, text = "<|endoftext|>", {"Sequence": {"id": "A", "type_id": 0}}
    [token] = [one["id"] for one in content["added_tokens"] if one["content"] == name]
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": name, "type_id": 0}}, text],
        "pair": [text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {name: {"id": name, "ids": [token], "tokens": [name]}},
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    return int(token)
