"""A tokenizer and token sets of every content as finished artifacts, small enough to be hashed a thousand times."""

from __future__ import annotations

import random
from pathlib import Path

from fledge.core import artifact
from fledge.core.artifact import Artifact
from fledge.corpus.document import Conversation, Document, Message, Split
from fledge.tokens.document_packing import pack_sides
from fledge.tokens.packing import pack_conversations
from fledge.tokens.settings import TokenizerSettings
from fledge.tokens.tokenizer import open_tokenizer
from fledge.tokens.trainers import train_tokenizer

WORDS = ["list", "dict", "returns", "a", "new", "copy", "value"]


def sentence(draw: random.Random) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(draw.randrange(1, 40)))


def make_tokenizer(folder: Path) -> Artifact:
    draw = random.Random(0)
    with artifact.build(folder, artifact.request("tokenizer", {})) as (partial, _):
        train_tokenizer(TokenizerSettings(vocabulary_size=300), [sentence(draw) for _ in range(50)], partial)
    return artifact.open_artifact(folder)


def make_documents(folder: Path, tokenizer: Artifact, row_tokens: int | None = None) -> Artifact:
    draw = random.Random(1)
    with artifact.build(folder, artifact.request("tokens", {"rows": row_tokens}, {"tokenizer": tokenizer})) as (partial, _):
        sides: list[Split] = ["train", "train", "train", "validation"]
        sided = ((sides[number % 4], Document(sentence(draw), f"id-{number}", ("books", "web")[number % 2], "g")) for number in range(40))
        pack_sides(sided, open_tokenizer(tokenizer.path), partial, row_tokens=row_tokens)
    return artifact.open_artifact(folder)


def make_conversations(folder: Path, tokenizer: Artifact) -> Artifact:
    draw = random.Random(2)
    with artifact.build(folder, artifact.request("tokens", {}, {"tokenizer": tokenizer})) as (partial, _):
        turns = ((Message("user", sentence(draw)), Message("assistant", sentence(draw))) for _ in range(20))
        talks = (Conversation(messages, f"id-{number}", "talk", "g") for number, messages in enumerate(turns))
        pack_conversations(talks, open_tokenizer(tokenizer.path), partial, "train", 256)
    return artifact.open_artifact(folder)
