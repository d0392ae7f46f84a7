"""Adapters along the road: fine-tuned, preferred, resumed, evaluated, merged; the weights below stay as they are."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fledge.core import artifact
from fledge.core.errors import ConfigError
from fledge.inference.language_model import load
from fledge.inference.settings import EngineSettings
from fledge.model.folder import load_adapted, load_model, read_weights
from fledge.model.tensors import read_tensors
from fledge.stages import run_stage
from fledge.stages.checkpoint_names import find_checkpoint, open_checkpoint
from fledge.stages.run import Run, set_aside
from fledge.stages.task import open_task
from fledge.tokens.tokenizer import open_tokenizer
from fledge.training.checkpoint_folders import checkpoint_folder
from fledge.verbs import inspection
from fledge.verbs.chatting import speakers
from fledge.verbs.merge import merge

MakeRun = Callable[..., Run]
Walk = Callable[..., None]

LORA = "{rank: 2, alpha: 4}"
ADAPTED = (f"sft.lora={LORA}", f"dpo.lora={LORA}", "sft.save_every_steps=1", "sft.keep_checkpoints=9", "dpo.learning_rate=0.01")


def logits_of(folder: Path, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        logits = load_model(folder).eval()(tokens)
    assert isinstance(logits, Tensor)
    return logits


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 250, (2, 16), generator=torch.Generator().manual_seed(0))


def test_the_road_with_adapters(make_run: MakeRun, walk: Walk, tokens: Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(*ADAPTED)
    walk(run, "pretrain")
    base = find_checkpoint(f"{run.folder / 'pretrain'}@final")
    before = {path: path.read_bytes() for path in base.rglob("*") if path.is_file()}
    walk(run)
    assert all(path.read_bytes() == content for path, content in before.items())
    sft, dpo = (open_checkpoint(f"{run.folder / stage}@final") for stage in ("sft", "dpo"))
    for found in (sft, dpo):
        assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "resume/optimizer.safetensors"} <= set(
            found.manifest.files
        )
        assert "model.safetensors" not in found.manifest.files
        # Both over the same base: dpo trains on the adapter of sft.
        assert found.manifest.inputs["base"].id == artifact.open_artifact(base).id
        assert Path(json.loads((found.path / "adapter_config.json").read_text())["base_model_name_or_path"]) == base.absolute()
        states = {name.rpartition("/")[0] for name in read_tensors(found.path / "resume" / "optimizer.safetensors")}
        assert states == set(read_weights(found.path))
    stats = artifact.open_artifact(run.folder / "dpo").stats
    assert stats["initial_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert stats["trained_parameters"] == sum(tensor.numel() for tensor in read_weights(dpo.path).values())
    assert "frozen parameters and" in capsys.readouterr().out
    results = json.loads((run.folder / "evaluate" / "results.json").read_text())
    assert {"stop_rate", "reward_accuracy"} <= {score["name"] for score in results["evaluations"][2]["scores"]}
    assert (run.folder / "report" / "report.html").is_file()

    merge(str(run.folder), tmp_path / "merged", small=False)
    merged = open_checkpoint(str(tmp_path / "merged"))
    assert {role: given.id for role, given in merged.manifest.inputs.items()} == {
        "adapter": dpo.id,
        "start_from": sft.id,
        "scores": artifact.open_artifact(run.folder / "score").id,
    }, "its rewards are measured against what those of the adapter are"
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    with torch.no_grad():
        apart = load_adapted(dpo.path).eval()(tokens)
    assert (logits_of(tmp_path / "merged", tokens) - apart).abs().max() <= 1e-5
    assert (logits_of(base, tokens) - apart).abs().max() > 1e-4
    assert load(tmp_path / "merged").config == load(dpo.path).config
    assert open_tokenizer(tmp_path / "merged").sha256 == open_tokenizer(base).sha256
    speakers.open_speaker(f"{run.folder}@final", EngineSettings())
    for place in (f"{run.folder / 'dpo'}@final", str(tmp_path / "merged")):
        inspection.show(place, small=False)
        inspection.verify(place, small=False)
    assert "<- base: checkpoint" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="is no adapter"):
        merge(f"{run.folder / 'pretrain'}", tmp_path / "other", small=False)
    with pytest.raises(ConfigError, match="already there"):
        merge(str(run.folder), tmp_path / "merged", small=False)


def test_an_adapter_continues_bitwise(make_run: MakeRun, walk: Walk) -> None:
    """With dropout, and DoRA: two of four steps are lost and made again."""
    run = make_run("sft.lora={rank: 2, dropout: 0.2, weight_decomposed: true, rank_stabilized: true}", *ADAPTED[2:4], "dpo=null")
    walk(run, "sft")
    stage = run.folder / "sft"
    last, whole = checkpoint_folder(stage, 4), artifact.open_artifact(stage)
    (stage / "manifest.json").unlink()
    for step in (3, 4):
        checkpoint_folder(stage, step).rename(run.folder / f"lost-{step}")
    run_stage("sft", run)
    again, before = read_weights(last), read_weights(run.folder / "lost-4")
    assert again.keys() == before.keys() and all(torch.equal(again[name], before[name]) for name in again)
    assert any(not torch.equal(again[name], read_weights(run.folder / "lost-3")[name]) for name in again)
    assert artifact.open_artifact(stage).id == whole.id


def test_an_adapter_is_for_a_base_that_stays(make_run: MakeRun, walk: Walk, tmp_path: Path) -> None:
    """A training that is not finished removes its checkpoints; one that is, or a copy, is a base. All weights may start from any."""
    run = make_run()
    walk(run, "pretrain")
    step = run.folder / "pretrain" / "checkpoints" / "step-000004"
    start = f"sft.start_from={step}"
    run_stage("pack", run)
    assert open_task(make_run(ADAPTED[0], start), "sft").parent is not None
    (run.folder / "pretrain" / "manifest.json").rename(tmp_path / "manifest.json")
    with pytest.raises(ConfigError, match=r"(?s)step-000004 belongs to a training that is not finished .*copy the folder"):
        open_task(make_run(ADAPTED[0], start), "sft")
    assert open_task(make_run(start), "sft").parent is not None
    shutil.copytree(step, tmp_path / "copy")
    found = open_task(make_run(ADAPTED[0], f"sft.start_from={tmp_path / 'copy'}"), "sft")
    assert found.wanted.inputs["base"].id == artifact.open_artifact(step).id


def test_what_follows_an_adapter(make_run: MakeRun, walk: Walk, tmp_path: Path) -> None:
    """All weights after an adapter begin with it folded in; another adapter needs that done first; an adapter needs weights."""
    run = make_run(ADAPTED[0])
    walk(run, "dpo")
    assert artifact.open_artifact(run.folder / "dpo").stats["initial_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert (find_checkpoint(f"{run.folder / 'dpo'}@final") / "model.safetensors").is_file()
    set_aside(run, ["score", "dpo"])
    other = "dpo.lora={rank: 4}"
    with pytest.raises(ConfigError, match=r"(?s)rank: 2 -> 4.*fledge merge"):
        run_stage("score", make_run(ADAPTED[0], other))
    merge(f"{run.folder / 'sft'}", tmp_path / "merged", small=False)
    start = f"dpo.start_from={tmp_path / 'merged'}"
    for stage in ("score", "dpo"):
        run_stage(stage, make_run(ADAPTED[0], other, start))
    found = artifact.open_artifact(run.folder / "dpo")
    assert found.stats["initial_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert found.manifest.inputs["base"].id == artifact.open_artifact(tmp_path / "merged").id
    with pytest.raises(ConfigError, match=r"pretrain\.lora adds to weights"):
        run_stage("pretrain", make_run(f"pretrain.lora={LORA}"))
    with pytest.raises(ConfigError, match="exclude each other"):
        make_run(ADAPTED[0], "sft.precision=fp8")
    with pytest.raises(ConfigError, match="trained by adamw"):
        make_run(ADAPTED[0], "sft.optimizer={kind: muon}")
