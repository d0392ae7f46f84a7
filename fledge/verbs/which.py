"""`fledge which`: the documents of a step, or the steps of a text, computed from a checkpoint's plan and the token sets it names."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fledge.core import artifact, console
from fledge.core.errors import ConfigError, DataError
from fledge.stages.checkpoint_names import find_checkpoint
from fledge.stages.run import smoke_name
from fledge.tokens.shards import TokenShard, open_token_set
from fledge.tokens.tokenizer import Tokenizer, open_tokenizer
from fledge.training.batches import open_rows
from fledge.training.checkpoint import read_order
from fledge.training.guard import LeftOut, is_left_out
from fledge.training.ledger import Part, documents_with, parts_of_step, visits
from fledge.training.plan import Plan, read_plan

SHOWN_DOCUMENTS = 20
SHOWN_STEPS = 12


@dataclass(frozen=True)
class Ledger:
    """What a stage reads in which order, and how far it is."""

    stage: str
    plan: Plan
    shards: tuple[TokenShard, ...]
    left_out: LeftOut
    step: int
    """Of the newest checkpoint."""
    tokenizer: Tokenizer

    def is_left_out(self, step: int) -> bool:
        return is_left_out(step, self.left_out, self.plan.steps)


def which(place: str, stage: str | None, step: int | None, text: str | None, small: bool) -> None:
    """Print what a step trained on or will train on, or when a text is seen.

    Raises ConfigError unless one of the two is asked for and the step is one of the plan, CheckpointError if the run has no checkpoint
    yet, DataError if its token sets are not those it was trained on.
    """
    if (step is None) == (text is None) or text == "":
        raise ConfigError("which documents, or which steps?", "give --step N, or --text with some text")
    name = smoke_name(place) if small else place
    ledger = open_ledger(f"{name}/{stage}" if stage else name)
    for line in _of_step(ledger, step) if step is not None else _of_text(ledger, text or ""):
        console.say(line)


def open_ledger(place: str) -> Ledger:
    """The order of a stage, or of the last stage of a run, as its newest checkpoint has it."""
    found = artifact.open_artifact(find_checkpoint(place if "@" in place else f"{place}@latest"), "checkpoint")
    identity, left_out = read_order(found.path)
    inputs = found.manifest.inputs
    token_sets = [
        open_token_set(Path(inputs[role].path)) for role in sorted(inputs, key=lambda role: (len(role), role)) if role.startswith("tokens.")
    ]
    # A stream has rows of any length; which one is read here only matters to the reader.
    streams = token_sets[0].row_tokens is None
    reader = open_rows(token_sets, "train", max(phase["row_tokens"] for phase in identity["phases"]) if streams else None)
    plan = read_plan(identity, reader.sources)
    if plan is None:
        raise DataError(
            f"{', '.join(str(one.folder) for one in token_sets)} is not what {found.path} was trained on",
            "bring the token set back that it was trained on; its documents have changed since",
        )
    stats = found.stats
    return Ledger(
        str(found.manifest.settings["settings"]["stage"]), plan, reader.shards, left_out, int(stats["step"]), open_tokenizer(found.path)
    )


def _of_step(ledger: Ledger, step: int) -> Iterator[str]:
    first, last = ledger.plan.start.step + 1, ledger.plan.steps
    if not first <= step <= last:
        raise ConfigError(f"{ledger.stage} has no step {step:,}", f"its steps are {first:,} to {last:,}")
    phase = ledger.plan.phase(step - 1)
    fate = "left out, it would have been" if ledger.is_left_out(step - 1) else "done" if step <= ledger.step else "to come"
    yield f"step {step:,} of {ledger.stage} ({fate}): {phase.batch_rows:,} rows of {phase.row_tokens:,} tokens"
    for line, parts in itertools.groupby(parts_of_step(ledger.plan, ledger.shards, step - 1), key=lambda part: part.line):
        for part in parts:
            yield f"  row {line}  tokens {part.first:,} to {part.end:,}  {_name(part.source, part.document)}{_going_on(part)}"


def _going_on(part: Part) -> str:
    went_on = f", from its token {part.from_token:,} on" if part.from_token else ""
    return f"{went_on}, epoch {part.epoch + 1}" if part.epoch else went_on


def _of_text(ledger: Ledger, text: str) -> Iterator[str]:
    found = [(number, shard, one) for number, shard in enumerate(ledger.shards) for one in _by_name(shard, ledger.tokenizer, text)]
    if not found:
        yield f"no document of {ledger.stage} holds this text as it was tokenized"
        return
    yield f"{len(found):,} documents of {ledger.stage} hold this text; the newest checkpoint is of step {ledger.step:,}"
    for source, shard, (name, numbers) in found[:SHOWN_DOCUMENTS]:
        seen = [visit.step for visit in visits(ledger.plan, source, shard, numbers)]
        steps = sorted({step + 1 for step in seen if not ledger.is_left_out(step)})
        done, to_come = [step for step in steps if step <= ledger.step], [step for step in steps if step > ledger.step]
        parts = [f"{words} {_listed(given)}" for words, given in (("seen in step", done), ("to come in step", to_come)) if given]
        left_out = sorted({step + 1 for step in seen if ledger.is_left_out(step)})
        parts += [f"left out with step {_listed(left_out)}"] if left_out else []
        yield f"  {_name(shard.source, name)}: {'; '.join(parts) or 'never, the run is over before'}"
    if len(found) > SHOWN_DOCUMENTS:
        yield f"  and {len(found) - SHOWN_DOCUMENTS:,} more documents: a longer text names fewer"


def _by_name(shard: TokenShard, tokenizer: Tokenizer, text: str) -> list[tuple[str, list[int]]]:
    """The documents with a text: the name of each, and its numbers in the index."""
    numbers = documents_with(shard, tokenizer, text)
    named = itertools.groupby(numbers, key=lambda number: str(shard.document_ids[number].as_py()))
    return [(name, list(group)) for name, group in named]


def _name(source: str, document: str) -> str:
    return f"{source} {document}"


def _listed(steps: Sequence[int]) -> str:
    more = f" and {len(steps) - SHOWN_STEPS:,} more" if len(steps) > SHOWN_STEPS else ""
    return f"{', '.join(f'{step:,}' for step in steps[:SHOWN_STEPS])}{more}"
