"""`fledge inspect`: what is printed of a row, with colours and without."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from token_artifacts import make_conversations, make_documents, make_tokenizer

from fledge.core import artifact, console
from fledge.core.errors import ArtifactError, ConfigError, DataError
from fledge.corpus.document import Message, Preference
from fledge.tokens.packing import pack_preferences
from fledge.tokens.shards import open_token_set
from fledge.tokens.tokenizer import open_tokenizer
from fledge.verbs.token_rows import inspect


@pytest.fixture
def run(tmp_path: Path) -> Path:
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    make_documents(tmp_path / "pack" / "documents", tokenizer)
    make_conversations(tmp_path / "pack" / "conversations", tokenizer)
    return tmp_path


def test_a_run_shows_a_row_of_each_of_its_sets(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspect(str(run), None, "train", None, None, False)
    lines = capsys.readouterr().out.splitlines()
    heads = [line for line in lines if line.startswith(str(run))]
    assert heads == [
        f"{run}/pack/conversations  train conversations, row 0 of source talk",
        f"{run}/pack/documents  train documents, row 0 of source books",
    ]


def test_a_stage_shows_what_it_trains_on(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a recipe, what its run has packed."""
    inspect(str(run), "sft", "train", None, None, False)
    assert "pack/conversations  train conversations" in (printed := capsys.readouterr().out) and "documents, row" not in printed
    with pytest.raises(ArtifactError, match="holds no token set that dpo trains on"):
        inspect(str(run), "dpo", "train", None, None, False)
    monkeypatch.chdir(run)
    (run / "runs").mkdir()
    (run / "runs" / "mine").symlink_to(run)
    inspect("recipes/mine.yaml", "pretrain", "train", None, None, False)
    assert "documents, row 0 of source books" in capsys.readouterr().out


def test_without_colours_bars_are_the_borders(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspect(str(run / "pack" / "documents"), None, "train", 0, None, False)
    printed = capsys.readouterr().out
    shard = open_token_set(run / "pack" / "documents").shards("train")[0]
    assert [int(token) for token in re.findall(r"ids ([\d ]+)", printed)[0].split()] == shard.tokens[:8].tolist()
    first = shard.tokens[1 : int(shard.lengths[0])].tolist()
    tokenizer = open_tokenizer(run / "tokenizer")
    assert f"-- {shard.document_ids[0].as_py()}\n|<|endoftext|>|{'|'.join(tokenizer.decode([token]) for token in first)}|" in printed
    assert "[+]" not in printed
    assert "\x1b" not in printed


def test_the_loss_mask_and_padding_are_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspect(str(run / "pack" / "conversations"), None, "train", 1, None, False)
    printed = capsys.readouterr().out
    shard = open_token_set(run / "pack" / "conversations").shards("train")[0]
    assert shard.supervised is not None
    row = slice(256, 512)
    assert f"{int(shard.supervised[row].sum())} of 256 in the loss" in printed
    answers = re.findall(r"\[\+\]\|(.*?)(?=\[-\]|\n--|\n$|$)", printed, re.S)
    assert answers
    assert all(answer.rstrip("|").endswith("<|im_end|>") for answer in answers)
    padding = shard.tokens[row].tolist().count(open_tokenizer(run / "tokenizer").padding)
    assert padding < 4 or f"<|pad|> x {padding}|" in printed


def test_a_document_is_found_by_its_id(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = open_token_set(run / "pack" / "documents").shards("train")[1]
    name = shard.document_ids[2].as_py()
    inspect(str(run / "pack" / "documents"), None, "train", None, name, False)
    printed = capsys.readouterr().out
    start, length = int(shard.starts[2]), int(shard.lengths[2])
    assert f"tokens {start:,} to {start + length:,}, {length} of {length} in the loss, documents: 1" in printed
    assert printed.count("\n-- ") == 1


def test_what_goes_on_from_before_keeps_its_name(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspect(str(run / "pack" / "documents"), None, "train", 1, None, False)
    shard = open_token_set(run / "pack" / "documents").shards("train")[0]
    within = [number for number, start in enumerate(shard.starts.tolist()) if 256 <= start < 512]
    names = [str(shard.document_ids[number].as_py()) for number in (within[0] - 1, *within)]
    assert shard.starts[within[0]] > 256, "the row begins inside a document"
    found = [line[3:] for line in capsys.readouterr().out.splitlines() if line.startswith("-- ")]
    assert found == [f"{names[0]} (goes on from before)", *names[1:]]


def test_of_a_pair_the_chosen_answer_comes_first(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = artifact.open_artifact(run / "tokenizer")
    pair = Preference((Message("user", "which"),), "a list", "a dict", "", "id-7", "pairs", "g")
    with artifact.build(run / "pairs", artifact.request("tokens", {}, {"tokenizer": tokenizer})) as (partial, _):
        pack_preferences([pair], open_tokenizer(tokenizer.path), partial, "train", 128)
    inspect(str(run / "pairs"), None, "train", None, "id-7", False)
    chosen, rejected = capsys.readouterr().out.split("-- id-7, ")[1:]
    assert chosen.startswith("chosen\n")
    assert rejected.startswith("rejected\n")
    assert "list" in chosen.replace("|", "")
    assert "dict" in rejected.replace("|", "")


def test_colours_alternate_and_answers_are_bright(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "has_colour", lambda: True)
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    inspect(str(run / "pack" / "conversations"), None, "train", 0, None, False)
    printed = capsys.readouterr().out
    backgrounds = set(re.findall(r"48;2;(\d+;\d+;\d+)", printed))
    assert len(backgrounds) == 5, "two of what is learned, two of what is not, and that of control tokens"
    assert "[+]" not in printed


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not console.has_colour()
    monkeypatch.delenv("NO_COLOR")
    assert console.has_colour()


def test_what_is_not_there_is_explained(run: Path) -> None:
    documents = str(run / "pack" / "documents")
    with pytest.raises(ConfigError, match="--row and --document"):
        inspect(documents, None, "train", 0, "id-0", False)
    with pytest.raises(ConfigError, match="there is no row 999"):
        inspect(documents, None, "train", 999, None, False)
    with pytest.raises(ConfigError, match="no document 'nobody'"):
        inspect(str(run), None, "train", None, "nobody", False)
    with pytest.raises(ConfigError, match="nothing of the split validation"):
        inspect(str(run / "pack" / "conversations"), None, "validation", None, None, False)
    with pytest.raises(ArtifactError, match="holds no token set"):
        inspect(str(run / "tokenizer"), None, "train", None, None, False)


def test_a_damaged_row_is_not_shown(run: Path) -> None:
    path = next((run / "pack" / "documents").glob("train-books.tokens"))
    content = bytearray(path.read_bytes())
    content[70] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match="is damaged: block 0"):
        inspect(str(run / "pack" / "documents"), None, "train", 0, None, False)
