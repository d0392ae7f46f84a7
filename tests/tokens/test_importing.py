"""An imported tokenizer encodes as its own library does, or is refused; nothing that came with it is run."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from fledge.core.errors import DataError, FledgeError
from fledge.corpus.document import Message
from fledge.tokens import importing
from fledge.tokens.chat import render
from fledge.tokens.importing import import_tokenizer, origin
from fledge.tokens.probes import generated_texts
from fledge.tokens.settings import TokenizerSettings
from fledge.tokens.tokenizer import Tokenizer, open_tokenizer

from .kinds import SIZE, sentencepiece_model, write_gpt2, write_llama


def _imported(path: Path, target: Path, **options: Any) -> Tokenizer:
    target.mkdir(parents=True, exist_ok=True)
    import_tokenizer(TokenizerSettings(kind="import", path=str(path), **options), target)
    return open_tokenizer(target)


@pytest.fixture(scope="module")
def llama(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("llama") / "tokenizer.model", texts)


@pytest.fixture(scope="module")
def gpt2(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gpt2(tmp_path_factory.mktemp("gpt2") / "tokenizer.json", texts)


def test_llama_has_its_ids_and_roles(llama: Path, texts: list[str], tmp_path: Path) -> None:
    import sentencepiece

    tokenizer = _imported(llama, tmp_path)
    assert (tokenizer.vocabulary_size, tokenizer.prefix_bytes) == (SIZE, 1)
    assert (tokenizer.specials["<unk>"], tokenizer.document_start, tokenizer.document_end) == (0, (1,), (2,))
    assert (tokenizer.end_of_text, tokenizer.padding, tokenizer.turn_start, tokenizer.turn_end) == (2, 0, None, None)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(llama))
    every = [text for text in [*texts, *generated_texts(1_000, seed=7)] if "<s>" not in text]
    assert tokenizer.encode_batch(every) == processor.encode(every)
    assert tokenizer.meta.imported_from["sha256"] == origin(TokenizerSettings(kind="import", path=str(llama)))["sha256"]
    assert not (tmp_path / "chat_template.jinja").exists()


def test_gpt2_has_its_ids_and_roles(gpt2: Path, texts: list[str], tmp_path: Path) -> None:
    tokenizer = _imported(gpt2, tmp_path)
    assert tokenizer.specials == {"<|endoftext|>": SIZE - 1} and tokenizer.vocabulary_size == SIZE
    assert (tokenizer.document_start, tokenizer.document_end, tokenizer.padding) == ((SIZE - 1,), (), SIZE - 1)
    original = tokenizers.Tokenizer.from_file(str(gpt2))
    every = [*texts, *generated_texts(1_000, seed=7)]
    assert tokenizer.encode_batch(every) == [one.ids for one in original.encode_batch(every)]


def test_a_tokenizer_like_that_of_qwen_is_imported(gpt2: Path, tmp_path: Path) -> None:
    """It composes characters, and has tokens that are not special: they enter by id only, and are shown in what a model says."""
    content = json.loads(gpt2.read_text())
    content["normalizer"] = {"type": "NFC"}
    for place, (name, special) in enumerate({"<|im_start|>": True, "<|im_end|>": True, "<think>": False, "</think>": False}.items()):
        content["added_tokens"].append({**content["added_tokens"][0], "content": name, "id": SIZE + place, "special": special})
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    original = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    made = _imported(tmp_path / "tokenizer.json", tmp_path / "made")
    composed, apart = "caf\u00e9 \ud55c", "cafe\u0301 \u1112\u1161\u11ab"
    assert made.encode(composed) == original.encode(composed).ids == original.encode(apart).ids
    assert made.decode(made.encode(apart)) == apart and made.encode(apart) != made.encode(composed)
    assert SIZE + 2 in original.encode("a <think> b").ids and SIZE + 2 not in made.encode("a <think> b")
    assert made.decode([*made.encode("a "), SIZE + 2, SIZE + 1]) == "a <think>"
    assert made.byte_lengths[SIZE + 2] == 0 and made.turn_end == SIZE + 1
    again = _imported(tmp_path / "made" / "tokenizer.json", tmp_path / "again")
    assert again.sha256 == made.sha256


def test_a_folder_of_hugging_face_is_read_as_it_lies(llama: Path, texts: list[str], tmp_path: Path) -> None:
    """The published `tokenizer.json` of Llama 2: Prepend, then marks for spaces, and <s> in front of every text."""
    first = _imported(llama, tmp_path / "first")
    content = json.loads((first.folder / "tokenizer.json").read_text())
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    content["truncation"] = {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
    given = tmp_path / "given"
    given.mkdir()
    (given / "tokenizer.json").write_text(json.dumps(content))
    (given / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["code.Tokenizer", None]}}))
    (given / "chat_template.jinja").write_text("{% for x in range(10**9) %}{{ ''.__class__ }}{% endfor %}")
    (given / "code.py").write_text("raise SystemExit('run')")
    second = _imported(given, tmp_path / "second")
    assert second.sha256 == first.sha256 and second.encode_batch(texts) == first.encode_batch(texts)
    assert {path.name for path in second.folder.iterdir()} == {"tokenizer.json", "tokenizer_config.json", "tokenizer_meta.json"}


def test_code_beside_a_tokenizer_is_told_and_not_run(gpt2: Path, tmp_path: Path, capsys: Any) -> None:
    (gpt2.parent / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["code.Tokenizer", None]}}))
    _imported(gpt2.parent, tmp_path)
    assert "auto_map" in capsys.readouterr().err


def test_without_tokens_for_turns_there_is_no_conversation(llama: Path, tmp_path: Path) -> None:
    plain = _imported(llama, tmp_path / "plain")
    with pytest.raises(DataError, match=r"turn_tokens=true"):
        render(plain, [Message("user", "a")])
    with_turns = _imported(llama, tmp_path / "turns", turn_tokens=True, reserved_tokens=3)
    assert (with_turns.turn_start, with_turns.turn_end) == (SIZE, SIZE + 1)
    assert list(with_turns.specials)[-3:] == [f"<|reserved_{number}|>" for number in range(3)]
    assert with_turns.sha256 != plain.sha256 and with_turns.encode("a b") == plain.encode("a b")
    assert render(with_turns, [Message("user", "a")]).ids[0] == SIZE
    assert (plain.end_ids(answers=True), with_turns.end_ids(answers=True)) == ((2,), (SIZE + 1, 2))


def test_unigram_is_imported_from_both_forms(texts: list[str], tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(sentencepiece_model(texts, "unigram", user_defined_symbols=["<mask>"]))
    first = _imported(path, tmp_path / "first")
    assert not set(first.encode("<mask><s> <0x41>")) & set(first.specials.values())
    assert first.decode(first.encode("<mask><s> <0x41>")) == "<mask><s> <0x41>"
    second = _imported(first.folder / "tokenizer.json", tmp_path / "second")
    assert second.encode_batch(texts) == first.encode_batch(texts)


Change = Callable[[dict[str, Any]], Any]


def _normalize(content: dict[str, Any]) -> None:
    content["normalizer"] = {"type": "Lowercase"}


def _drop_white_space(content: dict[str, Any]) -> None:
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, content["pre_tokenizer"]]}


def _long_pattern(content: dict[str, Any]) -> None:
    split = {"type": "Split", "pattern": {"Regex": "a" * 5_000}, "behavior": "Isolated", "invert": False}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, content["pre_tokenizer"]]}


def _broken_pattern(content: dict[str, Any]) -> None:
    split = {"type": "Split", "pattern": {"Regex": "(a"}, "behavior": "Isolated", "invert": False}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, content["pre_tokenizer"]]}


def _repeat_special(content: dict[str, Any]) -> None:
    content["added_tokens"].append({**content["added_tokens"][0], "id": SIZE})


def _name_of_nothing(content: dict[str, Any]) -> None:
    content["added_tokens"].append({**content["added_tokens"][0], "content": "", "id": SIZE})


def _gap(content: dict[str, Any]) -> None:
    content["added_tokens"].append({**content["added_tokens"][0], "content": "<x>", "id": SIZE + 5})


def _text_token(content: dict[str, Any]) -> None:
    content["added_tokens"].append({**content["added_tokens"][0], "content": "    ", "id": SIZE, "special": False})


def _no_end(content: dict[str, Any]) -> None:
    content["added_tokens"] = []


def _dropout(content: dict[str, Any]) -> None:
    content["model"]["dropout"] = 0.1


def _twice(content: dict[str, Any]) -> None:
    content["model"]["vocab"]["a"] = content["model"]["vocab"]["b"]


def _missing_byte(content: dict[str, Any]) -> None:
    vocabulary = content["model"]["vocab"]
    vocabulary["qqqq"] = vocabulary.pop("!")


def _missing_piece(content: dict[str, Any]) -> None:
    content["model"]["merges"].append(["q", "qqqqq"])


def _word_piece(content: dict[str, Any]) -> None:
    content["model"]["type"] = "WordPiece"


BAD: list[tuple[Change, str]] = [
    (_normalize, "normalizer Lowercase changes the text"),
    (_drop_white_space, "pre_tokenizer WhitespaceSplit"),
    (_long_pattern, "longer than 4,000"),
    (_broken_pattern, "not a tokenizer that can be used"),
    (_repeat_special, "twice"),
    (_name_of_nothing, "without a name"),
    (_gap, "ids from"),
    (_text_token, "'    ', which is not special"),
    (_no_end, "does not stand for bytes|ends a text"),
    (_dropout, "model.dropout"),
    (_twice, "every id from 0 on exactly once"),
    (_missing_byte, "lacks 1 of the 256"),
    (_missing_piece, "model.merges names"),
    (_word_piece, "not BPE or Unigram"),
    (lambda content: content.pop("model"), "'model' is missing"),
    (lambda content: content["pre_tokenizer"].update(add_prefix_space=True), "in front of some texts only"),
]


@pytest.mark.parametrize(("change", "reason"), BAD, ids=lambda value: getattr(value, "__name__", None))
def test_an_unsafe_or_lossy_file_is_refused_naming_the_field(gpt2: Path, tmp_path: Path, change: Change, reason: str) -> None:
    content = json.loads(gpt2.read_text())
    change(content)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=reason) as caught:
        _imported(path, tmp_path / "made")
    assert str(path) in caught.value.problem
    assert list((tmp_path / "made").iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"[", b"3", b"\xff\xfe", b"[" * 100_000, b'{"model": null}'])
def test_a_file_that_is_cut_or_no_json_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        _imported(tmp_path, tmp_path / "made")


def test_a_pickle_is_refused_by_name_and_never_opened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "run",))

    given = tmp_path / "given"
    given.mkdir()
    (given / "tokenizer.pkl").write_bytes(pickle.dumps(Trap()))
    for path in (given / "tokenizer.pkl", given):
        with pytest.raises(DataError, match="a pickle can run code"):
            _imported(path, tmp_path / "made")
    assert not (tmp_path / "run").exists()


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    for path, reason in ((tmp_path, "holds neither"), (tmp_path / "x.model", "no file"), (tmp_path / "x.txt", "unknown form")):
        with pytest.raises(DataError, match=reason):
            _imported(path, tmp_path / "made")
        (tmp_path / "made").rmdir()


def test_one_that_encodes_otherwise_than_its_library_is_refused(gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = importing._understood

    def wrong(given: Any) -> dict[str, Any]:
        content = original(given)
        content["model"] = {**content["model"], "merges": content["model"]["merges"][::-1]}
        return content

    monkeypatch.setattr(importing, "_understood", wrong)
    with pytest.raises(DataError, match='encodes "The quick brown fox'):
        _imported(gpt2, tmp_path)


def test_presets_come_from_the_hub_and_are_what_they_are_known_to_be(
    llama: Path, gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(place: importing._PlaceOnHub, revision: str) -> Path:
        asked.append((place.repository, *place.files))
        return gpt2 if "gpt2" in place.repository else llama

    monkeypatch.setattr(importing, "_download", download)
    for preset in ("gpt2", "llama", "codellama"):
        with pytest.raises(DataError, match=f"has 1,024 entries .* {preset} is known"):
            import_tokenizer(TokenizerSettings(kind="import", preset=preset, revision="abc"), tmp_path)
    assert asked == [
        ("openai-community/gpt2", "tokenizer.json"),
        ("meta-llama/Llama-2-7b-hf", "tokenizer.model"),
        ("codellama/CodeLlama-7b-hf", "tokenizer.model"),
    ]
    monkeypatch.setitem(
        importing.PRESETS, "codellama", importing.PresetTokenizer("owner/name", "tokenizer.model", SIZE, {"<unk>": 0, "<s>": 1, "</s>": 2})
    )
    stats = import_tokenizer(TokenizerSettings(kind="import", preset="codellama", turn_tokens=True), tmp_path)
    assert stats["vocabulary_size"] == SIZE + 2
    assert origin(TokenizerSettings(kind="import", preset="codellama")) == {"repository": "owner/name", "revision": "main"}


def test_the_hub_is_asked_for_data_only(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx2
    import huggingface_hub
    from huggingface_hub.errors import RemoteEntryNotFoundError, RepositoryNotFoundError

    asked = []

    def answer(error: type[Exception]) -> Exception:
        request = httpx2.Request("GET", "https://example.org")
        return error("missing", response=httpx2.Response(404, request=request))  # type: ignore[call-arg]

    def fetch(repository: str, name: str, repo_type: str, revision: str, library_name: str) -> str:
        asked.append((repository, name, repo_type, revision))
        if repository == "owner/missing":
            raise answer(RepositoryNotFoundError)
        if name == "tokenizer.json" or repository == "owner/empty":
            raise answer(RemoteEntryNotFoundError)
        return str(shutil.copy(llama, tmp_path / name))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    stats = import_tokenizer(TokenizerSettings(kind="import", path="hub:owner/name", revision="v1"), tmp_path)
    assert stats["imported_from"] == "tokenizer.model of owner/name@v1"
    assert asked == [("owner/name", "tokenizer.json", "model", "v1"), ("owner/name", "tokenizer.model", "model", "v1")]
    of_data = TokenizerSettings(kind="import", path="hub:datasets/owner/shards/tokenizer.model")
    import_tokenizer(of_data, tmp_path)
    assert asked[-1] == ("owner/shards", "tokenizer.model", "dataset", "main")
    assert origin(of_data) == {"repository": "datasets/owner/shards/tokenizer.model", "revision": "main"}
    for path in ("hub:datasets/owner/shards", "hub:datasets/owner/shards/train.bin"):
        with pytest.raises(DataError, match="names no file of a tokenizer"):
            import_tokenizer(TokenizerSettings(kind="import", path=path), tmp_path)
    for name, reason in (("missing", "not on the hub"), ("empty", "does not hold")):
        with pytest.raises(FledgeError, match=reason):
            import_tokenizer(TokenizerSettings(kind="import", path=f"hub:owner/{name}"), tmp_path)


@pytest.mark.parametrize(
    ("model_type", "options", "reason"),
    [
        ("bpe", {"normalization_rule_name": "nmt_nfkc"}, "rewrites characters before it encodes (nmt_nfkc)"),
        ("unigram", {"normalization_rule_name": "nfkc_cf"}, "rewrites characters before it encodes (nfkc_cf)"),
        ("bpe", {"user_defined_symbols": ["def", "<mask>"]}, "user-defined entry 'def'"),
    ],
)
def test_a_model_that_would_encode_otherwise_here_is_refused(
    texts: list[str], tmp_path: Path, model_type: str, options: dict[str, Any], reason: str
) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(sentencepiece_model(texts, model_type, **options))
    with pytest.raises(DataError, match=re.escape(reason)):
        _imported(path, tmp_path / "out")


def test_a_model_by_another_name_is_found_in_its_folder(llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "spm.model").write_bytes(llama.read_bytes())
    assert _imported(folder, tmp_path / "out").vocabulary_size == SIZE
    (folder / "other.model").write_bytes(llama.read_bytes())
    with pytest.raises(DataError, match="holds neither"):
        _imported(folder, tmp_path / "out")
