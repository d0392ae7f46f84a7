"""Which engine encodes: the fastest of those that give exactly the reference's ids, on probes and on text that is about to be encoded.

A library that is not installed, or that does not know the tokenizer, is no candidate. One whose ids differ anywhere, or that fails on
the sample, is out for good. One that fails later, on some text of a long run, leaves that batch to the reference.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tokenizers

from fledge.core import console
from fledge.core.errors import DataError
from fledge.tokens.byte_level import SUPERWORD_PATTERN, split_pipeline
from fledge.tokens.engines.byte_pairs import GigatokenEngine, TiktokenEngine
from fledge.tokens.engines.reference import Encoded, Engine, ReferenceEngine

SAMPLE_BYTES = 1 << 18
"""UTF-8 bytes of a sample that are compared; the reference needs 0.1 CPU seconds for them."""

Candidate = Callable[[Mapping[str, Any]], Engine]


@dataclass(frozen=True)
class EngineChoice:
    """What was chosen, and why."""

    engine: Engine
    megabytes_per_cpu_second: dict[str, float]
    """Of every engine with the right ids, by name, on the sample; CPU time of all threads."""
    refused: dict[str, str]
    """Reasons, by name."""

    def record(self) -> dict[str, Any]:
        """For the figures of a run."""
        rates = {name: round(rate, 1) for name, rate in self.megabytes_per_cpu_second.items()}
        return {"engine": self.engine.name, "megabytes_per_cpu_second": rates, "refused": dict(self.refused)}


class EnginePool:
    """The engines that may serve one tokenizer; each choice can only narrow them."""

    def __init__(self, body: Mapping[str, Any], candidates: Mapping[str, Candidate] | None = None) -> None:
        """`body`: the content of a `tokenizer.json` without added tokens and post-processor."""
        self._reference = ReferenceEngine(tokenizers.Tokenizer.from_str(json.dumps(body)))
        self._refused: dict[str, str] = {}
        self._engines: dict[str, Engine] = {}
        for name, make in (_candidates(body) if candidates is None else candidates).items():
            try:
                self._engines[name] = make(body)
            except ImportError:
                continue
            # Libraries refuse in ways of their own, panics of Rust among them; `_reason` lets Ctrl-C and the like through.
            except BaseException as error:
                self._refused[name] = _reason(error)

    def choose(self, probes: Sequence[str], sample: Sequence[str]) -> EngineChoice:
        """Compare all on `probes` and the first SAMPLE_BYTES of `sample`. Raises DataError for text that is not valid Unicode."""
        texts = _beginning(sample)
        # Never empty, so that what engines load or compile at first is not in their rates.
        probes = [*probes, "a b"]
        megabytes = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts) / 1e6
        expected_probes = self._reference.encode_batch(probes)
        expected, seconds = _timed(self._reference, texts)
        rates = {self._reference.name: megabytes / seconds}
        for name, engine in list(self._engines.items()):
            try:
                differing = _first_difference(probes, expected_probes, engine.encode_batch(probes))
                found, seconds = _timed(engine, texts)
                differing = differing or _first_difference(texts, expected, found)
            except BaseException as error:  # as above
                differing = _reason(error)
            if differing is not None:
                self._refused[name] = differing
                del self._engines[name]
            else:
                rates[name] = megabytes / seconds
        best = max(rates, key=rates.__getitem__)
        engine = self._reference if best == self._reference.name else GuardedEngine(self._engines[best], self._reference)
        return EngineChoice(engine, rates, dict(self._refused))


class GuardedEngine:
    """An engine that leaves a batch on which it fails to the reference."""

    def __init__(self, engine: Engine, reference: Engine) -> None:
        self.name = engine.name
        self._engine, self._reference = engine, reference
        self._warned = False

    def encode_batch(self, texts: Sequence[str]) -> Encoded:
        try:
            return self._engine.encode_batch(texts)
        except DataError:
            raise
        except BaseException as error:  # as in EnginePool
            reason = _reason(error)
        if not self._warned:
            console.warn(f"{self.name} failed ({reason}); {self._reference.name} encodes these texts instead, with the same ids")
            self._warned = True
        return self._reference.encode_batch(texts)


def choose_engine(body: Mapping[str, Any], probes: Sequence[str], sample: Sequence[str]) -> EngineChoice:
    """The fastest engine for a tokenizer whose ids are those of the reference; see `EnginePool`."""
    return EnginePool(body).choose(probes, sample)


def _candidates(body: Mapping[str, Any]) -> dict[str, Candidate]:
    # Here, because the kernels bring numba, which takes time to load.
    from fledge.tokens.engines.kernel import KernelEngine

    plain: dict[str, Candidate] = {"gigatoken": GigatokenEngine, "fledge": KernelEngine, "tiktoken": TiktokenEngine}
    if body["pre_tokenizer"] != split_pipeline(SUPERWORD_PATTERN):
        return plain
    from fledge.tokens.engines.two_level import TwoLevelEngine

    def second_level(make: Candidate) -> Candidate:
        return lambda body: TwoLevelEngine(body, make)

    return {f"{name}, superwords": second_level(make) for name, make in plain.items()}


def _beginning(sample: Sequence[str]) -> list[str]:
    """Texts from the first on, until there are SAMPLE_BYTES; the last may be cut."""
    texts: list[str] = []
    left = SAMPLE_BYTES
    for text in sample:
        if left <= 0:
            break
        texts.append(text[:left])
        left -= len(texts[-1].encode("utf-8", "surrogatepass"))
    return texts


def _timed(engine: Engine, texts: Sequence[str]) -> tuple[Encoded, float]:
    started = time.process_time()
    encoded = engine.encode_batch(texts)
    return encoded, max(time.process_time() - started, 1e-9)


def _first_difference(texts: Sequence[str], expected: Encoded, found: Encoded) -> str | None:
    if np.array_equal(expected.ids, found.ids) and np.array_equal(expected.offsets, found.offsets):
        return None
    place = next((place for place in range(len(texts)) if not np.array_equal(expected[place], found[place])), None)
    return "its offsets differ" if place is None else f"its ids differ for {texts[place][:80]!r}"


def _reason(error: BaseException) -> str:
    """Why an engine does not serve. Panics of libraries in Rust are no Exceptions; what else is none, as Ctrl-C, goes on up."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error
    return f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else str(error)
