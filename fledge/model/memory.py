"""What training a shape takes of memory, before it exists: settings -> [memory] -> plans, the micro-batch that fits, the report.

Weights, gradients and optimizer follow from the parameters, all in fp32. Between the forward and the backward pass autograd keeps, for
every token and layer (s bytes per element of a matrix product, D width, F feed-forward, H and K heads of size E):

    both norms       2 (2 D + 1) 4      their input, the same normalised, a factor; a GPU's fused kernel keeps no normalised copy
    attention        s (2 H + 2 K) E    query, key, value, output
                     s H (T / 2 + 64)   on a CPU the probabilities, by blocks of 128 queries; a GPU's kernels keep 4 H
    products         s (2 or 5) D       what goes into query/key/value and gate/up: under eager autocast cast once for each of the five
    feed-forward     s 4 F              gate, its activation, up, their product

`kept_bytes` is exact for the eager CPU, byte by byte what autograd's hooks see (tests); with an adapter it is a bound, as frozen norms keep
less. The peak comes while the loss is made: all of this is alive, and a chunk of logits several times over. Constants that say "fitted"
were fitted to peaks: of torch's allocator on an H200 (23M, 96M, 110M, 197M at 32 rows of 1,024 tokens, compiled or not, fp8), which come
out within 3 %, and two of an H100 (110M, 64 rows) within 4 %; and of the process on a CPU in fp32 (4M at 16 x 256, 23M at 2 and 4 x 1,024
tokens), which come out within 7 %, with checkpointing 12 %.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Literal

from fledge.model.cost import body_matrix_parameters, parameter_count, projection_sizes, trained_parameter_count
from fledge.model.settings import LoraSettings, ModelConfig

if TYPE_CHECKING:
    from fledge.model.checkpointing import ActivationCheckpointing
    from fledge.model.precision import Precision

BLOCK_QUERIES = 128
"""Of `block_attention`, which keeps the probabilities of so many queries together."""
CHUNK_TOKENS, MAXIMUM_CHUNKS = 512, 8
"""Of `head`, which makes the logits of so many tokens at once."""
EAGER_LOGIT_BYTES = {4: 12, 2: 14}
"""Per logit of a chunk, by the bytes of a product: logits, log-softmax, the chunk before's gradient; from bf16 a copy in fp32 too."""
COMPILED_LOGIT_BYTES = 20
"""Fitted: compiled, two chunks overlap."""
PROCESS_BYTES = 280_000_000
"""Of a process on a CPU that has loaded what it needs to train, and no model yet."""
LIBRARY_BYTES = 120_000_000
"""Code of torch, and its kernels' own memory, that comes in when it is first used; fitted."""
HEAP_FACTOR = 1.35
"""Fitted: what a CPU's malloc takes for what comes and goes in a step, whose sizes never fit the gaps (1.2 to 1.5, growing over the first
dozen steps; with torch's own settings of malloc as with ours)."""

OptimizerKind = Literal["adamw", "muon"]


@dataclass(frozen=True)
class MicroBatch:
    """What is computed at once, and how."""

    rows: int
    row_tokens: int
    device: Literal["cpu", "cuda", "mps"] = "cpu"
    precision: Precision = "fp32"
    compiled: bool = False
    isolate_documents: bool = True
    activation_checkpointing: ActivationCheckpointing = "none"
    lora: LoraSettings | None = None
    """What is trained beside frozen weights; None: all weights."""

    @property
    def tokens(self) -> int:
        return self.rows * self.row_tokens

    @property
    def product_bytes(self) -> int:
        """Per element of a matrix product."""
        return 4 if self.precision in ("fp32", "tf32") else 2


@dataclass(frozen=True)
class MemoryBytes:
    """The peak by part, in bytes."""

    process: int
    """The interpreter and its libraries; 0 on a GPU, whose peak is what torch allocated."""
    weights: int
    gradients: int
    optimizer: int
    activations: int
    """What is kept for the backward pass, weights cast for it included, and one layer made again with checkpointing."""
    workspace: int
    """Of a moment: the logits of a chunk of tokens in all their copies, or the gradients inside a layer where they are more."""
    tokens: int
    """Training tokens on the device."""
    heap: int
    """On a CPU: freed memory that malloc keeps and cannot use again."""

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


def training_memory(
    config: ModelConfig, batch: MicroBatch, optimizer: OptimizerKind, tokens_bytes: int = 0, process_bytes: int = PROCESS_BYTES
) -> MemoryBytes:
    """The peak of a stage: on a CPU that of the process, which had `process_bytes` before the model; on a GPU that of what torch allocates.

    `tokens_bytes` of training tokens lie on the device.
    """
    parameters, trained = parameter_count(config), trained_parameter_count(config, batch.lora)
    frozen = 0 if batch.lora is None else parameters
    muon = body_matrix_parameters(config) if optimizer == "muon" else 0
    activations = kept_bytes(config, batch) + mask_bytes(config, batch)
    if batch.activation_checkpointing != "none":
        activations += layer_bytes(config, replace(batch, activation_checkpointing="none")) - layer_bytes(config, batch)
    workspace = max(logits_bytes(config, batch), 4 * batch.tokens * config.settings.intermediate_size * batch.product_bytes)
    on_cpu = batch.device == "cpu"
    return MemoryBytes(
        process=process_bytes + LIBRARY_BYTES if on_cpu else 0,
        weights=4 * (frozen + trained),
        gradients=4 * trained,
        optimizer=8 * (trained - muon) + 4 * muon,
        activations=activations,
        workspace=workspace,
        tokens=tokens_bytes,
        heap=round((HEAP_FACTOR - 1) * (4 * trained + activations + workspace)) if on_cpu else 0,
    )


def kept_bytes(config: ModelConfig, batch: MicroBatch) -> int:
    """What autograd keeps from the forward pass for the backward pass, parameters themselves left out."""
    settings, count = config.settings, batch.tokens
    layers = settings.num_hidden_layers * layer_bytes(config, batch)
    is_cast = batch.product_bytes == 2 and batch.activation_checkpointing == "none"
    casts = 2 * (body_matrix_parameters(config) + _head_norm_weights(config)) if is_cast else 0
    final_norm = count * _norm_bytes(config, batch, settings.hidden_size)
    ids = count * (8 + 4 * (batch.isolate_documents and batch.device == "cpu" and batch.activation_checkpointing == "none"))
    table = 4 * _rotated_tokens(batch) * settings.head_size if batch.product_bytes == 4 and batch.activation_checkpointing == "none" else 0
    head = config.vocabulary_size if batch.lora is None else 0
    loss = 4 * (count + head) * settings.hidden_size  # gradients, which the forward pass makes
    if is_cast and batch.lora is not None:
        casts += 2 * trained_parameter_count(config, batch.lora)
    return layers + casts + final_norm + ids + table + loss


def layer_bytes(config: ModelConfig, batch: MicroBatch) -> int:
    """What one layer keeps."""
    settings, size = config.settings, batch.product_bytes
    width, forward_width = settings.hidden_size, settings.intermediate_size
    queries, keys = settings.num_attention_heads * settings.head_size, settings.key_value_heads * settings.head_size
    if batch.activation_checkpointing == "full":
        return batch.tokens * 4 * width
    if batch.activation_checkpointing == "selective":
        products = 2 * queries + 2 * keys + 2 * width + 2 * forward_width
        return batch.tokens * (4 * width + size * products) + _attention_bytes(config, batch)
    eager_casts = size == 2 and not batch.compiled
    inputs = (5 if eager_casts else 2) * width
    feed_forward = (3 if batch.compiled else 4) * forward_width  # fitted: compiled, the activation of the gate is made again
    rotation = 4 * _rotated_tokens(batch) * settings.head_size if eager_casts else 0
    norms = 2 * _norm_bytes(config, batch, width) + _head_norm_bytes(config, batch)
    per_token = norms + size * (2 * queries + 2 * keys + inputs + feed_forward)
    if batch.precision == "fp8":
        per_token -= 9 * width + forward_width  # fitted: factors in one byte, the stream in two
    per_token += _adapter_bytes(config, batch)
    return batch.tokens * per_token + rotation + _attention_bytes(config, batch)


def logits_bytes(config: ModelConfig, batch: MicroBatch) -> int:
    """Of the largest chunk, with all that is made of it at once."""
    chunk_tokens = min(batch.tokens, max(CHUNK_TOKENS, -(-batch.tokens // MAXIMUM_CHUNKS)))
    return chunk_tokens * config.vocabulary_size * (COMPILED_LOGIT_BYTES if batch.compiled else EAGER_LOGIT_BYTES[batch.product_bytes])


def mask_bytes(config: ModelConfig, batch: MicroBatch) -> int:
    """What keeps documents apart: blocks on a CPU; on a GPU that does not compile a dense mask, which each layer turns into numbers."""
    if not batch.isolate_documents or (batch.compiled and batch.device != "cpu"):
        return 0
    square = batch.rows * batch.row_tokens**2
    return square * batch.product_bytes * (1 if batch.device == "cpu" else config.settings.num_hidden_layers)


def micro_batch_that_fits(
    config: ModelConfig, batch: MicroBatch, optimizer: OptimizerKind, available_bytes: float, tokens_bytes: int = 0
) -> int | None:
    """The most rows at once, a share of `batch.rows` by a power of two, that fit; None if one row does not."""
    rows = batch.rows
    while training_memory(config, replace(batch, rows=rows), optimizer, tokens_bytes).total > available_bytes:
        if rows == 1:
            return None
        rows = (rows + 1) // 2
    return rows


def _norm_bytes(config: ModelConfig, batch: MicroBatch, width: int) -> int:
    """Per token, of a norm over the residual stream, which is fp32."""
    if config.settings.normalization == "layer":
        return 4 * (width + 2)
    return 4 * ((2 if batch.device == "cpu" and not batch.compiled else 1) * width + 1)


def _head_norm_bytes(config: ModelConfig, batch: MicroBatch) -> int:
    """Per token, of the norms of queries and keys."""
    settings = config.settings
    heads = settings.num_attention_heads + settings.key_value_heads
    return heads * 4 * (2 * settings.head_size + 1) if settings.query_key_norm else 0


def _adapter_bytes(config: ModelConfig, batch: MicroBatch) -> int:
    """Per token, of the additions to a layer's matrices, whose inputs are kept in any case; with dropout and DoRA an estimate."""
    if batch.lora is None:
        return 0
    sizes, lora = projection_sizes(config.settings), batch.lora
    dropped = sum(sizes[name][0] for name in lora.targets) * (lora.dropout > 0)
    scaled = sum(sizes[name][1] for name in lora.targets) * lora.weight_decomposed
    return batch.product_bytes * (len(lora.targets) * lora.rank + 2 * dropped + scaled)


def _head_norm_weights(config: ModelConfig) -> int:
    return 2 * config.settings.head_size * config.settings.num_hidden_layers if config.settings.query_key_norm else 0


def _attention_bytes(config: ModelConfig, batch: MicroBatch) -> int:
    """The probabilities of blocks of queries, whose keys end with the block; or a logarithm for each query and head."""
    heads = batch.rows * config.settings.num_attention_heads
    if batch.device != "cpu":
        return 4 * heads * batch.row_tokens
    starts = range(0, batch.row_tokens, BLOCK_QUERIES)
    ends = [(start, min(start + BLOCK_QUERIES, batch.row_tokens)) for start in starts]
    return batch.product_bytes * heads * sum((end - start) * end for start, end in ends)


def _rotated_tokens(batch: MicroBatch) -> int:
    """Positions that cosine and sine are kept for: those of each row where documents restart them, else those of one."""
    return batch.tokens if batch.isolate_documents else batch.row_tokens
