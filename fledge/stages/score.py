"""Stage 6: the checkpoint that dpo starts from rates every preference pair once, so that dpo needs no second model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from fledge.core import artifact
from fledge.core.process import keep_freed_memory
from fledge.corpus.document import Split
from fledge.stages.run import Run, make
from fledge.stages.training import open_model, open_parent
from fledge.tokens.shards import open_token_set
from fledge.tokens.tokenizer import open_tokenizer, require_one_tokenizer
from fledge.training.batches import open_rows, rows_at_once
from fledge.training.parallel import open_world, settle_machine
from fledge.training.score import score_preferences, write_scores
from fledge.training.settings import TrainingSettings


def run(run: Run) -> None:
    settings: TrainingSettings = run.recipe.section("dpo")
    tokens = run.token_sets(settings.tokens, "preferences")
    parent = open_parent(run, "dpo")
    assert parent is not None, "dpo always starts from a checkpoint"
    token_sets = [open_token_set(found.path) for found in tokens.values()]
    tokenizer = open_tokenizer(parent.path)
    made_with = {f"token set {token_set.folder}": token_set.tokenizer_sha256 for token_set in token_sets}
    require_one_tokenizer({**made_with, f"checkpoint {parent.path}": tokenizer.sha256}, run.command)

    def fill(folder: Path, stats: dict[str, Any]) -> str:
        keep_freed_memory()
        with open_world(settings.device) as world:
            machine = settle_machine(folder, settings, world)
            model = open_model(parent, run, tokenizer, answers=True, seed=settings.seed).to(world.device)
            # The shape of training's micro-batches: another one would change the last bits, and with them the first loss.
            rows = rows_at_once(settings.batch_rows, settings.micro_batch_rows, world.size)
            readers = {split: open_rows(token_sets, split, None) for split in get_args(Split)}
            scores = {split: score_preferences(model, reader, rows, machine, world.device) for split, reader in readers.items()}
        write_scores(folder, scores)
        stats["pairs"] = sum(len(values) for of_split in scores.values() for values in of_split.values())
        return f"{stats['pairs']:,} pairs"

    make(run, "score", artifact.request("scores", {"precision": settings.precision}, {**tokens, "start_from": parent}), fill)
