"""Cross entropy of a linear head that never holds all logits."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def _chunk_loss(hidden: Tensor, weight: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    logits = F.linear(hidden, weight)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum")


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    chunk_size: int = 1024,
    ignore_index: int = -100,
    num_items: Tensor | int | None = None,
) -> Tensor:
    """`F.cross_entropy(hidden @ weight.T, labels)` in chunks of tokens, their logits recomputed in backward.

    The program it replaces holds `[N, vocab]` logits and as much again for their gradient; this one holds
    `[chunk_size, vocab]`, and tokens whose label does not count have no logits at all.

    Args:
        hidden: `[N, hidden_size]`.
        weight: `[vocab, hidden_size]`.
        labels: int64 `[N]`, already shifted; `ignore_index` is left out.
        chunk_size: tokens whose logits exist at one time.
        num_items: divisor of the summed loss; None = the labels that count.

    Returns:
        The mean loss, a scalar of float32 or better.
    """
    if hidden.shape[0] != labels.shape[0]:
        raise ValueError(f"hidden and labels must have as many tokens, got {hidden.shape[0]} and {labels.shape[0]}")
    if num_items is None:
        num_items = (labels != ignore_index).sum()
    if not torch.compiler.is_compiling():  # a shape that depends on the labels would break the graph
        scored = (labels != ignore_index).nonzero().squeeze(1)
        if scored.numel() < labels.numel():
            hidden, labels = hidden[scored], labels[scored]
    # Empty sums: without any scored token the gradients are zeros, not missing.
    total = hidden[:0].sum(dtype=torch.promote_types(hidden.dtype, torch.float32)) + weight[:0].sum()
    for start in range(0, hidden.shape[0], chunk_size):
        part, targets = hidden[start : start + chunk_size], labels[start : start + chunk_size]
        total = total + checkpoint(_chunk_loss, part, weight, targets, ignore_index, use_reentrant=False)
    return total / (num_items.to(total.device) if isinstance(num_items, Tensor) else num_items)
