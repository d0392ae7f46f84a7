"""Who lies beside a document in its row changes nothing about it, whatever computes attention: forward and backward, order and content."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

from fledge.model import attention as attention_module
from fledge.model import llama as llama_module
from fledge.model.attention import Mask, document_mask
from fledge.model.block_attention import document_blocks
from fledge.model.head import IGNORE
from fledge.model.llama import Llama

LENGTHS = (37, 5, 90, 1, 61)


class Path(NamedTuple):
    """How documents are kept apart, and how many keys plain products serve at most."""

    mask: Callable[[Tensor, torch.dtype], Mask]
    products_up_to: int


def flex(documents: Tensor, _: torch.dtype) -> Mask:
    def is_seen(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (documents[row, query] <= key) & (key <= query)

    rows, tokens = documents.shape
    return create_block_mask(is_seen, rows, None, tokens, tokens, device=documents.device)


PATHS = {
    "blocks": Path(document_blocks, 512),
    "products with a mask": Path(lambda documents, _: document_mask(documents), 512),
    "fused with a mask": Path(lambda documents, _: document_mask(documents), 0),
    "flex": Path(flex, 512),
}
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def packed(texts: dict[int, Tensor], order: list[int]) -> tuple[Tensor, Tensor, dict[int, slice]]:
    """The texts in a row in an order: tokens and document starts (1, T), and where each text lies."""
    places, start = {}, 0
    for number in order:
        places[number] = slice(start, start + len(texts[number]))
        start += len(texts[number])
    documents = torch.cat([torch.full((place.stop - place.start,), place.start) for place in places.values()])
    return torch.cat([texts[number] for number in order])[None], documents[None].int(), places


@pytest.fixture(params=PATHS.values(), ids=PATHS.keys())
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    chosen: Path = request.param
    monkeypatch.setattr(llama_module, "documents_mask", lambda documents, dtype, has_dropout: chosen.mask(documents, dtype))
    monkeypatch.setattr(attention_module, "PRODUCTS_UP_TO_SLOTS", chosen.products_up_to)
    return chosen


# Uncompiled, the kernel's own definition is computed, which is what is wanted.
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("precision", "mean_tolerance", "token_tolerance"), [(torch.float32, 1e-6, 1e-5), (torch.bfloat16, 2e-2, 2e-2)], ids=["fp32", "bf16"]
)
def test_neighbours_change_no_loss(
    path: Path, make_model: Callable[..., Llama], precision: torch.dtype, mean_tolerance: float, token_tolerance: float, device: str
) -> None:
    if path is PATHS["blocks"] and device != "cpu":
        pytest.skip("blocks are the CPU's")
    has_backward = path is not PATHS["flex"] or device != "cpu"  # torch has none there
    generator = torch.Generator().manual_seed(0)
    texts = {number: torch.randint(0, 120, (length,), generator=generator) for number, length in enumerate(LENGTHS)}
    # Usual weights: with larger ones rounding alone is larger than the bar.
    model = make_model(num_attention_heads=4, num_key_value_heads=2, initializer_range=0.02).to(device)

    def losses(given: dict[int, Tensor], order: list[int]) -> tuple[dict[int, Tensor], Tensor]:
        """Of every text its losses token by token, and the gradient of the first's mean."""
        tokens, documents, places = packed(given, order)
        targets = torch.cat([torch.cat((given[number][1:], torch.tensor([IGNORE]))) for number in order])[None]
        autocast = torch.autocast(device, dtype=precision) if precision != torch.float32 else nullcontext()
        with autocast, nullcontext() if has_backward else torch.no_grad():
            nll = model(tokens.to(device), documents.to(device), targets.to(device)).nll[0]
        if not has_backward:
            return {number: nll[place] for number, place in places.items()}, torch.ones(1)
        model.zero_grad()
        nll[places[0]].mean().backward()
        gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])
        return {number: nll[place].detach() for number, place in places.items()}, gradient

    first, gradient = losses(texts, [0, 1, 2, 3, 4])
    others = {**texts, 2: texts[2].flip(0), 4: (texts[4] + 7) % 120}
    for given, order in ((texts, [4, 2, 0, 3, 1]), (texts, [0]), (others, [2, 0, 4, 1, 3])):
        found, again = losses(given, order)
        for number, values in found.items():
            if torch.equal(given[number], texts[number]):
                assert abs(float(values.mean() - first[number].mean())) <= mean_tolerance
                assert float((values - first[number]).abs().max()) <= token_tolerance
        assert float((again - gradient).norm() / gradient.norm()) <= (1e-5 if precision == torch.float32 else 5e-2)


def test_a_neighbour_that_is_seen_would_be_noticed(make_model: Callable[..., Llama]) -> None:
    """The same without isolation."""
    generator = torch.Generator().manual_seed(0)
    one, other, text = (torch.randint(0, 120, (20,), generator=generator) for _ in range(3))
    model = make_model()
    with torch.no_grad():
        beside_one, beside_other = (
            model(torch.cat((before, text))[None], None, torch.cat((before, text))[None]).nll[0, 20:] for before in (one, other)
        )
    assert float((beside_one - beside_other).abs().max()) > 1e-2
