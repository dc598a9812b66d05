"""Loss by position of a trained model whose memories forget as trained, in some of their matrices, or not at all.

    python -m benchmarks.forgetting --model RUN --data books.jsonl --tokens 32768 --windows 4

Forgetting draws each matrix of a memory toward 0, its learned start M_0 included. A model that was trained on short
rows has never seen that start fade. Windows of the length of these rows, each with a new memory, are the control.
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.output import new_report, settings_of, table
from titanslab.data import open_corpus
from titanslab.evaluation.perplexity import evaluate_perplexity
from titanslab.evaluation.trace import memories_of
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
    parser.add_argument("--out", type=Path, help="JSON file; default: a new one in benchmarks/results")
    given = parser.parse_args(arguments)
    report = new_report("forgetting", 0, torch.device("cpu"), settings_of(given, "model", "data"), given.out)
    model, tokenizer = open_model(given.model, "cpu")
    texts = texts_of(given.data, tokenizer, given.tokens, given.windows)
    layers = memories_of(model)[0].gate_layers
    report.add({"half_lives_of_biases": half_lives(model)})
    ways: list[tuple[str, int, Sequence[int]]] = [
        ("as trained", given.tokens, ()),
        (f"a new memory every {given.rows:,} tokens", given.rows, ()),
        *((f"matrix {layer + 1} does not forget", given.tokens, (layer,)) for layer in range(layers) if layers > 1),
        ("no matrix forgets", given.tokens, tuple(range(layers))),
    ]
    rows = []
    for name, length, matrices in ways:
        with unforgetting(model, matrices):
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
