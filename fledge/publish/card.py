"""The model card, `README.md` in the form of the hub: what the model is, what it was made from, what it scores, how it is used.

What it says is read from manifests: ids and hashes of everything the model descends from, licences as the data cards of its corpora have
them, scores of the run's own evaluation if that measured these very weights. Of paths it says nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fledge.core import __version__, artifact
from fledge.core.artifact import Artifact
from fledge.core.errors import ArtifactError
from fledge.corpus.build import STATS
from fledge.corpus.card_figures import NOT_STATED
from fledge.corpus.card_markdown import code, hub_license, table, yaml_list
from fledge.evaluation.checkpoint import CheckpointEvaluation, evaluation_from_plain, results_table
from fledge.evaluation.run_data import RESULTS
from fledge.model.cost import parameter_count
from fledge.model.folder import architecture_of
from fledge.publish.settings import GGUF_FILE, MODELFILE, ModelTarget, WeightType
from fledge.publish.source import Source

EVALUATION = "evaluate"


def model_card(source: Source, name: str, target: ModelTarget, weight_type: WeightType) -> str:
    """The card as Markdown; the same checkpoint gives the same bytes."""
    ancestors = [(role, found) for _, role, _, found in artifact.lineage(source.artifact) if found is not None]
    provenance = [one for _, found in ancestors if found.manifest.kind == "corpus" for one in _provenance(found)]
    sections = [
        f"# {code(name)}",
        *_description(source, weight_type),
        *_usage(source, name, target),
        *_scores(source.artifact, weight_type),
        *_licences(provenance),
        *_lineage(source.artifact, ancestors),
    ]
    return "\n".join(["---", *_header(source, provenance, target), "---", "", "\n\n".join(sections), ""])


def find_scores(checkpoint: Artifact) -> CheckpointEvaluation | None:
    """What the evaluation of the run that a checkpoint lies in measured on these very weights; None if it did not."""
    folder = checkpoint.path.resolve().parents[2] / EVALUATION if len(checkpoint.path.resolve().parents) > 2 else None
    if folder is None or not (folder / artifact.MANIFEST).is_file() or not (folder / RESULTS).is_file():
        return None
    try:
        measured = artifact.open_artifact(folder, "evaluation")
        names = [role.partition(".")[2] for role, given in measured.manifest.inputs.items() if given.id == checkpoint.id]
        evaluations = json.loads((folder / RESULTS).read_text(encoding="utf-8"))["evaluations"]
        return next((evaluation_from_plain(one) for one in evaluations if one["name"] in names), None)
    except (ArtifactError, ValueError, KeyError, TypeError):
        return None  # Another version's, or damaged: a card without scores is right too.


def _provenance(corpus: Artifact) -> Sequence[Mapping[str, Any]]:
    """Where the texts of a corpus come from, as its data card has it."""
    path = corpus.path / STATS
    stats: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return [one for one in stats.get("provenance", ()) if isinstance(one, dict)]


def _header(source: Source, provenance: Sequence[Mapping[str, Any]], target: ModelTarget) -> Iterator[str]:
    """YAML for the hub; JSON strings are YAML strings."""
    stated = list(dict.fromkeys(str(one.get("license", NOT_STATED)) for one in provenance))
    licences = list(dict.fromkeys(map(hub_license, stated)))
    only = licences[0] if len(licences) == 1 else "other" if licences else "unknown"
    yield f"license: {json.dumps(only)}"
    if only == "other":
        yield f"license_name: {json.dumps(', '.join(stated), ensure_ascii=False)}"
    yield f"library_name: {'transformers' if target == 'hf' else 'gguf'}"
    yield "pipeline_tag: text-generation"
    tags = ["fledge", architecture_of(source.model.config).model_type]
    tags += ["conversational"] if source.tokenizer.template is not None else []
    yield from yaml_list("tags", tags)
    addresses = (str(one.get("address") or "") for one in provenance if one.get("kind") == "hub")
    yield from yaml_list("datasets", list(dict.fromkeys(filter(None, map(_hub_name, addresses)))))


def _hub_name(address: str) -> str | None:
    """OWNER/NAME in the address of a source on the hub; None for one that is known by a short name only."""
    parts = address.removeprefix("hub:").split("/")
    return "/".join(parts[:2]) if len(parts) > 1 else None


def _description(source: Source, weight_type: WeightType) -> Iterator[str]:
    settings, tokenizer = source.model.config.settings, source.tokenizer
    facts = [
        ("class", architecture_of(source.model.config).class_name),
        ("parameters", f"{parameter_count(source.model.config):,}, stored in {weight_type}"),
        ("layers, width", f"{settings.num_hidden_layers}, {settings.hidden_size}"),
        ("query heads, key and value heads", f"{settings.num_attention_heads}, {settings.key_value_heads}"),
        ("context", f"{settings.max_position_embeddings:,} tokens"),
        ("tokenizer", f"{tokenizer.meta.kind}, {tokenizer.vocabulary_size:,} entries, sha256 {tokenizer.sha256[:16]}"),
        ("conversations", tokenizer.meta.template if tokenizer.template is not None else "no format"),
    ]
    yield f"A language model made with Fledge {__version__}.\n\n" + table(("", ""), facts, foreign={1})


def _usage(source: Source, name: str, target: ModelTarget) -> Iterator[str]:
    if target != "hf":
        command = f"ollama create {name} -f {MODELFILE}\nollama run {name}" if target == "ollama" else f"llama-cli -m {GGUF_FILE}"
        yield f"## How to use it\n\n```sh\n{command}\n```"
        return
    begin = source.tokenizer.document_start[0]
    opening = next(text for text, token in source.tokenizer.specials.items() if token == begin)
    lines = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"model, tokenizer = AutoModelForCausalLM.from_pretrained({name!r}), AutoTokenizer.from_pretrained({name!r})",
    ]
    if source.tokenizer.template is not None:
        lines += [
            'messages = [{"role": "user", "content": "What is a list?"}]',
            'inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)',
        ]
    else:
        lines += [f"# A text begins with {opening}, as in training.", f'inputs = tokenizer({opening + "The"!r}, return_tensors="pt")']
    lines += ["print(tokenizer.decode(model.generate(**inputs, max_new_tokens=100)[0], skip_special_tokens=True))"]
    yield "## How to use it\n\n```python\n" + "\n".join(lines) + "\n```"
    yield f"`vllm serve {name}` serves it; `fledge chat {name}` talks with it."


def _scores(checkpoint: Artifact, weight_type: WeightType) -> Iterator[str]:
    measured = find_scores(checkpoint)
    if measured is None or not measured.scores:
        return
    titles, rows = results_table([measured])
    told = "With 95 % intervals; a ? stands behind what cannot be told from guessing."
    if weight_type != "f32":
        told += f" Measured in fp32, before the cast to {weight_type}."
    yield f"## Scores\n\n{told}\n\n" + table(titles, rows, foreign=set())


def _licences(provenance: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if provenance:
        rows = [
            (str(one.get("source", "")), str(one.get("license", NOT_STATED)), str(one.get("address") or ""), str(one.get("revision") or ""))
            for one in provenance
        ]
        told = "The texts it was trained on, with their licences as far as they are stated:\n\n"
        yield "## Data\n\n" + told + table(("source", "licence", "from", "revision"), list(dict.fromkeys(rows)))


def _lineage(checkpoint: Artifact, ancestors: Sequence[tuple[str, Artifact]]) -> Iterator[str]:
    rows = [("this", checkpoint.manifest.kind, checkpoint.id, checkpoint.manifest.fledge_version)]
    rows += [(role, found.manifest.kind, found.id, found.manifest.fledge_version) for role, found in ancestors]
    yield "## Lineage\n\nEach id is a hash over settings, inputs and the SHA-256 of every file.\n\n" + table(
        ("role", "kind", "id", "made by Fledge"), list(dict.fromkeys(rows))
    )
