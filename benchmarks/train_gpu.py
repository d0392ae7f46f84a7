"""Training speed on one GPU: `python benchmarks/train_gpu.py [--write] [--seconds 240]`.

Models of 23M, 96M, 110M and 197M parameters on rows of 1,024 tokens, whole steps: Fledge's Trainer and transformers' Trainer, both
compiled, in bf16 with fp32 masters and fused AdamW, with the same micro-batch; further lines show what compiling, isolated documents and
FP8 do. All start together, compile together and then take their turns, five rounds of some steps; medians. MFU counts causal attention's
half square, against the dense bf16 peak of the card, where that is known.
"""

from __future__ import annotations

import argparse
import datetime
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from processes import ROOT
from training_turns import Contestant, take_turns, tokens_per_second

from fledge.model.cost import flops_per_token, parameter_count
from fledge.model.settings import ModelConfig, ModelSettings

TOKENS, VOCABULARY = 1024, 32_768
MODELS: dict[str, dict[str, Any]] = {
    "23M": {"width": 256, "layers": 6, "heads": 4, "key_value_heads": 4, "feed_forward": 1024, "tied": False, "rows": 32},
    "96M": {"width": 768, "layers": 10, "heads": 12, "key_value_heads": 12, "feed_forward": 2048, "tied": True, "rows": 32},
    "110M": {"width": 768, "layers": 12, "heads": 12, "key_value_heads": 12, "feed_forward": 2048, "tied": True, "rows": 32},
    "197M": {"width": 1024, "layers": 16, "heads": 16, "key_value_heads": 4, "feed_forward": 2464, "tied": True, "rows": 32},
}
BF16_PEAK_TFLOPS = {"H100": 989, "H200": 989, "A100": 312, "4090": 165}


def contestants() -> list[Contestant]:
    """Everyone, the most important first: what is not ready in time is left out."""

    def one(engine: str, model: str, label: str, **more: Any) -> Contestant:
        given = {**MODELS[model], "tokens": TOKENS, "device": "cuda", "engine": engine, "precision": "bf16", "compile": True, **more}
        return Contestant(f"{model} {label}", given, environment={"TORCHINDUCTOR_COMPILE_THREADS": "2", "HF_HUB_OFFLINE": "1"})

    lines = [
        one(engine, model, label)
        for model in ("110M", "96M", "197M", "23M")
        for engine, label in (("fledge", "fledge"), ("hf_trainer", "HF Trainer"))
    ]
    lines.append(one("fledge", "110M", "fledge uncompiled", compile=False))
    lines.append(one("fledge", "110M", "fledge, documents", documents=True))
    lines += [one("fledge", model, "fledge fp8", precision="fp8") for model in ("110M", "197M")]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="keep the figures in benchmarks/results/train_gpu-CARD.json")
    parser.add_argument("--seconds", type=float, default=240, help="time for all to compile")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--output", type=Path, default=None)
    arguments = parser.parse_args()
    card = torch.cuda.get_device_name()
    everyone = contestants()
    with tempfile.TemporaryDirectory() as logs:
        take_turns(everyone, arguments.rounds, arguments.steps, arguments.seconds, Path(logs))
    peak = next((tera * 1e12 for name, tera in BF16_PEAK_TFLOPS.items() if name in card), None)
    result = {
        "date": datetime.date.today().isoformat(),
        "card": card,
        "torch": torch.__version__,
        "contestants": {one.name: _figures(one, peak) for one in everyone},
    }
    result["ratios"] = _ratios(result["contestants"])
    print(json.dumps(result, indent=2))
    target = arguments.output or (ROOT / "benchmarks" / "results" / f"train_gpu-{card.split()[1]}.json" if arguments.write else None)
    if target is not None:
        target.write_text(json.dumps(result, indent=2) + "\n")


def _figures(one: Contestant, peak: float | None) -> dict[str, Any]:
    if one.problem is not None or not one.turns:
        return {"problem": one.problem or "no turn"}
    given = one.given
    settings = ModelSettings(
        hidden_size=given["width"],
        num_hidden_layers=given["layers"],
        num_attention_heads=given["heads"],
        num_key_value_heads=given["key_value_heads"],
        intermediate_size=given["feed_forward"],
        tie_word_embeddings=given["tied"],
    )
    config = ModelConfig(settings, VOCABULARY)
    speed = tokens_per_second(one)
    figures = {
        "parameters": parameter_count(config),
        "micro_batch_rows": given["rows"],
        "tokens_per_second": round(speed),
        "first_steps_seconds": round(one.told["first_steps_seconds"], 1),
        "peak_gigabytes": round(one.turns[-1]["peak_gigabytes"], 1),
    }
    if peak is not None:
        figures["mfu"] = round(speed * flops_per_token(config, TOKENS) / peak, 3)
    return figures


def _ratios(figures: dict[str, dict[str, Any]]) -> dict[str, float]:
    speeds = {name: one["tokens_per_second"] for name, one in figures.items() if "tokens_per_second" in one}
    pairs = [(f"{model} fledge", f"{model} HF Trainer") for model in MODELS]
    pairs += [("110M fledge", "110M fledge uncompiled"), ("110M fledge, documents", "110M fledge")]
    pairs += [(f"{model} fledge fp8", f"{model} fledge") for model in MODELS]
    return {f"{one} / {other}": round(speeds[one] / speeds[other], 3) for one, other in pairs if one in speeds and other in speeds}


if __name__ == "__main__":
    main()
