from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fledge.model import block_attention as module
from fledge.model.attention import document_mask
from fledge.model.block_attention import block_attention, document_blocks


def heads(count: int, tokens: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2, count, tokens, 16, dtype=dtype, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def random_documents(tokens: int) -> Tensor:
    starts = torch.rand(2, tokens, generator=torch.Generator().manual_seed(5)) < 0.06
    return torch.where(starts, torch.arange(tokens), 0).cummax(dim=1).values.int()


@pytest.mark.parametrize("documents", [None, random_documents(150)], ids=["one document", "documents"])
@pytest.mark.parametrize("key_heads", [4, 2, 1])
@pytest.mark.parametrize("block_queries", [128, 32, 200])
def test_blocks_are_the_whole(block_queries: int, key_heads: int, documents: Tensor | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_QUERIES", block_queries)
    given = (heads(4, 150, 0), heads(key_heads, 150, 1), heads(key_heads, 150, 2))
    blocks = None if documents is None else document_blocks(documents, torch.float64)
    ours = block_attention(*given, blocks)
    mask = None if documents is None else document_mask(documents)
    exact = F.scaled_dot_product_attention(*given, attn_mask=mask, is_causal=mask is None, enable_gqa=True)
    torch.testing.assert_close(ours, exact, rtol=0, atol=1e-13)
    upstream = heads(4, 150, 3).detach()
    for one, other in zip(torch.autograd.grad(ours, given, upstream), torch.autograd.grad(exact, given, upstream), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_what_no_query_sees_is_not_multiplied() -> None:
    """Keys before the first document of a block may hold anything, infinity too."""
    documents = torch.full((2, 256), 128)
    documents[:, :128] = 0
    query, key, value = (heads(2, 256, seed).detach() for seed in range(3))
    expected = block_attention(query, key, value, document_blocks(documents, torch.float64))
    key[:, :, :128] = float("inf")
    found = block_attention(query, key, value, document_blocks(documents, torch.float64))
    assert torch.equal(found[:, :, 128:], expected[:, :, 128:])


def test_bf16_is_as_exact_as_plain_attention() -> None:
    """Errors against fp64, as a share of the result: torch's fused kernel is better, plain attention in bf16 is not."""
    exact_given = tuple(heads(4, 256, seed) for seed in range(3))
    given = tuple(one.detach().bfloat16().requires_grad_() for one in exact_given)
    exact = F.scaled_dot_product_attention(*exact_given, is_causal=True)
    ours = block_attention(*given, None)
    assert float((ours.double() - exact).detach().norm() / exact.detach().norm()) < 1e-2
    upstream = heads(4, 256, 3).detach()
    expected = torch.autograd.grad(exact, exact_given, upstream)
    for one, other in zip(torch.autograd.grad(ours, given, upstream.bfloat16()), expected, strict=True):
        assert float((one.double() - other).norm() / other.norm()) < 1.5e-2


def test_torch_finds_the_operator_sound() -> None:
    given = (heads(4, 40, 0, torch.float32), heads(2, 40, 1, torch.float32), heads(2, 40, 2, torch.float32))
    blocks = document_blocks(random_documents(40), torch.float32)
    torch.library.opcheck(module._forward_operator, (*given, blocks.starts, blocks.forbidden))
    torch.library.opcheck(module._forward_operator, (*given, None, None))
