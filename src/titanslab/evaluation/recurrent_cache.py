"""Greedy reading with models of transformers whose layers are all linear recurrences, such as gated DeltaNet.

Their cache has a state of fixed size and no attention layer. transformers' own cache counts tokens in attention
layers and therefore refuses such a model; this one counts them itself.
"""

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import DynamicCache

from titanslab.models.cache import CACHE

LINEAR = "linear_attention"


def is_recurrent(config: Any) -> bool:
    """Whether every layer of a model of transformers is a linear recurrence."""
    kinds = getattr(config, "layer_types", None) or ()
    return set(kinds) == {LINEAR}


class RecurrentCache(DynamicCache):
    """A cache of recurrent states that counts the tokens it has read."""

    tokens = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.tokens

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.tokens + query_length, 0


def reads_in_pieces() -> bool:
    """Whether this release of transformers goes on from a state with more than one token."""
    try:
        from transformers.cache_utils import LinearAttentionLayer
    except ImportError:
        return False
    # Releases before the argument drop the tokens before a piece from its convolution.
    return "conv_kernel_size" in inspect.signature(LinearAttentionLayer.update_conv_state).parameters


def read(
    model: Any,
    ids: Tensor,
    mask: Tensor | None,
    cache: RecurrentCache,
    piece: int,
    advance: Callable[[int], None] | None = None,
) -> Any:
    """Read `ids [B, T]` after what `cache` holds, `piece` tokens at a time; the output of the last piece.

    `mask [B, T]`, 0 = padding on the left, goes with the first tokens of a cache only.
    """
    step = piece if reads_in_pieces() else ids.shape[1]
    output = None
    for start in range(0, ids.shape[1], step):
        part = ids[:, start : start + step].to(model.device)
        output = model(
            input_ids=part,
            attention_mask=None if mask is None else mask[:, : start + step].to(model.device),
            use_cache=True,
            logits_to_keep=1,
            **{CACHE: cache},
        )
        cache.tokens += part.shape[1]
        if advance is not None:
            advance(part.numel())
    return output
