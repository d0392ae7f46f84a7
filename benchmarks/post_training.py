"""Fine-tuning and preference training against TRL: `python benchmarks/post_training.py [--write] [--peers FOLDER]`.

Two questions. Do both learn the same? From the same weights, on identical token batches in the same order, in fp32 on one core: 50 steps of
SFT (assistant-only loss) and of DPO in several forms, one conversation or pair per row, so that neither packs; the largest difference of
each figure that both log. How fast are they? SFT on all conversations, each with its own packing, one step each in turn on one core;
what counts are tokens that are no padding, by the processor time of the median step. TRL's packings: bfd, its default, all rows at once
and, as one would on a CPU, row by row with gradient accumulation; and wrapped, which cuts conversations and lets them see each other.

The text is the embedded documentation, the model that of the quickstart, pretrained for a few steps.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from processes import ROOT, machine, made_environment
from training_turns import Contestant, take_turns, tokens_per_second

from fledge.corpus.document import Content
from fledge.tokens.shard_format import TokenSetMeta, record_shards
from fledge.tokens.shard_writer import Segment, ShardWriter
from fledge.tokens.shards import open_token_set
from fledge.training.permutation import shuffled

PEERS = ("torch==2.13.0", "transformers==5.24.0", "trl==1.16.0", "peft==0.21.2", "datasets==5.2.0", "accelerate==1.15.0")
STEPS, EQUAL_BATCH, SPEED_BATCH, ROW_TOKENS = 50, 8, 16, 256
LEARNING_RATES = {"sft": 1e-3, "dpo": 5e-5}
BAR = 1e-3
LOSSES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sigmoid": ({"beta": 0.1}, {"beta": 0.1}),
    "ipo": ({"beta": 0.1, "loss": "ipo", "length_normalized": True}, {"beta": 0.1, "loss_type": ["ipo"]}),
    "length-normalised": ({"beta": 2.0, "length_normalized": True}, {"beta": 2.0, "loss_type": ["sigmoid_norm"]}),
}
"""Ours and theirs; TRL has label smoothing in other losses only."""
SHARED = ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected")


def make_data(folder: Path) -> None:
    """A pretrained model and packed token sets, by Fledge itself."""
    overrides = [
        "pretrain.steps=20",
        "pretrain.precision=fp32",
        "pretrain.validation_rows=8",
        "corpus.sources.2.maximum_documents=1500",
    ]
    command = [sys.executable, "-m", "fledge", "run", "quickstart", *overrides, "--to", "pretrain", "--name", str(folder / "run")]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def unpacked(folder: Path, content: Content, target: Path, texts_per_row: int) -> Path:
    """The first conversations or pairs of a token set, as many as the steps need, one in each row of a new set."""
    packed = open_token_set(folder / "run" / "pack" / content)
    [shard] = packed.shards("train")
    assert shard.supervised is not None
    meta = TokenSetMeta(content, packed.tokenizer_sha256, packed.vocabulary_size, ROW_TOKENS)
    padding = json.loads((model_folder(folder) / "config.json").read_text())["pad_token_id"]
    writer = ShardWriter(target, "train", "texts", meta)
    for first in range(0, STEPS * EQUAL_BATCH * texts_per_row, texts_per_row):
        places = range(first, first + texts_per_row)
        for place in places:
            at = slice(int(shard.starts[place]), int(shard.starts[place]) + int(shard.lengths[place]))
            writer.append(Segment(f"text-{place}", shard.tokens[at], 0, shard.supervised[at], "cut" if texts_per_row == 2 else None))
        writer.pad(padding, ROW_TOKENS - sum(int(shard.lengths[place]) for place in places))
    record_shards(target, replace(meta, shards=(writer.close(),)))
    return target


def model_folder(folder: Path) -> Path:
    """The checkpoint that all start from."""
    return folder / "run" / "pretrain" / "checkpoints" / "step-000020"


def texts(token_set: Path, texts_per_row: int, order: list[int]) -> list[dict[str, Any]]:
    """The rows of a token set in an order, as TRL's columns."""
    [shard] = open_token_set(token_set).shards("train")
    assert shard.supervised is not None
    found = []
    for row in order:
        parts = []
        for place in range(row * texts_per_row, (row + 1) * texts_per_row):
            at = slice(int(shard.starts[place]), int(shard.starts[place]) + int(shard.lengths[place]))
            parts.append((shard.tokens[at].tolist(), shard.supervised[at].astype(int).tolist()))
        if texts_per_row == 1:
            found.append({"input_ids": parts[0][0], "assistant_masks": parts[0][1]})
        else:
            (chosen, mask), (rejected, _) = parts
            prompt = mask.index(1)
            found.append({"prompt_ids": chosen[:prompt], "chosen_ids": chosen[prompt:], "rejected_ids": rejected[prompt:]})
    return found


def order_of_steps(given: dict[str, Any]) -> list[int]:
    """The rows of all steps in Fledge's order."""
    from post_training_fledge import make_trainer

    plan = make_trainer(SimpleNamespace(**given)).plan
    return [row.index for step in range(STEPS) for row in plan.rows(step)]


def run_losses(python: str, engine: str, given: dict[str, Any]) -> list[dict[str, float]]:
    """What an engine measures in each step, in a process of its own."""
    asked = json.dumps({**given, "engine": engine, "threads": 1, "mode": "losses"})
    script = str(Path(__file__).with_name("training_contestants.py"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([python, script, asked], capture_output=True, text=True, env=environment)
    if ran.returncode:
        raise SystemExit(f"{engine} ended with {ran.returncode}:\n{ran.stderr[-4_000:]}")
    measured: list[dict[str, float]] = json.loads(ran.stdout.strip().rpartition("\n")[2])
    return measured


def compare(folder: Path, python: str) -> dict[str, Any]:
    """The largest difference of every shared figure, by stage and loss."""
    found: dict[str, Any] = {}
    sets = {"sft": unpacked(folder, "conversations", folder / "sft", 1), "dpo": unpacked(folder, "preferences", folder / "dpo", 2)}
    for stage, token_set in sets.items():
        common = {"stage": stage, "model": str(model_folder(folder)), "steps": STEPS, "batch": EQUAL_BATCH, "row_tokens": ROW_TOKENS}
        common |= {"learning_rate": LEARNING_RATES[stage], "token_set": str(token_set), "batches": str(folder / f"{stage}.json")}
        common |= {"accumulation": 1, "packing": None, "logging": "steps"}
        order = order_of_steps({**common, "preference": {}})
        Path(common["batches"]).write_text(json.dumps(texts(token_set, 2 if stage == "dpo" else 1, order)))
        for name, (ours, theirs) in (LOSSES if stage == "dpo" else {"": ({}, {})}).items():
            one = run_losses(sys.executable, "fledge_post", {**common, "preference": ours})
            other = run_losses(python, "trl", {**common, "loss": theirs})
            found[f"{stage} {name}".strip()] = differences(one, other)
            print(stage, name, json.dumps(found[f"{stage} {name}".strip()]), flush=True)
    return found


def differences(one: list[dict[str, float]], other: list[dict[str, float]]) -> dict[str, Any]:
    """Of the figures that both have: the largest absolute difference over all steps; and where the loss begins and ends."""
    assert len(one) == len(other) == STEPS
    shared = [name for name in SHARED if name in one[0] and name in other[0]]
    largest = {name: max(abs(left[name] - right[name]) for left, right in zip(one, other, strict=True)) for name in shared}
    ends = {"fledge": [one[0]["loss"], one[-1]["loss"]], "trl": [other[0]["loss"], other[-1]["loss"]]}
    return {"largest_difference": {name: round(value, 7) for name, value in largest.items()}, "loss_first_and_last": ends}


def race(folder: Path, python: str, rounds: int, core: int) -> list[Contestant]:
    """SFT of both on one core, one step each in turn."""
    token_set = folder / "run" / "pack" / "conversations"
    batches = folder / "conversations.json"
    count = len(open_token_set(token_set).shards("train")[0].starts)
    batches.write_text(json.dumps(texts(token_set, 1, shuffled(count, 0))))
    common = {"stage": "sft", "model": str(model_folder(folder)), "batch": SPEED_BATCH, "row_tokens": ROW_TOKENS, "threads": 1}
    common |= {"steps": 1_000_000, "learning_rate": 1e-4, "device": "cpu", "mode": "turns", "token_set": str(token_set)}
    common |= {"batches": str(batches), "logging": "no"}
    contestants = [Contestant("fledge", {**common, "engine": "fledge_post"}, core=core)]
    for name, packing, accumulation in (("bfd", "bfd", 1), ("bfd, row by row", "bfd", SPEED_BATCH), ("wrapped", "wrapped", 1)):
        given = {**common, "engine": "trl", "packing": packing, "accumulation": accumulation}
        contestants.append(Contestant(f"TRL {name}", given, python=python, core=core))
    take_turns(contestants, rounds, 1, 900, folder)
    return contestants


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="keep the figures in benchmarks/results/post_training.json")
    parser.add_argument("--peers", type=Path, default=Path(tempfile.gettempdir()) / "fledge-post-training-peers")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--core", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    before, python = machine(), str(made_environment(arguments.peers, PEERS))
    with tempfile.TemporaryDirectory() as place:
        make_data(Path(place))
        equality = compare(Path(place), python)
        contestants = race(Path(place), python, arguments.rounds, arguments.core)
    speeds = {one.name: round(tokens_per_second(one, "cpu_seconds")) if one.problem is None else one.problem for one in contestants}
    ratios = {
        f"fledge over {name}": round(speeds["fledge"] / speed, 2)
        for name, speed in speeds.items()
        if isinstance(speed, int) and name != "fledge"
    }
    result = {
        "date": datetime.date.today().isoformat(),
        "machine": {**before, "torch": torch.__version__},
        "peers": list(PEERS),
        "same_batches": {"steps": STEPS, "rows": EQUAL_BATCH, "bar": BAR, **equality},
        "sft_tokens_per_second_without_padding": speeds,
        "ratios": ratios,
    }
    print(json.dumps(result, indent=2))
    if arguments.write:
        (ROOT / "benchmarks" / "results" / "post_training.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
