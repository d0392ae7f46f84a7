"""A model that others made is fine-tuned by the same call: its folder, its tokenizer, all weights or an adapter."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fledge.core import artifact
from fledge.core.errors import ConfigError, DataError
from fledge.model.folder import load_model
from fledge.publish.importing import import_model, opened
from fledge.stages import run_stage
from fledge.stages.checkpoint_names import find_checkpoint
from fledge.stages.run import Run, set_aside

from ..tokens.kinds import SIZE, write_gpt2

MakeRun = Callable[..., Run]
Walk = Callable[..., None]

SHAPE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48, "max_position_embeddings": 128}
LORA = "{rank: 2, alpha: 4}"


@pytest.fixture
def given(tmp_path: Path) -> Callable[..., Path]:
    """A folder as transformers writes it, in bf16, with random weights and a tokenizer without turns."""

    def make(kind: str, vocabulary_size: int, **options: object) -> Path:
        from transformers import AutoConfig, AutoModelForCausalLM

        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(kind, vocab_size=vocabulary_size, **SHAPE, **options), dtype=torch.bfloat16
        )
        model.save_pretrained(tmp_path / "given")
        write_gpt2(tmp_path / "given" / "tokenizer.json", ["The bird by the river is like a song. What is number 7?"] * 50)
        return tmp_path / "given"

    return make


def overrides(folder: Path, lora: str = "null") -> tuple[str, ...]:
    turns = "turn_tokens: true" if lora == "null" else "template: instruct"
    tokenizer = f"tokenizer={{kind: import, path: {folder}, {turns}}}"
    rate = f"sft.learning_rate={0.01 if lora == 'null' else 0.1}"
    return (tokenizer, "pretrain=null", f"sft.start_from={folder}", f"sft.lora={lora}", f"dpo.lora={lora}", rate)


@pytest.mark.parametrize(
    ("kind", "options", "lora"),
    [("llama", {"tie_word_embeddings": False}, "null"), ("qwen3", {"head_dim": 16, "num_key_value_heads": 1}, LORA)],
    ids=["llama, all weights", "qwen3, an adapter"],
)
def test_a_model_of_transformers_is_fine_tuned(
    given: Callable[..., Path], make_run: MakeRun, walk: Walk, kind: str, options: dict[str, object], lora: str
) -> None:
    from transformers import AutoModelForCausalLM

    folder = given(kind, 2 * SIZE, **options)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    run = make_run(*overrides(folder, lora))
    walk(run, "dpo")
    assert all(path.read_bytes() == content for path, content in before.items())
    sft = artifact.open_artifact(run.folder / "sft")
    assert sft.manifest.inputs["start_from"].kind == "huggingface"
    assert sft.stats["loss"] < sft.stats["initial_loss"]
    tokens = torch.randint(0, SIZE // 2, (2, 16))
    theirs = AutoModelForCausalLM.from_pretrained(find_checkpoint(f"{run.folder / 'dpo'}@final"), dtype=torch.float32)
    ours = load_model(find_checkpoint(f"{run.folder / 'dpo'}@final")).eval()
    with torch.no_grad():
        logits = ours(tokens)
        assert isinstance(logits, torch.Tensor)
        assert (theirs(tokens).logits - logits).abs().max() <= 1e-5
    if lora == "null":
        run_stage("evaluate", run)
        results = json.loads((run.folder / "evaluate" / "results.json").read_text())["evaluations"]
        assert [one["name"] for one in results] == [f"{folder} (before sft)", "sft", "dpo"], "with the tokenizer that was made of its own"
        assert ours.config.end_token_ids[0] != ours.config.begin_token_id


def test_an_imported_model_is_what_a_stage_starts_from(given: Callable[..., Path], make_run: MakeRun, walk: Walk, tmp_path: Path) -> None:
    """`fledge import`, then its tokenizer and its weights by the same folder; evaluated beside what came of it."""
    with opened(str(given("llama", 2 * SIZE)), "main", None, None) as original:
        import_model(original, tmp_path / "imported", "instruct")
    imported = tmp_path / "imported"
    tokenizer = f"tokenizer={{kind: import, path: {imported}, template: instruct}}"
    stages = ("pretrain=null", "dpo=null", f"sft.start_from={imported}", f"evaluate.checkpoints=[{imported}, sft]")
    run = make_run(tokenizer, *stages, "sft.learning_rate=0.01")
    walk(run, "evaluate")
    sft = artifact.open_artifact(run.folder / "sft")
    assert sft.manifest.inputs["start_from"].id == artifact.open_artifact(imported, "checkpoint").id
    assert sft.stats["loss"] < sft.stats["initial_loss"]
    assert str(imported) in (run.folder / "evaluate" / "results.csv").read_text()


def test_rows_that_were_never_learned_count_as_new(given: Callable[..., Path], make_run: MakeRun, walk: Walk) -> None:
    """A model often has more rows than its tokenizer has ids: a token for turns may fall into one of them."""
    folder = given("llama", 2 * SIZE)
    run = make_run(*overrides(folder), "dpo=null", f"sft.lora={LORA}")
    walk(run, "pack")
    with pytest.raises(ConfigError, match=r"<\|im_start\|>, <\|im_end\|> are new to the model"):
        run_stage("sft", run)


def test_a_model_without_tokens_for_turns_gets_them(given: Callable[..., Path], make_run: MakeRun, walk: Walk) -> None:
    folder = given("llama", vocabulary_size=292)
    walk(make_run(*overrides(folder), "dpo=null"), "pack")
    tokenizer_size = artifact.open_artifact(make_run().folder / "tokenizer").stats["vocabulary_size"]
    assert tokenizer_size > 292
    run_stage("sft", make_run(*overrides(folder), "dpo=null"))
    grown, old = load_model(find_checkpoint(str(make_run().folder))), load_model(folder)
    assert grown.config.vocabulary_size % 128 == 0 and grown.config.vocabulary_size >= tokenizer_size
    assert old.config.vocabulary_size == 292
    adapted = make_run(*overrides(folder), "dpo=null", f"sft.lora={LORA}")
    set_aside(adapted, ["sft"])
    with pytest.raises(ConfigError, match="without lora"):
        run_stage("sft", adapted)


def test_tokens_of_another_tokenizer_are_refused(given: Callable[..., Path], make_run: MakeRun, walk: Walk) -> None:
    folder = given("llama", 2 * SIZE)
    walk(make_run("pretrain=null", "sft=null", "dpo=null", "evaluate=null"), "pack")
    with pytest.raises(DataError, match="kind: import"):
        run_stage("sft", make_run("pretrain=null", f"sft.start_from={folder}"))
