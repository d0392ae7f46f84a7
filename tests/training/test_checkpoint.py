"""Checkpoints: complete or absent, the sound one is found, nothing is lost silently."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training_assembly import MODEL, REQUEST, assembled, training_settings

from fledge.core import disk
from fledge.core.artifact import FORMAT_VERSION, hash_json, verify
from fledge.core.errors import ArtifactError, CheckpointError, FormatError, MachineError, NumericsError
from fledge.model.folder import load_model
from fledge.model.llama import Llama
from fledge.tokens.shards import TokenSet
from fledge.training.batches import open_rows
from fledge.training.checkpoint import Progress, require_disk_space, restore
from fledge.training.checkpoint_folders import CHECKPOINTS, best_checkpoint, list_checkpoints
from fledge.training.optimizer import Optimizer, make_optimizer
from fledge.training.parallel import World
from fledge.training.phases import make_plan
from fledge.training.plan import Plan
from fledge.training.saving import CheckpointWriter, Occasion
from fledge.training.settings import MuonSettings
from fledge.training.sound_checkpoints import QUARANTINE, newest_sound
from fledge.verbs import inspection

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture
def plan(documents: TokenSet) -> Plan:
    return make_plan(open_rows([documents], "train", 16).sources, training_settings(), 1)


def stepped(seed: int = 0) -> tuple[Llama, Optimizer]:
    """A model after one step, so that the optimizer has a state."""
    model = Llama(MODEL, seed)
    optimizer = make_optimizer(model, training_settings(optimizer=MuonSettings()))
    model(torch.arange(8)[None]).square().mean().backward()
    optimizer.step(1.0)
    return model, optimizer


def save(folder: Path, plan: Plan, losses: dict[int, float | None], keep: int = 9, occasion: Occasion = "cadence") -> CheckpointWriter:
    """A checkpoint per step; `losses` are validation losses."""
    writer = CheckpointWriter(folder, REQUEST, keep)
    model, optimizer = stepped()
    for step, loss in losses.items():
        validations = () if loss is None else ((step, loss),)
        writer.save(model, optimizer, plan, Progress(step, 5.0, (5.0, 4.5), validations), ALONE, occasion)
    return writer


def steps(folder: Path) -> list[int]:
    return [checkpoint.step for checkpoint in list_checkpoints(folder)]


def file_in(folder: Path, step: int, name: str) -> Path:
    return folder / CHECKPOINTS / f"step-{step:06d}" / name


def test_a_checkpoint_brings_everything_back(tmp_path: Path, plan: Plan) -> None:
    model, optimizer = stepped(seed=1)
    progress = Progress(7, 5.25, (5.25, 0.1 + 0.2), ((3, 5.0), (7, 1 / 3)))
    saved = CheckpointWriter(tmp_path, REQUEST, 2).save(model, optimizer, plan, progress, ALONE)
    assert saved is not None
    other, continued = stepped(seed=2)
    assert restore(saved, other, continued, plan) == progress
    assert all(torch.equal(first, second) for first, second in zip(model.parameters(), other.parameters(), strict=True))
    state, restored = optimizer.state(), continued.state()
    assert state.keys() == restored.keys()
    assert all(torch.equal(state[key], restored[key]) for key in state)


def test_a_validation_that_is_no_number_is_saved_as_none(tmp_path: Path, plan: Plan) -> None:
    model, optimizer = stepped(seed=1)
    progress = Progress(7, 5.25, (5.25,), ((3, 5.0), (7, math.nan)))
    saved = CheckpointWriter(tmp_path, REQUEST, 2).save(model, optimizer, plan, progress, ALONE)
    assert saved is not None and saved.validation_loss is None
    (first, second) = restore(saved, model, optimizer, plan).validation_losses
    assert first == (3, 5.0) and second[0] == 7 and math.isnan(second[1])


def test_a_checkpoint_of_a_newer_fledge_is_refused_and_not_set_aside(tmp_path: Path, plan: Plan) -> None:
    save(tmp_path, plan, {1: None, 2: None})
    path = file_in(tmp_path, 2, "manifest.json")
    raw = {**json.loads(path.read_text()), "format_version": FORMAT_VERSION + 1}
    raw["checksum"] = hash_json({name: value for name, value in raw.items() if name != "checksum"})
    path.write_text(json.dumps(raw))
    with pytest.raises(FormatError, match=f"has format {FORMAT_VERSION + 1}, this Fledge reads {FORMAT_VERSION}"):
        newest_sound(tmp_path)
    assert path.is_file() and not (tmp_path / QUARANTINE).exists()


def test_files_that_cannot_be_opened_just_now_are_no_damage(tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, plan, {1: None, 2: None})
    read = Path.read_text

    def too_many(path: Path, *arguments: Any, **options: Any) -> str:
        if path.name == "manifest.json":
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))
        return read(path, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", too_many)
    with pytest.raises(MachineError, match="Too many open files"):
        newest_sound(tmp_path)
    monkeypatch.undo()
    assert steps(tmp_path) == [1, 2] and not (tmp_path / QUARANTINE).exists()


def test_a_checkpoint_is_a_model_folder_and_an_artifact(tmp_path: Path, plan: Plan) -> None:
    def copy_tokenizer(folder: Path, maximum_tokens: int) -> None:
        disk.write_text(folder / "tokenizer.json", f"{maximum_tokens}")

    model, optimizer = stepped()
    saved = CheckpointWriter(tmp_path, REQUEST, 2, copy_tokenizer).save(
        model, optimizer, plan, Progress(3, 5.0, (4.0,), ((3, 2.5),)), ALONE
    )
    assert saved is not None
    loaded = load_model(saved.path)
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    assert verify(saved.artifact) == []
    assert {"config.json", "model.safetensors", "tokenizer.json", "resume/optimizer.safetensors"} <= saved.artifact.manifest.files.keys()
    assert saved.artifact.stats == {"step": 3, "tokens": 3 * 8 * 16, "loss": 4.0, "validation_loss": 2.5}
    assert saved.validation_loss == 2.5
    assert (saved.path / "tokenizer.json").read_text() == str(model.config.settings.max_position_embeddings)


def test_the_newest_and_the_best_are_kept(tmp_path: Path, plan: Plan) -> None:
    save(tmp_path, plan, {1: 3.0, 2: 1.0, 3: 2.0, 4: None, 5: 1.0}, keep=2)
    assert steps(tmp_path) == [2, 4, 5]
    best = best_checkpoint(tmp_path)
    assert best is not None
    assert best.step == 2


def test_without_validation_there_is_no_best(tmp_path: Path, plan: Plan) -> None:
    assert best_checkpoint(tmp_path) is None
    assert list_checkpoints(tmp_path) == []
    save(tmp_path, plan, {1: None, 2: None, 3: None}, keep=2)
    assert best_checkpoint(tmp_path) is None
    assert steps(tmp_path) == [2, 3]


def test_leftovers_of_a_killed_process_are_swept_away(tmp_path: Path, plan: Plan) -> None:
    save(tmp_path, plan, {1: None, 2: None, 3: None})
    half_written = tmp_path / CHECKPOINTS / "step-000004.partial"
    shutil.copytree(tmp_path / CHECKPOINTS / "step-000003", half_written)
    file_in(tmp_path, 3, "manifest.json").unlink()
    assert steps(tmp_path) == [1, 2]
    found = newest_sound(tmp_path)
    assert found is not None
    assert found.step == 2
    assert sorted(path.name for path in (tmp_path / CHECKPOINTS).iterdir()) == ["step-000001", "step-000002"]
    assert not (tmp_path / QUARANTINE).exists()


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


DAMAGES: list[tuple[str, Callable[[Path], None], str]] = [
    ("model.safetensors", flip_a_bit, "sha256"),
    ("resume/optimizer.safetensors", flip_a_bit, "sha256"),
    ("resume/state.json", cut, "bytes long"),
    ("config.json", Path.unlink, "missing"),
    ("manifest.json", cut, "cannot be read"),
]


@pytest.mark.parametrize(("name", "damage", "problem"), DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_used(
    tmp_path: Path, plan: Plan, capsys: pytest.CaptureFixture[str], name: str, damage: Callable[[Path], None], problem: str
) -> None:
    save(tmp_path, plan, {1: None, 2: None})
    damage(file_in(tmp_path, 2, name))
    found = newest_sound(tmp_path)
    assert found is not None
    assert found.step == 1
    assert [path.name for path in (tmp_path / QUARANTINE).iterdir()] == ["step-000002"]
    warning = capsys.readouterr().err
    assert "the checkpoint of step 2 is damaged" in warning
    assert problem in warning
    assert newest_sound(tmp_path) == found


def test_any_flipped_bit_of_a_manifest_is_found(tmp_path: Path, plan: Plan) -> None:
    save(tmp_path, plan, {1: None})
    path = file_in(tmp_path, 1, "manifest.json")
    sound = path.read_bytes()
    for place in range(0, len(sound) - 1, 37):
        changed = bytearray(sound)
        changed[place] ^= 1 << place % 7
        path.write_bytes(changed)
        with pytest.raises(CheckpointError, match="only damaged ones"):
            newest_sound(tmp_path)
        shutil.move(tmp_path / QUARANTINE / "step-000001", tmp_path / CHECKPOINTS / "step-000001")
    path.write_bytes(sound)
    assert newest_sound(tmp_path) is not None


def test_only_damaged_checkpoints_are_an_error_also_the_second_time(tmp_path: Path, plan: Plan) -> None:
    save(tmp_path, plan, {1: None, 2: None})
    for step in (1, 2):
        flip_a_bit(file_in(tmp_path, step, "model.safetensors"))
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"no sound checkpoint, only damaged ones .*step-000001, step-000002") as error:
            newest_sound(tmp_path)
        assert error.value.exit_code == 4
    assert newest_sound(tmp_path / "another") is None


def test_a_run_continues_from_the_checkpoint_before_a_damaged_one(tmp_path: Path, documents: TokenSet) -> None:
    settings = training_settings(save_every_steps=3)
    with assembled(tmp_path / "whole", settings, [documents]) as whole:
        whole.run()
    shutil.copytree(tmp_path / "whole", tmp_path / "damaged")
    flip_a_bit(file_in(tmp_path / "damaged", 8, "resume/optimizer.safetensors"))
    with assembled(tmp_path / "damaged", settings, [documents]) as again:
        assert again.progress.step == 6
        again.run()
    assert all(torch.equal(first, second) for first, second in zip(whole.model.parameters(), again.model.parameters(), strict=True))


def test_processes_that_see_another_checkpoint_are_refused(tmp_path: Path, documents: TokenSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of two machines whose run folders are not one: the same step, other bytes."""
    settings = training_settings(save_every_steps=3)
    with assembled(tmp_path, settings, [documents]) as trainer:
        trainer.run()
    of_the_main_one = World.from_main
    monkeypatch.setattr(World, "from_main", lambda self, number: of_the_main_one(self, number + (number > 1 << 20)))
    with pytest.raises(CheckpointError, match="do not all see the same"), assembled(tmp_path, settings, [documents]):
        pass


def test_verify_names_every_bad_file(tmp_path: Path, plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, plan, {1: None})
    folder = file_in(tmp_path, 1, "")
    inspection.verify(str(folder), small=False)
    assert "every byte is as it was written" in capsys.readouterr().out
    flip_a_bit(folder / "model.safetensors")
    cut(folder / "resume/optimizer.safetensors")
    (folder / "generation_config.json").unlink()
    (folder / "model.py").write_text("")
    with pytest.raises(ArtifactError) as error:
        inspection.verify(str(folder), small=False)
    assert error.value.exit_code == 4
    assert [
        f"{name}{problem}" in error.value.problem
        for name, problem in (
            ("model.safetensors", ": sha256 is"),
            ("resume/optimizer.safetensors", ": sha256 is"),
            ("generation_config.json", " is missing"),
            ("model.py", " is none of its files"),
        )
    ] == [True] * 4


@pytest.mark.parametrize("part", ["weight", "optimizer"])
def test_what_is_not_finite_is_not_saved(tmp_path: Path, plan: Plan, part: str) -> None:
    model, optimizer = stepped()
    with torch.no_grad():
        if part == "weight":
            model.model.norm.weight[3] = float("nan")
        else:
            optimizer.state()["model.norm.weight/exp_avg"][3] = float("inf")
    with pytest.raises(NumericsError, match=r"no checkpoint is written at step 4: model\.norm\.weight"):
        CheckpointWriter(tmp_path, REQUEST, 2).save(model, optimizer, plan, Progress(4), ALONE)
    assert not (tmp_path / CHECKPOINTS).exists()


def test_a_model_of_another_shape_is_refused(tmp_path: Path, plan: Plan) -> None:
    save(tmp_path, plan, {1: None})
    found = newest_sound(tmp_path)
    assert found is not None
    wider = Llama(replace(MODEL, settings=replace(MODEL.settings, intermediate_size=64)), 0)
    with pytest.raises(CheckpointError, match=r"another shape \(.*down_proj\.weight: \(32, 48\) -> \(32, 64\).*and 1 more") as error:
        restore(found, wider, make_optimizer(wider, training_settings(optimizer=MuonSettings())), plan)
    assert error.value.exit_code == 4


def test_another_optimizer_is_refused(tmp_path: Path, plan: Plan) -> None:
    save(tmp_path, plan, {1: None})
    found = newest_sound(tmp_path)
    assert found is not None
    model = Llama(MODEL, 0)
    with pytest.raises(CheckpointError, match="optimizer's state does not fit: it is Muon's, this run's optimizer is AdamW: "):
        restore(found, model, make_optimizer(model, training_settings()), plan)


def test_other_rows_are_refused_by_name(tmp_path: Path, plan: Plan) -> None:
    save(tmp_path, plan, {1: None})
    found = newest_sound(tmp_path)
    assert found is not None
    longer = replace(plan.phases[0], row_tokens=32)
    other = replace(plan, phases=(longer,), sources=(replace(plan.sources[0], content="other"), *plan.sources[1:]))
    with pytest.raises(CheckpointError, match=r"sources\.manual\.content: \w+ -> other; phases\.0\.row_tokens: 16 -> 32"):
        restore(found, *stepped(), other)


def test_a_full_disk_is_said_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Llama(MODEL, 0)
    require_disk_space(tmp_path, model)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=100_000))
    with pytest.raises(MachineError, match="free, two checkpoints need"):
        require_disk_space(tmp_path, model)


class Killed(BaseException):
    """Stands for SIGKILL: the fail-point keeps raising it, so nothing that runs afterwards changes the disk either."""


def kill_after(operations: int) -> Callable[[str, Path], None]:
    left = operations

    def fail_point(operation: str, path: Path) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed

    return fail_point


def test_a_kill_at_any_file_operation_of_a_save_loses_nothing(tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "before", plan, {1: None})
    killed, number = True, 0
    while killed:
        folder = tmp_path / f"killed-{number}"
        shutil.copytree(tmp_path / "before", folder)
        monkeypatch.setattr(disk, "fail_point", kill_after(number))
        try:
            save(folder, plan, {plan.steps: None}, keep=1, occasion="end")
            killed = False
        except Killed:
            number += 1
        monkeypatch.setattr(disk, "fail_point", None)
        complete = (folder / CHECKPOINTS / "step-000008" / "manifest.json").is_file()
        found = newest_sound(folder)
        assert found is not None
        assert found.step == (plan.steps if complete else 1)
        assert json.loads((found.path / "resume/state.json").read_text())["step"] == found.step
        assert {path.name for path in (folder / CHECKPOINTS).iterdir()} <= {"step-000001", "step-000008"}
        assert not (folder / QUARANTINE).exists()
    assert number > 30
    assert steps(folder) == [plan.steps]
