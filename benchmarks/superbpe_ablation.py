"""What SuperBPE, a curriculum of lengths and a lower precision each bring, at equal text bytes: `python benchmarks/superbpe_ablation.py`.

    [--device cpu|cuda] [--text FILE_OR_FOLDER ...] [--arms NAME ...] [--compile] [--rounds 1] [--minutes N] [--write] [--output PATH]

Every arm is the `pretrain` stage of a recipe (`ablation_arms.py`), on the same bytes in steps of equal bytes, and is validated on the same
held-out bytes in rows of the curriculum's last length, cut at the same number of tokens. What is told is how long an arm trains until its
bits per byte are those with which the plain one ends. The arms of a round are processes that take turns of some seconds, so that what else
the machine does meets all alike; every round has a seed of its own.

The text is Python's documentation on a CPU and the installed Python packages on a GPU, or what --text names: files, or folders whose
.py, .md, .rst and .txt are read. --minutes stops all arms at their next step; what is done stays in --work, and the same command goes on.

The curriculum has ten shapes, each compiled at its first step, which takes minutes; so nothing is compiled unless --compile asks for it.
FP8 is slower than bf16 without the compiler, so it is an arm only with it.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.append(sys.path.pop(0))  # beside this file lies a tokenizers.py, which is not the library

import torch
from ablation_arms import SIZES, STAGE_SHARES, Arm, Size, all_arms, arm_recipe, corpus_recipe, tokens_recipe
from ablation_figures import ArmRun, arm_figures, read_run, table, typical_seconds
from ablation_turns import RECIPE, environment, take_turns
from processes import ROOT, machine

from fledge.core import artifact
from fledge.core.metrics import read_metrics
from fledge.evaluation.run_data import PLAN
from fledge.model.float8 import has_float8
from fledge.model.precision import Precision, can_compute, choose_precision, use_fast_fp32

TOKENIZERS = ("byte_bpe", "superbpe")
PACKAGE_BYTES_PER_SUFFIX = 56_000_000
"""Of the files of one suffix in the installed packages, which a GPU trains on unless it is told another text."""
SUFFIXES = ("py", "md", "rst", "txt")
_TURN_SECONDS = {"cpu": 12.0, "cuda": 2.0}
"""Many steps, of which the first and the last of a turn are slow."""
_AT_ONCE = 4
"""Arms that take turns together: a GPU holds them all."""


def main() -> None:
    given = _arguments()
    size, started = SIZES[given.device], time.monotonic()
    arms = all_arms(_precisions(given.device, given.compile))
    work = given.work or ROOT / "runs" / f"superbpe-ablation-{given.device}"
    work.mkdir(parents=True, exist_ok=True)
    tokens = _prepare(work, _sources(given.device, given.text), size)
    print(f"prepared after {time.monotonic() - started:.0f} s", flush=True)
    folder = work / ("compiled" if given.compile else "uncompiled")
    deadline = None if given.minutes is None else started + 60 * given.minutes
    for seed in range(given.rounds):
        chosen = [_written(arm, size, folder, tokens[arm.tokenizer], seed, given) for arm in _chosen(arms, given.arms)]
        groups = [chosen[first : first + _AT_ONCE] for first in range(0, len(chosen), _AT_ONCE)]
        if not all(take_turns(group, _TURN_SECONDS[given.device], deadline) for group in groups):
            print("the time is over: the same command goes on from here")
            break
    runs = {arm.name: list(_read(folder, arm, given.rounds)) for arm in arms}
    if runs["plain"]:
        _tell(given, size, tokens, runs)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--text", nargs="+", default=[], help="files or folders; on a CPU besides Python's documentation")
    parser.add_argument("--arms", nargs="+", default=[], metavar="NAME", help='train these only, like "SuperBPE + curriculum"')
    parser.add_argument("--compile", action="store_true", help="minutes more; what is compiled is not counted")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=None, help="stop after so many")
    parser.add_argument("--work", type=Path, default=None, help="where runs are kept")
    parser.add_argument("--write", action="store_true", help="keep the figures in benchmarks/results")
    parser.add_argument("--output", type=Path, default=None, help="keep them there")
    return parser.parse_args()


def _precisions(device: str, compiled: bool) -> list[Precision]:
    """That of the plain arm, then a lower one if this machine gains by it."""
    if device == "cuda":
        return ["bf16", "fp8"] if compiled and can_compute("fp8", device, has_float8()) else ["bf16"]
    use_fast_fp32(device)
    return ["fp32", "bf16"] if choose_precision("auto", device) == "bf16" else ["fp32"]


def _chosen(arms: list[Arm], names: Sequence[str]) -> list[Arm]:
    known = [arm.name for arm in arms]
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise SystemExit(f"there is no arm {unknown[0]!r} here; there are: {', '.join(known)}")
    return [arm for arm in arms if not names or arm.name in names]


def _sources(device: str, text: Sequence[str]) -> list[dict[str, Any]]:
    """Where the text comes from, in the words of a recipe."""
    sources: list[dict[str, Any]] = [{"kind": "python_docs"}] if device == "cpu" else []
    limits: dict[str, int] = {}
    if not text and device == "cuda":
        text, limits = [sysconfig.get_paths()["purelib"]], {"maximum_bytes": PACKAGE_BYTES_PER_SUFFIX}
    for number, place in enumerate(Path(one).absolute() for one in text):
        globs = [place] if place.is_file() else [found for found in (place / f"**/*.{suffix}" for suffix in SUFFIXES) if _matches(found)]
        for one in globs:
            kind = one.suffix.removeprefix(".")
            sources.append({"kind": "text", "name": f"text-{number}-{kind}", "path": str(one), "maximum_reject_share": 0.5, **limits})
    return sources


def _matches(pattern: Path) -> bool:
    return next(pattern.parent.parent.rglob(pattern.name), None) is not None


def _prepare(work: Path, sources: Sequence[dict[str, Any]], size: Size) -> dict[str, artifact.Artifact]:
    """The token set of each tokenizer; both are made side by side, of one corpus."""
    corpus = work / "text" / "corpus" / "documents"
    _finish([_fledge(work, "text", corpus_recipe(sources, size), "corpus")])
    _finish(
        [_fledge(work, kind, tokens_recipe(kind, str(corpus), size), "run", "--from", "tokenizer", "--to", "pack") for kind in TOKENIZERS]
    )
    return {kind: artifact.open_artifact(work / kind / "pack" / "documents", "tokens") for kind in TOKENIZERS}


def _fledge(work: Path, name: str, recipe: dict[str, Any], verb: str, *options: str) -> subprocess.Popen[bytes]:
    path = work / f"{name}.json"
    path.write_text(json.dumps(recipe, indent=1))
    command = [sys.executable, "-m", "fledge", verb, str(path), "--name", str(work / name), "--log-level", "warning", *options]
    return subprocess.Popen(command, env=environment())


def _finish(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    codes = [process.wait() for process in processes]
    if any(codes):
        raise SystemExit(f"the preparation ended with {max(codes)}")


def _written(arm: Arm, size: Size, folder: Path, tokens: artifact.Artifact, seed: int, given: argparse.Namespace) -> Path:
    """The folder of an arm's run, with its recipe."""
    place = _place(folder, arm, seed)
    place.mkdir(parents=True, exist_ok=True)
    recipe = arm_recipe(arm, size, str(tokens.path.absolute()), _tokens_per_byte(tokens), seed, given.device, given.compile)
    (place / RECIPE).write_text(json.dumps(recipe, indent=1))
    return place


def _place(folder: Path, arm: Arm, seed: int) -> Path:
    return folder / f"{arm.name.replace(' + ', '-').lower()}-{seed}"


def _tokens_per_byte(tokens: artifact.Artifact) -> float:
    train = tokens.stats["train"]
    return float(train["tokens"] / train["text_bytes"])


def _read(folder: Path, arm: Arm, rounds: int) -> Iterator[ArmRun]:
    """The finished runs of an arm."""
    for seed in range(rounds):
        stage = _place(folder, arm, seed) / "pretrain"
        if (stage / artifact.MANIFEST).is_file():
            phases = json.loads((stage / PLAN).read_text())["phases"]
            yield read_run(read_metrics(stage), phases, seed, arm.precision)


def _tell(given: argparse.Namespace, size: Size, tokens: dict[str, artifact.Artifact], runs: dict[str, list[ArmRun]]) -> None:
    kinds = {arm.name: arm.tokenizer for arm in all_arms(_precisions(given.device, given.compile))}
    typical = typical_seconds([run for found in runs.values() for run in found])
    figures = {
        name: arm_figures(found, runs["plain"], typical, _tokens_per_byte(tokens[kinds[name]])) for name, found in runs.items() if found
    }
    result = {
        "date": datetime.date.today().isoformat(),
        "command": _command(given),
        "machine": {"card": torch.cuda.get_device_name()} if given.device == "cuda" else machine(),
        "torch": torch.__version__,
        "compiled": given.compile,
        "size": vars(size),
        "stage_shares": STAGE_SHARES,
        "text": {kind: {side: found.stats[side] for side in ("train", "validation")} for kind, found in tokens.items()},
        **({"packages": _packages()} if given.device == "cuda" and not given.text else {}),
        "arms": figures,
    }
    print("\n".join(table(figures)))
    target = given.output or (_result_path(given) if given.write else None)
    if target is not None:
        target.write_text(json.dumps(result, indent=1) + "\n")


def _packages() -> list[str]:
    """Name and version of what is installed, since that is the text."""
    return sorted({f"{one.metadata['Name']} {one.version}" for one in importlib.metadata.distributions()})


def _command(given: argparse.Namespace) -> str:
    """What decides the figures, without the places of this machine."""
    parts = ["python benchmarks/superbpe_ablation.py", "--device", given.device]
    parts += ["--text", *(Path(place).name for place in given.text)] if given.text else []
    return " ".join([*parts, *(["--compile"] if given.compile else []), "--rounds", str(given.rounds)])


def _result_path(given: argparse.Namespace) -> Path:
    name = torch.cuda.get_device_name().split()[1] if given.device == "cuda" else "cpu"
    return ROOT / "benchmarks" / "results" / f"superbpe_ablation-{name}{'-compiled' if given.compile else ''}.json"


if __name__ == "__main__":
    main()
