"""SentencePiece: its trainers learn the vocabulary, and a `tokenizer.json` of it encodes. (Kudo and Richardson 2018)

What is trained here is lossless: no normalisation, no dummy prefix, no white space removed, single bytes for rare characters, and the
space itself in the entries instead of U+2581, so that even a text with that character comes back.

A merge of BPE is every way to cut an entry in two others, in the order of their scores; then `tokenizers` gives the ids of
SentencePiece (0 of thousands of texts differ, tests/tokens/test_sentencepiece_models.py). For Unigram it cannot: of two splits with
almost the same probability each library takes the one that its own rounding favours. Of 699 files of Python's library (7.9 MB, 23,152
entries) 16 differ, and 102 differ between SentencePiece and SentencePiece line by line (benchmarks/unigram.py). Other programs that
open the folder use `tokenizers`, so that is what defines our ids, for Unigram too. The price is speed: 1.2 MB per CPU second instead
of 8.2; BPE runs at 1.5 and 2.1.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fledge.core.errors import DataError
from fledge.tokens.definition import UNKNOWN, Definition, added_token, bpe_model, guard, load_body, names_a_control, whole_content
from fledge.tokens.pieces import SPACE_MARK, Spelling

_LONGEST_LINE_BYTES = 1 << 20
"""Longer ones are cut. SentencePiece drops silently what is longer than its own limit, by default 4,192 bytes."""
_PREFIX_PROBE = "  a  b "


_IDENTITY = "use a model trained with normalization_rule_name=identity and remove_extra_whitespaces=false"
_INFILLING = frozenset(f"{SPACE_MARK}<{name}>" for name in ("PRE", "SUF", "MID", "EOT"))
"""Control tokens of CodeLlama, of whatever type its file says they are (Roziere et al. 2023)."""
_BYTE_ENTRY = re.compile("<0x[0-9A-F]{2}>")
_BPE, _UNIGRAM = 2, 1
"""Values of `trainer_spec.model_type`."""
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6
"""Values of an entry's `type`; 5 is unused."""


@dataclass(frozen=True)
class Model:
    """A SentencePiece model."""

    place: str
    processor: Any
    """What encodes."""
    definition: Any
    """The message that its file holds."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids that SentencePiece gives."""
        ids: list[list[int]] = self.processor.encode(list(texts))
        return ids


def train_model(kind: str, vocabulary_size: int, texts: Iterable[str]) -> Model:
    """Train a SentencePiece model of `vocabulary_size` entries, fewer if the text has not as many.

    `kind`: bpe or unigram. Raises DataError if a vocabulary of this size cannot be learned from the text.
    """
    return parse_model(_trained(kind, vocabulary_size, texts, bos_id=-1, eos_id=-1, add_dummy_prefix=False), "the trained model")


def train_llama_model(vocabulary_size: int, texts: Iterable[str]) -> bytes:
    """The `tokenizer.model` of BPE as Llama's are: <unk> 0, <s> 1, </s> 2, and a space put before every text. Raises DataError."""
    return _trained("bpe", vocabulary_size, texts, bos_id=1, eos_id=2, add_dummy_prefix=True)


def _trained(kind: str, vocabulary_size: int, texts: Iterable[str], **layout: Any) -> bytes:
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(texts),
            model_writer=model,
            model_type=kind,
            vocab_size=vocabulary_size,
            hard_vocab_limit=False,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            max_sentence_length=_LONGEST_LINE_BYTES + 8,
            train_extremely_large_corpus=False,
            unk_piece=UNKNOWN,
            num_threads=1,
            minloglevel=2,
            **layout,
        )
    except RuntimeError as error:
        reason = str(error).strip().rpartition("] ")[2] or str(error)
        raise DataError(
            f"SentencePiece cannot learn {vocabulary_size:,} entries from this text: {reason}", "add text, or entries"
        ) from error
    if not model.getvalue():
        raise DataError("there is no text to train a tokenizer on", "add documents to corpus.sources")
    return model.getvalue()


def parse_model(content: bytes, place: str) -> Model:
    """A model from the bytes of a `tokenizer.model`. Raises DataError if they are none, or one that cannot be converted."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    except RuntimeError as error:
        raise DataError(f"{place} is not a SentencePiece model", "give a tokenizer.model as SentencePiece writes it") from error
    definition = sentencepiece_model_pb2.ModelProto.FromString(content)  # type: ignore[attr-defined]
    if not definition.pieces:
        raise DataError(f"{place} is not a SentencePiece model: it has no entries", "give a tokenizer.model as SentencePiece writes it")
    if definition.trainer_spec.model_type not in (_BPE, _UNIGRAM):
        raise DataError(f"{place} is neither BPE nor Unigram", "use a model of one of these types")
    known = (_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE)
    unused = next((piece.piece for piece in definition.pieces if piece.type not in known), None)
    if unused is not None:
        raise DataError(f"{place} has entries that are marked as unused, such as {unused!r}", "use a model without them")
    if definition.normalizer_spec.precompiled_charsmap:
        name = definition.normalizer_spec.name or "a table of its own"
        raise DataError(f"{place} rewrites characters before it encodes ({name}): the text could not be given back", _IDENTITY)
    inside = next(
        (
            piece.piece
            for piece in definition.pieces
            if piece.type == _USER_DEFINED and not names_a_control(piece.piece.removeprefix(SPACE_MARK))
        ),
        None,
    )
    if inside is not None:
        raise DataError(
            f"{place} has the user-defined entry {inside!r}, which is part of ordinary text", "use a model whose are all of the form <NAME>"
        )
    if definition.trainer_spec.treat_whitespace_as_suffix:
        raise DataError(f"{place} writes the space behind a word", "use a model trained with treat_whitespace_as_suffix=false")
    return Model(place, processor, definition)


def trained_content(model: Model, controls: Sequence[str]) -> dict[str, Any]:
    """The `tokenizer.json` of a model that was trained here; `controls` take the ids above it."""
    return _content(model, Spelling(byte_level=False), controls)


def imported_content(model: Model, controls: Sequence[str]) -> dict[str, Any]:
    """The `tokenizer.json` of any model that loses nothing. Raises DataError saying what it does to a text."""
    prefixes = {_PREFIX_PROBE: 0, f" {_PREFIX_PROBE}": 1}
    normalized = model.processor.normalize(_PREFIX_PROBE).replace(SPACE_MARK, " ")
    if normalized not in prefixes:
        raise DataError(
            f"{model.place} turns {_PREFIX_PROBE!r} into {normalized!r} before it encodes: the text could not be given back",
            _IDENTITY,
        )
    return _content(model, Spelling(False, SPACE_MARK, prefixes[normalized]), controls)


def differing_texts(model: Model, definition: Definition, texts: Iterable[str]) -> list[str]:
    """The texts that a definition made from `model` encodes otherwise than the model itself.

    Left out are those where it has to: SentencePiece finds user-defined entries in a text, where ours never has a control token; what
    spells a control token or `<0x41>` is cut for Unigram; and U+2581 is a space only where the entries write it for one.
    """
    unlike = [name.replace(SPACE_MARK, " ") for name in definition.specials] + [SPACE_MARK] * (definition.spelling.space != SPACE_MARK)
    prefix = " " * definition.spelling.prefix_bytes
    alike = [text for text in texts if not any(name in prefix + text for name in unlike) and not _BYTE_ENTRY.search(text)]
    found = load_body(definition, model.place).encode_batch_fast(alike, add_special_tokens=False)
    return [text for text, ours, theirs in zip(alike, found, model.encode_batch(alike), strict=True) if ours.ids != theirs]


def _content(model: Model, spelling: Spelling, controls: Sequence[str]) -> dict[str, Any]:
    entries = model.definition.pieces
    names = [entry.piece.replace(SPACE_MARK, spelling.space) for entry in entries]
    named = {names[token]: token for token, entry in enumerate(entries) if _is_control(entry)}
    unknown = next(token for token, entry in enumerate(entries) if entry.type == _UNKNOWN)
    body: dict[str, Any]
    if model.definition.trainer_spec.model_type == _BPE:
        body = bpe_model({name: token for token, name in enumerate(names)}, _merges(entries, names), names[unknown])
        pre_tokenizer = None
    else:
        scored = [[name, entry.score] for name, entry in zip(names, entries, strict=True)]
        body = {"type": "Unigram", "unk_id": unknown, "vocab": scored, "byte_fallback": True}
        pre_tokenizer = guard(named)
    added = [added_token(name, token) for name, token in named.items()]
    added += [added_token(name, len(names) + place) for place, name in enumerate(controls)]
    return whole_content(body, added, _normalizer(spelling), pre_tokenizer, spelling.decoder)


def _is_control(entry: Any) -> bool:
    return entry.type in (_UNKNOWN, _CONTROL, _USER_DEFINED) or entry.piece in _INFILLING


def _normalizer(spelling: Spelling) -> dict[str, Any] | None:
    if spelling.space == " ":
        return None
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK}
    if not spelling.prefix_bytes:
        return replace
    return {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE_MARK}, replace]}


def _merges(entries: Sequence[Any], names: Sequence[str]) -> list[tuple[str, str]]:
    """Every cut of an entry in two entries: better entries first, then in the order of the ids."""
    ordinary = {name: token for token, name in enumerate(names) if entries[token].type == _NORMAL and not _is_control(entries[token])}
    found = [
        (-entries[token].score, ordinary[name[:cut]], ordinary[name[cut:]], name[:cut], name[cut:])
        for name, token in ordinary.items()
        for cut in range(1, len(name))
        if name[:cut] in ordinary and name[cut:] in ordinary
    ]
    return [(left, right) for _, _, _, left, right in sorted(found)]


def _lines(texts: Iterable[str]) -> Iterator[str]:
    """SentencePiece learns from lines; a NUL or an overlong line would be dropped with all around it."""
    for text in texts:
        for line in text.replace("\x00", "\n").split("\n"):
            while len(line) > _LONGEST_LINE_BYTES // 4:
                yield line[: _LONGEST_LINE_BYTES // 4]
                line = line[_LONGEST_LINE_BYTES // 4 :]
            if line:
                yield line
