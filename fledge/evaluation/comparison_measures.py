"""What a comparison measures on one model: a checkpoint and what is asked for -> scores with their items, and answers.

Models are measured one after the other, so only one has to fit into memory. A folder of others brings a tokenizer of its own, which is
taken over as `tokenizer: {kind: import}` does it, so that it encodes exactly as its own library.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from fledge.core import artifact
from fledge.core.artifact import Artifact
from fledge.core.errors import DataError
from fledge.corpus.document import Document
from fledge.evaluation.checkpoint import answers_questions, training_settings
from fledge.evaluation.comparison import ComparedData, ComparedModel, Measured, Outcomes
from fledge.evaluation.generations import respond
from fledge.evaluation.settings import EvaluateSettings
from fledge.evaluation.text_files import text_costs
from fledge.model.adapter_config import find_base, is_adapter, open_base
from fledge.model.cost import parameter_count
from fledge.model.folder import load_model
from fledge.model.llama import Llama
from fledge.tokens.folder import META_FILE
from fledge.tokens.importing import import_tokenizer
from fledge.tokens.settings import TokenizerSettings
from fledge.tokens.tokenizer import Tokenizer, open_tokenizer


@dataclass(frozen=True)
class Text:
    """Documents to measure bits per byte and perplexity on; every model gets the same ones."""

    data: ComparedData
    documents: Callable[[], Iterable[Document]]
    note: str


@dataclass(frozen=True)
class Questions:
    """What every model is asked."""

    texts: tuple[Text, ...]
    prompts: tuple[str, ...]
    settings: EvaluateSettings


def measure(name: str, checkpoint: Artifact, asked: Questions) -> ComparedModel:
    """Everything that is asked of a model. Raises CheckpointError or DataError if it cannot be opened, or a text is empty."""
    model, tokenizer = load_model(checkpoint.path).eval(), open_any_tokenizer(checkpoint.path)
    settings = asked.settings
    answers = answers_questions(checkpoint, model, tokenizer)
    return ComparedModel(
        name,
        str(checkpoint.path),
        checkpoint.id,
        weights_sha256(checkpoint),
        tokenizer.sha256,
        parameter_count(model.config),
        tuple(_measured(model, tokenizer, checkpoint, asked)),
        tuple(respond(model, tokenizer, asked.prompts, answers, settings.maximum_answer_tokens, settings.precision)),
    )


def open_any_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a checkpoint of ours, or of a model folder of others. Raises DataError if it cannot be taken over exactly."""
    if (folder / META_FILE).is_file():
        return open_tokenizer(folder)
    with tempfile.TemporaryDirectory() as place:
        import_tokenizer(TokenizerSettings(kind="import", path=str(folder)), Path(place))
        return open_tokenizer(place)


def weights_sha256(checkpoint: Artifact) -> dict[str, str]:
    """The hashes of the files that hold a model's weights; of an adapter those of its base too."""
    own = {name: digest.sha256 for name, digest in checkpoint.manifest.files.items() if name.endswith(".safetensors") and "/" not in name}
    if not is_adapter(checkpoint.path):
        return own
    return own | {f"base/{name}": digest for name, digest in weights_sha256(open_base(find_base(checkpoint.path))).items()}


def damaged_files(checkpoint: Artifact) -> list[str]:
    """What of a model's folder is no longer as its manifest says, one line each; what only training reads is left out."""
    read = {name: digest for name, digest in checkpoint.manifest.files.items() if "/" not in name}
    return artifact.changed_files(checkpoint.path, read)


def _measured(model: Llama, tokenizer: Tokenizer, checkpoint: Artifact, asked: Questions) -> Iterator[Measured]:
    isolate = training_settings(checkpoint).get("isolate_documents", True)
    for text in asked.texts:
        costs = text_costs(model, tokenizer, text.documents(), asked.settings, isolate_documents=isolate)
        if costs is None:
            raise DataError(f"{text.data.name} holds no text to measure", "name a file with text in it")
        items = tuple(str(number) for number in range(len(costs.nats)))
        bits, perplexity = (
            replace(score, name=f"{score.name}/{text.data.name}", note="; ".join(part for part in (score.note, text.note) if part))
            for score in (costs.bits_per_byte, costs.perplexity)
        )
        yield Measured(bits, text.data.sha256, Outcomes(items, costs.bits, costs.text_bytes))
        # Its significance is that of the bits, of which it is another form; between tokenizers it cannot be compared at all.
        yield Measured(replace(perplexity, note=f"per token of this model's tokenizer; {perplexity.note}"), text.data.sha256)
