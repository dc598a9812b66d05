"""Perplexity of a model on text, in total and by position in the context.

The loss of later tokens is lower for a model that uses its context; the loss by position shows up to which distance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from titanslab.data.encode import TextEncoder
from titanslab.denormals import as_zero
from titanslab.evaluation.decode import RecurrentCache, is_recurrent
from titanslab.graft.pieces import longest_piece
from titanslab.models.cache import CACHE, cache_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LOGITS_AT_ONCE = 2**26  # logits in memory at once, 256 MiB in float32
LONGEST_PIECE = 2048  # tokens


@dataclass(frozen=True)
class PositionBucket:
    """Mean loss in nats of the tokens with `first` to `last` tokens of context before them, both included."""

    first: int
    last: int
    tokens: int
    loss: float


@dataclass(frozen=True)
class PerplexityResult:
    """A measurement; `loss` is in nats per token, and `bits_per_byte` counts bytes of UTF-8."""

    context_length: int
    documents: int
    tokens: int
    bytes: int
    loss: float
    perplexity: float
    bits_per_byte: float
    positions: list[PositionBucket]


def evaluate_perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    *,
    context_length: int,
    batch_size: int = 8,
    max_tokens: int | None = None,
    whole_windows: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> PerplexityResult:
    """Score each token of each text once, in windows of `context_length` tokens that do not overlap.

    The context of a token is the part of its window before it. Long windows are read in pieces through the model's
    cache.

    Args:
        model, tokenizer: a causal language model of Hugging Face.
        texts: documents; each starts a new window. context_length: tokens of a window.
        batch_size: windows in a batch. max_tokens: largest number of tokens to score; None = all.
        whole_windows: leave out windows shorter than `context_length`, so that the loss at every position is that of
            the same documents.
        progress: called with the tokens scored and all tokens.

    Raises:
        ValueError: an argument is out of range, or no text has a token to predict.
    """
    if context_length < 1 or batch_size < 1 or (max_tokens is not None and max_tokens < 1):
        raise ValueError(
            "context_length, batch_size and max_tokens must be 1 or more, got "
            f"{context_length}, {batch_size} and {max_tokens}"
        )
    limit = position_limit(model)
    if isinstance(limit, int) and context_length > limit:
        raise ValueError(f"context_length is {context_length}, but this model reads at most {limit} tokens")
    windows, documents, num_bytes = _windows(tokenizer, texts, context_length, max_tokens, whole_windows)
    windows.sort(key=len, reverse=True)
    total = sum(len(window) - 1 for window in windows)
    if not total and whole_windows:
        raise ValueError(f"no text has {context_length:,} tokens to predict; give longer texts or a shorter context")
    if not total:
        raise ValueError("the text holds no token to predict; give more text")
    sums, counts = np.zeros(context_length), np.zeros(context_length, dtype=np.int64)
    model.eval()
    for start in range(0, len(windows), batch_size):
        losses, scored = _batch_losses(model, windows[start : start + batch_size])
        length = losses.shape[1]
        sums[:length] += np.where(scored, losses, 0.0).sum(0)
        counts[:length] += scored.sum(0)
        if progress is not None:
            progress(int(counts.sum()), total)
    loss = float(sums.sum() / total)
    return PerplexityResult(
        context_length=context_length,
        documents=documents,
        tokens=total,
        bytes=num_bytes,
        loss=loss,
        perplexity=math.exp(loss) if loss < 700 else math.inf,
        bits_per_byte=float(sums.sum()) / math.log(2) / num_bytes,
        positions=position_buckets(sums, counts),
    )


def position_limit(model: Any) -> int | None:
    """The longest text that a model reads in tokens, by its config; None = no limit, as with a window that moves."""
    graft = getattr(model, "graft", None)
    if graft is not None and graft.window.rotary is not None:
        return None
    return getattr(model.config, "max_position_embeddings", None)


def _windows(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], length: int, max_tokens: int | None, whole_windows: bool
) -> tuple[list[Tensor], int, int]:
    """All windows, the number of documents, and the number of UTF-8 bytes of the targets.

    A window is int64 `[T+1]`: each token but the last is an input and each but the first a target. Its first token is
    the start token or the last token before the window.
    """
    encoder = TextEncoder(tokenizer)
    start = encoder.bos if encoder.bos is not None else encoder.eos
    windows: list[Tensor] = []
    documents = num_bytes = taken = 0
    for text in texts:
        if max_tokens is not None and taken >= max_tokens:
            break
        whole = encoder.encode([text])[0].astype(np.int64)
        unscored = 0 if start is not None else 1
        ids = whole if max_tokens is None else whole[: max_tokens - taken + unscored]
        if whole_windows:
            ids = ids[: (len(ids) - unscored) // length * length + unscored]
        stream = ids if start is None else np.concatenate([[start], ids])
        if len(stream) < 2:
            continue
        size = len(text.encode("utf-8"))
        if unscored or len(ids) < len(whole):
            size = len(str(tokenizer.decode(ids[unscored:].tolist())).encode("utf-8"))
        num_bytes += size
        documents += 1
        taken += len(stream) - 1
        row = torch.from_numpy(stream)
        windows += [row[at : at + length + 1] for at in range(0, len(stream) - 1, length)]
    return windows, documents, num_bytes


@as_zero()
@torch.inference_mode()
def _batch_losses(model: PreTrainedModel, batch: list[Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Loss of each target in nats and the mask of real targets, `[B, T]` each; padding is on the right."""
    rows = pad_sequence(batch, batch_first=True).to(model.device)
    inputs, targets = rows[:, :-1], rows[:, 1:]
    length = inputs.shape[1]
    scored = np.arange(length) < np.array([[len(window) - 1] for window in batch])
    piece = min(LONGEST_PIECE, max(64, LOGITS_AT_ONCE // (len(batch) * model.config.vocab_size)))
    losses: list[Tensor] = []
    graft = getattr(model, "graft", None)
    piece = piece if graft is None else min(piece, longest_piece(graft) or piece)
    recurrent = length > piece and is_recurrent(model.config)
    cache = RecurrentCache(config=model.config) if recurrent else None
    for start in range(0, length, piece):
        outputs = model(input_ids=inputs[:, start : start + piece], **{CACHE: cache}, use_cache=length > piece)
        cache = cache_of(outputs) if length > piece else None
        if isinstance(cache, RecurrentCache):
            cache.tokens += piece
        wanted = targets[:, start : start + piece]
        loss = functional.cross_entropy(outputs.logits.float().flatten(0, 1), wanted.flatten(), reduction="none")
        losses.append(loss.view_as(wanted).double().cpu())
    return torch.cat(losses, 1).numpy(), scored


def position_buckets(sums: np.ndarray, counts: np.ndarray, first: int = 1) -> list[PositionBucket]:
    """Buckets of 1, 2, 3-4, 5-8, ... tokens of context, the start token included; empty ones are left out.

    Args:
        sums, counts: `[T]`, the sum of the losses and the number of tokens at each position.
        first: tokens of the first bucket, after which the next one has as many.
    """
    edges = [0, first]
    while edges[-1] < len(sums):
        edges.append(min(2 * edges[-1], len(sums)))
    spans = [(low, high, int(counts[low:high].sum())) for low, high in pairwise(edges)]
    return [PositionBucket(low + 1, high, n, float(sums[low:high].sum() / n)) for low, high, n in spans if n]
