"""The formula of what is kept, byte by byte against autograd; peaks against a process that trains, and against what GPUs showed."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fledge.model.adapters import add_adapter
from fledge.model.block_attention import BLOCK_QUERIES
from fledge.model.head import CHUNK_TOKENS, MAXIMUM_CHUNKS
from fledge.model.llama import Llama
from fledge.model.memory import BLOCK_QUERIES as PLANNED_BLOCK
from fledge.model.memory import CHUNK_TOKENS as PLANNED_CHUNK
from fledge.model.memory import MAXIMUM_CHUNKS as PLANNED_CHUNKS
from fledge.model.memory import MicroBatch, kept_bytes, micro_batch_that_fits, training_memory
from fledge.model.settings import Adapter, LoraSettings, ModelConfig, ModelSettings

SHAPES: list[dict[str, Any]] = [
    {},
    {"num_key_value_heads": 2},
    {"num_key_value_heads": 1, "query_key_norm": True},
    {"normalization": "layer"},
    {"head_dim": 32, "tie_word_embeddings": False},
]


def config_of(vocabulary_size: int = 512, **shape: Any) -> ModelConfig:
    given = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 176, **shape}
    return ModelConfig(ModelSettings(**given), vocabulary_size)


def bytes_kept_by_autograd(config: ModelConfig, batch: MicroBatch) -> int:
    """Every storage that the forward pass saves, once, but for the parameters and buffers themselves."""
    model = Llama(config, 0)
    if batch.lora is not None:
        add_adapter(model, Adapter(batch.lora, Path("base")), 0)
    model.model.activation_checkpointing = batch.activation_checkpointing
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    found: dict[int, int] = {}
    alive = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)  # so that no later tensor gets its address
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    shape = (batch.rows, batch.row_tokens)
    tokens = torch.randint(config.vocabulary_size, shape)
    documents = torch.zeros(shape, dtype=torch.int32) if batch.isolate_documents else None
    autocast = torch.autocast("cpu", dtype=torch.bfloat16) if batch.precision == "bf16" else nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), autocast:
        model(tokens, documents, tokens, torch.ones(shape), 0.0)
    return sum(size for place, size in found.items() if place not in own)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("isolated", [True, False])
@pytest.mark.parametrize("row_tokens", [96, 200])
def test_what_is_kept_is_exact_on_a_cpu(shape: dict[str, Any], precision: Any, isolated: bool, row_tokens: int) -> None:
    config, batch = config_of(**shape), MicroBatch(3, row_tokens, "cpu", precision, False, isolated)
    assert kept_bytes(config, batch) == bytes_kept_by_autograd(config, batch)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_kept_is_exact_with_full_checkpointing(precision: Any) -> None:
    config, batch = config_of(), MicroBatch(3, 96, "cpu", precision, activation_checkpointing="full")
    assert kept_bytes(config, batch) == bytes_kept_by_autograd(config, batch)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("how", ["none", "full"])
def test_what_is_kept_with_an_adapter_is_a_close_bound(precision: Any, how: Any) -> None:
    config, lora = config_of(num_key_value_heads=2), LoraSettings(rank=8)
    batch = MicroBatch(3, 96, "cpu", precision, activation_checkpointing=how, lora=lora)
    measured = bytes_kept_by_autograd(config, batch)
    assert measured <= kept_bytes(config, batch) <= 1.25 * measured


def test_the_constants_of_others_are_theirs() -> None:
    """Repeated, because their modules load torch."""
    assert (PLANNED_BLOCK, PLANNED_CHUNK, PLANNED_CHUNKS) == (BLOCK_QUERIES, CHUNK_TOKENS, MAXIMUM_CHUNKS)


def gpu_model(width: int, layers: int, heads: int, key_value_heads: int, feed_forward: int, tied: bool = True) -> ModelConfig:
    return ModelConfig(
        ModelSettings(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=key_value_heads,
            intermediate_size=feed_forward,
            tie_word_embeddings=tied,
        ),
        32_768,
    )


M23, M110, M197 = gpu_model(256, 6, 4, 4, 1024, tied=False), gpu_model(768, 12, 12, 12, 2048), gpu_model(1024, 16, 16, 4, 2464)
COMPILED = MicroBatch(32, 1024, "cuda", "bf16", compiled=True, isolate_documents=False)


@pytest.mark.parametrize(
    ("config", "batch", "measured_gigabytes"),
    [
        (M110, COMPILED, 15.7),
        (M110, replace(COMPILED, isolate_documents=True), 15.7),
        (M110, replace(COMPILED, compiled=False), 18.8),
        (M110, replace(COMPILED, rows=64), 27.9 * 1.0737),
        (M110, replace(COMPILED, rows=64, compiled=False), 33.5 * 1.0737),
        (M110, replace(COMPILED, precision="fp8"), 12.1),
        (gpu_model(768, 10, 12, 12, 2048), COMPILED, 13.6),
        (M197, COMPILED, 23.6),
        (M197, replace(COMPILED, precision="fp8"), 17.3),
        (M23, COMPILED, 5.5),
    ],
)
def test_peaks_that_gpus_showed(config: ModelConfig, batch: MicroBatch, measured_gigabytes: float) -> None:
    """H200 (benchmarks/results/train_gpu-H200.json) and, with 64 rows, H100."""
    assert training_memory(config, batch, "adamw").total == pytest.approx(measured_gigabytes * 1e9, rel=0.05)


TRAIN = """
import json, sys, torch
from fledge.core import process
from fledge.model.llama import Llama
from fledge.model.settings import Adapter, LoraSettings, ModelConfig, ModelSettings
from fledge.training.probe import random_batch

torch.set_num_threads(1)
process.keep_freed_memory()
before = process.resident_bytes()
process.restart_peak()
shape = ModelSettings(hidden_size=256, num_hidden_layers=3, num_attention_heads=4, intermediate_size=704)
model = Llama(ModelConfig(shape, 8192), 0)
optimizer = torch.optim.AdamW(model.parameters(), fused=True)
batch = random_batch(8, 256, 8192, True, False, torch.device("cpu"))
for _ in range(4):
    model(batch.tokens, batch.documents, batch.targets, batch.token_weight).loss_sum.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
print(json.dumps([before, process.peak_resident_bytes()]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are restarted on Linux only")
def test_the_peak_of_a_process_that_trains() -> None:
    """4.5M parameters, 2,048 tokens at once: a few hundred megabytes above what the process had."""
    printed = subprocess.run([sys.executable, "-c", TRAIN], capture_output=True, text=True, check=True).stdout
    before, peak = json.loads(printed)
    config = config_of(8192, hidden_size=256, intermediate_size=704)
    expected = training_memory(config, MicroBatch(8, 256), "adamw", process_bytes=before)
    assert expected.total == pytest.approx(peak, rel=0.2)


def test_parts_move_as_they_should() -> None:
    config, batch = config_of(), MicroBatch(4, 128)
    plain = training_memory(config, batch, "adamw")
    assert training_memory(config, batch, "muon").optimizer < plain.optimizer
    assert plain.weights == plain.gradients == plain.optimizer // 2
    full, selective = (training_memory(config, replace(batch, activation_checkpointing=how), "adamw") for how in ("full", "selective"))
    assert full.activations < selective.activations < plain.activations
    assert training_memory(config, replace(batch, rows=8), "adamw").activations > 1.8 * plain.activations
    lora = training_memory(config, replace(batch, lora=LoraSettings(rank=4)), "adamw")
    assert 2 * lora.gradients == lora.optimizer < 0.1 * plain.optimizer
    assert lora.weights == plain.weights + lora.gradients


def test_the_micro_batch_that_fits_is_a_share_of_the_batch() -> None:
    config, batch = config_of(), MicroBatch(12, 128, "cuda", "bf16")
    needed = [training_memory(config, replace(batch, rows=rows), "adamw").total for rows in (12, 6, 3, 1)]
    assert [micro_batch_that_fits(config, batch, "adamw", size) for size in needed] == [12, 6, 3, 1]
    assert micro_batch_that_fits(config, batch, "adamw", needed[0] - 1) == 6
    assert micro_batch_that_fits(config, batch, "adamw", needed[-1] - 1) is None
    assert micro_batch_that_fits(config, batch, "adamw", needed[0], tokens_bytes=1) == 6
