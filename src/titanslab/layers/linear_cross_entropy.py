"""Cross entropy of a linear head in chunks, so that the logits of all tokens never exist at once."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def _chunk_loss(hidden: Tensor, head: Callable[[Tensor], Tensor], labels: Tensor) -> Tensor:
    logits = head(hidden)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, labels, reduction="sum")


def linear_cross_entropy(
    hidden: Tensor,
    head: Tensor | Callable[[Tensor], Tensor],
    labels: Tensor,
    *,
    chunk_size: int = 1024,
    num_items: Tensor | int | None = None,
) -> Tensor:
    """`F.cross_entropy(head(hidden), labels)` in chunks of tokens; backward computes the logits again.

    The plain program holds logits `[N, vocab]` and a gradient of that size. This function holds `[chunk_size, vocab]`,
    and computes no logits for tokens whose label is -100.

    Args:
        hidden: `[N, hidden_size]`.
        head: the module from hidden states to logits, which is called, so that hooks and adapters on it take part; or
            a weight `[vocab, hidden_size]`.
        labels: int64 `[N]`, already shifted; -100 for tokens without a loss.
        chunk_size: number of tokens whose logits exist at one time.
        num_items: divisor of the summed loss; None = the number of labels that are not -100.

    Returns:
        The mean loss, a scalar of float32 or better.
    """
    if hidden.shape[0] != labels.shape[0]:
        raise ValueError(
            f"hidden and labels must have the same number of tokens, got {hidden.shape[0]} and {labels.shape[0]}"
        )
    if num_items is None:
        num_items = (labels != -100).sum()
    if not torch.compiler.is_compiling():  # a shape that depends on labels would break the graph
        scored = (labels != -100).nonzero().squeeze(1)
        if scored.numel() < labels.numel():
            hidden, labels = hidden[scored], labels[scored]
    if isinstance(head, Tensor):
        head = partial(F.linear, weight=head)
    # The empty sum connects both inputs to the loss: their gradients are 0, not None, if no token has a label.
    total = head(hidden[:0]).sum(dtype=torch.promote_types(hidden.dtype, torch.float32))
    for start in range(0, hidden.shape[0], chunk_size):
        part, targets = hidden[start : start + chunk_size], labels[start : start + chunk_size]
        total = total + checkpoint(_chunk_loss, part, head, targets, use_reentrant=False)
    return total / (num_items.to(total.device) if isinstance(num_items, Tensor) else num_items)
