from __future__ import annotations

import copy
import json
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel

from fledge.core.errors import DataError
from fledge.tokens.byte_level import byte_alphabet
from fledge.tokens.definition import canonical_sha256
from fledge.tokens.settings import SPECIAL_TOKENS
from fledge.tokens.tokenizer import Tokenizer, copy_tokenizer, open_tokenizer, require_one_tokenizer, require_same_tokenizer

generated = settings(max_examples=300)
fragments = st.one_of(st.text(), st.sampled_from([*SPECIAL_TOKENS, "<|", "|>", "im_end", " ", "\n", "user\n"]))


@generated
@example("\x00\ufeff\u0085\u2028 e\u0301 \U0001f468\u200d\U0001f469 \u202eRTL\r\n\r \uffff\U0010ffff")
@example("a" * 200_000)
@example(" " * 200_000)
@example("^" * 200_000)
@given(st.text())
def test_decoding_gives_back_any_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert int(tokenizer.byte_lengths[ids].sum()) == len(text.encode()) if ids else text == ""


@generated
@given(st.lists(fragments).map("".join))
def test_no_text_becomes_a_special_id(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert not set(ids) & set(tokenizer.specials.values())
    assert tokenizer.decode(ids) == text


def test_special_ids_are_the_highest_in_a_fixed_order(tokenizer: Tokenizer) -> None:
    top = tokenizer.vocabulary_size
    assert tokenizer.specials == {"<|endoftext|>": top - 4, "<|im_start|>": top - 3, "<|im_end|>": top - 2, "<|pad|>": top - 1}
    named = (tokenizer.end_of_text, tokenizer.turn_start, tokenizer.turn_end, tokenizer.padding)
    assert named == tuple(tokenizer.specials.values())
    assert tokenizer.byte_lengths.shape == (top,)
    assert not tokenizer.byte_lengths[-4:].any() and tokenizer.byte_lengths[:-4].all()


def test_special_ids_show_only_when_asked_for(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.end_of_text, *tokenizer.encode("text"), tokenizer.turn_end]
    assert tokenizer.decode(ids) == "text"
    assert tokenizer.decode(ids, keep_special=True) == "<|endoftext|>text<|im_end|>"


def test_ids_and_text_are_those_of_transformers(tokenizer: Tokenizer, theirs: Any, texts: list[str]) -> None:
    samples = [*texts, "na\u00efve \U0001f642 \u65e5\u672c\u8a9e 12345 don't\t\n\n  x"]
    assert tokenizer.encode_batch(samples) == [theirs(text)["input_ids"] for text in samples]
    draw = random.Random(1)
    for _ in range(200):
        ids = [draw.randrange(tokenizer.vocabulary_size) for _ in range(30)]
        assert tokenizer.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        assert tokenizer.decode(ids, keep_special=True) == theirs.decode(ids)


def test_transformers_knows_the_roles_of_the_special_tokens(tokenizer: Tokenizer, theirs: Any) -> None:
    assert len(theirs) == tokenizer.vocabulary_size
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (
        tokenizer.end_of_text,
        tokenizer.end_of_text,
        tokenizer.padding,
    )
    assert set(theirs.all_special_ids) == set(tokenizer.specials.values())
    # transformers 4 would add token_type_ids, which Llama's generate refuses.
    assert set(theirs("text")) == {"input_ids", "attention_mask"}


@generated
@given(st.text(), st.integers(0, 30))
def test_streaming_gives_the_same_text_as_decoding(tokenizer: Tokenizer, text: str, cut: int) -> None:
    ids = [*tokenizer.encode(text)[:cut], tokenizer.turn_end]
    stream = tokenizer.stream()
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) + stream.finish() == tokenizer.decode(ids)


def test_a_lone_surrogate_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="text 1 is not valid Unicode: a lone surrogate at character 2"):
        tokenizer.encode_batch(["fine", "no\ud800"])


def test_the_byte_alphabet_is_the_library_s() -> None:
    assert sorted(byte_alphabet()) == sorted(ByteLevel.alphabet())
    pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    for point in range(0x800):
        spelled = "".join(byte_alphabet()[value] for value in chr(point).encode())
        assert pre_tokenizer.pre_tokenize_str(chr(point))[0][0] == spelled


def test_the_hash_is_of_the_meaning_not_of_the_bytes(tokenizer: Tokenizer, theirs: Any, tmp_path: Path) -> None:
    library = tokenizers.Tokenizer.from_file(str(tokenizer.folder / "tokenizer.json"))
    library.save(str(tmp_path / "compact.json"), pretty=False)
    library.enable_truncation(5)
    library.enable_padding(length=5)
    library.save(str(tmp_path / "truncated.json"))
    theirs.save_pretrained(tmp_path / "theirs")
    bytes_before = (tokenizer.folder / "tokenizer.json").read_bytes()
    for path in (tmp_path / "compact.json", tmp_path / "truncated.json", tmp_path / "theirs" / "tokenizer.json"):
        assert path.read_bytes() != bytes_before
        assert canonical_sha256(_load(path)) == tokenizer.sha256


def _swap_ids(content: dict[str, Any]) -> None:
    vocabulary = content["model"]["vocab"]
    first, second = list(vocabulary)[300:302]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]


def _set_pattern(content: dict[str, Any]) -> None:
    content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\p{L}+"


def _add_normalizer(content: dict[str, Any]) -> None:
    content["normalizer"] = {"type": "NFC"}


def _add_template(content: dict[str, Any]) -> None:
    content["post_processor"] = {"type": "TemplateProcessing", "special_tokens": {"<|pad|>": {}}}


MEANINGFUL_CHANGES: list[Callable[[dict[str, Any]], Any]] = [
    _swap_ids,
    _set_pattern,
    _add_normalizer,
    _add_template,
    lambda content: content["model"]["merges"].pop(),
    lambda content: content["model"]["merges"].reverse(),
    lambda content: content["model"].update(ignore_merges=True),
    lambda content: content["added_tokens"].pop(),
    lambda content: content["added_tokens"][0].update(content="<|end|>"),
    lambda content: content["added_tokens"][0].update(lstrip=True),
]


@pytest.mark.parametrize("change", MEANINGFUL_CHANGES)
def test_the_hash_changes_with_the_meaning_and_the_folder_is_refused(
    tokenizer: Tokenizer, tmp_path: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    content = _load(tokenizer.folder / "tokenizer.json")
    change(content)
    assert canonical_sha256(content) != tokenizer.sha256
    _refused(_copy_with(tokenizer, tmp_path, "tokenizer.json", content), "tokenizer.json")


def _lack_a_byte(content: dict[str, Any]) -> None:
    vocabulary = content["model"]["vocab"]
    vocabulary["zzzzzz"] = vocabulary.pop("!")


def _name_missing_token(content: dict[str, Any]) -> None:
    content["model"]["merges"].append(["zzz", "z"])


def _repeat_id(content: dict[str, Any]) -> None:
    content["model"]["vocab"]["A"] = content["model"]["vocab"]["B"]


BROKEN: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (_lack_a_byte, "lacks 1 of the 256 single bytes"),
    (_name_missing_token, "names 'zzz'"),
    (_repeat_id, "every id from 0 on exactly once"),
    (lambda content: content["model"]["vocab"].update({"\u4e00": len(content["model"]["vocab"])}), "does not stand for bytes"),
    (lambda content: content["model"]["merges"].append(["a"]), "no pair"),
    (lambda content: content["model"].pop("vocab"), "'vocab' is missing"),
    (lambda content: content.pop("model"), "'model' is missing"),
    (lambda content: content.update(model=3), "not a tokenizer"),
    (lambda content: content["model"].update(type="Unigram"), "model.vocab of Unigram must be a list of pairs"),
    (lambda content: content["model"].update(vocab=[["a", 0.5]]), "not a tokenizer"),
    (lambda content: content.pop("added_tokens"), "'added_tokens' is missing"),
]


@pytest.mark.parametrize(("change", "reason"), BROKEN)
def test_a_broken_tokenizer_is_refused_naming_the_field(
    tokenizer: Tokenizer, tmp_path: Path, change: Callable[[dict[str, Any]], Any], reason: str
) -> None:
    content = _load(tokenizer.folder / "tokenizer.json")
    change(content)
    _refused(_copy_with(tokenizer, tmp_path, "tokenizer.json", content), reason)


def test_the_same_bytes_are_checked_once_and_refused_under_their_own_name(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for name in ("one", "two"):
        shutil.copytree(tokenizer.folder, tmp_path / name)
    assert open_tokenizer(tmp_path / "one").definition is open_tokenizer(tmp_path / "two").definition
    content = _load(tokenizer.folder / "tokenizer.json")
    content["model"].pop("vocab")
    for name in ("one", "two"):
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(content))
        _refused(tmp_path / name, f"{name}/tokenizer.json is not a tokenizer that can be used: the field 'vocab' is missing")


def test_files_that_are_missing_cut_or_no_json_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    _refused(tmp_path / "nowhere", "fledge tokenizer RECIPE")
    whole = (tokenizer.folder / "tokenizer.json").read_text(encoding="utf-8")
    for place, (name, content) in enumerate(
        [
            ("tokenizer.json", whole[:-20].encode()),
            ("tokenizer.json", b"[" * 100_000),
            ("tokenizer.json", b"3"),
            ("tokenizer.json", b"\xff\xfe"),
            ("tokenizer_meta.json", b"{}"),
            ("tokenizer_meta.json", b'{"format_version": 2}'),
            ("tokenizer_meta.json", b'{"format_version": 1, "canonical_sha256": "1"}'),
            ("tokenizer_meta.json", b"[]"),
            ("chat_template.jinja", b"{{ ''.__class__ }}"),
        ]
    ):
        folder = _copy(tokenizer, tmp_path / str(place))
        (folder / name).write_bytes(content)
        _refused(folder, name)
    for name in ("tokenizer.json", "tokenizer_meta.json", "chat_template.jinja"):
        folder = _copy(tokenizer, tmp_path / f"without-{name}")
        (folder / name).unlink()
        _refused(folder, name)


def test_a_pickle_is_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.pkl").write_bytes(pickle.dumps({"vocab": {}}))
    _refused(tmp_path, "there is no tokenizer")


def test_another_behaviour_of_the_library_is_noticed(tokenizer: Tokenizer, tmp_path: Path) -> None:
    meta = _load(tokenizer.folder / "tokenizer_meta.json")
    next(iter(meta["probes"].values())).append(7)
    _refused(_copy_with(tokenizer, tmp_path, "tokenizer_meta.json", meta), "did as")


def test_every_hash_is_named_where_tokenizers_differ() -> None:
    made_with = {"token set runs/x/pack/documents": "ab" * 32, "token set more": "cd" * 32, "checkpoint runs/y": "ab" * 32}
    require_one_tokenizer({"token set a": "ab" * 32, "checkpoint b": "ab" * 32})
    with pytest.raises(DataError) as caught:
        require_one_tokenizer(made_with, "my.yaml --name x")
    assert all(f"{name} has {digest[:16]}" in caught.value.problem for name, digest in made_with.items())
    assert "fledge pack my.yaml --name x --force" in caught.value.remedy


def test_another_tokenizer_is_refused_naming_both() -> None:
    require_same_tokenizer("ab" * 32, "ab" * 32, "the token set")
    with pytest.raises(DataError) as caught:
        require_same_tokenizer("ab" * 32, "cd" * 32, "runs/x/pack/documents")
    assert "abababab" in caught.value.problem and "cdcdcdcd" in caught.value.problem and "runs/x/pack/documents" in caught.value.problem
    assert "fledge pack RECIPE --force" in caught.value.remedy
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(("answers", "end_token"), [(False, "<|endoftext|>"), (True, "<|im_end|>")])
def test_a_checkpoint_gets_the_tokenizer_with_its_own_end_token(
    tokenizer: Tokenizer, tmp_path: Path, answers: bool, end_token: str
) -> None:
    copy_tokenizer(tokenizer, answers, tmp_path, maximum_tokens=128)
    assert open_tokenizer(tmp_path).sha256 == tokenizer.sha256
    config = _load(tmp_path / "tokenizer_config.json")
    assert (config["eos_token"], config["model_max_length"]) == (end_token, 128)
    assert config["chat_template"] == (tmp_path / "chat_template.jinja").read_text(encoding="utf-8")


def _load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _copy(tokenizer: Tokenizer, folder: Path) -> Path:
    shutil.copytree(tokenizer.folder, folder, dirs_exist_ok=True)
    return folder


def _copy_with(tokenizer: Tokenizer, folder: Path, name: str, content: Any) -> Path:
    _copy(tokenizer, folder)
    (folder / name).write_text(json.dumps(copy.deepcopy(content)), encoding="utf-8")
    return folder


def _refused(folder: Path, reason: str) -> None:
    with pytest.raises(DataError) as caught:
        open_tokenizer(folder)
    assert reason in str(caught.value)
    assert str(folder) in caught.value.problem
