from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from fledge.model import head
from fledge.model.head import IGNORE, TokenLoss, TokenNll, token_losses, weighted_loss

TOKENS, WIDTH, VOCABULARY = 11, 5, 7
Z_WEIGHT = 0.3


@pytest.fixture(params=[3, 4, 512], ids=lambda size: f"chunks of {size}")
def chunk_tokens(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def inputs(dtype: torch.dtype = torch.float64, tokens: int = TOKENS) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(tokens, WIDTH, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    targets = torch.randint(0, VOCABULARY, (tokens,), generator=generator)
    targets[2] = targets[7] = IGNORE
    token_weight = torch.rand(tokens, generator=generator, dtype=torch.float64)
    token_weight[4] = 0.0
    return hidden, weight, targets, token_weight


def full_losses(hidden: Tensor, weight: Tensor, targets: Tensor) -> TokenNll:
    logits = hidden @ weight.T
    log_z = logits.logsumexp(-1)
    counted = targets != IGNORE
    nll = log_z - logits.gather(1, targets.clamp(min=0)[:, None])[:, 0]
    return TokenNll(nll * counted, log_z * counted)


def full_weighted_loss(hidden: Tensor, weight: Tensor, targets: Tensor, token_weight: Tensor) -> Tensor:
    nll, log_z = full_losses(hidden, weight, targets)
    return (token_weight * (nll + Z_WEIGHT * log_z**2)).sum()


def gradients(loss: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, of)


def test_weighted_loss_equals_full_logits(chunk_tokens: int) -> None:
    hidden, weight, targets, token_weight = inputs()
    loss = weighted_loss(hidden, weight, targets, token_weight, Z_WEIGHT, chunk_tokens)
    expected = full_weighted_loss(hidden, weight, targets, token_weight)
    torch.testing.assert_close(loss.loss_sum, expected, rtol=1e-12, atol=1e-12)
    for ours, full in zip(loss[1:], full_losses(hidden, weight, targets), strict=True):
        torch.testing.assert_close(ours, full, rtol=1e-12, atol=1e-12)
    for ours, full in zip(gradients(loss.loss_sum, hidden, weight), gradients(expected, hidden, weight), strict=True):
        torch.testing.assert_close(ours, full, rtol=1e-12, atol=1e-12)


def test_weighted_loss_passes_gradcheck(chunk_tokens: int) -> None:
    hidden, weight, targets, token_weight = inputs()
    assert torch.autograd.gradcheck(
        lambda h, w: weighted_loss(h, w, targets, token_weight, Z_WEIGHT, chunk_tokens).loss_sum, (hidden, weight)
    )


def test_token_losses_pass_gradcheck_and_equal_full_logits(chunk_tokens: int) -> None:
    hidden, weight, targets, _ = inputs()
    assert torch.autograd.gradcheck(lambda h, w: tuple(token_losses(h, w, targets, chunk_tokens)), (hidden, weight))
    for ours, full in zip(token_losses(hidden, weight, targets, chunk_tokens), full_losses(hidden, weight, targets), strict=True):
        torch.testing.assert_close(ours, full, rtol=1e-12, atol=1e-12)


def test_tied_head_gets_both_gradients() -> None:
    _, weight, targets, token_weight = inputs()
    index = torch.arange(TOKENS) % VOCABULARY
    assert torch.autograd.gradcheck(lambda w: weighted_loss(w[index], w, targets, token_weight, Z_WEIGHT, 4).loss_sum, (weight,))
    assert torch.autograd.gradcheck(lambda w: tuple(token_losses(w[index], w, targets, 4)), (weight,))


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_what_is_frozen_gets_no_gradient(frozen: str, chunk_tokens: int) -> None:
    hidden, weight, targets, token_weight = inputs()
    free = weight if frozen == "hidden" else hidden
    (hidden if frozen == "hidden" else weight).requires_grad_(False)
    expected = gradients(full_weighted_loss(hidden, weight, targets, token_weight), free)[0]
    loss = weighted_loss(hidden, weight, targets, token_weight, Z_WEIGHT, chunk_tokens).loss_sum
    torch.testing.assert_close(gradients(loss, free)[0], expected, rtol=1e-12, atol=1e-12)
    nll = token_losses(hidden, weight, targets, chunk_tokens).nll.sum()
    torch.testing.assert_close(gradients(nll, free)[0], gradients(full_losses(hidden, weight, targets).nll.sum(), free)[0])
    assert hidden.grad is None and weight.grad is None


def test_backward_multiplies_by_the_gradient_of_the_sum_and_can_be_repeated() -> None:
    hidden, weight, targets, token_weight = inputs()
    loss = weighted_loss(hidden, weight, targets, token_weight).loss_sum
    once = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    scaled = torch.autograd.grad(loss * 1024 / 7, (hidden, weight))
    for first, second in zip(once, scaled, strict=True):
        torch.testing.assert_close(second, first * 1024 / 7, rtol=1e-14, atol=0)


def test_ignored_targets_and_zero_weights_count_nothing() -> None:
    hidden, weight, targets, token_weight = inputs()
    loss = weighted_loss(hidden, weight, targets, torch.ones_like(token_weight), Z_WEIGHT)
    assert loss.nll[[2, 7]].tolist() == loss.log_z[[2, 7]].tolist() == [0.0, 0.0]
    hidden_gradient = gradients(loss.loss_sum, hidden)[0]
    assert hidden_gradient[[2, 7]].count_nonzero() == 0
    assert hidden_gradient[4].count_nonzero() > 0
    unweighted = gradients(weighted_loss(hidden, weight, targets, token_weight, Z_WEIGHT).loss_sum, hidden)[0]
    assert unweighted[4].count_nonzero() == 0


def test_nll_and_log_z_of_the_weighted_loss_are_for_the_record_only() -> None:
    loss = weighted_loss(*inputs())
    assert loss.loss_sum.requires_grad
    assert not loss.nll.requires_grad and not loss.log_z.requires_grad


def test_no_gradients_are_made_when_none_can_be_asked_for() -> None:
    hidden, weight, targets, token_weight = inputs()
    with torch.no_grad():
        loss = weighted_loss(hidden, weight, targets, token_weight)
    assert not loss.loss_sum.requires_grad
    torch.testing.assert_close(loss.loss_sum, weighted_loss(hidden, weight, targets, token_weight).loss_sum.detach())


def test_second_derivatives_are_refused_rather_than_wrong() -> None:
    hidden, weight, targets, token_weight = inputs()
    loss = weighted_loss(hidden, weight, targets, token_weight).loss_sum.square()
    (first,) = torch.autograd.grad(loss, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_losses_of_large_logits_stay_finite() -> None:
    hidden, weight, targets, token_weight = inputs(torch.float32)
    loss = weighted_loss(hidden * 1e4, weight, targets, token_weight)
    assert all(value.isfinite().all() for value in loss)
    assert gradients(loss.loss_sum, weight)[0].isfinite().all()


def test_autocast_rounds_products_but_not_softmax_or_gradient_sums() -> None:
    hidden, weight, targets, token_weight = inputs(torch.float32)
    exact = full_weighted_loss(hidden, weight, targets, token_weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = weighted_loss(hidden, weight, targets, token_weight.float(), Z_WEIGHT, 4)
        per_token = token_losses(hidden, weight, targets, 4)
    assert all(value.dtype == torch.float32 for value in (*loss, *per_token))
    torch.testing.assert_close(loss.loss_sum, exact.float(), rtol=1e-2, atol=0)
    torch.testing.assert_close(per_token.nll, loss.nll, rtol=0, atol=0)
    for value, expected in zip(gradients(loss.loss_sum, hidden, weight), gradients(exact, hidden, weight), strict=True):
        assert value.dtype == torch.float32
        assert (value - expected).norm() < 2e-2 * expected.norm()
    # The backward pass runs outside autocast and must use the same products as the forward pass.
    again = gradients(per_token.nll.sum(), hidden)[0]
    assert again.isfinite().all() and again.dtype == torch.float32


def test_chunks_are_of_512_tokens_and_at_most_eight() -> None:
    def sizes(tokens: int) -> list[int]:
        return [len(range(tokens)[chunk]) for chunk in head._chunks(tokens, head.CHUNK_TOKENS)]

    assert sizes(0) == []
    assert sizes(512) == [512]
    assert sizes(513) == [512, 1]
    assert sizes(4096) == [512] * 8
    assert len(sizes(4097)) == 8 and sum(sizes(4097)) == 4097


class LargestLive(TorchDispatchMode):
    """Counts the elements held by tensors of at least `columns` columns after every operation."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.columns, self.live, self.peak_elements = columns, dict[int, tuple[StorageWeakRef, int]](), 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.ndim == 2 and result.shape[1] >= self.columns:
            storage = result.untyped_storage()
            self.live[storage.data_ptr()] = (StorageWeakRef(storage), result.numel())
        self.live = {key: entry for key, entry in self.live.items() if not entry[0].expired()}
        self.peak_elements = max(self.peak_elements, sum(size for _, size in self.live.values()))
        return result


@pytest.mark.parametrize("losses", [weighted_loss, token_losses])
def test_no_vocabulary_wide_tensor_outlives_its_chunk(losses: Callable[..., TokenLoss | TokenNll]) -> None:
    tokens, chunk, vocabulary = 64, 8, 1000
    hidden = torch.randn(tokens, WIDTH, requires_grad=True)
    weight = torch.randn(vocabulary, WIDTH, requires_grad=True)
    targets = torch.zeros(tokens, dtype=torch.int64)
    arguments = (hidden, weight, targets, torch.ones(tokens)) if losses is weighted_loss else (hidden, weight, targets)
    saved: list[torch.Size] = []

    def note(tensor: Tensor) -> Tensor:
        saved.append(tensor.shape)
        return tensor

    with LargestLive(vocabulary) as memory, torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = losses(*arguments, chunk_tokens=chunk)
        loss = result.loss_sum if isinstance(result, TokenLoss) else result.nll.sum()
        loss.backward()
    assert memory.peak_elements > 0
    assert memory.peak_elements <= 4 * chunk * vocabulary  # logits, log-softmax and their gradient, not 64 rows of them
    assert saved and all(vocabulary not in shape[1:] for shape in saved)
