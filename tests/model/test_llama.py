from __future__ import annotations

import copy
import math
import subprocess
import sys
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fledge.model import attention as attention_module
from fledge.model.attention import KeyValueCache
from fledge.model.head import IGNORE, TokenLoss, TokenNll
from fledge.model.llama import Llama, linear
from fledge.model.settings import ModelConfig, ModelSettings

MakeModel = Callable[..., Llama]

SHAPES = [
    {"num_key_value_heads": 2},
    {"tie_word_embeddings": False, "query_key_norm": True, "num_key_value_heads": 1, "head_dim": 16},
    {"normalization": "layer", "activation": "gelu"},
]


@pytest.fixture
def targets(tokens: Tensor) -> Tensor:
    targets = tokens.roll(-1, 1)
    targets[:, -1] = targets[0, 3] = IGNORE
    return targets


@pytest.fixture(params=[0, 512], ids=["fused kernel", "products"])
def both_kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_module, "PRODUCTS_UP_TO_SLOTS", request.param)


def logits_of(model: Llama, tokens: Tensor, documents: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(tokens, documents)
    return logits


@pytest.mark.parametrize("changes", SHAPES)
def test_the_three_answers_of_forward_agree(changes: dict[str, object], make_model: MakeModel, tokens: Tensor, targets: Tensor) -> None:
    model = make_model(**changes)
    logits = logits_of(model, tokens)
    nll = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="none").view_as(targets)
    weight = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(1))
    per_token = model(tokens, targets=targets)
    summed = model(tokens, targets=targets, token_weight=weight, z_weight=0.01)
    assert isinstance(per_token, TokenNll) and isinstance(summed, TokenLoss)
    counted = targets != IGNORE
    torch.testing.assert_close(per_token.nll, nll, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(per_token.log_z, logits.logsumexp(-1) * counted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(summed.nll, per_token.nll.detach(), rtol=0, atol=0)
    torch.testing.assert_close(summed.loss_sum, (weight * (per_token.nll + 0.01 * per_token.log_z**2)).sum(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("changes", SHAPES)
def test_both_losses_have_the_gradients_of_full_logits(
    changes: dict[str, object], make_model: MakeModel, tokens: Tensor, targets: Tensor
) -> None:
    model = make_model(**changes).double()
    documents = torch.where(torch.arange(24) < 10, 0, 10).expand(3, 24)
    losses = {
        "full": F.cross_entropy(model(tokens, documents).flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum"),
        "weighted": model(tokens, documents, targets, torch.ones(tokens.shape)).loss_sum,
        "per token": model(tokens, documents, targets).nll.sum(),
    }
    gradients = {name: torch.autograd.grad(loss, list(model.parameters())) for name, loss in losses.items()}
    for name in ("weighted", "per token"):
        for ours, full in zip(gradients[name], gradients["full"], strict=True):
            torch.testing.assert_close(ours, full, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("both_kernels")
@pytest.mark.parametrize("changes", SHAPES)
def test_a_document_in_a_row_is_as_alone(changes: dict[str, object], make_model: MakeModel) -> None:
    model = make_model(**changes)
    lengths = [7, 1, 16, 9]
    generator = torch.Generator().manual_seed(5)
    texts = [torch.randint(0, 128, (length + 1,), generator=generator) for length in lengths]
    row = torch.cat([text[:-1] for text in texts])[None]
    targets = torch.cat([text[1:] for text in texts])[None]
    starts = [sum(lengths[:index]) for index in range(len(lengths))]
    documents = torch.cat([torch.full((length,), start) for start, length in zip(starts, lengths, strict=True)])[None].int()
    with torch.no_grad():
        together = model(row, documents, targets).nll[0]
        alone = torch.cat([model(text[None, :-1], targets=text[None, 1:]).nll[0] for text in texts])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    assert abs(together.mean() - alone.mean()) < 1e-6
    with torch.no_grad():
        not_isolated = model(row, targets=targets).nll[0]
    assert (not_isolated - alone)[7:].abs().max() > 1e-2


def test_no_documents_means_one_per_row(make_model: MakeModel, tokens: Tensor) -> None:
    model = make_model()
    assert torch.equal(logits_of(model, tokens), logits_of(model, tokens, torch.zeros_like(tokens, dtype=torch.int32)))


def test_no_token_sees_the_future(make_model: MakeModel, tokens: Tensor) -> None:
    model = make_model()
    changed = tokens.clone()
    changed[:, 12] = (changed[:, 12] + 1) % 128
    before, after = logits_of(model, tokens), logits_of(model, changed)
    assert torch.equal(before[:, :12], after[:, :12])
    assert (before[:, 12:] - after[:, 12:]).abs().amax(-1).min() > 1e-3


@pytest.mark.usefixtures("both_kernels")
@pytest.mark.parametrize("changes", SHAPES)
def test_ragged_prompts_and_steps_equal_forward(changes: dict[str, object], make_model: MakeModel, tokens: Tensor) -> None:
    model = make_model(**changes)
    expected = logits_of(model, tokens)
    rows, lengths = torch.arange(3), torch.tensor([4, 10, 7])
    cache = KeyValueCache(model.config.settings, rows=3, slots=24)
    padded = torch.where(torch.arange(10) < lengths[:, None], tokens[:, :10], 99)
    with torch.no_grad():
        logits = model.extend(padded, torch.arange(10).expand(3, 10), cache, torch.arange(10) == lengths[:, None] - 1)
        torch.testing.assert_close(logits, expected[rows, lengths - 1], rtol=0, atol=1e-5)
        for step in range(14):
            positions = lengths + step
            logits = model.extend(tokens[rows, positions][:, None], positions[:, None], cache)
            torch.testing.assert_close(logits, expected[rows, positions], rtol=0, atol=1e-5)


def test_a_prompt_may_come_in_pieces_and_a_row_may_start_anew(make_model: MakeModel, tokens: Tensor) -> None:
    model = make_model(num_key_value_heads=2)
    cache = KeyValueCache(model.config.settings, rows=3, slots=24)
    positions = torch.arange(24).expand(3, 24)
    with torch.no_grad():
        for text in (tokens, tokens.flip(1)):
            model.extend(text[:, :9], positions[:, :9], cache)
            logits = model.extend(text[:, 9:20], positions[:, 9:20], cache)
            torch.testing.assert_close(logits, logits_of(model, text)[:, 19], rtol=0, atol=1e-5)


@pytest.mark.usefixtures("both_kernels")
@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "bf16 weights"])
def test_bf16_generation_is_close(autocast: bool, make_model: MakeModel, tokens: Tensor) -> None:
    model = make_model(query_key_norm=True, num_key_value_heads=2, initializer_range=0.05)
    expected = logits_of(model, tokens)[:, -1]
    low = model if autocast else copy.deepcopy(model).bfloat16()
    cache = KeyValueCache(model.config.settings, rows=3, slots=24, dtype=torch.bfloat16)
    positions = torch.arange(24).expand(3, 24)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        low.extend(tokens[:, :23], positions[:, :23], cache)
        logits = low.extend(tokens[:, 23:], positions[:, 23:], cache)
    assert (logits - expected).norm() < 2e-2 * expected.norm()


def test_weights_are_a_function_of_the_seed_alone(make_model: MakeModel) -> None:
    config = ModelConfig(ModelSettings(hidden_size=32), 128)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = Llama(config, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    second, other = Llama(config, seed=3), Llama(config, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def test_weights_have_the_wanted_deviations() -> None:
    model = Llama(ModelConfig(ModelSettings(hidden_size=128, num_hidden_layers=8, initializer_range=0.05, normalization="layer"), 1024))
    deviations = {name: float(parameter.detach().std()) for name, parameter in model.named_parameters() if parameter.ndim == 2}
    for name, deviation in deviations.items():
        wanted = 0.05 / 4 if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.05
        assert deviation == pytest.approx(wanted, rel=0.03), name
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert set(parameter.tolist()) == ({0.0} if name.endswith("bias") else {1.0}), name


def test_an_untrained_model_knows_nothing(tokens: Tensor) -> None:
    model = Llama(ModelConfig(ModelSettings(), 4096))
    with torch.no_grad():
        nll = model(tokens, targets=tokens.roll(1, 1)).nll
    assert float(nll.mean()) == pytest.approx(math.log(4096), rel=0.02)


def test_a_tied_head_is_the_embedding(make_model: MakeModel) -> None:
    tied, untied = make_model(), make_model(tie_word_embeddings=False)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert untied.lm_head.weight is not untied.model.embed_tokens.weight
    assert copy.deepcopy(tied).lm_head.weight is not tied.lm_head.weight


def test_autocast_is_close_and_gradients_stay_fp32(make_model: MakeModel, tokens: Tensor, targets: Tensor) -> None:
    model = make_model(query_key_norm=True, initializer_range=0.05)
    weight = torch.ones(tokens.shape)
    exact = model(tokens, targets=targets, token_weight=weight).loss_sum.detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(tokens, torch.zeros_like(tokens), targets, weight)
    loss.loss_sum.backward()
    torch.testing.assert_close(loss.loss_sum.detach(), exact, rtol=1e-2, atol=0)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


def test_training_for_a_moment_lowers_the_loss(make_model: MakeModel, tokens: Tensor, targets: Tensor) -> None:
    model = make_model(initializer_range=0.02)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = model(tokens, None, targets, torch.ones(tokens.shape)).loss_sum / (targets != IGNORE).sum()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 2


def test_the_whole_forward_is_one_graph(make_model: MakeModel, tokens: Tensor, targets: Tensor) -> None:
    model = make_model(num_hidden_layers=1)
    documents, weight = torch.zeros_like(tokens), torch.ones(tokens.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # dynamo instantiates autograd.Function
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        loss = compiled(tokens, documents, targets, weight, 0.01).loss_sum
        gradients = torch.autograd.grad(loss, list(model.parameters()))
    expected = model(tokens, documents, targets, weight, 0.01).loss_sum
    torch.testing.assert_close(loss, expected)
    for ours, eager in zip(gradients, torch.autograd.grad(expected, list(model.parameters())), strict=True):
        torch.testing.assert_close(ours, eager)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("changes", SHAPES)
def test_a_gpu_computes_the_same(changes: dict[str, object], make_model: MakeModel, tokens: Tensor, targets: Tensor) -> None:
    model = make_model(**changes)
    documents = torch.where(torch.arange(24) < 10, 0, 10).expand(3, 24).contiguous()
    given = (tokens, documents, targets, torch.ones(tokens.shape), 0.01)
    expected = model(*given).loss_sum
    on_gpu = copy.deepcopy(model).cuda()
    ours = on_gpu(*(value.cuda() if isinstance(value, Tensor) else value for value in given)).loss_sum
    torch.testing.assert_close(ours.cpu(), expected, rtol=1e-5, atol=1e-5)
    expected.backward()
    ours.backward()
    for a, b in zip(on_gpu.parameters(), model.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None
        torch.testing.assert_close(a.grad.cpu(), b.grad, rtol=1e-3, atol=1e-3)
    cache = KeyValueCache(model.config.settings, rows=3, slots=24, device="cuda")
    with torch.no_grad():
        logits = on_gpu.extend(tokens.cuda(), torch.arange(24, device="cuda").expand(3, 24), cache)
    torch.testing.assert_close(logits.cpu(), logits_of(model, tokens)[:, -1], rtol=1e-4, atol=1e-4)


def test_making_a_model_loads_no_compiler() -> None:
    """It takes two seconds on a slow core, and every start of chat, evaluation or training would pay them."""
    code = (
        "import sys; import fledge; fledge.create_model({'hidden_size': 64, 'num_hidden_layers': 1, 'intermediate_size': 64, "
        "'vocabulary_size': 512}); assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_class_of_an_undrawn_layer_is_torch_s_own() -> None:
    layer = linear(3, 2)
    assert type(layer) is torch.nn.Linear
    state = torch.get_rng_state()
    linear(3, 2)
    assert torch.equal(torch.get_rng_state(), state)
