"""How fast a GPU trains the model of each recipe: `python benchmarks/recipes_gpu.py [--recipes NAME ...] [--write] [--seconds 150]`.

Fledge's Trainer on random tokens, compiled, in rows as long as those of the recipe's last phase, 16,384 tokens of them at once, in bf16;
and in FP8 where the recipe asks for it; documents isolated where the recipe isolates them. Whole steps with fused AdamW. All compile
together and then take their turns; medians.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from processes import ROOT
from training_turns import Contestant, take_turns, tokens_per_second

from fledge.model.cost import parameter_count
from fledge.model.settings import ModelConfig, padded_vocabulary_size
from fledge.recipe import Recipe, find_recipe, load_recipe

RECIPES = ("llama-100m", "superbpe-197m", "codellama-25m", "tiny-23m", "small", "base", "gpt-125m", "gpt-350m", "h100-1h")
STEP_TOKENS = 16_384


def contestants(name: str) -> list[Contestant]:
    """The model of a recipe in bf16, and in FP8 if it is asked for."""
    recipe, _ = load_recipe(find_recipe(name), [])
    training, tokenizer = recipe.pretrain, recipe.tokenizer
    assert training is not None and tokenizer is not None, f"{name} trains no model"
    tokens = _last_length(recipe)
    given = {
        "engine": "fledge",
        "device": "cuda",
        "compile": True,
        "model": dataclasses.asdict(recipe.model),
        "vocabulary": padded_vocabulary_size(tokenizer.vocabulary_size),
        "tokens": tokens,
        "rows": max(1, STEP_TOKENS // tokens),
        "documents": training.isolate_documents,
    }
    precisions = ("bf16", "fp8") if "fp8" in training.precision else ("bf16",)
    environment = {"TORCHINDUCTOR_COMPILE_THREADS": "2"}
    return [Contestant(f"{name} {one}", {**given, "precision": one}, environment=environment) for one in precisions]


def _last_length(recipe: Recipe) -> int:
    training = recipe.pretrain
    assert training is not None
    lengths = [phase.sequence_length for phase in training.phases if phase.sequence_length]
    return (lengths or [training.sequence_length or (recipe.pack.sequence_length if recipe.pack else 1024)])[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--write", action="store_true", help="keep the figures in benchmarks/results/recipes_gpu-CARD.json")
    parser.add_argument("--seconds", type=float, default=150, help="time for all to compile")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--output", type=Path, default=None)
    arguments = parser.parse_args()
    card = torch.cuda.get_device_name()
    everyone = [one for name in arguments.recipes for one in contestants(name)]
    with tempfile.TemporaryDirectory() as logs:
        take_turns(everyone, arguments.rounds, arguments.steps, arguments.seconds, Path(logs))
    result = {
        "date": datetime.date.today().isoformat(),
        "card": card,
        "torch": torch.__version__,
        "recipes": {one.name: _figures(one) for one in everyone},
    }
    print(json.dumps(result, indent=2))
    target = arguments.output or (ROOT / "benchmarks" / "results" / f"recipes_gpu-{card.split()[1]}.json" if arguments.write else None)
    if target is not None:
        target.write_text(json.dumps(result, indent=2) + "\n")


def _figures(one: Contestant) -> dict[str, Any]:
    if one.problem is not None or not one.turns:
        return {"problem": one.problem or "no turn"}
    given = one.given
    recipe, _ = load_recipe(find_recipe(one.name.split()[0]), [])
    return {
        "parameters": parameter_count(ModelConfig(recipe.model, given["vocabulary"])),
        "row_tokens": given["tokens"],
        "tokens_per_second": round(tokens_per_second(one)),
        "first_steps_seconds": round(one.told["first_steps_seconds"], 1),
        "peak_gigabytes": round(one.turns[-1]["peak_gigabytes"], 1),
    }


if __name__ == "__main__":
    main()
