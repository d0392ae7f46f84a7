"""What a shape costs before it exists: settings -> [cost] -> plans, throughput in FLOP/s, the report.

Counting follows PaLM's appendix B (arXiv:2204.02311): a multiply-add is 2 FLOPs, the backward pass costs twice the forward
pass, the embedding is a look-up and costs nothing, norms and activations are left out.
"""

from __future__ import annotations

from fledge.model.settings import LoraSettings, ModelConfig, ModelSettings, Projection


def parameter_count(config: ModelConfig) -> int:
    """Parameters of the model; a tied head counts once."""
    settings = config.settings
    vectors_per_norm = 2 if settings.normalization == "layer" else 1
    norms = (2 * settings.num_hidden_layers + 1) * vectors_per_norm * settings.hidden_size
    if settings.query_key_norm:
        norms += settings.num_hidden_layers * 2 * settings.head_size
    vocabulary_matrices = 1 if settings.tie_word_embeddings else 2
    return vocabulary_matrices * config.vocabulary_size * settings.hidden_size + body_matrix_parameters(config) + norms


def flops_per_token(config: ModelConfig, sequence_length: int, lora: LoraSettings | None = None) -> int:
    """FLOPs of forward and backward pass per token: 6 (body + head) + 6 T H E L, the latter causal attention's half square.

    Frozen matrices have no gradients of their own: beside an adapter they count 4, and the adapter 6.
    """
    settings = config.settings
    head = config.vocabulary_size * settings.hidden_size
    attention_width = settings.num_attention_heads * settings.head_size
    attention = sequence_length * attention_width * settings.num_hidden_layers
    if lora is not None:
        return 4 * (body_matrix_parameters(config) + head) + 6 * (trained_parameter_count(config, lora) + attention)
    return 6 * (body_matrix_parameters(config) + head + attention)


def body_matrix_parameters(config: ModelConfig) -> int:
    """Weights of all matrices in the layers: query, key, value, output, gate, up, down."""
    settings = config.settings
    attention = 2 * settings.hidden_size * settings.head_size * (settings.num_attention_heads + settings.key_value_heads)
    feed_forward = 3 * settings.hidden_size * settings.intermediate_size
    return settings.num_hidden_layers * (attention + feed_forward)


def projection_sizes(settings: ModelSettings) -> dict[Projection, tuple[int, int]]:
    """(inputs, outputs) of the matrices of a layer."""
    width, feed_forward = settings.hidden_size, settings.intermediate_size
    queries, keys = settings.num_attention_heads * settings.head_size, settings.key_value_heads * settings.head_size
    return {
        "q_proj": (width, queries),
        "k_proj": (width, keys),
        "v_proj": (width, keys),
        "o_proj": (queries, width),
        "gate_proj": (width, feed_forward),
        "up_proj": (width, feed_forward),
        "down_proj": (feed_forward, width),
    }


def trained_parameter_count(config: ModelConfig, lora: LoraSettings | None) -> int:
    """Parameters with a gradient: all, or an adapter's: rank (n + m) for a matrix of n x m, with DoRA a length for each of n rows."""
    if lora is None:
        return parameter_count(config)
    sizes = projection_sizes(config.settings)
    in_layer = sum(lora.rank * sum(sizes[name]) + sizes[name][1] * lora.weight_decomposed for name in lora.targets)
    return config.settings.num_hidden_layers * in_layer
