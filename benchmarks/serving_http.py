"""The HTTP half of the serving benchmark: so many streams at once over real connections, asked by a process of its own.

    found = measure(model, prompts, new_tokens=128, streams=16)      # model: a ServedModel whose engine runs

The server is `fledge serve`'s own (gate, queue, events, uvicorn) in a thread of this process; the asking process imports nothing heavy,
so it can have a core of its own. Every token is an event, so times are those at which text arrives.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from fledge.serving.served import ServedModel

START_SECONDS = 60


def measure(model: ServedModel, prompts: Sequence[Sequence[int]], new_tokens: int, streams: int = 16) -> dict[str, float]:
    """Greedy answers of `new_tokens` tokens to all prompts, `streams` at a time, over HTTP.

    Returns seconds, tokens_per_second, first_token_p50_seconds, first_token_p99_seconds and between_tokens_p99_seconds.
    """
    fields = {"model": model.name, "max_tokens": new_tokens, "temperature": 0, "ignore_eos": True, "stream": True}
    bodies = [json.dumps({**fields, "prompt": list(prompt), "logprobs": 0}) for prompt in prompts]
    with _serving(model, streams) as address:
        asking = subprocess.run(
            [sys.executable, __file__, address, str(streams)], input="\n".join(bodies), capture_output=True, text=True, check=True
        )
    found: dict[str, Any] = json.loads(asking.stdout)
    tokens = sum(len(times) for times in found["times"])
    if tokens != len(prompts) * new_tokens:
        raise RuntimeError(f"{tokens} tokens arrived, {len(prompts) * new_tokens} were asked for: {found['errors'][:3]}")
    first = [times[0] for times in found["times"]]
    between = [later - earlier for times in found["times"] for earlier, later in itertools.pairwise(times)]
    return {
        "seconds": found["seconds"],
        "tokens_per_second": tokens / found["seconds"],
        "first_token_p50_seconds": quantile(first, 0.5),
        "first_token_p99_seconds": quantile(first, 0.99),
        "between_tokens_p99_seconds": quantile(between, 0.99),
    }


@contextmanager
def _serving(model: ServedModel, streams: int) -> Iterator[str]:
    from fledge.serving.application import create_application
    from fledge.serving.keys import ApiKeys
    from fledge.serving.run import Service
    from fledge.serving.settings import ServerSettings

    settings = ServerSettings(port=0, queued_choices=max(64, 2 * streams))
    service = Service(create_application(settings, [model], keys=ApiKeys()), settings)
    ready = threading.Event()
    thread = threading.Thread(target=service.run, args=(lambda _: ready.set(),))
    thread.start()
    if not ready.wait(START_SECONDS):
        raise RuntimeError("the server did not start")
    try:
        yield service.address
    finally:
        service.stop()
        thread.join()


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of them does not exceed; not a number if there are none."""
    return sorted(values)[math.ceil(share * len(values)) - 1] if values else math.nan


# ---- the asking process


async def _ask(address: str, body: bytes) -> tuple[list[float], str]:
    """When each token came, in seconds after the request; and what came instead, if it was an error."""
    split = urlsplit(address)
    began, times, other = time.perf_counter(), [], ""
    reader, writer = await asyncio.open_connection(split.hostname, split.port)
    lines = ["POST /v1/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json", "Connection: close"]
    writer.write("\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body)
    while line := await reader.readline():
        if line.startswith(b'data: {"error"'):
            other += line.decode()
        elif line.startswith(b"data: {"):
            tokens = json.loads(line.removeprefix(b"data: "))["choices"][0]["logprobs"]["tokens"]
            times += [time.perf_counter() - began] * len(tokens)
        elif not times and line.strip():
            other += line.decode()
    writer.close()
    return times, other


async def _ask_all(address: str, bodies: Sequence[bytes], streams: int) -> dict[str, Any]:
    free = asyncio.Semaphore(streams)

    async def ask(body: bytes) -> tuple[list[float], str]:
        async with free:
            return await _ask(address, body)

    began = time.perf_counter()
    answers = await asyncio.gather(*map(ask, bodies))
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "times": [times for times, _ in answers], "errors": [other for times, other in answers if not times]}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_ask_all(sys.argv[1], sys.stdin.read().encode().splitlines(), int(sys.argv[2])))))
