"""The Modelfile's template writes the conversations that the model was trained on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fledge.corpus.document import Message
from fledge.publish.ollama import go_template, modelfile
from fledge.publish.source import Source
from fledge.tokens.chat import render
from fledge.tokens.templates import TASK_WITH_INPUT, TEMPLATES
from fledge.tokens.tokenizer import Tokenizer

from .go_template import execute

QUESTION, ANSWER = Message("user", 'What is a "list"?\nTell me.'), Message("assistant", "A row of things \\ {{ .X }}.")
CONVERSATIONS = {
    "question": [QUESTION],
    "system": [Message("system", "Be brief."), QUESTION],
    "turns": [QUESTION, ANSWER, Message("user", "And a tuple?")],
}


@pytest.mark.parametrize("conversation", CONVERSATIONS.values(), ids=CONVERSATIONS.keys())
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_template_writes_what_the_model_was_trained_on(
    name: Any, conversation: list[Message], make_tokenizer: Callable[..., Tokenizer]
) -> None:
    tokenizer = make_tokenizer("byte_bpe", name)
    names = {token: name for name, token in tokenizer.specials.items()}
    template = go_template(TEMPLATES[name], names[tokenizer.document_start[0]], names[tokenizer.end_of_text])
    written = execute(template, [{"role": one.role, "content": one.content} for one in conversation])
    assert written == tokenizer.decode(render(tokenizer, conversation, answer_follows=True).ids, keep_special=True)


def test_the_interpreter_of_this_test_takes_branches() -> None:
    template = (
        '{{ range $index, $message := .Messages }}{{ if eq .Role "a" }}{{ "1" }}{{ else if eq .Role "b" }}{{ if gt $index 1 }}{{ "2" }}'
    )
    template += '{{ end }}{{ else }}{{ .Content }}{{ end }}{{ end }}{{ if .Messages }}{{ "." }}{{ end }}'
    assert execute(template, [{"role": role, "content": role} for role in "abbc"]) == "12c."
    assert execute(template, []) == ""
    with pytest.raises(ValueError, match="text between"):
        execute('{{ "a" }} {{ "b" }}', [])


def test_alpaca_cannot_choose_its_second_description(make_tokenizer: Callable[..., Tokenizer]) -> None:
    assert TASK_WITH_INPUT not in go_template(TEMPLATES["alpaca"], "<s>", "</s>")


def test_a_modelfile_says_where_the_model_is_and_how_it_ends(make_source: Callable[..., Source]) -> None:
    lines = modelfile(make_source()).splitlines()
    assert lines[0] == "FROM ./model.gguf"
    assert lines[1].startswith('TEMPLATE """{{') and lines[1].endswith('}}"""')
    assert lines[2:] == [
        'PARAMETER stop "<|im_end|>"',
        'PARAMETER stop "<|endoftext|>"',
        "PARAMETER num_ctx 256",
        "PARAMETER temperature 0.8",
        "PARAMETER top_k 50",
        "PARAMETER top_p 0.95",
        "PARAMETER min_p 0",
        "PARAMETER repeat_penalty 1",
    ]
