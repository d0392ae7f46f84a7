"""`fledge prove-resume`: what counts as equal, what is trained, and one proof with real kills."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fledge.core.errors import ConfigError
from fledge.recipe import Recipe, find_recipe, load_recipe
from fledge.stages.run import Run
from fledge.training.settings import TrainingSettings
from fledge.verbs.proving import Outcome, differences, shortened, stage_to_prove

LEFT_ALONE = Outcome({1: 2.0, 2: 1.5}, {"weights": "a", "optimizer": "b"}, "order")


@pytest.mark.parametrize(
    ("found", "bitwise", "to_rounding"),
    [
        (LEFT_ALONE, "", ""),
        (replace(LEFT_ALONE, order="other"), "order of the data", "order of the data"),
        (replace(LEFT_ALONE, losses={1: 2.0}), "steps were lost", "steps were lost"),
        (replace(LEFT_ALONE, losses={1: 2.0, 2: 1.5000001}), "the loss of step 2 is 0x", ""),
        (replace(LEFT_ALONE, losses={1: 2.0, 2: 1.6}), "the loss of step 2 is 0x", "the loss of step 2 is 0x"),
        (replace(LEFT_ALONE, hashes={"weights": "a", "optimizer": "c"}), "the optimizer are others", ""),
    ],
)
def test_what_is_compared(found: Outcome, bitwise: str, to_rounding: str) -> None:
    for is_bitwise, words in ((True, bitwise), (False, to_rounding)):
        problems = list(differences(LEFT_ALONE, found, is_bitwise))
        assert bool(problems) is bool(words) and words in "; ".join(problems)


@pytest.mark.parametrize("stage", ["pretrain", "sft", "dpo"])
def test_any_recipe_is_made_short(stage: str) -> None:
    recipe, _ = load_recipe(find_recipe("quickstart"), [])
    run = Run(recipe, Path("runs/quickstart"), "quickstart")
    assert stage_to_prove(run, stage) == stage and stage_to_prove(run, None) == "pretrain"
    short, _ = load_recipe(find_recipe("quickstart"), shortened(run, stage, 24, 2))  # type: ignore[arg-type]
    settings: TrainingSettings = short.section(stage)
    assert (settings.steps, settings.save_every_steps, settings.log_every_steps, settings.threads) == (24, 3, 1, 1)
    with pytest.raises(ConfigError, match="no stage 'dpo' that trains"):
        stage_to_prove(Run(Recipe(pretrain=recipe.pretrain), Path("runs/x"), "x"), "dpo")


@pytest.mark.slow
@pytest.mark.parametrize("determinism", ["usual", "elastic"])
def test_a_proof_with_real_kills_and_another_number_of_processes(tmp_path: Path, determinism: str) -> None:
    options = ["--smoke", "--kills", "3", "--processes", "2", f"pretrain.determinism={determinism}", "pretrain.precision=fp32"]
    proof = [sys.executable, "-m", "fledge", "prove-resume", "quickstart", *options]
    found = subprocess.run(proof, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    ends = {"usual": "equal in order of data, and in losses to rounding", "elastic": "equal, bit for bit"}
    assert found.stdout.splitlines()[-1] == f"certificate: {ends[determinism]}"
    assert not list((tmp_path / "runs").glob("*-prove-*"))
