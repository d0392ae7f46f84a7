"""What Open WebUI sends, as it sends it: its check of a connection, a chat, and the requests it makes beside it."""

from __future__ import annotations

import json

from tests.serving.running import NAME, Running

BEARER = {"Authorization": "Bearer sk-none"}


def test_its_check_of_a_connection_finds_the_model(server: Running) -> None:
    found = server.client.get("/v1/models", headers=BEARER).json()
    assert found["object"] == "list"
    assert [(model["id"], model["object"], model["owned_by"]) for model in found["data"]] == [(NAME, "model", "fledge")]


def test_its_chat_is_a_stream_with_fields_of_its_own(server: Running) -> None:
    body = {
        "stream": True,
        "model": NAME,
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}],
        "params": {},
        "tool_servers": [],
        "features": {"image_generation": False, "code_interpreter": False, "web_search": False, "memory": False},
        "variables": {"{{USER_NAME}}": "me"},
        "session_id": "s",
        "chat_id": "c",
        "id": "i",
        "background_tasks": {"title_generation": True},
        "stream_options": {"include_usage": True},
        "metadata": {"user_id": "u", "files": None},
        "max_tokens": 12,
        "temperature": 0,
    }
    with server.client.stream("POST", "/v1/chat/completions", json=body, headers=BEARER) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        assert answer.headers["Cache-Control"] == "no-cache" and answer.headers["X-Accel-Buffering"] == "no"
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert events[-1]["usage"]["completion_tokens"] > 0 and events[-1]["choices"] == []


def test_the_title_and_the_tags_it_asks_for_are_not_streamed(server: Running) -> None:
    prompt = "### Task:\nGenerate a concise title.\n### Chat History:\n<chat_history>\nUSER: hello\n</chat_history>"
    for limit in ({"max_tokens": 20}, {"max_completion_tokens": 20}):
        body = {"model": NAME, "messages": [{"role": "user", "content": prompt}], "stream": False, "metadata": {"task": "title"}, **limit}
        answer = server.client.post("/v1/chat/completions", json=body, headers=BEARER).json()
        assert answer["choices"][0]["message"]["role"] == "assistant" and answer["usage"]["completion_tokens"] <= 20
