"""Log probabilities of tokens in the two forms of OpenAI's: lists side by side for completions, a list of objects for chat.

A token that is no text on its own (part of a character) is named by its bytes, as OpenAI does, so that no two tokens share a name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fledge.inference.requests import TokenLogprobs
from fledge.tokens.tokenizer import Tokenizer


@dataclass(frozen=True)
class ToldToken:
    """A token of a prompt or an answer."""

    id: int
    offset: int
    """Characters of text in front of it."""
    logprobs: TokenLogprobs | None


def token_name(tokenizer: Tokenizer, token: int) -> str:
    """The text of a token, or its bytes: `bytes:\\xe2\\x82`."""
    content = tokenizer.token_bytes(token)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)


def completion_logprobs(tokenizer: Tokenizer, tokens: Sequence[ToldToken], top: int) -> dict[str, Any]:
    """As completions tell them; the first token of a text has none. `top`: alternatives per token, besides the token itself."""
    return {
        "tokens": [token_name(tokenizer, token.id) for token in tokens],
        "token_logprobs": [None if token.logprobs is None else token.logprobs.logprob for token in tokens],
        "top_logprobs": [_alternatives(tokenizer, token, top) for token in tokens],
        "text_offset": [token.offset for token in tokens],
    }


def chat_logprobs(tokenizer: Tokenizer, tokens: Sequence[ToldToken], top: int) -> dict[str, Any]:
    """As chat completions tell them."""
    content = []
    for token in tokens:
        if token.logprobs is not None:
            alternatives = [_chat_token(tokenizer, one, logprob) for one, logprob in token.logprobs.top[:top]]
            content.append({**_chat_token(tokenizer, token.id, token.logprobs.logprob), "top_logprobs": alternatives})
    return {"content": content}


def prompt_tokens(
    tokenizer: Tokenizer, ids: Sequence[int], hidden_tokens: int, logprobs: Sequence[TokenLogprobs | None]
) -> list[ToldToken]:
    """The tokens of a prompt that is echoed."""
    stream = tokenizer.stream()
    told, offset = [], 0
    for token, one in list(zip(ids, logprobs, strict=True))[hidden_tokens:]:
        told.append(ToldToken(token, offset, one))
        offset += len(stream.push(token))
    return told


def _alternatives(tokenizer: Tokenizer, token: ToldToken, top: int) -> dict[str, float] | None:
    if token.logprobs is None:
        return None
    found = {token_name(tokenizer, one): logprob for one, logprob in token.logprobs.top[:top]}
    return {**found, token_name(tokenizer, token.id): token.logprobs.logprob}


def _chat_token(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    return {"token": token_name(tokenizer, token), "logprob": logprob, "bytes": list(tokenizer.token_bytes(token))}
