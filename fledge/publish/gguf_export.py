"""A checkpoint as a folder for llama.cpp or Ollama: one GGUF file, a card, for Ollama a Modelfile; read back before it appears.

    fields      every one as it was meant, single-precision rounding aside
    weights     f32, f16, bf16: to the bit; q8_0: within half a step of its block and the rounding of the block's scale
    tokenizer   the ids for texts from all of Unicode: of byte-level BPE by the entries, merges and split pattern that the file names, of
                SentencePiece's merging by the scores in the file
    template    the one in the file gives the ids of training, as transformers renders it
    logits      transformers opens the file (it turns everything into f32) and computes what `Llama` does with the values read, and
                continues a text as it would

llama.cpp itself is asked by an opt-in test only: its Python package builds for twenty minutes.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from fledge.core import disk
from fledge.core.errors import CheckpointError
from fledge.model.folder import to_config_json
from fledge.model.llama import Llama
from fledge.publish.card import model_card
from fledge.publish.checks import (
    check_conversations,
    check_greedy,
    check_logits,
    check_texts,
    load_theirs,
    probe_rows,
    their_config,
    their_tokenizer_with,
    transformers_name,
)
from fledge.publish.gguf_file import Read, Values, gguf_tensors, metadata, own_weights, read_gguf, write_gguf
from fledge.publish.ollama import modelfile
from fledge.publish.settings import GGUF_FILE, MODEL_CARD, MODELFILE, Q8_0_BLOCK_VALUES, ModelTarget, WeightType
from fledge.publish.source import DTYPES, Source, require_expressible
from fledge.publish.targets import PRE_TOKENIZERS
from fledge.tokens.folder import TOKENIZER_FILE
from fledge.tokens.pieces import SPACE_MARK, fallback_piece

_UNUSED = 5
"""llama.cpp's number for the type of an entry that no text becomes."""


def export_gguf(source: Source, folder: Path, target: ModelTarget, weight_type: WeightType) -> str:
    """Fill a new folder; returns by what it was read back.

    Raises ConfigError for what GGUF cannot express, CheckpointError if what was written differs, MachineError without the package.
    """
    require_expressible(source, target, weight_type)
    with disk.staging(folder) as partial:
        write_gguf(source, partial / GGUF_FILE, weight_type, folder.name)
        if target == "ollama":
            disk.write_text(partial / MODELFILE, modelfile(source))
        disk.write_text(partial / MODEL_CARD, model_card(source, folder.name, target, weight_type))
        return check_gguf(source, partial, weight_type, folder.name)


def check_gguf(source: Source, folder: Path, weight_type: WeightType, name: str) -> str:
    """Compare the file with its source; returns by what it was read. Raises CheckpointError naming the first thing that differs."""
    found = read_gguf(folder / GGUF_FILE)
    _check_fields(found, metadata(source, weight_type, name))
    check_values(found, gguf_tensors(source.model), weight_type)
    _check_tokenizer(source, found.fields)
    config, program = source.model.config, transformers_name()
    if program is None:
        return "the package gguf (transformers is not installed)"
    _check_template(source, found.fields)
    if config.rope_scaling is not None:
        return "the package gguf (transformers reads no rotary scaling in GGUF)"
    ours = _filled(Llama(config, seed=None).eval(), found)
    del found  # as large as the model in fp32, which is held three times already
    theirs = load_theirs(folder, gguf_file=GGUF_FILE, config=their_config(to_config_json(config, torch.float32)))
    rows = probe_rows(config.vocabulary_size, config.settings.max_position_embeddings)
    check_logits(ours, theirs, rows)
    check_greedy(ours, theirs, rows[:1, :8], source.tokenizer.vocabulary_size)
    return f"the package gguf, and {program}"


def _check_tokenizer(source: Source, fields: dict[str, Any]) -> None:
    if fields["tokenizer.ggml.model"] == "llama":
        # Of a vocabulary with the space itself in its entries, GGUF takes the mark for one.
        marks = () if source.tokenizer.definition.spelling.space == SPACE_MARK else (SPACE_MARK,)
        check_texts(source.tokenizer, Merging(fields).encode_batch, "SentencePiece's way", marks)
    else:
        rebuilt = byte_level_tokenizer(fields)
        check_texts(
            source.tokenizer, lambda texts: [one.ids for one in rebuilt.encode_batch(texts, add_special_tokens=False)], "the GGUF file"
        )


def byte_level_tokenizer(fields: dict[str, Any]) -> Any:
    """The tokenizer that llama.cpp makes of a file's entries, merges and the pattern it knows by the name in `pre`.

    Raises CheckpointError if they do not make one.
    """
    from tokenizers import Tokenizer

    named = next((known for known in PRE_TOKENIZERS if known.name == fields["tokenizer.ggml.pre"]), None)
    if named is None:
        _differ(f"the split pattern {fields['tokenizer.ggml.pre']!r}, which nobody knows")
    entries = zip(fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"], strict=True)
    model = {
        "type": "BPE",
        "vocab": {entry: token for token, (entry, kind) in enumerate(entries) if kind != _UNUSED},
        "merges": fields["tokenizer.ggml.merges"],
        "ignore_merges": named.ignore_merges,
    }
    try:
        return Tokenizer.from_str(json.dumps({"version": "1.0", "added_tokens": [], "pre_tokenizer": named.pipeline, "model": model}))
    except Exception as error:  # that library raises nothing finer
        _differ(f"its tokenizer, of which none can be made ({error})")


def _check_template(source: Source, fields: dict[str, Any]) -> None:
    """The template in the file, with the names of the ids in it, renders conversations to the ids of training."""
    entries = fields["tokenizer.ggml.tokens"]
    names = {f"{name}_token": entries[fields[f"tokenizer.ggml.{name}_token_id"]] for name in ("bos", "eos")}
    template = fields.get("tokenizer.chat_template")
    check_conversations(source.tokenizer, their_tokenizer_with(source.tokenizer.folder / TOKENIZER_FILE, template, **names))


@torch.no_grad()
def _filled(model: Llama, read: Read) -> Llama:
    parameters = dict(model.named_parameters())
    for name, weight in own_weights(model, read.tensors):
        parameters[name].copy_(weight)
    return model


def check_values(found: Read, expected: dict[str, Values], weight_type: WeightType) -> None:
    """Every tensor is there once, with the values meant, to the precision of its type. Raises CheckpointError."""
    if found.tensors.keys() != expected.keys():
        _differ(f"its tensors {', '.join(sorted(found.tensors.keys() ^ expected.keys())[:5])}")
    for name, values in expected.items():
        read, kind = found.tensors[name], "f32" if values.ndim == 1 else weight_type
        if found.types[name] != kind.upper() or read.shape != values.shape:
            _differ(f"{name} is {found.types[name]} {read.shape}, not {kind.upper()} {values.shape}")
        if not _is_close(read, values, kind):
            _differ(f"{name}, read back from the file")


def _is_close(read: Values, values: Values, kind: str) -> bool:
    if kind != "q8_0":
        cast = torch.from_numpy(np.array(values)).to(DTYPES[kind]).float().numpy()  # type: ignore[index]
        return bool(np.array_equal(read, cast))
    blocks = values.reshape(-1, Q8_0_BLOCK_VALUES)
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    # Half a step of largest / 127; the scale is rounded to f16: 2^-11 of it, and never finer than 2^-25.
    allowed = 0.5001 * largest / 127 + largest * 2.0**-11 + 127 * 2.0**-25
    return bool((np.abs(read.reshape(blocks.shape) - blocks) <= allowed).all())


def _check_fields(found: Read, expected: dict[str, Any]) -> None:
    architecture = str(found.fields["general.architecture"])
    for key, value in expected.items():
        read: Any = found.fields.get(key.replace("ARCH", architecture))
        same = read is not None and np.allclose(read, value, rtol=1e-6, atol=0) if _holds_floats(value) else read == value
        if not same:
            _differ(f"the field {key.replace('ARCH', architecture)}")


def _holds_floats(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, list) and bool(value) and isinstance(value[0], float))


class Merging:
    """How llama.cpp encodes with a vocabulary of SentencePiece: the pair whose entry scores highest is merged, the leftmost of equals."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self._tokens = {entry: token for token, entry in enumerate(fields["tokenizer.ggml.tokens"])}
        self._scores: list[float] = fields["tokenizer.ggml.scores"]
        self._prefix = SPACE_MARK if fields["tokenizer.ggml.add_space_prefix"] else ""

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Token ids of texts; U+2581 in them is a space."""
        return [self._encode(self._prefix + text.replace(" ", SPACE_MARK)) if text else [] for text in texts]

    def _encode(self, text: str) -> list[int]:
        parts = list(text)
        while True:
            pairs = [(self._score(left + right), -place) for place, (left, right) in enumerate(pairwise(parts))]
            score, place = max(pairs, default=(-np.inf, 0))
            if score == -np.inf:
                return [token for part in parts for token in self._ids(part)]
            parts[-place : 2 - place] = [parts[-place] + parts[1 - place]]

    def _score(self, entry: str) -> float:
        return self._scores[self._tokens[entry]] if entry in self._tokens else -np.inf

    def _ids(self, part: str) -> list[int]:
        known = self._tokens.get(part)
        return [self._tokens[fallback_piece(value)] for value in part.encode()] if known is None else [known]


def _differ(what: str) -> NoReturn:
    raise CheckpointError(f"the GGUF file is not the model it was made from: {what}", "nothing was written; please report this as a bug")
