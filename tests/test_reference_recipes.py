"""The recipes are the systems that they say they are: every figure that is known of those stands in the resolved configuration.

`python tests/test_reference_recipes.py` writes the plans in docs/recipes anew.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import re
from pathlib import Path
from typing import Any

import pytest

from fledge.model.cost import parameter_count
from fledge.model.settings import ModelConfig, padded_vocabulary_size
from fledge.recipe import Recipe, load_recipe, packaged_recipes
from fledge.stages.run import Run
from fledge.tokens.importing import PRESETS
from fledge.training.phases import make_plan
from fledge.training.plan import Source
from fledge.training.settings import BudgetSettings, TrainingSettings
from fledge.verbs.plan import plan

PAGES = Path(__file__).parent.parent / "docs" / "recipes"
BLOCK = re.compile(r"(<!-- fledge plan (?P<name>[\w-]+) --elsewhere -->\n```\n)(?P<plan>.*?)(```\n)", re.DOTALL)
MILLION, BILLION = 10**6, 10**9

GPT = {
    "tokenizer.kind": "byte_bpe",
    "model.normalization": "layer",
    "model.initializer_range": 0.02,
    "model.scale_residual_initialization": True,
    "pretrain.optimizer.kind": "adamw",
    "pretrain.schedule.kind": "cosine",
    "pretrain.budget": BudgetSettings(tokens_per_parameter=20),
    "corpus.sources.pile.preset": "pile-uncopyrighted",
    "corpus.sources.wikipedia.preset": "wikipedia",
    "corpus.sources.dolly.content": "conversations",
    "sft.lora": None,
}
STRICT = {
    "tokenizer.kind": "unigram",
    "tokenizer.vocabulary_size": 32_768,
    "tokenizer.maximum_bytes": 4 * 100 * MILLION,
    "tokenizer.sources": {"c4": 28, "gutenberg": 24, "fineweb-edu": 24, "wikipedia": 24},
    "tokenizer.template": "chatml",
    "corpus.validation_fraction": 0.05,
    "corpus.shard_documents": 10_000,
    "corpus.deduplicate.kind": "near",
    "corpus.quality.preset": "books",
    "corpus.sources.c4.preset": "c4",
    "corpus.sources.gutenberg.preset": "gutenberg",
    "corpus.sources.fineweb-edu.preset": "fineweb-edu-10bt",
    "corpus.sources.wikipedia.preset": "wikipedia",
    "corpus.sources.alpaca.preset": "alpaca",
    "corpus.sources.oasst1.preset": "oasst1",
    "corpus.sources.orca.preset": "orca-dpo-pairs",
    "pack.sequence_length": 1024,
    "pack.shuffle": True,
    "pretrain.sequence_length": 1024,
    "pretrain.phases.0.mixture": {"c4": 0.67, "gutenberg": 0.33, "fineweb-edu": 0, "wikipedia": 0},
    "pretrain.phases.1.mixture": {"c4": 0, "gutenberg": 0, "fineweb-edu": 0.5, "wikipedia": 0.5},
    "pretrain.schedule.warmup_fraction": 0.1,
    "pretrain.save_every_steps": 3_000,
    "sft.steps": 2_000,
    "sft.mixture": {"alpaca": 0.7, "oasst1": 0.3},
    "sft.lora.rank": 32,
    "sft.lora.alpha": 64,
    "sft.learning_rate": 8e-5,
    "dpo.objective.beta": 0.1,
    "dpo.learning_rate": 5e-7,
    "dpo.lora.rank": 32,
    "dpo.lora.alpha": 64,
    "evaluate.benchmarks": {"wikitext": "data", "boolq": "data"},
}
SUPERBPE = {
    "model.num_hidden_layers": 28,
    "model.hidden_size": 512,
    "model.num_attention_heads": 8,
    "model.num_key_value_heads": 2,
    "model.head_size": 64,
    "model.intermediate_size": 1792,
    "model.tie_word_embeddings": True,
    "model.activation": "silu",
    "pretrain.precision": "fp8_or_bf16",
    "pretrain.keep_every_steps": 10_000,
    "pretrain.metrics.tensorboard": True,
    "pretrain.metrics.wandb": "online",
}
LLAMA = {
    "model.normalization": "rms",
    "model.activation": "silu",
    "pretrain.budget": BudgetSettings(tokens=BILLION),
    "pretrain.precision": "auto",
    "pretrain.schedule.kind": "cosine",
    "pretrain.schedule.warmup_fraction": 0.1,
    "pretrain.save_every_steps": 200,
}
KNOWN: dict[str, dict[str, Any]] = {
    "llama-100m": {
        **LLAMA,
        "tokenizer.kind": "sentencepiece_bpe",
        "tokenizer.vocabulary_size": 32_000,
        "corpus.sources.c4.preset": "c4",
        "corpus.sources.wikipedia.preset": "wikipedia",
        "corpus.quality.preset": "web",
        "pack.split.train_tokens": BILLION,
        "pack.split.validation_tokens": 10 * MILLION,
    },
    "llama-100m-shards": {
        **LLAMA,
        "corpus": None,
        "pack.import_bin": "hub:ark296/gpt-training-data",
        "tokenizer.kind": "import",
        "tokenizer.path": "hub:datasets/ark296/gpt-training-data/tokenizer/spm.model",
    },
    "superbpe-197m": {
        **SUPERBPE,
        "tokenizer.path": "hub:UW/OLMo2-8B-SuperBPE-t80k",
        "tokenizer.vocabulary_size": 200_000,
        "corpus.sources.fineweb-edu.preset": "fineweb-edu-10bt",
        "corpus.sources.fineweb-edu.maximum_bytes": 29_500 * MILLION,  # 4.1B tokens of 7.2 bytes
    },
    "superbpe-197m-t180k": {**SUPERBPE, "tokenizer.path": "hub:UW/OLMo2-8B-SuperBPE-t180k", "tokenizer.vocabulary_size": 200_000},
    "superbpe-197m-parquet": {**SUPERBPE, "corpus.sources.fineweb-edu.kind": "parquet", "corpus.sources.fineweb-edu.expect.files": 300},
    "codellama-25m": {
        "tokenizer.preset": "codellama",
        "tokenizer.vocabulary_size": 32_016,
        "tokenizer.template": "plain",
        "corpus.download_workers": 8,
        "corpus.shard_documents": 100_000,
        "corpus.validation_fraction": 0.1,
        "corpus.seed": 42,
        "corpus.sources.fineweb.preset": "fineweb-100bt",
        "corpus.sources.fineweb.maximum_documents": 700_000,
        "corpus.sources.lima.preset": "lima",
        "pack.split.validation_fraction": 0.1,
        "pack.seed": 42,
        "pack.sequence_length": 2048,
        "pack.document_layout": "continuous",
        "pack.long_turns": "drop",
        "model.activation": "silu",
        "model.normalization": "rms",
        "model.tie_word_embeddings": True,
        "model.rope_theta": 10_000,
        "model.attention_dropout": 0,
        "pretrain.sequence_length": 2048,
        "pretrain.seed": 42,
        "pretrain.tokens_on_device": "on",
        "pretrain.validate_every_epochs": 0.1,
        "pretrain.schedule.kind": "cosine",
        "pretrain.metrics.tensorboard": True,
        "sft.learning_rate": 5e-5,
        "sft.batch_rows": 8,
        "sft.keep_every_epochs": 1,
        "sft.lora": None,
        "evaluate.benchmarks": {"lambada": "data"},
        "evaluate.benchmark_samples": "standard",
        "generation.temperature": 0.8,
        "generation.top_k": 50,
        "generation.top_p": 0.95,
        "generation.maximum_new_tokens": 200,
    },
    "tiny-23m": {
        **STRICT,
        "model.num_hidden_layers": 6,
        "model.hidden_size": 256,
        "model.num_attention_heads": 4,
        "model.intermediate_size": 1024,
        **{f"corpus.sources.{name}.maximum_tokens_estimate": 150 * MILLION for name in ("c4", "gutenberg", "fineweb-edu", "wikipedia")},
    },
    "small": {
        **STRICT,
        "model.num_hidden_layers": 12,
        "model.hidden_size": 512,
        "model.num_attention_heads": 8,
        "model.intermediate_size": 2048,
    },
    "base": {
        **STRICT,
        "model.num_hidden_layers": 24,
        "model.hidden_size": 768,
        "model.num_attention_heads": 12,
        "model.intermediate_size": 3072,
    },
    "gpt-125m": {**GPT, "pretrain.sequence_length": 1024, "pretrain.activation_checkpointing": "none"},
    "gpt-350m": {**GPT, "pretrain.sequence_length": 2048},
    "gpt-760m": {**GPT, "pretrain.activation_checkpointing": "selective"},
    "gpt-1b": {**GPT, "pretrain.activation_checkpointing": "selective", "tokenizer.vocabulary_size": 65_536},
}
PARAMETERS = {
    "llama-100m": 95_371_008,
    "llama-100m-shards": 95_371_008,
    "superbpe-197m": 197_882_368,
    "codellama-25m": 24_729_216,
    "tiny-23m": 23_072_000,
    "small": 67_121_664,
    "base": 251_695_872,
    "gpt-125m": 123_606_528,
    "gpt-350m": 369_330_176,
    "gpt-760m": 756_894_720,
    "gpt-1b": 1_004_703_744,
}
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


def test_codellama_is_the_known_tokenizer_and_chooses_activations() -> None:
    preset = PRESETS["codellama"]
    assert (preset.repository, preset.vocabulary_size) == ("codellama/CodeLlama-7b-hf", 32_016)
    assert preset.specials == {"<unk>": 0, "<s>": 1, "</s>": 2}
    for activation in ("silu", "gelu", "relu"):
        assert resolved("codellama-25m", f"model.activation={activation}").model.activation == activation
    assert resolved("codellama-25m", "model.normalization=layer").model.normalization == "layer"
    assert resolved("codellama-25m").model.key_value_heads == resolved("codellama-25m").model.num_attention_heads


def test_lima_at_eight_rows_is_about_sixty_steps_an_epoch() -> None:
    corpus, sft = resolved("codellama-25m").corpus, resolved("codellama-25m").sft
    assert corpus is not None and sft is not None
    assert 542 * (1 - corpus.validation_fraction) / sft.batch_rows == pytest.approx(60, abs=2)


def test_the_sizes_of_gpt_inherit_and_grow() -> None:
    sizes = [PARAMETERS[name] for name in ("gpt-125m", "gpt-350m", "gpt-760m", "gpt-1b")]
    assert [pytest.approx(size, rel=0.06) for size in (125 * MILLION, 350 * MILLION, 760 * MILLION, BILLION)] == sizes
    own = "corpus.sources.3={kind: jsonl, name: own, path: own.jsonl, content: conversations}"
    tuned = resolved("gpt-125m", own)
    assert tuned.corpus is not None
    assert at(tuned.corpus, "sources.own.path") == "own.jsonl"


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
    for word in ("## Make it", "## Measured", "known", "predicted"):
        assert word.lower() in text.lower(), word


def test_every_recipe_has_a_page_and_a_line_in_the_table() -> None:
    shown = {found["name"] for page in pages() for found in BLOCK.finditer(page.read_text(encoding="utf-8"))}
    assert shown == set(packaged_recipes())
    table = (PAGES / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in table for name in packaged_recipes())


@pytest.mark.parametrize("name", sorted(packaged_recipes()))
def test_a_recipe_says_what_it_is_how_to_run_it_and_what_it_needs(name: str) -> None:
    first, second, *_ = packaged_recipes()[name].read_text(encoding="utf-8").splitlines()
    assert first.startswith("# ") and second.startswith("# ")


if __name__ == "__main__":
    for page in pages():
        page.write_text(renewed(page.read_text(encoding="utf-8")), encoding="utf-8")
