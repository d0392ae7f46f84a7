"""Greedy text equals transformers', a batch equals its rows alone, and every way a completion can end."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from fledge.core.errors import DataError, MachineError
from fledge.inference import engine as engine_module
from fledge.inference import kernels
from fledge.inference.engine import Completion, Engine
from fledge.inference.forward import Chunk
from fledge.inference.kernel_forward import KernelForward
from fledge.inference.requests import Request
from fledge.inference.scheduling import Load
from fledge.inference.settings import GenerationSettings
from fledge.model.folder import save_model
from fledge.model.llama import Llama

VOCABULARY_SIZE = 500
GREEDY = GenerationSettings(temperature=0, maximum_new_tokens=40)
SAMPLED = GenerationSettings(temperature=1.0, maximum_new_tokens=40, seed=11)


@pytest.fixture
def engine(tiny_model: Llama) -> Engine:
    return Engine(tiny_model, VOCABULARY_SIZE, tiny_model.config.end_token_ids)


def slow_greedy(model: Llama, prompt: list[int], new_tokens: int) -> list[int]:
    """Greedy decoding without a cache: the whole text again for every token."""
    ids = list(prompt)
    for _ in range(new_tokens):
        ids.append(int(model(torch.tensor([ids]))[0, -1, :VOCABULARY_SIZE].argmax()))
    return ids[len(prompt) :]


def test_greedy_equals_decoding_without_a_cache(tiny_model: Llama, ragged_prompts: list[list[int]]) -> None:
    completions = Engine(tiny_model, VOCABULARY_SIZE, ()).generate(ragged_prompts[:4], GREEDY)
    assert [completion.ids for completion in completions] == [slow_greedy(tiny_model, prompt, 40) for prompt in ragged_prompts[:4]]
    assert not any(completion.stopped for completion in completions)


def test_greedy_equals_transformers(tiny_model: Llama, ragged_prompts: list[list[int]], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    save_model(tiny_model, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="sdpa").eval()
    # with all ids allowed: transformers knows no padded vocabulary
    completions = Engine(tiny_model, tiny_model.config.vocabulary_size, tiny_model.config.end_token_ids).generate(ragged_prompts, GREEDY)
    for prompt, completion in zip(ragged_prompts, completions, strict=True):
        output = theirs.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=40, do_sample=False)
        end = [] if completion.end_token is None else [completion.end_token]
        assert output[0, len(prompt) :].tolist() == [*completion.ids, *end]


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_prompt_gets_the_same_alone_and_in_a_batch(engine: Engine, ragged_prompts: list[list[int]], settings: GenerationSettings) -> None:
    together = engine.generate(ragged_prompts, settings)
    lengths = {len(completion.ids) for completion in together}
    assert len(lengths) > 5, "rows must end at different steps for this to test anything"
    assert engine.generate(ragged_prompts[:1], settings)[0] == together[0]
    assert engine.generate(ragged_prompts[:5], settings) == together[:5]
    if settings is GREEDY:
        assert [engine.generate([prompt], settings)[0] for prompt in ragged_prompts] == together


def test_batches_of_limited_rows_change_nothing(engine: Engine, ragged_prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = engine.generate(ragged_prompts, SAMPLED)
    monkeypatch.setattr(engine_module, "MAXIMUM_BATCH_ROWS", 5)
    assert engine.generate(ragged_prompts, SAMPLED) == expected


def test_a_seed_repeats_and_another_differs(engine: Engine, ragged_prompts: list[list[int]]) -> None:
    first = engine.generate(ragged_prompts, SAMPLED)
    assert engine.generate(ragged_prompts, SAMPLED) == first
    assert engine.generate(ragged_prompts, GenerationSettings(temperature=1.0, maximum_new_tokens=40, seed=12)) != first


def test_equal_prompts_of_a_batch_draw_differently(engine: Engine) -> None:
    assert len({tuple(completion.ids) for completion in engine.generate([[5, 6]] * 8, SAMPLED)}) > 4


def test_end_tokens_end_and_are_not_part_of_the_text(engine: Engine, ragged_prompts: list[list[int]]) -> None:
    stopped = [completion for completion in engine.generate(ragged_prompts, GREEDY) if completion.stopped]
    assert stopped
    for completion in stopped:
        assert completion.end_token in engine.stop_ids
        assert not set(completion.ids) & engine.stop_ids


def test_the_token_limit_ends(tiny_model: Llama) -> None:
    limit = GenerationSettings(temperature=0, maximum_new_tokens=3)
    (completion,) = Engine(tiny_model, VOCABULARY_SIZE, ()).generate([[5]], limit)
    assert len(completion.ids) == 3
    assert not completion.stopped


def test_a_full_context_ends(tiny_model: Llama) -> None:
    """One row fills the 96 tokens of the context while the other goes on."""
    long, short = list(range(100, 190)), [5]
    settings = GenerationSettings(temperature=0, maximum_new_tokens=40)
    first, second = Engine(tiny_model, VOCABULARY_SIZE, ()).generate([long, short], settings)
    assert (len(first.ids), first.stopped) == (6, False)
    assert (len(second.ids), second.stopped) == (40, False)


@pytest.mark.parametrize("length", [0, 96, 97])
def test_prompts_that_cannot_be_answered_are_refused(engine: Engine, length: int) -> None:
    with pytest.raises(DataError, match=f"a prompt has {length} tokens, the context of the model has 96"):
        engine.generate([[1], [1] * length], GREEDY)


def test_the_longest_possible_prompt_gets_one_token(tiny_model: Llama) -> None:
    assert len(Engine(tiny_model, VOCABULARY_SIZE, ()).generate([[1] * 95], GREEDY)[0].ids) == 1


def test_tokens_are_reported_as_they_are_drawn(engine: Engine, ragged_prompts: list[list[int]]) -> None:
    heard: list[tuple[int, int]] = []
    completions = engine.generate(ragged_prompts, GREEDY, on_token=lambda prompt, token: heard.append((prompt, token)))
    for index, completion in enumerate(completions):
        assert [token for prompt, token in heard if prompt == index] == completion.ids
    first_step = [prompt for prompt, _ in heard[: sum(1 for completion in completions if completion.ids)]]
    assert first_step == [index for index, completion in enumerate(completions) if completion.ids]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("gone")])
def test_what_fails_on_good_weights_is_not_told_as_broken_ones(engine: Engine, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: KernelForward, chunks: Sequence[Chunk]) -> list[torch.Tensor]:
        raise error

    monkeypatch.setattr(KernelForward, "run", fail)
    with pytest.raises(MachineError, match=f"a prompt could not be completed: {type(error).__name__}"):
        engine.generate([[1]], GREEDY)


def test_nothing_is_taken_of_the_machine_before_the_first_request(engine: Engine) -> None:
    assert not engine.has_work and engine.step() == []
    engine.cancel(0)
    assert engine.load == Load(0, 0, engine.settings.slots)
    assert not {"_scheduler", "_packed"} & set(vars(engine))
    engine.submit(Request((1,), GREEDY))
    assert engine.has_work and engine.load.waiting == 1


def test_padded_ids_never_come_out(tiny_model: Llama) -> None:
    hot = GenerationSettings(temperature=50.0, top_k=0, top_p=1.0, maximum_new_tokens=60, seed=0)
    completions = Engine(tiny_model, 20, ()).generate([[1]] * 10, hot)
    drawn = {token for completion in completions for token in completion.ids}
    assert drawn == set(range(20))


def test_no_prompts_no_completions(engine: Engine) -> None:
    assert engine.generate([], GREEDY) == []


def test_bf16_runs(tiny_model: Llama) -> None:
    (completion,) = Engine(tiny_model, VOCABULARY_SIZE, (), precision="bf16").generate([[5, 6]], GREEDY)
    assert isinstance(completion, Completion)
    assert len(completion.ids) == 40


def test_a_word_before_loops_are_compiled(tiny_model: Llama, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for kept, told in ((True, 0), (False, 1)):
        monkeypatch.setattr(kernels, "are_kept", lambda kept=kept: kept)
        Engine(tiny_model, VOCABULARY_SIZE, ()).generate([[1]], GREEDY)
        assert capsys.readouterr().err.count("compiling the loops") == told


def test_loops_are_kept_until_their_file_changes(engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    engine.generate([[1]], GREEDY)
    source = tmp_path / Path(kernels.__file__).name
    source.touch()
    monkeypatch.setattr(kernels, "__file__", str(source))
    assert not kernels.are_kept()
    os.utime(source, (0, 0))
    assert kernels.are_kept()
