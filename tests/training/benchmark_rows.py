"""Rows of the kinds of benchmarks that processes share out: last words, choices and texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

BENCHMARK_ROWS: dict[str, list[dict[str, Any]]] = {
    "lambada_openai": [{"text": f"{'word ' * count}end"} for count in range(1, 6)],
    "boolq": [{"passage": "row " * count, "question": f"is it {count}", "label": count % 2} for count in (2, 3, 1)],
    "text": [{"text": "one text " * 9}, {"text": "and another"}],
}


def write_benchmarks(folder: Path) -> Path:
    """A file for each, in a new folder."""
    folder.mkdir()
    for name, rows in BENCHMARK_ROWS.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder
