"""What the kernels can run, and with which tiles; the one file to edit when timing says otherwise."""

import os
from typing import NamedTuple

import torch

from titanslab.memory.network import MemoryNetwork

MAX_HEAD_DIM = 128
MAX_HIDDEN = 1024
MAX_CHUNK = 64
# tokens of one read block, where the chunk size allows it
BLOCK_TOKENS = 64
# the state stays in registers up to this many numbers, weights and momentum together
RESIDENT_NUMBERS = 128 * 128 * 2
# bytes of the states that backward recomputes at once
GROUP_BYTES = 1 << 30
# tokens between kept states
GROUP_TOKENS = 1024


class Plan(NamedTuple):
    """Shapes of one call: tokens of a read block, hidden columns at a time, warps of the two passes."""

    block: int
    columns: int
    resident: bool
    state_warps: int
    read_warps: int


def power_of_two(n: int) -> int:
    """The smallest tile side (16 at least, for the tensor cores) that holds n."""
    return max(16, 1 << (n - 1).bit_length())


def make_plan(head_dim: int, hidden: int, chunk_size: int, tokens: int) -> Plan:
    """Tiles for heads of `head_dim`; `hidden` is `head_dim` where the depth is 1."""
    chunks = max(1, min(BLOCK_TOKENS // chunk_size, -(-tokens // chunk_size)))
    numbers = 2 * power_of_two(head_dim) * power_of_two(hidden) * (1 if hidden == head_dim else 2)
    resident = numbers <= RESIDENT_NUMBERS
    columns = power_of_two(hidden) if resident else min(64 if head_dim <= 64 else 32, power_of_two(hidden))
    return Plan(chunks * chunk_size, columns, resident, 8 if numbers > 1 << 13 else 4, 8 if head_dim > 64 else 4)


def group_size(block: int, chunk_size: int, state: list[torch.Tensor]) -> int:
    """Blocks between two kept states, `state` as `[rows, 2 d_in, d_out]` per layer."""
    bytes_of_block = sum(s.numel() * s.element_size() for s in state) * (block // chunk_size)
    return max(1, min(GROUP_TOKENS // block, GROUP_BYTES // bytes_of_block))


def interpreted() -> bool:
    """True where Triton's interpreter runs the kernels, on a CPU, slowly."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def supported(
    device: torch.device, dtype: torch.dtype, network: MemoryNetwork, head_dim: int, chunk_size: int
) -> tuple[bool, str]:
    """Whether `backend="triton"` runs such a call, and why not.

    Limits: depth 1 or 2, head width 16 to 128, hidden width to 1024, chunks of at most 64 tokens, a CUDA device of
    compute capability 8.0 or newer (or the interpreter), no float64 on a GPU.
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
    elif not _installed():
        reason = "Triton is not installed (pip install 'titans-lab[triton]')"
    elif device.type == "cpu" and not interpreted():
        reason = "q is on the CPU and Triton compiles for CUDA (TRITON_INTERPRET=1 runs it slowly, for tests)"
    elif device.type not in ("cpu", "cuda"):
        reason = f"no kernels for device {device.type!r}"
    elif device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        reason = f"compute capability 8.0 or newer, got {torch.cuda.get_device_capability(device)}"
    elif device.type == "cuda" and dtype == torch.float64:
        reason = "float64 only under the interpreter"
    return not reason, reason or "fused kernels"


def _installed() -> bool:
    from importlib.util import find_spec

    return find_spec("triton") is not None


def operand_precision(dtype: torch.dtype) -> str:
    """How products read their operands; sums are always float32 (float64 for float64)."""
    if dtype == torch.bfloat16:
        return "bf16"
    if dtype == torch.float64:
        return "float64"
    # OURS: three tf32 products stand for float32; exact float32 products do not run on the tensor cores
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"
