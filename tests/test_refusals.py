"""Bad inputs as a user gives them: each is refused in two lines with its exit code, or survived and counted; none is a traceback.

Through the command line's own entry, in this process. Which kinds there are is listed in test_bad_inputs.py.
"""

from __future__ import annotations

import errno
import functools
import gzip
import io
import json
import os
import random
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from fledge import cli
from fledge.core import disk
from fledge.core.errors import CheckpointError
from fledge.corpus.sources import unpacking
from fledge.model.folder import load_model, save_model
from fledge.model.llama import Llama
from fledge.model.settings import ModelConfig, ModelSettings

# ---- the command line, in this process


@dataclass(frozen=True)
class Outcome:
    exit_code: int
    said: str
    noted: str


Fledge = Callable[..., Outcome]


@pytest.fixture
def fledge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Fledge:
    """`fledge ARGUMENTS` in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    return functools.partial(run_fledge, capsys)


def run_fledge(capsys: pytest.CaptureFixture[str], *arguments: str) -> Outcome:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli._application()(list(arguments), prog_name="fledge")
    captured = capsys.readouterr()
    return Outcome(int(ended.value.code or 0), captured.out, captured.err)


def expect_error(outcome: Outcome, exit_code: int, *words: str) -> None:
    """Two lines, the last ones, with these words in their order."""
    assert outcome.exit_code == exit_code, outcome.noted
    problem, remedy = outcome.noted.splitlines()[-2:]
    assert problem.startswith("error: ") and remedy.startswith("  fix: ") and len(remedy) > len("  fix: ")
    place = 0
    for word in words:
        found = f"{problem}\n{remedy}".find(word, place)
        assert found >= 0, f"{word!r} is not in its place in {problem!r}, {remedy!r}"
        place = found + len(word)


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


# ---- tokenizers, token sets, checkpoints

TINY = """
corpus: {validation_fraction: 0.2, sources: [{kind: text, name: text, path: text.txt, maximum_document_characters: 200}]}
tokenizer: {vocabulary_size: 300}
pack: {sequence_length: 128}
model: {hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 48, max_position_embeddings: 128}
pretrain: {steps: 2, batch_rows: 4, sequence_length: 32, precision: fp32, threads: 1, metrics: {tensorboard: false}}
"""


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a recipe and its run up to the token set."""
    folder = tmp_path_factory.mktemp("packed")
    draw = random.Random(0)
    words = ["bird", "river", "stone", "cloud", "letter", "window", "garden", "song", "winter", "road"]
    sentences = (f"The {draw.choice(words)} by the {draw.choice(words)} is like a {draw.choice(words)}." for _ in range(240))
    (folder / "text.txt").write_text("\n\n".join(sentences))
    (folder / "tiny.yaml").write_text(TINY)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with pytest.raises(SystemExit) as ended:
            cli._application()(["run", "tiny.yaml", "--to", "pack"], prog_name="fledge")
    assert not ended.value.code
    yield folder


@pytest.fixture
def tiny(packed: Path, fledge: Fledge) -> Path:
    """A copy of it in the test's own folder; returns its token set."""
    shutil.copytree(packed, Path.cwd(), dirs_exist_ok=True)
    return Path("runs/tiny/pack/documents")


def changed(place: int, content: bytes) -> Callable[[bytes], bytes]:
    return lambda old: old[:place] + content + old[place + len(content) :]


TOKENS = "train-text.tokens"

DAMAGES: dict[str, tuple[str, Callable[[bytes], bytes] | None, int, tuple[str, ...]]] = {
    "a byte short": (TOKENS, lambda old: old[:-1], 4, (TOKENS, "bytes long, the manifest says", "--force")),
    "a byte long": (TOKENS, lambda old: old + b"x", 4, (TOKENS, "bytes long, the manifest says", "--force")),
    "magic": (TOKENS, changed(0, b"PK"), 3, (TOKENS, "magic", "fledge pack")),
    "version": (TOKENS, changed(8, b"\x09"), 3, (TOKENS, "format version is 9, tokens.json expects 2")),
    "element type": (TOKENS, changed(12, b"\x02"), 3, (TOKENS, "element type is 2, tokens.json expects 1")),
    "byte order": (TOKENS, changed(8, b"\x00\x00\x00\x02"), 3, (TOKENS, "format version")),
    "tokenizer": (TOKENS, changed(24, b"\x00\x00"), 3, (TOKENS, "tokenizer is 0000", "tokens.json expects")),
    "a flipped bit": (TOKENS, lambda old: old[:-1] + bytes([old[-1] ^ 1]), 3, ("step 1 cannot be read and was not applied", "block 0")),
    "an index": ("train-text.documents", changed(999, b"\xff"), 3, ("train-text.documents is damaged", "CRC-32")),
    "a shard gone": (TOKENS, None, 4, (TOKENS, "is missing", "--force")),
    "a shard more": ("train-web.tokens", lambda old: b"x", 3, ("train-web.tokens is a shard that tokens.json does not name",)),
    "a path outside": (
        "manifest.json",
        lambda old: old.replace(b'"train-text.tokens"', b'"../../passwd"'),
        4,
        ("manifest.json", "damaged or was edited"),
    ),
    "no description": ("tokens.json", lambda old: old[:-9], 4, ("tokens.json", "bytes long, the manifest says")),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_token_set_ends_training_before_it_begins(fledge: Fledge, tiny: Path, name: str) -> None:
    file, damage, exit_code, words = DAMAGES[name]
    if damage is None:
        (tiny / file).unlink()
    else:
        (tiny / file).write_bytes(damage((tiny / file).read_bytes() if (tiny / file).exists() else b""))
    expect_error(fledge("pretrain", "tiny.yaml"), exit_code, *words)
    assert not list(Path("runs/tiny").glob("pretrain/checkpoints/*"))


@pytest.mark.parametrize(
    ("names", "given", "words"),
    [
        ((), "start", ("start holds no checkpoint", "fledge run")),
        (("checkpoints/step-000004.partial/config.json",), "start", ("start holds no finished checkpoint",)),
        (("weights.pt",), "start/weights.pt", ("start/weights.pt is a file", "model.safetensors", "pickled weights")),
        ((), "start/weights.pt", ("no run or checkpoint", "start/weights.pt")),
    ],
    ids=["empty", "partial", "a file", "nothing"],
)
@pytest.mark.usefixtures("tiny")
def test_a_start_that_is_no_checkpoint_is_named(fledge: Fledge, names: tuple[str, ...], given: str, words: tuple[str, ...]) -> None:
    Path("start").mkdir()
    for name in names:
        (Path("start") / name).parent.mkdir(parents=True, exist_ok=True)
        (Path("start") / name).write_bytes(b"")
    expect_error(fledge("pretrain", "tiny.yaml", f"pretrain.start_from=./{given}"), 4, *words)


@pytest.mark.usefixtures("tiny")
def test_a_gpu_that_is_not_there_is_told(fledge: Fledge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    expect_error(fledge("pretrain", "tiny.yaml", "pretrain.device=cuda"), 5, "device is cuda", "no GPU", "set device to auto or cpu")


def test_a_tokenizer_that_cannot_be_used_is_named(fledge: Fledge) -> None:
    Path("theirs").mkdir()
    wanted = ("tokenizer", "own-text", "tokenizer={kind: import, path: ./theirs}")
    Path("theirs/tokenizer.json").write_text('{"model": {"vo')
    expect_error(fledge(*wanted), 3, "theirs/tokenizer.json is not valid JSON", "import another")
    Path("theirs/tokenizer.json").rename("theirs/tokenizer.pkl")
    expect_error(fledge(*wanted), 3, "tokenizer.pkl is not opened: a pickle can run code")


def safetensors(header: bytes, content: bytes = b"", size: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if size is None else size) + header + content


def entry(begin: int, end: int, shape: str = "[2]", dtype: str = "F32") -> str:
    return f'{{"dtype": "{dtype}", "shape": {shape}, "data_offsets": [{begin}, {end}]}}'


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    shape = ModelSettings(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48)
    save_model(Llama(ModelConfig(shape, 128), 0), folder)
    return folder


@pytest.mark.parametrize(
    "content",
    [
        safetensors(b"{}", size=1 << 63),
        safetensors(b"{}", size=101_000_000),
        safetensors(b'{"\xff": 1}'),
        safetensors(f'{{"a": {entry(0, 8)}, "b": {entry(4, 12)}}}'.encode(), bytes(12)),
        safetensors(f'{{"a": {entry(0, 8)}, "b": {entry(16, 24)}}}'.encode(), bytes(24)),
        safetensors(f'{{"a": {entry(0, 8, f"[{1 << 62}, {1 << 62}]")}}}'.encode(), bytes(8)),
        safetensors(f'{{"a": {entry(0, 8, dtype="F99")}}}'.encode(), bytes(8)),
        safetensors(f'{{"a": {entry(0, 8, dtype="I32")}}}'.encode(), bytes(8)),
    ],
    ids=["huge header", "101 MB header", "not UTF-8", "overlap", "hole", "overflow", "unknown type", "no weights"],
)
def test_weights_that_cannot_be_are_refused(fledge: Fledge, model_folder: Path, content: bytes) -> None:
    shutil.copytree(model_folder, "model")
    Path("model/model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="model") as caught:
        load_model(Path("model"))
    assert caught.value.exit_code == 4 and caught.value.remedy


def test_weights_that_are_not_finite_are_named(fledge: Fledge, model_folder: Path) -> None:
    model = load_model(model_folder)
    with torch.no_grad():
        model.model.norm.weight[3] = float("nan")
    save_model(model, Path("model"))
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight in model holds values that are not finite"):
        load_model(Path("model"))
