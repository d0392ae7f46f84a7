"""Which library defines the ids of a Unigram tokenizer? Trains one, and compares SentencePiece with Hugging Face tokenizers on its text.

    python benchmarks/unigram.py [FOLDER OF TEXT FILES]      default: the source and documentation of the Python that runs it

One line of JSON: documents, those with different ids and by how many tokens, MB per CPU second of either on one thread, and how often
SentencePiece differs from itself between a document and its lines. BPE of the same size beside it.
"""

from __future__ import annotations

import json
import os
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

MAXIMUM_BYTES = 8_000_000
VOCABULARY_SIZE = 32_768


def main() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else sysconfig.get_paths()["stdlib"])
    texts = read_texts(folder)
    for kind in ("bpe", "unigram"):
        print(json.dumps({"kind": kind, **compare(kind, texts)}), flush=True)


def read_texts(folder: Path) -> list[str]:
    """Whole files, in the order of their names, up to MAXIMUM_BYTES."""
    texts, size_bytes = [], 0
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".txt", ".md", ".rst")):
        text = path.read_text(encoding="utf-8", errors="ignore")
        if size_bytes + len(text) > MAXIMUM_BYTES:
            break
        texts.append(text)
        size_bytes += len(text)
    return texts


def compare(kind: str, texts: Sequence[str]) -> dict[str, Any]:
    """The figures of one kind; texts that spell a control token or hold U+2581 are left out, since there the two have to differ."""
    from fledge.tokens.definition import checked, load_body
    from fledge.tokens.sentencepiece_models import train_model, trained_content
    from fledge.tokens.settings import SPECIAL_TOKENS

    started = time.process_time()
    model = train_model(kind, VOCABULARY_SIZE - len(SPECIAL_TOKENS), texts)
    training_seconds = time.process_time() - started
    body = load_body(checked(trained_content(model, SPECIAL_TOKENS), "benchmark"), "benchmark")
    alike = [text for text in texts if "\u2581" not in text and "<unk>" not in text and "<0x" not in text]
    megabytes = sum(len(text.encode("utf-8")) for text in alike) / 1e6
    theirs, their_seconds = timed(lambda: model.encode_batch(alike))
    ours, our_seconds = timed(lambda: [one.ids for one in body.encode_batch_fast(alike, add_special_tokens=False)])
    in_lines = 0
    for text, ids in zip(alike, theirs, strict=True):
        lines = text.splitlines(keepends=True)
        in_lines += [token for line in model.encode_batch(lines) for token in line] != ids
    differing = [(one, other) for one, other in zip(ours, theirs, strict=True) if one != other]
    return {
        "vocabulary_size": body.get_vocab_size() + len(SPECIAL_TOKENS),
        "megabytes": round(megabytes, 1),
        "training_cpu_seconds": round(training_seconds, 1),
        "documents": len(alike),
        "differing_documents": len(differing),
        "tokens": sum(map(len, ours)),
        "token_difference": sum(len(one) - len(other) for one, other in differing),
        "sentencepiece_differs_by_lines": in_lines,
        "tokenizers_megabytes_per_cpu_second": round(megabytes / our_seconds, 2),
        "sentencepiece_megabytes_per_cpu_second": round(megabytes / their_seconds, 2),
    }


def timed(work: Callable[[], list[list[int]]]) -> tuple[list[list[int]], float]:
    """What it gives, and the CPU seconds it takes."""
    started = time.process_time()
    result = work()
    return result, time.process_time() - started


if __name__ == "__main__":
    main()
