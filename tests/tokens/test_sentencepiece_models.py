"""What is trained by SentencePiece, or read from its file, encodes as SentencePiece does."""

from __future__ import annotations

from typing import Any

import pytest

from fledge.core.errors import DataError
from fledge.tokens.definition import checked, load_body
from fledge.tokens.probes import PROBES, generated_texts
from fledge.tokens.sentencepiece_models import Model, differing_texts, imported_content, parse_model, train_model, trained_content
from fledge.tokens.settings import SPECIAL_TOKENS

from .kinds import sentencepiece_model


@pytest.fixture(scope="module")
def trained(texts: list[str]) -> Model:
    return train_model("bpe", 1_500, texts)


def _compare(model: Model, content: dict[str, Any], texts: list[str], count: int) -> list[str]:
    return differing_texts(model, checked(content, "here"), [*texts, *PROBES, *generated_texts(count, seed=6)])


def test_trained_bpe_is_sentencepiece_id_for_id(trained: Model, texts: list[str]) -> None:
    assert _compare(trained, trained_content(trained, SPECIAL_TOKENS), texts, 3_000) == []


@pytest.mark.slow
def test_trained_and_imported_bpe_are_sentencepiece_on_twenty_thousand_texts(trained: Model, texts: list[str]) -> None:
    assert _compare(trained, trained_content(trained, SPECIAL_TOKENS), texts, 20_000) == []
    model = parse_model(sentencepiece_model(texts), "here")
    assert _compare(model, imported_content(model, ()), texts, 20_000) == []


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("options", [{}, {"split_digits": False}, {"allow_whitespace_only_pieces": True}, {"split_by_whitespace": False}])
def test_imported_bpe_is_sentencepiece_id_for_id(texts: list[str], prefix: bool, options: dict[str, Any]) -> None:
    model = parse_model(sentencepiece_model(texts, add_dummy_prefix=prefix, **options), "here")
    content = imported_content(model, SPECIAL_TOKENS)
    assert _compare(model, content, texts, 1_000) == []
    definition = checked(content, "here")
    assert definition.spelling.prefix_bytes == prefix
    # The comparison finds a difference where there is one.
    content["model"]["merges"] = content["model"]["merges"][::-1]
    assert len(_compare(model, content, texts, 100)) > 20


def test_unigram_differs_only_where_two_splits_are_almost_alike(texts: list[str]) -> None:
    model = train_model("unigram", 1_500, texts)
    content = trained_content(model, SPECIAL_TOKENS)
    every = [*texts, *generated_texts(2_000, seed=6)]
    differing = differing_texts(model, checked(content, "here"), every)
    assert len(differing) <= 0.01 * len(every)
    scores = dict(content["model"]["vocab"])
    body = load_body(checked(content, "here"), "here")
    names = [piece for piece, _ in content["model"]["vocab"]]
    for text in differing:
        ours, theirs = body.encode(text).ids, model.encode_batch([text])[0]
        totals = [sum(scores[names[token]] for token in ids) for ids in (ours, theirs)]
        assert totals[0] == pytest.approx(totals[1], rel=1e-3)


def test_the_mark_of_sentencepiece_is_a_character_like_any_other(trained: Model) -> None:
    definition = checked(trained_content(trained, SPECIAL_TOKENS), "here")
    body = load_body(definition, "here")
    for text in ("\u2581", "a\u2581b \u2581", " "):
        assert b"".join(definition.pieces[token] for token in body.encode(text).ids).decode() == text
    assert trained.processor.decode(trained.processor.encode("a\u2581b")) == "a b"


def test_user_defined_entries_become_control_tokens(texts: list[str]) -> None:
    model = parse_model(sentencepiece_model(texts, user_defined_symbols=["\u2581<PRE>"], control_symbols=["<ctl>"]), "here")
    definition = checked(imported_content(model, ("<|im_start|>",)), "here")
    assert dict(definition.specials) == {"<unk>": 0, "<s>": 1, "</s>": 2, "<ctl>": 3, "\u2581<PRE>": 4, "<|im_start|>": 1_024}
    assert model.encode_batch([" <PRE>"])[0][-1] == 4
    ids = load_body(definition, "here").encode("x <PRE> <ctl> <s>").ids
    assert not set(ids) & set(definition.specials.values())


def test_codellama_s_infilling_tokens_are_control_tokens_of_whatever_type(texts: list[str]) -> None:
    model = parse_model(sentencepiece_model([*texts, "a <PRE> b\n" * 2_000], split_by_unicode_script=False), "here")
    assert any(entry.piece == "\u2581<PRE>" and entry.type == 1 for entry in model.definition.pieces)
    content = imported_content(model, ())
    definition = checked(content, "here")
    assert "\u2581<PRE>" in definition.specials
    ids = load_body(definition, "here").encode("a <PRE> b").ids
    assert definition.specials["\u2581<PRE>"] not in ids
    assert b"".join(definition.pieces[token] for token in ids) == b" a <PRE> b"
    assert _compare(model, content, texts, 500) == []


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"normalization_rule_name": "nmt_nfkc"}, ""),
    ({"remove_extra_whitespaces": True}, "before it encodes"),
    ({"treat_whitespace_as_suffix": True}, "behind a word"),
    ({"byte_fallback": False}, "not every byte has an entry|lacks 256"),
    ({"model_type": "char"}, "neither BPE nor Unigram"),
]


@pytest.mark.parametrize(("options", "reason"), REFUSED[1:])
def test_a_model_that_loses_text_is_refused(texts: list[str], options: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        checked(imported_content(parse_model(sentencepiece_model(texts, **options), "here"), ()), "here")


@pytest.mark.parametrize("content", [b"", b"\x80\x04", b"not a model", b"\x00" * 100])
def test_what_is_no_model_is_refused(content: bytes) -> None:
    with pytest.raises(DataError, match="not a SentencePiece model"):
        parse_model(content, "here")


def test_long_lines_and_nul_are_learned_from() -> None:
    model = train_model("bpe", 300, ["word " * 300_000, "a\x00word word"])
    assert any(entry.piece == "\u2581word" for entry in model.definition.pieces)
