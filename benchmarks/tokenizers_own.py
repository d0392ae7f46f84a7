"""What `benchmarks/tokenizers.py` runs of Fledge, each time in a process of its own.

    python -P tokenizers_own.py train CORPUS FOLDER --vocabulary-size N
    python -P tokenizers_own.py superwords CORPUS TOKENIZER FOLDER --transition SHARE
    python -P tokenizers_own.py pack CORPUS TOKENIZER FOLDER [--without LIBRARY ...]
    python -P tokenizers_own.py count CORPUS TOKENIZER
    python -P tokenizers_own.py versions

CORPUS is a folder of document shards, TOKENIZER a `tokenizer.json`. The last line on standard output is JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from fledge.corpus.document import read_documents
from fledge.tokens.engines import Encoded, EnginePool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(required=True)
    for run, names in (
        (train, ("corpus", "folder")),
        (superwords, ("corpus", "tokenizer", "folder")),
        (pack, ("corpus", "tokenizer", "folder")),
        (count, ("corpus", "tokenizer")),
        (versions, ()),
    ):
        action = actions.add_parser(run.__name__)
        for name in names:
            action.add_argument(name, type=Path)
        action.add_argument("--vocabulary-size", type=int)
        action.add_argument("--transition", type=float)
        action.add_argument("--without", nargs="*", default=[])
        action.set_defaults(run=run)
    arguments = parser.parse_args()
    print(json.dumps(arguments.run(arguments)))


def train(arguments: argparse.Namespace) -> dict[str, Any]:
    """Byte-level BPE on the training documents."""
    from fledge.tokens.settings import TokenizerSettings
    from fledge.tokens.trainers import train_tokenizer

    texts = (document.text for document in read_documents(arguments.corpus, "train"))
    return train_tokenizer(TokenizerSettings(vocabulary_size=arguments.vocabulary_size), texts, arguments.folder)


def superwords(arguments: argparse.Namespace) -> dict[str, Any]:
    """SuperBPE of the same size, from a byte-level BPE."""
    from fledge.tokens.superbpe import train_superwords, transition_tokens

    content = json.loads(arguments.tokenizer.read_text(encoding="utf-8"))
    size = len(content["model"]["vocab"]) + len(content["added_tokens"])
    texts = (document.text for document in read_documents(arguments.corpus, "train"))
    made = train_superwords(content, transition_tokens(arguments.transition, size), size, texts)
    arguments.folder.mkdir(parents=True)
    (arguments.folder / "tokenizer.json").write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")
    return {"vocabulary_size": len(made["model"]["vocab"]) + len(made["added_tokens"])}


def pack(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the pack stage does with documents: read the shards, encode, write token shards."""
    from fledge.tokens.document_packing import pack_documents

    for library in arguments.without:
        sys.modules[library] = None  # type: ignore[assignment]
    tokenizer: Any = Plain(arguments.tokenizer)
    documents = read_documents(arguments.corpus, "train")
    return pack_documents(documents, tokenizer, arguments.folder, "train", text_bytes=1 << 30)


def count(arguments: argparse.Namespace) -> dict[str, Any]:
    """Characters and tokens of the held-out documents."""
    texts = [document.text for document in read_documents(arguments.corpus, "validation")]
    tokenizer = Plain(arguments.tokenizer)
    tokenizer.choose_engine(texts)
    return {"characters": sum(map(len, texts)), "tokens": len(tokenizer.encode_arrays(texts).ids)}


def versions(_: argparse.Namespace) -> dict[str, str]:
    names = ("fledge", "tokenizers", "gigatoken", "tiktoken", "numba", "numpy", "pyarrow")
    return {name: metadata.version(name) for name in names} | {"python": platform.python_version()}


class Plain:
    """What packing needs of a tokenizer, from its `tokenizer.json` alone."""

    def __init__(self, path: Path) -> None:
        content = json.loads(path.read_text(encoding="utf-8"))
        size = len(content["model"]["vocab"])
        self.vocabulary_size = size + len(content["added_tokens"])
        self.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        self.document_start, self.document_end = (size,), ()
        self._pool = EnginePool({**content, "added_tokens": [], "post_processor": None})

    def choose_engine(self, sample_texts: Sequence[str]) -> dict[str, Any]:
        choice = self._pool.choose(["a", "naïve \U0001f642 12345"], sample_texts)
        self._engine = choice.engine
        return choice.record()

    def encode_arrays(self, texts: Sequence[str]) -> Encoded:
        return self._engine.encode_batch(texts)


if __name__ == "__main__":
    main()
