"""The ledger: what it says of a step is what the step reads, and what it says of a document is every step that reads it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from training_assembly import ROW_TOKENS, training_settings

from fledge.corpus.document import Content
from fledge.tokens.shards import TokenSet
from fledge.training.batches import RowReader, open_rows
from fledge.training.ledger import described, parts_of_step, visits
from fledge.training.phases import make_plan
from fledge.training.plan import Plan, read_plan
from fledge.training.settings import PhaseSettings

PHASES = (PhaseSettings(until_tokens=600), PhaseSettings(until_tokens=2_400, sequence_length=48, mixture={"manual": 3.0, "letters": 1.0}))


def opened(token_set: TokenSet, **changes: Any) -> tuple[RowReader, Plan]:
    is_stream = token_set.row_tokens is None
    settings = training_settings(**{"sequence_length": 16 if is_stream else None, "steps": None if changes else 30, **changes})
    reader = open_rows([token_set], "train", settings.longest_sequence_length)
    return reader, make_plan(reader.sources, settings, 1)


@pytest.mark.parametrize(
    ("content", "changes"), [("documents", {}), ("documents", {"phases": PHASES}), ("conversations", {}), ("preferences", {})]
)
def test_the_parts_of_a_step_are_what_it_reads(
    token_set_of: Callable[[Content], TokenSet], content: Content, changes: dict[str, Any]
) -> None:
    reader, plan = opened(token_set_of(content), **changes)
    for step in (0, 1, plan.steps - 1):
        row_tokens = plan.phase(step).row_tokens
        batch = reader.with_row_tokens(row_tokens).batch(plan.rows(step), plan.phase(step).batch_rows)
        told = np.zeros(batch.tokens.shape, dtype=np.int64)
        for part in parts_of_step(plan, reader.shards, step):
            row = plan.rows(step)[part.line]
            shard = reader.shards[row.source]
            numbers = [number for number, name in enumerate(shard.document_ids.to_pylist()) if name == part.document]
            place = row.index * row_tokens + part.first - part.from_token
            assert shard.source == part.source and place in shard.starts[numbers]
            assert part.epoch == row.epoch
            length = int(shard.lengths[numbers][list(shard.starts[numbers]).index(place)])
            assert part.end == min(row_tokens, part.first + length - part.from_token)
            told[part.line, part.first : part.end] += 1
        expected = np.ones_like(told)
        if content == "documents":
            # Beyond the end of a stream its last row is filled up.
            for line, row in enumerate(plan.rows(step)):
                expected[line, max(0, len(reader.shards[row.source].tokens) - row.index * row_tokens) :] = 0
        else:
            expected = (batch.tokens.numpy() != 103).astype(np.int64)
        assert (told == expected).all()


@pytest.mark.parametrize(
    ("content", "changes"), [("documents", {}), ("documents", {"phases": PHASES}), ("conversations", {}), ("preferences", {})]
)
def test_the_visits_of_a_document_are_all_steps_that_have_it(
    token_set_of: Callable[[Content], TokenSet], content: Content, changes: dict[str, Any]
) -> None:
    reader, plan = opened(token_set_of(content), **changes)
    by_document: dict[tuple[str, str], set[tuple[int, int]]] = {}
    for step in range(plan.steps):
        for part in parts_of_step(plan, reader.shards, step):
            by_document.setdefault((part.source, part.document), set()).add((step, part.epoch))
    for source, shard in enumerate(reader.shards):
        names = shard.document_ids.to_pylist()
        for name in names[:: max(1, len(names) // 9)]:
            numbers = [number for number, other in enumerate(names) if other == name]
            found = [(visit.step, visit.epoch) for visit in visits(plan, source, shard, numbers)]
            assert set(found) == by_document.get((shard.source, name), set()) and found == sorted(found)
    assert any(epoch for seen in by_document.values() for _, epoch in seen), "the run is longer than an epoch"


def test_documents_are_named_shortly(documents: TokenSet) -> None:
    reader, plan = opened(documents)
    parts = parts_of_step(plan, reader.shards, 0)
    line = described(parts, shown=2)
    assert line.startswith(f"{parts[0].source} {parts[0].document}, ") and line.endswith("more")
    assert described(parts[:1]) == f"{parts[0].source} {parts[0].document}"


def test_a_plan_is_read_from_its_identity(documents: TokenSet, conversations: TokenSet) -> None:
    reader, plan = opened(documents, phases=PHASES)
    assert read_plan(plan.identity(), reader.sources) == plan
    assert read_plan(plan.identity(), open_rows([conversations], "train", None).sources) is None
    assert conversations.row_tokens == ROW_TOKENS
