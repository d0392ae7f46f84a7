"""Small results to send: artifacts that are right in every hash, with no model in them."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fledge.core import artifact, disk
from fledge.core.artifact import Artifact


def content(seed: int, size_bytes: int = 60_000) -> bytes:
    return random.Random(seed).randbytes(size_bytes)


def write_artifact(
    folder: Path,
    kind: str,
    files: Mapping[str, bytes],
    inputs: Mapping[str, Artifact] | None = None,
    settings: Any = None,
    stats: Mapping[str, Any] | None = None,
) -> Artifact:
    with artifact.build(folder, artifact.request(kind, settings or {}, inputs)) as (partial, filled):
        for name, written in files.items():
            disk.write_bytes(partial / name, written)
        filled.update(stats or {})
    return artifact.open_artifact(folder)


def write_model(folder: Path, seed: int = 0, inputs: Mapping[str, Artifact] | None = None) -> Artifact:
    files = {"config.json": b'{"model_type": "llama"}', "model.safetensors": content(seed), "resume/state.json": b"{}"}
    return write_artifact(folder, "checkpoint", files, inputs, stats={"step": 5})


def write_corpus(folder: Path, shards: int = 2) -> Artifact:
    files = {f"train-{number:05}.parquet": content(number) for number in range(shards)}
    return write_artifact(folder, "corpus", {**files, "DATA_CARD.md": b"# card\n"})


def write_tokens(folder: Path, tokenizer: Artifact) -> Artifact:
    files = {"tokens.json": b"{}", "train-text.tokens": content(7), "train-text.tokens.crc32": b"1234"}
    return write_artifact(folder, "tokens", files, {"tokenizer": tokenizer}, {"content": "documents"})


def write_tokenizer(folder: Path) -> Artifact:
    return write_artifact(folder, "tokenizer", {"tokenizer.json": b'{"model": {}}', "tokenizer_meta.json": b"{}"})


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
