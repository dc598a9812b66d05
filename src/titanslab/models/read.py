"""`read`: texts of any length, piece by piece, in the memory that one piece takes."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from titanslab.memory.layer import check_writes
from titanslab.models.cache import TitansCache
from titanslab.models.config import TitansConfig

TOKENS_AT_ONCE = 4096  # in all rows of a piece; more tokens take more memory and gain no speed


def piece_unit(config: TitansConfig) -> int:
    """Tokens a piece should be a multiple of, so that no chunk and no segment is read in two parts."""
    chunk_size = config.memory.chunk_size
    return math.lcm(chunk_size, config.segment_len) if config.variant == "mac" else chunk_size


class Reads:
    """The methods `read` and `read_pieces` of `TitansModel` and `TitansForCausalLM`."""

    config: TitansConfig

    def read(
        self,
        input_ids: Tensor | Iterable[Tensor],
        cache: TitansCache | None = None,
        *,
        attention_mask: Tensor | None = None,
        piece_size: int | None = None,
        learn: bool | None = None,
        write_scale: float | None = None,
        progress: Callable[[int, int | None], None] | None = None,
    ) -> TitansCache:
        """Read tokens and return the cache after them; no logits are formed and no gradient is kept.

        A text of any length takes the memory of one piece, except with full attention, whose cache grows. Reading on
        from the returned cache gives the same as reading everything at once, wherever the cut is.

        Args:
            input_ids: int64 `[B, T]`, on any device, or an iterable of such pieces, of any lengths.
            cache: the state to go on from; it is not changed.
            attention_mask: `[B, T]`, 0 = padding; only if `input_ids` is a tensor.
            piece_size: tokens of a row read at once; default about 4096 in all rows, in whole chunks and segments.
            learn: False freezes the memories while these tokens are read: weights and momentum do not change, and
                nothing is forgotten. Convolutions and attention windows go on. None = the value of the cache.
            write_scale: factor on theta while these tokens are read. None = the value of the cache.
            progress: called after each piece with the tokens of a row read so far and their total, or None if the
                total is not known.

        Returns:
            A new cache. `model.generate(new_ids, past_key_values=cache.continued())` goes on from it.

        Raises:
            ValueError: input that is not `[B, T]`, a cache of another model, or an option without any effect.
        """
        total = input_ids.shape[1] if isinstance(input_ids, Tensor) and input_ids.dim() == 2 else None
        result = _forked(cache, self.config)
        begin = result.columns
        for result in self.read_pieces(
            input_ids, cache, attention_mask=attention_mask, piece_size=piece_size, learn=learn, write_scale=write_scale
        ):
            if progress is not None:
                progress(result.columns - begin, total)
        return result

    def read_pieces(
        self,
        input_ids: Tensor | Iterable[Tensor],
        cache: TitansCache | None = None,
        *,
        attention_mask: Tensor | None = None,
        piece_size: int | None = None,
        learn: bool | None = None,
        write_scale: float | None = None,
    ) -> Iterator[TitansCache]:
        """Read as `read` does and yield the cache after each piece, so that reading can stop after any of them.

        A yielded cache is never changed. Tokens of a piece that was interrupted are in none.
        """
        cache = _forked(cache, self.config)
        learns, scale = cache.learn, cache.write_scale
        now = (learns if learn is None else learn, scale if write_scale is None else write_scale)
        check_writes(now[0], write_scale)
        if self.config.variant == "attention" and now != (True, 1.0):
            raise ValueError("learn and write_scale act on a memory, and a model of variant 'attention' has none")
        model: Any = self
        for ids, mask in _pieces(input_ids, attention_mask, cache, self.config, piece_size):
            if cache.position is not None and cache.position.device != model.device:
                cache = cache.to(model.device)
            work = cache.fork()
            work.learn, work.write_scale = now
            with torch.no_grad():
                model.base_model(
                    input_ids=ids.to(model.device),
                    attention_mask=None if mask is None else mask.to(model.device),
                    cache=work,
                    use_cache=True,
                )
            work.learn, work.write_scale = learns, scale
            cache = work
            yield work


def _forked(cache: Any, config: TitansConfig) -> TitansCache:
    if cache is None:
        return TitansCache(config)
    if not isinstance(cache, TitansCache):
        raise ValueError(f"cache must be a TitansCache or None, got {type(cache).__name__}")
    return cache.fork()


def _pieces(
    input_ids: Tensor | Iterable[Tensor],
    attention_mask: Tensor | None,
    cache: TitansCache,
    config: TitansConfig,
    piece_size: int | None,
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Pieces of the input and of its mask; each but the first begins at the start of a chunk and of a segment."""
    if piece_size is not None and (not isinstance(piece_size, int) or piece_size < 1):
        raise ValueError(f"piece_size must be an integer of at least 1 or None, got {piece_size!r}")
    if isinstance(input_ids, Tensor):
        if attention_mask is not None and attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"attention_mask must have the shape of input_ids, {list(input_ids.shape)}, "
                f"got {list(attention_mask.shape)}"
            )
        source: Iterable[Tensor] = (input_ids,)
    elif isinstance(input_ids, str | bytes):
        raise ValueError("input_ids is text; encode it first, or read a file with titanslab.reading.text.read_text")
    elif attention_mask is not None:
        raise ValueError("attention_mask goes with a tensor of input_ids, not with an iterable of pieces")
    else:
        source = input_ids
    held: list[Tensor] = []
    count, done, size = 0, 0, 0
    for piece in source:
        _check(piece, config)
        if held and piece.shape[0] != held[0].shape[0]:
            raise ValueError(f"the pieces of input_ids hold {held[0].shape[0]} and then {piece.shape[0]} rows")
        if not size:
            size = _size(config, piece, piece_size, cache)
        held, count = [*held, piece], count + piece.shape[1]
        while count >= size:
            row = held[0] if len(held) == 1 else torch.cat([t.to(held[0].device) for t in held], dim=1)
            yield row[:, :size], None if attention_mask is None else attention_mask[:, done : done + size]
            done, count, held = done + size, count - size, [row[:, size:]]
            size = _size(config, piece, piece_size)
    if count:
        row = torch.cat([t.to(held[0].device) for t in held], dim=1)
        yield row, None if attention_mask is None else attention_mask[:, done:]


def _check(ids: Any, config: TitansConfig) -> None:
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.dtype not in (torch.int64, torch.int32):
        got = f"{list(ids.shape)} {ids.dtype}" if isinstance(ids, Tensor) else type(ids).__name__
        raise ValueError(f"input_ids must be integer tensors [B, T], got {got}; one row: ids.unsqueeze(0)")
    if ids.shape[0] == 0:
        raise ValueError("input_ids must hold at least one row, got shape " + str(list(ids.shape)))
    if ids.device.type == "cpu" and ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < config.vocab_size:
        wrong = int(ids.min()) if ids.min() < 0 else int(ids.max())
        raise ValueError(f"input_ids must be within the vocabulary 0..{config.vocab_size - 1}, got {wrong}")


def _size(config: TitansConfig, ids: Tensor, piece_size: int | None, cache: TitansCache | None = None) -> int:
    """Tokens of a piece. The first one, after `cache`, ends with a chunk and segment if pieces hold whole ones."""
    unit = piece_unit(config)
    size = piece_size or max(1, TOKENS_AT_ONCE // ids.shape[0] // unit) * unit
    return size if cache is None or cache.position is None or size % unit else size - int(cache.position[0]) % unit
