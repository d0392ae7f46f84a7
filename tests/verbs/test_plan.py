"""`fledge plan` on a recipe of nothing: every table, as text and as JSON, before and after there are tokens."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from fledge.core import disk
from fledge.core.errors import ConfigError
from fledge.corpus.sources.hub import Listing
from fledge.corpus.sources.piece import InputFile
from fledge.corpus.sources.remote import cache_path
from fledge.recipe import load_recipe
from fledge.stages.run import Run
from fledge.verbs import planning
from fledge.verbs.corpus_space import texts_and_tokens
from fledge.verbs.plan import plan
from fledge.verbs.planning import model_config

RECIPE = """
tokenizer: {vocabulary_size: 300}
pack: {sequence_length: 64}
corpus: {sources: [{kind: text, name: text, path: "PATH"}]}
model: {hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 48, max_position_embeddings: 64}
pretrain: {steps: 20, batch_rows: 8, sequence_length: 32, precision: fp32, threads: 1, schedule: {warmup_steps: 2}}
sft: {steps: 10, batch_rows: 4, precision: fp32, threads: 1}
dpo: {steps: 10, batch_rows: 4, precision: fp32, threads: 1, objective: {kind: preference}}
"""


def make_run(folder: Path, *overrides: str) -> Run:
    (folder / "text.txt").write_text("A line of text.\n" * 64)
    (folder / "tiny.yaml").write_text(RECIPE.replace("PATH", str(folder / "text.txt")))
    return Run(load_recipe(folder / "tiny.yaml", list(overrides))[0], folder / "run", "tiny.yaml")


def planned(run: Run, capsys: pytest.CaptureFixture[str], device: str | None = None, rate: float | None = None) -> dict[str, Any]:
    plan(run, device, rate, as_json=True)
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_everything_is_said_before_anything_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path)
    plan(run, None, 2.0, as_json=False)
    printed = capsys.readouterr()
    for title in ("Stages on this machine", "Peak memory", "Disk", "What else pretrain could do", "The same training on one of these"):
        assert title in printed.out
    for words in ("21,088 parameters", "5,120", "8 x 32", "4 x 64", "measured here", "RTX 4090", "price", "LoRA", "not on this cpu"):
        assert words in printed.out, words
    assert "sft: the warm-up takes 0 of 10 steps" in printed.err
    assert "model: " not in printed.err
    assert not run.folder.exists()


def test_the_figures_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(make_run(tmp_path), capsys, device="T4", rate=3.6)
    assert [stage["stage"] for stage in found["stages"]] == ["pretrain", "sft", "dpo"]
    pretrain = found["stages"][0]
    assert pretrain["length"] == {"steps": 20, "batch_rows": 8, "row_tokens": 32, "tokens": 5120}
    assert pretrain["peak_bytes"] == sum(pretrain["memory"].values())
    assert pretrain["epochs"] is None
    assert pretrain["seconds"] > 0
    assert {use["what"]: use["size_bytes"] for use in found["disk"]} == {
        "work of the corpus": 1024,
        "corpus": 1024,
        "token shards": 512,
        **{f"checkpoints of {stage}": 12 * found["parameters"] for stage in ("pretrain", "sft", "dpo")},
    }
    [t4] = found["devices"]
    assert (t4["device"], t4["precision"], t4["fits"], t4["batch_rows"]) == ("T4", "fp16", True, 8)
    assert t4["price"] == pytest.approx(t4["seconds"] / 1000)
    names = [lever["name"] for lever in found["levers"]]
    assert names[0] == "as planned"
    assert {"bf16", "fp8", "LoRA, rank 16", "activation checkpointing full"} <= set(names)


def test_elsewhere_leaves_this_machine_out(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "open_world", lambda device: pytest.fail("nothing of this machine is looked at"))
    run = make_run(tmp_path)
    plan(run, None, None, as_json=False, elsewhere=True)
    printed = capsys.readouterr().out
    for words in ("21,088 parameters", "pretrain", "sft", "dpo", "RTX 4090", "$0.00", "price of an hour"):
        assert words in printed, words
    assert "this machine" not in printed and "loss of pretrain" not in printed
    plan(run, "H100", 7200.0, as_json=True, elsewhere=True)
    [h100] = json.loads(capsys.readouterr().out)["devices"]
    assert h100["price"] == pytest.approx(2 * h100["seconds"])
    plan(run, "H100", None, as_json=True, elsewhere=True)
    [listed] = json.loads(capsys.readouterr().out)["devices"]
    assert listed["price"] == pytest.approx(2.69 * listed["seconds"] / 3600)


def test_a_tiny_model_waits_for_its_kernels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan(make_run(tmp_path, "sft=null", "dpo=null"), "H100", None, as_json=True, elsewhere=True)
    [h100] = json.loads(capsys.readouterr().out)["devices"]
    assert h100["seconds"] == pytest.approx(20 * 1.4e-3), "20 steps of one layer"
    assert h100["tokens_per_second"] == pytest.approx(8 * 32 / 1.4e-3)


def test_a_plan_counts_with_the_vocabulary_that_is_named_until_a_tokenizer_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    imported = ["tokenizer.kind=import", "tokenizer.path=hub:owner/name", "tokenizer.vocabulary_size=1000"]
    plan(make_run(tmp_path, *imported), "T4", None, as_json=True, elsewhere=True)
    assert json.loads(capsys.readouterr().out)["vocabulary_size"] == 1_024


def test_a_loss_is_expected_of_enough_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan(make_run(tmp_path, "tokenizer.vocabulary_size=32768", "pretrain.steps=500_000"), "T4", None, as_json=False, elsewhere=True)
    assert "loss of pretrain to expect" in capsys.readouterr().out


def test_a_micro_batch_is_made_to_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path, "sft=null", "dpo=null", "model.intermediate_size=4096", "pretrain.batch_rows=64")
    whole = planned(run, capsys)["stages"][0]
    assert (whole["batch"]["rows"], whole["fits"]) == (64, True)
    monkeypatch.setattr(planning, "available_bytes", lambda device: whole["peak_bytes"] - 1)
    half = planned(run, capsys)["stages"][0]
    assert (half["batch"]["rows"], half["fits"], half["length"]) == (32, True, whole["length"])
    monkeypatch.setattr(planning, "available_bytes", lambda device: 1_000)
    none = planned(run, capsys)["stages"][0]
    assert (none["batch"]["rows"], none["fits"], none["is_measured"]) == (1, False, False)


def test_epochs_are_known_once_there_are_tokens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "_token_counts", lambda run, stage: (1_024, 64))
    found = planned(make_run(tmp_path, "sft=null", "dpo=null"), capsys)
    assert found["stages"][0]["epochs"] == 5.0
    assert any("5.0 times" in warning for warning in found["warnings"])


def test_what_cannot_be_planned_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no device 'abacus'"):
        plan(make_run(tmp_path), "abacus", None, as_json=True)
    with pytest.raises(ConfigError, match="no training stage"):
        plan(make_run(tmp_path, "pretrain=null", "sft=null", "dpo=null"), None, None, as_json=True)
    with pytest.raises(ConfigError, match="vocabulary is not known"):
        plan(make_run(tmp_path, "tokenizer=null"), None, None, as_json=True)


def test_a_large_vocabulary_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(make_run(tmp_path, "tokenizer.vocabulary_size=2000", "sft=null", "dpo=null"), capsys)
    assert found["warnings"][0].startswith("model: ")
    assert found["vocabulary_size"] == 2_048


def test_an_adapter_is_planned_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(make_run(tmp_path, "sft.lora={rank: 2}", "dpo=null"), capsys)
    whole, adapted = (stage["memory"] for stage in found["stages"])
    # Rank 2 of four matrices of 32 x 32 and three of 32 x 48.
    assert adapted["gradients"] == 4 * 2 * (4 * 64 + 3 * 80)
    assert adapted["optimizer"] == 2 * adapted["gradients"] < 0.1 * whole["optimizer"]
    assert {use["what"]: use["size_bytes"] for use in found["disk"]}["checkpoints of sft"] == 3 * adapted["gradients"]
    assert found["stages"][1]["is_measured"]


@pytest.mark.parametrize(
    ("source", "text_bytes", "download_bytes"),
    [
        ("{kind: hub, name: a, preset: fineweb-10bt, maximum_documents: 1_486_886}", 4e9, 2.76e9),
        ("{kind: hub, name: a, preset: fineweb-10bt, maximum_tokens_estimate: 1_000_000_000}", 4e9, 2.76e9),
        ("{kind: hub, name: a, preset: fineweb-10bt, maximum_tokens_estimate: 1_000_000_000, cache: none}", 4e9, None),
        ("{kind: hub, name: a, preset: alpaca, content: conversations}", 24e6, 24e6),
    ],
)
def test_the_disk_that_a_corpus_takes(tmp_path: Path, source: str, text_bytes: float, download_bytes: float | None) -> None:
    run = make_run(tmp_path, f"corpus.sources=[{source}]")
    uses = {use.what: use.size_bytes for use in texts_and_tokens(run, model_config(run, "pretrain"))}
    assert uses["corpus"] == uses["work of the corpus"] == pytest.approx(text_bytes, rel=0.05)
    assert uses.get("downloads") == (None if download_bytes is None else pytest.approx(download_bytes, rel=0.05))
    assert uses["token shards"] == pytest.approx(text_bytes / 2, rel=0.05)


def test_a_half_made_corpus_is_not_taken_for_the_whole(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for folder, size in (("corpus/documents.partial", 100), ("work/corpus/units", 300)):
        (run.folder / folder).mkdir(parents=True)
        (run.folder / folder / "shard").write_bytes(b"x" * size)
    uses = {use.what: use for use in texts_and_tokens(run, model_config(run, "pretrain"))}
    assert {what: (use.size_bytes, use.missing_bytes) for what, use in uses.items()} == {
        "work of the corpus": (1024, 724),
        "corpus": (1024, 924),
        "token shards": (512, 512),
    }
    (run.folder / "corpus" / "documents").mkdir()
    (run.folder / "corpus" / "documents" / "manifest.json").write_text("{}")
    made = {use.what: use.missing_bytes for use in texts_and_tokens(run, model_config(run, "pretrain"))}
    assert "work of the corpus" not in made and made["corpus"] == 0


def test_downloads_that_are_there_are_not_fetched_again(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    run = make_run(tmp_path, "corpus.sources=[{kind: hub, name: a, preset: fineweb-10bt}]", f"corpus.cache_folder={cache}")
    file = InputFile("hf://datasets/HuggingFaceFW/fineweb@abc/sample/10BT/a.parquet", "sample/10BT/a.parquet", 1_000, "0" * 64)
    listing = Listing("HuggingFaceFW/fineweb", "sample/10BT/*.parquet", "abc", (file,))
    disk.write_json(cache / "hub" / "HuggingFaceFW" / "fineweb" / "listings" / "one.json", asdict(listing))
    cache_path(file, cache).write_bytes(b"x" * 1_000)
    [downloads] = (use for use in texts_and_tokens(run, model_config(run, "pretrain")) if use.what == "downloads")
    assert (downloads.folder, downloads.there_bytes) == (str(cache), 1_000)
    assert downloads.missing_bytes == (downloads.size_bytes or 0) - 1_000


def test_the_disk_that_imported_tokens_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    blobs = tmp_path / "hub" / "datasets--ark296--gpt-training-data" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "one.incomplete").write_bytes(b"x" * 1_000)

    def found(place: str) -> dict[str, tuple[int | None, int]]:
        run = make_run(tmp_path, "corpus=null", f"pack.import_bin={place}", "pack.split={kind: corpus}")
        return {use.what: (use.size_bytes, use.missing_bytes) for use in texts_and_tokens(run, model_config(run, "pretrain"))}

    whole = 2_020_000_000
    known = {"downloads of tokens": (whole, whole - 1_000), "token shards": (whole, whole)}
    assert found("hub:ark296/gpt-training-data") == found("hub:ark296/gpt-training-data@main") == known
    assert found("hub:me/tokens") == {"downloads of tokens": (None, 0), "token shards": (None, 0)}
    (tmp_path / "train.bin").write_bytes(b"x" * 64)
    assert found(str(tmp_path)) == {"token shards": (64, 64)}
