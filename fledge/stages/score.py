"""Stage 6: the checkpoint that dpo starts from rates every preference pair once, so that dpo needs no second model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fledge.core import artifact
from fledge.stages.parent_tokenizer import open_parent_tokenizer
from fledge.stages.run import Run, make
from fledge.stages.task import open_parent
from fledge.tokens.shards import open_token_set
from fledge.tokens.tokenizer import require_one_tokenizer
from fledge.training.settings import TrainingSettings


def run(run: Run) -> None:
    settings: TrainingSettings = run.recipe.section("dpo")
    tokens = run.token_sets(settings.tokens, "preferences")
    parent = open_parent(run, "dpo")
    assert parent is not None, "dpo always starts from a checkpoint"
    token_sets = [open_token_set(found.path) for found in tokens.values()]
    tokenizer = open_parent_tokenizer(parent, tokens)
    made_with = {f"token set {token_set.folder}": token_set.tokenizer_sha256 for token_set in token_sets}
    require_one_tokenizer({**made_with, f"checkpoint {parent.path}": tokenizer.sha256}, run.command)

    def fill(folder: Path, stats: dict[str, Any]) -> str:
        from fledge.stages.making.score import make_scores

        stats["pairs"] = make_scores(run, settings, parent, token_sets, tokenizer, folder)
        return f"{stats['pairs']:,} pairs"

    make(run, "score", artifact.request("scores", {"precision": settings.precision}, {**tokens, "start_from": parent}), fill)
