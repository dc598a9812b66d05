"""What the kernels can run, and with which tiles; the one file to edit when timing says otherwise."""

import os
from importlib.util import find_spec
from typing import NamedTuple

import torch

from titanslab.memory.network import MemoryNetwork

INSTALLED = find_spec("triton") is not None  # looked up here, because older releases of torch.compile cannot
MAX_HEAD_DIM = 128
MAX_HIDDEN = 1024
MAX_CHUNK = 64
# float32 tiles of wide heads fill shared memory (227 KB on Hopper) at longer chunks
WIDE_HEAD_DIM = 64
MAX_CHUNK_WIDE_FLOAT32 = 32
# tokens of one block, where the chunk size allows it
BLOCK_TOKENS = 64
BLOCK_TOKENS_WIDE_FLOAT32 = 32
# numbers in one block of hidden columns of a layer
FORWARD_COLUMNS = 64 * 64
BACKWARD_COLUMNS = 64 * 32
# bytes of the states that backward recomputes at once
GROUP_BYTES = 1 << 30
# tokens between kept states
GROUP_TOKENS = 1024


class Tiles(NamedTuple):
    """How one kernel is cut: hidden columns at a time, and warps."""

    columns: int
    warps: int


class Plan(NamedTuple):
    """Tokens of a block, and the tiles of the four kernels."""

    block: int
    state: Tiles
    read: Tiles
    state_backward: Tiles
    read_backward: Tiles


def power_of_two(n: int) -> int:
    """The smallest tile side (16 at least, for the tensor cores) that holds n."""
    return max(16, 1 << (n - 1).bit_length())


def make_plan(depth: int, head_dim: int, hidden: int, chunk_size: int, tokens: int, dtype: torch.dtype) -> Plan:
    """Tiles for heads of `head_dim` with q, k and v of `dtype`; `hidden` counts for depth 2 only."""
    block = BLOCK_TOKENS_WIDE_FLOAT32 if _wide_float32(head_dim, dtype) else BLOCK_TOKENS
    chunks = max(1, min(block // chunk_size, -(-tokens // chunk_size)))
    side = power_of_two(head_dim)
    if depth == 1:  # one layer is one block of columns
        forward = backward = Tiles(side, 8)
    else:
        width = power_of_two(hidden)
        forward = Tiles(min(width, FORWARD_COLUMNS // side), 8)
        backward = Tiles(min(width, BACKWARD_COLUMNS // side), 8)
    return Plan(chunks * chunk_size, forward, forward, backward, backward)


def _wide_float32(head_dim: int, dtype: torch.dtype) -> bool:
    """Whether tiles fill shared memory."""
    return head_dim > WIDE_HEAD_DIM and dtype != torch.bfloat16


def pipeline_stages(head_dim: int, dtype: torch.dtype) -> int:
    """Loads in flight per loop, as far as shared memory holds them."""
    return 1 if _wide_float32(head_dim, dtype) else 2


def group_size(block: int, state: list[torch.Tensor]) -> int:
    """Blocks between two kept states, `state` as `[rows, 2 d_in, d_out]` per layer."""
    bytes_of_state = sum(s.numel() * s.element_size() for s in state)
    return max(1, min(GROUP_TOKENS // block, GROUP_BYTES // bytes_of_state))


def interpreted() -> bool:
    """True where Triton's interpreter runs the kernels, on a CPU, slowly."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def supported(
    device: torch.device, dtype: torch.dtype, network: MemoryNetwork, head_dim: int, chunk_size: int
) -> tuple[bool, str]:
    """Whether `backend="triton"` runs such a call, and why not.

    Limits: depth 1 or 2, head width up to 128, hidden width up to 1024, chunks of at most 64 tokens (32 for heads
    wider than 64 unless bfloat16), a CUDA device of compute capability 9.x or 10.x (or the interpreter), no
    float64 on a GPU.
    """
    hidden = network.expansion * head_dim if network.depth > 1 else head_dim
    reason = ""
    if network.depth > 2:
        reason = f"memories of depth 1 and 2 only, got {network.depth}"
    elif head_dim > MAX_HEAD_DIM:
        reason = f"head width of at most {MAX_HEAD_DIM}, got {head_dim}"
    elif hidden > MAX_HIDDEN:
        reason = f"hidden width of at most {MAX_HIDDEN}, got {hidden}"
    elif chunk_size > MAX_CHUNK:
        reason = f"chunks of at most {MAX_CHUNK} tokens (its tiles hold C x C coefficients), got {chunk_size}"
    elif _wide_float32(head_dim, dtype) and chunk_size > MAX_CHUNK_WIDE_FLOAT32:
        reason = (
            f"chunks of at most {MAX_CHUNK_WIDE_FLOAT32} tokens for {dtype} heads wider than {WIDE_HEAD_DIM} "
            f"(shared memory; bfloat16 has half the bytes), got {chunk_size}"
        )
    elif not INSTALLED:
        reason = "Triton is not installed (pip install 'titans-lab[triton]')"
    elif device.type == "cpu" and not interpreted():
        reason = "q is on the CPU and Triton compiles for CUDA (TRITON_INTERPRET=1 runs it slowly, for tests)"
    elif device.type not in ("cpu", "cuda"):
        reason = f"no kernels for device {device.type!r}"
    elif device.type == "cuda" and torch.cuda.get_device_capability(device)[0] not in (9, 10):
        capability = torch.cuda.get_device_capability(device)
        reason = f"tiles are cut for the 227 KB of shared memory of compute capability 9.x and 10.x, got {capability}"
    elif device.type == "cuda" and dtype == torch.float64:
        reason = "float64 only under the interpreter"
    return not reason, reason or "fused kernels"


def operand_precision(dtype: torch.dtype) -> str:
    """How products read their operands; sums are always float32 (float64 for float64)."""
    if dtype == torch.bfloat16:
        return "bf16-interpreted" if interpreted() else "bf16"
    if dtype == torch.float64:
        return "float64"
    # OURS: three tf32 products stand for float32; exact float32 products do not run on the tensor cores
    # the setting that knows what was asked by any of its names
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "tf32x3"
