"""The engine against transformers' `generate` on one GPU: `python benchmarks/serving_gpu.py [--write] [--seconds 110]`.

Random weights of two shapes, a head of 32,768, greedy, bf16. Three contestants for each shape, each in a process of its own: the engine,
`generate` with SDPA, and `generate` with its static cache, which compiles the model. All start together; what is not ready in time is left
out. Then they take their turns, by the clock; ratios are medians over rounds.

    first        one token after a prompt of 256
    one          one prompt of 32 tokens, 64 new ones
    sixteen      16 such prompts, to `generate` in one batch
    sixty-four   64 such prompts, likewise

In fp32, 64 greedy tokens after each of 16 prompts must be those of `generate`.
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
from pathlib import Path
from typing import Any

import torch
from processes import ROOT, Contestant
from serving import SHAPES, VOCABULARY_SIZE, make_model

NEW_TOKENS = 64
TASKS = {"first": (1, 256, 1), "one": (1, 32, NEW_TOKENS), "sixteen": (16, 32, NEW_TOKENS), "sixty-four": (64, 32, NEW_TOKENS)}
"""Prompts, tokens of each, new tokens."""
STATIC_TASKS = ("one",)
"""What is compiled in time: each length anew."""
CONTESTANTS = ("engine", "generate", "generate static")
ROUNDS = 5
READY_SHARE = 0.6
"""Of the time, until all must be ready."""

Answer = Callable[[list[list[int]], int], list[list[int]]]


def prompts(task: str) -> list[list[int]]:
    """The same for everyone."""
    count, tokens, _ = TASKS[task]
    drawn = torch.randint(VOCABULARY_SIZE, (count, tokens), generator=torch.Generator().manual_seed(0))
    return [[int(token) for token in row] for row in drawn]


def engine(folder: Path, precision: str, slots: int) -> Answer:
    """Ours, as `fledge serve` makes it."""
    from fledge.inference.engine import Engine
    from fledge.inference.requests import Request
    from fledge.inference.settings import EngineSettings, GenerationSettings
    from fledge.model.folder import load_model

    model = load_model(folder, "cuda").eval()
    made = Engine(model, VOCABULARY_SIZE, (), precision, EngineSettings(slots=slots))  # type: ignore[arg-type]

    def answer(asked: list[list[int]], new_tokens: int) -> list[list[int]]:
        greedy = GenerationSettings(temperature=0, maximum_new_tokens=new_tokens)
        found: dict[int, list[int]] = {made.submit(Request(tuple(prompt), greedy)): [] for prompt in asked}
        while made.has_work:
            for drawn in made.step():
                assert drawn.token is not None, drawn.failure
                found[drawn.ticket].append(drawn.token)
        return list(found.values())

    return answer


def peer(folder: Path, dtype: str, static: bool) -> Answer:
    """transformers' `generate`."""
    import transformers

    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), attn_implementation="sdpa")
    model = model.eval().cuda()
    more = {"cache_implementation": "static"} if static else {}

    def answer(asked: list[list[int]], new_tokens: int) -> list[list[int]]:
        ids = torch.tensor(asked, device="cuda")
        mask = torch.ones_like(ids)
        found = model.generate(
            ids, attention_mask=mask, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False, pad_token_id=0, **more
        )
        return [[int(token) for token in row] for row in found[:, ids.shape[1] :].tolist()]

    return answer


def work(folder: Path, name: str) -> None:
    """A contestant: warms up, tells the tokens that it draws in fp32, then reads tasks, a line each, and tells their seconds."""
    start = time.monotonic()
    teller, sys.stdout = sys.stdout, sys.stderr  # what libraries print is none of the driver's business

    def tell(told: Mapping[str, Any]) -> None:
        print(json.dumps(told), file=teller, flush=True)

    tasks = STATIC_TASKS if name == "generate static" else tuple(TASKS)
    answer = engine(folder, "bf16", 64) if name == "engine" else peer(folder, "bfloat16", name == "generate static")
    for task in tasks:
        for _ in range(2):
            answer(prompts(task), TASKS[task][2])
    told: dict[str, Any] = {"tasks": tasks, "ready_seconds": time.monotonic() - start}
    if name != "generate static":
        exact = engine(folder, "fp32", 16) if name == "engine" else peer(folder, "float32", static=False)
        told["fp32 tokens"] = exact(prompts("sixteen"), NEW_TOKENS)
        del exact
    tell(told)
    for line in sys.stdin:
        task = line.strip()
        torch.cuda.synchronize()
        start = time.perf_counter()
        answer(prompts(task), TASKS[task][2])
        tell({"seconds": time.perf_counter() - start})


class Turns:
    """What one contestant told when it was ready, and its seconds by task."""

    def __init__(self, folder: Path, name: str, log: Path) -> None:
        self.process = Contestant([sys.executable, __file__, "--work", name, "--folder", str(folder)], {}, log)
        self.told: dict[str, Any] | None = None
        self.seconds: dict[str, list[float]] = {task: [] for task in TASKS}

    def turn(self, task: str, until: float) -> None:
        """One task, if it is one of its own."""
        if self.told is not None and task in self.told["tasks"]:
            self.seconds[task].append(self.process.ask(task, until)["seconds"])


def measure(folder: Path, seconds: float) -> dict[str, dict[str, Turns]]:
    """Shape -> contestants, with what they told and took."""
    start = time.monotonic()
    for shape in SHAPES:
        make_model(folder / shape, shape)
    everyone = {shape: {name: Turns(folder / shape, name, folder / f"{shape} {name}.log") for name in CONTESTANTS} for shape in SHAPES}
    all_of_them = [one for contestants in everyone.values() for one in contestants.values()]
    for shape, contestants in everyone.items():
        for name, one in contestants.items():
            one.told = one.process.hear(start + READY_SHARE * seconds)
            if one.told is None:
                print(f"{shape} {name}: {one.process.last_words()}", flush=True)
                one.process.kill()
    for _ in range(ROUNDS):
        if time.monotonic() - start > 0.85 * seconds:
            break
        for task in TASKS:
            for one in all_of_them:
                one.turn(task, start + seconds)
    for one in all_of_them:
        one.process.kill()
    print(f"{time.monotonic() - start:.0f} seconds in all", flush=True)
    return everyone


def figures(contestants: Mapping[str, Turns]) -> dict[str, Any]:
    """What each contestant reaches in each task, and how many times as fast the engine is."""
    told: dict[str, Any] = {}
    for name, one in contestants.items():
        taken = {task: statistics.median(seconds) for task, seconds in one.seconds.items() if seconds}
        told[name] = {
            f"{task} tokens per second": round(TASKS[task][0] * TASKS[task][2] / seconds)
            for task, seconds in taken.items()
            if task != "first"
        }
        if "first" in taken:
            told[name]["first token milliseconds"] = round(1000 * taken["first"], 2)
        if one.told is not None:
            told[name]["ready_seconds"] = round(one.told["ready_seconds"], 1)
    ours = contestants["engine"].seconds
    told["times as fast as"] = {
        name: {
            task: round(statistics.median(their / our for their, our in zip(theirs, ours[task], strict=False)), 2)
            for task, theirs in contestants[name].seconds.items()
            if theirs and ours[task]
        }
        for name in CONTESTANTS[1:]
    }
    exact = [one.told["fp32 tokens"] for one in contestants.values() if one.told is not None and "fp32 tokens" in one.told]
    told["fp32 tokens are those of generate"] = len(exact) == 2 and exact[0] == exact[1]
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="keep the figures in benchmarks/results/serving_gpu-CARD.json")
    parser.add_argument("--seconds", type=float, default=110, help="for everything")
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sys.path.append(sys.path.pop(0))  # beside this file lies a tokenizers.py, which is not the library
    if arguments.work:
        work(arguments.folder, arguments.work)
        return
    with tempfile.TemporaryDirectory() as place:
        everyone = measure(Path(place), arguments.seconds)
    card = torch.cuda.get_device_name()
    result: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "card": card,
        "torch": torch.__version__,
        "tasks": {task: dict(zip(("prompts", "prompt_tokens", "new_tokens"), sizes, strict=True)) for task, sizes in TASKS.items()},
        "shapes": {shape: figures(contestants) for shape, contestants in everyone.items()},
    }
    print(json.dumps(result, indent=2))
    target = arguments.output or (ROOT / "benchmarks" / "results" / f"serving_gpu-{card.split()[1]}.json" if arguments.write else None)
    if target is not None:
        target.write_text(json.dumps(result, indent=2) + "\n")
    if not all(one["fp32 tokens are those of generate"] for one in result["shapes"].values()):
        raise SystemExit("the engine draws other tokens in fp32 than transformers")


if __name__ == "__main__":
    main()
