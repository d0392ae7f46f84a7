"""`--smoke`: a pure function that keeps what decides which code runs; and every recipe there is, walked so from end to end."""

from __future__ import annotations

import json
import math
import re
import socket
from pathlib import Path
from typing import Any

import pytest

from fledge.core import artifact, config
from fledge.core.metrics import read_metrics
from fledge.recipe import Recipe, find_recipe, load_recipe
from fledge.smoke import difference, smoke
from fledge.stages import STAGES, TRAINING_STAGES, has_stage
from fledge.stages.run import Run
from fledge.tokens.settings import BudgetSplitSettings
from fledge.training.settings import BudgetSettings
from tests.command_line import Fledge

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))
QUICKSTART = find_recipe("quickstart")
LARGEST_VOCABULARY = 4_096


def small(*overrides: str, path: Path = QUICKSTART) -> Recipe:
    return smoke(load_recipe(path, list(overrides))[0])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_stage_is_kept_in_kind(path: Path) -> None:
    recipe = load_recipe(path, [])[0]
    before = config.plain(recipe)
    once = smoke(recipe)
    assert config.plain(recipe) == before and smoke(once) == once, "a pure function, and there is nothing more to shrink"
    for stage in STAGES:
        assert has_stage(stage, Run(once, Path("x"), "")) == has_stage(stage, Run(recipe, Path("x"), ""))
    assert once.tokenizer is None or once.tokenizer.vocabulary_size <= LARGEST_VOCABULARY
    if recipe.corpus is not None and once.corpus is not None:
        assert [source.name for source in once.corpus.sources] == [source.name for source in recipe.corpus.sources]
        assert [source.content for source in once.corpus.sources] == [source.content for source in recipe.corpus.sources]
    for stage in TRAINING_STAGES:
        asked, found = getattr(recipe, stage), getattr(once, stage)
        if asked is not None:
            kept = ("objective", "optimizer", "lora", "mixture", "learning_rate", "benchmarks", "isolate_documents", "seed")
            assert [getattr(found, name) for name in kept] == [getattr(asked, name) for name in kept]
            assert (found.schedule.kind, len(found.phases)) == (asked.schedule.kind, len(asked.phases))
            assert [phase.mixture for phase in found.phases] == [phase.mixture for phase in asked.phases]
            assert len({phase.sequence_length for phase in found.phases}) == len({phase.sequence_length for phase in asked.phases})
            assert (found.steps is None, found.budget is None) == (asked.steps is None, asked.budget is None)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_nothing_comes_from_elsewhere(path: Path) -> None:
    once = smoke(load_recipe(path, [])[0])
    told = json.dumps(config.plain(once))
    assert "hub:" not in told and "://" not in told
    for stage in TRAINING_STAGES:
        training = getattr(once, stage)
        assert training is None or (training.metrics.wandb, training.start_from, training.tokens) == ("off", None, ())
    assert once.evaluate is None or all(place.startswith("stand-in:") for place in once.evaluate.benchmarks.values())


def test_sources_of_one_content_take_different_parts() -> None:
    web = [f"{{kind: hub, name: {name}, preset: c4}}" for name in ("one", "two")]
    talks = [f"{{kind: hub, name: {name}, preset: alpaca, content: conversations}}" for name in ("three", "four")]
    corpus = small(f"corpus.sources=[{', '.join(web + talks)}]").corpus
    assert corpus is not None
    taken = [(source.content, source.skip_documents, source.maximum_documents) for source in corpus.sources]  # type: ignore[union-attr]
    assert taken == [("documents", 0, 600), ("documents", 600, 600), ("conversations", 0, 200), ("conversations", 200, 200)]


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("preset=codellama", "stand-in:sentencepiece/tokenizer.model"),
        ("preset=llama", "stand-in:sentencepiece/tokenizer.model"),
        ("preset=gpt2", "stand-in:byte_bpe/tokenizer.json"),
        ("path='hub:datasets/some/tokens/tokenizer/spm.model'", "stand-in:sentencepiece/tokenizer.model"),
        ("path='hub:some/OLMo2-SuperBPE-t80k'", "stand-in:superbpe/tokenizer.json"),
        ("path='hub:some/model'", "stand-in:byte_bpe/tokenizer.json"),
        ("path=mine/tokenizer.json", "stand-in:byte_bpe/tokenizer.json"),
        ("path=mine/tokenizer.model", "stand-in:sentencepiece/tokenizer.model"),
    ],
)
def test_an_imported_tokenizer_has_a_stand_in_of_its_layout(given: str, path: str) -> None:
    tokenizer = small(f"tokenizer={{kind: import, template: plain, {given.replace('=', ': ', 1)}}}").tokenizer
    assert tokenizer is not None
    assert (tokenizer.kind, tokenizer.preset, tokenizer.path, tokenizer.template) == ("import", None, path, "plain")
    assert tokenizer.vocabulary_size <= 1_024


@pytest.mark.parametrize("given", ["hub:someone/tokens", "data/tokens"])
def test_token_files_have_a_stand_in(given: str) -> None:
    pack = small(f"pack.import_bin={given}").pack
    assert pack is not None and pack.import_bin == "stand-in:tokens"


def test_a_vocabulary_with_many_reserved_entries_stays_small() -> None:
    tokenizer = small("tokenizer.vocabulary_size=50_000", "tokenizer.reserved_tokens=20_000").tokenizer
    assert tokenizer is not None and (tokenizer.vocabulary_size, tokenizer.reserved_tokens) == (2_048, 1_024)


def test_a_trained_tokenizer_keeps_its_kind_and_the_share_of_its_transition() -> None:
    tokenizer = small("tokenizer.kind=superbpe", "tokenizer.vocabulary_size=200000", "tokenizer.transition=80000").tokenizer
    assert tokenizer is not None and (tokenizer.kind, tokenizer.vocabulary_size, tokenizer.transition) == ("superbpe", 1_024, 0.4)


def test_a_budget_of_the_split_shrinks() -> None:
    pack = small("pack.split={kind: budget, train_tokens: 1_000_000_000, validation_tokens: 10_000_000}").pack
    assert pack is not None and pack.split == BudgetSplitSettings(train_tokens=40_000, validation_tokens=4_000)


def test_documents_in_rows_leave_their_length_to_packing() -> None:
    pretrain = small("pack.document_layout=best_fit").pretrain
    assert pretrain is not None and pretrain.sequence_length is None


def test_what_a_cpu_cannot_compute_becomes_what_it_can() -> None:
    for asked, taken in (("fp8", "fp8_or_bf16"), ("fp8_or_bf16", "fp8_or_bf16"), ("fp16", "auto"), ("bf16", "bf16")):
        pretrain = small(f"pretrain.precision={asked}", "pretrain.device=cuda", "pretrain.compile=on").pretrain
        assert pretrain is not None and (pretrain.precision, pretrain.device, pretrain.compile) == (taken, "auto", "auto")


def test_phases_and_budgets_shrink_and_stay_as_many() -> None:
    phases = "[{until_tokens: 5000, sequence_length: 8}, {until_tokens: 9000, batch_tokens: 100}, {until_tokens: 90000}]"
    overrides = [f"pretrain.phases={phases}", "pretrain.steps=null", "sft.steps=null", "sft.budget={tokens_per_parameter: 20}"]
    overrides += ["dpo.steps=null", "dpo.phases=[{until_tokens: 10_000, batch_tokens: 1024}, {until_tokens: 900_000}]"]
    once = small(*overrides)
    assert once.pretrain is not None and once.sft is not None and once.dpo is not None
    assert [(one.until_tokens, one.sequence_length, one.batch_tokens) for one in once.pretrain.phases] == [
        (256, 8, 64),
        (656, None, 100),
        (4_752, None, 1_024),
    ]
    assert [(one.until_tokens, one.batch_tokens) for one in once.dpo.phases] == [(6 * 1_024, 1_024), (6 * (1_024 + 2_048), 2_048)]
    assert once.sft.budget == BudgetSettings(tokens=12 * 8 * 256)
    assert once.pretrain.steps is once.sft.steps is once.dpo.steps is None
    tight = small("pretrain.steps=null", "pretrain.budget={tokens: 700}").pretrain
    assert tight is not None and tight.budget == BudgetSettings(tokens=700)


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ((8, 16, 32, 64, 128, 256, 512, 768, 1536, 2048), (8, 12, 16, 24, 32, 48, 64, 96, 128, 192)),
        ((1000, 110, 100, 110), (192, 96, 64, 96)),
        ((2048,), (192,)),
        ((8, 9, 10), (8, 8, 8)),
    ],
)
def test_lengths_of_phases_stay_different_and_fit_together(lengths: tuple[int, ...], expected: tuple[int, ...]) -> None:
    phases = ", ".join(f"{{until_tokens: {place}_000_000, sequence_length: {length}}}" for place, length in enumerate(lengths, 1))
    pretrain = small("pretrain.steps=null", "model.max_position_embeddings=2048", f"pretrain.phases=[{phases}]").pretrain
    assert pretrain is not None and tuple(phase.sequence_length for phase in pretrain.phases) == expected
    assert 384 % math.lcm(*expected) == 0


def test_the_difference_is_a_line_for_each_section() -> None:
    lines = difference(load_recipe(QUICKSTART, ["pretrain.steps=30_000", "pretrain.precision=fp8"])[0])
    by_section = {line.partition(": ")[0]: line for line in lines}
    assert list(by_section)[:6] == ["corpus", "tokenizer", "model", "pretrain", "sft", "dpo"]
    assert re.fullmatch(r"and \d+ values of how often a stage looks, and on how many samples", lines[6]) and len(lines) == 7
    assert by_section["corpus"] == (
        "corpus: Python's own documentation for each of python-docs, python-questions, python-pairs, in place of its files and their form"
    )
    assert by_section["tokenizer"] == "tokenizer: vocabulary_size 4,096 -> 1,024"
    assert "steps 30,000 -> 12, batch_rows 16 -> 8, sequence_length 256 -> 128" in by_section["pretrain"]
    assert "precision fp8 -> fp8_or_bf16" in by_section["pretrain"]
    [by_epochs] = [line for line in difference(load_recipe(find_recipe("codellama-25m"), [])[0]) if line.startswith("pretrain")]
    assert "validate_every_steps unset -> 6, validate_every_epochs 0.1 -> unset" in by_epochs, "no other number but another way to count"
    phases = "pretrain.phases=[{until_tokens: 90000, sequence_length: 8}, {until_tokens: 900000, sequence_length: 256}]"
    [told] = [line for line in difference(load_recipe(QUICKSTART, ["pretrain.steps=null", phases])[0]) if line.startswith("pretrain")]
    assert "phases until_tokens 90,000..900,000 -> 384..6,528, phases sequence_length 8..256 -> 8..192" in told
    assert "phases batch_tokens unset -> " in told


# ---- every recipe, run


@pytest.fixture
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever connects to another machine fails."""
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        assert self.family == socket.AF_UNIX or address[0] in {"127.0.0.1", "::1"}, f"a connection to {address}"
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)


def _alike() -> list[list[Path]]:
    """Recipes whose small recipes are equal, so that one run shows them all."""
    alike: dict[str, list[Path]] = {}
    for path in RECIPES:
        alike.setdefault(json.dumps(config.plain(small(path=path)), sort_keys=True), []).append(path)
    return list(alike.values())


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize("paths", _alike(), ids=lambda paths: ",".join(path.stem for path in paths))
def test_every_recipe_walks_all_its_stages(paths: list[Path], fledge: Fledge) -> None:
    """From the command line to the report: an artifact for each stage, and figures that are finite."""
    ended = fledge("run", str(paths[0]), "--smoke", "--name", "small")
    assert ended.exit_code == 0, ended.noted
    assert "--smoke: the same stages, shrunk" in ended.noted
    run = Run(small(path=paths[0]), Path("runs/small"), "")
    for stage in STAGES:
        made = sorted((run.folder / stage).rglob(artifact.MANIFEST)) if (run.folder / stage).exists() else []
        assert bool(made) == has_stage(stage, run), stage
    for stage in filter(lambda stage: has_stage(stage, run), TRAINING_STAGES):
        _require_learned(run, stage)
    if run.recipe.evaluate is not None:
        _require_measured(run)


def _require_learned(run: Run, stage: Any) -> None:
    records = read_metrics(run.folder / stage)
    steps = artifact.open_artifact(run.folder / stage).stats["steps"]
    phases = getattr(run.recipe, stage).phases
    assert records[-1]["step"] == steps >= max(1, len(phases))
    figures = [value for record in records for value in record.values() if isinstance(value, float)]
    assert figures and all(map(math.isfinite, figures))
    assert any("validation/loss" in record for record in records)
    if len(phases) > 1:
        assert {record["train/phase"] for record in records if "train/phase" in record} == set(range(1, len(phases) + 1))


def _require_measured(run: Run) -> None:
    assert run.recipe.evaluate is not None
    results = json.loads((run.folder / "evaluate" / "results.json").read_text(encoding="utf-8"))
    trained = [stage for stage in TRAINING_STAGES if has_stage(stage, run)]
    assert [one["name"] for one in results["evaluations"]] == trained
    for evaluation in results["evaluations"]:
        assert all(math.isfinite(score["value"]) for score in evaluation["scores"])
        names = {score["name"] for score in evaluation["scores"]}
        for name in run.recipe.evaluate.benchmarks:
            assert any(one.startswith(name) for one in names), (name, names)
