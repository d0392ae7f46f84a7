"""What a corpus is asked for: its contents, and what decides the rows of each. Known without what builds one, whose kernels take 0.6 s."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from fledge.core.config import identity
from fledge.corpus.document import Content
from fledge.corpus.filters import own_rules
from fledge.corpus.filters.evaluation_files import EvaluationFile
from fledge.corpus.resolve import Resolved
from fledge.corpus.settings import CorpusSettings

_ROW_SETTINGS = ("turns", "validation_fraction", "seed", "shard_documents")


def contents(settings: CorpusSettings) -> tuple[Content, ...]:
    """Which contents the sources name, in the order documents, conversations, preferences."""
    named = {source.content for source in settings.sources}
    return tuple(content for content in get_args(Content) if content in named)


def corpus_identity(
    settings: CorpusSettings, content: Content, sources: Sequence[Resolved], evaluation_files: Sequence[EvaluationFile]
) -> dict[str, Any]:
    """What decides the rows of one content, as plain JSON for the artifact's key: settings and what the sources hold now."""
    decisive = identity(settings)
    told = [{**identity(resolved.source), "fingerprint": resolved.fingerprint} for resolved in sources]
    files = [[file.name, file.sha256] for file in evaluation_files]
    if content != "documents":
        compared = {"evaluation_files": files, "decontaminate": decisive["decontaminate"]} if files else {}
        return {"sources": told, "content": content, **{name: decisive[name] for name in _ROW_SETTINGS}, **compared}
    decisive.pop("turns")
    decisive["quality"]["own_rules"] = [[rule.function, rule.sha256] for rule in map(own_rules.find, settings.quality.own_rules)]
    return {**decisive, "sources": told, "content": content, "evaluation_files": files}
