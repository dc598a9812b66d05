"""What the memories of a model do while it reads: surprise, gates, and how far they move."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from titanslab.memory import NeuralMemory, NeuralMemoryState
from titanslab.models.cache import TitansCache

PER_TOKEN = ("surprise", "theta", "eta", "alpha")


@dataclass(frozen=True)
class MemoryTrace:
    """One text through one model; means over heads and layers of a memory, B the model's blocks.

    Args:
        per_token: for each name of `PER_TOKEN` `[B, T]`. Surprise is the inner loss |f(k) - v|^2 just before
            the write; theta is in units of the stability limit's half, as the gates give it.
        places: int `[N]`, after how many tokens the norms were taken.
        moved: `[B, N]`, |M - M_0| / |M_0|. momentum: `[B, N]`, |S| / |M_0|.
    """

    per_token: dict[str, np.ndarray]
    places: np.ndarray
    moved: np.ndarray
    momentum: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """Plain values, rounded, for JSON; None where a value is not finite."""
        arrays = {**self.per_token, "moved": self.moved, "momentum": self.momentum}
        rounded = {name: [[_rounded(x) for x in row] for row in array] for name, array in arrays.items()}
        return {**rounded, "places": self.places.tolist()}

    @property
    def finite(self) -> bool:
        """Whether every value is a number, which those of a memory that blew up are not."""
        return all(np.isfinite(a).all() for a in (*self.per_token.values(), self.moved, self.momentum))


def _rounded(x: float) -> float | None:
    return float(f"{x:.4g}") if np.isfinite(x) else None


def memories_of(model: nn.Module) -> list[NeuralMemory]:
    """The model's memories, first block first; ValueError where it has none."""
    found = [m for m in model.modules() if isinstance(m, NeuralMemory)]
    if not found:
        raise ValueError("the model has no neural memory to look into (variant 'attention' has none)")
    return found


def trace_memory(
    model: Any,
    input_ids: Tensor,
    cache: TitansCache | None = None,
    *,
    every: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> MemoryTrace:
    """Read `input_ids [1, T]` and write down what every memory does at every token.

    Args:
        model: a Titans model with memories.
        input_ids: int64 `[1, T]`.
        cache: what was read before; left as it is.
        every: tokens between two measurements of the norms; default T / 256 in whole chunks.
        progress: called with (tokens done, in all).
    """
    if input_ids.dim() != 2 or input_ids.shape[0] != 1 or input_ids.shape[1] == 0:
        raise ValueError(f"input_ids must have shape [1, T] with T of at least 1, got {list(input_ids.shape)}")
    memories = memories_of(model)
    total, chunk = input_ids.shape[1], model.config.chunk_size
    every = every or max(1, total // 256 // chunk) * chunk
    seen: list[dict[str, list[np.ndarray]]] = [{name: [] for name in PER_TOKEN} for _ in memories]
    places, moved, momentum = [0], [[0.0] * len(memories)], [[0.0] * len(memories)]
    before = 0 if cache is None else cache.columns
    if cache is not None and cache.position is not None:
        _norms(memories, cache, moved[0], momentum[0])
    with ExitStack() as hooks:
        for memory, record in zip(memories, seen, strict=True):
            hooks.callback(memory.register_forward_pre_hook(_ask_for_stats, with_kwargs=True).remove)
            hooks.callback(memory.register_forward_hook(_recorder(record), with_kwargs=True).remove)
        for state in model.read_pieces(input_ids, cache, piece_size=every):
            places.append(state.columns - before)
            moved.append([0.0] * len(memories))
            momentum.append([0.0] * len(memories))
            _norms(memories, state, moved[-1], momentum[-1])
            if progress is not None:
                progress(places[-1], total)
    per_token = {name: np.stack([np.concatenate(record[name]) for record in seen]) for name in PER_TOKEN}
    return MemoryTrace(per_token, np.array(places), np.array(moved).T, np.array(momentum).T)


def _ask_for_stats(memory: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    return args, kwargs | {"return_stats": True}


def _recorder(record: dict[str, list[np.ndarray]]) -> Callable[..., tuple]:
    def keep(memory: nn.Module, args: tuple, kwargs: dict[str, Any], output: tuple) -> tuple:
        y, state, stats = output
        mask = kwargs.get("mask")
        for name in PER_TOKEN:
            values = stats["loss" if name == "surprise" else name][0].flatten(1).double().mean(1)
            if mask is not None:  # segments of MAC are filled up
                values = values[mask[0]]
            record[name].append(values.cpu().numpy())
        return y, state

    return keep


def _norms(memories: list[NeuralMemory], cache: TitansCache, moved: list[float], momentum: list[float]) -> None:
    states = [s.memory for s in cache.states if s is not None and s.memory is not None]
    for i, (memory, state) in enumerate(zip(memories, states, strict=True)):
        moved[i], momentum[i] = _distance(memory, state)


def _distance(memory: NeuralMemory, state: NeuralMemoryState) -> tuple[float, float]:
    """|M - M_0| / |M_0| and |S| / |M_0|, over all heads and layers."""
    starts = [w.detach().double() for w in memory.memory_weights]
    size = torch.stack([w.square().sum() for w in starts]).sum().clamp_min(1e-30)
    change = sum((w[0].double() - start).square().sum() for w, start in zip(state.memory.weights, starts, strict=True))
    speed = sum(s[0].double().square().sum() for s in state.memory.momentum)
    return float((change / size) ** 0.5), float((speed / size) ** 0.5)
