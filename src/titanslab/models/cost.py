"""Cost of a config: number of parameters, and in closed form FLOPs of a forward pass and bytes of its cache.

FLOPs are those of matrix products, two per multiply-add. Norms, convolutions, activations and elementwise gates do not
count, as in FLOP counters. Scores that a mask hides count, because they are computed.
"""

import copy
import math
from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from titanslab.models.config import TitansConfig


@dataclass(frozen=True)
class Cost:
    """Cost of a model.

    Args:
        parameters: number of all parameters; tied ones count once.
        embedding_parameters: number of those in the embedding and in an untied head.
        memory_weights: number of fast weights in all blocks, for one sequence.
        flops_per_token: FLOPs per token of a forward pass over one row of `tokens`.
        cache_bytes: bytes of the cache of one row after `tokens`.
    """

    parameters: int
    embedding_parameters: int
    memory_weights: int
    flops_per_token: float
    cache_bytes: int


def cost(config: TitansConfig, tokens: int = 4096, dtype: torch.dtype = torch.float32) -> Cost:
    """Cost of a config for sequences of `tokens` tokens, with weights in `dtype`."""
    embedding = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
    return Cost(
        parameters=num_parameters(config),
        embedding_parameters=embedding,
        memory_weights=0 if config.variant == "attention" else config.num_hidden_layers * fast_weights(config),
        flops_per_token=forward_flops(config, 1, tokens) / tokens,
        cache_bytes=cache_bytes(config, 1, tokens, dtype),
    )


def num_parameters(config: PreTrainedConfig) -> int:
    """Number of parameters of the causal language model of any config of Hugging Face; tied ones count once."""
    if not isinstance(config, TitansConfig):
        return _count(config)
    one, two = (_count(_with_blocks(config, blocks)) for blocks in (1, 2))  # the blocks are all of one kind
    return one + (config.num_hidden_layers - 1) * (two - one)


def _with_blocks(config: TitansConfig, blocks: int) -> TitansConfig:
    config = copy.deepcopy(config)
    config.num_hidden_layers = blocks
    return config


def _count(config: PreTrainedConfig) -> int:
    with torch.device("meta"):  # On this device a model has shapes alone and takes no memory.
        return sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())


def least_parameters(config: TitansConfig) -> int:
    """A lower bound of the number of parameters, without making a model: its large matrices alone."""
    d = config.hidden_size
    block = 3 * d * (config.intermediate_size or 0) + config.num_persistent_tokens * d
    if config.variant != "lmm":
        block += 4 * d * d
    if config.variant != "attention":
        inner = inner_width(config)
        block += 4 * d * inner + fast_weights(config) + 3 * config.memory.conv_size * inner
    tables = 1 if config.tie_word_embeddings else 2
    return tables * config.vocab_size * d + config.num_hidden_layers * block


def forward_flops(config: TitansConfig, batch: int, tokens: int) -> int:
    """FLOPs of one forward pass over `[batch, tokens]` with logits, without cache, padding or documents."""
    d, rows = config.hidden_size, batch * tokens
    persistent = config.num_persistent_tokens
    total = 2 * rows * d * config.vocab_size
    block = 6 * rows * d * (config.intermediate_size or 0)
    if config.variant != "attention":
        block += _memory_flops(config, batch, tokens)
        if persistent:
            block += _memory_flops(config, 1, persistent)
    if config.variant in ("attention", "mal", "mag"):
        block += 8 * rows * d * d + 4 * persistent * d * d + 4 * batch * d * _scores(config, tokens)
    if config.variant == "mac":
        block += 8 * rows * d * d + 4 * persistent * d * d + 4 * batch * d * _segment_scores(config, tokens)
        # The retrieved h takes the memory's q, output gate and output projections, the read, and attention's k and v.
        block += 2 * rows * (3 * d * inner_width(config) + fast_weights(config)) + 4 * rows * d * d
    if config.variant in ("mag", "mac") and config.gate_type == "mix":
        block += 2 * rows * d * d
    return total + config.num_hidden_layers * block


def cache_bytes(config: TitansConfig, batch: int, tokens: int, dtype: torch.dtype = torch.float32) -> int:
    """Bytes of a `TitansCache` after `tokens` tokens. They depend on `tokens` in full attention alone."""
    wide = torch.promote_types(dtype, torch.float32).itemsize
    d, persistent = config.hidden_size, config.num_persistent_tokens
    block = 0
    if config.variant != "attention":
        fast = fast_weights(config) * wide
        block += 3 * fast + 8 + 4 * (config.memory.conv_size - 1) * inner_width(config) * dtype.itemsize
        block += fast if config.variant == "mac" else 0
    if config.variant == "mac":
        slots = persistent + 2 * config.segment_len
    elif config.variant == "lmm":
        slots = 0
    else:
        slots = persistent + (tokens if config.window_size is None else config.window_size - 1)
    block += (2 * slots + 3 * (config.attention_conv_size - 1)) * d * dtype.itemsize
    return batch * (config.num_hidden_layers * block + 8)


def inner_width(config: TitansConfig) -> int:
    """Width of a memory's q, k and v over all heads."""
    return config.memory.num_heads * config.memory_head_dim


def fast_weights(config: TitansConfig) -> int:
    """Number of weights in the memories of one block."""
    width = config.memory_head_dim
    return config.memory.num_heads * sum(i * o for i, o in config.memory.network(width).widths(width))


def _memory_flops(config: TitansConfig, batch: int, tokens: int) -> int:
    """FLOPs of one memory layer on `[batch, tokens]`. The last chunk may be short."""
    d, memory, inner = config.hidden_size, config.memory, inner_width(config)
    outputs = memory.num_heads * memory.gate_layers
    gates = ((1 + memory.momentum + memory.forgetting) * d + memory.gate_keys * inner) * outputs
    whole, rest = divmod(tokens, memory.chunk_size)
    chunks = whole * chunk_flops(config, memory.chunk_size) + (chunk_flops(config, rest) if rest else 0)
    return 2 * batch * tokens * (5 * d * inner + gates) + batch * memory.num_heads * chunks


def chunk_flops(config: TitansConfig, tokens: int) -> int:
    """FLOPs of the exact parallel form of a chunk of one head: at depth 2, 11 C D E + 2 C^2 (D + E) multiply-adds.

    Each layer has five products of C x d_in x d_out: the keys' forward pass, the queries through M, the queries through
    S and the two products at the chunk's end. A layer above the first has a sixth, the gradient passed down. The C x C
    corrections of the reads come on top.
    """
    widths = config.memory.network(config.memory_head_dim).widths(config.memory_head_dim)
    products = sum((5 + (layer > 0)) * i * o for layer, (i, o) in enumerate(widths))
    return 2 * (tokens * products + tokens * tokens * sum(i + o for i, o in widths))


def _scores(config: TitansConfig, tokens: int) -> int:
    """Number of query-key pairs per row that windowed or full attention computes."""
    persistent, window = config.num_persistent_tokens, config.window_size
    first = tokens if window is None else min(window, tokens)
    # If the first block is longer than the prefix, `_causal` adds one zero query per persistent token.
    queries = first + persistent if first > persistent else first
    pairs = queries * (first + persistent)
    rest = tokens - first
    if rest and window is not None:
        size = min(window, rest)
        pairs += math.ceil(rest / size) * size * (persistent + size + window)
    return pairs


def _segment_scores(config: TitansConfig, tokens: int) -> int:
    """Number of query-key pairs per row in MAC: a segment attends to persistent tokens, retrieved tokens and itself."""
    whole, rest = divmod(tokens, config.segment_len)
    sizes = [config.segment_len] * whole + [rest] * bool(rest)
    return sum(size * (config.num_persistent_tokens + 2 * size) for size in sizes)
