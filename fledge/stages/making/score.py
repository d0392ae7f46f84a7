"""The preference pairs of a training task, rated by the checkpoint that it starts from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from fledge.core.artifact import Artifact
from fledge.core.process import keep_freed_memory
from fledge.corpus.document import Split
from fledge.stages.making.training import open_model
from fledge.stages.run import Run
from fledge.tokens.shards import TokenSet
from fledge.tokens.tokenizer import Tokenizer
from fledge.training.batches import Scores, open_rows, rows_at_once
from fledge.training.parallel import keep_trial, open_world, settle_machine
from fledge.training.score import score_preferences, within_memory, write_scores
from fledge.training.settings import TrainingSettings


def make_scores(
    run: Run, settings: TrainingSettings, parent: Artifact, token_sets: Sequence[TokenSet], tokenizer: Tokenizer, folder: Path
) -> int:
    """Write the scores of both splits and the machine they were computed on; returns the number of pairs."""
    keep_freed_memory()
    with open_world(settings.device) as world:
        machine = settle_machine(folder, settings, world)
        model = open_model(parent, run, tokenizer, answers=True, settings=settings).to(world.device)
        # The shape of training's micro-batches: another one would change the last bits, and with them the first loss.
        rows = rows_at_once(settings.batch_rows, settings.micro_batch_rows, world.size)
        readers = {split: open_rows(token_sets, split, None) for split in get_args(Split)}

        def score(rows: int) -> dict[Split, Scores]:
            return {split: score_preferences(model, reader, rows, machine, world.device) for split, reader in readers.items()}

        scores, fitting = within_memory(score, machine.micro_batch_rows or rows)
        if fitting < rows:
            keep_trial(folder, machine, replace(machine, micro_batch_rows=fitting), settings.inexact_resume)  # training will take it over
    write_scores(folder, scores)
    return sum(len(values) for of_split in scores.values() for values in of_split.values())
