"""Stage 1: sources become one corpus artifact per content (documents, conversations, preferences)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fledge.core import artifact, console
from fledge.corpus import build
from fledge.stages.run import Run, make


def run(run: Run) -> None:
    settings = run.recipe.section("corpus")
    for content in build.contents(settings):
        wanted = artifact.request("corpus", build.identity_with_fingerprints(settings, content))

        def fill(folder: Path, stats: dict[str, Any], content: build.Content = content) -> str:
            stats["content"] = content
            stats.update(build.build_corpus(settings, content, folder))
            size_bytes = sum(sides["train"]["utf8_bytes"] for sides in stats["sources"].values())
            rows = stats["rows"]
            rejected = sum(tally["rejected"] for tally in stats["rejects"].values())
            note = f", {rejected:,} rejected (see rejects.jsonl)" if rejected else ""
            return f"{rows['train']:,} {content} ({console.format_bytes(size_bytes)}) to train on, {rows['validation']:,} held out{note}"

        make(run, f"corpus/{content}", wanted, fill)
