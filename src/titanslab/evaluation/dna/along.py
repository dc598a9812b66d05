"""Values of a causal model at every base of a genome, read through its memory in pieces: bits, surprise, writes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from titanslab.data import TextEncoder
from titanslab.data.dna.alphabet import UNKNOWN
from titanslab.data.dna.fasta import FastaPiece
from titanslab.evaluation.decode import RecurrentCache, is_recurrent
from titanslab.models.cache import CACHE, TitansCache, cache_of
from titanslab.models.config import TitansConfig
from titanslab.models.read import piece_unit

MEMORY_VALUES = {"surprise": "loss", "write": "write"}  # name of a track -> name in `memory_stats`


class BaseValues(NamedTuple):
    """Values of a run of bases of one record.

    Args:
        name: of the record. start: place of the first base in it, from 0.
        values: "loss" in bits, and of a model with a memory "surprise" |f(k) - v|^2 before the write and "write", the
            gate of the write, from 0 to 1 at the stability limit; means over heads and blocks. float64 `[T]` each, NaN
            at N.
    """

    name: str
    start: int
    values: dict[str, np.ndarray]


def track_names(model: Any) -> tuple[str, ...]:
    """The names of the values that a model has at every base."""
    has_memory = isinstance(model.config, TitansConfig) and model.config.variant != "attention"
    return ("loss", *MEMORY_VALUES) if has_memory else ("loss",)


def values_along(
    model: Any, tokenizer: Any, pieces: Iterable[FastaPiece], *, piece_size: int = 4096, learn: bool = True
) -> Iterator[BaseValues]:
    """The values of a causal model at every base, in the order of the pieces.

    Each record is one document: the model begins it with a new memory. The text before is held in the model's cache
    alone, which has the same size at every base, except that of full attention, which grows.

    Args:
        model: a causal language model in evaluation mode. tokenizer: its own, with a token for a nucleotide.
        pieces: of records, see `titanslab.data.dna.genome.Genome`.
        piece_size: tokens read at once; for a Titans model up to whole chunks and segments.
        learn: False freezes the memories, which shows their share.

    Raises:
        ValueError: the tokenizer has other tokens than nucleotides, or the model has no memory to freeze.
    """
    encoder = TextEncoder(tokenizer)
    if not encoder.by_table:
        raise ValueError("the model's tokenizer has tokens of several bases; a track needs one token a base, as 'dna'")
    memory = len(track_names(model)) > 1
    if not learn and not memory:
        raise ValueError("learn=False freezes a memory, and this model has none")
    if isinstance(model.config, TitansConfig):
        unit = piece_unit(model.config)
        piece_size = -(-piece_size // unit) * unit
    for _, of_record in groupby(pieces, key=lambda piece: piece.number):
        reader = _Reader(model, encoder, memory, learn)
        yield from reader.read(of_record, piece_size)


class _Reader:
    """Reads one record."""

    def __init__(self, model: Any, encoder: TextEncoder, memory: bool, learn: bool) -> None:
        self.model, self.encoder, self.memory, self.learn = model, encoder, memory, learn
        self.cache: Any = None
        if isinstance(model.config, TitansConfig):
            self.cache = TitansCache(model.config)
            if memory:
                self.cache.learn = learn
        elif is_recurrent(model.config):
            self.cache = RecurrentCache(config=model.config)
        self.next: Tensor | None = None  # logits [V] of the token after those read

    def read(self, pieces: Iterable[FastaPiece], size: int) -> Iterator[BaseValues]:
        start = self.encoder.bos if self.encoder.bos is not None else self.encoder.eos
        held, place, name = "", 0, ""
        room = size
        if start is not None:  # the first piece holds the start token too, so that pieces end with chunks
            self._step(torch.tensor([[start]]))
            room = size - 1
        for piece in pieces:
            if not held:
                place = piece.start
            name, held = piece.name, held + piece.bases
            while len(held) >= room:
                yield BaseValues(name, place, self._values(held[:room]))
                place, held, room = place + room, held[room:], size
        if held:
            yield BaseValues(name, place, self._values(held))

    @torch.inference_mode()
    def _step(self, ids: Tensor) -> tuple[Tensor, Any]:
        """The logits of the tokens `[1, T]`, each given the tokens before it, `[T, V]`; and the model's output."""
        stats = {"output_memory_stats": True} if self.memory else {}
        outputs = self.model(input_ids=ids.to(self.model.device), use_cache=True, **{CACHE: self.cache}, **stats)
        self.cache = cache_of(outputs)
        if isinstance(self.cache, RecurrentCache):
            self.cache.tokens += ids.shape[1]
        logits = outputs.logits[0].float()
        before = logits.new_full((1, logits.shape[1]), math.nan) if self.next is None else self.next[None]
        self.next = logits[-1]
        return torch.cat((before, logits[:-1])), outputs

    def _values(self, bases: str) -> dict[str, np.ndarray]:
        ids = torch.from_numpy(self.encoder.encode([bases])[0].astype(np.int64))[None]
        logits, outputs = self._step(ids)
        loss = functional.cross_entropy(logits, ids[0].to(logits.device), reduction="none").double() / math.log(2)
        found = {"loss": loss.cpu().numpy()}
        if self.memory:
            for name, key in MEMORY_VALUES.items():
                blocks = [block[key][0].double().flatten(1).mean(1) for block in outputs.memory_stats if key in block]
                found[name] = torch.stack(blocks).mean(0).cpu().numpy()
            found["write"] *= self.learn  # the gate of a frozen memory opens, and nothing is written
        unknown = np.frombuffer(bases.encode("ascii"), np.uint8) == ord(UNKNOWN)
        return {name: np.where(unknown, np.nan, values) for name, values in found.items()}
