"""Models of others become checkpoints that stages and verbs take; what is hostile, damaged or not computed is refused."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fledge.core import artifact
from fledge.core.errors import CheckpointError, ConfigError, DataError, FledgeError, MachineError
from fledge.model.folder import load_model, save_model
from fledge.publish.importing import fetch_model, import_model, opened
from fledge.publish.source import Source, open_source
from fledge.tokens.tokenizer import Tokenizer, open_tokenizer

from .conftest import MODEL_SIZE, TOKENIZER_SIZE

MakeTokenizer = Callable[..., Tokenizer]
MakeSource = Callable[..., Source]

SHAPE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96, "max_position_embeddings": 128}
PLAIN = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def bring_in(
    given: Path | str, folder: Path, config: Path | None = None, tokenizer: Path | None = None, template: Any = None
) -> str | None:
    with opened(str(given), "main", config, tokenizer) as original:
        return import_model(original, folder, template)


def write_theirs(folder: Path, tokenizer: Tokenizer, kind: str, **options: Any) -> Any:
    """A folder as transformers writes it: bf16, in several files, with a tokenizer.json and nothing else of ours."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{"vocab_size": MODEL_SIZE, "initializer_range": 0.2, **SHAPE, **options})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="60KB")
    shutil.copy(tokenizer.folder / "tokenizer.json", folder)
    return model.float().eval()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama", {"num_key_value_heads": 2, "rope_parameters": {**LLAMA3, "original_max_position_embeddings": 32}}),
        ("qwen3", {"head_dim": 32, "num_key_value_heads": 1, "tie_word_embeddings": True}),
        (
            "stablelm",
            {"num_key_value_heads": 4, "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0}},
        ),
    ],
)
def test_a_folder_of_transformers_becomes_a_checkpoint(
    kind: str, options: dict[str, Any], make_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    theirs = write_theirs(tmp_path / "theirs", make_tokenizer(), kind, **options, eos_token_id=TOKENIZER_SIZE - 4)
    (tmp_path / "theirs" / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [TOKENIZER_SIZE - 2, TOKENIZER_SIZE - 4], "do_sample": True, "temperature": 0.6, "top_k": 20})
    )
    assert (tmp_path / "theirs" / "model.safetensors.index.json").is_file()
    assert str(bring_in(tmp_path / "theirs", tmp_path / "ours")).startswith("transformers ")
    made = artifact.open_artifact(tmp_path / "ours", "checkpoint")
    assert made.manifest.inputs["source"].id == artifact.foreign(tmp_path / "theirs", "huggingface").id
    assert artifact.verify(made, exact=True) == []
    source = open_source(made)
    assert source.tokenizer.sha256 == make_tokenizer().sha256 and source.tokenizer.meta.template == "chatml"
    assert source.stop_ids == (TOKENIZER_SIZE - 2, TOKENIZER_SIZE - 4)
    assert (source.generation.temperature, source.generation.top_k, source.generation.top_p) == (0.6, 20, 0.95)
    rows = torch.randint(0, MODEL_SIZE, (2, 64), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        ours, expected = source.model(rows), theirs(rows).logits
    assert isinstance(ours, Tensor)
    assert (ours - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_what_a_model_cannot_say_is_filled_in_from_its_tokenizer(make_tokenizer: MakeTokenizer, tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    write_theirs(tmp_path / "theirs", tokenizer, "llama", bos_token_id=None, eos_token_id=None)
    (tmp_path / "theirs" / "generation_config.json").unlink()
    bring_in(tmp_path / "theirs", tmp_path / "ours", template="alpaca")
    config, made = load_model(tmp_path / "ours").config, open_tokenizer(tmp_path / "ours")
    assert (config.begin_token_id, config.end_token_ids) == (tokenizer.document_start[0], (tokenizer.end_of_text,))
    assert config.padding_token_id == tokenizer.padding and made.meta.template == "alpaca"


def test_a_comparison_that_was_not_made_is_not_claimed(
    make_source: MakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fledge.publish import importing
    from fledge.verbs import importing as verb

    monkeypatch.setattr(importing, "transformers_name", lambda: None)
    source = make_source()
    torch.save({"config": {"n_heads": 4}, "model": source.model.state_dict()}, tmp_path / "x.pt")
    verb.bring_in(str(tmp_path / "x.pt"), tmp_path / "ours", None, "main", None, source.tokenizer.folder)
    captured = capsys.readouterr()
    said = " ".join((captured.out + captured.err).split())
    assert "converted, the conversion not compared with another program" in said and "compared through" not in said
    assert "not compared: transformers is not installed" in said
    assert artifact.open_artifact(tmp_path / "ours").stats["compared_through"] is None


def test_another_chat_template_is_told(make_source: MakeSource, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_source()
    save_model(source.model, tmp_path / "theirs")
    shutil.copy(source.tokenizer.folder / "tokenizer.json", tmp_path / "theirs")
    assert source.tokenizer.template is not None
    own = source.tokenizer.template.jinja
    forms: list[tuple[Any, bool]] = [(own, False), ("{{ messages }}", True), ([{"name": "default", "template": "x"}], True), (None, False)]
    for number, (template, is_told) in enumerate(forms):
        (tmp_path / "theirs" / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
        bring_in(tmp_path / "theirs", tmp_path / f"ours-{number}")
        assert ("--template" in capsys.readouterr().err) == is_told, template
    (tmp_path / "theirs" / "chat_template.jinja").write_text("{{ messages }}")
    bring_in(tmp_path / "theirs", tmp_path / "ours")
    assert "--template" in capsys.readouterr().err


def test_options_that_are_not_computed_are_named_and_leave_nothing(make_tokenizer: MakeTokenizer, tmp_path: Path) -> None:
    for kind, options, named in (("qwen2", {}, "'qwen2' is unknown"), ("llama", {"attention_bias": True}, "attention_bias is True")):
        write_theirs(tmp_path / kind, make_tokenizer(), kind, **options)
        with pytest.raises(CheckpointError, match=named):
            bring_in(tmp_path / kind, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_a_tokenizer_of_another_model_is_refused(make_tokenizer: MakeTokenizer, tmp_path: Path) -> None:
    write_theirs(tmp_path / "theirs", make_tokenizer(), "llama", vocab_size=TOKENIZER_SIZE - 1)
    with pytest.raises(DataError, match=f"has {TOKENIZER_SIZE} entries"):
        bring_in(tmp_path / "theirs", tmp_path / "ours")
    (tmp_path / "theirs" / "tokenizer.json").unlink()
    with pytest.raises(DataError, match="holds neither"):
        bring_in(tmp_path / "theirs", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_logits_that_differ_from_the_original_are_an_error(
    make_tokenizer: MakeTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fledge.publish import importing

    def load_other(folder: Path) -> Any:
        model = load_model(folder)
        with torch.no_grad():
            model.model.norm.weight[0] += 0.01
        return model

    write_theirs(tmp_path / "theirs", make_tokenizer(), "llama")
    monkeypatch.setattr(importing, "load_model", load_other)
    with pytest.raises(CheckpointError, match="its logits by"):
        bring_in(tmp_path / "theirs", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_a_state_dict_of_a_training_loop_is_converted_in_a_process_of_its_own(make_source: MakeSource, tmp_path: Path) -> None:
    """With optimizer and step beside it, and names that DDP and torch.compile have changed."""
    source = make_source(tie_word_embeddings=False)
    weights = {f"_orig_mod.module.{name}": weight for name, weight in source.model.state_dict().items()}
    given = {"model_state_dict": weights, "step": 5, "optimizer": {"state": {}}, "config": {"n_heads": 4, "block_size": 256}}
    torch.save(given, tmp_path / "final.pt")
    bring_in(tmp_path / "final.pt", tmp_path / "ours", tokenizer=source.tokenizer.folder)
    made, found = artifact.open_artifact(tmp_path / "ours", "checkpoint"), load_model(tmp_path / "ours")
    assert set(made.manifest.settings) == {"imported", "sha256", "config"} and made.manifest.inputs == {}
    assert all(torch.equal(weight, source.model.state_dict()[name]) for name, weight in found.state_dict().items())


def test_what_tensors_do_not_tell_is_given_beside_them(make_source: MakeSource, tmp_path: Path) -> None:
    source = make_source()
    torch.save(source.model.state_dict(), tmp_path / "bare.pth")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source.tokenizer.folder / name, tmp_path)
    shape = {"num_attention_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.2}
    (tmp_path / "config.json").write_text(json.dumps(shape))
    (tmp_path / "shape.json").write_text(json.dumps({"num_attention_heads": 4}))
    bring_in(tmp_path / "bare.pth", tmp_path / "ours", config=tmp_path / "shape.json")
    assert load_model(tmp_path / "ours").config.settings == source.model.config.settings.resolved


class Trap:
    """Runs when it is unpickled by anything but a restricted reader."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.place,))


def test_a_file_that_holds_more_than_tensors_is_refused_and_nothing_of_it_is_run(tmp_path: Path) -> None:
    path = tmp_path / "given.pt"
    torch.save({"model": {"a": torch.ones(2)}, "args": Trap(tmp_path / "run")}, path)
    with pytest.raises(CheckpointError, match=r"given\.pt cannot be converted: it holds more than tensors and plain data") as caught:
        bring_in(path, tmp_path / "ours")
    assert "Traceback" not in caught.value.problem
    assert not (tmp_path / "run").exists() and not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    "given", ["../up/there", "no folder", "owner/na me", "owner/\U0001f642", "/absent/folder", "name", "a/b/c", "-a/b"]
)
def test_what_is_no_folder_and_no_name_on_the_hub_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match="no folder or file") as caught:
        fetch_model(given, "main")
    assert "OWNER/NAME of letters, digits" in caught.value.remedy


def test_the_hub_is_asked_for_data_only_and_what_it_says_is_told_without_a_token(
    make_tokenizer: MakeTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import httpx2
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    write_theirs(tmp_path / "snapshot", make_tokenizer(), "llama")
    asked: dict[str, Any] = {}
    response = httpx2.Response(401, request=httpx2.Request("GET", "https://example.org"))
    errors: dict[str, Exception] = {
        "owner/gated": GatedRepoError("Bearer hf_secret", response=response),  # type: ignore[call-arg]
        "owner/private": RepositoryNotFoundError("Bearer hf_secret", response=response),  # type: ignore[call-arg]
        "owner/uncached": LocalEntryNotFoundError("hf_secret"),
        "owner/broken": OSError("hf_secret"),
    }

    def snapshot(repository: str, **options: Any) -> str:
        asked.update(options)
        if repository in errors:
            raise errors[repository]
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with opened("owner/name", "v1", None, None) as original:
        import_model(original, tmp_path / "ours", None)
    assert (asked["revision"], asked["repo_type"]) == ("v1", "model")
    assert not any(name.endswith((".py", ".bin", ".pt")) for name in asked["allow_patterns"])
    for repository, kind in zip(errors, (DataError, DataError, MachineError, MachineError), strict=True):
        with pytest.raises(FledgeError) as caught:
            fetch_model(repository, "main")
        assert type(caught.value) is kind and "secret" not in str(caught.value) and repository in caught.value.problem


def test_options_that_belong_to_another_kind_of_source_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "shape.json").write_text("[1]")
    with pytest.raises(ConfigError, match="is no checkpoint file"):
        bring_in(tmp_path / "notes.txt", tmp_path / "ours")
    with pytest.raises(ConfigError, match="--config describes"):
        bring_in(tmp_path, tmp_path / "ours", config=tmp_path / "shape.json")
    (tmp_path / "x.pt").write_bytes(b"")
    for name in ("shape.json", "missing.json"):
        with pytest.raises(ConfigError, match=rf"{name} holds no JSON object"):
            bring_in(tmp_path / "x.pt", tmp_path / "ours", config=tmp_path / name)


def test_sockets_still_work_here() -> None:
    """The locks of the other process are its own."""
    socket.socket().close()
    assert os.environ.get("PATH")


def test_an_export_comes_back_as_it_was(make_source: MakeSource, tmp_path: Path) -> None:
    source = make_source()
    save_model(source.model, tmp_path / "theirs")
    shutil.copy(source.tokenizer.folder / "tokenizer.json", tmp_path / "theirs")
    bring_in(tmp_path / "theirs", tmp_path / "ours")
    assert (tmp_path / "ours" / "model.safetensors").read_bytes() == (tmp_path / "theirs" / "model.safetensors").read_bytes()
