"""Bytes of GPU memory that training a config takes, in closed form (docs/scale.md).

Counted is the code in PyTorch operations, without torch.compile: float32 weights with AdamW, and float32 or autocast to
bfloat16. Tensors of less than a thousandth are left out. A test compares it with the tensors that a forward pass holds.
"""

import math
from dataclasses import dataclass

from titanslab.memory.chunked.op import group_size
from titanslab.memory.layer import RECOMPUTE_TOKENS
from titanslab.models.config import TitansConfig
from titanslab.models.cost import fast_weights, inner_width, num_parameters

FLOAT = 4  # bytes of float32
LOSS_TOKENS = 1024  # of which the fused loss holds logits at a time


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes on one device at the largest moment of a training step, the start of backward.

    Args:
        parameters, gradients, optimizer: the device's share of the weights, of their gradients and of Adam's moments.
        exchange: what the devices exchange: buckets of gradients (DDP), or the weights and gradients of the blocks that
            are whole for the moment (FSDP).
        casts: bfloat16 copies of weights that backward reads.
        activations: tensors of the tokens that backward reads.
        states: states of the memories that backward starts from, and those that it computes again at a time.
        logits: of the loss.
    """

    parameters: int
    gradients: int
    optimizer: int
    exchange: int
    casts: int
    activations: int
    states: int
    logits: int

    @property
    def total(self) -> int:
        return sum(vars(self).values())


@dataclass(frozen=True)
class Setting:
    """How a config is trained.

    Args:
        batch, tokens: rows of a device at a time, and their tokens.
        devices, sharding: their number; "ddp" or "fsdp".
        bf16: autocast to bfloat16.
        checkpointing: blocks keep their inputs alone, and backward computes one block at a time again.
        narrow_memory: q, k and v of the memory have the dtype of autocast, as on a GPU; on a CPU they are float32.
    """

    batch: int
    tokens: int
    devices: int = 1
    sharding: str = "ddp"
    bf16: bool = True
    checkpointing: bool = False
    narrow_memory: bool = True


def training_memory(config: TitansConfig, setting: Setting, parameters: int | None = None) -> TrainingMemory:
    """The bytes of a training step of a config on one device; `parameters` where their number is known already."""
    parameters, blocks = parameters or num_parameters(config), config.num_hidden_layers
    outside = (1 if config.tie_word_embeddings else 2) * config.vocab_size * config.hidden_size + config.hidden_size
    block = (parameters - outside) // blocks
    shares = setting.devices if setting.sharding == "fsdp" else 1
    own = math.ceil(FLOAT * parameters / shares)
    exchange = 0
    if setting.devices > 1 and setting.sharding == "ddp":
        exchange = FLOAT * parameters
    elif shares > 1:  # the block at work and the next one, the gradient of one, and the embedding with its gradient
        exchange = FLOAT * (3 * block + 2 * outside)
    n = setting.batch * setting.tokens
    at_once = 1 if setting.checkpointing else blocks
    activations = at_once * block_activations(config, setting)
    if setting.checkpointing:
        activations += blocks * FLOAT * n * config.hidden_size
    activations += 3 * FLOAT * n * config.hidden_size  # the embedded tokens, the final norm and its result
    narrow = 2 if setting.bf16 else FLOAT
    rows = min(n, LOSS_TOKENS) if config.fused_loss else n
    logits = rows * config.vocab_size * (narrow + 2 * FLOAT) if setting.bf16 else rows * config.vocab_size * 2 * FLOAT
    return TrainingMemory(
        parameters=own,
        gradients=own,
        optimizer=2 * own,
        exchange=exchange,
        casts=at_once * 2 * _linear_weights(config) if setting.bf16 else 0,
        activations=activations,
        states=at_once * block_states(config, setting) + backward_states(config, setting),
        logits=logits,
    )


def block_activations(config: TitansConfig, setting: Setting) -> int:
    """Bytes that one block holds for backward, without the states of its memory. n d is a tensor `[B, T, hidden]`."""
    n, d = setting.batch * setting.tokens, config.hidden_size
    a = 2 if setting.bf16 else FLOAT
    # MLP: two residuals, the norm's x / rms, its result for two products (a copy for each under autocast), and
    # gate, up, silu(gate) and their product
    total = n * d * (3 * FLOAT + (2 * a if setting.bf16 else a)) + 4 * n * a * (config.intermediate_size or 0)
    total += n * d * FLOAT  # the mixer's norm: x / rms
    if config.variant in ("attention", "mal", "mag"):
        total += n * d * (3 * a if setting.bf16 else 0 if config.variant == "mag" else a)  # read by q, k and v
        total += _window(config, setting) * a
    if config.variant in ("attention", "mal"):
        total += n * d * a  # what o_proj reads
    if config.variant in ("lmm", "mal", "mag"):
        total += n * d * FLOAT + n * (_operands(config, setting) + _gates(config))
    if config.variant == "mal":
        total += 2 * n * d * FLOAT  # a third residual, and the attention's norm
    if config.variant == "mag":  # both branches before and inside their norms, then the gate's operands and results
        total += n * d * (4 * FLOAT + 4 * a)
    if config.variant == "mac":
        total += n * _segments(config, setting)
    return total


def block_states(config: TitansConfig, setting: Setting) -> int:
    """Bytes of the states (weights and momentum) that the memory of one block keeps for backward."""
    if config.variant == "attention":
        return 0
    size, kept, _ = _groups(config, setting)
    if config.variant == "mac":  # the next segment reads the weights at the end of this one
        kept = math.ceil(setting.tokens / config.segment_len) * (kept + (kept > 1))
    start = 3 * FLOAT * fast_weights(config) if config.num_persistent_tokens else 0  # of one row, before and after them
    return size * kept + start


def backward_states(config: TitansConfig, setting: Setting) -> int:
    """Bytes of the states that backward computes again at a time: those of the chunks between two kept ones."""
    if config.variant == "attention":
        return 0
    size, _, group = _groups(config, setting)
    return size * (group + 1)


def _groups(config: TitansConfig, setting: Setting) -> tuple[int, int, int]:
    """Bytes of the state of all rows, and of a call: the states that are kept, and the chunks between two of them."""
    size = 2 * FLOAT * fast_weights(config) * setting.batch
    tokens = min(config.segment_len, setting.tokens) if config.variant == "mac" else setting.tokens
    chunks = math.ceil(tokens / config.memory.chunk_size)
    group = group_size(chunks, config.memory.chunk_size, size)
    return size, math.ceil(chunks / group), group


def _operands(config: TitansConfig, setting: Setting) -> int:
    """Bytes a token of q, k, v and the reads of a memory that computes its projections again in backward."""
    inner = inner_width(config)
    if setting.narrow_memory and setting.bf16:
        return 4 * 2 * inner
    # the activation of all three, of which v is a part, then q and k of unit norm, and the reads
    return 6 * FLOAT * inner


def _gates(config: TitansConfig) -> int:
    """Bytes a token of theta, eta and alpha: their sigmoids, the op's copy, and 1 - eta."""
    memory = config.memory
    return FLOAT * 7 * memory.num_heads * memory.gate_layers


def _window(config: TitansConfig, setting: Setting) -> int:
    """Numbers that windowed attention holds: queries, outputs, keys and values of each block, and the blocks' mask."""
    tokens, prefix, mask = setting.tokens, config.num_persistent_tokens, 0
    first = min(config.window_size or tokens, tokens)
    rows = 4 * (first + prefix)
    if tokens > first:
        size = min(first, tokens - first)
        blocks, span = math.ceil((tokens - first) / size), prefix + first + size
        rows += 2 * blocks * (size + span)
        mask = size * span
    return setting.batch * rows * config.hidden_size + mask


def _segments(config: TitansConfig, setting: Setting) -> int:
    """Bytes a token of a MAC block's walk over segments, which computes little again in backward."""
    d, inner, a = config.hidden_size, inner_width(config), 2 if setting.bf16 else FLOAT
    length = min(config.segment_len, setting.tokens)
    # x normed, h before and inside its norm, y, y normed and what both are joined from
    total = 7 * FLOAT * d
    # inputs of the projections of x, h and y, the rotated queries and attention's output
    total += (12 if setting.bf16 else 6) * a * d
    total += math.ceil(2 * a * d * (config.num_persistent_tokens + 2 * length) / length)  # keys and values
    # q, k, v before and after their activation and at unit norm; both reads, normed and gated
    total += (14 if not (setting.narrow_memory and setting.bf16) else 12) * FLOAT * inner
    total += 4 * a * inner + (3 * a * inner if setting.narrow_memory and setting.bf16 else 0)
    return total + 2 * _gates(config)


def _linear_weights(config: TitansConfig) -> int:
    """Weights of a block whose products run in the dtype of autocast, outside of what backward computes again."""
    d = config.hidden_size
    total = 3 * d * (config.intermediate_size or 0)
    if config.variant != "attention" and 0 < config.num_persistent_tokens <= RECOMPUTE_TOKENS:
        total += 3 * d * inner_width(config)
    if config.variant != "lmm":
        total += 4 * d * d
    if config.variant in ("mag", "mac") and config.gate_type == "mix":
        total += d * d
    if config.variant == "mac":
        total += 2 * d * inner_width(config)
    return total
