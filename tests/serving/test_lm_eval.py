"""lm-evaluation-harness asks a server by its `local-completions`, and finds what our own scorer finds on the model itself."""

from __future__ import annotations

import importlib.machinery
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from fledge.evaluation import harness
from fledge.model.folder import save_model
from fledge.tokens.tokenizer import copy_tokenizer
from tests.serving.running import CONTEXT_TOKENS, NAME, Running, tiny_model, tiny_tokenizer

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.slow  # transformers and lm-eval take ten seconds to import

BATCH_TOKENS = 2_048


@pytest.fixture
def client(server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """lm-eval's client; without its package for retries, it does without retries."""
    try:
        import tenacity  # noqa: F401
    except ModuleNotFoundError:
        stand_in = types.ModuleType("tenacity")
        stand_in.__spec__ = importlib.machinery.ModuleSpec("tenacity", None)
        stand_in.RetryError = type("RetryError", (Exception,), {})  # type: ignore[attr-defined]
        for name in ("stop_after_attempt", "wait_exponential"):
            setattr(stand_in, name, lambda *_, **__: None)
        stand_in.retry = lambda *_, **__: lambda function: function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "tenacity", stand_in)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    save_model(tiny_model(), tmp_path)
    copy_tokenizer(tiny_tokenizer(), False, tmp_path, maximum_tokens=CONTEXT_TOKENS)
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    return LocalCompletionsAPI(
        base_url=f"{server.url}/v1/completions",
        model=NAME,
        tokenizer=str(tmp_path),
        tokenizer_backend="huggingface",
        max_length=CONTEXT_TOKENS,
        max_gen_toks=16,
        batch_size=4,
    )


@pytest.fixture
def scorer() -> Any:
    return harness._language_model_class()(tiny_model(), tiny_tokenizer(), BATCH_TOKENS, "fp32")


def instances(kind: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, one, place) for place, one in enumerate(arguments)]


def test_likelihoods_are_those_of_the_model(client: Any, scorer: Any) -> None:
    pairs = [("row 3 of the", " table"), ("row 3 of the", " words and ends"), ("hello", " to 7"), ("the next one says", " hello é")]
    asked = instances("loglikelihood", pairs)
    theirs, ours = client.loglikelihood(asked), scorer.loglikelihood(asked)
    assert [logprob for logprob, _ in theirs] == pytest.approx([logprob for logprob, _ in ours], abs=1e-3)
    assert [greedy for _, greedy in theirs] == [greedy for _, greedy in ours]


def test_texts_in_windows(client: Any, scorer: Any) -> None:
    asked = instances("loglikelihood_rolling", [("row 3 of the table holds 7 words. ",), ("hello " * 30,)])
    assert client.loglikelihood_rolling(asked) == pytest.approx(scorer.loglikelihood_rolling(asked), abs=1e-2)


def test_generations(client: Any, scorer: Any) -> None:
    ways = [{"until": ["e"], "max_gen_toks": 12}, {"until": ["zzz", "\n\n"], "max_gen_toks": 5}]
    asked = instances("generate_until", [(f"row {number}", way) for number in range(3) for way in ways])
    assert client.generate_until(asked) == scorer.generate_until(asked)
