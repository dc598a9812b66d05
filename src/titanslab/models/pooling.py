"""From the outputs of all tokens to one vector a sequence, for a classifier."""

from __future__ import annotations

import torch
from torch import Tensor


def pool(hidden: Tensor, attention_mask: Tensor | None, how: str) -> Tensor:
    """The mean of the tokens that the mask keeps, or the last of them: `[B, T, D]` to `[B, D]`.

    Args:
        hidden: outputs of a model. attention_mask: `[B, T]`, 0 = padding, anywhere in a row; None = no padding.
        how: "mean" or "last". A row without a token has the mean 0.

    Raises:
        ValueError: the mask has another shape.
    """
    if attention_mask is not None and attention_mask.shape != hidden.shape[:2]:
        raise ValueError(
            f"attention_mask must have shape {list(hidden.shape[:2])} like the tokens, got {list(attention_mask.shape)}"
        )
    if how == "mean":
        if attention_mask is None:
            return hidden.float().mean(1).to(hidden.dtype)
        kept = attention_mask.to(hidden.device).ne(0).unsqueeze(-1)
        total = (hidden.float() * kept).sum(1)  # a mean over thousands of tokens would lose digits in half precision
        return (total / kept.sum(1).clamp(min=1)).to(hidden.dtype)
    if attention_mask is None:
        return hidden[:, -1]
    places = torch.arange(hidden.shape[1], device=hidden.device)
    last = (places * attention_mask.to(hidden.device).ne(0)).argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]
