"""Documents that give away what a model will be evaluated on, found by runs of words they share with the evaluation files.

After GPT-3 (Brown et al., 2020, appendix C): a document is contaminated if it has 13 words in a row in common with an evaluation
text, without regard to case and punctuation. A text of 8 to 12 words counts as a whole; GPT-3 saw too many chance hits below 8, so
shorter ones are not looked for. Every string of an evaluation file is a text of its own, so that a run never reaches from a question
into the next; a text file is one text.

Runs differ in length but all begin with 8 words. A document's runs of 8 are looked up in a table of bits, of which at most one in 32 is
set; only where the bit is set are the longer runs hashed and searched for: about 300 MB per CPU second with 170,000 runs.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numba import njit
from numpy.typing import NDArray

from fledge.corpus.dedup.words import Hashes, blocks, hash_runs, hash_words, text_buffers
from fledge.corpus.filters.evaluation_files import EvaluationFile as EvaluationFile
from fledge.corpus.filters.evaluation_files import find_evaluation_files as find_evaluation_files
from fledge.corpus.filters.evaluation_files import strings

SHORTEST_RUN_WORDS = 8

_BATCH_CHARACTERS = 4_000_000
_BITS_PER_RUN = 32

_U64 = np.uint64
_RUN_BASE = _U64(0xC6A4A7935BD1E995)
_MURMUR_1 = _U64(0xFF51AFD7ED558CCD)
_MURMUR_2 = _U64(0xC4CEB9FE1A85EC53)


class _Runs(NamedTuple):
    """All runs of all files, as a compiled loop can search them."""

    bits: NDArray[np.uint64]
    """Set at the top bits of the hash of every run of the shortest length."""
    bit_shift: np.uint64
    lengths: NDArray[np.int64]
    """Of the runs, ascending, in words."""
    hashes: NDArray[np.uint64]
    """Sorted."""
    bucket_shift: np.uint64
    buckets: NDArray[np.int64]
    """Where in `hashes` those begin that have the same top bits: about one each."""
    file_indices: NDArray[np.int32]
    """For each hash the first file that holds the run."""


class Contamination:
    """Finds the documents that share a run of words with a file. Reads the files at once; DataError if one has changed or is damaged."""

    def __init__(self, files: Sequence[EvaluationFile], shingle_words: int) -> None:
        self.files = tuple(files)
        self._shingle_words = shingle_words
        self._shortest_words = min(SHORTEST_RUN_WORDS, shingle_words)
        self._runs, self.run_counts = self._gather()

    @property
    def identity(self) -> Any:
        """What decides which documents are found, as plain JSON."""
        return {"files": [[file.name, file.sha256] for file in self.files], "shingle_words": self._shingle_words}

    def __call__(self, texts: pa.LargeStringArray) -> NDArray[np.int32]:
        """(len(texts),): index of the first file with which a text shares a run, or -1."""
        data, offsets = text_buffers(texts)
        found = np.full(len(texts), -1, np.int32)
        for block in blocks(offsets):
            words = hash_words(data, offsets[block.start : block.stop + 1])
            starts = hash_runs(words, self._shortest_words)
            _find(words.values, words.offsets, starts.values, starts.offsets, self._runs, found[block])
        return found

    def _gather(self) -> tuple[_Runs, dict[str, int]]:
        """The runs, and by name of a file how many different ones it holds: 0 means that it protects nothing."""
        starts, lengths, hashes = [np.empty(0, np.uint64)], [np.empty(0, np.int64)], [np.empty(0, np.uint64)]
        counts = {}
        for file in self.files:
            own = [np.empty(0, np.uint64)]
            for words in _words(strings(file)):
                sizes = np.diff(words.offsets)
                starts.append(hash_runs(words, self._shortest_words).values)
                lengths.append(np.unique(np.minimum(sizes[sizes >= self._shortest_words], self._shingle_words)))
                own.append(_hash_all(words.values, words.offsets, self._shingle_words, self._shortest_words))
            hashes.append(np.unique(np.concatenate(own)))
            counts[file.name] = len(hashes[-1])
        file_indices = np.repeat(np.arange(-1, len(self.files), dtype=np.int32), [len(array) for array in hashes])
        distinct, first = np.unique(np.concatenate(hashes), return_index=True)
        bits, bit_shift = _bit_table(np.unique(np.concatenate(starts)))
        buckets, bucket_shift = _bucket_table(distinct)
        return _Runs(bits, bit_shift, np.unique(np.concatenate(lengths)), distinct, bucket_shift, buckets, file_indices[first]), counts


def _words(texts: Iterable[str]) -> Iterator[Hashes]:
    """The words of texts, a batch at a time. Documents are composed (NFC) as a rule; a text that is not counts in both forms."""
    batch: list[bytes] = []
    characters = 0
    for text in texts:
        forms = {text, unicodedata.normalize("NFC", text)}
        # JSON can hold half a surrogate pair, which no document does.
        batch += [form.encode("utf-8", "replace") for form in sorted(forms)]
        characters += len(text)
        if characters >= _BATCH_CHARACTERS:
            yield hash_words(*text_buffers(pa.array(batch, pa.large_binary())))
            batch, characters = [], 0
    yield hash_words(*text_buffers(pa.array(batch, pa.large_binary())))


def _bit_table(hashes: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], np.uint64]:
    """Bits, of which those are set that the hashes name when they are shifted right."""
    exponent = max(16, (_BITS_PER_RUN * hashes.size - 1).bit_length())
    bits, shift = np.zeros(1 << exponent - 6, np.uint64), _U64(64 - exponent)
    _set_bits(hashes, shift, bits)
    return bits, shift


def _bucket_table(hashes: NDArray[np.uint64]) -> tuple[NDArray[np.int64], np.uint64]:
    """Where in the sorted hashes the buckets begin, and where the last one ends; the bucket of a hash shifted right."""
    exponent = max(1, (hashes.size - 1).bit_length())
    shift = _U64(64 - exponent)
    firsts = np.arange(1 << exponent, dtype=np.uint64) << shift
    return np.append(np.searchsorted(hashes, firsts), hashes.size), shift


@njit(nogil=True, cache=True)
def _find(
    words: NDArray[np.uint64],
    word_offsets: NDArray[np.int64],
    starts: NDArray[np.uint64],
    start_offsets: NDArray[np.int64],
    runs: _Runs,
    found: NDArray[np.int32],
) -> None:
    """Sets found[document] to the smallest index of a file with a common run, where there is one."""
    candidates = np.empty(starts.size, np.int64)
    for document in range(word_offsets.size - 1):
        first_start = start_offsets[document]
        count = np.int64(0)
        # No branch: the table is larger than the nearest cache, and many loads from it are under way at a time.
        for start in range(first_start, start_offsets[document + 1]):
            bit = starts[start] >> runs.bit_shift
            candidates[count] = start
            count += np.int64(runs.bits[bit >> _U64(6)] >> (bit & _U64(63)) & _U64(1))
        text = words[word_offsets[document] : word_offsets[document + 1]]
        for start in candidates[:count]:
            index = _first_file(text, start - first_start, runs)
            if index >= 0 and (found[document] < 0 or index < found[document]):
                found[document] = index
            if index == 0:
                break


@njit(nogil=True, cache=True)
def _first_file(text: NDArray[np.uint64], position: int, runs: _Runs) -> int:
    """Smallest index of a file that holds one of the runs that begin at a position, or -1."""
    first, rolling, read = -1, _U64(0), position
    for length in runs.lengths:
        if position + length > text.size:
            break
        while read < position + length:
            rolling = rolling * _RUN_BASE + text[read]
            read += 1
        hashed = _mix(rolling)
        bucket = hashed >> runs.bucket_shift
        for place in range(runs.buckets[bucket], runs.buckets[bucket + _U64(1)]):
            index = runs.file_indices[place]
            if runs.hashes[place] == hashed and (first < 0 or index < first):
                first = index
    return first


@njit(nogil=True, cache=True)
def _hash_all(words: NDArray[np.uint64], word_offsets: NDArray[np.int64], run_words: int, shortest_words: int) -> NDArray[np.uint64]:
    """Hashes of all runs of run_words words; a shorter document of at least shortest_words is one run."""
    hashes = np.empty(words.size, np.uint64)
    count = 0
    for document in range(word_offsets.size - 1):
        text = words[word_offsets[document] : word_offsets[document + 1]]
        length = min(run_words, text.size)
        if length < shortest_words:
            continue
        for position in range(text.size - length + 1):
            rolling = _U64(0)
            for word in text[position : position + length]:
                rolling = rolling * _RUN_BASE + word
            hashes[count] = _mix(rolling)
            count += 1
    return hashes[:count]


@njit(nogil=True, cache=True)
def _set_bits(hashes: NDArray[np.uint64], bit_shift: np.uint64, bits: NDArray[np.uint64]) -> None:
    for hashed in hashes:
        bit = hashed >> bit_shift
        bits[bit >> _U64(6)] |= _U64(1) << (bit & _U64(63))


@njit(nogil=True, cache=True)
def _mix(number: np.uint64) -> np.uint64:
    """MurmurHash3's finaliser (A. Appleby). Not shared with `words.py`: numba's cache does not see a change in another file."""
    number = (number ^ number >> _U64(33)) * _MURMUR_1
    number = (number ^ number >> _U64(33)) * _MURMUR_2
    return number ^ number >> _U64(33)
