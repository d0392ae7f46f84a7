"""The engine against transformers' `generate`: `python benchmarks/serving.py [--write] [--rounds 5] [--models 23M 110M]
[--new-tokens 64] [--threads 1] [--checkpoint FOLDER] [--text FILE]`.

Random weights of two shapes, a head of 32,768, prompts of 32 tokens, greedy. Each contestant has a process and takes its turn in every
round, and what counts is the processor time per token, prompts included; of several threads it is the time that passes. Ratios are medians
over rounds.

    one       one request: generate in bf16 and fp32 against the engine in fp32, bf16 and int8
    sixteen   16 requests at once, against generate in bf16 on one after another, and on all in one batch (the faster of bf16 and fp32)

Greedy tokens in fp32 must be those of generate. The time to the first token is of 16 requests that come at once. With --checkpoint the same
over HTTP, from a server with that model; with --text besides, how much int8 changes the bits per byte of the text.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from math import log
from pathlib import Path
from typing import Any

import torch
from processes import ROOT, Contestant, machine
from serving_http import measure as measure_http
from serving_http import quantile

SHAPES = {
    "23M": {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 1024},
    "110M": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 2048,
        "tie_word_embeddings": True,
    },
}
VOCABULARY_SIZE = 32_768
PROMPT_TOKENS, STREAMS = 32, 16
BARS = {
    "23M": {"fp32": 2.4, "bf16": 1.7, "int8": 3.0, "sixteen": 3.0, "static batch": 1.1},
    "110M": {"bf16": 1.5, "int8": 1.9, "sixteen": 3.0, "static batch": 1.1},
}
ENGINES, PEERS = ("fp32", "bf16", "int8"), ("generate fp32", "generate bf16")


def make_model(folder: Path, shape: str) -> None:
    """Random weights, large enough that no two logits are nearly equal."""
    from fledge.model.folder import save_model
    from fledge.model.llama import Llama
    from fledge.model.settings import ModelConfig, ModelSettings

    settings = ModelSettings(**SHAPES[shape], max_position_embeddings=1024, initializer_range=0.05)  # type: ignore[arg-type]
    save_model(Llama(ModelConfig(settings, VOCABULARY_SIZE)), folder)


def prompts() -> list[list[int]]:
    """One for each stream."""
    drawn = torch.randint(VOCABULARY_SIZE, (STREAMS, PROMPT_TOKENS), generator=torch.Generator().manual_seed(0))
    return [[int(token) for token in row] for row in drawn]


@dataclass(frozen=True)
class Answered:
    """What a contestant draws, and when after asking it has the first token of each request, if it can tell."""

    tokens: list[list[int]]
    first_token_seconds: list[float]


def engine_work(folder: Path, weights: str, new_tokens: int) -> dict[str, Callable[[], Answered]]:
    """What a process of ours does."""
    from fledge.inference.engine import Engine
    from fledge.inference.requests import Request
    from fledge.inference.settings import EngineSettings, GenerationSettings
    from fledge.model.folder import load_model

    engine = Engine(load_model(folder).eval(), VOCABULARY_SIZE, (), settings=EngineSettings(slots=STREAMS, weights=weights))  # type: ignore[arg-type]
    greedy = GenerationSettings(temperature=0, maximum_new_tokens=new_tokens)

    def answer(asked: list[list[int]]) -> Answered:
        began, first_seconds = time.perf_counter(), []
        tickets: dict[int, list[int]] = {engine.submit(Request(tuple(prompt), greedy)): [] for prompt in asked}
        while engine.has_work:
            for drawn in engine.step():
                assert drawn.token is not None
                if not tickets[drawn.ticket]:
                    first_seconds.append(time.perf_counter() - began)
                tickets[drawn.ticket].append(drawn.token)
        return Answered(list(tickets.values()), first_seconds)

    return {"one": lambda: answer(prompts()[:1]), "sixteen": lambda: answer(prompts())}


def peer_work(folder: Path, dtype: str, new_tokens: int) -> dict[str, Callable[[], Answered]]:
    """What a process of transformers does; sixteen one after another take 16 times as long as one."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()

    def answer(asked: list[list[int]]) -> Answered:
        ids = torch.tensor(asked)
        found = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False, pad_token_id=0
        )
        return Answered([[int(token) for token in row] for row in found[:, PROMPT_TOKENS:]], [])

    return {"one": lambda: answer(prompts()[:1]), "sixteen": lambda: answer(prompts())}


def work(folder: Path, name: str, new_tokens: int, threads: int) -> None:
    """A contestant: reads what to do, a line each, and writes the seconds that count and the tokens."""
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    dtype = {"generate fp32": "float32", "generate bf16": "bfloat16"}.get(name)
    tasks = peer_work(folder, dtype, new_tokens) if dtype else engine_work(folder, name, new_tokens)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        start = clock()
        answered = tasks[line.strip()]()
        print(json.dumps({"seconds": clock() - start, **asdict(answered)}), flush=True)


def contestant(folder: Path, name: str, new_tokens: int, threads: int) -> Contestant:
    """A process that answers, ready."""
    options = {"--work": name, "--folder": folder, "--new-tokens": new_tokens, "--threads": threads}
    command = [sys.executable, __file__, *(str(part) for option in options.items() for part in option)]
    made = Contestant(command, {"OMP_NUM_THREADS": str(threads)})
    if made.hear() != "ready":
        raise SystemExit(f"{name} ended early")
    return made


def measure(folder: Path, rounds: int, new_tokens: int, threads: int) -> dict[str, Any]:
    """Seconds of each contestant and task in each round, and whether fp32 draws the tokens of generate."""
    contestants = {name: contestant(folder, name, new_tokens, threads) for name in (*ENGINES, *PEERS)}
    first_token_seconds: dict[str, list[float]] = {name: [] for name in ENGINES}
    seconds: dict[str, dict[str, list[float]]] = {name: {"one": [], "sixteen": []} for name in contestants}
    tokens: dict[str, Any] = {}
    for turn in range(rounds + 1):
        for task in ("one", "sixteen"):
            for name, one in contestants.items():
                found = one.ask(task)
                tokens[f"{name} {task}"] = found["tokens"]
                if turn > 0:  # the first one warms up
                    seconds[name][task].append(found["seconds"])
                    if name in ENGINES and task == "sixteen":
                        first_token_seconds[name] += found["first_token_seconds"]
    for one in contestants.values():
        one.close()
    if tokens["fp32 one"] != tokens["generate fp32 one"] or tokens["fp32 sixteen"] != tokens["generate fp32 sixteen"]:
        raise SystemExit("the engine draws other tokens in fp32 than transformers")
    first = {name: {f"p{share}": quantile(times, share / 100) for share in (50, 99)} for name, times in first_token_seconds.items()}
    return {"seconds": seconds, "ratios": ratios(seconds), "first_token_seconds": first}


def ratios(seconds: Mapping[str, Mapping[str, list[float]]]) -> dict[str, float]:
    """How many times as long transformers takes: medians over rounds."""

    def times(theirs: list[float], ours: list[float]) -> float:
        return round(statistics.median(their / our for their, our in zip(theirs, ours, strict=True)), 2)

    bf16, fp32 = seconds["generate bf16"], seconds["generate fp32"]
    one_after_another = [STREAMS * taken for taken in bf16["one"]]
    batch = [min(pair) for pair in zip(bf16["sixteen"], fp32["sixteen"], strict=True)]
    return {
        "fp32": times(fp32["one"], seconds["fp32"]["one"]),
        "bf16": times(bf16["one"], seconds["bf16"]["one"]),
        "int8": times(bf16["one"], seconds["int8"]["one"]),
        "sixteen": times(one_after_another, seconds["bf16"]["sixteen"]),
        "static batch": times(batch, seconds["bf16"]["sixteen"]),
    }


def over_http(checkpoint: Path, new_tokens: int) -> dict[str, float]:
    """64 requests, 16 at once, of a server with this model; see `serving_http.measure`."""
    from fledge.inference.settings import EngineSettings
    from fledge.verbs.serving import served_models

    with served_models([str(checkpoint)], [], EngineSettings(slots=STREAMS)) as [model]:
        known = model.tokenizer.vocabulary_size
        asked = [[token % known for token in prompt] for prompt in prompts()] * 4
        return measure_http(model, asked, min(new_tokens, model.context_tokens - PROMPT_TOKENS), STREAMS)


def int8_change(checkpoint: Path, text: Path) -> dict[str, float]:
    """Bits per byte of the beginning of a text by the engine's own log probabilities, in windows of half the context, fp32 and int8."""
    from fledge.inference.engine import Engine
    from fledge.inference.requests import Request
    from fledge.inference.settings import EngineSettings, GenerationSettings
    from fledge.model.folder import load_model
    from fledge.tokens.tokenizer import open_tokenizer

    tokenizer, model = open_tokenizer(checkpoint), load_model(checkpoint).eval()
    ids = tokenizer.encode(text.read_text(encoding="utf-8")[:100_000])
    window = model.config.settings.max_position_embeddings // 2
    windows = [(*tokenizer.document_start, *ids[start : start + window]) for start in range(0, len(ids), window)]
    size = len(tokenizer.decode(ids).encode())
    found = {}
    for weights in ("fp32", "bf16", "int8"):
        engine = Engine(model, tokenizer.vocabulary_size, (), settings=EngineSettings(weights=weights))  # type: ignore[arg-type]
        nats = 0.0
        for window_ids in windows:
            engine.submit(Request(window_ids, GenerationSettings(temperature=0, maximum_new_tokens=1), prompt_logprobs=True))
        while engine.has_work:
            nats -= sum(one.logprob for drawn in engine.step() for one in drawn.prompt_logprobs or () if one is not None)
        found[weights] = nats / log(2) / size
    return {**found, "change_by_int8": found["int8"] / found["fp32"] - 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="keep the figures in benchmarks/results/serving.json")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--models", nargs="+", choices=sorted(SHAPES), default=list(SHAPES))
    parser.add_argument("--checkpoint", type=Path, help="a trained model, for what is measured over HTTP and what int8 changes")
    parser.add_argument("--text", type=Path, help="the text that it is measured on")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sys.path.append(sys.path.pop(0))  # beside this file lies a tokenizers.py, which is not the library
    if arguments.work:
        work(arguments.folder, arguments.work, arguments.new_tokens, arguments.threads)
        return
    result: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "machine": {**machine(), "torch": torch.__version__},
        "rounds": arguments.rounds,
        "new_tokens": arguments.new_tokens,
        "threads": arguments.threads,
        "engine": {},
    }
    missed = []
    for shape in arguments.models:
        with tempfile.TemporaryDirectory() as place:
            make_model(Path(place), shape)
            measured = result["engine"][shape] = measure(Path(place), arguments.rounds, arguments.new_tokens, arguments.threads)
        for name, seconds in measured["seconds"].items():
            one, sixteen = (statistics.median(seconds[task]) * 1000 / arguments.new_tokens for task in ("one", "sixteen"))
            print(f"{shape:5} {name:14} one {one:7.2f} ms per token    sixteen {sixteen:7.2f} ms per step")
        for name, first in measured["first_token_seconds"].items():
            print(f"{shape:5} {name:14} first token p50 {first['p50'] * 1000:.0f} ms, p99 {first['p99'] * 1000:.0f} ms, of 16 at once")
        for name, ratio in measured["ratios"].items():
            bar = BARS[shape].get(name)
            print(f"{shape:5} {name:14} {ratio:5.2f} times as fast" + (f", bar {bar}" if bar else ""))
            missed += [f"{shape} {name}: {ratio} is below {bar}"] if bar and ratio < bar else []
    if arguments.checkpoint:
        result["http"] = over_http(arguments.checkpoint, arguments.new_tokens)
        print(json.dumps(result["http"]))
    if arguments.checkpoint and arguments.text:
        result["int8"] = int8_change(arguments.checkpoint, arguments.text)
        print(json.dumps(result["int8"]))
        missed += ["int8 changes bits per byte by 1 % or more"] if abs(result["int8"]["change_by_int8"]) >= 0.01 else []
    result["missed"] = missed
    if arguments.write:
        (ROOT / "benchmarks" / "results" / "serving.json").write_text(json.dumps(result, indent=2) + "\n")
    if missed:
        raise SystemExit("; ".join(missed))


if __name__ == "__main__":
    main()
