"""Training speed on one core against what people use: `python benchmarks/train_cpu.py [--write] [--peers FOLDER] [--nanogpt FOLDER]`.

The 23M model (6 layers of 256, 4 heads, vocabulary 32,768, untied) at 2 x 1,024 tokens, whole steps, without document masks unless a line
says so. All contestants take one step each in turn, seven times, on one core and one thread; what is compared is the processor time of the
median step. Peers live in an environment of their own, which is made if it is missing: transformers, accelerate and litgpt; nanoGPT is a
checkout. Where the processor has no fast bf16, only the fp32 lines are run: bf16 would be emulated, and its ratios mean nothing.

The bound is what the matrix products of a step alone would take, at the rate measured on this core in the same arithmetic.
"""

from __future__ import annotations

import argparse
import datetime
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from processes import ROOT, machine, made_environment
from training_turns import Contestant, take_turns, tokens_per_second

from fledge.core.process import keep_freed_memory
from fledge.model.cost import flops_per_token
from fledge.model.precision import bf16_pays, measure_product, use_fast_fp32
from fledge.model.settings import ModelConfig, ModelSettings

PEERS = ("torch==2.13.0", "transformers", "accelerate", "litgpt")
MODEL = {"width": 256, "layers": 6, "heads": 4, "key_value_heads": 4, "feed_forward": 1024, "tied": False}
ROWS, TOKENS, VOCABULARY = 2, 1024, 32_768
MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(16 << 30), "MALLOC_TOP_PAD_": str(64 << 20)}
"""What `keep_freed_memory` sets, for peers that are given it."""


def contestants(python: str, nanogpt: Path | None, has_bf16: bool, core: int) -> list[Contestant]:
    """Everyone; `python` is that of the peers."""
    common = {**MODEL, "rows": ROWS, "tokens": TOKENS, "device": "cpu", "threads": 1}

    def one(name: str, engine: str, precision: str, **more: Any) -> Contestant:
        environment = dict(MALLOC) if more.pop("malloc", False) else {}
        peer = engine != "fledge"
        if engine == "nanogpt":
            environment["PYTHONPATH"] = str(nanogpt)
        given = {**common, "engine": engine, "precision": precision, "keep_memory": not peer, **more}
        return Contestant(name, given, **({"python": python} if peer else {}), environment=environment, core=core)

    lines = [
        one("fledge fp32", "fledge", "fp32"),
        one("fledge fp32, documents", "fledge", "fp32", documents=True),
        one("fledge fp32 compiled", "fledge", "fp32", compile=True),
        one("HF Trainer fp32", "hf_trainer", "fp32"),
        one("HF loop fp32 + malloc", "hf_loop", "fp32", malloc=True),
        one("litgpt fp32 + malloc", "litgpt", "fp32", malloc=True),
    ]
    if has_bf16:
        lines += [
            one("fledge bf16", "fledge", "bf16"),
            one("fledge bf16, documents", "fledge", "bf16", documents=True),
            one("fledge bf16 compiled", "fledge", "bf16", compile=True),
            one("HF Trainer bf16", "hf_trainer", "bf16"),
            one("HF loop bf16 + malloc", "hf_loop", "bf16", malloc=True),
            one("HF loop bf16 compiled + malloc", "hf_loop", "bf16", malloc=True, compile=True),
            one("litgpt bf16 + malloc", "litgpt", "bf16", malloc=True),
        ]
    if nanogpt is not None:
        lines += [one(f"nanoGPT {kind} + malloc", "nanogpt", kind, malloc=True) for kind in ("fp32", *(["bf16"] if has_bf16 else []))]
    return lines


def bound(dtype: torch.dtype) -> float:
    """Tokens per second if nothing but the products of a step were computed, at the measured rate of one thread."""
    rate = 2 * 512 * 256 * 768 / measure_product(dtype).seconds
    settings = ModelSettings(
        hidden_size=256, num_hidden_layers=6, num_attention_heads=4, intermediate_size=1024, max_position_embeddings=TOKENS
    )
    return rate / flops_per_token(ModelConfig(settings, VOCABULARY), TOKENS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="keep the figures in benchmarks/results/train_cpu.json")
    parser.add_argument("--peers", type=Path, default=Path(tempfile.gettempdir()) / "fledge-training-peers")
    parser.add_argument("--nanogpt", type=Path, default=None, help="a checkout of nanoGPT")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--core", type=int, default=0)
    arguments = parser.parse_args()
    before = machine()
    python = str(made_environment(arguments.peers, PEERS))
    keep_freed_memory()
    use_fast_fp32("cpu")
    has_bf16 = bf16_pays(measure_product(torch.float32), measure_product(torch.bfloat16))
    bounds = {"fp32": bound(torch.float32), **({"bf16": bound(torch.bfloat16)} if has_bf16 else {})}
    everyone = contestants(python, arguments.nanogpt, has_bf16, arguments.core)
    with tempfile.TemporaryDirectory() as logs:
        take_turns(everyone, arguments.rounds, 1, 900, Path(logs))
    lines = {}
    for one in everyone:
        if one.turns and one.problem is None:
            speed = tokens_per_second(one, "cpu_seconds")
            precision = one.given["precision"]
            lines[one.name] = {"tokens_per_second": round(speed), "share_of_bound": round(speed / bounds[precision], 3)}
        else:
            lines[one.name] = {"problem": one.problem}
    result = {
        "date": datetime.date.today().isoformat(),
        "machine": {**before, "torch": torch.__version__},
        "bound_tokens_per_second": {name: round(value) for name, value in bounds.items()},
        "contestants": lines,
        "ratios": ratios({name: line["tokens_per_second"] for name, line in lines.items() if "tokens_per_second" in line}),
    }
    print(json.dumps(result, indent=2))
    if arguments.write:
        (ROOT / "benchmarks" / "results" / "train_cpu.json").write_text(json.dumps(result, indent=2) + "\n")


def ratios(speeds: dict[str, int]) -> dict[str, float]:
    """Ours over theirs, and with isolated documents over without."""
    found = {}
    for precision in ("fp32", "bf16"):
        ours = speeds.get(f"fledge {precision}")
        if ours is None:
            continue
        given_malloc = [speed for name, speed in speeds.items() if f" {precision}" in name and name.endswith("+ malloc")]
        pairs = {
            f"{precision}: ours over HF Trainer": (ours, speeds.get(f"HF Trainer {precision}")),
            f"{precision}: ours compiled over HF Trainer": (
                speeds.get(f"fledge {precision} compiled"),
                speeds.get(f"HF Trainer {precision}"),
            ),
            f"{precision}: ours over the best peer with malloc settings": (ours, max(given_malloc, default=None)),
            f"{precision}: ours compiled over the best peer with malloc settings": (
                speeds.get(f"fledge {precision} compiled"),
                max(given_malloc, default=None),
            ),
            f"{precision}: documents isolated over not": (speeds.get(f"fledge {precision}, documents"), ours),
        }
        found |= {name: round(one / other, 3) for name, (one, other) in pairs.items() if one and other}
    return found


if __name__ == "__main__":
    main()
