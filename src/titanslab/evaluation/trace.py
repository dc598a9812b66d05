"""A trace of the memories of a model while it reads: surprise, gates, and how far the weights move; its HTML page."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from titanslab.data.encode import TextDecoder
from titanslab.evaluation.pictures import plot_trace
from titanslab.files import write_whole
from titanslab.memory import MemoryState, NeuralMemory, NeuralMemoryState
from titanslab.models.cache import TitansCache

PER_TOKEN = ("surprise", "theta", "eta", "alpha")
PAGE = Path(__file__).with_name("trace_page.html")  # the template; its words in capitals are replaced


@dataclass(frozen=True)
class MemoryTrace:
    """The trace of one text: means over heads and layers of a memory, B the model's blocks.

    Args:
        per_token: for each name of `PER_TOKEN` `[B, T]`. Surprise is the inner loss |f(k) - v|^2 just before
            the write; theta is in units of half the stability limit, as the gates give it.
        places: int `[N]`, the number of tokens read before each measurement of the norms.
        moved: `[B, N]`, |M - M_0| / |M_0|. momentum: `[B, N]`, |S| / |M_0|.
    """

    per_token: dict[str, np.ndarray]
    places: np.ndarray
    moved: np.ndarray
    momentum: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """The values as rounded Python numbers for JSON; None where a value is not finite."""
        arrays = {**self.per_token, "moved": self.moved, "momentum": self.momentum}

        def rounded(x: float) -> float | None:
            return float(f"{x:.4g}") if np.isfinite(x) else None

        lists = {name: [[rounded(x) for x in row] for row in array] for name, array in arrays.items()}
        return {**lists, "places": self.places.tolist()}

    @property
    def finite(self) -> bool:
        """Whether every value is finite; those of a memory that diverged are not."""
        return all(np.isfinite(a).all() for a in (*self.per_token.values(), self.moved, self.momentum))


def memories_of(model: nn.Module) -> list[NeuralMemory]:
    """The model's memories, first block first; ValueError where it has none."""
    found = [m for m in model.modules() if isinstance(m, NeuralMemory)]
    if not found:
        raise ValueError("the model has no neural memory to trace (variant 'attention' has none)")
    return found


def trace_memory(
    model: Any,
    input_ids: Tensor,
    cache: Any = None,
    *,
    every: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> MemoryTrace:
    """Read `input_ids [1, T]` and record surprise and gates of every memory at every token.

    Args:
        model: a Titans model with memories, or a model with a graft.
        input_ids: int64 `[1, T]`.
        cache: the state after the text before; it is not changed. None = the model's initial memory.
        every: tokens between two measurements of the norms; default T / 256 in whole chunks.
        progress: called with (tokens done, in all).

    Raises:
        ValueError: input_ids has another shape, or the model has no memory.
    """
    if input_ids.dim() != 2 or input_ids.shape[0] != 1 or input_ids.shape[1] == 0:
        raise ValueError(f"input_ids must have shape [1, T] with T of at least 1, got {list(input_ids.shape)}")
    memories = memories_of(model)
    total, chunk = input_ids.shape[1], memories[0].chunk_size
    every = every or max(1, total // 256 // chunk) * chunk
    seen: list[np.ndarray] = []  # of each piece [B, 4, t]
    places, norms = [0], [memory_norms(memories, cache)]
    before = 0 if cache is None else cache.columns

    def record(stats: tuple[dict[str, Tensor], ...]) -> None:
        found = [[block["loss" if name == "surprise" else name] for name in PER_TOKEN] for block in stats if block]
        seen.append(np.array([[x[0].flatten(1).double().mean(1).cpu().numpy() for x in block] for block in found]))

    with ExitStack() as hooks:
        if hasattr(model, "graft"):
            pieces = _grafted_pieces(model, input_ids, cache, every, record)
        else:
            base = model.base_model
            more = {"output_memory_stats": True}
            hooks.callback(base.register_forward_pre_hook(lambda _, a, kw: (a, kw | more), with_kwargs=True).remove)
            hooks.callback(base.register_forward_hook(lambda _, __, output: record(output.memory_stats)).remove)
            pieces = model.read_pieces(input_ids, cache, piece_size=every)
        for state in pieces:
            places.append(state.columns - before)
            norms.append(memory_norms(memories, state))
            if progress is not None:
                progress(places[-1], total)
    per_token = dict(zip(PER_TOKEN, np.concatenate(seen, 2).swapaxes(0, 1), strict=True))
    moved, momentum = np.array(norms).T  # [N, B, 2] -> [2, B, N]
    return MemoryTrace(per_token, np.array(places), moved, momentum)


def _grafted_pieces(
    model: Any, input_ids: Tensor, cache: Any, size: int, record: Callable[[tuple[dict[str, Tensor], ...]], None]
) -> Iterator[Any]:
    """Read with a grafted model, and give the stats of each piece to `record`."""
    from titanslab.graft.pieces import read_pieces

    graft, stats = model.graft, dict[int, dict[str, Tensor]]()
    graft.stats = stats
    try:
        for state in read_pieces(model, input_ids, cache, piece_size=size):
            record(tuple(stats[place] for place in sorted(stats)))
            stats.clear()
            yield state
    finally:
        graft.stats = None


def _states(cache: Any) -> list[MemoryState]:
    """The state of each memory in a cache."""
    if isinstance(cache, TitansCache):
        return [s.memory.memory for s in cache.states if s is not None and s.memory is not None]
    layers = [state if isinstance(state, NeuralMemoryState) else state.memory for state in cache.memories]
    return [layer.memory for layer in layers]


def memory_norms(memories: list[NeuralMemory], cache: Any) -> list[tuple[float, float]]:
    """|M - M_0| / |M_0| and |S| / |M_0| of each memory, over all heads and layers; zeros before the first token."""
    if cache is None or (cache.position is None if isinstance(cache, TitansCache) else cache.columns == 0):
        return [(0.0, 0.0)] * len(memories)
    found = []
    for memory, state in zip(memories, _states(cache), strict=True):
        starts = [w.detach().double() for w in memory.memory_weights]
        size = torch.stack([w.square().sum() for w in starts]).sum().clamp_min(1e-30)
        change = sum((w[0].double() - start).square().sum() for w, start in zip(state.weights, starts, strict=True))
        speed = sum(s[0].double().square().sum() for s in state.momentum)
        found.append((float((change / size) ** 0.5), float((speed / size) ** 0.5)))
    return found


def write_report(
    trace: MemoryTrace, tokens: Sequence[str], folder: Path, *, title: str, subtitle: str, about: dict[str, Any]
) -> list[Path]:
    """Write inspect.html, inspect.png and inspect.json into `folder`, which is made, and return their paths.

    The page needs no other file: it holds the text with coloured tokens, and the picture.

    Args:
        trace, tokens: the trace and the text of each of its tokens.
        title, subtitle: of the page and the picture.
        about: values that inspect.json holds beside those of the trace.

    Raises:
        ValueError: `tokens` has another length than the trace.
    """
    if len(tokens) != trace.per_token["surprise"].shape[1]:
        raise ValueError(
            f"tokens must hold one text per token, {trace.per_token['surprise'].shape[1]}, got {len(tokens)}"
        )
    page, picture, numbers = (folder / f"inspect.{suffix}" for suffix in ("html", "png", "json"))
    folder.mkdir(parents=True, exist_ok=True)
    plot_trace(trace, picture, f"{title}\n{subtitle}", tokens)
    values = trace.to_dict()
    write_whole(numbers, json.dumps(about | values) + "\n")
    shown = {name: values[name] for name in trace.per_token}
    parts = {
        "SUBTITLE": html.escape(subtitle),
        "TITLE": html.escape(title),
        "PICTURE": f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode('ascii')}",
        "DATA": json.dumps(shown, allow_nan=False).replace("</", "<\\/"),
        "TOKENS": "".join(f"<span>{html.escape(token)}</span>" for token in tokens),
    }
    # one pass over the template: placeholders that the text itself spells stay
    pieces = re.split("(" + "|".join(parts) + ")", PAGE.read_text(encoding="utf-8"))
    write_whole(page, "".join(parts.get(piece, piece) for piece in pieces))
    return [page, picture, numbers]


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token; that of a character of several tokens is the last one's, the others' is empty."""
    decoder = TextDecoder(tokenizer)
    texts = [decoder.add([int(token)]) for token in ids]
    return [*texts[:-1], texts[-1] + decoder.rest()] if texts else []
