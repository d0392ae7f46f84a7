"""Our own engine for byte-level BPE with `SPLIT_PATTERN`: the compiled loops of `splitting.py` and `merging.py`, on all cores.

What a letter, a number or white space is, is asked of Hugging Face tokenizers for every character when it first occurs: libraries
follow different versions of Unicode, and the ids have to be the reference's. Pieces of text met before come out of a cache, one per
thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import tokenizers
from numpy.typing import NDArray
from tokenizers import pre_tokenizers

from fledge.corpus.dedup.words import text_buffers
from fledge.corpus.engine.pool import available_cores
from fledge.tokens.byte_level import SPLIT_PATTERN, byte_alphabet, plain_merges, split_pipeline
from fledge.tokens.engines.reference import Encoded, not_unicode
from fledge.tokens.merging import encode_pieces, hash_table, pair_keys, word_cache
from fledge.tokens.splitting import LETTER, NEWLINE, NUMBER, SPACE, SYMBOL, UNKNOWN, cut_texts

_CACHE_ENTRIES = 1 << 16
_BYTES_PER_THREAD = 1 << 18
_CODE_POINTS = 0x110000


class KernelEngine:
    """Encodes with the kernels of this package; needs no other library than numba."""

    name = "fledge"

    def __init__(self, body: Mapping[str, Any]) -> None:
        """Raises ValueError for a tokenizer that is no plain byte-level BPE, or splits text in another way."""
        if body["pre_tokenizer"] != split_pipeline(SPLIT_PATTERN):
            raise ValueError("it does not split text by the pattern of cl100k")
        vocabulary, merges = plain_merges(body)
        sides = np.array([(vocabulary[left], vocabulary[right]) for left, right in merges], np.uint64).reshape(-1, 2)
        self._keys, self._ranks = hash_table(pair_keys(sides[:, 0], sides[:, 1]))
        self._merged = np.array([vocabulary[left + right] for left, right in merges], np.uint32)
        self._byte_ids = np.array([vocabulary[character] for character in byte_alphabet()], np.uint32)
        self._classes = np.full(_CODE_POINTS, UNKNOWN, np.uint8)
        self._learn("".join(map(chr, range(0x80))))
        self._caches = [word_cache(_CACHE_ENTRIES) for _ in range(available_cores())]

    def encode_batch(self, texts: Sequence[str]) -> Encoded:
        try:
            array = pa.array(texts, pa.large_string())
        except (UnicodeEncodeError, pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise not_unicode(texts) from error
        data, offsets = text_buffers(array)
        parts = max(1, min(len(self._caches), int(offsets[-1] - offsets[0]) // _BYTES_PER_THREAD, len(texts)))
        bounds = np.searchsorted(offsets, np.linspace(offsets[0], offsets[-1], parts + 1)[1:-1]).tolist()
        slices = [slice(start, stop) for start, stop in zip([0, *bounds], [*bounds, len(texts)], strict=True)]
        if parts == 1:
            return self._encode_part(texts, data, offsets, self._caches[0])
        with ThreadPoolExecutor(parts) as pool:
            work = (
                pool.submit(self._encode_part, texts[one], data, offsets[one.start : one.stop + 1], cache)
                for one, cache in zip(slices, self._caches, strict=False)
            )
            done = [part.result() for part in list(work)]
        lengths = np.concatenate([np.diff(part.offsets) for part in done])
        return Encoded(np.concatenate([part.ids for part in done]), np.concatenate([[0], np.cumsum(lengths)]))

    def _encode_part(self, texts: Sequence[str], data: NDArray[np.uint8], offsets: NDArray[np.int64], cache: NDArray[np.uint64]) -> Encoded:
        size_bytes = int(offsets[-1] - offsets[0])
        stops = np.empty(size_bytes, np.int64)
        if cut_texts(data, offsets, self._classes, stops) < 0:
            self._learn("".join(texts))
            cut_texts(data, offsets, self._classes, stops)
        out, out_offsets = np.empty(size_bytes, np.uint32), np.zeros(len(offsets), np.int64)
        count = encode_pieces(data, offsets, stops, self._byte_ids, self._keys, self._ranks, self._merged, cache, out, out_offsets)
        return Encoded(out[:count].copy(), out_offsets)

    def _learn(self, text: str) -> None:
        """Note the class of every character of a text."""
        characters = "".join(sorted(set(text)))
        classes = np.full(len(characters), SYMBOL, np.uint8)
        for kind, pattern in ((LETTER, r"\p{L}"), (NUMBER, r"\p{N}"), (SPACE, r"\s"), (NEWLINE, r"[\r\n]")):
            kept = pre_tokenizers.Split(tokenizers.Regex(pattern), "removed").pre_tokenize_str(characters)
            others = set("".join(piece for piece, _ in kept))
            classes[[character not in others for character in characters]] = kind
        self._classes[[ord(character) for character in characters]] = classes
