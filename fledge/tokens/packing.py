"""Fills token shards with conversations and preference pairs, in rows of one length; documents have document_packing.py.

No answer is ever cut, since half of one teaches to stop in the middle. They are placed by best-fit decreasing. A pair is two whole
conversations in one row, the chosen answer first. What is longer than a row is left out and counted, or loses whole exchanges until it
fits. Rows stand in the order of the corpus (by their first member); the order of training is decided later.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fledge.core import console
from fledge.corpus.document import Content, Conversation, Message, Preference, Split
from fledge.tokens.best_fit import best_fit
from fledge.tokens.chat import Rendered, render_batch, trimmed
from fledge.tokens.figures import DocumentHashes, PackingFigures
from fledge.tokens.shard_format import ShardMeta, TokenSetMeta, record_shards, token_array
from fledge.tokens.shard_writer import Segment, ShardWriter
from fledge.tokens.tokenizer import Tokenizer

T = TypeVar("T")

_Group = tuple[Segment, ...]

SHORTEST_TURNS = 2
"""A question and its answer, of which a truncated conversation keeps one at least."""
BATCH_DOCUMENTS = 1_024
"""Documents encoded together; enough to keep all cores of the encoder busy, few enough to stay small in memory."""


def pack_conversations(
    conversations: Iterable[Conversation],
    tokenizer: Tokenizer,
    folder: Path,
    split: Split,
    row_tokens: int,
    hashes: DocumentHashes | None = None,
    *,
    truncate: bool = False,
    everything: bool = False,
) -> dict[str, Any]:
    """Write the shards of a split of conversations in rows of `row_tokens` tokens; returns its figures.

    `truncate`: one that is too long keeps its first exchanges. `everything`: all of it is learned, not the answers alone. Held in
    memory until they are placed: about 3 bytes per token. Raises DataError if the training split is empty, or all of it is longer
    than a row.
    """
    meta = token_set_meta("conversations", tokenizer, row_tokens)
    groups: dict[str, list[_Group]] = defaultdict(list)
    figures = PackingFigures("conversations", split, row_tokens, hashes or DocumentHashes())
    with console.progress(f"pack {split} conversations", None, "conversations") as progress:
        for batch in in_batches(conversations):
            rendered = render_batch(tokenizer, [conversation.messages for conversation in batch])
            for conversation, whole in zip(batch, rendered, strict=True):
                messages, one = conversation.messages, whole
                while truncate and len(one.ids) > row_tokens and len(messages) > SHORTEST_TURNS + (messages[0].role == "system"):
                    messages = messages[:-2]
                    one = render_batch(tokenizer, [messages])[0]
                is_truncated = one is not whole
                learned = [message.content for message in messages if everything or message.role == "assistant"]
                if everything:
                    one = Rendered(one.ids, [True] * len(one.ids))
                segment = _segment(conversation.id, one, learned, meta)
                if _accept(figures, (segment,), is_truncated):
                    groups[conversation.source].append((segment,))
            progress.advance(len(batch))
    return _write_rows(folder, meta, tokenizer, figures, groups)


def pack_preferences(
    preferences: Iterable[Preference],
    tokenizer: Tokenizer,
    folder: Path,
    split: Split,
    row_tokens: int,
    hashes: DocumentHashes | None = None,
    *,
    truncate: bool = False,
) -> dict[str, Any]:
    """Write the shards of a split of preference pairs in rows of `row_tokens` tokens; returns its figures, in which a pair counts once.

    `truncate`: the prompt of one that is too long keeps its last exchanges. Only the two answers are targets, not those in the prompt.
    Raises DataError as `pack_conversations` does.
    """
    meta = token_set_meta("preferences", tokenizer, row_tokens)
    groups: dict[str, list[_Group]] = defaultdict(list)
    figures = PackingFigures("preferences", split, row_tokens, hashes or DocumentHashes())
    with console.progress(f"pack {split} preferences", None, "pairs") as progress:
        for batch in in_batches(preferences):
            rendered = _answered(tokenizer, batch)
            for pair, both_whole in zip(batch, rendered, strict=True):
                prompt, (chosen, rejected) = pair.prompt, both_whole
                while truncate and len(chosen.ids) + len(rejected.ids) > row_tokens and (shorter := _without_first_exchange(prompt)):
                    prompt = shorter
                    [(chosen, rejected)] = _answered(tokenizer, [replace(pair, prompt=prompt)])
                both = (
                    _segment(pair.id, chosen, [pair.chosen], meta, pair.damage),
                    _segment(pair.id, rejected, [pair.rejected], meta, pair.damage),
                )
                if _accept(figures, both, is_truncated=prompt is not pair.prompt):
                    groups[pair.source].append(both)
            progress.advance(len(batch))
    return _write_rows(folder, meta, tokenizer, figures, groups)


def _answered(tokenizer: Tokenizer, pairs: Sequence[Preference]) -> list[tuple[Rendered, Rendered]]:
    """Both answers behind the prompt of each pair."""
    whole = [(*pair.prompt, Message("assistant", answer)) for pair in pairs for answer in (pair.chosen, pair.rejected)]
    rendered = render_batch(tokenizer, whole, last_answer_only=True)
    return list(zip(rendered[0::2], rendered[1::2], strict=True))


def _without_first_exchange(prompt: tuple[Message, ...]) -> tuple[Message, ...] | None:
    """The prompt without its oldest question and answer; None if it has but the question that is answered. A system message stays."""
    first = 1 if prompt[0].role == "system" else 0
    return (*prompt[:first], *prompt[first + 2 :]) if len(prompt) > first + 2 else None


def token_set_meta(content: Content, tokenizer: Tokenizer, row_tokens: int | None) -> TokenSetMeta:
    """The description of a set without any shard yet."""
    return TokenSetMeta(content, tokenizer.sha256, tokenizer.vocabulary_size, row_tokens, end_of_text=tokenizer.end_of_text)


def in_batches(items: Iterable[T]) -> Iterator[list[T]]:
    """The items in lists of `BATCH_DOCUMENTS`."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, BATCH_DOCUMENTS)):
        yield batch


def _accept(figures: PackingFigures, segments: _Group, is_truncated: bool) -> bool:
    """Count what fits into a row, or that it does not, or that without what it lost it says what another one says."""
    needed_tokens = sum(len(segment.tokens) for segment in segments)
    figures.longest_tokens = max(figures.longest_tokens, needed_tokens)
    if figures.row_tokens is not None and needed_tokens > figures.row_tokens:
        figures.dropped_too_long += 1
        return False
    content = b"".join(segment.tokens.tobytes() for segment in segments)
    if figures.hashes.repeats(content, is_truncated):
        figures.truncated_duplicates += 1
        return False
    figures.truncated += is_truncated
    figures.documents += 1
    figures.hashes.add(figures.split, [content])
    for segment in segments:
        assert segment.supervised is not None
        figures.text_bytes += segment.text_bytes
        figures.segment_tokens += len(segment.tokens)
        figures.supervised_tokens += int(segment.supervised.sum())
    return True


def _write_rows(
    folder: Path, meta: TokenSetMeta, tokenizer: Tokenizer, figures: PackingFigures, groups: dict[str, list[_Group]]
) -> dict[str, Any]:
    figures.require_some()
    shards = [_write_row_shard(folder, meta, tokenizer, figures.split, source, members) for source, members in groups.items()]
    record_shards(folder, replace(meta, shards=tuple(shards)))
    return figures.told(shards)


def _write_row_shard(
    folder: Path, meta: TokenSetMeta, tokenizer: Tokenizer, split: Split, source: str, members: Sequence[_Group]
) -> ShardMeta:
    assert meta.row_tokens is not None
    writer = ShardWriter(folder, split, source, meta)
    lengths = [sum(len(segment.tokens) for segment in member) for member in members]
    for row in best_fit(lengths, meta.row_tokens):
        for index in row:
            for segment in members[index]:
                writer.append(segment)
        writer.pad(tokenizer.padding, meta.row_tokens - sum(lengths[index] for index in row))
    return writer.close()


def _segment(document_id: str, rendered: Rendered, answers: Sequence[str], meta: TokenSetMeta, damage: str | None = None) -> Segment:
    supervised = np.array(rendered.supervised, dtype=np.uint8)
    text_bytes = sum(len(trimmed(answer).encode("utf-8")) for answer in answers)
    return Segment(document_id, token_array(rendered.ids, meta), text_bytes, supervised, damage)
