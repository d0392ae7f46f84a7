"""One contestant of the training benchmarks, as a process: `python training_contestants.py JSON`; see `training_turns.py` for what it says.

All do the same work per step: fresh random tokens, forward, loss over all of them, backward, clipping at 1.0, fused AdamW.
The engines: fledge (its Trainer as the stages use it), hf_trainer and hf_loop (transformers' Llama of the same shape), litgpt, nanogpt; of
`post_training.py` fledge_post and trl, which train on token sets.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch

VOCABULARY = 32_768
LEARNING_RATE = 3e-4


def main() -> None:
    sys.path.append(sys.path.pop(0))  # beside this file lies a tokenizers.py, which is not the library
    usual = {"documents": False, "compile": False, "keep_memory": False, "threads": None, "model": None, "vocabulary": VOCABULARY}
    given = SimpleNamespace(**{**usual, **json.loads(sys.argv[1])})
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    if given.keep_memory:
        from fledge.core.process import keep_freed_memory

        keep_freed_memory()
    torch.manual_seed(0)
    engines = {"fledge": _fledge, "hf_trainer": _hf_trainer, "hf_loop": _hf_loop, "litgpt": _litgpt, "nanogpt": _nanogpt}
    engines |= {"fledge_post": _post_training, "trl": _post_training}
    next(engines[given.engine](given))


def turns(given: SimpleNamespace, parameters: int, warm_up_steps: int = 2, **more: Any) -> Iterator[None]:
    """Yields once for every step that is to be taken; speaks with the driver in between."""
    started = time.monotonic()
    for _ in range(warm_up_steps):
        yield
    _leave(given)
    told = {
        "parameters": parameters,
        "tokens_per_step": given.rows * given.tokens,
        "first_steps_seconds": time.monotonic() - started,
        **more,
    }
    print("READY " + json.dumps(told), flush=True)
    for line in sys.stdin:
        if given.device == "cuda":
            yield  # takes the memory back that it left to the others
            torch.cuda.synchronize()
        steps, clock, processor = int(line), time.monotonic(), time.process_time()
        for _ in range(steps):
            yield
        if given.device == "cuda":
            torch.cuda.synchronize()
        took = {"steps": steps, "seconds": time.monotonic() - clock, "cpu_seconds": time.process_time() - processor}
        if given.device == "cuda":
            took["peak_gigabytes"] = torch.cuda.max_memory_allocated() / 1e9
        _leave(given)
        print("TOOK " + json.dumps(took), flush=True)
    sys.exit(0)


def _leave(given: SimpleNamespace) -> None:
    """Leave the GPU's memory to the others until the next turn."""
    if given.device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def _post_training(given: SimpleNamespace) -> Iterator[None]:
    """Takes turns, or prints what each step measures."""
    if given.engine == "trl":
        import post_training_trl as engine
    else:
        import post_training_fledge as engine  # type: ignore[no-redef]
    if given.mode == "losses":
        print(json.dumps(engine.losses(given)))
    else:
        yield from engine.contestant(given, turns)
    yield


def _random_tokens(given: SimpleNamespace) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (given.rows, given.tokens), device=given.device)


def _fledge(given: SimpleNamespace) -> Iterator[None]:
    """The Trainer itself, on random rows that are there already, as they are with tokens on the device."""
    from training_fledge import make_trainer

    trainer = make_trainer(given, given.vocabulary, LEARNING_RATE)
    for _ in turns(given, sum(parameter.numel() for parameter in trainer.model.parameters()), kernel=trainer.machine.precision):
        trainer.step()
    yield


def _shape(given: SimpleNamespace) -> dict[str, Any]:
    return {
        "hidden_size": given.width,
        "num_hidden_layers": given.layers,
        "num_attention_heads": given.heads,
        "num_key_value_heads": given.key_value_heads,
        "intermediate_size": given.feed_forward,
        "max_position_embeddings": given.tokens,
        "tie_word_embeddings": given.tied,
    }


def _hf_model(given: SimpleNamespace) -> Any:
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, rope_theta=10_000.0, attn_implementation="sdpa", use_cache=False, **_shape(given)
    )
    return transformers.LlamaForCausalLM(config)


def _hf_trainer(given: SimpleNamespace) -> Iterator[None]:
    """transformers' Trainer as its documentation starts it; each step waits for its turn in a callback."""
    import tempfile

    import transformers

    model = _hf_model(given)
    rows = torch.randint(0, VOCABULARY, (64 * given.rows, given.tokens))
    data = [{"input_ids": row, "labels": row} for row in rows]
    waiting = turns(given, model.num_parameters())

    class TakeTurns(transformers.TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            next(waiting)

    arguments = transformers.TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=given.rows,
        num_train_epochs=1_000,
        bf16=given.precision == "bf16",
        use_cpu=given.device == "cpu",
        torch_compile=given.compile,
        optim="adamw_torch_fused",
        learning_rate=LEARNING_RATE,
        max_grad_norm=1.0,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    transformers.Trainer(model, arguments, train_dataset=data, callbacks=[TakeTurns()]).train()  # type: ignore[arg-type]
    yield


def _loop(given: SimpleNamespace, model: torch.nn.Module, loss_of: Any) -> Iterator[None]:
    """The plain loop that people write around a model."""
    model.to(given.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    if given.compile:
        model.compile()
    for _ in turns(given, sum(parameter.numel() for parameter in model.parameters())):
        tokens = _random_tokens(given)
        with torch.autocast(given.device, dtype=torch.bfloat16, enabled=given.precision == "bf16"):
            loss = loss_of(model, tokens)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    yield


def _hf_loop(given: SimpleNamespace) -> Iterator[None]:
    return _loop(given, _hf_model(given), lambda model, tokens: model(input_ids=tokens, labels=tokens).loss)


def _litgpt(given: SimpleNamespace) -> Iterator[None]:
    """litgpt's GPT in Llama's form with its chunked loss, as its pretraining computes it."""
    import litgpt
    from litgpt.utils import chunked_cross_entropy

    config = litgpt.Config(
        block_size=given.tokens,
        padded_vocab_size=VOCABULARY,
        vocab_size=VOCABULARY,
        n_layer=given.layers,
        n_head=given.heads,
        n_query_groups=given.key_value_heads,
        n_embd=given.width,
        intermediate_size=given.feed_forward,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
    )
    model = litgpt.GPT(config)
    return _loop(given, model, lambda model, tokens: chunked_cross_entropy(model(tokens)[:, :-1], tokens[:, 1:], chunk_size=0))


def _nanogpt(given: SimpleNamespace) -> Iterator[None]:
    """nanoGPT's model.py, found by PYTHONPATH: its own architecture with as many multiplications (GELU, 12 d^2 a layer, a tied head)."""
    from model import GPT, GPTConfig  # type: ignore[import-not-found]

    body = 4 * given.width**2 + 3 * given.width * given.feed_forward
    layers = round(given.layers * body / (12 * given.width**2))
    config = GPTConfig(
        block_size=given.tokens, vocab_size=VOCABULARY, n_layer=layers, n_head=given.heads, n_embd=given.width, dropout=0.0, bias=False
    )
    return _loop(given, GPT(config), lambda model, tokens: model(tokens, tokens)[1])


if __name__ == "__main__":
    main()
