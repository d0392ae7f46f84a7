"""Tokens by recorded passes: which recordings there are, what is in their rows, and that they compute what the model does."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fledge.core.errors import ConfigError, MachineError
from fledge.inference.engine import Engine
from fledge.inference.forward import Chunk, TorchForward
from fledge.inference.graph_forward import GraphForward, bucket, with_weights_in
from fledge.inference.requests import Request
from fledge.inference.scheduling import Scheduler
from fledge.inference.settings import EngineSettings, GenerationSettings
from fledge.model.devices import choose_device, require_room
from fledge.model.llama import Llama
from fledge.model.settings import ModelConfig, ModelSettings

SLOTS, CONTEXT_TOKENS = 6, 320
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SHAPES: list[dict[str, object]] = [
    {},
    {"num_key_value_heads": 4},
    {"query_key_norm": True, "head_dim": 32},
    {"normalization": "layer", "activation": "gelu", "tie_word_embeddings": True},
]


def make_model(settings: ModelSettings, **changes: object) -> Llama:
    shape = replace(settings, max_position_embeddings=CONTEXT_TOKENS, **changes)
    return Llama(ModelConfig(shape, 512), seed=3).requires_grad_(False)


def passes(seed: int, steps: int = 40) -> list[list[Chunk]]:
    """Texts that begin, are read in pieces, go on by single tokens and make place for others, some of them standing still in a pass."""
    chosen = random.Random(seed)
    ends: dict[int, int] = {}
    found = []
    for _ in range(steps):
        chunks = []
        for slot in range(chosen.choice((1, 2, 4, SLOTS))):
            if slot in ends and (chosen.random() < 0.04 or ends[slot] > CONTEXT_TOKENS - 100):
                del ends[slot]
            if slot not in ends and chosen.random() < 0.6:
                continue
            if chosen.random() < 0.15:
                continue
            start = ends.get(slot, 0)
            size = chosen.choice((1, 7, 90)) if start == 0 or chosen.random() < 0.1 else 1
            ids = tuple(chosen.randrange(500) for _ in range(size))
            chunks.append(Chunk(slot, start, ids, chosen.choice(("last", "last", "all", "nothing"))))
            ends[slot] = start + size
        if chunks:
            found.append(chunks)
    return found


def assert_alike(ours: GraphForward, theirs: TorchForward, given: Sequence[Sequence[Chunk]], tolerance: float) -> None:
    for chunks in given:
        for mine, expected in zip(ours.run(chunks), theirs.run(chunks), strict=True):
            torch.testing.assert_close(mine, expected, rtol=tolerance, atol=tolerance)


def test_a_bucket_is_at_most_twice_what_is_wanted() -> None:
    assert [bucket(wanted, 1, 24) for wanted in (1, 2, 3, 5, 9, 17, 24)] == [1, 2, 4, 8, 16, 24, 24]
    assert [bucket(wanted, 128, 1000) for wanted in (1, 128, 129, 513, 1000)] == [128, 128, 256, 1000, 1000]


@pytest.mark.parametrize("changes", SHAPES)
def test_recorded_passes_equal_the_model(tiny_settings: ModelSettings, changes: dict[str, object]) -> None:
    model = make_model(tiny_settings, **changes)
    recordings: list[Callable[[], None]] = []

    def record(compute: Callable[[], None]) -> Callable[[], None]:
        for _ in range(2):  # as before a recording
            compute()
        recordings.append(compute)
        return compute

    ours = GraphForward(model, torch.float32, SLOTS, CONTEXT_TOKENS, record)
    theirs = TorchForward(model, "fp32", SLOTS, CONTEXT_TOKENS)
    assert_alike(ours, theirs, passes(seed=1), tolerance=1e-5)
    assert 3 < len(recordings) <= 4 * 3  # 1, 2, 4 or 6 rows, 128, 256 or 320 keys
    known = len(recordings)
    for chunks in passes(seed=1):
        ours.run(chunks)
    assert len(recordings) == known


def test_a_recording_holds_nothing_of_the_pass_it_was_made_in(tiny_settings: ModelSettings) -> None:
    """What is traced once, operation by operation, computes later passes too: nothing was read from a tensor, all lies where it lay."""
    from torch.fx.experimental.proxy_tensor import make_fx

    def record(compute: Callable[[], None]) -> Callable[[], None]:
        return make_fx(compute, tracing_mode="real")()  # type: ignore[no-any-return]

    model = make_model(tiny_settings)
    ours = GraphForward(model, torch.float32, SLOTS, CONTEXT_TOKENS, record)
    assert_alike(ours, TorchForward(model, "fp32", SLOTS, CONTEXT_TOKENS), passes(seed=2, steps=20), tolerance=1e-5)


def test_what_cannot_be_recorded_is_computed_and_told_once(tiny_settings: ModelSettings, capsys: pytest.CaptureFixture[str]) -> None:
    def record(compute: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing")

    model = make_model(tiny_settings)
    ours = GraphForward(model, torch.float32, SLOTS, CONTEXT_TOKENS, record)
    assert_alike(ours, TorchForward(model, "fp32", SLOTS, CONTEXT_TOKENS), passes(seed=3, steps=8), tolerance=1e-5)
    assert capsys.readouterr().err.count("not permitted when stream is capturing") == 1


def test_a_size_that_finds_no_memory_is_the_only_one_that_is_not_recorded(
    tiny_settings: ModelSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    tried, recorded = [], []

    def record(compute: Callable[[], None]) -> Callable[[], None]:
        tried.append(compute)
        if len(tried) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        recorded.append(compute)
        return compute

    model = make_model(tiny_settings)
    ours = GraphForward(model, torch.float32, SLOTS, CONTEXT_TOKENS, record)
    assert_alike(ours, TorchForward(model, "fp32", SLOTS, CONTEXT_TOKENS), passes(seed=3, steps=8), tolerance=1e-5)
    told = capsys.readouterr().err
    assert (told.count("no memory is left to record"), told.count("do not work here")) == (1, 0)
    assert len(recorded) == len(tried) - 1 > 1


def test_a_text_that_has_ended_makes_no_step_longer(tiny_settings: ModelSettings) -> None:
    """Slot 1 has held 200 tokens; beside it slots 0 and 2 hold one each."""
    model = make_model(tiny_settings)
    ours = GraphForward(model, torch.float32, SLOTS, CONTEXT_TOKENS, lambda compute: compute)
    ours.run([Chunk(1, 0, [7] * 200, "last")])
    ours.run([Chunk(0, 0, [5], "last"), Chunk(2, 0, [6], "last")])
    assert list(ours._recorded) == [(4, 256)], "it stands still and must not be written over"
    ours.release(1)
    ours.run([Chunk(0, 1, [5], "last"), Chunk(2, 1, [6], "last")])
    assert list(ours._recorded) == [(4, 256), (4, 128)]


def test_an_engine_releases_the_slots_of_texts_that_have_ended(tiny_settings: ModelSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """However they end: by their limit, by a cancel, by a failure."""
    forward = TorchForward(make_model(tiny_settings), "fp32", 3, CONTEXT_TOKENS)
    scheduler = Scheduler(forward, 3, CONTEXT_TOKENS, 256, 500, ())
    tickets = [
        scheduler.submit(Request((token,) * 9, GenerationSettings(maximum_new_tokens=limit))) for token, limit in ((1, 2), (2, 9), (3, 9))
    ]
    scheduler.step()
    assert [chunk.start for chunk in forward.slots.rows([], range(3))] == [9, 9, 9]
    scheduler.cancel(tickets[1])
    scheduler.step()
    assert [chunk.start for chunk in forward.slots.rows([], range(3))] == [0, 0, 10]
    monkeypatch.setattr(forward, "run", lambda chunks: 1 / 0)
    scheduler.step()
    assert [chunk.start for chunk in forward.slots.rows([], range(3))] == [0, 0, 0]


def test_weights_are_copied_only_if_they_change(tiny_model: Llama) -> None:
    assert with_weights_in(tiny_model, torch.float32) is tiny_model
    cast = with_weights_in(tiny_model, torch.bfloat16)
    assert {value.dtype for value in (*cast.parameters(), cast.model.cosine)} == {torch.bfloat16}
    assert tiny_model.lm_head.weight.dtype == torch.float32


def test_bf16_stays_near(tiny_settings: ModelSettings) -> None:
    model = make_model(tiny_settings, initializer_range=0.05)
    ours = GraphForward(model, torch.bfloat16, SLOTS, CONTEXT_TOKENS, lambda compute: compute)
    assert_alike(ours, TorchForward(model, "fp32", SLOTS, CONTEXT_TOKENS), passes(seed=4, steps=8), tolerance=5e-2)


def test_a_device_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert [choose_device("auto").type, choose_device("auto", apple_by_itself=True).type] == ["cpu", "mps"]
    with pytest.raises(MachineError, match="device is cuda, but torch finds no GPU"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [choose_device("auto").type, choose_device("cpu").type] == ["cuda", "cpu"]


def test_slots_that_do_not_fit_are_an_error_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = {"mem_get_info": (3_000_000_000, 0), "memory_reserved": 2_000_000_000, "memory_allocated": 1_500_000_000}
    for name, value in memory.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    require_room(3_500_000_000, torch.device("cuda"), "slots", "")
    with pytest.raises(MachineError, match=r"slots take 3\.6 GB, of which the GPU has 3\.5 GB left"):
        require_room(3_600_000_000, torch.device("cuda"), "slots", "")
    require_room(10**15, torch.device("cpu"), "slots", "")


@NEEDS_GPU
@pytest.mark.parametrize("changes", SHAPES)
def test_graphs_equal_the_model_on_a_gpu(
    tiny_settings: ModelSettings, changes: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model(tiny_settings, **changes)
    expected = TorchForward(model, "fp32", SLOTS, CONTEXT_TOKENS)
    ours = GraphForward(with_weights_on_gpu(model), torch.float32, SLOTS, CONTEXT_TOKENS)
    for seed in (1, 2):
        for chunks in passes(seed):
            for mine, theirs in zip(ours.run(chunks), expected.run(chunks), strict=True):
                torch.testing.assert_close(mine.cpu(), theirs, rtol=1e-4, atol=1e-4)
    assert "CUDA graphs do not work" not in capsys.readouterr().err


@NEEDS_GPU
def test_a_gpu_says_what_a_cpu_says(tiny_settings: ModelSettings) -> None:
    """Greedily, and by the same seeds, whatever the load; log probabilities to 1e-4."""
    model = make_model(tiny_settings)
    chosen = random.Random(0)
    requests = [
        Request(
            tuple(chosen.randrange(500) for _ in range(chosen.choice((1, 3, 40)))),
            GenerationSettings(temperature=chosen.choice((0.0, 1.0)), maximum_new_tokens=chosen.choice((5, 30)), seed=index),
            logprobs=2,
        )
        for index in range(30)
    ]
    on_cpu, on_gpu = answers(model, requests), answers(with_weights_on_gpu(model), requests)
    for ours, theirs in zip(on_gpu, on_cpu, strict=True):
        assert [token for token, _ in ours] == [token for token, _ in theirs]
        assert [logprob for _, logprob in ours] == pytest.approx([logprob for _, logprob in theirs], abs=1e-4)


@NEEDS_GPU
def test_bf16_is_near_on_a_gpu(tiny_settings: ModelSettings) -> None:
    model = make_model(tiny_settings, initializer_range=0.05)
    ours, theirs = GraphForward(with_weights_on_gpu(model), torch.bfloat16, SLOTS, CONTEXT_TOKENS), TorchForward(model, "fp32", SLOTS, 320)
    for chunks in passes(5, steps=20):
        for mine, expected in zip(ours.run(chunks), theirs.run(chunks), strict=True):
            torch.testing.assert_close(mine.cpu(), expected, rtol=5e-2, atol=5e-2)


@NEEDS_GPU
def test_a_gpu_refuses_what_it_cannot(tiny_settings: ModelSettings) -> None:
    model = with_weights_on_gpu(make_model(tiny_settings))
    with pytest.raises(ConfigError, match="int8, which is computed on a CPU only"):
        answers(model, [Request((1,), GenerationSettings())], EngineSettings(weights="int8"))
    with pytest.raises(MachineError, match="GB, of which the GPU has"):
        answers(model, [Request((1,), GenerationSettings())], EngineSettings(slots=100_000_000))


def with_weights_on_gpu(model: Llama) -> Llama:
    on_gpu = Llama(model.config, seed=None)
    on_gpu.load_state_dict(model.state_dict())
    return on_gpu.requires_grad_(False).cuda()


def answers(model: Llama, requests: Sequence[Request], settings: EngineSettings | None = None) -> list[list[tuple[int, float]]]:
    """Tokens and their log probabilities."""
    engine = Engine(model, 500, (), settings=settings or EngineSettings(slots=SLOTS, prefill_tokens=32))
    found: dict[int, list[tuple[int, float]]] = {engine.submit(request): [] for request in requests}
    while engine.has_work:
        for drawn in engine.step():
            assert drawn.failure is None
            if drawn.token is not None and drawn.logprobs is not None:
                found[drawn.ticket].append((drawn.token, drawn.logprobs.logprob))
    return list(found.values())


def logits_of(model: Llama, ids: Sequence[int]) -> Tensor:
    logits = model(torch.tensor([list(ids)]))
    assert isinstance(logits, Tensor)
    return logits[0]


def test_heads_in_line_are_the_attention_of_one(tiny_settings: ModelSettings) -> None:
    """A single token over more keys than plain products are used for, with key heads that several query heads share."""
    context_tokens = 640
    model = Llama(ModelConfig(replace(tiny_settings, max_position_embeddings=context_tokens), 512), seed=3).requires_grad_(False)
    ids = [random.Random(0).randrange(500) for _ in range(601)]
    forward = TorchForward(model, "fp32", 2, context_tokens)
    forward.run([Chunk(0, 0, ids[:600], "nothing")])
    [logits] = forward.run([Chunk(0, 600, ids[600:], "last")])
    torch.testing.assert_close(logits, logits_of(model, ids)[-1:], rtol=1e-4, atol=1e-4)
