"""The limits of the kernels and the sizes of their tiles. New timings change this file alone."""

import os
from importlib.util import find_spec
from typing import NamedTuple

import torch

from titanslab.memory.network import MemoryNetwork

# Evaluated at import, because older releases of torch.compile cannot trace `find_spec`.
INSTALLED = find_spec("triton") is not None
MAX_HEAD_DIM = 128
MAX_HIDDEN = 1024
MAX_CHUNK = 64
# A head of more than this width is wide.
WIDE_HEAD_DIM = 64
# Longest chunk of wide float32 heads: the tiles of longer ones exceed shared memory (227 KB on Hopper).
MAX_CHUNK_WIDE_FLOAT32 = 32
# Most tokens in one block, a whole number of chunks.
BLOCK_TOKENS = 64
# The same for wide float32 heads.
BLOCK_TOKENS_WIDE_FLOAT32 = 32
# Most elements of one `[head_dim, columns]` tile of weights in the forward kernels.
FORWARD_COLUMNS = 64 * 64
# The same in the backward kernels.
BACKWARD_COLUMNS = 64 * 32
# Most bytes of the states of one group of blocks, which backward recomputes together.
GROUP_BYTES = 1 << 30
# Most tokens in one group of blocks; a state is kept at the start of each group.
GROUP_TOKENS = 1024


class Tiles(NamedTuple):
    """Sizes for one kernel: hidden columns per step of its loop, and warps per program."""

    columns: int
    warps: int


class Plan(NamedTuple):
    """Tokens in one block, and the tiles of the four kernels."""

    block: int
    state: Tiles
    read: Tiles
    state_backward: Tiles
    read_backward: Tiles


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n and at least 16, the shortest side that tensor cores take."""
    return max(16, 1 << (n - 1).bit_length())


def make_plan(depth: int, head_dim: int, hidden: int, chunk_size: int, tokens: int, dtype: torch.dtype) -> Plan:
    """Tiles for heads of width `head_dim` with q, k and v of `dtype`; `hidden` is read at depth 2 alone."""
    block = BLOCK_TOKENS_WIDE_FLOAT32 if _wide_float32(head_dim, dtype) else BLOCK_TOKENS
    chunks = max(1, min(block // chunk_size, -(-tokens // chunk_size)))
    side = power_of_two(head_dim)
    if depth == 1:  # one tile holds all columns
        forward = backward = Tiles(side, 8)
    else:
        width = power_of_two(hidden)
        forward = Tiles(min(width, FORWARD_COLUMNS // side), 8)
        backward = Tiles(min(width, BACKWARD_COLUMNS // side), 8)
    return Plan(chunks * chunk_size, forward, forward, backward, backward)


def _wide_float32(head_dim: int, dtype: torch.dtype) -> bool:
    """Whether heads are wide and their dtype is not bfloat16, so that tiles take most of shared memory."""
    return head_dim > WIDE_HEAD_DIM and dtype != torch.bfloat16


def pipeline_stages(head_dim: int, dtype: torch.dtype) -> int:
    """Stages of the software pipeline of a loop (`num_stages`): 2 if shared memory has room for them, else 1."""
    return 1 if _wide_float32(head_dim, dtype) else 2


def group_size(block: int, state: list[torch.Tensor]) -> int:
    """Number of blocks between two kept states; `state` has one `[rows, 2 d_in, d_out]` tensor per layer."""
    bytes_of_state = sum(s.numel() * s.element_size() for s in state)
    return max(1, min(GROUP_TOKENS // block, GROUP_BYTES // bytes_of_state))


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels. It runs on a CPU and is slow."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def supported(
    device: torch.device, dtype: torch.dtype, network: MemoryNetwork, head_dim: int, chunk_size: int
) -> tuple[bool, str]:
    """Whether `backend="triton"` can run such a call, and the reason.

    Limits: depth 1 or 2, head width up to 128, hidden width up to 1024, chunks of at most 64 tokens (32 for heads
    wider than 64 unless bfloat16), a CUDA device of compute capability 9.x or 10.x (or the interpreter), no
    float64 on a GPU.
    """
    hidden = network.expansion * head_dim if network.depth > 1 else head_dim
    reason = ""
    if network.depth > 2:
        reason = f"it runs memories of depth 1 and 2, got {network.depth}"
    elif head_dim > MAX_HEAD_DIM:
        reason = f"it runs heads of width at most {MAX_HEAD_DIM}, got {head_dim}"
    elif hidden > MAX_HIDDEN:
        reason = f"it runs hidden widths of at most {MAX_HIDDEN}, got {hidden}"
    elif chunk_size > MAX_CHUNK:
        reason = f"it runs chunks of at most {MAX_CHUNK} tokens (a tile holds C x C coefficients), got {chunk_size}"
    elif _wide_float32(head_dim, dtype) and chunk_size > MAX_CHUNK_WIDE_FLOAT32:
        reason = (
            f"it runs chunks of at most {MAX_CHUNK_WIDE_FLOAT32} tokens for {dtype} heads wider than {WIDE_HEAD_DIM} "
            f"(shared memory is full; bfloat16 takes half the bytes), got {chunk_size}"
        )
    elif not INSTALLED:
        reason = "Triton is not installed (pip install 'titans-lab[triton]')"
    elif device.type == "cpu" and not interpreted():
        reason = "q is on the CPU and Triton compiles for CUDA (TRITON_INTERPRET=1 runs it slowly, for tests)"
    elif device.type not in ("cpu", "cuda"):
        reason = f"no kernels for device {device.type!r}"
    elif device.type == "cuda" and torch.cuda.get_device_capability(device)[0] not in (9, 10):
        capability = torch.cuda.get_device_capability(device)
        reason = f"its tiles need the 227 KB of shared memory of compute capability 9.x or 10.x, got {capability}"
    elif device.type == "cuda" and dtype == torch.float64:
        reason = "float64 runs under Triton's interpreter alone"
    return not reason, reason or "fused kernels"


def operand_precision(dtype: torch.dtype) -> str:
    """Precision in which a product reads its operands. Sums are float32, or float64 for float64."""
    if dtype == torch.bfloat16:
        return "bf16-interpreted" if interpreted() else "bf16"
    if dtype == torch.float64:
        return "float64"
    # OURS: a float32 product is the sum of three tf32 products, because tensor cores have no float32 product.
    # `fp32_precision` also reflects `allow_tf32` and `torch.set_float32_matmul_precision`.
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "tf32x3"
