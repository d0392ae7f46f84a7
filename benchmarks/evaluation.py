"""Scoring against lm-eval's backend for transformers: `python benchmarks/evaluation.py --text WIKITEXT [--write] [--pages 12]`.

The same 23M model (random weights, a head of 32,768), the same rows: 200 last words, 200 yes/no questions and whole pages, made of
the pages of a WikiText file in the forms of LAMBADA, BoolQ and WikiText-2. One process per contestant, one thread, fp32; they score the
same rows in turn, and what counts is the processor time of scoring: from texts to log-likelihoods, tokenization included, loading of
model and rows not. lm-eval runs with each of several batch sizes, and the fastest of them counts. It fails if the two do not find the same
figures, or if lm-eval takes less than twice as long in all.
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from math import exp, isclose, log
from pathlib import Path
from typing import Any

import torch
from processes import ROOT, Contestant, machine

TASKS = {"lambada_openai": 200, "boolq": 200, "wikitext": None}
BAR = 2.0
RELATIVE_TOLERANCE = 1e-5
"""Of perplexities: fp32 sums of other kernels, exponentiated. Shares must be equal."""


def make_model(folder: Path, pages: list[str]) -> None:
    """The model of recipes/models/23m.yaml with a tokenizer learned from the pages."""
    from fledge.model.folder import save_model
    from fledge.model.llama import Llama
    from fledge.model.settings import ModelConfig, ModelSettings
    from fledge.tokens.settings import TokenizerSettings
    from fledge.tokens.tokenizer import copy_tokenizer, open_tokenizer
    from fledge.tokens.trainers import train_tokenizer

    (folder / "tokenizer").mkdir()
    # Any tokenizer of a large text has " yes" and " no" as one token each; so short a text teaches it only if it is told.
    told = ["Answer: yes", "Answer: no"] * 500
    train_tokenizer(TokenizerSettings(vocabulary_size=14_000), [*pages, *told], folder / "tokenizer")
    tokenizer = open_tokenizer(folder / "tokenizer")
    shape = ModelSettings(hidden_size=256, num_hidden_layers=6, num_attention_heads=4, intermediate_size=1024, max_position_embeddings=1024)
    # So short a text fills no vocabulary of 32,768; the head has its size all the same.
    save_model(Llama(ModelConfig(shape, 32_768)), folder)
    copy_tokenizer(tokenizer, False, folder, maximum_tokens=1024)


def make_rows(folder: Path, pages: list[str], count: int) -> None:
    """Rows in the three forms: passages of 60 to 95 words, passages of 60 to 180 words with a question, and whole pages."""
    chosen = random.Random(0)
    paragraphs = [line.split() for page in pages for line in page.split("\n") if len(line.split()) > 60]
    passages = [words[: chosen.randint(60, 95)] for words in paragraphs]
    questions = [words[: chosen.randint(60, 180)] for words in paragraphs]
    chosen.shuffle(passages)
    rows: dict[str, list[dict[str, Any]]] = {
        "lambada_openai": [{"text": " ".join(words)} for words in passages[: TASKS["lambada_openai"]]],
        "boolq": [
            {"passage": " ".join(words), "question": f"is the {words[3]} a part of the {words[9]}", "label": place % 2}
            for place, words in enumerate(questions[: TASKS["boolq"]])
        ],
        "wikitext": [{"page": page} for page in pages[:count]],
    }
    for name, found in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))


def fledge_scorers(folder: Path) -> dict[str, Callable[[], dict[str, float]]]:
    """What a process of ours does for each task."""
    from fledge.core.process import keep_freed_memory
    from fledge.evaluation.benchmarks.places import find_benchmark
    from fledge.evaluation.benchmarks.run import run_benchmark
    from fledge.model.folder import load_model
    from fledge.model.precision import use_fast_fp32
    from fledge.tokens.tokenizer import open_tokenizer

    keep_freed_memory()
    use_fast_fp32("cpu")
    model, tokenizer = load_model(folder).eval(), open_tokenizer(folder)

    def scorer(name: str) -> Callable[[], dict[str, float]]:
        placed = find_benchmark(name, folder)
        return lambda: {score.name.partition("/")[2]: score.value for score in run_benchmark(model, tokenizer, placed).scores}

    return {name: scorer(name) for name in TASKS}


def peer_scorers(folder: Path, batch: int) -> dict[str, Callable[[], dict[str, float]]]:
    """What a process of lm-eval does for each task."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    from fledge.evaluation import harness

    tasks = folder / f"tasks-{batch}"
    tasks.mkdir()
    for name in TASKS:
        (tasks / f"{name}.yaml").write_text(json.dumps(harness._local_task(name, folder / f"{name}.jsonl")))
    manager = lm_eval.tasks.TaskManager(include_defaults=False, include_path=str(tasks))
    model = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=batch)

    def scorer(name: str) -> Callable[[], dict[str, float]]:
        [task] = manager.load([name])["tasks"].values()
        task.build_all_requests(limit=None, rank=0, world_size=1)

        def score() -> dict[str, float]:
            if name == "wikitext":
                nats = model.loglikelihood_rolling(task.instances, disable_tqdm=True)
                pages = [instance.doc["page"] for instance in task.instances]
                per_byte = -sum(nats) / sum(len(page.encode()) for page in pages)
                per_word = -sum(nats) / sum(len(re.split(r"\s+", page)) for page in pages)
                return {"word_perplexity": exp(per_word), "byte_perplexity": exp(per_byte), "bits_per_byte": per_byte / log(2)}
            found = model.loglikelihood(task.instances, disable_tqdm=True)
            if name == "lambada_openai":
                price = -sum(nats for nats, _ in found) / len(found)
                return {"acc": sum(greedy for _, greedy in found) / len(found), "perplexity": exp(price)}
            pairs = zip(found[0::2], found[1::2], task.instances[0::2], strict=True)
            return {"acc": sum((yes > no) == bool(one.doc["label"]) for (no, _), (yes, _), one in pairs) / (len(found) // 2)}

        return score

    return {name: scorer(name) for name in TASKS}


def work(folder: Path, contestant: str) -> None:
    """Score a task whenever its name comes, and tell how long it took."""
    torch.set_num_threads(1)
    told, sys.stdout = sys.stdout, sys.stderr
    scorers = fledge_scorers(folder) if contestant == "fledge" else peer_scorers(folder, int(contestant))
    print(json.dumps("ready"), file=told, flush=True)
    for line in sys.stdin:
        start = time.process_time()
        figures = scorers[line.strip()]()
        print(json.dumps({"seconds": time.process_time() - start, "figures": figures}), file=told, flush=True)


def contestant(folder: Path, name: str) -> Contestant:
    """A process that scores on demand, ready."""
    command = [sys.executable, __file__, "--work", name, "--text", str(folder)]
    made = Contestant(command, {"HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf")})
    if made.hear() != "ready":
        raise SystemExit(f"{name} ended early")
    return made


def compare(folder: Path, rounds: int, batches: Sequence[int]) -> dict[str, Any]:
    """Seconds of each contestant by task, and how many times as long lm-eval takes: medians over rounds."""
    names = ["fledge", *map(str, batches)]
    contestants = {name: contestant(folder, name) for name in names}
    figures: dict[str, dict[str, dict[str, float]]] = {name: {} for name in names}
    seconds: dict[str, dict[str, list[float]]] = {name: {task: [] for task in TASKS} for name in names}
    for turn in range(rounds + 1):
        for task in TASKS:
            for name in names:
                found = contestants[name].ask(task)
                figures[name][task], taken = found["figures"], float(found["seconds"])
                print(f"round {turn}, {task}, {name}: {taken:.2f} s", file=sys.stderr, flush=True)
                if turn > 0:  # the first one warms up
                    seconds[name][task].append(taken)
    for one in contestants.values():
        one.close()
    total = {name: [sum(taken) for taken in zip(*by_task.values(), strict=True)] for name, by_task in seconds.items()}
    for name in names[1:]:
        require_same(figures["fledge"], figures[name])
    fastest = min(names[1:], key=lambda name: statistics.median(total[name]))
    return {
        "seconds": {name: {task: round(statistics.median(taken), 2) for task, taken in by.items()} for name, by in seconds.items()},
        "fastest_batch_of_lm_eval": int(fastest),
        "times_as_long": {task: _times(seconds[fastest][task], seconds["fledge"][task]) for task in TASKS},
        "times_as_long_in_all": _times(total[fastest], total["fledge"]),
        "bar": BAR,
        "figures": {"fledge": figures["fledge"], "lm-eval": figures[fastest]},
    }


def require_same(ours: Mapping[str, Mapping[str, float]], theirs: Mapping[str, Mapping[str, float]]) -> None:
    """Of each task, every figure that lm-eval has: shares equal, all else within the tolerance. Raises SystemExit naming the other ones."""
    pairs = [(f"{task}/{metric}", ours[task][metric], value) for task in TASKS for metric, value in theirs[task].items()]
    other = [
        f"{name}: {mine} and {value}"
        for name, mine, value in pairs
        if not isclose(mine, value, rel_tol=0.0 if name.endswith("/acc") else RELATIVE_TOLERANCE)
    ]
    if other:
        raise SystemExit(f"the two find other figures: {'; '.join(other)}")


def _times(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """The median of the ratios of each round."""
    return round(statistics.median(one / other for one, other in zip(theirs, ours, strict=True)), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, required=True, help="pages that begin at lines like ' = Title = '")
    parser.add_argument("--write", action="store_true", help="keep the figures in benchmarks/results/evaluation.json")
    parser.add_argument("--pages", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16], help="batch sizes of lm-eval")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sys.path.append(sys.path.pop(0))  # beside this file lies a tokenizers.py, which is not the library
    if arguments.work:
        work(arguments.text, arguments.work)
        return
    from fledge.evaluation.benchmarks.definitions import wikitext_pages

    before = machine()
    pages = [row["page"] for row in wikitext_pages(arguments.text.read_text(encoding="utf-8"))]
    with tempfile.TemporaryDirectory() as place:
        make_model(Path(place), pages)
        make_rows(Path(place), pages, arguments.pages)
        compared = compare(Path(place), arguments.rounds, arguments.batches)
    result = {
        "date": datetime.date.today().isoformat(),
        "machine": {**before, "torch": torch.__version__},
        "rows": {**TASKS, "wikitext": arguments.pages},
        "rounds": arguments.rounds,
        **compared,
    }
    print(json.dumps(result, indent=2))
    if compared["times_as_long_in_all"] < BAR:
        raise SystemExit(f"lm-eval takes {compared['times_as_long_in_all']} times as long in all, less than the bar of {BAR}")
    if arguments.write:
        (ROOT / "benchmarks" / "results" / "evaluation.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
