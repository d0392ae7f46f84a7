"""Bits per byte on text files that the recipe names: a figure on text that others can measure too."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fledge.core.errors import DataError
from fledge.corpus.document import Document
from fledge.corpus.filters.evaluation_files import EvaluationFile, find_evaluation_files
from fledge.corpus.sources.pieces import cut
from fledge.evaluation.settings import EvaluateSettings
from fledge.evaluation.statistics import Score
from fledge.tokens.document_packing import pack_documents
from fledge.tokens.shards import open_token_set
from fledge.tokens.tokenizer import Tokenizer

if TYPE_CHECKING:
    from fledge.model.llama import Llama

TEXT_SUFFIXES = (".txt", ".md")
DOCUMENT_CHARACTERS = 8_000
"""A file is measured in pieces of at most this length, cut at blank lines: they are the samples that the interval is made of."""
IN_PIECES = f"pieces of at most {DOCUMENT_CHARACTERS:,} characters, which are not independent within a file"


def find_text_files(given: Sequence[str], option: str = "evaluate.files") -> tuple[EvaluationFile, ...]:
    """The files that paths, folders and globs name. Raises DataError, naming `option`, if there is none, or one is no text file."""
    files = find_evaluation_files(given)
    strange = next((file.path for file in files if not file.path.name.lower().endswith(TEXT_SUFFIXES)), None)
    if strange is not None:
        raise DataError(
            f"{option} names {strange}, but bits per byte are measured on text ({', '.join(TEXT_SUFFIXES)})",
            "name it in corpus.decontaminate.files instead, which keeps it out of the training text",
        )
    return files


def text_file_scores(
    model: Llama, tokenizer: Tokenizer, files: Sequence[EvaluationFile], settings: EvaluateSettings, *, isolate_documents: bool
) -> list[Score]:
    """One score per file, `bits_per_byte/NAME`. Raises DataError for a file without text."""
    return [_score(model, tokenizer, file, settings, isolate_documents) for file in files]


def _score(model: Llama, tokenizer: Tokenizer, file: EvaluationFile, settings: EvaluateSettings, isolate_documents: bool) -> Score:
    # Finding the files needs no torch; scoring does.
    from fledge.evaluation.checkpoint import context_window_tokens
    from fledge.evaluation.scoring import bits_per_byte

    with tempfile.TemporaryDirectory() as folder:
        pack_documents(text_file_documents(file.path), tokenizer, Path(folder), "validation")
        tokens = open_token_set(Path(folder))
        if not tokens.shards("validation"):
            raise DataError(f"{file.path} holds no text to measure", "name a text file in evaluate.files, or leave it out")
        score = bits_per_byte(
            model,
            tokens,
            context_window_tokens(model, settings),
            isolate_documents=isolate_documents,
            maximum_text_bytes=settings.maximum_text_bytes,
            batch_tokens=settings.batch_tokens,
            precision=settings.precision,
        )
    return replace(score, name=f"bits_per_byte/{file.name}", note=f"{score.note}; {IN_PIECES}")


def text_file_documents(path: Path) -> Iterator[Document]:
    """The pieces of a text file. Raises DataError if it is not UTF-8, or cannot be read."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start})", "convert it, or leave it out of evaluate.files") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", "mend its path in evaluate.files") from error
    for number, piece in enumerate(cut([text], DOCUMENT_CHARACTERS)):
        yield Document(piece, f"{path.name}#{number}", "file", "")
