"""What `benchmarks/tokenizers.py` runs of others, by the Python of an environment of their own.

    python -P tokenizers_peers.py (datasets | datatrove | tiktoken) CORPUS TOKENIZER FOLDER
    python -P tokenizers_peers.py versions

CORPUS is a folder of Parquet files with a column `text`, TOKENIZER a `tokenizer.json`. Each reads the files, encodes, and writes ids with
an end-of-text token, on one core and in the engine's favour where there was a choice. The last line on standard output is JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
END_OF_TEXT = "<|endoftext|>"
BATCH_DOCUMENTS = 1_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(required=True)
    for name, run in (("datasets", run_datasets), ("datatrove", run_datatrove), ("tiktoken", run_tiktoken)):
        action = actions.add_parser(name)
        for argument in ("corpus", "tokenizer", "folder"):
            action.add_argument(argument, type=Path)
        action.set_defaults(run=run)
    actions.add_parser("versions").set_defaults(run=run_versions)
    arguments = parser.parse_args()
    print(json.dumps(arguments.run(arguments)))


def run_datasets(arguments: argparse.Namespace) -> dict[str, Any]:
    """Hugging Face `datasets.map` in batches over `tokenizers`, without the offsets and masks that transformers would add."""
    import datasets
    import tokenizers

    datasets.disable_progress_bars()
    tokenizer = tokenizers.Tokenizer.from_file(str(arguments.tokenizer))
    end = tokenizer.token_to_id(END_OF_TEXT)

    def encode(batch: dict[str, list[str]]) -> dict[str, Any]:
        return {"input_ids": [[end, *encoding.ids] for encoding in tokenizer.encode_batch_fast(batch["text"], add_special_tokens=False)]}

    files = [str(path) for path in _files(arguments.corpus)]
    rows = datasets.Dataset.from_parquet(files, cache_dir=str(arguments.folder / "cache"), columns=["text"])
    mapped = rows.map(encode, batched=True, batch_size=BATCH_DOCUMENTS, remove_columns=["text"])
    return {"tokens": sum(map(len, mapped.data.column("input_ids").chunks[0][:1].to_pylist())), "documents": len(mapped)}


def run_datatrove(arguments: argparse.Namespace) -> dict[str, Any]:
    """Its tokenizer step, unshuffled."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    reader = ParquetReader(str(arguments.corpus), glob_pattern="train-*.parquet")
    writer = DocumentTokenizer(str(arguments.folder), str(arguments.tokenizer), eos_token=END_OF_TEXT, shuffle_documents=False)
    stats = LocalPipelineExecutor(pipeline=[reader, writer], tasks=1, workers=1, logging_dir=str(arguments.folder / "logs")).run().stats
    return {"documents": int(stats[0].stats["documents"].total)}


def run_tiktoken(arguments: argparse.Namespace) -> dict[str, Any]:
    """As nanochat encodes: rows of Parquet files in batches through `encode_ordinary_batch`; the ids are written as uint16."""
    import numpy as np
    import pyarrow.parquet as pq
    import tiktoken

    content = json.loads(arguments.tokenizer.read_text(encoding="utf-8"))
    values = {character: value for value, character in enumerate(_byte_alphabet())}
    ranks = {bytes(values[character] for character in token): rank for token, rank in content["model"]["vocab"].items()}
    encoding = tiktoken.Encoding("peer", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: len(ranks)})
    tokens = documents = 0
    arguments.folder.mkdir(parents=True)
    with (arguments.folder / "tokens.bin").open("wb") as file:
        for path in _files(arguments.corpus):
            for batch in pq.ParquetFile(path).iter_batches(BATCH_DOCUMENTS, columns=["text"]):
                for ids in encoding.encode_ordinary_batch(batch.column("text").to_pylist(), num_threads=1):
                    ids.insert(0, len(ranks))
                    file.write(np.array(ids, np.uint16).tobytes())
                    tokens += len(ids)
                    documents += 1
    return {"tokens": tokens, "documents": documents}


def run_versions(_: argparse.Namespace) -> dict[str, str]:
    names = ("datasets", "datatrove", "tokenizers", "tiktoken", "numpy", "pyarrow")
    return {name: metadata.version(name) for name in names} | {"python": platform.python_version()}


def _files(corpus: Path) -> list[Path]:
    return sorted(corpus.glob("train-*.parquet"))


def _byte_alphabet() -> list[str]:
    """GPT-2's table of printable characters for bytes."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(value) if value in printable else chr(next(others)) for value in range(256)]


if __name__ == "__main__":
    main()
