"""`fledge doctor RECIPE` on small runs: what is there, what is missing, and what does not go together; nothing is made by looking."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fledge.core import disk
from fledge.core.errors import DataError
from fledge.corpus.sources.hub import Listing
from fledge.corpus.sources.piece import InputFile
from fledge.corpus.sources.remote import cache_path
from fledge.recipe import find_recipe, load_recipe
from fledge.smoke import smoke
from fledge.stages.run import Run
from fledge.verbs.doctor import recipe_checks as recipes
from fledge.verbs.doctor.findings import Finding
from tests.command_line import run_fledge
from tests.verbs.token_artifacts import make_documents, make_tokenizer

RECIPE = """
tokenizer: {vocabulary_size: 300}
pack: {sequence_length: 64}
corpus: {sources: [{kind: text, name: text, path: "PATH"}]}
model: {hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 48, max_position_embeddings: 64}
pretrain: {steps: 20, batch_rows: 8, sequence_length: 32, precision: fp32, threads: 1, device: cpu, schedule: {warmup_steps: 2}}
"""
MakeRun = Callable[..., Run]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    (tmp_path / "text.txt").write_text("A line of text.\n" * 64)
    (tmp_path / "tiny.yaml").write_text(RECIPE.replace("PATH", str(tmp_path / "text.txt")))
    return lambda *overrides: Run(load_recipe(tmp_path / "tiny.yaml", list(overrides))[0], tmp_path / "run", "tiny.yaml")


def by_subject(findings: Iterable[Finding]) -> dict[str, Finding]:
    found = {finding.subject: finding for finding in findings}
    assert all(bool(finding.fix) == (finding.level != "ok") for finding in found.values())
    return found


def test_sources_are_counted_and_missing_ones_named(make_run: MakeRun, tmp_path: Path) -> None:
    there = by_subject(recipes.check_sources(make_run(), online=False))["source text"]
    assert there.level == "ok" and "1 file, 1.0 kB" in there.found
    missing = by_subject(recipes.check_sources(make_run("corpus.sources.0.path=nowhere"), online=False))["source text"]
    assert (missing.level, missing.error) == ("problem", DataError) and "nowhere" in missing.found
    little = by_subject(recipes.check_sources(make_run("corpus.sources.0.expect={files: 1, bytes: 5000}"), online=False))["source text"]
    assert little.level == "problem" and "1,024 bytes" in little.found and "expect: {files: 1, bytes: 1024}" in little.fix
    (tmp_path / "empty.txt").touch()
    empty = by_subject(recipes.check_sources(make_run(f"corpus.sources.0.path={tmp_path / 'empty.txt'}"), online=False))["source text"]
    assert empty.level == "problem" and "holds nothing" in empty.found
    assert not (tmp_path / "run").exists()


def test_what_lies_elsewhere_is_asked_for_only_online(make_run: MakeRun) -> None:
    hub = "corpus.sources=[{kind: hub, name: web, repository: me/data, files: a.parquet}, {kind: jsonl, name: far, path: 'https://u:p@x.org/a.jsonl?s=1'}]"
    found = by_subject(recipes.check_sources(make_run(hub), online=False))
    assert found["source web"].found.startswith("hub:me/data, fetched by")
    assert found["source far"].found.startswith("https://x.org/a.jsonl, fetched by")


def test_a_corpus_that_is_made_needs_no_source(make_run: MakeRun) -> None:
    run = make_run("corpus.sources.0.path=nowhere")
    (run.folder / "corpus" / "documents").mkdir(parents=True)
    (run.folder / "corpus" / "documents" / "manifest.json").write_text("{}")
    assert by_subject(recipes.check_sources(run, online=False))["source text"].level == "ok"


def test_inputs_of_other_runs(make_run: MakeRun, tmp_path: Path) -> None:
    files = f"evaluate={{files: ['{tmp_path / 'text.txt'}', gone.txt]}}"
    named = make_run("pretrain.tokens=[elsewhere]", "pretrain.start_from=nowhere@best", files)
    found = list(recipes.check_inputs(named))
    assert [(one.subject, one.level) for one in found] == [
        ("evaluation", "ok"),
        ("evaluation", "problem"),
        ("input", "problem"),
        ("checkpoint", "problem"),
    ]
    assert list(recipes.check_inputs(make_run())) == []
    [bare] = recipes.check_inputs(make_run(f"pack.import_bin={tmp_path}"))
    assert bare.level == "problem" and "train.bin" in bare.found
    (tmp_path / "train.bin").touch()
    [there] = recipes.check_inputs(make_run(f"pack.import_bin={tmp_path}"))
    assert there.level == "ok"


def test_sinks_of_metrics(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(recipes.check_sinks(make_run())) == []
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    [keyless] = recipes.check_sinks(make_run("pretrain.metrics={wandb: online}"))
    assert keyless.level == "problem" and "WANDB_API_KEY" in keyless.found
    monkeypatch.setenv("WANDB_API_KEY", "key")
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace())
    [there] = recipes.check_sinks(make_run("pretrain.metrics={wandb: online}"))
    assert there.level == "ok"


def test_the_tokenizer_and_the_sets_that_were_made_with_it(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    assert "byte_bpe of 300 entries will be trained" in by_subject(recipes.check_tokenizer(run, online=False))["tokenizer"].found
    tokenizer = make_tokenizer(run.folder / "tokenizer")
    assert by_subject(recipes.check_tokenizer(run, online=False))["tokenizer"].level == "ok"
    make_documents(run.folder / "pack" / "documents", tokenizer)
    same = by_subject(recipes.check_tokenizer(run, online=False))["tokenizer"]
    assert same.level == "ok" and "the same in 1 token set" in same.found
    meta = run.folder / "tokenizer" / "tokenizer_meta.json"
    meta.write_text(meta.read_text().replace('"canonical_sha256": "', '"canonical_sha256": "0'))
    assert by_subject(recipes.check_tokenizer(run, online=False))["tokenizer"].level == "problem"


def test_token_sets_of_another_tokenizer(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run()
    make_documents(run.folder / "pack" / "documents", make_tokenizer(run.folder / "tokenizer"))
    other = SimpleNamespace(folder=Path("pack/documents"), tokenizer_sha256="f" * 64)
    monkeypatch.setattr(recipes, "open_token_set", lambda folder: other)
    differs = by_subject(recipes.check_tokenizer(run, online=False))["tokenizer"]
    assert differs.level == "problem" and "ffffffffffffffff" in differs.found and "fledge pack tiny.yaml --force" in differs.fix


def test_an_imported_tokenizer(make_run: MakeRun, tmp_path: Path) -> None:
    make_tokenizer(tmp_path / "other")
    there = make_run(f"tokenizer={{kind: import, path: '{tmp_path / 'other'}'}}")
    assert "will be imported from" in by_subject(recipes.check_tokenizer(there, online=False))["tokenizer"].found
    gone = make_run("tokenizer={kind: import, path: gone.json}")
    assert by_subject(recipes.check_tokenizer(gone, online=False))["tokenizer"].level == "problem"
    for name in ("noise.model", "noise.json"):
        (tmp_path / name).write_bytes(bytes(range(256)) * 8)
        noise = make_run(f"tokenizer={{kind: import, path: '{tmp_path / name}'}}")
        assert by_subject(recipes.check_tokenizer(noise, online=False))["tokenizer"].level == "problem"
    hub = make_run("tokenizer={kind: import, preset: codellama}")
    assert "hub:codellama/CodeLlama-7b-hf" in by_subject(recipes.check_tokenizer(hub, online=False))["tokenizer"].found


def test_what_a_small_run_makes_itself_is_not_missing() -> None:
    run = Run(smoke(load_recipe(find_recipe("superbpe-197m"), [])[0]), Path("run"), "superbpe-197m")
    found = by_subject([*recipes.check_inputs(run), *recipes.check_tokenizer(run, online=False)])
    assert found["benchmarks"].level == found["tokenizer"].level == "ok"
    whole = by_subject(recipes.check_inputs(Run(load_recipe(find_recipe("superbpe-197m"), [])[0], Path("run"), "superbpe-197m")))
    assert whole["benchmarks"].level == "problem"


def test_precisions_that_are_asked_for(make_run: MakeRun) -> None:
    def found(precision: str, device: str = "cpu") -> Finding:
        run = make_run(f"pretrain.precision={precision}", f"pretrain.device={device}")
        return by_subject(recipes.check_precision(run))["pretrain precision"]

    assert found("fp32").level == found("auto").level == "ok"
    assert "a cpu has no units for fp8" in found("fp8_or_bf16").found
    refused = found("fp8")
    assert refused.level == "problem" and "pretrain.precision=auto" in refused.fix
    assert found("auto", "mps").level == "problem"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fledge.model.devices.choose_device", lambda *asked, **options: torch.device("cuda"))
        patch.setattr("fledge.model.float8.has_float8", lambda: True)
        patch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        assert found("fp8_or_bf16").found == "fp8 on this cuda"


def test_disk_and_memory_of_the_plan(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run("pretrain.precision=fp8", "pretrain.schedule.warmup_steps=0")
    found = by_subject(recipes.check_plan(run))
    assert (found["disk"].level, found["pretrain memory"].level, found["plan"].level) == ("ok", "ok", "note")
    assert not run.folder.exists()
    assert found["plan"].fix == "fledge run tiny.yaml pretrain.schedule.warmup_steps=2"
    assert recipes.memory_finding("pretrain", 2_000, 1_000.0, 1, 8, run).fix.endswith("pretrain.activation_checkpointing=full")
    full = make_run("pretrain.activation_checkpointing=full")
    assert recipes.memory_finding("pretrain", 2_000, 1_000.0, 1, 8, full).fix == "fledge plan tiny.yaml"
    unknown = make_run("tokenizer=null")
    assert by_subject(recipes.check_plan(unknown))["plan"].level == "note"


def test_a_dataset_behind_a_gate_needs_an_account(make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    run = make_run("corpus.sources=[{kind: hub, name: lima, preset: lima, content: conversations}]", f"corpus.cache_folder={cache}")

    def found() -> Finding:
        return by_subject(recipes.check_sources(run, online=False))["source lima"]

    monkeypatch.setattr(recipes.hub, "has_token", lambda: True)
    assert found().level == "ok"
    monkeypatch.setattr(recipes.hub, "has_token", lambda: False)
    assert (found().level, found().fix) == ("note", "hf auth login")
    assert "https://huggingface.co/datasets/GAIR/lima" in found().found
    file = InputFile("hf://datasets/GAIR/lima@abc/train.jsonl", "train.jsonl", 3, "0" * 64)
    disk.write_json(cache / "hub" / "GAIR" / "lima" / "listings" / "one.json", asdict(Listing("GAIR/lima", "train.jsonl", "abc", (file,))))
    cache_path(file, cache).write_bytes(b"abc")
    assert found().level == "ok", "it is downloaded"


def test_how_far_a_run_is(make_run: MakeRun) -> None:
    run = make_run()
    assert by_subject(recipes.check_stages(run))["not begun"].found == "corpus, tokenizer, pack, pretrain"
    make_documents(run.folder / "pack" / "documents", make_tokenizer(run.folder / "tokenizer"))
    (run.folder / "pretrain" / "checkpoints" / "step-001200").mkdir(parents=True)
    found = by_subject(recipes.check_stages(run))
    assert found["finished"].found == "tokenizer, pack"
    assert found["begun"].found == "pretrain (step 1,200 is saved)"
    assert found["not begun"].found == "corpus"


def test_a_recipe_that_cannot_be_read_is_a_finding(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run()
    monkeypatch.chdir(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    outcome = run_fledge(capsys, "doctor", "tiny.yaml", "pretrain.stesp=3", "--quick", "--json")
    found = {one["subject"]: one for one in json.loads(outcome.said)}
    assert found["recipe"]["level"] == "problem" and "did you mean pretrain.steps?" in found["recipe"]["fix"]
    assert outcome.exit_code in (2, 5) and "problem" in outcome.noted
    good = run_fledge(capsys, "doctor", "tiny.yaml", "--quick")
    assert "source text: 1 file" in good.said and "not begun: corpus" in good.said
    assert sorted(path.name for path in tmp_path.iterdir()) == before
