"""Bodies nobody thought of, valid and not: none makes the server fail or hang, and afterwards it answers as before (V5)."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from tests.serving.running import NAME, Running, tiny_tokenizer

TEXTS = [
    "",
    "row 3",
    "\x00",
    "\u202e\ufeff",
    "😀" * 20,
    "<|im_end|>",
    "a" * 3_000,
    " \n\t",
    "{{ 7*7 }}",
    "é" * 400,
    "\ufffd",
    "'; --",
    "\U0010ffff",
]
NUMBERS: list[Any] = [
    -1,
    0,
    1,
    2,
    3,
    7,
    8,
    9,
    20,
    21,
    255,
    256,
    257,
    2**31,
    2**63,
    -(2**63),
    10**25,
    0.0,
    -0.5,
    0.5,
    1.0,
    1.5,
    2.0,
    2.5,
    1e-300,
    1e300,
]
ODD: list[Any] = [None, True, False, [], {}, [None], {"a": {"b": []}}, "5", [[]], [[[]]], [{}], "null"]
ROLES = ["user", "assistant", "system", "developer", "tool", "", None, 5]
FIELDS = [
    "model", "prompt", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p",
    "repetition_penalty", "n", "best_of", "stop", "seed", "stream", "stream_options", "logprobs", "top_logprobs",
    "echo", "ignore_eos", "presence_penalty", "frequency_penalty", "logit_bias", "suffix", "response_format", "user",
    "tools", "chat_template",
]  # fmt: skip


class Generator:
    """Bodies by a seed."""

    def __init__(self, seed: int) -> None:
        self.chosen = random.Random(seed)

    def body(self) -> bytes:
        """Mostly a request with one to four fields changed; sometimes bytes of it."""
        fields: dict[str, Any] = {
            "model": NAME,
            "prompt": self.text(),
            "messages": [{"role": "user", "content": self.text()}],
            "max_tokens": self.chosen.randint(1, 6),
        }
        for _ in range(self.chosen.randint(0, 4)):
            fields[self.chosen.choice(FIELDS)] = self.value()
        content = json.dumps(fields, ensure_ascii=self.chosen.random() < 0.5).encode("utf-8", "surrogatepass")
        return self.damaged(content) if self.chosen.random() < 0.15 else content

    def value(self, depth: int = 0) -> Any:
        """Anything that JSON can say, and some of what it cannot."""
        kind = self.chosen.randrange(9 if depth < 3 else 4)
        if kind == 0:
            return self.chosen.choice(NUMBERS)
        if kind == 1:
            return self.chosen.choice(ODD)
        if kind in (2, 3):
            return self.text()
        if kind == 4:
            return [self.value(depth + 1) for _ in range(self.chosen.choice([0, 1, 2, 5, 40]))]
        if kind == 5:
            ids = range(-2, tiny_tokenizer().vocabulary_size + 2)
            return self.chosen.choices(ids, k=self.chosen.choice([1, 3, 300]))
        if kind == 6:
            return {self.text()[:20]: self.value(depth + 1) for _ in range(self.chosen.randint(0, 3))}
        if kind == 7:
            count = self.chosen.randint(0, 4)
            return [{"role": self.chosen.choice(ROLES), "content": self.value(depth + 1)} for _ in range(count)]
        return [{"type": self.chosen.choice(["text", "image_url", None]), "text": self.value(depth + 1)}]

    def text(self) -> str:
        """A text; now and then half a character."""
        return "\ud800" if self.chosen.random() < 0.02 else self.chosen.choice(TEXTS)

    def damaged(self, content: bytes) -> bytes:
        """With some bytes other than they were, or gone."""
        place, size = self.chosen.randrange(len(content)), self.chosen.randint(0, 4)
        return content[:place] + self.chosen.randbytes(self.chosen.randint(0, 3)) + content[place + size :]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("count", [120, pytest.param(5_000, marks=pytest.mark.slow)])
def test_no_body_makes_the_server_fail(server: Running, path: str, count: int) -> None:
    golden, generator, statuses = server.golden(), Generator(count), dict.fromkeys((200, 400, 404), 0)
    for number in range(count):
        body = generator.body()
        answer = server.client.post(path, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code in statuses, (body, answer.text)
        statuses[answer.status_code] += 1
        if answer.status_code != 200:
            error = answer.json()["error"]
            assert error["message"] and len(error["message"]) < 400 and error["type"] == "invalid_request_error", body
            assert "Traceback" not in answer.text and "/fledge/" not in answer.text
        assert number % 40 or server.golden() == golden
    assert server.golden() == golden and server.busy_choices() == 0
    assert all(count * 0.05 < statuses[status] for status in (200, 400)), statuses  # both were tried
    assert server.counters()["fledge_internal_errors_total"] == 0


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/health/live", "/health/ready"])
def test_queries_and_bodies_where_none_is_expected(server: Running, path: str) -> None:
    chosen = random.Random(path)
    for _ in range(60):
        query = "".join(chosen.choice("ab=&%2f./?;[]\"'") for _ in range(chosen.randint(0, 40)))
        answer = server.client.request("GET", f"{path}?{query}", content=chosen.randbytes(chosen.randint(0, 20)))
        assert answer.status_code in (200, 415), query
