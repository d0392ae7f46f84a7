"""The whole quickstart, timed: `python benchmarks/quickstart.py [--write]`.

Walks recipes/quickstart.yaml in a fresh folder, then again (nothing may repeat), and prints each bar beside what was seen.
`--write` keeps the figures in benchmarks/results/quickstart.json with the machine, the versions and the date.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
STAGES = ("corpus", "tokenizer", "pack", "pretrain", "sft", "score", "dpo", "evaluate", "report")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "quickstart"
        first_seconds = _walk(run, arguments.overrides)
        second_seconds = _walk(run, arguments.overrides)
        figures = {
            "road_seconds": round(first_seconds, 1),
            "second_run_seconds": round(second_seconds, 1),
            "stage_seconds": {stage: _seconds(run / stage) for stage in STAGES},
            **_scores(json.loads((run / "evaluate" / "results.json").read_text())),
        }
    result = {"date": datetime.date.today().isoformat(), "machine": _machine(), **figures}
    print(json.dumps(result, indent=2))
    if arguments.write:
        target = ROOT / "benchmarks" / "results" / "quickstart.json"
        target.write_text(json.dumps(result, indent=2) + "\n")


def _scores(results: dict[str, Any]) -> dict[str, Any]:
    """The figures without the answers."""
    by_checkpoint = {
        one["name"]: {score["name"]: {"value": round(score["value"], 4), "n": score["n"]} for score in one["scores"]}
        for one in results["evaluations"]
    }
    return {"scores": by_checkpoint, "compressors": {one["name"]: round(one["bits_per_byte"], 4) for one in results["compressors"]}}


def _walk(run: Path, overrides: list[str]) -> float:
    started = time.monotonic()
    command = [sys.executable, "-m", "fledge", "run", str(ROOT / "recipes" / "quickstart.yaml"), "--name", str(run), *overrides]
    subprocess.run(command, check=True)
    return time.monotonic() - started


def _seconds(stage: Path) -> float:
    manifests = [path for path in stage.glob("**/manifest.json") if "checkpoints" not in path.parts]
    return round(sum(json.loads(path.read_text())["stats"].get("seconds", 0.0) for path in manifests), 1)


def _machine() -> dict[str, Any]:
    import torch

    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = next((line.split(":")[1].strip() for line in flags.splitlines() if line.startswith("model name")), platform.processor())
    return {
        "cpu": model,
        "threads": torch.get_num_threads(),
        "avx512_bf16": "avx512_bf16" in flags,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    main()
