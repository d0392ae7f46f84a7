"""The way back: every document out of a token set, whole, once, in the order in which it was packed, however it lies in rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fledge.corpus.document import Split
from fledge.tokens.blocks import CheckedArray
from fledge.tokens.shards import TokenSet, TokenShard
from fledge.tokens.tokenizer import Tokenizer, require_same_tokenizer


@dataclass(frozen=True)
class TokenStream:
    """Documents of a shard one behind the other; D documents, N tokens."""

    tokens: CheckedArray | NDArray[Any]
    """(N,) ids."""
    starts: NDArray[np.int64]
    """(D,)"""
    lengths: NDArray[np.int64]
    """(D,)"""
    text_bytes: NDArray[np.int64]
    """(D,)"""


def token_stream(shard: TokenShard) -> TokenStream:
    """The documents of a shard without padding, cut ones put together again; of a set in rows held in memory."""
    if shard.supervised is None:
        return TokenStream(shard.tokens, shard.starts, shard.lengths, shard.text_bytes)
    documents = [np.concatenate([shard.tokens[begin:end] for begin, end in pieces]) for _, pieces in _documents(shard)]
    lengths = np.array([len(tokens) for tokens in documents])
    text_bytes = np.zeros(len(documents), np.int64)
    np.add.at(text_bytes, np.unique(shard.documents, return_inverse=True)[1], shard.text_bytes)
    return TokenStream(np.concatenate(documents), np.cumsum(lengths) - lengths, lengths, text_bytes)


def unpacked_documents(token_set: TokenSet, tokenizer: Tokenizer, split: Split | None = None) -> Iterator[tuple[str, str]]:
    """(id, text) of every document of a split, or of all. Of conversations and pairs the rendered text, its control tokens spelt out.

    Raises DataError if the set was made with another tokenizer.
    """
    require_same_tokenizer(token_set.tokenizer_sha256, tokenizer.sha256, str(token_set.folder))
    start, end = len(tokenizer.document_start), len(tokenizer.document_end)
    for meta in token_set.meta.shards:
        if split not in (None, meta.split):
            continue
        shard = next(shard for shard in token_set.shards(meta.split) if shard.source == meta.source)
        names = shard.document_ids.to_pylist()
        for place, pieces in _documents(shard):
            ids = [token for begin, last in pieces for token in shard.tokens[begin:last].tolist()]
            if token_set.content == "documents":
                yield names[place], tokenizer.decode(ids[start : len(ids) - end])
            else:
                yield names[place], tokenizer.decode(ids, keep_special=True)


def _documents(shard: TokenShard) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """For each document where its name is in the index, and where its parts begin and end."""
    order = np.lexsort((shard.parts, shard.documents)).tolist()
    for _, places in groupby(order, key=shard.documents.tolist().__getitem__):
        members = list(places)
        yield members[0], [(int(shard.starts[place]), int(shard.starts[place] + shard.lengths[place])) for place in members]
