"""Perplexity on WikiText-2 is that of a plain script of transformers, of a model of ours and of one that others wrote."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from fledge.evaluation.benchmarks.definitions import wikitext_pages
from fledge.evaluation.reader import Reader
from fledge.evaluation.rolling import TextPrice
from fledge.model.folder import load_model, save_model
from fledge.model.llama import Llama
from fledge.tokens.foreign import open_text_tokenizer
from fledge.tokens.tokenizer import copy_tokenizer

from .conftest import ROW_TOKENS, Corpus, open_texts_as_llama_does

WIKITEXT = Path(__file__).parents[3] / "shared" / "data" / "wikitext2_valid.txt"
PAGES = 3
CHARACTERS = 6_000
"""Of each page. The models have a small vocabulary, so that is thousands of tokens."""


@pytest.fixture(scope="module")
def pages() -> list[str]:
    if not WIKITEXT.is_file():
        pytest.skip(f"{WIKITEXT} is not there")
    return [page["page"][:CHARACTERS] for page in wikitext_pages(WIKITEXT.read_text(encoding="utf-8"))[:PAGES]]


def script_perplexity(folder: Path, pages: list[str]) -> float:
    """Windows without overlap, each after the last token of the one before, the first after the token that begins a text."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    nats, tokens = 0.0, 0
    for page in pages:
        ids = [tokenizer.bos_token_id, *tokenizer(page, add_special_tokens=False).input_ids]
        first = 1
        while first < len(ids):
            end = min(len(ids), first + ROW_TOKENS)
            begin = max(0, end - ROW_TOKENS - 1)
            window = torch.tensor([ids[begin:end]])
            with torch.no_grad():
                logits = model(window[:, :-1]).logits[0, first - begin - 1 :]
            nats += float(torch.nn.functional.cross_entropy(logits, window[0, first - begin :], reduction="sum"))
            tokens += end - first
            first = end
    return math.exp(nats / tokens)


def perplexity(prices: list[TextPrice]) -> float:
    return math.exp(sum(price.nats for price in prices) / sum(price.tokens for price in prices))


def save(model: Llama, corpus: Corpus, folder: Path) -> Path:
    folder.mkdir()
    save_model(model, folder)
    copy_tokenizer(corpus.tokenizer, False, folder, ROW_TOKENS)
    return folder


@pytest.mark.parametrize("kind", ["random_model", "trained_model"])
def test_a_model_of_ours(kind: str, corpus: Corpus, pages: list[str], tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folder = save(request.getfixturevalue(kind), corpus, tmp_path / "model")
    reader = Reader(load_model(folder).eval(), open_text_tokenizer(folder))
    # Relative, since a model that knows nothing of this text has a perplexity far from one, of which fp32 holds seven digits.
    assert perplexity(reader.prices(pages)) == pytest.approx(script_perplexity(folder, pages), rel=1e-6)


def test_a_model_of_others_pays_for_the_text_alone(corpus: Corpus, random_model: Llama, pages: list[str], tmp_path: Path) -> None:
    """Written by transformers, with a tokenizer that puts a token in front of every text, of which the price is not asked."""
    import torch
    import transformers

    folder = save(random_model, corpus, tmp_path / "foreign")
    (folder / "tokenizer_meta.json").unlink()
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=random_model.config.vocabulary_size,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=ROW_TOKENS,
        initializer_range=0.1,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    token = open_texts_as_llama_does(folder)
    reader = Reader(load_model(folder).eval(), open_text_tokenizer(folder))
    assert reader.tokenizer.opening == (token,)
    alone, whole = reader.prices(pages, scores_opening=False), reader.prices(pages)
    assert [one.tokens - other.tokens for one, other in zip(whole, alone, strict=True)] == [1] * PAGES
    assert perplexity(alone) == pytest.approx(script_perplexity(folder, pages), rel=1e-6)
