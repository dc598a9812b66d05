"""Loss by position of a trained model whose memories forget as trained, in some matrices, none, or to their start.

    python -m benchmarks.forgetting --model RUN --data books.jsonl --tokens 32768 --windows 4

Forgetting draws each matrix of a memory toward 0, its learned start M_0 included. A model that was trained on short
rows has never seen that start fade. Windows of the length of these rows, each with a new memory, are the control.
Drawn to its start, a memory moves toward M_0 at the end of each piece that is read: what the text has written halves in
so many tokens, and M_0 stays.
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.output import new_report, settings_of, table
from titanslab.data import open_corpus
from titanslab.evaluation.perplexity import evaluate_perplexity
from titanslab.evaluation.trace import memories_of
from titanslab.models.cache import cache_of
from titanslab.models.mixer import Mixer
from titanslab.runs.loading import open_model

NEVER = -40.0  # bias of alpha's gate: a half-life above 1e17 tokens


@contextmanager
def unforgetting(model: Any, matrices: Sequence[int]) -> Iterator[None]:
    """The model with alpha = 0 in these matrices of each memory, counted from 0."""
    before = {name: value.clone() for name, value in model.state_dict().items() if "alpha_proj" in name}
    if not before:
        raise SystemExit("the model has no memory that forgets")
    try:
        for memory in memories_of(model):
            layers = memory.gate_layers
            gates = [head * layers + matrix for head in range(memory.num_heads) for matrix in matrices]
            with torch.no_grad():
                memory.alpha_proj.weight[gates] = 0.0
                memory.alpha_proj.bias[gates] = NEVER
        yield
    finally:
        model.load_state_dict(before, strict=False)


@contextmanager
def drawn_to_start(model: Any, half_life: float | None) -> Iterator[None]:
    """The model whose memories lose half of what they have written in so many tokens, beside their own forgetting."""
    mixers = [module for module in model.modules() if isinstance(module, Mixer)]
    with torch.no_grad():
        starts = [mixer.memory.initial_state(1, persistent=mixer.persistent).memory.weights for mixer in mixers]

    def draw(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        share = 1 - 2 ** (-kwargs["input_ids"].shape[1] / half_life)
        if (cache := cache_of(output)) is None:
            raise SystemExit("the windows are too short to be read in pieces; give more --tokens")
        states = cache.states
        for place, (state, start) in enumerate(zip(states, starts, strict=True)):
            held = state.memory.memory
            weights = tuple(w + share * (m - w) for w, m in zip(held.weights, start, strict=True))
            memory = replace(state.memory, memory=replace(held, weights=weights, chunk_weights=weights, joined=None))
            states[place] = replace(state, memory=memory)

    handle = model.register_forward_hook(draw, with_kwargs=True) if half_life else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


def half_lives(model: Any) -> list[list[list[float]]]:
    """Half-lives in tokens at the biases of alpha's gates: of each block, head and matrix."""
    found = []
    for memory in memories_of(model):
        alpha = torch.sigmoid(memory.alpha_proj.bias.detach().double()).view(memory.num_heads, -1)
        found.append([[float(f"{value:.3g}") for value in head] for head in -math.log(2) / torch.log1p(-alpha)])
    return found


def texts_of(data: str, tokenizer: Any, tokens: int, count: int) -> list[str]:
    """The beginnings of the first `count` documents that have more than `tokens` tokens."""
    found: list[str] = []
    for text in open_corpus(data, "--data", streaming=True):
        ids = tokenizer(text[: 12 * tokens], add_special_tokens=False)["input_ids"]
        if len(ids) > tokens * 1.05:
            found.append(tokenizer.decode(ids[: int(tokens * 1.05)]))
        if len(found) == count:
            return found
    raise SystemExit(f"--data has {len(found)} documents of {tokens:,} tokens; {count} are needed")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a trained Titans model or its run")
    parser.add_argument("--data", required=True, help="long documents")
    parser.add_argument("--tokens", type=int, default=32_768, help="of a document that are read")
    parser.add_argument("--windows", type=int, default=4, help="documents")
    parser.add_argument("--rows", type=int, default=2048, help="tokens of the control's windows")
    parser.add_argument("--half-lives", default="512,2048,8192", help="of what is written, in memories drawn to M_0")
    parser.add_argument("--out", type=Path, help="JSON file; default: a new one in benchmarks/results")
    given = parser.parse_args(arguments)
    report = new_report("forgetting", 0, torch.device("cpu"), settings_of(given, "model", "data"), given.out)
    model, tokenizer = open_model(given.model, "cpu")
    texts = texts_of(given.data, tokenizer, given.tokens, given.windows)
    layers = memories_of(model)[0].gate_layers
    report.add({"half_lives_of_biases": half_lives(model)})
    lengths = [int(value) for value in given.half_lives.split(",") if value]
    ways: list[tuple[str, int, Sequence[int], int | None]] = [
        ("as trained", given.tokens, (), None),
        (f"a new memory every {given.rows:,} tokens", given.rows, (), None),
        *((f"matrix {n + 1} does not forget", given.tokens, (n,), None) for n in range(layers) if layers > 1),
        ("no matrix forgets", given.tokens, tuple(range(layers)), None),
        *((f"drawn to its start, half-life {value:,}", given.tokens, (), value) for value in lengths),
    ]
    rows = []
    for name, length, matrices, half_life in ways:
        with unforgetting(model, matrices), drawn_to_start(model, half_life):
            found = evaluate_perplexity(
                model,
                tokenizer,
                texts,
                context_length=length,
                batch_size=given.windows,
                max_tokens=given.windows * given.tokens,
                whole_windows=True,
            )
        positions = [vars(bucket) for bucket in found.positions]
        report.add({"way": name, "window": length, "loss": found.loss, "tokens": found.tokens, "positions": positions})
        rows.append([name, f"{found.loss:.3f}", *(f"{b.loss:.3f}" for b in found.positions if b.last >= given.rows)])
    shown = [f"{b.first:,}-{b.last:,}" for b in found.positions if b.last >= given.rows]
    print(table(["", "all", *shown], [row + [""] * (2 + len(shown) - len(row)) for row in rows]))
    report.finish()


if __name__ == "__main__":
    main()
