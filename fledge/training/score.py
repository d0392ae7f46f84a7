"""The reference model of preference training as data: pairs -> [score] -> log-probabilities -> `Preference`.

The reference never changes, so its log-probabilities are computed once, before training, and no second model is held in memory.
They are computed from the same rows in micro-batches of the same shape, with the same attention and precision as training will
use: then the policy, which starts as the reference, has rewards of zero and a first loss of ln 2, which proves that packing,
masking and scoring agree.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from fledge.core import console, disk
from fledge.core.errors import DataError, MachineError
from fledge.corpus.document import Split
from fledge.model.tensors import read_tensors, write_tensors
from fledge.training.batches import RowReader, Scores
from fledge.training.objectives import answer_log_probabilities
from fledge.training.parallel import Machine

SCORES = "scores.safetensors"

Computed = TypeVar("Computed")


@torch.no_grad()
def score_preferences(model: nn.Module, reader: RowReader, micro_batch_rows: int, machine: Machine, device: torch.device) -> Scores:
    """Log-probabilities in nats of both answers of every pair, by source: (pairs, 2), chosen first."""
    model.eval()
    rows, scored = reader.all_rows(), dict[str, list[Tensor]]()
    with console.progress("score preferences", len(rows), "rows") as progress:
        for number, source in enumerate(reader.sources):
            of_source = [row for row in rows if row.source == number]
            parts = scored.setdefault(source.name, [])
            for start in range(0, len(of_source), micro_batch_rows):
                chunk = of_source[start : start + micro_batch_rows]
                with machine.autocast(device):
                    parts.append(answer_log_probabilities(model, reader.batch(chunk, micro_batch_rows).to(device)).cpu())
                progress.advance(len(chunk))
    return {name: torch.cat(parts).numpy() for name, parts in scored.items()}


def within_memory(compute: Callable[[int], Computed], rows: int) -> tuple[Computed, int]:
    """What `compute` makes of micro-batches of so many rows, fewer where memory does not suffice, and how many they were.

    Raises MachineError if not even one row fits.
    """
    while True:
        try:
            return compute(rows), rows
        except torch.OutOfMemoryError as error:
            if rows == 1:
                raise MachineError(
                    "one row of pairs does not fit the memory of the device", "shorten the rows: pack.sequence_length"
                ) from error
            console.say(f"micro-batches of {rows} rows do not fit the memory of the device; now {(rows + 1) // 2}")
            rows = (rows + 1) // 2
        gc.collect()
        torch.cuda.empty_cache()


def write_scores(folder: Path, scores: Mapping[Split, Scores]) -> disk.FileDigest:
    """Write the scores of some splits as one file of tensors named `SPLIT/SOURCE`."""
    tensors = {f"{split}/{source}": torch.from_numpy(values) for split, of_split in scores.items() for source, values in of_split.items()}
    return write_tensors(folder / SCORES, tensors)


def read_scores(folder: Path, split: Split) -> Scores:
    """The scores of a split, by source. Raises CheckpointError if the file is missing or damaged, DataError if a score is not finite."""
    tensors = read_tensors(folder / SCORES)
    scores = {name.partition("/")[2]: values.numpy() for name, values in tensors.items() if name.partition("/")[0] == split}
    for source, values in scores.items():
        if not np.isfinite(values).all():
            raise DataError(f"{folder / SCORES} holds scores of {source!r} that are not finite", "score again from a sound checkpoint")
    return scores
