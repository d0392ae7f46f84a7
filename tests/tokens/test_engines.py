from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
import tokenizers

from fledge.core.errors import DataError
from fledge.corpus.document import Document
from fledge.tokens.document_packing import pack_documents
from fledge.tokens.engines import Encoded, Engine, EnginePool, ReferenceEngine, choose_engine
from fledge.tokens.engines.byte_pairs import GigatokenEngine, TiktokenEngine
from fledge.tokens.engines.kernel import KernelEngine
from fledge.tokens.engines.two_level import TwoLevelEngine
from fledge.tokens.tokenizer import Tokenizer

from .conftest import HARD_TEXTS, TIME_LIMIT_SECONDS, body_of, spliced_texts

Content = dict[str, Any]
PLAIN: tuple[type[Engine], ...] = (KernelEngine, TiktokenEngine, GigatokenEngine)
TEXTS = [topics[name] for name in sorted(topics)[:30]]


def _reference(content: Content) -> ReferenceEngine:
    return ReferenceEngine(tokenizers.Tokenizer.from_str(json.dumps(body_of(content))))


def _make(kind: Any, content: Content) -> Engine:
    if kind is GigatokenEngine:
        pytest.importorskip("gigatoken")
    engine: Engine = kind(body_of(content))
    return engine


def _assert_same(expected: Encoded, found: Encoded, texts: Sequence[str]) -> None:
    differing = [text for place, text in enumerate(texts) if not np.array_equal(expected[place], found[place])]
    assert not differing, repr(differing[0])
    assert np.array_equal(expected.offsets, found.offsets)
    assert found.ids.dtype == np.uint32


@pytest.mark.parametrize("kind", PLAIN)
def test_engines_give_the_reference_s_ids(plain_content: Content, kind: Any) -> None:
    texts = [*HARD_TEXTS, *TEXTS, *spliced_texts(1_500)]
    engine = _make(kind, plain_content)
    _assert_same(_reference(plain_content).encode_batch(texts), engine.encode_batch(texts), texts)
    for few in ([], [""], ["", "a", ""]):
        _assert_same(_reference(plain_content).encode_batch(few), engine.encode_batch(few), few)


@pytest.mark.slow
@pytest.mark.parametrize("kind", PLAIN)
def test_every_character_is_split_as_the_reference_splits_it(plain_content: Content, kind: Any) -> None:
    points = [*range(0xD800), *range(0xE000, 0x31400), *range(0xE0000, 0xE0200), 0x10FFFF]
    texts = [f"a{chr(point)}b {chr(point)}, {chr(point)}{chr(point)}1 {chr(point)}\n" for point in points]
    _assert_same(_reference(plain_content).encode_batch(texts), _make(kind, plain_content).encode_batch(texts), texts)


def test_many_texts_at_once_are_as_many_alone(plain_content: Content) -> None:
    engine = KernelEngine(body_of(plain_content))
    engine._caches = [cache.copy() for cache in engine._caches * 3]  # more threads than cores; no two may share one
    texts = spliced_texts(1_500) * 8
    assert sum(len(text.encode()) for text in texts) > 4 << 18
    _assert_same(_reference(plain_content).encode_batch(texts), engine.encode_batch(texts), texts)


@pytest.mark.parametrize("kind", [*PLAIN, ReferenceEngine])
def test_half_a_character_is_refused(plain_content: Content, kind: Any) -> None:
    engine = _reference(plain_content) if kind is ReferenceEngine else _make(kind, plain_content)
    with pytest.raises(DataError, match="text 1 is not valid Unicode"):
        engine.encode_batch(["fine", "\ud800"])


@pytest.mark.parametrize("text", ["^", " ", "\n", "a", "\u65e5", "ab ", "\u3000"], ids=repr)
def test_a_megabyte_of_one_thing_takes_linear_time(plain_content: Content, text: str) -> None:
    repeated = ["before", text * (1_000_000 // len(text.encode())), "behind"]
    expected = _reference(plain_content).encode_batch(repeated)
    for kind in PLAIN:
        engine = _make(kind, plain_content)
        engine.encode_batch(["warm"])
        started = time.process_time()
        found = engine.encode_batch(repeated)
        assert time.process_time() - started < TIME_LIMIT_SECONDS, engine.name
        _assert_same(expected, found, ["", "", ""])


@pytest.mark.parametrize("text", [" x", " the list", "a, "], ids=repr)
def test_a_megabyte_of_superwords_takes_linear_time(super_content: Content, text: str) -> None:
    engine = TwoLevelEngine(body_of(super_content), KernelEngine)
    engine.encode_batch(["warm"])
    repeated = text * (1_000_000 // len(text))
    started = time.process_time()
    found = engine.encode_batch([repeated])
    assert time.process_time() - started < TIME_LIMIT_SECONDS
    _assert_same(_reference(super_content).encode_batch([repeated]), found, [""])


@pytest.mark.parametrize("kind", [KernelEngine, TiktokenEngine])
@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["model"].update(byte_fallback=True),
        lambda content: content["model"].update(type="Unigram"),
        lambda content: content["model"].update(ignore_merges=True),
        lambda content: content.update(normalizer={"type": "NFC"}),
        lambda content: content["pre_tokenizer"].update(pretokenizers=[{"type": "Whitespace"}]),
        lambda content: content["model"]["vocab"].pop("a"),
    ],
)
def test_tokenizers_of_another_kind_are_refused(plain_content: Content, kind: Any, change: Callable[[Any], Any]) -> None:
    content = json.loads(json.dumps(body_of(plain_content)))
    change(content)
    with pytest.raises(ValueError, match=r"^it|^its"):
        kind(content)


def test_tiktoken_is_refused_where_ranks_are_not_ids(plain_content: Content) -> None:
    content = json.loads(json.dumps(body_of(plain_content)))
    vocabulary = content["model"]["vocab"]
    first, second = ("".join(merge) for merge in content["model"]["merges"][10:12])
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    with pytest.raises(ValueError, match="not in the order"):
        TiktokenEngine(content)
    _assert_same(_reference(content).encode_batch(TEXTS), KernelEngine(content).encode_batch(TEXTS), TEXTS)


def test_tiktoken_splits_as_gpt2_does_where_the_bytes_do(plain_content: Content) -> None:
    content = body_of(plain_content)
    content["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    texts = [*HARD_TEXTS, *TEXTS[:5]]
    _assert_same(_reference(content).encode_batch(texts), TiktokenEngine(content).encode_batch(texts), texts)


class _Scripted:
    """The reference, or what a test makes of it."""

    def __init__(self, name: str, reference: Engine, change: Callable[[Sequence[str], Encoded], Encoded]) -> None:
        self.name, self._reference, self._change = name, reference, change

    def encode_batch(self, texts: Sequence[str]) -> Encoded:
        return self._change(texts, self._reference.encode_batch(texts))


def _lying(texts: Sequence[str], encoded: Encoded) -> Encoded:
    return Encoded(encoded.ids ^ np.uint32(1), encoded.offsets) if "rare" in "".join(texts) else encoded


def _failing(texts: Sequence[str], encoded: Encoded) -> Encoded:
    if "rare" in "".join(texts):
        raise type("PanicException", (BaseException,), {})("no memory")
    return encoded


def _pool(content: Content, **changes: Callable[[Sequence[str], Encoded], Encoded]) -> EnginePool:
    reference = _reference(content)
    candidates = {name: lambda _, name=name, change=change: _Scripted(name, reference, change) for name, change in changes.items()}
    return EnginePool(body_of(content), candidates)


def test_the_fastest_honest_engine_is_chosen(plain_content: Content) -> None:
    choice = choose_engine(body_of(plain_content), ["probe"], TEXTS)
    assert choice.engine.name == max(choice.megabytes_per_cpu_second, key=lambda name: choice.megabytes_per_cpu_second[name])
    assert choice.engine.name != "tokenizers"
    assert {"fledge", "tiktoken", "tokenizers"} <= choice.megabytes_per_cpu_second.keys()
    assert choice.refused == {}
    assert json.loads(json.dumps(choice.record()))["engine"] == choice.engine.name


@pytest.mark.parametrize(("probes", "sample"), [(["a rare probe"], ["text"]), (["probe"], ["text", "a rare text"])])
def test_an_engine_that_lies_is_refused_for_good(plain_content: Content, probes: list[str], sample: list[str]) -> None:
    pool = _pool(plain_content, liar=_lying)
    choice = pool.choose(probes, sample)
    assert choice.engine.name == "tokenizers"
    assert "its ids differ for" in choice.refused["liar"]
    assert "liar" in pool.choose(["fine"], ["fine"]).refused


def test_an_engine_with_wrong_borders_is_refused(plain_content: Content) -> None:
    pool = _pool(plain_content, liar=lambda texts, encoded: Encoded(encoded.ids, np.sort(encoded.offsets // 2 * 2)))
    assert "differ" in pool.choose(["a", "b c d"], TEXTS).refused["liar"]


def test_an_engine_that_fails_on_the_sample_is_refused(plain_content: Content) -> None:
    choice = _pool(plain_content, broken=_failing).choose(["fine"], ["a rare text"])
    assert choice.engine.name == "tokenizers"
    assert choice.refused == {"broken": "PanicException: no memory"}


def test_a_batch_on_which_the_engine_fails_goes_to_the_reference(plain_content: Content, capsys: pytest.CaptureFixture[str]) -> None:
    reference = _reference(plain_content)

    class Free(_Scripted):
        def encode_batch(self, texts: Sequence[str]) -> Encoded:
            return known[tuple(texts)] if tuple(texts) in known else super().encode_batch(texts)

    known = {tuple(texts): reference.encode_batch(texts) for texts in (["fine", "a b"], TEXTS[:1])}
    pool = EnginePool(body_of(plain_content), {"free": lambda _: Free("free", reference, _failing)})
    engine = pool.choose(["fine"], TEXTS[:1]).engine
    assert engine.name == "free"
    for _ in range(2):
        _assert_same(reference.encode_batch(["a rare text"]), engine.encode_batch(["a rare text"]), ["a rare text"])
    assert capsys.readouterr().err.count("free failed (PanicException: no memory)") == 1
    with pytest.raises(DataError):
        engine.encode_batch(["\ud800"])


def test_ctrl_c_is_no_failure_of_an_engine(plain_content: Content) -> None:
    def interrupted(texts: Sequence[str], encoded: Encoded) -> Encoded:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _pool(plain_content, slow=interrupted).choose(["fine"], ["text"])


def test_a_library_that_is_missing_is_no_candidate(plain_content: Content, super_content: Content, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    for content in (plain_content, super_content):
        choice = choose_engine(body_of(content), ["probe"], TEXTS)
        assert not [name for name in (*choice.refused, *choice.megabytes_per_cpu_second) if "gigatoken" in name]
        assert "fledge" in choice.engine.name


def test_superwords_are_encoded_in_two_levels(super_content: Content) -> None:
    choice = choose_engine(body_of(super_content), HARD_TEXTS, TEXTS)
    assert choice.engine.name.endswith(", superwords")
    assert choice.refused == {}


def test_a_tokenizer_no_library_knows_stays_with_the_reference(plain_content: Content) -> None:
    content = body_of(plain_content)
    content["normalizer"] = {"type": "Lowercase"}
    choice = choose_engine(content, ["Probe"], TEXTS)
    assert choice.engine.name == "tokenizers"
    assert {"fledge", "tiktoken"} <= choice.refused.keys()


def test_packing_chooses_for_every_source(tokenizer: Tokenizer, tmp_path: Path) -> None:
    documents = [Document(text, f"document-{place}", ("books", "web")[place % 2], "g") for place, text in enumerate(TEXTS)]
    assert pack_documents(documents, tokenizer, tmp_path / "little", "train")["engine_by_source"] == {}, "not for little text"
    stats: Mapping[str, Any] = pack_documents(documents, tokenizer, tmp_path / "much", "train", text_bytes=10_000_000)
    assert stats["engine_by_source"].keys() == {"books", "web"}
    for record in stats["engine_by_source"].values():
        assert record["engine"] in record["megabytes_per_cpu_second"]
        assert record["megabytes_per_cpu_second"]["tokenizers"] > 0
