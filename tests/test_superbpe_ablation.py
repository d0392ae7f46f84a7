"""The arms of the ablation differ in what they name and in nothing else; its clock and its target are what its page says."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from fledge.recipe import find_recipe, load_recipe
from fledge.training.phases import make_plan
from fledge.training.plan import Plan, Source
from fledge.training.settings import TrainingSettings

BENCHMARKS = str(Path(__file__).parent.parent / "benchmarks")
RESULTS = {"cpu": "superbpe_ablation-cpu.json", "cuda": "superbpe_ablation-H100.json"}


def _measured_tokens_per_byte(result: str) -> dict[str, float]:
    """By tokenizer."""
    text = json.loads((Path(BENCHMARKS) / "results" / result).read_text())["text"]
    return {kind: sides["train"]["tokens"] / sides["train"]["text_bytes"] for kind, sides in text.items()}


TOKENS_PER_BYTE = {device: _measured_tokens_per_byte(result) for device, result in RESULTS.items()}
"""Of 4,096 entries on documentation and of 32,768 on Python packages."""


@pytest.fixture(autouse=True)
def _benchmarks() -> Iterator[None]:
    """Last on the path: beside them lies a tokenizers.py, which is not the library."""
    sys.path.append(BENCHMARKS)
    yield
    sys.path.remove(BENCHMARKS)


def _recipes(device: str, seed: int = 3) -> dict[str, dict[str, Any]]:
    from ablation_arms import SIZES, all_arms, arm_recipe

    precisions = ("bf16", "fp8") if device == "cuda" else ("fp32", "bf16")
    return {
        arm.name: arm_recipe(arm, SIZES[device], f"/{arm.tokenizer}", TOKENS_PER_BYTE[device][arm.tokenizer], seed, device, False)
        for arm in all_arms(precisions)
    }


def _settings(recipe: dict[str, Any], folder: Path) -> TrainingSettings:
    path = folder / "recipe.json"
    path.write_text(json.dumps(recipe))
    found, _ = load_recipe(path, [])
    assert found.pretrain is not None
    return found.pretrain


def _plan(settings: TrainingSettings, tokens_per_byte: float, train_bytes: int = 9_000_000) -> Plan:
    return make_plan([Source("text", round(train_bytes * tokens_per_byte), "")], settings, 1)


@pytest.mark.parametrize(("device", "lower"), [("cpu", "bf16"), ("cuda", "fp8")])
def test_an_arm_differs_from_the_plain_one_in_what_it_names(device: str, lower: str) -> None:
    recipes = _recipes(device)
    assert len(recipes) == 8
    plain = recipes["plain"]
    for name, recipe in recipes.items():
        parts = set() if name == "plain" else set(name.split(" + "))
        assert parts <= {"SuperBPE", "curriculum", lower}
        assert recipe["model"] == plain["model"]
        changed = {key for key in plain["pretrain"] if recipe["pretrain"][key] != plain["pretrain"][key]}
        expected = {"precision"} if lower in parts else set()
        # A tokenizer counts the same bytes in other tokens; a curriculum cuts them into other rows.
        expected |= {"tokens", "phases", "validate_every_tokens"} if "SuperBPE" in parts else set()
        expected |= {"phases"} if "curriculum" in parts else set()
        assert changed == expected, name


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_arms_see_equal_bytes_in_as_many_steps_and_are_validated_in_rows_of_one_length(device: str, tmp_path: Path) -> None:
    from ablation_arms import SIZES

    size = SIZES[device]
    for name, recipe in _recipes(device).items():
        settings = _settings(recipe, tmp_path)
        tokens_per_byte = TOKENS_PER_BYTE[device]["superbpe" if "SuperBPE" in name else "byte_bpe"]
        plan = _plan(settings, tokens_per_byte)
        seen_bytes = plan.tokens(plan.steps) / tokens_per_byte
        assert seen_bytes == pytest.approx(size.budget_bytes, rel=0.03), name
        assert plan.steps == pytest.approx(size.budget_bytes / size.step_bytes, rel=0.06), name
        assert len(plan.phases) == (10 if "curriculum" in name else 1)
        assert settings.longest_sequence_length == size.lengths[-1]
        # Steps of equal bytes in every stage, so the schedule, which counts steps, is the same function of the bytes.
        step_bytes = [phase.batch_tokens / tokens_per_byte for phase in plan.phases]
        assert step_bytes == pytest.approx([size.step_bytes] * len(step_bytes), rel=0.06), name


def test_the_curriculum_is_that_of_the_recipe() -> None:
    from ablation_arms import SIZES, STAGE_SHARES

    recipe, _ = load_recipe(find_recipe("superbpe-197m"), [])
    assert recipe.pretrain is not None
    phases = recipe.pretrain.phases
    ends = [0, *(phase.until_tokens for phase in phases)]
    tokens = [after - before for before, after in pairwise(ends)]
    assert [share / sum(STAGE_SHARES) for share in STAGE_SHARES] == pytest.approx([one / sum(tokens) for one in tokens])
    assert SIZES["cuda"].lengths == tuple(phase.sequence_length for phase in phases)
    # Shorter on a CPU, and as many.
    assert len(SIZES["cpu"].lengths) == 10 and list(SIZES["cpu"].lengths) == sorted(set(SIZES["cpu"].lengths))


def _run(step_seconds: list[float], curve: list[tuple[int, float]], seed: int = 0, first_rows: int = 8) -> Any:
    """Two steps of `first_rows` rows, then two of 4."""
    from ablation_figures import read_run

    tokens, records = 0, list[dict[str, Any]]()
    for step, seconds in enumerate(step_seconds, start=1):
        tokens += 100
        records.append({"step": step, "train/tokens": tokens, "train/tokens_per_second": 100 / seconds})
        records += [{"step": step, "validation/bits_per_byte": bits} for at, bits in curve if at == step]
    phases = [{"steps": 2, "batch_rows": first_rows, "row_tokens": 50}, {"steps": 2, "batch_rows": 4, "row_tokens": 100}]
    return read_run(records, phases, seed, "fp32")


def test_a_slow_moment_and_what_happens_once_do_not_count_and_a_shape_costs_the_same_in_all_arms() -> None:
    from ablation_figures import clock, typical_seconds

    one, other = _run([9.0, 1.0, 2.0, 2.0], [(4, 2.0)]), _run([5.0, 3.0, 2.0, 7.0], [(4, 2.0)], first_rows=9)
    typical = typical_seconds([one, other])
    assert clock(one, typical) == pytest.approx([0.0, 1.0, 2.0, 4.0, 6.0])
    assert clock(other, typical) == pytest.approx([0.0, 3.0, 6.0, 8.0, 10.0])


def test_the_time_to_a_target_lies_between_two_validations() -> None:
    from ablation_figures import amount_to

    curve, seconds_after = [(1, 4.0), (2, 3.0), (4, 2.0)], [0.0, 1.0, 2.0, 3.0, 4.0]
    assert amount_to(2.5, curve, seconds_after) == pytest.approx(3.0)
    assert amount_to(3.0, curve, seconds_after) == pytest.approx(2.0)
    assert amount_to(5.0, curve, seconds_after) == pytest.approx(1.0)
    assert amount_to(1.9, curve, seconds_after) is None


def test_an_arm_is_measured_by_the_end_of_the_plain_run_of_its_seed() -> None:
    from ablation_figures import arm_figures, table, typical_seconds

    plain = [_run([3.0, 3.0, 1.0, 1.0], [(2, 3.0), (4, end)], seed, first_rows=9) for seed, end in ((0, 2.0), (1, 1.0))]
    faster = [_run([1.0] * 4, [(2, 3.0), (4, end)], seed) for seed, end in ((0, 2.0), (1, 1.0))]
    worse = [_run([1.0] * 4, [(2, 3.0), (4, end)], seed) for seed, end in ((0, 2.1), (1, 1.1))]
    typical = typical_seconds([*plain, *faster, *worse])
    everyone = {"plain": plain, "faster": faster, "worse": worse}
    arms = {name: arm_figures(runs, plain, typical, 0.5) for name, runs in everyone.items()}
    assert arms["plain"]["times_as_fast"] == 1.0 and arms["plain"]["bytes"] == 800
    assert arms["faster"]["times_as_fast"] == 2.0 and arms["faster"]["bytes_to_plain_end"] == 800
    assert arms["faster"]["rounds_that_got_there"] == [True, True]
    assert arms["worse"]["seconds_to_plain_end"] is None and arms["worse"]["bytes_per_second"] == arms["faster"]["bytes_per_second"]
    assert "not reached" in table(arms)[-1] and "2.00" in table(arms)[-2]
