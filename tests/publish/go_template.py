"""As much of Go's text/template as `publish.ollama` writes: actions only, `range`, `if`, `else if`, `else`, `end`, literals and fields."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

_ACTION = re.compile(r'\{\{ ((?:"(?:[^"\\]|\\.)*"|[^"}]|\}(?!\}))*?) \}\}')


def execute(template: str, messages: Sequence[Mapping[str, str]]) -> str:
    """The template's text for messages with `role` and `content`. Raises ValueError for text between actions, which it should not have."""
    actions = _ACTION.findall(template)
    if "".join(f"{{{{ {action} }}}}" for action in actions) != template:
        raise ValueError(f"there is text between the actions, or one that is not understood: {template}")
    output, end = _run(actions, 0, {"Messages": messages}, True)
    assert end == len(actions)
    return output


def _run(actions: Sequence[str], place: int, dot: Mapping[str, Any], active: bool) -> tuple[str, int]:
    """The output from `place` to the `else` or `end` that closes it, and where that is."""
    output = ""
    while place < len(actions):
        action = actions[place]
        if action == "end" or action.startswith("else"):
            return output, place
        if action.startswith("range "):
            start, body = place + 1, ""
            _, place = _run(actions, start, dot, False)
            for index, message in enumerate(dot["Messages"]) if active else ():
                scope = {"Role": message["role"], "Content": message["content"], "index": index}
                body += _run(actions, start, scope, True)[0]
            output += body
        elif action.startswith("if "):
            text, place = _branch(actions, place, dot, active)
            output += text
        elif active:
            output += json.loads(action) if action.startswith('"') else str(dot[action.removeprefix(".")])
        place += 1
    return output, place


def _branch(actions: Sequence[str], place: int, dot: Mapping[str, Any], active: bool) -> tuple[str, int]:
    output, open_ = "", active
    while actions[place] != "end":
        condition = actions[place].removeprefix("else ").removeprefix("if ")
        chosen = open_ and (actions[place] == "else" or _holds(condition, dot))
        text, place = _run(actions, place + 1, dot, chosen)
        output, open_ = output + text, open_ and not chosen
    return output, place


def _holds(condition: str, dot: Mapping[str, Any]) -> bool:
    if condition == ".Messages":
        return bool(dot["Messages"])
    operator, field, value = condition.split(" ")
    found, wanted = dot[field.lstrip(".$")], json.loads(value)
    return {"eq": found == wanted, "ne": found != wanted, "gt": operator == "gt" and found > wanted}[operator]
