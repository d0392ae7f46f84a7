"""Faster libraries for byte-pair encoding: gigatoken, which is optional, and tiktoken.

    gigatoken   takes the tokenizer's own JSON; the ids come as one buffer; knows the published split patterns only
    tiktoken    OpenAI's: takes byte strings by rank and a pattern; the ids come as lists

tiktoken joins two neighbours whenever their bytes together are a token, whatever pair the merge names. With a vocabulary of trained
merges that is the same: what stands between two borders that no earlier merge crossed was merged as it would be alone, and alone it
becomes the two sides that the merge names. Where ids are not in the order of the merges the engine is refused here; the rest is for the
comparison in `choice.py`.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers

from fledge.corpus.engine.pool import available_cores
from fledge.tokens.byte_level import byte_alphabet, plain_merges
from fledge.tokens.engines.reference import Encoded, ReferenceEngine, joined, not_unicode, offsets_of

_GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What `ByteLevel` splits by on its own."""

_LONGEST_WHITE_SPACE = 100_000
"""Characters; the regular expressions of tiktoken keep a step to go back to for each, and panic at 1,000,000."""
_LONG_WHITE_SPACE = re.compile(rf"\s{{{_LONGEST_WHITE_SPACE}}}")


class GigatokenEngine:
    """gigatoken, by M. Roed: 240 MB of documentation and code per CPU second, where Hugging Face tokenizers encodes 1.5."""

    name = "gigatoken"

    def __init__(self, body: Mapping[str, Any]) -> None:
        """Raises ImportError where it is not installed, ValueError for a tokenizer that it does not know."""
        import gigatoken

        self._tokenizer = gigatoken.Tokenizer.from_json(json.dumps(body))

    def encode_batch(self, texts: Sequence[str]) -> Encoded:
        import awkward

        try:
            rows = self._tokenizer.encode_batch(list(texts))
        except TypeError as error:
            raise not_unicode(texts) from error
        ids = awkward.to_numpy(awkward.flatten(rows)).astype(np.uint32, copy=False)
        return Encoded(ids, offsets_of(awkward.to_numpy(awkward.num(rows))))


class TiktokenEngine:
    """tiktoken: 6.5 MB of the same per CPU second. White space without end goes to the reference: its regular expressions would panic."""

    name = "tiktoken"

    def __init__(self, body: Mapping[str, Any]) -> None:
        """Raises ValueError for a tokenizer that is no byte-level BPE of merges in the order of their ids."""
        import tiktoken

        ranks, pattern = _ranks(body), _pattern(body)
        self._encoding = tiktoken.Encoding("body", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        self._reference = ReferenceEngine(tokenizers.Tokenizer.from_str(json.dumps(body)))

    def encode_batch(self, texts: Sequence[str]) -> Encoded:
        try:
            "".join(texts).encode("utf-8")
        except (TypeError, UnicodeEncodeError) as error:
            raise not_unicode(texts) from error
        endless = [place for place, text in enumerate(texts) if _has_endless_white_space(text)]
        if endless:
            return self._encode_around(texts, endless)
        rows = self._encoding.encode_ordinary_batch(list(texts), num_threads=available_cores())
        offsets = offsets_of(np.fromiter(map(len, rows), np.int64, len(rows)))
        return Encoded(np.fromiter(itertools.chain.from_iterable(rows), np.uint32, int(offsets[-1])), offsets)

    def _encode_around(self, texts: Sequence[str], endless: Sequence[int]) -> Encoded:
        apart = set(endless)
        ordinary = self.encode_batch(["" if place in apart else text for place, text in enumerate(texts)])
        hard = self._reference.encode_batch([texts[place] for place in endless])
        rows = [ordinary[place] for place in range(len(texts))]
        for number, place in enumerate(endless):
            rows[place] = hard[number]
        return joined(rows)


def _ranks(body: Mapping[str, Any]) -> dict[bytes, int]:
    """The ids of all tokens by their bytes. Raises ValueError unless the merges make a token each, in the order of the ids."""
    vocabulary, merges = plain_merges(body)
    values = {character: value for value, character in enumerate(byte_alphabet())}
    made = [left + right for left, right in merges]
    ids = [vocabulary[token] for token in made]
    if len(set(ids)) != len(ids) or ids != sorted(ids):
        raise ValueError("its ids are not in the order of its merges")
    # A token that no merge makes, as a control token in the vocabulary of GPT-2, never comes out of the reference either.
    return {bytes(values[character] for character in token): vocabulary[token] for token in (*values, *made)}


def _pattern(body: Mapping[str, Any]) -> str:
    """What text is split by. Raises ValueError for other pre-tokenizers than the two of byte-level BPE."""
    steps = body["pre_tokenizer"] or {}
    steps = steps.get("pretokenizers", [steps])
    *splits, last = steps
    if last.get("type") == "ByteLevel" and not last.get("add_prefix_space"):
        if not splits and last.get("use_regex", True):
            return _GPT2_PATTERN
        if len(splits) == 1 and not last.get("use_regex", True) and splits[0].get("behavior") == "Isolated" and not splits[0].get("invert"):
            return str(splits[0]["pattern"]["Regex"])
    raise ValueError("it does not split text by one pattern")


def _has_endless_white_space(text: str) -> bool:
    """Whether there is a run of _LONGEST_WHITE_SPACE; almost every text is told by its length or by a few of its characters."""
    seen = text[:: _LONGEST_WHITE_SPACE // 2]
    return re.search(r"\s\s", seen) is not None and _LONG_WHITE_SPACE.search(text) is not None
