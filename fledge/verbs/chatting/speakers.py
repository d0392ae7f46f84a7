"""A checkpoint that speaks: its model in an engine, its tokenizer, and how it wants to be sampled from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fledge.core.config import Tree, parse
from fledge.inference.engine import BATCH_PREFILL_TOKENS, MAXIMUM_BATCH_ROWS, Engine
from fledge.inference.settings import EngineSettings, GenerationSettings
from fledge.model.devices import choose_device
from fledge.model.folder import load_model
from fledge.model.precision import choose_precision
from fledge.model.settings import DeviceName
from fledge.publish.generation import read_generation
from fledge.stages.checkpoint_names import find_checkpoint
from fledge.tokens.tokenizer import Tokenizer, open_tokenizer


@dataclass(frozen=True)
class Speaker:
    """A checkpoint ready to speak."""

    name: str
    """As the person called it."""
    folder: Path
    engine: Engine
    tokenizer: Tokenizer
    generation: GenerationSettings
    """What the checkpoint itself says, which is what its recipe said."""

    def for_batch(self, texts: int, context_tokens: int) -> Speaker:
        """The same with room for many texts at once, none longer than so many tokens, rather than for one of the model's whole context."""
        slots = min(texts, MAXIMUM_BATCH_ROWS)
        settings = replace(self.engine.settings, slots=slots, context_tokens=context_tokens, prefill_tokens=BATCH_PREFILL_TOKENS)
        engine = Engine(self.engine.model, self.engine.vocabulary_size, self.engine.stop_ids, self.engine.precision, settings)
        return replace(self, engine=engine)


def open_speaker(reference: str, settings: EngineSettings, device: DeviceName = "auto") -> Speaker:
    """The checkpoint that a reference names, with its tokenizer, in an engine of these settings; on a GPU by itself in bf16.

    Raises CheckpointError, DataError, or MachineError if the device is not there.
    """
    place = choose_device(device)
    folder = find_checkpoint(reference)
    tokenizer = open_tokenizer(folder)
    model = load_model(folder, place).eval()
    # A model of others may end a turn by a token that is none of our formats'.
    ends = {*tokenizer.end_ids(answers=True), *model.config.end_token_ids}
    precision = choose_precision("auto", place) if place.type == "cuda" else "fp32"
    engine = Engine(model, tokenizer.vocabulary_size, ends, precision, settings)
    return Speaker(reference, folder, engine, tokenizer, read_generation(folder))


def adjusted(settings: GenerationSettings, given: Mapping[str, Any]) -> GenerationSettings:
    """Settings with some values replaced. A value out of range, or an unknown name, is a ConfigError."""
    return parse(GenerationSettings, Tree({**asdict(settings), **given}, {}))
