"""`fledge export PLACE FOLDER --to bin`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from token_artifacts import make_conversations, make_documents, make_tokenizer

from fledge.core.errors import ArtifactError, ConfigError, DataError
from fledge.tokens.shards import open_token_set
from fledge.verbs.export import export_tokens


def test_a_run_or_a_token_set_is_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = make_tokenizer(tmp_path / "run" / "tokenizer")
    made = make_documents(tmp_path / "run" / "pack" / "documents", tokenizer)
    export_tokens(str(tmp_path / "run"), tmp_path / "out", False)
    export_tokens(str(made.path), tmp_path / "again", False)
    names = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert names[:2] == ["data_meta.json", "tokenizer/chat_template.jinja"]
    assert {"train.bin", "val.bin", "tokenizer/tokenizer.json"} <= set(names)
    assert "tokenizer/manifest.json" not in names
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    expected = b"".join(shard.tokens[:].tobytes() for shard in open_token_set(made.path).shards("train"))
    assert (tmp_path / "out" / "train.bin").read_bytes() == expected
    assert f"{len(expected) // 2:,} train tokens" in capsys.readouterr().out


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    made = make_documents(tmp_path / "set", make_tokenizer(tmp_path / "tokenizer"))
    (tmp_path / "out").mkdir()
    export_tokens(str(made.path), tmp_path / "out", False)
    with pytest.raises(ConfigError, match="out is already there"):
        export_tokens(str(made.path), tmp_path / "out", False)


def test_what_cannot_be_exported_leaves_nothing(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    made = make_conversations(tmp_path / "talks", tokenizer)
    with pytest.raises(DataError, match="holds conversations"):
        export_tokens(str(made.path), tmp_path / "out", False)
    with pytest.raises(ArtifactError, match="is a tokenizer, not a tokens"):
        export_tokens(str(tokenizer.path), tmp_path / "out", False)
    with pytest.raises(ArtifactError, match="holds no token set"):
        export_tokens(str(tmp_path / "nowhere"), tmp_path / "out", False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["talks", "tokenizer"]


def test_a_damaged_set_is_not_exported(tmp_path: Path) -> None:
    made = make_documents(tmp_path / "set", make_tokenizer(tmp_path / "tokenizer"))
    path = next(made.path.glob("train-*.tokens"))
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match="is damaged: block 0"):
        export_tokens(str(made.path), tmp_path / "out", False)
    assert not (tmp_path / "out").exists()
