"""Reading without end: texts of any length, in pieces, in the memory of one piece."""

import math
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from titanslab.memory.frozen import check_writes
from titanslab.models.cache import TitansCache
from titanslab.models.config import TitansConfig

if TYPE_CHECKING:
    from titanslab.reading.text import ReadProgress

TOKENS_AT_ONCE = 4096  # of all rows; more gains no speed, and costs memory


def piece_unit(config: TitansConfig) -> int:
    """Tokens a piece should be a multiple of, so that no chunk and no segment is read in two parts."""
    return math.lcm(config.chunk_size, config.segment_len) if config.variant == "mac" else config.chunk_size


class Reads:
    """`read` and `read_text`, for `TitansModel` and `TitansForCausalLM`."""

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
        """Read tokens and return what the model remembers then; no logits are formed, no gradient is kept.

        Any length takes the memory of one piece (but for full attention, whose cache grows). Reading on from
        the returned cache is the same as reading all at once, wherever the cut is.

        Args:
            input_ids: int64 `[B, T]`, on any device, or an iterable of such pieces, of any lengths.
            cache: what was read before; it is left as it is.
            attention_mask: `[B, T]`, 0 = padding, where `input_ids` is a tensor.
            piece_size: tokens of a row read at once; default about 4096 in all rows, in whole chunks and segments.
            learn: False freezes the memories while these tokens are read: weights and momentum stay as they
                are, nothing is forgotten; convolutions and attention windows go on. None = as the cache says.
            write_scale: factor on theta while these tokens are read. None = as the cache says.
            progress: called with (tokens of a row done, in all or None where not known).

        Returns:
            A new cache. `model.generate(new_ids, past_key_values=cache.continued())` goes on from it.

        Raises:
            ValueError: input that is not `[B, T]`, a cache of another model, an option that can have no effect.
        """
        total = input_ids.shape[1] if isinstance(input_ids, Tensor) and input_ids.dim() == 2 else None
        result = TitansCache(self.config) if cache is None else _forked(cache)
        begin = result.columns
        for result in self.read_pieces(
            input_ids,
            cache,
            attention_mask=attention_mask,
            piece_size=piece_size,
            learn=learn,
            write_scale=write_scale,
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
        """As `read`, piece by piece: yields the cache after each, so that reading can stop at any of them.

        An interrupted piece is as if it had not begun; the caches that were yielded are never changed.
        """
        cache = TitansCache(self.config) if cache is None else _forked(cache)
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

    def read_text(
        self,
        path: str | os.PathLike[str],
        tokenizer: Any,
        cache: TitansCache | None = None,
        *,
        piece_size: int | None = None,
        learn: bool | None = None,
        write_scale: float | None = None,
        progress: "Callable[[ReadProgress], None] | None" = None,
    ) -> TitansCache:
        """Read a text file of any size, plain or .gz, .xz, .bz2, .zst, as `read` does with tokens.

        Args:
            path: text in UTF-8. tokenizer: of the model; its start token goes first where `cache` is None.
            progress: told of every piece: tokens, bytes, tokens/s, seconds left.
            cache, piece_size, learn, write_scale: as in `read`.
        """
        from titanslab.reading.text import read_text

        steps = read_text(self, path, tokenizer, cache, piece_size=piece_size, learn=learn, write_scale=write_scale)
        result = cache.fork() if cache is not None else TitansCache(self.config)
        for step in steps:
            result = step.cache
            if progress is not None:
                progress(step.progress)
        return result


def _forked(cache: Any) -> TitansCache:
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
    """The input cut so that, after the first, pieces begin where chunks and segments do."""
    if piece_size is not None and (not isinstance(piece_size, int) or piece_size < 1):
        raise ValueError(f"piece_size must be an integer of at least 1 or None, got {piece_size!r}")
    if isinstance(input_ids, Tensor):
        _check(input_ids, config)
        if attention_mask is not None and attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"attention_mask must have the shape of input_ids, {list(input_ids.shape)}, "
                f"got {list(attention_mask.shape)}"
            )
        source: Iterable[Tensor] = (input_ids,)
    elif isinstance(input_ids, str | bytes):
        raise ValueError("input_ids is text; encode it first, or read a file with read_text(path, tokenizer)")
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
            size = _first_size(config, cache, piece, piece_size)
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


def _size(config: TitansConfig, ids: Tensor, piece_size: int | None) -> int:
    unit = piece_unit(config)
    return piece_size or max(1, TOKENS_AT_ONCE // max(1, ids.shape[0]) // unit) * unit


def _first_size(config: TitansConfig, cache: TitansCache, ids: Tensor, piece_size: int | None) -> int:
    """Up to the next whole chunk and segment, where pieces are made of whole ones."""
    size, unit = _size(config, ids, piece_size), piece_unit(config)
    if cache.position is None or size % unit:
        return size
    return size - int(cache.position[0]) % unit
