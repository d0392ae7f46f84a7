"""What `--smoke` puts in the place of files of others: made in the run's folder, then read by the code that reads the real ones.

    stand_ins/sentencepiece-SIZE/tokenizer.model    BPE as Llama and CodeLlama have it: <unk> 0, <s> 1, </s> 2, U+2581 for spaces, one
                                                    before every text, single bytes
    stand_ins/superbpe-SIZE/tokenizer.json          byte-level BPE with merges that span words
    stand_ins/byte_bpe-SIZE/tokenizer.json          byte-level BPE
    stand_ins/tokens-ID8/                           train.bin, val.bin (uint16), data_meta.json, tokenizer/, with the tokenizer of the run
    stand_ins/benchmarks/                           NAME.jsonl: rows with the fields of each known benchmark; text.txt

All are made from the documentation of Python, the same bytes at every run of one Python; whatever else decides them is in the name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from fledge.core import console, disk
from fledge.corpus.document import Document
from fledge.evaluation.benchmarks.definitions import BENCHMARKS
from fledge.evaluation.settings import EvaluateSettings
from fledge.recipe import Recipe
from fledge.smoke import (
    SENTENCEPIECE_MODEL,
    SMOKE_DOCUMENTS,
    SMOKE_QUESTIONS,
    STAND_IN,
    STAND_IN_BENCHMARKS,
    STAND_IN_TOKENS,
    SUPERBPE_TOKENIZER,
)
from fledge.stages import TRAINING_STAGES
from fledge.stages.run import Run
from fledge.tokens.settings import TokenizerSettings

FOLDER = "stand_ins"
_VALIDATION_FRACTION = 0.1
_SUPERWORD_TRANSITION = 0.4
"""Of the published t80k of 200,000."""


def with_stand_ins(run: Run, stage: str) -> Run:
    """The same run, its recipe naming by path what stands in for files that this stage reads; what is not there yet is made."""
    recipe = run.recipe
    if stage == "tokenizer" and recipe.tokenizer is not None:
        recipe = replace(recipe, tokenizer=_with_file(run, recipe.tokenizer))
    elif stage == "pack" and recipe.pack is not None and recipe.pack.import_bin == STAND_IN_TOKENS:
        recipe = replace(recipe, pack=replace(recipe.pack, import_bin=str(_tokens(run))))
    elif recipe.evaluate is not None and _reads_benchmarks(recipe, stage):
        recipe = replace(recipe, evaluate=_with_rows(run, recipe.evaluate))
    return replace(run, recipe=recipe)


def _with_file(run: Run, tokenizer: TokenizerSettings) -> TokenizerSettings:
    name = Path(_stand_in_name(tokenizer.path))
    if not name.name:
        return tokenizer
    # The size is part of the name because it decides the bytes: with another one another file is read.
    folder = run.folder / FOLDER / f"{name.parent}-{tokenizer.vocabulary_size}"
    _once(folder, lambda target: _make_tokenizer(str(name), tokenizer.vocabulary_size, target))
    return replace(tokenizer, path=str(folder / name.name))


def _tokens(run: Run) -> Path:
    frozen = run.tokenizer()
    folder = run.folder / FOLDER / f"{_stand_in_name(STAND_IN_TOKENS)}-{frozen.id[:8]}"
    _once(folder, lambda target: _make_tokens(frozen.path, target))
    return folder


def _reads_benchmarks(recipe: Recipe, stage: str) -> bool:
    """Whether a stage reads files that `evaluate` names: to measure, to ask while it trains, to keep their texts out of a corpus."""
    if stage == "corpus":
        return recipe.corpus is not None and recipe.corpus.decontaminate.evaluated
    return stage == "evaluate" or (stage in TRAINING_STAGES and bool(recipe.section(stage).benchmarks))


def _with_rows(run: Run, evaluate: EvaluateSettings) -> EvaluateSettings:
    if not any(map(_stand_in_name, (*evaluate.files, *evaluate.benchmarks.values()))):
        return evaluate
    folder = run.folder / FOLDER
    _once(folder / _stand_in_name(STAND_IN_BENCHMARKS), _make_benchmarks)

    def placed(given: str) -> str:
        name = _stand_in_name(given)
        return str(folder / name) if name else given

    benchmarks = {name: placed(place) for name, place in evaluate.benchmarks.items()}
    return replace(evaluate, files=tuple(map(placed, evaluate.files)), benchmarks=benchmarks)


def _stand_in_name(given: str | None) -> str:
    """The empty string for what is none."""
    return given.removeprefix(STAND_IN) if given is not None and given.startswith(STAND_IN) else ""


def _once(folder: Path, fill: Callable[[Path], None]) -> None:
    if not folder.is_dir():
        with disk.staging(folder) as partial:
            fill(partial)
        console.info(f"{folder}: made, to be read as what others publish is")


def _documents(backwards: bool = False) -> Iterator[Document]:
    """Read as they are asked for, because the whole library takes seconds."""
    from fledge.corpus.sources import python_docs

    return python_docs.documents("python-docs", python_docs.read_entries(python_docs.stdlib_folder(), backwards))


def _make_tokenizer(name: str, vocabulary_size: int, folder: Path) -> None:
    from fledge.tokens.sentencepiece_models import train_llama_model
    from fledge.tokens.trainers import train_tokenizer

    texts = [document.text for document in islice(_documents(), SMOKE_DOCUMENTS)]
    if name == SENTENCEPIECE_MODEL:
        disk.write_bytes(folder / Path(name).name, train_llama_model(vocabulary_size, texts))
    elif name == SUPERBPE_TOKENIZER:
        train_tokenizer(
            TokenizerSettings(kind="superbpe", vocabulary_size=vocabulary_size, transition=_SUPERWORD_TRANSITION), texts, folder
        )
    else:
        train_tokenizer(TokenizerSettings(vocabulary_size=vocabulary_size), texts, folder)


def _make_tokens(frozen: Path, folder: Path) -> None:
    """Packed and exported, so that the import reads what another export of the same form would hold."""
    from fledge.corpus.split import Splitter
    from fledge.tokens.document_packing import pack_sides
    from fledge.tokens.plain_bin import export_bin
    from fledge.tokens.shards import open_token_set
    from fledge.tokens.tokenizer import open_tokenizer

    tokenizer, splitter, packed = open_tokenizer(frozen), Splitter(_VALIDATION_FRACTION, 0), folder / "packed"
    disk.make_folder(packed)
    # Near duplicates may lie on both sides: what is measured on the few held out here means nothing.
    pack_sides(((splitter.side(one.id), one) for one in islice(_documents(), SMOKE_DOCUMENTS)), tokenizer, packed)
    export_bin(open_token_set(packed), tokenizer, folder)
    disk.remove(packed)


def _make_benchmarks(folder: Path) -> None:
    """Of the last entries, which the sources of a small corpus seldom reach; texts that quote them are left out there, as ever."""
    from fledge.corpus.sources import python_docs

    entries = python_docs.read_entries(python_docs.stdlib_folder(), backwards=True)
    asked = [one.messages for one in islice(python_docs.conversations("python-questions", entries), 2 * SMOKE_QUESTIONS)]
    pages = [document.text for document in islice(_documents(backwards=True), SMOKE_QUESTIONS // 2)]
    for name in BENCHMARKS:
        rows = [
            _benchmark_row(name, question.content, right.content, wrong.content, number)
            for number, ((question, right), (_, wrong)) in enumerate(zip(asked[::2], asked[1::2], strict=True))
        ]
        if name == "wikitext":
            rows = [{"page": page} for page in pages]
        if name != "text":
            disk.write_bytes(folder / f"{name}.jsonl", (json.dumps(row).encode() + b"\n" for row in rows))
    disk.write_text(folder / "text.txt", "\n\n".join(pages))


def _benchmark_row(name: str, question: str, right: str, wrong: str, number: int) -> dict[str, Any]:
    """A row with the fields of the benchmark's dataset."""
    listed = {"question": question, "choices": {"text": [wrong, right], "label": ["A", "B"]}, "answerKey": "B"}
    match name:
        case "lambada_openai" | "lambada_standard":
            return {"text": f"{question} {right.rstrip('.')}"}
        case "boolq":
            return {"passage": (wrong, right)[number % 2], "question": question.rstrip("?"), "label": number % 2}
        case "hellaswag":
            endings = [wrong, right, question, f"{wrong} {right}"]
            return {"activity_label": "Python", "ctx_a": question, "ctx_b": "it is told", "endings": endings, "label": "1"}
        case "piqa":
            return {"goal": question, "sol1": right, "sol2": wrong, "label": 0}
        case "winogrande":
            return {"sentence": f"{question} _ tells it.", "option1": right, "option2": wrong, "answer": "1"}
        case "openbookqa":
            return {**listed, "question_stem": question}
        case "sciq":
            others = {f"distractor{place}": f"{wrong} {place}" for place in (1, 2, 3)}
            return {"support": wrong, "question": question, **others, "correct_answer": right}
    return listed
