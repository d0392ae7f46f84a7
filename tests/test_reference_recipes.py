"""The recipes are the systems that they say they are: every figure that is known of those stands in the resolved configuration.

`python tests/test_reference_recipes.py` writes the plans in docs/recipes anew.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from fledge.evaluation.benchmarks.run import SAMPLES
from fledge.model.cost import parameter_count
from fledge.model.llama import Llama
from fledge.model.settings import ModelConfig, padded_vocabulary_size
from fledge.recipe import Recipe, load_recipe, packaged_recipes
from fledge.stages.run import Run
from fledge.tokens.importing import PRESETS
from fledge.training.phases import make_plan
from fledge.training.plan import Source
from fledge.training.settings import TrainingSettings
from fledge.verbs.plan import plan
from fledge.verbs.planning import Work, plan_work
from tests.known_figures import KNOWN, MILLION, ON_PAGES, PARAMETERS

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "docs" / "recipes"
BLOCK = re.compile(r"(<!-- fledge plan (?P<name>[\w-]+) --elsewhere -->\n```\n)(?P<plan>.*?)(```\n)", re.DOTALL)
STRICT_NAMES = ("tiny-23m", "small", "base")
NAMED = {"quickstart", "shakespeare", "own-text", "cpu-10min", "macbook-30min", "t4-free", "4090-1h", "h100-1h"}


def resolved(name: str, *overrides: str) -> Recipe:
    return load_recipe(packaged_recipes()[name], list(overrides))[0]


def at(value: Any, dotted: str) -> Any:
    """What stands at a dotted name; sources by theirs."""
    for step in dotted.split("."):
        if isinstance(value, tuple):
            value = value[int(step)] if step.isdecimal() else next(item for item in value if item.name == step)
        else:
            value = getattr(value, step)
    return value


def parameters_of(recipe: Recipe) -> int:
    assert recipe.tokenizer is not None
    preset = recipe.tokenizer.preset
    entries = recipe.tokenizer.vocabulary_size if preset is None else PRESETS[preset].vocabulary_size
    return parameter_count(ModelConfig(recipe.model, padded_vocabulary_size(entries)))


def steps_at_ends(training: TrainingSettings) -> list[int]:
    """The steps with which the phases end."""
    names = dict.fromkeys(name for phase in training.phases for name in phase.mixture or {"all": 1})
    made = make_plan([Source(name, 10**12, "", None) for name in names], training, 1)
    return list(itertools.accumulate(phase.steps for phase in made.phases))


def test_every_recipe_is_known_here() -> None:
    assert set(packaged_recipes()) == set(KNOWN) | NAMED


@pytest.mark.parametrize("name", KNOWN)
def test_the_known_figures_stand_in_the_configuration(name: str) -> None:
    recipe = resolved(name)
    differing = {dotted: (at(recipe, dotted), known) for dotted, known in KNOWN[name].items() if at(recipe, dotted) != known}
    assert not differing


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_parameters_are_those_that_the_pages_say(name: str) -> None:
    assert parameters_of(resolved(name)) == PARAMETERS[name]


def test_the_shapes_tied_and_untied() -> None:
    counts = {
        name: [parameters_of(resolved(name, f"model.tie_word_embeddings={tied}")) for tied in ("true", "false")] for name in STRICT_NAMES
    }
    assert [round(count / MILLION, 1) for count in counts["tiny-23m"]] == [14.7, 23.1]
    assert [round(count / MILLION, 1) for count in counts["small"]] == [67.1, 83.9]
    assert [round(count / MILLION, 1) for count in counts["base"]] == [251.7, 276.9]


@pytest.mark.parametrize("name", STRICT_NAMES)
def test_thirty_thousand_steps_are_twenty_tokens_for_each_parameter(name: str) -> None:
    recipe = resolved(name)
    assert recipe.pretrain is not None and recipe.pretrain.save_every_steps is not None
    assert steps_at_ends(recipe.pretrain) == [15_000, 30_000]
    assert recipe.pretrain.phases[-1].until_tokens / parameters_of(recipe) == pytest.approx(20, rel=0.01)
    assert 0.1 <= recipe.pretrain.save_every_steps / 30_000 <= 0.15
    assert recipe.model.head_size == 64
    assert recipe.model.intermediate_size == 4 * recipe.model.hidden_size


def test_the_corpus_of_tiny_has_600_million_tokens() -> None:
    corpus = resolved("tiny-23m").corpus
    assert corpus is not None
    assert sum(source.maximum_tokens_estimate or 0 for source in corpus.sources) == 600 * MILLION


def test_the_curriculum_has_ten_lengths_and_three_epochs() -> None:
    training = resolved("superbpe-197m").pretrain
    assert training is not None
    assert [phase.sequence_length for phase in training.phases] == [8, 16, 32, 64, 128, 256, 512, 768, 1536, 2048]
    assert [phase.batch_tokens for phase in training.phases] == [32_768] * 2 + [65_536] * 2 + [131_072] * 2 + [262_144] * 4
    assert training.phases[-1].until_tokens == 3 * 4_100 * MILLION


def test_the_local_files_of_superbpe_have_their_size() -> None:
    corpus = resolved("superbpe-197m-parquet").corpus
    assert corpus is not None
    size = at(corpus, "sources.fineweb-edu.expect.bytes")
    assert size / (1 << 30) == pytest.approx(10.87, abs=0.02)
    assert size / (1 << 30) < 10.87


def test_codellama_is_the_known_tokenizer() -> None:
    preset = PRESETS["codellama"]
    assert (preset.repository, preset.vocabulary_size) == ("codellama/CodeLlama-7b-hf", 32_016)
    assert preset.specials == {"<unk>": 0, "<s>": 1, "</s>": 2}
    assert resolved("codellama-25m").model.key_value_heads == resolved("codellama-25m").model.num_attention_heads


def test_codellama_computes_by_the_activation_and_the_normalization_that_are_chosen() -> None:
    """SwiGLU, GeGLU, ReGLU; RMSNorm, LayerNorm: six models that differ in nothing else, from the same seed."""
    small = ("model.hidden_size=64", "model.num_hidden_layers=1", "model.num_attention_heads=2", "model.intermediate_size=96")
    tokens = torch.arange(24).reshape(1, 24)
    found = []
    for activation, normalization in itertools.product(("silu", "gelu", "relu"), ("rms", "layer")):
        chosen = resolved("codellama-25m", f"model.activation={activation}", f"model.normalization={normalization}", *small)
        with torch.no_grad():
            found.append(Llama(ModelConfig(chosen.model, 128), 0).eval()(tokens))
    assert all(logits.isfinite().all() for logits in found)
    assert not any(torch.allclose(one, other, atol=1e-4) for one, other in itertools.combinations(found, 2))


def test_lima_is_read_about_three_times() -> None:
    """Rows are packed: 542 conversations of about 600 tokens, less what is held out, fill rows of 2,048 to about 95 %."""
    recipe = resolved("codellama-25m")
    assert recipe.corpus is not None and recipe.sft is not None and recipe.pack is not None and recipe.sft.steps is not None
    rows = 542 * (1 - recipe.corpus.validation_fraction) * 600 / (0.95 * recipe.pack.sequence_length)
    assert recipe.sft.steps * recipe.sft.batch_rows / rows == pytest.approx(3, abs=0.25)


def test_the_sizes_of_lambada() -> None:
    assert SAMPLES == {"quick": 50, "standard": 100, "comprehensive": 200}


GPT_NAMES = ("gpt-125m", "gpt-350m", "gpt-760m", "gpt-1b")


def test_the_sizes_of_gpt_grow() -> None:
    sizes = [parameters_of(resolved(name)) for name in GPT_NAMES]
    assert sizes == [pytest.approx(millions * MILLION, rel=0.06) for millions in (125, 350, 760, 1_000)]


@pytest.mark.parametrize("name", GPT_NAMES)
def test_the_sizes_of_gpt_inherit_their_sources_and_read_more_than_they_train_on(name: str) -> None:
    first, recipe = resolved("gpt-125m").corpus, resolved(name)
    assert first is not None and recipe.corpus is not None
    assert [(one.name, one.kind, one.content) for one in recipe.corpus.sources] == [
        (one.name, one.kind, one.content) for one in first.sources
    ]
    assert (recipe.corpus.quality, recipe.corpus.deduplicate) == (first.quality, first.deduplicate)
    read = sum(one.maximum_tokens_estimate or 0 for one in recipe.corpus.sources)
    assert 1.35 < read / (20 * parameters_of(recipe)) < 1.6


def test_the_last_source_of_gpt_may_be_your_own() -> None:
    own = "corpus.sources.3={kind: jsonl, name: own, path: own.jsonl, content: conversations}"
    tuned = resolved("gpt-125m", own)
    assert tuned.corpus is not None
    assert at(tuned.corpus, "sources.own.path") == "own.jsonl"


@pytest.mark.parametrize("name", ["small", "base"])
def test_no_source_of_the_larger_ones_is_planned_to_be_read_twice(name: str) -> None:
    """Of C4 the rules drop about a third, of the others little."""
    recipe = resolved(name)
    assert recipe.corpus is not None and recipe.pretrain is not None
    ends = [0, *(phase.until_tokens for phase in recipe.pretrain.phases)]
    for phase, begin, end in zip(recipe.pretrain.phases, ends, ends[1:], strict=False):
        for source, share in (phase.mixture or {}).items():
            there = at(recipe.corpus, f"sources.{source}.maximum_tokens_estimate") * (0.66 if source == "c4" else 1)
            assert share * (end - begin) <= there * 1.1, source


# ---- recipes that are named by a machine and a time


def work_of(name: str) -> Work:
    return plan_work(Run(resolved(name), Path("no run"), name))


def measured(result: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / f"{result}.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize(("name", "card", "minutes"), [("t4-free", "T4", 180), ("4090-1h", "RTX 4090", 60), ("h100-1h", "H100", 60)])
def test_a_recipe_is_planned_within_its_time_on_its_card(name: str, card: str, minutes: int) -> None:
    [device] = [found for found in work_of(name).devices if found.device.name == card]
    assert device.batch_rows is not None
    assert device.seconds < 60 * minutes


def test_an_hour_of_an_h100_is_enough_at_the_speed_that_was_measured_there() -> None:
    """Of llama-100m, whose shape is h100-1h's but for its vocabulary of 32,000 in place of 32,768."""
    speed = measured("recipes_gpu-H100")["recipes"]["llama-100m bf16"]["tokens_per_second"]
    assert sum(stage.length.tokens for stage in work_of("h100-1h").stages) / speed < 55 * 60


def test_ten_minutes_of_two_cores_are_enough_at_the_speed_of_the_quickstart() -> None:
    seconds, made = measured("quickstart")["stage_seconds"], {one.stage: one.length for one in work_of("quickstart").stages}
    training = sum(seconds[one.stage] * one.length.tokens / made[one.stage].tokens for one in work_of("cpu-10min").stages)
    assert training + sum(seconds[stage] for stage in seconds if stage not in made) < 10 * 60


def test_half_an_hour_of_a_macbook_is_enough_at_a_third_of_its_peak() -> None:
    """3.6 TFLOP/s in fp32, by Apple: an M2 with 10 GPU cores."""
    flops = sum(one.length.tokens * one.flops_per_token for one in work_of("macbook-30min").stages)
    assert flops / (3.6e12 / 3) < 25 * 60


# ---- pages


def planned(name: str) -> str:
    """What `fledge plan NAME --elsewhere` prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        plan(Run(resolved(name), Path("no run"), name), None, None, as_json=False, elsewhere=True)
    return "\n".join(line.rstrip() for line in printed.getvalue().splitlines()) + "\n"


def pages() -> list[Path]:
    return sorted(page for page in PAGES.glob("*.md") if page.name != "README.md")


def renewed(page: str) -> str:
    return BLOCK.sub(lambda found: f"{found[1]}{planned(found['name'])}{found[4]}", page)


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_a_page_shows_the_plan_of_its_recipe(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert page.stem in [found["name"] for found in BLOCK.finditer(text)]
    assert renewed(text) == text, "python tests/test_reference_recipes.py writes the plans anew"
    assert [heading for heading in ("## Make it", "## Plan", "## Measured") if f"\n{heading}\n" not in text] == []


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_a_page_says_what_loss_to_expect_or_that_none_is_known(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "loss of pretrain to expect" in text or "bits per byte" in text


@pytest.mark.parametrize("name", ON_PAGES)
def test_what_is_known_of_others_stands_on_the_page(name: str) -> None:
    words = " ".join((PAGES / f"{name}.md").read_text(encoding="utf-8").split())
    assert [figure for figure in ON_PAGES[name] if figure not in words] == []


def test_every_recipe_has_a_page_and_a_line_in_the_table() -> None:
    shown = {found["name"] for page in pages() for found in BLOCK.finditer(page.read_text(encoding="utf-8"))}
    assert shown == set(packaged_recipes())
    table = (PAGES / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in table for name in packaged_recipes())


@pytest.mark.parametrize("name", sorted(packaged_recipes()))
def test_a_recipe_says_what_it_is_how_to_run_it_and_what_it_needs(name: str) -> None:
    lines = itertools.takewhile(lambda line: line.startswith("#"), packaged_recipes()[name].read_text(encoding="utf-8").splitlines())
    said = "\n".join(lines)
    assert re.search(rf"\bfledge run (recipes/)?{name}(\.yaml)?( |$)", said, re.MULTILINE)
    assert re.search(r"^# Needs ", said, re.MULTILINE)
    evaluate = resolved(name).evaluate
    if evaluate is not None and evaluate.benchmarks:
        assert f"fledge benchmarks {' '.join(evaluate.benchmarks)} --to data" in said


if __name__ == "__main__":
    for page in pages():
        page.write_text(renewed(page.read_text(encoding="utf-8")), encoding="utf-8")
