"""A process that asks a server for more than it can give: `python overload.py URL RATE SECONDS TOKENS` -> one line of JSON.

Requests leave at fixed moments, whatever comes back (an open loop), each over a connection of its own. It imports nothing heavy, so
that it starts at once and costs little beside the server that it measures.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from typing import Any
from urllib.parse import urlsplit

ANSWER_SECONDS = 120


async def ask(host: str, port: int, body: bytes, statuses: Counter[str], refusal_seconds: list[float]) -> None:
    """One completion; its status is counted, and of a refusal the time."""
    began = time.monotonic()
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            reader, writer = await asyncio.open_connection(host, port)
            lines = ["POST /v1/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json", "Connection: close"]
            writer.write(("\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""])).encode() + body)
            head = await reader.readuntil(b"\r\n\r\n")
            seconds = time.monotonic() - began
            await reader.read()
            writer.close()
    except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
        statuses[type(error).__name__] += 1
        return
    status = head.split(b" ", 2)[1].decode()
    if status == "429":
        refusal_seconds.append(seconds)
        status += " with Retry-After" if b"\r\nretry-after: " in head.lower() else " without"
    statuses[status] += 1


async def overload(address: str, per_second: float, seconds: float, tokens: int) -> dict[str, Any]:
    """Ask at this rate for so long; returns counts by status and the 99th percentile of the time to a refusal."""
    split = urlsplit(address)
    assert split.hostname is not None and split.port is not None
    body = json.dumps({"model": "tiny", "prompt": "row 3", "max_tokens": tokens, "ignore_eos": True}).encode()
    statuses: Counter[str] = Counter()
    refusal_seconds: list[float] = []
    began, asked = time.monotonic(), []
    while (number := len(asked)) < per_second * seconds:
        await asyncio.sleep(max(0.0, began + number / per_second - time.monotonic()))
        asked.append(asyncio.create_task(ask(split.hostname, split.port, body, statuses, refusal_seconds)))
    took = time.monotonic() - began
    await asyncio.gather(*asked)
    ordered = sorted(refusal_seconds)
    return {
        "statuses": dict(statuses),
        "arrival_seconds": took,
        "seconds": time.monotonic() - began,
        "refusal_p99_seconds": ordered[len(ordered) * 99 // 100] if ordered else 0.0,
    }


if __name__ == "__main__":
    address, per_second, seconds, tokens = sys.argv[1:]
    print(json.dumps(asyncio.run(overload(address, float(per_second), float(seconds), int(tokens)))))
