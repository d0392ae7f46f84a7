"""A trace is written for the steps that were asked for, and changes nothing."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from training_assembly import assembled, training_settings

from fledge.tokens.shards import TokenSet
from fledge.training.profiling import Profile
from fledge.training.settings import ProfileSettings


def train(folder: Path, documents: TokenSet, steps: int, profile: ProfileSettings | None) -> dict[str, torch.Tensor]:
    with assembled(folder, training_settings(steps=steps, save_every_steps=1), [documents]) as trainer:
        if profile is not None:
            trainer.observers = [*trainer.observers, Profile(profile, folder, trainer.progress.step, steps, main=True)]
        trainer.run()
        return {name: value.detach().clone() for name, value in trainer.model.named_parameters()}


def optimizer_steps(trace: Path) -> int:
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    return sum(str(event.get("name", "")).startswith("Optimizer.step") for event in events)


def test_a_trace_of_the_steps_asked_for(tmp_path: Path, documents: TokenSet, capsys: pytest.CaptureFixture[str]) -> None:
    profiled = train(tmp_path / "profiled", documents, 6, ProfileSettings(first_step=3, steps=2))
    trace = tmp_path / "profiled" / "profile" / "steps-3-4" / "trace.json.gz"
    assert optimizer_steps(trace) == 2
    assert f"a trace of steps 3 to 4 lies in {trace}: open it at ui.perfetto.dev" in capsys.readouterr().out
    plain = train(tmp_path / "plain", documents, 6, None)
    assert all(torch.equal(profiled[name], plain[name]) for name in plain)
    assert not (tmp_path / "plain" / "profile").exists()


def test_a_run_that_continues_counts_from_there_and_a_short_one_ends_the_trace(tmp_path: Path, documents: TokenSet) -> None:
    with assembled(tmp_path / "run", training_settings(steps=6), [documents]) as stopped:
        for _ in range(3):
            stopped.step()
        stopped.save()
    train(tmp_path / "run", documents, 6, ProfileSettings(first_step=2, steps=9))
    assert [place.name for place in (tmp_path / "run" / "profile").iterdir()] == ["steps-5-6"]
    assert optimizer_steps(tmp_path / "run" / "profile" / "steps-5-6" / "trace.json.gz") == 2


@pytest.mark.parametrize(
    ("first_step", "steps", "main", "due"), [(3, 2, True, [2, 4]), (2, 1, True, [1, 2]), (9, 1, True, []), (3, 2, False, [])]
)
def test_it_looks_twice_or_never(tmp_path: Path, first_step: int, steps: int, main: bool, due: list[int]) -> None:
    observer = Profile(ProfileSettings(first_step=first_step, steps=steps), tmp_path, 0, 8, main)
    assert [step for step in range(1, 9) if observer.due(step)] == due


def test_the_first_step_is_like_no_other() -> None:
    assert ProfileSettings(first_step=2, steps=1).first_step == 2
    with pytest.raises(ValueError, match="first_step must be at least 2, not 1"):
        ProfileSettings(first_step=1)
    with pytest.raises(ValueError, match="steps must be at least 1, not 0"):
        ProfileSettings(steps=0)
