"""The stages together: the whole road on small files, what is never done twice, what is refused, what a kill leaves."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fledge.core import artifact
from fledge.core.errors import ArtifactError, ConfigError, DataError, FledgeError
from fledge.core.samples import read_samples
from fledge.corpus.document import read_documents
from fledge.evaluation.run_data import PLAN
from fledge.model.folder import load_model
from fledge.serving.board.details import stage_facts
from fledge.serving.board.folders import RunFolder
from fledge.stages import STAGES, run_stage
from fledge.stages.checkpoint_names import find_checkpoint
from fledge.stages.run import Run, set_aside
from fledge.training.checkpoint import read_order
from fledge.verbs import inspection

MakeRun = Callable[..., Run]
Walk = Callable[..., None]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_model(find_checkpoint(f"{folder}@final")).state_dict()


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_the_whole_road(make_run: MakeRun, walk: Walk) -> None:
    run = make_run()
    walk(run)
    for stage in STAGES:
        assert list((run.folder / stage).rglob("manifest.json")), stage
    assert artifact.open_artifact(run.folder / "dpo").stats["initial_loss"] == pytest.approx(math.log(2), abs=1e-6)
    results = json.loads((run.folder / "evaluate" / "results.json").read_text())
    names = {score["name"] for one in results["evaluations"] for score in one["scores"]}
    assert {"bits_per_byte", "stop_rate", "answer_choice", "reward_accuracy"} <= names


def test_the_same_recipe_makes_the_same_ids(make_run: MakeRun, walk: Walk) -> None:
    first, second = make_run(name="first"), make_run(name="second")
    walk(first, "dpo")
    walk(second, "dpo")
    for stage in ("corpus/documents", "tokenizer", "pack/documents", "pretrain", "sft", "score", "dpo"):
        assert artifact.open_artifact(first.folder / stage).id == artifact.open_artifact(second.folder / stage).id, stage


def test_a_change_touches_only_what_depends_on_it(make_run: MakeRun, walk: Walk) -> None:
    walk(make_run(), "sft")
    pretrained = artifact.open_artifact(make_run().folder / "pretrain").id
    changed = make_run("sft.learning_rate=5e-4")
    run_stage("pretrain", changed)
    with pytest.raises(ArtifactError, match=r"learning_rate: 0\.001 -> 0\.0005"):
        run_stage("sft", changed)
    set_aside(changed, STAGES[STAGES.index("sft") :])
    run_stage("sft", changed)
    assert artifact.open_artifact(changed.folder / "pretrain").id == pretrained
    assert len(list(changed.folder.glob("sft~*"))) == 1


def test_how_a_run_looks_and_saves_is_no_other_run(make_run: MakeRun, walk: Walk) -> None:
    walk(make_run(), "pretrain")
    manifest = make_run().folder / "pretrain" / "manifest.json"
    before = manifest.stat().st_mtime_ns
    run_stage("pretrain", make_run("pretrain.log_every_steps=1", "pretrain.save_every_steps=3", "pretrain.validate_every_steps=1"))
    assert manifest.stat().st_mtime_ns == before


def test_observers_and_saving_change_no_weight(make_run: MakeRun, walk: Walk) -> None:
    quiet = make_run("pretrain.save_every_steps=null", name="quiet")
    busy = make_run(
        "pretrain.save_every_steps=1",
        "pretrain.validate_every_tokens=100",
        "pretrain.validation_share=0.5",
        "pretrain.sample_every_steps=1",
        "pretrain.sample_prompts=[The bird, A river]",
        "pretrain.log_every_steps=1",
        name="busy",
    )
    walk(quiet, "pretrain")
    walk(busy, "pretrain")
    assert same(weights(quiet.folder / "pretrain"), weights(busy.folder / "pretrain"))
    samples = read_samples(busy.folder / "pretrain")
    assert [(one.step, one.prompt) for one in samples] == [(step, prompt) for step in range(1, 7) for prompt in ("The bird", "A river")]


def test_a_stage_leaves_its_plan_for_those_who_look_on(make_run: MakeRun, walk: Walk) -> None:
    run = make_run()
    walk(run, "pretrain")
    plan = json.loads((run.folder / "pretrain" / PLAN).read_text(encoding="utf-8"))
    assert plan == read_order(find_checkpoint(f"{run.folder / 'pretrain'}@final"))[0]
    facts = stage_facts(RunFolder(run.folder, STAGES), "pretrain")
    assert [(phase["first_step"], phase["last_step"]) for phase in facts["phases"]] == [(0, facts["stats"]["steps"])]


def test_a_stage_that_stops_early_is_finished_and_names_its_best(make_run: MakeRun, walk: Walk, capsys: pytest.CaptureFixture[str]) -> None:
    """No improvement is large enough, so the second validation is the last."""
    stopping = "pretrain.early_stopping={patience: 1, minimum_improvement: 9.0}"
    run = make_run("pretrain.validate_every_steps=2", stopping, "sft=null", "dpo=null")
    walk(run)
    stats = artifact.open_artifact(run.folder / "pretrain", "training").stats
    assert (stats["steps"], stats["final"], stats["best"]) == (4, "checkpoints/step-000004", "checkpoints/step-000004")
    assert stats["stopped_early"].startswith("no improvement in 1 validations on the loss ")
    assert "pretrain: stopped early, after step 4 of 6: no improvement" in capsys.readouterr().out
    run_stage("pretrain", run)
    assert "pretrain: already done" in capsys.readouterr().err
    whole = make_run("pretrain.validate_every_steps=2", "pretrain.early_stopping={patience: 3}", "sft=null", "dpo=null", name="whole")
    walk(whole, "pretrain")
    stats = artifact.open_artifact(whole.folder / "pretrain", "training").stats
    assert stats["steps"] == 6 and "stopped_early" not in stats


def test_early_stopping_without_validation_text_is_refused(make_run: MakeRun, walk: Walk) -> None:
    everything = ("corpus.validation_fraction=0.0", "pretrain.validate_every_steps=2")
    with pytest.raises(ConfigError, match=r"pretrain\.early_stopping needs validation rows"):
        walk(make_run(*everything, "pretrain.early_stopping={patience: 1}"), "pretrain")


def test_a_profiled_stage_is_the_same_stage(make_run: MakeRun, walk: Walk) -> None:
    run = make_run("pretrain.profile={first_step: 2, steps: 2}")
    walk(run, "pretrain")
    assert (run.folder / "pretrain" / "profile" / "steps-2-3" / "trace.json.gz").is_file()
    run_stage("pretrain", make_run())
    assert artifact.verify(artifact.open_artifact(run.folder / "pretrain")) == []


def test_killed_in_the_middle_and_run_again_is_bitwise_the_same(make_run: MakeRun, walk: Walk) -> None:
    longer = ("pretrain.steps=400", "pretrain.save_every_steps=20")
    undisturbed, killed = make_run(*longer, name="undisturbed"), make_run(*longer, name="killed")
    walk(undisturbed, "pretrain")
    walk(killed, "pack")
    command = [sys.executable, "-m", "fledge", "pretrain", killed.command, *longer, "--name", str(killed.folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    checkpoints = killed.folder / "pretrain" / "checkpoints"
    deadline = time.monotonic() + 300
    while not (checkpoints / "step-000060").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (checkpoints / "step-000060").exists(), "nothing was saved before the kill"
    assert not (killed.folder / "pretrain" / "manifest.json").exists(), "it ended before the kill"
    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert "continues after step" in again.stdout
    assert same(weights(undisturbed.folder / "pretrain"), weights(killed.folder / "pretrain"))
    assert artifact.open_artifact(undisturbed.folder / "pretrain").id == artifact.open_artifact(killed.folder / "pretrain").id


def test_one_tokenizer_serves_another_recipe(make_run: MakeRun, walk: Walk) -> None:
    first = make_run(name="first")
    walk(first, "pretrain")
    tokens, base = first.folder / "pack" / "documents", first.folder / "pretrain"
    second = make_run(
        f"pack.tokenizer={first.folder / 'tokenizer'}",
        "tokenizer=null",
        f"pretrain.tokens=[{tokens}]",
        f"pretrain.start_from={base}@final",
        "corpus.seed=1",
        name="second",
    )
    walk(second, "pretrain")
    inputs = artifact.open_artifact(second.folder / "pretrain").manifest.inputs
    assert inputs["tokens.0"].id == artifact.open_artifact(tokens).id
    assert inputs["start_from"].kind == "checkpoint"
    assert not (second.folder / "tokenizer").exists()


def test_a_run_takes_over_optimizer_and_step_of_a_checkpoint(make_run: MakeRun, walk: Walk, capsys: pytest.CaptureFixture[str]) -> None:
    first = make_run(name="first")
    walk(first, "pretrain")
    base, tokens = first.folder / "pretrain", first.folder / "pack" / "documents"
    shared = (f"pretrain.tokens=[{tokens}]", f"pack.tokenizer={first.folder / 'tokenizer'}", "tokenizer=null", "corpus.seed=1")
    kept = make_run(*shared, f"pretrain.start_from={base}@4", "pretrain.keep=[optimizer, step]", "pretrain.steps=9", name="kept")
    walk(kept, "pretrain")
    made = artifact.open_artifact(kept.folder / "pretrain")
    parent = made.manifest.inputs["start_from"]
    assert made.stats["started_from"] == {"checkpoint": parent.id, "step": 4, "kept": ["optimizer", "step"]}
    assert (made.stats["steps"], made.stats["tokens"], made.stats["planned_tokens"]) == (9, 9 * 4 * 32, 9 * 4 * 32)
    assert "pretrain: continues after step 4" in capsys.readouterr().out
    assert made.stats["flops"] * 6 == artifact.open_artifact(base).stats["flops"] * 5
    plain = make_run(*shared, f"pretrain.start_from={base}@4", name="plain")
    walk(plain, "pretrain")
    assert artifact.open_artifact(plain.folder / "pretrain").stats["started_from"]["kept"] == []
    assert artifact.open_artifact(base).stats.get("started_from") is None
    with pytest.raises(ConfigError, match=r"nothing is left to train: .* has 4 steps and 512 tokens"):
        run_stage("pretrain", make_run(*shared, f"pretrain.start_from={base}@4", "pretrain.keep=[step]", "pretrain.steps=4", name="over"))
    with pytest.raises(ConfigError, match=r"pretrain\.keep is step, but nothing is there to keep it from"):
        run_stage("pretrain", make_run(*shared, "pretrain.keep=[step]", name="nothing"))


def test_another_tokenizer_is_refused_by_hash(make_run: MakeRun, walk: Walk) -> None:
    first, second = make_run(name="first"), make_run("tokenizer.vocabulary_size=310", name="second")
    walk(first, "pretrain")
    walk(second, "pack")
    mixed = make_run(f"sft.start_from={first.folder / 'pretrain'}", "tokenizer.vocabulary_size=310", name="second")
    with pytest.raises(DataError) as caught:
        run_stage("sft", mixed)
    for folder in (first.folder, second.folder):
        assert artifact.open_artifact(folder / "tokenizer").stats["canonical_sha256"][:12] in str(caught.value)
    assert "--force" in str(caught.value)


def test_a_shard_cut_short_is_found(make_run: MakeRun, walk: Walk) -> None:
    run = make_run()
    walk(run, "pack")
    shard = next((run.folder / "pack" / "documents").glob("train-*.tokens"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="bytes"):
        run_stage("pretrain", run)


@pytest.mark.parametrize("key", ["pretrain.sequence_length", "pack.sequence_length"])
def test_rows_longer_than_the_context_are_refused_at_once(make_run: MakeRun, key: str) -> None:
    with pytest.raises(ConfigError, match="max_position_embeddings is 128"):
        make_run(f"{key}=256")


@pytest.mark.parametrize(("override", "key"), [("question=QUESTION", "question"), ("sft.sample_prompts=[QUESTION]", "sft.sample_prompts")])
def test_a_question_that_fills_the_context_is_named(make_run: MakeRun, walk: Walk, override: str, key: str) -> None:
    run = make_run(override.replace("QUESTION", "ab " * 200))
    with pytest.raises(ConfigError, match=rf"^{key}: 'ab ab .* fills the model's context"):
        walk(run, "sft")


def test_rows_longer_than_the_context_of_a_given_checkpoint_are_refused(make_run: MakeRun, walk: Walk) -> None:
    first = make_run(name="first")
    walk(first, "pretrain")
    longer = make_run(f"pretrain.start_from={first.folder}", "pretrain.sequence_length=256", name="second")
    walk(longer, "pack")
    with pytest.raises(ConfigError, match="max_position_embeddings = 128"):
        run_stage("pretrain", longer)


def test_evaluation_measures_what_was_brought_from_elsewhere(make_run: MakeRun, walk: Walk) -> None:
    first = make_run(name="first")
    walk(first, "pack")
    second = make_run(
        "corpus=null",
        "tokenizer=null",
        "sft=null",
        "dpo=null",
        f"pack.tokenizer={first.folder / 'tokenizer'}",
        f"pack.corpus=[{first.folder / 'corpus' / 'documents'}]",
        f"pretrain.tokens=[{first.folder / 'pack' / 'documents'}]",
        name="second",
    )
    walk(second)
    results = json.loads((second.folder / "evaluate" / "results.json").read_text())
    assert {score["name"] for score in results["evaluations"][0]["scores"]} >= {"bits_per_byte", "last_word"}
    assert len(results["compressors"]) == 3


def test_files_to_be_evaluated_on_are_kept_out_and_measured(make_run: MakeRun, walk: Walk, tmp_path: Path) -> None:
    exam = tmp_path / "exam.txt"
    questions = tmp_path / "boolq.jsonl"
    named = (f"evaluate.files=[{exam}]", f"evaluate.benchmarks={{boolq: {tmp_path}}}", "evaluate.benchmark_samples=2")
    run = make_run("sft=null", "dpo=null", "corpus.sources.0.maximum_document_characters=400", *named)
    exam.write_text((tmp_path / "text.txt").read_text().partition("\n\n")[0])
    questions.write_text("".join(json.dumps({"passage": f"It is {n}.", "question": "is it", "label": n % 2}) + "\n" for n in range(3)))
    walk(run, "evaluate")
    documents = artifact.open_artifact(run.folder / "corpus" / "documents")
    assert documents.stats["dropped"]["contaminated"] >= 1
    assert [name for name, _ in documents.manifest.settings["evaluation_files"]] == ["exam.txt", "boolq.jsonl"]
    for split in ("train", "validation"):
        assert exam.read_text() not in "".join(row.text for row in read_documents(documents.path, split))
    scores = json.loads((run.folder / "evaluate" / "results.json").read_text())["evaluations"][0]["scores"]
    measured = {score["name"]: score for score in scores}
    assert measured["bits_per_byte/exam.txt"]["n"] == 1
    assert measured["bits_per_byte/exam.txt"]["value"] > 0
    assert measured["boolq/acc"]["n"] == 2
    [result] = json.loads((run.folder / "evaluate" / "outcomes.json").read_text())["pretrain"]
    assert result["name"] == "boolq" and [one["item"].partition("-")[0] for one in result["outcomes"]] == ["2", "3"]
    before = (run.folder / "evaluate" / "manifest.json").stat().st_mtime_ns
    run_stage("evaluate", run)
    assert (run.folder / "evaluate" / "manifest.json").stat().st_mtime_ns == before
    exam.write_text("Another text than the one that was measured before.")
    with pytest.raises(ArtifactError, match="file_hashes"):
        run_stage("evaluate", run)
    exam.write_text((tmp_path / "text.txt").read_text().partition("\n\n")[0])
    questions.write_text(questions.read_text().replace("is it", "was it"))
    with pytest.raises(ArtifactError, match="benchmark_tasks"):
        run_stage("evaluate", run)
    with pytest.raises(DataError, match=r"evaluate\.files names .*recipe\.json"):
        (tmp_path / "recipe.json").write_text("{}")
        run_stage("evaluate", make_run("sft=null", "dpo=null", f"evaluate.files=[{tmp_path / 'recipe.json'}]"))


def test_sft_needs_a_start(make_run: MakeRun, walk: Walk) -> None:
    walk(make_run(), "pack")
    with pytest.raises(ConfigError, match="sft has nothing to start from"):
        run_stage("sft", make_run("pretrain=null"))


@pytest.mark.parametrize("text", ["One short text, alone.", "A line of about forty characters, repeated.\n" * 24])
def test_the_smallest_corpora_train(make_run: MakeRun, walk: Walk, tmp_path: Path, text: str) -> None:
    (tmp_path / "small.txt").write_text(text)
    source = f"{{kind: text, name: small, path: {tmp_path / 'small.txt'}}}"
    run = make_run(f"corpus.sources=[{source}]", "sft=null", "dpo=null")
    walk(run)
    assert artifact.open_artifact(run.folder / "pretrain").stats["steps"] == 6
    assert (run.folder / "report" / "report.html").is_file()


def test_no_document_at_all_is_an_error(make_run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n \n")
    source = f"{{kind: text, name: small, path: {tmp_path / 'empty.txt'}}}"
    with pytest.raises(DataError):
        run_stage("corpus", make_run(f"corpus.sources=[{source}]"))
    assert not (tmp_path / "run" / "corpus" / "documents").exists()


def test_a_run_that_was_moved_still_knows_what_it_was_made_from(make_run: MakeRun, walk: Walk, tmp_path: Path) -> None:
    run = make_run()
    walk(run, "sft")
    shutil.move(run.folder, tmp_path / "else@where")
    moved = artifact.open_artifact(tmp_path / "else@where" / "sft")
    assert all(found is not None for _, _, _, found in artifact.lineage(moved))
    walk(make_run(name="else@where"))
    assert artifact.open_artifact(tmp_path / "else@where" / "sft").id == moved.id


def test_a_whole_run_that_was_moved_is_finished(make_run: MakeRun, walk: Walk, tmp_path: Path) -> None:
    run = make_run()
    walk(run)
    shutil.move(run.folder, tmp_path / "elsewhere")
    before = (tmp_path / "elsewhere" / "report" / "manifest.json").stat().st_mtime_ns
    walk(make_run(name="elsewhere"))
    assert (tmp_path / "elsewhere" / "report" / "manifest.json").stat().st_mtime_ns == before


def test_scores_of_another_precision_are_not_taken(make_run: MakeRun, walk: Walk) -> None:
    walk(make_run(), "score")
    with pytest.raises(ConfigError, match="scored in fp32, dpo would compute in bf16"):
        run_stage("dpo", make_run("dpo.precision=bf16"))
    with pytest.raises(ArtifactError, match="--from score --force"):
        run_stage("score", make_run("dpo.precision=bf16"))


def test_a_damaged_checkpoint_that_was_put_aside_does_not_trouble_show_and_verify(make_run: MakeRun, walk: Walk) -> None:
    run = make_run()
    walk(run, "pretrain")
    shutil.move(run.folder / "pretrain" / "checkpoints" / "step-000004", run.folder / "pretrain" / "quarantine" / "step-000004")
    (run.folder / "pretrain" / "quarantine" / "step-000004" / "model.safetensors").write_bytes(b"cut")
    inspection.show(str(run.folder), small=False)
    inspection.verify(str(run.folder), small=False)


@pytest.mark.parametrize("which", ["", "@latest", "@final", "@6", "@best"])
def test_a_checkpoint_goes_by_many_names(make_run: MakeRun, walk: Walk, which: str) -> None:
    run = make_run()
    walk(run, "pretrain")
    assert find_checkpoint(f"{run.folder}{which}").name == "step-000006"
    assert find_checkpoint(f"{run.folder / 'pretrain'}{which}").name == "step-000006"
    with pytest.raises(FledgeError, match="no checkpoint '5'"):
        find_checkpoint(f"{run.folder}@5")


def test_a_changed_token_is_found_before_the_step_that_uses_it(make_run: MakeRun, walk: Walk) -> None:
    run = make_run()
    walk(run, "pack")
    shard = next((run.folder / "pack" / "documents").glob("train-*.tokens"))
    content = shard.read_bytes()
    shard.write_bytes(content[:-2] + b"\xff\xff")
    with pytest.raises(DataError, match=r"step 1 cannot be read and was not applied: .*\.tokens is damaged: block 0"):
        run_stage("pretrain", run)
    shard.write_bytes(content)
    run_stage("pretrain", run)
