"""`fledge export` and `fledge import` as typed: what is named, what is said, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fledge.core import artifact
from fledge.model.folder import save_model
from fledge.model.llama import Llama
from fledge.model.settings import ModelConfig, ModelSettings
from fledge.tokens import importing
from fledge.tokens.settings import TokenizerSettings
from fledge.tokens.tokenizer import copy_tokenizer, open_tokenizer
from fledge.tokens.trainers import train_tokenizer
from tests.command_line import Fledge, expect_error

SHAPE: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two checkpoints of a stage that is not finished."""
    (tmp_path / "tokenizer").mkdir()
    train_tokenizer(TokenizerSettings(vocabulary_size=280), ["the list of the things", "a list is a list"], tmp_path / "tokenizer")
    tokenizer = open_tokenizer(tmp_path / "tokenizer")
    config = ModelConfig(ModelSettings(**SHAPE, max_position_embeddings=64), 320, 0, tokenizer.end_ids(answers=True))
    for step in (1, 2):
        folder = tmp_path / "runs" / "demo" / "sft" / "checkpoints" / f"step-{step:06d}"
        with artifact.build(folder, artifact.request("checkpoint", {"step": step})) as (partial, stats):
            save_model(Llama(config, seed=step), partial)
            copy_tokenizer(tokenizer, True, partial, 64)
            stats["step"] = step
    return tmp_path / "runs" / "demo"


@pytest.mark.usefixtures("run")
def test_a_checkpoint_is_named_as_elsewhere_and_exported_and_taken_back(
    fledge: Fledge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "COMPARED_TEXTS", 100)
    exported = fledge("export", "demo@1", "out", "--to", "hf", "--dtype", "bf16")
    assert exported.exit_code == 0, exported.noted
    last = exported.said.strip().splitlines()[-1]
    assert "step-000001 in bf16" in last and "compared through transformers" in last
    latest = fledge("export", "demo/sft", "latest", "--to", "ollama", "--dtype", "q8_0")
    assert latest.exit_code == 0 and "step-000002 in q8_0" in latest.said
    assert sorted(path.name for path in (tmp_path / "latest").iterdir()) == ["Modelfile", "README.md", "model.gguf"]
    imported = fledge("import", "out", "back")
    assert imported.exit_code == 0 and "compared through transformers" in imported.said
    spoken = fledge("generate", "back", "--prompt", "the list", "--max-tokens", "4", "--temperature", "0")
    assert spoken.exit_code == 0 and spoken.said.startswith("the list")
    assert fledge("show", "back").exit_code == 0
    assert fledge("generate", "out", "--prompt", "the list", "--max-tokens", "4", "--temperature", "0").said == spoken.said


@pytest.mark.usefixtures("run")
def test_wrong_uses_are_explained_and_leave_nothing(fledge: Fledge, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("kept")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.json").write_text("{}")
    before = sorted(path.name for path in tmp_path.iterdir())
    expect_error(fledge("export", "demo", "full", "--to", "hf"), 2, "full is already there")
    expect_error(fledge("import", "demo", "full"), 2, "full is already there")
    expect_error(fledge("export", "demo", "out", "--to", "hf", "--dtype", "q8_0"), 2, "cannot be exported to hf", "--dtype")
    expect_error(fledge("export", "demo", "out", "--to", "bin", "--dtype", "f16"), 2, "a token set has none")
    expect_error(fledge("export", "demo@7", "out", "--to", "gguf"), 4, "has no checkpoint '7'")
    expect_error(fledge("export", "theirs", "out", "--to", "hf"), 4, "theirs has no tokenizer", "fledge import theirs")
    expect_error(fledge("import", "../no/such", "out"), 2, "no folder or file ../no/such", "OWNER/NAME")
    expect_error(fledge("import", "runs", "out"), 4, "config.json is missing")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
