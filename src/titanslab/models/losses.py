"""Losses beside that of the next tokens: the price on writing, and hints for single blocks."""

import torch
from torch import Tensor, nn

from titanslab.layers import linear_cross_entropy
from titanslab.memory import mean_write


def write_loss(stats: tuple[dict[str, Tensor], ...], attention_mask: Tensor | None, floor: float | None) -> Tensor:
    """The mean write gate over all memories and real tokens, persistent tokens included; see `mean_write`.

    Args:
        stats: `memory_stats` of a model's output. attention_mask: `[B, T]`, 0 = padding.
    """
    gates: list[Tensor] = []
    for block in stats:
        gates += [block[name] for name in ("persistent_write", "write") if name in block]
        if "write" in block and attention_mask is not None:
            gates[-1] = gates[-1][attention_mask[:, -gates[-1].shape[1] :].bool()]
    return mean_write(gates, floor)


def block_loss(hidden: tuple[Tensor, ...], norm: nn.Module, head: nn.Module, block_targets: Tensor) -> Tensor:
    """Mean cross entropy of the outputs of the first blocks, through the final norm and the head. OURS.

    Args:
        hidden: embeddings, then the output of each block, `[B, T, hidden]`.
        block_targets: int64 `[B, T, N]`, not shifted, -100 where none counts; N is less than the number of blocks.
    """
    blocks = block_targets.shape[-1]
    if block_targets.dim() != 3 or block_targets.shape[:2] != hidden[0].shape[:2] or not 0 < blocks < len(hidden) - 1:
        raise ValueError(
            f"block_targets must have shape [{hidden[0].shape[0]}, {hidden[0].shape[1]}, N] with N from 1 to "
            f"{len(hidden) - 2}, all blocks but the last, got {list(block_targets.shape)}"
        )
    scored = block_targets != -100
    outputs = torch.stack(hidden[1 : blocks + 1], dim=2)[scored]
    items = scored.sum().clamp(min=1)  # a batch may have none
    return linear_cross_entropy(norm(outputs), head, block_targets[scored], num_items=items)
