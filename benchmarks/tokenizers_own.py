"""What `benchmarks/tokenizers.py` runs of Fledge, each time in a process of its own.

    python -P tokenizers_own.py train CORPUS FOLDER --vocabulary-size N [--transition SHARE]
    python -P tokenizers_own.py pack CORPUS TOKENIZER FOLDER [--without LIBRARY ...]
    python -P tokenizers_own.py count CORPUS TOKENIZER
    python -P tokenizers_own.py versions

CORPUS is a folder of document shards, TOKENIZER one of a tokenizer. The last line on standard output is JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from fledge.corpus.document import read_documents
from fledge.tokens.tokenizer import open_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(required=True)
    for run, names in (
        (train, ("corpus", "folder")),
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
    """A tokenizer on the training documents; with a transition, SuperBPE."""
    from fledge.tokens.settings import TokenizerSettings
    from fledge.tokens.trainers import train_tokenizer

    kind: Any = "byte_bpe" if arguments.transition is None else "superbpe"
    settings = TokenizerSettings(kind=kind, vocabulary_size=arguments.vocabulary_size, transition=arguments.transition)
    return train_tokenizer(settings, Texts(arguments.corpus), arguments.folder)


def pack(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the pack stage does with documents: read the shards, encode, write token shards."""
    from fledge.tokens.document_packing import pack_documents

    for library in arguments.without:
        sys.modules[library] = None  # type: ignore[assignment]
    tokenizer = open_tokenizer(arguments.tokenizer)
    documents = read_documents(arguments.corpus, "train")
    return pack_documents(documents, tokenizer, arguments.folder, "train", text_bytes=1 << 30)


def count(arguments: argparse.Namespace) -> dict[str, Any]:
    """Characters and tokens of the held-out documents."""
    texts = [document.text for document in read_documents(arguments.corpus, "validation")]
    tokenizer = open_tokenizer(arguments.tokenizer)
    tokenizer.choose_engine(texts)
    return {"characters": sum(map(len, texts)), "tokens": len(tokenizer.encode_arrays(texts).ids)}


def versions(_: argparse.Namespace) -> dict[str, str]:
    names = ("fledge", "tokenizers", "gigatoken", "tiktoken", "numba", "numpy", "pyarrow")
    return {name: metadata.version(name) for name in names} | {"python": platform.python_version()}


class Texts:
    """The training documents, as often as they are asked for."""

    def __init__(self, corpus: Path) -> None:
        self._corpus = corpus

    def __iter__(self) -> Iterator[str]:
        return (document.text for document in read_documents(self._corpus, "train"))


if __name__ == "__main__":
    main()
