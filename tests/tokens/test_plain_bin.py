"""Plain files of ids: imported with every id checked, exported and imported again without a difference."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from fledge.core.errors import DataError
from fledge.corpus.document import Document
from fledge.tokens import plain_bin
from fledge.tokens.document_packing import pack_sides
from fledge.tokens.plain_bin import export_bin, import_bin
from fledge.tokens.shards import open_token_set
from fledge.tokens.tokenizer import Tokenizer, open_tokenizer
from fledge.tokens.unpacking import unpacked_documents

TEXTS = ["one list", "another, longer list of values", "", "é 🙂", "the end"]


def write_bin(folder: Path, tokenizer: Tokenizer, **told: Any) -> None:
    ids = [token for text in TEXTS for token in (tokenizer.end_of_text, *tokenizer.encode(text))]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.bin").write_bytes(np.array(ids, "<u2").tobytes())
    (folder / "val.bin").write_bytes(np.array(ids[:3], "<u2").tobytes())
    if told:
        (folder / "data_meta.json").write_text(json.dumps(told))


@pytest.mark.parametrize("piece_tokens", [1, 3, 5, 1 << 20])
def test_documents_are_found_by_their_marks(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece_tokens: int
) -> None:
    monkeypatch.setattr(plain_bin, "_PIECE_TOKENS", piece_tokens)
    write_bin(tmp_path / "bin", tokenizer)
    figures = import_bin(tmp_path / "bin", tokenizer, tmp_path / "set")
    token_set = open_token_set(tmp_path / "set")
    assert [text for _, text in unpacked_documents(token_set, tokenizer, "train")] == TEXTS
    (shard,), (held_out,) = token_set.shards("train"), token_set.shards("validation")
    assert shard.text_bytes.tolist() == [len(text.encode()) for text in TEXTS]
    assert shard.tokens[:].tobytes() == (tmp_path / "bin" / "train.bin").read_bytes()
    assert shard.document_ids.to_pylist() == [f"train-{number}" for number in range(5)]
    assert len(held_out.tokens) == figures["validation"]["tokens"] == 3
    assert figures["train"]["documents"] == 5


@pytest.mark.parametrize("piece_tokens", [1, 2, 7, 1 << 20])
def test_documents_with_end_marks_end_behind_them(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece_tokens: int
) -> None:
    """Any tokenizer with an end of its own: each document is its ids and the end id; what follows the last one is one more."""
    monkeypatch.setattr(plain_bin, "_PIECE_TOKENS", piece_tokens)
    names = ("vocabulary_size", "byte_lengths", "sha256", "end_of_text")
    ending = cast(Tokenizer, SimpleNamespace(document_start=(1,), document_end=(2,), **{name: getattr(tokenizer, name) for name in names}))
    ids = [1, 30, 31, 2, 1, 2, 1, 32, 33, 34, 2, 1, 35]
    (tmp_path / "train.bin").write_bytes(np.array(ids, "<u2").tobytes())
    import_bin(tmp_path, ending, tmp_path / "set")
    (shard,) = open_token_set(tmp_path / "set").shards("train")
    assert shard.lengths.tolist() == [4, 2, 5, 2]
    assert shard.text_bytes.tolist() == [4, 2, 5, 2]


def test_without_marks_all_is_one_document(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "train.bin").write_bytes(np.array([30, 31, 32], "<u2").tobytes())
    import_bin(tmp_path, tokenizer, tmp_path / "set")
    assert open_token_set(tmp_path / "set").shards("train")[0].lengths.tolist() == [3]
    assert open_token_set(tmp_path / "set").shards("validation") == ()


def test_an_id_outside_the_vocabulary_is_named_with_its_place(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain_bin, "_PIECE_TOKENS", 4)
    ids = np.arange(10, dtype="<u2")
    ids[7] = tokenizer.vocabulary_size
    (tmp_path / "train.bin").write_bytes(ids.tobytes())
    with pytest.raises(DataError, match=r"train\.bin holds id 768 at token 7, the tokenizer's vocabulary ends at 767") as caught:
        import_bin(tmp_path, tokenizer, tmp_path / "set")
    assert "pack.tokenizer" in caught.value.remedy


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("train.bin", lambda old: old[:-1], r"train\.bin is \d+ bytes long, which is no number of uint16 ids"),
        ("train.bin", lambda old: b"", "0 bytes long"),
        ("val.bin", lambda old: old + b"\x00", r"val\.bin is 7 bytes long"),
        ("data_meta.json", lambda old: b"[]", r"data_meta\.json cannot be read: it is no object"),
        ("data_meta.json", lambda old: b"{", r"data_meta\.json cannot be read"),
        ("data_meta.json", lambda old: b'{"train_tokens": 4}', r"train\.bin holds \d+ ids, data_meta\.json says 4"),
        ("data_meta.json", lambda old: b'{"val_tokens": 4}', r"val\.bin holds 3 ids, data_meta\.json says 4"),
        ("data_meta.json", lambda old: b'{"vocab_size": 700}', r"data_meta\.json: vocab_size is 700, the tokenizer has 768"),
        ("data_meta.json", lambda old: b'{"dtype": "float16"}', r"data_meta\.json: dtype is 'float16'"),
    ],
)
def test_what_does_not_fit_is_refused(tokenizer: Tokenizer, tmp_path: Path, name: str, change: Any, reason: str) -> None:
    write_bin(tmp_path, tokenizer, vocab_size=768, val_tokens=3, note="others may write more")
    import_bin(tmp_path, tokenizer, tmp_path / "sound")
    (tmp_path / name).write_bytes(change((tmp_path / name).read_bytes()))
    with pytest.raises(DataError, match=reason):
        import_bin(tmp_path, tokenizer, tmp_path / "set")


def test_no_train_bin_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.bin is missing"):
        import_bin(tmp_path, tokenizer, tmp_path / "set")


@pytest.mark.parametrize("row_tokens", [None, 32])
def test_an_export_holds_every_document_once_and_imports_again(tokenizer: Tokenizer, tmp_path: Path, row_tokens: int | None) -> None:
    draw = random.Random(0)
    texts = [" ".join(draw.choice(["list", "dict", "é"]) for _ in range(draw.randrange(1, 60))) for _ in range(60)]
    sided = [
        ("validation" if number % 7 == 0 else "train", Document(text, f"id-{number}", ("books", "web")[number % 2], "g"))
        for number, text in enumerate(texts)
    ]
    pack_sides(cast(Any, sided), tokenizer, tmp_path / "set", row_tokens=row_tokens)
    token_set = open_token_set(tmp_path / "set")
    counts = export_bin(token_set, tokenizer, tmp_path / "out")
    told = json.loads((tmp_path / "out" / "data_meta.json").read_text())
    assert (told["dtype"], told["vocab_size"], told["tokenizer_sha256"]) == ("uint16", 768, tokenizer.sha256)
    assert (told["train_tokens"], told["val_tokens"]) == (counts["train"], counts["validation"])
    assert told["train_documents"] + told["val_documents"] == 60
    raw = np.fromfile(tmp_path / "out" / "train.bin", "<u2")
    assert len(raw) == counts["train"] and not (raw == tokenizer.padding).any()
    copy = open_tokenizer(tmp_path / "out" / "tokenizer")
    assert copy.sha256 == tokenizer.sha256
    import_bin(tmp_path / "out", copy, tmp_path / "again")
    for split in ("train", "validation"):
        expected = [text for _, text in unpacked_documents(token_set, tokenizer, split)]
        assert sorted(expected) == sorted(one.text for side, one in sided if side == split)
        assert [text for _, text in unpacked_documents(open_token_set(tmp_path / "again"), copy, split)] == expected


def test_masks_cannot_be_exported(tokenizer: Tokenizer, tmp_path: Path) -> None:
    from fledge.corpus.document import Conversation, Message
    from fledge.tokens.packing import pack_conversations

    turns = (Message("user", "a"), Message("assistant", "b"))
    pack_conversations([Conversation(turns, "one", "talk", "g")], tokenizer, tmp_path, "train", 64)
    with pytest.raises(DataError, match="holds conversations"):
        export_bin(open_token_set(tmp_path), tokenizer, tmp_path / "out")


def test_ids_of_another_tokenizer_are_refused_where_the_folder_names_it(tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_bin(tmp_path / "ours", tokenizer, tokenizer_sha256=tokenizer.sha256)
    import_bin(tmp_path / "ours", tokenizer, tmp_path / "set")
    write_bin(tmp_path / "theirs", tokenizer, tokenizer_sha256="0" * 64)
    with pytest.raises(DataError, match="tokenizers differ"):
        import_bin(tmp_path / "theirs", tokenizer, tmp_path / "other")
