"""Tokenizers, token sets, checkpoints and weights that are bad, as a user gives them: refused in two lines with an exit code."""

from __future__ import annotations

import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from fledge import cli
from fledge.core.errors import CheckpointError
from fledge.model.folder import load_model, save_model
from fledge.model.llama import Llama
from fledge.model.settings import ModelConfig, ModelSettings
from tests.command_line import Fledge, expect_error

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
        (("weights.pt",), "start/weights.pt", ("start/weights.pt is a file", "model.safetensors", "fledge import")),
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
    for verb in (("generate", "run", "--prompt", "x"), ("serve", "run")):
        expect_error(fledge(*verb, "--device", "cuda"), 5, "device is cuda", "no GPU")


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
