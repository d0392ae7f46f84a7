"""Recipes, values, places and sources that are bad, as a user gives them: refused in two lines with an exit code, or survived and counted.

Which kinds there are is listed in test_bad_inputs.py, those of what stages have made are in test_refusals_of_results.py.
"""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import struct
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from fledge.core import disk
from fledge.corpus.sources import unpacking
from tests.command_line import Fledge, Outcome, expect_error

# ---- recipes and values

NEST = "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n" + "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("tokenizer: {}\npack: {}\ntokenizer: {}\n", ("bad.yaml:3", "'tokenizer' is given twice")),
        (NEST, ("100,000 values",)),
        ("a: &a 1\nb: [" + "*a," * 101 + "]\n", ("more than 100 aliases",)),
        ("question: !!python/object/apply:os.system ['touch ran']\n", ("bad.yaml:1", "!!python/object/apply:os.system is refused")),
        ("", ("is empty", "fledge config quickstart")),
        ("pack:\n\tsequence_length: 8\n", ("line 2, column 1", "indent with spaces")),
        ("pack:\n  seed: 1\n sequence_length: 8\n", ("line 3, column 2",)),
        (b"\x00\x9f\x92\x96" * 9, ("bad.yaml", "not UTF-8")),
        (bytes(99), ("bad.yaml", "not valid YAML")),
        (1 << 30, ("1,073,741,824 bytes", "a recipe")),
        (None, ("is a folder", ".yaml")),
    ],
    ids=["twice", "nest", "aliases", "tag", "empty", "tab", "indent", "binary", "zeros", "gigabyte", "folder"],
)
def test_a_file_that_is_no_recipe_is_refused(fledge: Fledge, content: str | bytes | int | None, words: tuple[str, ...]) -> None:
    path = Path("bad.yaml")
    if content is None:
        path.mkdir()
    elif isinstance(content, int):
        with path.open("wb") as file:
            file.truncate(content)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    expect_error(fledge("run", "bad.yaml"), 2, *words)
    assert [entry.name for entry in Path.cwd().iterdir()] == ["bad.yaml"]


@pytest.mark.parametrize("extended", [False, True])
def test_a_pipe_is_never_waited_for(fledge: Fledge, extended: bool) -> None:
    """Opening a pipe that nobody writes to would wait for ever."""
    os.mkfifo("pipe.yaml")
    os.mkfifo("pipe.jsonl")
    Path("child.yaml").write_text("extends: pipe.yaml\n")
    expect_error(fledge("run", "child.yaml" if extended else "pipe.yaml"), 2, "pipe.yaml is a pipe or a device")
    expect_error(corpus(fledge, "pipe.jsonl", "jsonl"), 3, "pipe.jsonl is a pipe or a device")


def test_adapters_that_cannot_be_are_refused(fledge: Fledge) -> None:
    expect_error(fledge("config", "quickstart", "sft.lora.rank=0"), 2, "sft.lora", "rank must be at least 1")
    expect_error(fledge("config", "quickstart", "sft.lora.targets=[q_porj]"), 2, "sft.lora.targets", "q_proj", "down_proj", "q_porj")


def test_a_run_without_stages_is_refused(fledge: Fledge) -> None:
    Path("bad.yaml").write_text("{}\n")
    expect_error(fledge("run", "bad.yaml"), 2, "none of the stages corpus, tokenizer")
    expect_error(fledge("run", "own-text", "--from", "sft", "--to", "dpo"), 2, "none of the stages sft, score, dpo")
    Path("bad.yaml").write_text("corpus: {}\n")
    expect_error(fledge("run", "bad.yaml"), 2, "corpus.sources is required and missing")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.hidden_siez=8", ("unknown key model.hidden_siez", "did you mean model.hidden_size?")),
        ("model.vocab_size=77", ("unknown key model.vocab_size",)),
        ("pretrain.learning_rate=nan", ("pretrain.learning_rate", "valid number", "'nan'")),
        ("pretrain.learning_rate=.nan", ("pretrain.learning_rate", "valid number", "'.nan'")),
        ("pretrain.learning_rate=1e999", ("pretrain.learning_rate", "finite number", "inf")),
        ("pretrain.learning_rate=-1", ("pretrain.learning_rate must be above 0, not -1.0",)),
        ("model.hidden_size=250", ("hidden_size 250", "num_attention_heads 4")),
        ("pretrain.sequence_length=99999", ("pretrain.sequence_length is 99999", "model.max_position_embeddings is 256")),
        ("pretrain.steps=0", ("pretrain.steps must be at least 1, not 0",)),
        ('pretrain.steps="12"', ("pretrain.steps", "valid integer", "'12'")),
        ("pretrain.steps=true", ("pretrain.steps", "valid integer", "True")),
        ("tokenizer.vocabulary_size=200", ("at least 260 (256 bytes and 4 special tokens), not 200",)),
    ],
)
def test_a_value_that_cannot_be_is_named(fledge: Fledge, override: str, words: tuple[str, ...]) -> None:
    expect_error(fledge("run", "quickstart", override), 2, *words)
    assert not list(Path.cwd().iterdir())


def test_a_misspelt_recipe_is_told_the_closest(fledge: Fledge) -> None:
    expect_error(fledge("run", "quikstart"), 2, "no recipe 'quikstart'", "did you mean quickstart?")
    dataset = "corpus.sources=[{kind: hub, name: web, preset: finewb-edu}]"
    expect_error(fledge("corpus", "own-text", dataset), 3, "no preset 'finewb-edu'", "did you mean fineweb-edu?", "fledge corpus --list")


# ---- places


def corpus(fledge: Fledge, path: str, kind: str = "text", *overrides: str, **source: object) -> Outcome:
    wanted = json.dumps([{"kind": kind, "name": "mine", "path": path, **source}])
    return fledge("corpus", "own-text", f"corpus.sources={wanted}", *overrides)


def test_what_lies_in_the_way_is_never_overwritten(fledge: Fledge) -> None:
    mine = Path("runs/own-text/corpus/documents/mine.txt")
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    Path("text.txt").write_text("A line of text.\n")
    expect_error(corpus(fledge, "text.txt"), 4, "runs/own-text/corpus/documents")
    assert [path.name for path in mine.parent.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("reason", ["a file", "read-only"])
def test_a_place_that_cannot_be_written_is_named(fledge: Fledge, monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    Path("text.txt").write_text("A line of text.\n")
    if reason == "a file":
        Path("place").write_text("mine")
        words = ("place", "File exists")
    else:

        def refuse(operation: str, path: Path) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        monkeypatch.setattr(disk, "fail_point", refuse)
        words = ("cannot write place", "Read-only file system")
    source = "corpus.sources=[{kind: text, name: mine, path: text.txt}]"
    expect_error(fledge("corpus", "own-text", source, "--name", "./place"), 5, *words, "a place you may write to")
    assert not Path("place").is_dir() or not list(Path("place").iterdir())


# ---- sources

GOOD = b'{"text": "A line of text."}\n'


def archive(kind: str) -> bytes:
    """One text file by a name that leads outside."""
    stored = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(stored, "w") as packed:
            packed.writestr("../outside.txt", "text " * 99)
    else:
        with tarfile.open(fileobj=stored, mode="w:gz" if kind == "tar.gz" else "w") as packed:
            member = tarfile.TarInfo("../outside.txt")
            member.size = 495
            packed.addfile(member, io.BytesIO(b"text " * 99))
    return stored.getvalue()


def table(**columns: list[object]) -> bytes:
    stored = io.BytesIO()
    pyarrow.parquet.write_table(pa.table(columns), stored)
    return stored.getvalue()


WIDE_WINDOW = struct.pack("<I", 0xFD2FB528) + bytes([0, 21 << 3]) + struct.pack("<I", 4 << 3 | 1)[:3] + b"text"

UNREADABLE: list[tuple[str, str, bytes, tuple[str, ...]]] = [
    ("a.jsonl", "jsonl", b'{"body": "x"}\n' * 2_000, ("1,000 of 1,000 lines", "no key 'text' (keys: body)", "`fields`")),
    ("a.jsonl", "jsonl", GOOD * 9 + b"{\n", ("1 of 10 lines", "a.jsonl:10: not JSON", "maximum_reject_share")),
    ("a.jsonl", "jsonl", GOOD.decode().encode("utf-16"), ("looks like UTF-16", "iconv")),
    ("a.jsonl.gz", "jsonl", gzip.compress(GOOD * 900)[:-9], ("a.jsonl.gz is damaged after line", "restore")),
    ("a.txt.zst", "text", WIDE_WINDOW, ("needs a window of 2,147,483,648 bytes", "compress it again")),
    ("a.zip", "text", archive("zip"), ("a.zip is an archive", "unpack it yourself")),
    ("a.tar", "text", archive("tar"), ("a.tar is an archive", "unpack it yourself")),
    ("a.tar.gz", "jsonl", archive("tar.gz"), ("a.tar.gz is an archive", "unpack it yourself")),
    ("a.parquet", "parquet", table(body=["x"]), ("a.parquet", "text", "body")),
    ("a.parquet", "parquet", table(text=[1, 2]), ("a.parquet", "text", "int64")),
    ("a.parquet", "parquet", table(text=["x"])[:-5], ("a.parquet",)),
    ("a.txt", "text", table(text=["x"]), ("is a Parquet file", "kind: parquet")),
    ("a.txt", "text", b" \n\n", ("gives 0 documents (1 read, 0 rejected)",)),
]


@pytest.mark.parametrize(("name", "kind", "content", "words"), UNREADABLE)
def test_a_source_that_cannot_be_read_is_named(fledge: Fledge, name: str, kind: str, content: bytes, words: tuple[str, ...]) -> None:
    Path(name).write_bytes(content)
    expect_error(corpus(fledge, name, kind), 3, *words)
    assert not Path("../outside.txt").exists()
    assert not list(Path.cwd().glob("runs/own-text/corpus/documents"))


def test_a_source_that_is_not_there_is_named(fledge: Fledge) -> None:
    expect_error(corpus(fledge, "nowhere"), 3, "no file or folder nowhere")
    expect_error(corpus(fledge, "*.rst"), 3, "*.rst has 0 usable files")
    Path("loop.txt").symlink_to("loop.txt")
    expect_error(corpus(fledge, "loop.txt"), 3, "loop.txt")


BAD_LINES: list[tuple[bytes, str]] = [
    (b"{", "not JSON"),
    (b"[1, 2]", "a list, not an object"),
    (b"7", "a number, not an object"),
    (b'{"body": "x"}', "no key 'text' (keys: body)"),
    (b'{"text": null}', "text is null, not a string"),
    (b'{"text": 5}', "text is a number, not a string"),
    (b'{"text": ["x"]}', "text is a list, not a string"),
    (b'{"text": " "}', "text is empty"),
    (b'{"text": "\xff"}', "not UTF-8"),
    (b'{"text": "\\ud800"}', "text holds half a surrogate pair"),
    (b'{"text": ' + b"[" * 9_000 + b"]" * 9_000 + b"}", "nested too deep"),
    (b'{"text": "x", "n": ' + b"1" * 5_000 + b"}", "a number that is too long"),
    (b'{"text": "x", "n": NaN}', "NaN is no JSON number"),
]


def test_bad_lines_are_listed_and_the_others_kept(fledge: Fledge) -> None:
    """Each bad line has a good one before and after it; the last line has no end."""
    good = [json.dumps({"text": f"This is line {number}."}).encode() for number in range(300)]
    lines = list(good)
    for number, (line, _) in reversed(list(enumerate(BAD_LINES))):
        lines.insert(10 * number + 5, line)
    Path("a.jsonl").write_bytes(b"\n".join(lines))
    outcome = corpus(fledge, "a.jsonl", "jsonl", "corpus.deduplicate.kind=none")
    assert outcome.exit_code == 0, outcome.noted
    assert "13 rejected (see rejects" in outcome.said
    folder = Path("runs/own-text/corpus/documents")
    assert sum(json.loads((folder / "manifest.json").read_text())["stats"]["rows"].values()) == 300
    rejects = [json.loads(line) for line in next(folder.glob("rejects*")).read_text().splitlines()]
    assert [(reject["line"], reject["reason"]) for reject in rejects] == [
        (11 * number + 6, reason) for number, (_, reason) in enumerate(BAD_LINES)
    ]


def test_what_expands_without_end_is_given_up(fledge: Fledge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "EXPANSION_FROM_BYTES", 1_000_000)
    Path("a.txt.gz").write_bytes(gzip.compress(bytes(20_000_000), 1))
    expect_error(corpus(fledge, "a.txt.gz"), 3, "a.txt.gz", "expands more than 100-fold")


def test_a_file_given_twice_counts_once_and_is_told(fledge: Fledge) -> None:
    Path("text.txt").write_text("Words of one text.\n" * 20)
    sources = "corpus.sources=[{kind: text, name: one, path: text.txt}, {kind: text, name: two, path: text.txt}]"
    outcome = fledge("corpus", "own-text", sources)
    assert outcome.exit_code == 0, outcome.noted
    assert "nothing is left of source two: all its documents occur in the sources before it" in outcome.noted
    expect_error(fledge("corpus", "own-text", sources.replace("two", "one")), 2, "two sources are named 'one'")


def test_a_file_name_cannot_forge_a_line(fledge: Fledge) -> None:
    path = Path("folder") / 'a\nerror: "forged".jsonl'
    path.parent.mkdir()
    path.write_bytes(b"{\n")
    outcome = corpus(fledge, "folder", "jsonl")
    expect_error(outcome, 3, "forged", "not JSON")
    assert sum(line.startswith("error: ") for line in outcome.noted.splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "row", "reason"),
    [
        ("conversations", {"messages": [{"role": "user", "content": "q"}]}, "not the assistant's"),
        (
            "conversations",
            {"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "q"}]},
            "the last message is not the assistant's",
        ),
        ("conversations", {"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": "a"}]}, "empty"),
        ("conversations", {"messages": [{"role": "user", "content": 5}, {"role": "assistant", "content": "a"}]}, "number, not a string"),
        ("conversations", {"messages": [{"role": "wizard", "content": "q"}, {"role": "assistant", "content": "a"}]}, "wizard"),
        ("preferences", {"prompt": "q", "chosen": "same", "rejected": "same"}, "chosen and rejected are equal"),
        ("preferences", {"chosen": "a", "rejected": "b"}, "no key 'prompt'"),
        ("preferences", {"prompt": "q", "chosen": "a", "rejected": ""}, "rejected is empty"),
    ],
)
def test_unusable_conversations_and_pairs_are_told(fledge: Fledge, content: str, row: dict[str, object], reason: str) -> None:
    Path("a.jsonl").write_text(json.dumps(row) + "\n")
    expect_error(corpus(fledge, "a.jsonl", "jsonl", content=content), 3, "1 of 1 lines cannot be used", "a.jsonl:1: ", reason)
