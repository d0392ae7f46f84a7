from __future__ import annotations

import pytest
import torch

from fledge.model import attention as attention_module
from fledge.model.attention import HOPPER, KeyValueCache, attention, attention_kernel, causal_mask, document_mask, use_flash_attention_3
from fledge.model.settings import ModelSettings

DOCUMENTS = torch.tensor([[0, 0, 0, 3, 3, 5], [0, 0, 0, 0, 0, 0]], dtype=torch.int32)


def random_heads(heads: int, tokens: int = 6) -> torch.Tensor:
    return torch.randn(2, heads, tokens, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(heads + tokens))


def by_definition(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
    mixed = torch.zeros_like(query)
    group = query.shape[1] // key.shape[1]
    for row in range(query.shape[0]):
        for head in range(query.shape[1]):
            for t in range(query.shape[2]):
                seen = slice(int(documents[row, t]), t + 1)
                scores = key[row, head // group, seen] @ query[row, head, t] / query.shape[-1] ** 0.5
                mixed[row, head, t] = scores.softmax(0) @ value[row, head // group, seen]
    return mixed


@pytest.mark.parametrize("products_up_to", [0, 512])
@pytest.mark.parametrize("key_heads", [4, 2, 1])
def test_attention_is_the_definition(products_up_to: int, key_heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_module, "PRODUCTS_UP_TO_SLOTS", products_up_to)
    query, key, value = random_heads(4), random_heads(key_heads), random_heads(key_heads) + 1
    torch.testing.assert_close(
        attention(query, key, value, document_mask(DOCUMENTS)), by_definition(query, key, value, DOCUMENTS), rtol=0, atol=1e-12
    )
    one_document = torch.zeros_like(DOCUMENTS)
    torch.testing.assert_close(attention(query, key, value, None), by_definition(query, key, value, one_document), rtol=0, atol=1e-12)


@pytest.mark.parametrize("products_up_to", [0, 512])
def test_attention_has_the_right_gradients(products_up_to: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_module, "PRODUCTS_UP_TO_SLOTS", products_up_to)
    inputs = [random_heads(heads).requires_grad_() for heads in (4, 2, 2)]
    assert torch.autograd.gradcheck(lambda *given: attention(*given, document_mask(DOCUMENTS)), inputs)


def test_document_mask_ends_at_document_borders() -> None:
    mask = document_mask(DOCUMENTS)
    assert mask.shape == (2, 1, 6, 6)
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]
    assert torch.equal(mask[1, 0], causal_mask(6, mask.device))


def test_cache_keeps_rows_apart_and_shows_the_past_only() -> None:
    cache = KeyValueCache(ModelSettings(num_hidden_layers=1, hidden_size=8, num_attention_heads=1), rows=2, slots=4)
    positions = torch.tensor([[0, 1], [2, 3]])
    stored = torch.arange(1, 5, dtype=torch.float32).view(2, 1, 2, 1).expand(2, 1, 2, 8)
    keys, values = cache.layer(0, positions).store(stored, -stored)
    assert keys[:, 0, :, 0].tolist() == [[1, 2, 0, 0], [0, 0, 3, 4]]
    assert torch.equal(values, -keys)
    assert cache.mask(positions)[:, 0].int().tolist() == [[[1, 0, 0, 0], [1, 1, 0, 0]], [[1, 1, 1, 0], [1, 1, 1, 1]]]
    assert cache.slots == 4


def flash_attention_3(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], installed: bool = True, works: bool = True) -> str:
    """Whose kernels attend on a GPU of this capability, with the package as it is there."""
    active: list[str] = []

    def activate(name: str) -> None:
        if not works:
            raise RuntimeError("undefined symbol")
        active.append(name)

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(attention_module.importlib.util, "find_spec", lambda name: object() if installed else None)
    monkeypatch.setattr(torch.nn.attention, "activate_flash_attention_impl", activate)
    monkeypatch.setattr(torch.nn.attention, "current_flash_attention_impl", lambda: active[-1] if active else None)
    use_flash_attention_3(torch.device("cuda"))
    return attention_kernel("cuda", isolate_documents=False, compiled=True)


def test_a_hopper_gpu_uses_flash_attention_3_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert flash_attention_3(monkeypatch, HOPPER) == "fused by FA3"
    assert flash_attention_3(monkeypatch, HOPPER, installed=False) == "fused"
    assert flash_attention_3(monkeypatch, (8, 0)) == "fused"


def test_flash_attention_3_that_does_not_work_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert flash_attention_3(monkeypatch, HOPPER, works=False) == "fused"
    assert "does not work, torch's own kernels are used: undefined symbol" in capsys.readouterr().err
