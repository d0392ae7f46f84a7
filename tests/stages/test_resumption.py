"""`--resume`: another checkpoint than the newest, what is moved for it, and what is no checkpoint at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fledge.commands import making
from fledge.core import artifact
from fledge.core.errors import ArtifactError, CheckpointError, ConfigError
from fledge.model.folder import load_model
from fledge.stages import Stage, run_stage
from fledge.stages.resumption import resuming, rewound
from fledge.stages.run import Run
from fledge.training.checkpoint_folders import list_checkpoints
from fledge.training.parallel import MACHINE

MakeRun = Callable[..., Run]
Walk = Callable[..., None]
PRETRAIN: tuple[Stage, ...] = ("pretrain",)


def resume(run: Run, reference: str) -> None:
    stage, continued = resuming(run, PRETRAIN, reference)
    run_stage(stage, continued)


def test_a_finished_stage_is_continued_from_an_earlier_checkpoint(
    make_run: MakeRun, walk: Walk, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run("pretrain.keep_checkpoints=9")
    walk(run, "pretrain")
    before = artifact.open_artifact(run.folder / "pretrain")
    expected = load_model(before.path / before.stats["final"]).state_dict()
    metrics = (before.path / "metrics.jsonl").read_text().count("\n")
    capsys.readouterr()
    resume(run, str(before.path / "checkpoints" / "step-000002"))
    said = capsys.readouterr().out
    assert f"{before.path}/checkpoints/step-000004 moved aside to {before.path}/set_aside/step-000004" in said
    assert "pretrain: continues after step 2 (256 tokens, loss " in said
    assert "weights, optimizer, order of rows, random numbers and losses are restored; from here on bitwise as if undisturbed" in said
    after = artifact.open_artifact(before.path)
    assert after.id == before.id
    again = load_model(after.path / after.stats["final"]).state_dict()
    assert all(torch.equal(again[name], expected[name]) for name in expected)
    assert (before.path / "metrics.jsonl").read_text().count("\n") == metrics
    aside = sorted(path.name for path in (before.path / "set_aside").iterdir())
    assert aside == ["manifest.json", "step-000004", "step-000006"]
    resume(run, f"{run.folder}/pretrain@4")
    assert sorted(path.name for path in (before.path / "set_aside").iterdir()) == [
        *aside[:1],
        "manifest.json.2",
        *aside[1:],
        "step-000006.2",
    ]


def test_the_folder_of_a_stage_means_its_newest(make_run: MakeRun, walk: Walk) -> None:
    run = make_run()
    walk(run, "pretrain")
    newest = list_checkpoints(run.folder / "pretrain")[-1].path
    for reference in (newest, newest.parent, newest.parent.parent):
        assert resuming(run, PRETRAIN, str(reference)) == ("pretrain", replace(run, resume=newest))


def test_what_cannot_be_continued_is_told_and_nothing_is_moved(make_run: MakeRun, walk: Walk) -> None:
    run = make_run("pretrain.keep_checkpoints=9")
    walk(run, "pretrain")
    stage = run.folder / "pretrain"
    there = sorted(stage.rglob("*"))
    other = make_run(name="other")
    with pytest.raises(CheckpointError, match=r"belongs to no stage of .*other"):
        resuming(other, PRETRAIN, str(stage / "checkpoints" / "step-000002"))
    with pytest.raises(CheckpointError, match="is a checkpoint of pretrain, not of sft"):
        resuming(run, ("sft",), str(stage / "checkpoints" / "step-000002"))
    changed = make_run("pretrain.learning_rate=5e-4")
    with pytest.raises(ArtifactError, match=r"learning_rate: 0\.001 -> 0\.0005"):
        rewound(replace(changed, resume=stage / "checkpoints" / "step-000002"), "pretrain", 1)
    machine = stage / MACHINE
    recorded = machine.read_text()
    machine.write_text(recorded.replace(torch.__version__, "1.0"))
    for processes in (1, 2):
        with pytest.raises(ArtifactError, match=r"torch: 1\.0 -> .*"):
            rewound(replace(run, resume=stage / "checkpoints" / "step-000002"), "pretrain", processes)
    machine.write_text(recorded)
    weights = stage / "checkpoints" / "step-000002" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"step-000002 is damaged: .*model\.safetensors: sha256 is") as error:
        resume(run, str(stage / "checkpoints" / "step-000002"))
    assert error.value.exit_code == 4
    assert sorted(stage.rglob("*")) == there


def test_one_of_many_processes_takes_no_finished_stage_back(make_run: MakeRun, walk: Walk, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run()
    walk(run, "pretrain")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="pretrain is finished"):
        resume(run, str(run.folder / "pretrain"))


@pytest.mark.parametrize(
    ("made", "problem"),
    [
        ((), "no complete checkpoint in .*; found: nothing"),
        (("step-000004.partial/",), r"found: step-000004\.partial \(a save that did not end\)"),
        (("checkpoints/step-000004.partial/",), r"found: checkpoints, step-000004\.partial \(a save that did not end\)"),
        (("pytorch_model.bin", "notes.txt"), r"found: notes\.txt, pytorch_model\.bin"),
        (("step-000004/model.safetensors",), "found: step-000004"),
    ],
)
def test_a_folder_without_a_complete_checkpoint_lists_what_it_has(
    make_run: MakeRun, tmp_path: Path, made: tuple[str, ...], problem: str
) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    for name in made:
        path = folder / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=problem) as error:
        resuming(make_run(), PRETRAIN, str(folder))
    assert error.value.exit_code == 4


def test_a_file_and_nothing_at_all_are_told_apart(make_run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CheckpointError, match="is a file, not the folder of a checkpoint"):
        resuming(make_run(), PRETRAIN, str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match=r"there is no .*absent"):
        resuming(make_run(), PRETRAIN, str(tmp_path / "absent"))


def test_the_verbs_take_it(make_run: MakeRun, walk: Walk, capsys: pytest.CaptureFixture[str]) -> None:
    """`fledge pretrain` and `fledge run`; of another stage, or with --force, it is refused before anything is moved."""
    run = make_run()
    walk(run, "pretrain")
    first = artifact.open_artifact(run.folder / "pretrain").id
    verb, where = making.stage_verb("pretrain"), f"{run.folder}/pretrain@4"
    with pytest.raises(ConfigError, match="--resume continues what --force would move away"):
        verb(run.command, name=str(run.folder), resume=where, force=True)
    with pytest.raises(CheckpointError, match="is a checkpoint of pretrain, not of sft"):
        making.stage_verb("sft")(run.command, name=str(run.folder), resume=where)
    verb(run.command, name=str(run.folder), resume=where)
    making.run(run.command, first="pretrain", last="pretrain", name=str(run.folder), resume=where)
    assert capsys.readouterr().out.count("continues after step 4") == 2
    assert artifact.open_artifact(run.folder / "pretrain").id == first
