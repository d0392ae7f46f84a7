"""A Modelfile for Ollama: the GGUF file, the format of conversations as a Go template, and how to sample.

The template is made from the same data as the ids and the Jinja of other programs (`tokens.templates`). It is all actions and no text
between them, so that there is no white space to trim. Two things a template of Go cannot do, whose functions Ollama chooses: white space
around a message stays, and Alpaca's second description, for tasks with an input, is never chosen.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from fledge.corpus.document import Role
from fledge.publish.settings import GGUF_FILE
from fledge.publish.source import Source
from fledge.tokens.templates import TASK, TURN_END, TURN_START, Template


def modelfile(source: Source) -> str:
    """The content of the file."""
    names = {token: name for name, token in source.tokenizer.specials.items()}
    sampling = source.generation
    lines = [f"FROM ./{GGUF_FILE}"]
    if source.tokenizer.template is not None:
        begin, end = (names[token] for token in (source.tokenizer.document_start[0], source.tokenizer.end_of_text))
        lines.append(f'TEMPLATE """{go_template(source.tokenizer.template, begin, end)}"""')
    lines += [f"PARAMETER stop {_quoted(names[token])}" for token in source.stop_ids if token in names]
    lines += [
        f"PARAMETER num_ctx {source.model.config.settings.max_position_embeddings}",
        f"PARAMETER temperature {sampling.temperature:g}",
        f"PARAMETER top_k {sampling.top_k}",
        f"PARAMETER top_p {sampling.top_p:g}",
        f"PARAMETER min_p {sampling.min_p:g}",
        f"PARAMETER repeat_penalty {sampling.repetition_penalty:g}",
    ]
    return "\n".join(lines) + "\n"


def go_template(template: Template, begin: str, end: str) -> str:
    """A format in the language of Go's text/template; `begin`: the control token that opens a document, `end`: the one that ends a text."""
    start = TURN_START if template.has_turn_tokens else ""
    given_end = template.closing + TURN_END if template.has_turn_tokens else ""
    around: dict[Role, tuple[str, str]] = {
        "assistant": (template.answer_opening, given_end or end),
        "system": ("", given_end),
        "user": ("", given_end),
    }
    turns = {
        role: f"{_literal(start + template.labels[role] + opening)}{{{{ .Content }}}}{_literal(closing)}"
        for role, (opening, closing) in around.items()
    }
    return "".join(_actions(template, begin, turns, _literal(start + template.labels["assistant"])))


def _actions(template: Template, begin: str, turns: Mapping[Role, str], answer: str) -> Iterator[str]:
    between = _literal(template.between)
    if template.opens_document:
        yield _literal(begin)
    yield "{{ range $index, $message := .Messages }}"
    if template.describes_task:
        yield f'{{{{ if eq $index 0 }}}}{{{{ if ne .Role "system" }}}}{_literal(TASK)}{between}{{{{ end }}}}{{{{ end }}}}'
    yield f"{{{{ if gt $index 0 }}}}{between}{{{{ end }}}}"
    yield f'{{{{ if eq .Role "assistant" }}}}{turns["assistant"]}'
    yield f'{{{{ else if eq .Role "system" }}}}{turns["system"]}'
    yield f"{{{{ else }}}}{turns['user']}{{{{ end }}}}"
    yield "{{ end }}"
    yield f"{{{{ if .Messages }}}}{between}{{{{ end }}}}{answer}"


def _literal(text: str) -> str:
    return f"{{{{ {_quoted(text)} }}}}" if text else ""


def _quoted(text: str) -> str:
    """A string of Go: JSON's are among them."""
    return json.dumps(text, ensure_ascii=False)
