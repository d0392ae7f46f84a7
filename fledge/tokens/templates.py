"""How the turns of a conversation are written, as data: from it come the ids here (`chat.py`) and the Jinja of other programs.

    chatml, chatml_newline   <|im_start|>user\\nTEXT<|im_end|>\\n<|im_start|>assistant\\nTEXT<|im_end|>   (tokens of their own)
    instruct, alpaca         ### Instruction:\\nTEXT\\n\\n### Response:\\nTEXT<|endoftext|>
    chat                     Human: TEXT\\n\\nAssistant: TEXT<|endoftext|>
    plain                    <s>User: TEXT\\nAssistant: TEXT</s>

Only ChatML is safe against a message that spells the words of another turn: in the others these are text like any other. What separates
the label of an answer from it ("Assistant:" and its space) is learned with the answer, so that the ids of a prompt are a prefix of those
of the conversation. Formats: OpenAI's ChatML, Stanford Alpaca's prompts, Anthropic's HH-RLHF, LIMA as small pipelines write it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fledge.corpus.document import Message, Role
from fledge.tokens.settings import TemplateName

TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"

INPUT_MARK = "\n\n### Input:\n"
"""In Alpaca's form, between the instruction and what it is about; a source joins the two by `input_separator`."""
_TASK = "Below is an instruction that describes a task"
_REQUEST = "Write a response that appropriately completes the request."
TASK = f"{_TASK}. {_REQUEST}"
TASK_WITH_INPUT = f"{_TASK}, paired with an input that provides further context. {_REQUEST}"


@dataclass(frozen=True)
class Template:
    """One format. A turn is its label, its text without white space around it, and what closes it."""

    labels: Mapping[Role, str]
    between: str
    """Between two turns."""
    has_turn_tokens: bool = False
    """Every turn stands between `<|im_start|>` and `<|im_end|>`; without, an answer ends with the end of a text."""
    answer_opening: str = ""
    """In front of the text of an answer, learned with it."""
    closing: str = ""
    """Behind the text of a turn, before its `<|im_end|>`."""
    opens_document: bool = False
    """A conversation begins like a document, with its control tokens."""
    describes_task: bool = False
    """Without a system message, Alpaca's description of the task stands in its place."""

    def completed(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The messages with the system message that the format puts in front of those that have none."""
        if not self.describes_task or not messages or messages[0].role == "system":
            return messages
        return [Message("system", TASK_WITH_INPUT if INPUT_MARK in messages[0].content else TASK), *messages]

    @property
    def markers(self) -> tuple[str, ...]:
        """What a line begins with where a turn does, as text."""
        if self.has_turn_tokens:
            return (TURN_START, TURN_END)
        labels = tuple(label.strip() for label in self.labels.values() if label)
        return (*labels, INPUT_MARK.strip()) if self.describes_task else labels

    @property
    def jinja(self) -> str:
        """What other programs render with; `{% generation %}` marks the answers for transformers' assistant mask."""
        opening = ["{{- bos_token -}}"] if self.opens_document else []
        if self.describes_task:
            opening += [
                "{%- if messages and messages[0]['role'] != 'system' -%}",
                f"    {{%- if {_quoted(INPUT_MARK)} in messages[0]['content'] -%}}{{{{ {_quoted(TASK_WITH_INPUT)} }}}}",
                f"    {{%- else -%}}{{{{ {_quoted(TASK)} }}}}{{%- endif -%}}",
                f"    {{{{ {_quoted(self.between)} }}}}",
                "{%- endif -%}",
            ]
        given_end = f" + {_quoted(self.closing + TURN_END)}" if self.has_turn_tokens else ""
        answer_end = given_end or " + eos_token"
        start = f"{_quoted(TURN_START)} + " if self.has_turn_tokens else ""
        text = "(message['content'] | trim)"
        lines = [
            *opening,
            "{%- for message in messages -%}",
            f"    {{%- if not loop.first -%}}{{{{ {_quoted(self.between)} }}}}{{%- endif -%}}",
            "    {%- if message['role'] == 'assistant' -%}",
            f"        {{{{ {start}{_quoted(self.labels['assistant'])} }}}}",
            f"        {{%- generation -%}}{{{{ {_quoted(self.answer_opening)} + {text}{answer_end} }}}}{{%- endgeneration -%}}",
            "    {%- elif message['role'] == 'system' -%}",
            f"        {{{{ {start}{_quoted(self.labels['system'])} + {text}{given_end} }}}}",
            "    {%- else -%}",
            f"        {{{{ {start}{_quoted(self.labels['user'])} + {text}{given_end} }}}}",
            "    {%- endif -%}",
            "{%- endfor -%}",
            "{%- if add_generation_prompt -%}",
            f"    {{%- if messages -%}}{{{{ {_quoted(self.between)} }}}}{{%- endif -%}}",
            f"    {{{{ {start}{_quoted(self.labels['assistant'])} }}}}",
            "{%- endif -%}",
        ]
        return "\n".join(lines)

    @property
    def jinja_without_mask(self) -> str:
        """The same for programs that know no `generation` block, such as llama.cpp."""
        return self.jinja.replace("{%- generation -%}{{ ", "{{- ").replace(" }}{%- endgeneration -%}", " -}}")


def _quoted(text: str) -> str:
    """A literal of Jinja."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"


_ROLES: Mapping[Role, str] = {"system": "system\n", "user": "user\n", "assistant": "assistant\n"}
_INSTRUCTIONS: Mapping[Role, str] = {"system": "", "user": "### Instruction:\n", "assistant": "### Response:\n"}

TEMPLATES: dict[TemplateName, Template] = {
    "chatml": Template(_ROLES, between="\n", has_turn_tokens=True),
    "chatml_newline": Template(_ROLES, between="\n", has_turn_tokens=True, closing="\n"),
    "instruct": Template(_INSTRUCTIONS, between="\n\n"),
    "chat": Template({"system": "", "user": "Human: ", "assistant": "Assistant:"}, between="\n\n", answer_opening=" "),
    "alpaca": Template(_INSTRUCTIONS, between="\n\n", describes_task=True),
    "plain": Template(
        {"system": "System: ", "user": "User: ", "assistant": "Assistant:"}, between="\n", answer_opening=" ", opens_document=True
    ),
}
